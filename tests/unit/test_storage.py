"""The archive on a local disk: patterns, listing, opening, sidecar names, error classes."""

import errno
import os
import pickle
import re
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.core.config import build_config
from vca.core.errors import CODES, ConfigError, ErrorCode, MediaError
from vca.core.identity import display_key, object_version
from vca.media.sidecars import media_stem, sidecar_language, sidecar_stems
from vca.media.source import LocalSource
from vca.media.storage import (
    LISTING,
    MEDIA_GLOBS,
    Archive,
    ArchiveConfig,
    compile_globs,
    storage_error,
)

NO_LIMIT = 1 << 40


def write(root: Path, key: str, data: bytes = b"x") -> Path:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def archive_of(root: Path, **settings: object) -> Archive:
    return Archive(ArchiveConfig(uri=str(root), **settings))


def listing(archive: Archive, rows_per_batch: int = 10_000) -> dict[str, dict[str, object]]:
    rows = pa.Table.from_batches(archive.list_batches(rows_per_batch), LISTING).to_pylist()
    by_key = {row["key"]: row for row in rows}
    assert len(by_key) == len(rows), "a key was listed twice"
    return by_key


def read_listed(archive: Archive, key: str) -> bytes:
    row = listing(archive)[key]
    with archive.open(key, row["size_bytes"], row["version"], stage_limit_bytes=NO_LIMIT, whole=True) as source:
        assert isinstance(source, LocalSource)
        return Path(source.path).read_bytes()


# ---------------------------------------------------------------------------------------------------- patterns

NAMES = st.text(alphabet="abAB.x1é* ", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
KEYS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PARTS = st.sampled_from(["**", "*", "a*", "*.x", "?", "ab", "[ab]", "*b*", "A", "é*"])
PATTERNS = st.lists(PARTS, min_size=2, max_size=4).map("/".join)


def component_matches(pattern: str, name: str) -> bool:
    """Wildcards of one path component, by the book: a reference that shares no code with the product."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(component_matches(pattern[1:], name[i:]) for i in range(len(name) + 1))
    if not name:
        return False
    if pattern[0] == "[":
        members, _, rest = pattern[1:].partition("]")
        return name[0].lower() in members.lower() and component_matches(rest, name[1:])
    return (pattern[0] == "?" or pattern[0].lower() == name[0].lower()) and component_matches(pattern[1:], name[1:])


def reference_matches(pattern: str, key: str) -> bool:
    @cache
    def match(i: int, j: int) -> bool:
        if i == len(parts):
            return j == len(names)
        if parts[i] == "**":
            if i == len(parts) - 1:
                return j < len(names)
            return any(match(i + 1, k) for k in range(j, len(names) + 1))
        return j < len(names) and component_matches(parts[i], names[j]) and match(i + 1, j + 1)

    parts, names = pattern.split("/"), key.split("/")
    return match(0, 0)


@given(PATTERNS, KEYS)
def test_path_patterns_agree_with_reference(pattern: str, key: str) -> None:
    """A pattern with a slash is about the whole key, component by component."""
    assert compile_globs((pattern,))(key) == reference_matches(pattern, key)


@given(PARTS.filter(lambda part: part != "**"), KEYS)
def test_name_patterns_match_in_any_folder(pattern: str, key: str) -> None:
    """A pattern without a slash is about the file name, at every depth."""
    matches = compile_globs((pattern,))
    assert matches(key) == component_matches(pattern, key.rpartition("/")[2])
    assert matches("deep/folder/" + key) == matches(key)


@given(KEYS, st.sampled_from(MEDIA_GLOBS))
def test_fast_suffixes_agree_with_regular_expression(key: str, pattern: str) -> None:
    """The set look-up for `*.ext` is an optimisation, not another meaning."""
    for candidate in (key, key + pattern[1:], key + pattern[1:].upper(), key + pattern[1:] + "x"):
        expected = re.fullmatch(rf"(?s)(.*/)?[^/]*{re.escape(pattern[1:])}", candidate, re.IGNORECASE) is not None
        assert compile_globs((pattern,))(candidate) == expected


def test_folder_patterns_and_bad_patterns() -> None:
    """`thumbs/` means all below it; what cannot be meant is refused with the field's name."""
    matches = compile_globs(("thumbs/", "/top.mp4"))
    assert matches("Thumbs/a/b.jpg")
    assert matches("top.mp4")
    assert not matches("a/thumbs/b.jpg")
    assert not matches("a/top.mp4")
    assert compile_globs(("**",))("a/b")
    assert compile_globs(("line*end",))("line\nend")
    assert compile_globs(("[",))("["), "an open bracket is a bracket"
    for bad in ("", "/", "a**/b"):
        with pytest.raises(ConfigError, match=r"archive: exclude = .*pattern"):
            build_config(ArchiveConfig, {"uri": "x", "exclude": [bad]}, "archive")


def test_default_patterns_know_the_real_media(media_dir: Path) -> None:
    """No real media file of the test collection is overlooked, and nothing else is taken for one."""
    kinds = {key: row["kind"] for key, row in listing(archive_of(media_dir)).items()}
    other = {".json", ".md", ".txt", ".tsv", ".js", ".uem", ".rttm", ".stl", ""}
    for key, kind in kinds.items():
        extension = Path(key).suffix.lower()
        if extension in {".srt", ".vtt", ".ass", ".ssa", ".ttml"}:
            assert kind == "sidecar", key
        else:
            assert kind == ("ignored" if extension in other or key.endswith("LICENSE") else "media"), key
    assert list(kinds.values()).count("media") > 150


# ---------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("films/", "films"),
        ("/", "/"),
        ("file:///data/films/", "/data/films"),
        ("s3a://bucket/films//", "s3://bucket/films"),
        ("s3://bucket/", "s3://bucket"),
    ],
)
def test_uri_has_one_spelling(uri: str, expected: str) -> None:
    """The same place gives the same configuration text, hence the same hashes."""
    assert ArchiveConfig(uri=uri).uri == expected


def test_uri_with_credentials_is_refused() -> None:
    """Secrets never enter a configuration that is stored with every output."""
    with pytest.raises(ConfigError, match="credentials"):
        build_config(ArchiveConfig, {"uri": "s3://id:secret@bucket/x"}, "archive")


def test_pickled_archive_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in another working directory reads the same archive, given by a relative path."""
    write(tmp_path / "films", "a.mp4")
    monkeypatch.chdir(tmp_path)
    frozen = pickle.dumps(Archive(ArchiveConfig(uri="films")))
    monkeypatch.chdir("/")
    assert list(listing(pickle.loads(frozen))) == ["a.mp4"]


# ---------------------------------------------------------------------------------------------------- pre-flight


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    """One line with the field, the value and the way out."""
    archive_of(tmp_path).check()
    file = write(tmp_path, "file.mp4")
    for path, word in ((tmp_path / "missing", "does not exist"), (file, "this is a file")):
        with pytest.raises(ConfigError, match=word) as caught:
            archive_of(path).check()
        assert str(caught.value).startswith(f"archive.uri = '{path}': ")
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"archive\.uri"):
            listing(archive_of(path))


def test_unreadable_root_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a refusal nor a dead mount may look like an empty archive."""
    for code, word in ((errno.EACCES, "may not be read"), (errno.ESTALE, "mount")):

        def refuse(_: str, code: int = code) -> None:  # not by file mode: root reads everything
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("os.scandir", refuse)
        with pytest.raises(ConfigError, match=word):
            archive_of(tmp_path).check()
        with pytest.raises(ConfigError, match=r"archive\.uri"):
            listing(archive_of(tmp_path))


# ---------------------------------------------------------------------------------------------------- listing


def test_kinds_and_columns(tmp_path: Path) -> None:
    """Include, exclude and sidecars decide the kind; every file is listed once, with its size."""
    write(tmp_path, "a/film.MP4", b"12345")
    write(tmp_path, "a/film.en.srt")
    write(tmp_path, "a/notes.txt")
    write(tmp_path, "trash/old.mp4")
    write(tmp_path, "trash/old.srt")
    write(tmp_path, ".hidden.mkv")
    rows = listing(archive_of(tmp_path, exclude=("trash/",)))
    assert {key: row["kind"] for key, row in rows.items()} == {
        "a/film.MP4": "media",
        "a/film.en.srt": "sidecar",
        "a/notes.txt": "ignored",
        "trash/old.mp4": "ignored",
        "trash/old.srt": "ignored",
        ".hidden.mkv": "media",
    }
    mtime_us = (tmp_path / "a/film.MP4").stat().st_mtime_ns // 1000
    assert rows["a/film.MP4"]["size_bytes"] == 5
    assert rows["a/film.MP4"]["version"] == f"5@{mtime_us}"
    no_sidecars = listing(archive_of(tmp_path, sidecars=False, include=("a/*",)))
    assert no_sidecars["a/film.en.srt"]["kind"] == "ignored", "a subtitle file is never media"
    assert no_sidecars["a/notes.txt"]["kind"] == "media", "the user asked for everything in a/"
    assert no_sidecars[".hidden.mkv"]["kind"] == "ignored"


def test_large_listing_is_paged_in_bounded_memory(tmp_path: Path) -> None:
    """Memory follows the batch, not the archive."""
    for folder in range(30):
        (tmp_path / f"{folder:02}").mkdir()
        for number in range(100):
            (tmp_path / f"{folder:02}" / f"{'long name ' * 15}{number}.mp4").touch()

    def peak(rows_per_batch: int) -> int:
        tracemalloc.start()
        try:
            keys = 0
            for batch in archive_of(tmp_path).list_batches(rows_per_batch):
                assert 0 < len(batch) <= rows_per_batch
                keys += len(batch)
            assert keys == 3000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # imports and caches
    assert peak(100) < peak(3000) / 3
    assert len(listing(archive_of(tmp_path), 7)) == 3000


def test_links_and_special_files(tmp_path: Path) -> None:
    """Circles of folders end, links that lead nowhere are not media night after night, a pipe is never opened."""
    write(tmp_path, "real/a.mp4", b"abc")
    write(tmp_path.parent, f"{tmp_path.name}-outside/secret.mp4")
    (tmp_path / "real/again").symlink_to(tmp_path)
    (tmp_path / "link.mp4").symlink_to("real/a.mp4")
    (tmp_path / "dead.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    (tmp_path / "out.mp4").symlink_to(tmp_path.parent / f"{tmp_path.name}-outside/secret.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    archive = archive_of(tmp_path)
    assert {key: row["kind"] for key, row in listing(archive).items()} == {
        "real/a.mp4": "media",
        "real/again": "ignored",
        "link.mp4": "media",
        "dead.mp4": "ignored",
        "circle.mp4": "ignored",
        "out.mp4": "media",
        "pipe.mp4": "ignored",
    }
    assert archive.unreadable == []
    assert read_listed(archive, "link.mp4") == b"abc"
    for key, code in (
        ("dead.mp4", ErrorCode.OBJECT_MISSING),
        ("circle.mp4", ErrorCode.STORAGE_ERROR),
        ("out.mp4", ErrorCode.ACCESS_DENIED),
        ("pipe.mp4", ErrorCode.NOT_MEDIA),
        ("real", ErrorCode.NOT_MEDIA),
    ):
        with pytest.raises(MediaError) as caught:
            archive.read_bytes(key, 100)
        assert caught.value.code == code
        assert str(tmp_path) not in caught.value.message


def test_unreadable_folder_is_counted_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in a folder that cannot be read must not look deleted: the folder is named."""
    for key in ("a/1.mp4", "b/2.mp4", "b/c/3.mp4"):
        write(tmp_path, key)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    archive = archive_of(tmp_path)
    assert list(listing(archive)) == ["a/1.mp4"]
    assert archive.unreadable == ["b/"]
    monkeypatch.undo()
    assert len(listing(archive)) == 3
    assert archive.unreadable == [], "a second listing starts anew"


def test_unreadable_folders_can_go_into_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder name that is no UTF-8 is named as the keys below it are, or no table could hold it."""
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path, f"{name}/1.mp4")
    (key,) = listing(archive_of(tmp_path))
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    archive = archive_of(tmp_path)
    assert listing(archive) == {}
    (prefix,) = archive.unreadable
    assert key.startswith(pa.array([prefix], pa.string())[0].as_py())


def test_has_tells_gone_from_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the disk says is not there is gone; a refusal, or an archive that is away, is no answer."""
    write(tmp_path, "archive/a/1.mp4")
    (tmp_path / "archive/dead.mp4").symlink_to("nowhere.mp4")
    archive = archive_of(tmp_path / "archive")
    assert archive.has("a/1.mp4")
    assert archive.has("dead.mp4")
    assert not archive.has("a/2.mp4")
    assert not archive.has("b/1.mp4")
    assert not archive.has("a/1.mp4/x")
    for key, code in (("../x", ErrorCode.BAD_KEY), ("a\x07", ErrorCode.BAD_KEY), ("a" * 300, ErrorCode.STORAGE_ERROR)):
        with pytest.raises(MediaError) as caught:
            archive.has(key)
        assert caught.value.code == code

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(MediaError, match="access denied: a/1"):
        archive.has("a/1.mp4")
    monkeypatch.undo()
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    with pytest.raises(MediaError) as caught:
        archive.has("a/1.mp4")
    assert caught.value.code == ErrorCode.STORAGE_ERROR


def test_abandoned_listing_closes_its_folders(tmp_path: Path) -> None:
    """A consumer that stops early leaks no directory handles."""
    for number in range(20):
        write(tmp_path, f"a/b/c/{number}.mp4")
    before = len(list(Path("/proc/self/fd").iterdir()))
    batches = archive_of(tmp_path).list_batches(2)
    next(batches)
    batches.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_odd_names_are_listed_and_opened(tmp_path: Path) -> None:
    """Spaces, non-ASCII, URL characters and newlines are data; only unprintable keys are refused."""
    plain = ["a b.mp4", "日本/ü.mp4", "q?x=1#f.mp4", "100%20.mp4", "..mp4", "...mp4", "a\\b.mp4", "[x]*.mp4", "::.mp4"]
    for key in plain:
        write(tmp_path, key, key.encode())
    (tmp_path / "new\nline.mp4").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9.mp4")).touch()
    archive = archive_of(tmp_path)
    rows = listing(archive)
    assert {key for key, row in rows.items() if row["plain"]} == set(plain)
    assert {key for key, row in rows.items() if not row["plain"]} == {r"new\nline.mp4", r"latin-\xe9.mp4"}
    for key in plain:
        assert read_listed(archive, key) == key.encode()
        assert archive.uri_of(key) == f"{tmp_path}/{key}"
    for key in ("new\nline.mp4", "latin-\udce9.mp4"):
        with pytest.raises(MediaError) as caught:
            archive.read_bytes(key, 1)
        assert caught.value.code == ErrorCode.BAD_KEY
        assert caught.value.message.isprintable()
        assert archive.uri_of(key).isprintable()


# ---------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, Path]:
    """An archive with a file beside it that nobody may reach."""
    base = tmp_path_factory.mktemp("fence")
    write(base, "inside/a/b.mp4", b"inside")
    write(base, "outside.mp4", b"outside")
    return archive_of(base / "inside"), base


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.mp4", "outside.mp4", "inside", "~"]), min_size=1, max_size=6))
def test_no_key_leads_out_of_the_archive(fenced: tuple[Archive, Path], parts: list[str]) -> None:
    """A key is a name below the root, whatever dots and slashes it holds."""
    archive, _ = fenced
    key = "/".join(parts)
    if key == "a/b.mp4":
        assert archive.read_bytes(key, 100) == b"inside"
        return
    with pytest.raises(MediaError):
        archive.read_bytes(key, 100)


def test_absolute_key_is_refused(fenced: tuple[Archive, Path]) -> None:
    """Joining an absolute path would replace the root."""
    archive, base = fenced
    with pytest.raises(MediaError) as caught:
        archive.read_bytes(str(base / "outside.mp4"), 100)
    assert caught.value.code == ErrorCode.BAD_KEY


def test_changed_and_deleted_files_are_noticed(tmp_path: Path) -> None:
    """Only the object that was listed is read."""
    path = write(tmp_path, "a.mp4", b"old")
    archive = archive_of(tmp_path)
    version = listing(archive)["a.mp4"]["version"]
    path.write_bytes(b"newer")

    def opened() -> None:
        with archive.open("a.mp4", 3, str(version), stage_limit_bytes=0, whole=False):
            pytest.fail("the block must not run")

    with pytest.raises(MediaError) as caught:
        opened()
    assert caught.value.code == ErrorCode.OBJECT_CHANGED
    path.unlink()
    with pytest.raises(MediaError) as caught:
        opened()
    assert caught.value.code == ErrorCode.OBJECT_MISSING


def test_read_bytes_has_a_limit(tmp_path: Path) -> None:
    """A sidecar of any size cannot fill the memory."""
    write(tmp_path, "a.srt", b"12345")
    archive = archive_of(tmp_path)
    assert archive.read_bytes("a.srt", 5) == b"12345"
    with pytest.raises(MediaError) as caught:
        archive.read_bytes("a.srt", 4)
    assert caught.value.code == ErrorCode.OUTPUT_LIMIT


def test_read_bytes_takes_only_the_version_that_was_listed(tmp_path: Path) -> None:
    """Words of a replaced sidecar must not be published under the fingerprint of the old one."""
    path = write(tmp_path, "a.srt", b"12345")
    archive = archive_of(tmp_path)
    version = object_version(5, None, path.stat().st_mtime_ns // 1000)
    assert archive.read_bytes("a.srt", 5, version) == b"12345"
    path.write_bytes(b"other words")
    with pytest.raises(MediaError) as caught:
        archive.read_bytes("a.srt", 100, version)
    assert caught.value.code == ErrorCode.OBJECT_CHANGED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/secret/path"), ErrorCode.OBJECT_MISSING),
        (PermissionError(errno.EACCES, "denied", "/secret/path"), ErrorCode.ACCESS_DENIED),
        (TimeoutError("slow /secret/path"), ErrorCode.STORAGE_TIMEOUT),
        (OSError(errno.EIO, "Input/output error", "/secret/path"), ErrorCode.STORAGE_ERROR),
        (OSError(errno.ESTALE, "Stale", "/secret/path"), ErrorCode.STORAGE_ERROR),
        (OSError("https://x?X-Amz-Signature=secret"), ErrorCode.STORAGE_ERROR),
    ],
)
def test_local_errors_become_codes_without_paths(error: OSError, code: ErrorCode) -> None:
    """Messages go into public tables: no machine path, no signed address."""
    result = storage_error(error, "a/b.mp4")
    assert result.code == code
    assert "secret" not in result.message
    assert "a/b.mp4" in result.message
    assert CODES[result.code].transient


# ---------------------------------------------------------------------------------------------------- sidecars


def test_sidecar_stems_in_order() -> None:
    """Most specific first; the folder stays, names with leading dots keep them."""
    assert sidecar_stems("a/film.en.forced.srt") == ["a/film.en.forced", "a/film.en", "a/film"]
    assert sidecar_stems("film.srt") == ["film"]
    assert sidecar_stems("a.b/film.srt") == ["a.b/film"]
    assert sidecar_stems("a/.film.srt") == ["a/.film"]
    assert sidecar_stems("v1.2.3.4.5.6.srt") == ["v1.2.3.4.5.6", "v1.2.3.4.5", "v1.2.3.4", "v1.2.3"]


@given(KEYS.map(lambda key: key + ".mp4"), st.sampled_from([".srt", ".en.srt", ".pt-BR.vtt", ".en.forced.ass"]))
def test_a_sidecar_named_after_its_video_finds_it(video: str, suffix: str) -> None:
    """The join rule holds for every video name, dots and all."""
    assert media_stem(video) in sidecar_stems(media_stem(video) + suffix)


@pytest.mark.parametrize(
    ("sidecar", "language"),
    [
        ("film.srt", None),
        ("film.en.srt", "en"),
        ("film.EN.srt", "en"),
        ("film.ger.forced.srt", "de"),
        ("film.forced.deu.srt", "de"),
        ("film.pt_br.srt", "pt-BR"),
        ("film.zh-Hans.srt", "zh-Hans"),
        ("film.zh-hant-tw.srt", "zh-Hant-TW"),
        ("film.es-419.srt", "es-419"),
        ("film.cut.srt", None),
        ("film.sdh.srt", None),
        ("film.mp4.srt", None),
        ("film.2020.srt", None),
    ],
)
def test_sidecar_language(sidecar: str, language: str | None) -> None:
    """Language codes are known codes; other short words in a name are not languages."""
    assert sidecar_language("a/film.mp4", f"a/{sidecar}") == language
    assert sidecar_language("a/film.en.mp4", "a/film.en.srt") is None, "part of the video's own name"


# ---------------------------------------------------------------------------------------------------- the child


def test_places_are_those_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoding child may read the archive, or the folder of staged copies: never the whole temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert archive_of(tmp_path / "films").places() == (str(tmp_path / "films"),)
    (place,) = Archive(ArchiveConfig(uri="s3://films/videos")).places()
    assert Path(place).parent == tmp_path
    assert Path(place).stat().st_mode & 0o777 == 0o700
    assert Archive(ArchiveConfig(uri="s3://films/videos")).places() == (place,)


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_staging_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    """Its name can be guessed: a link, a folder that others may write, or a file in its place is one line."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"vca-stage-{os.getuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif trap == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    with pytest.raises(ConfigError, match="is not a folder that only this user can write; remove it or set TMPDIR"):
        Archive(ArchiveConfig(uri="s3://films/videos")).places()


def test_only_what_cannot_be_shown_is_escaped() -> None:
    """Characters of all kinds, and what becomes of undecodable bytes in file names: shown as it is, or as an escape."""
    for code in (*range(0x3000), *range(0xDC80, 0xDD00), *range(0xE000, 0x110000, 997)):
        printable = chr(code).isprintable() and not 0xDC80 <= code < 0xDD00
        assert (display_key(f"a/{chr(code)}.mp4") == f"a/{chr(code)}.mp4") == printable, hex(code)
    assert display_key("a\nb/\udcffé\u202e.mp4") == "a\\nb/\\xffé\\u202e.mp4"
