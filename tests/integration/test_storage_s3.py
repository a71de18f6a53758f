"""Archive and output on S3 over real HTTP: moto where it behaves, a faulty server where it must not."""

import gc
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.s3 import ENVIRONMENT, Answer, S3Server, environment, error_answer, faulty_server, s3_server
from vca.core.errors import ConfigError, ErrorCode, MediaError
from vca.core.storage import StorageConfig
from vca.media import storage as storage_module
from vca.media.output import Output, OutputConfig
from vca.media.source import LocalSource, RangeSource
from vca.media.storage import LISTING, Archive, ArchiveConfig

pytestmark = pytest.mark.integration

NO_LIMIT = 1 << 40


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server("films", "many", "results", "empty") as running:
        yield running


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Staged copies go here, and every test ends with it empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert left_behind(folder) == [], "a staged copy was left behind"


def left_behind(folder: Path) -> list[Path]:
    """All but the one empty folder of this user for staged copies."""
    return [path for path in folder.rglob("*") if path != folder / f"vca-stage-{os.getuid()}"]


def archive_at(server: S3Server, uri: str, **settings: object) -> Archive:
    return Archive(ArchiveConfig(uri=uri, storage=server.storage(), **settings))


def listing(archive: Archive, rows_per_batch: int = 10_000) -> dict[str, dict[str, object]]:
    rows = pa.Table.from_batches(archive.list_batches(rows_per_batch), LISTING).to_pylist()
    by_key = {row["key"]: row for row in rows}
    assert len(by_key) == len(rows), "a key was listed twice"
    return by_key


def read(archive: Archive, row: Mapping[str, object], whole: bool, stage_limit_bytes: int = NO_LIMIT) -> bytes:
    opened = archive.open(
        row["key"], row["size_bytes"], row["version"], stage_limit_bytes=stage_limit_bytes, whole=whole
    )
    with opened as source:
        if isinstance(source, LocalSource):
            return Path(source.path).read_bytes()
        return source.read_range(0, source.size_bytes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------------------------------------------- listing


def test_listing_pages_over_a_thousand(server: S3Server) -> None:
    """2,100 objects are three pages of the server; all arrive once, in batches of the asked size."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: server.put("many", f"in/{n:05}.mp4", b"x"), range(2100)))
    server.put("many", "in-other/a.mp4", b"x")
    archive = archive_at(server, "s3://many/in")
    sizes = [len(batch) for batch in archive.list_batches(900)]
    assert sizes == [900, 900, 300]
    assert sorted(listing(archive)) == [f"{n:05}.mp4" for n in range(2100)], "the prefix is a folder, not a start"


def test_listing_columns(server: S3Server) -> None:
    """The version holds the etag; folder markers are no media; the archive's own marker is nothing."""
    server.put("films", "cols/", b"")
    server.put("films", "cols/sub.mp4/", b"")
    server.put("films", "cols/a.mp4", b"abc")
    server.put("films", "cols/a.en.srt", b"1")
    rows = listing(archive_at(server, "s3://films/cols"))
    assert {key: row["kind"] for key, row in rows.items()} == {
        "sub.mp4/": "ignored",
        "a.mp4": "media",
        "a.en.srt": "sidecar",
    }
    assert rows["a.mp4"]["version"] == "3/900150983cd24fb0d6963f7d28e17f72"  # MD5 of abc
    assert rows["a.mp4"]["size_bytes"] == 3


ODD_KEYS = [
    "a b.mp4", "日本/ü.mp4", "q?x=1.mp4", "q?versionId=1.mp4", "h#1.mp4", "100%20.mp4", "p%2F.mp4", "../up.mp4",
    "a/../b.mp4", "a/./c.mp4", "x//y.mp4", "/lead.mp4", ".hidden.mp4", "+plus&and=.mp4", "a::b.mp4", "~(1)'!*.mp4",
]  # fmt: skip


def test_odd_keys_survive_http(server: S3Server) -> None:
    """Characters with a meaning in addresses and paths stay data; `..` does not climb out of the prefix."""
    for key in ODD_KEYS:
        server.put("films", f"odd/{key}", key.encode())
    server.put("films", "up.mp4", b"outside")
    archive = archive_at(server, "s3://films/odd")
    rows = listing(archive)
    assert set(rows) == set(ODD_KEYS)
    for key, row in rows.items():
        assert row["plain"]
        assert read(archive, row, whole=True) == key.encode()
        assert read(archive, row, whole=False) == key.encode()
        assert archive.read_bytes(key, 100) == key.encode()
        assert archive.uri_of(key) == f"s3://films/odd/{key}"


# ---------------------------------------------------------------------------------------------------- reading


def test_staged_copy_is_whole_and_removed(
    server: S3Server, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy made of several ranges equals the object, keeps its extension, and goes also if the block raises."""
    monkeypatch.setattr(storage_module, "FETCH_BYTES", 1000)
    data = os.urandom(4567)
    server.put("films", "stage/a.MP4", data)
    archive = archive_at(server, "s3://films/stage")
    row = listing(archive)["a.MP4"]

    def decode() -> None:
        with archive.open("a.MP4", 4567, str(row["version"]), stage_limit_bytes=4567, whole=True) as source:
            assert isinstance(source, LocalSource)
            assert Path(source.path).is_relative_to(temporary_folder)
            assert Path(source.path).suffix == ".mp4"
            assert Path(source.path).read_bytes() == data
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        decode()
    assert left_behind(temporary_folder) == []


@pytest.mark.parametrize("why", ["large", "not whole", "disk full"])
def test_ranges_where_a_copy_is_not_wanted(server: S3Server, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit, where parts are enough, or without room: ranges, exact at both ends."""
    data = os.urandom(1000)
    server.put("films", "range/a.mp4", data)
    archive = archive_at(server, "s3://films/range")
    row = listing(archive)["a.mp4"]
    if why == "disk full":
        monkeypatch.setattr(storage_module, "STAGE_RESERVE_BYTES", 1 << 60)
    limit = 999 if why == "large" else NO_LIMIT
    with archive.open("a.mp4", 1000, str(row["version"]), stage_limit_bytes=limit, whole=why != "not whole") as source:
        assert isinstance(source, RangeSource)
        assert (source.size_bytes, source.name) == (1000, "a.mp4")
        assert source.read_range(0, 10) == data[:10]
        assert source.read_range(990, 100) == data[990:]
        assert source.read_range(1000, 1) == b""
        assert source.read_range(5000, 1) == b""
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda start: source.read_range(start, 100), range(0, 1000, 100)))
        assert b"".join(parts) == data


@pytest.mark.parametrize("whole", [True, False])
def test_empty_object(server: S3Server, whole: bool) -> None:
    """No range of an empty object can be asked for; it is still opened, and found out to be empty by the decoder."""
    server.put("films", "nothing/a.mp4", b"")
    archive = archive_at(server, "s3://films/nothing")
    row = listing(archive)["a.mp4"]
    opened = archive.open("a.mp4", 0, str(row["version"]), stage_limit_bytes=10, whole=whole)
    with opened as source:
        if isinstance(source, LocalSource):
            assert Path(source.path).stat().st_size == 0
        else:
            assert source.read_range(0, 10) == b""
    assert archive.read_bytes("a.mp4", 10) == b""


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("data", [b"old", b""])
def test_replaced_and_deleted_objects(server: S3Server, whole: bool, data: bytes) -> None:
    """Only the object that was listed is read, also if the new one has the same size."""
    server.put("films", "change/a.mp4", data)
    archive = archive_at(server, "s3://films/change")
    row = listing(archive)["a.mp4"]
    server.put("films", "change/a.mp4", b"new")
    with pytest.raises(MediaError) as caught:
        read(archive, row, whole)
    assert caught.value.code == ErrorCode.OBJECT_CHANGED
    server.client.delete_object(Bucket="films", Key="change/a.mp4")
    with pytest.raises(MediaError) as caught:
        read(archive, row, whole)
    assert caught.value.code == ErrorCode.OBJECT_MISSING
    with pytest.raises(MediaError) as caught:
        archive.read_bytes("a.mp4", 10)
    assert caught.value.code == ErrorCode.OBJECT_MISSING


def test_object_replaced_while_it_is_read(server: S3Server) -> None:
    """A segment never mixes two objects: every range names the etag."""
    server.put("films", "swap/a.mp4", b"a" * 100)
    archive = archive_at(server, "s3://films/swap")
    row = listing(archive)["a.mp4"]
    with archive.open("a.mp4", 100, str(row["version"]), stage_limit_bytes=0, whole=False) as source:
        assert isinstance(source, RangeSource)
        assert source.read_range(0, 10) == b"a" * 10
        server.put("films", "swap/a.mp4", b"b" * 100)
        with pytest.raises(MediaError) as caught:
            source.read_range(10, 10)
        assert caught.value.code == ErrorCode.OBJECT_CHANGED


def test_read_bytes_stops_at_its_limit(server: S3Server) -> None:
    """A sidecar of any size cannot fill the memory."""
    server.put("films", "side/a.srt", b"x" * 100_000)
    archive = archive_at(server, "s3://films/side")
    assert len(archive.read_bytes("a.srt", 100_000)) == 100_000
    with pytest.raises(MediaError) as caught:
        archive.read_bytes("a.srt", 99_999)
    assert caught.value.code == ErrorCode.OUTPUT_LIMIT


def test_read_bytes_takes_only_the_version_that_was_listed(server: S3Server) -> None:
    """Words of a replaced sidecar must not be published under the fingerprint of the old one."""
    server.put("films", "replaced/a.mp4", b"old")
    archive = archive_at(server, "s3://films/replaced")
    version = str(listing(archive)["a.mp4"]["version"])
    assert archive.read_bytes("a.mp4", 10, version) == b"old"
    server.put("films", "replaced/a.mp4", b"new")
    with pytest.raises(MediaError) as caught:
        archive.read_bytes("a.mp4", 10, version)
    assert caught.value.code == ErrorCode.OBJECT_CHANGED


def test_archive_goes_to_another_process(server: S3Server) -> None:
    """A used archive can be sent to a worker, which makes its own connection."""
    server.put("films", "pickle/a.mp4", b"abc")
    archive = archive_at(server, "s3://films/pickle")
    listing(archive)
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read_bytes('a.mp4', 10))"
    worker = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(archive), capture_output=True, timeout=300, check=False
    )
    assert worker.stdout.strip() == b"b'abc'", worker.stderr


def test_archive_survives_a_fork(server: S3Server) -> None:
    """A client's thread does not exist in a forked child: the child makes its own."""
    server.put("films", "fork/a.mp4", b"abc")
    archive = archive_at(server, "s3://films/fork")
    listing(archive)

    def child() -> None:
        os._exit(0 if archive.read_bytes("a.mp4", 10) == b"abc" else 1)

    process = get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(30)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0


def test_pickle_and_repr_hold_no_credentials(server: S3Server) -> None:
    """What goes through the cluster's object store and logs is settings only."""
    server.put("films", "secret/a.mp4", b"abc")
    archive = archive_at(server, "s3://films/secret")
    listing(archive)
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(archive)
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in repr(archive.config)


def test_unfinished_files_are_deleted_in_their_folder_only(server: S3Server) -> None:
    """What a killed pre-flight left; `output` may lie beside other things whose names begin alike."""
    for key in ("out/.vca-tmp-1", "out/manifests/.vca-tmp-2", "out/features/x/.vca-tmp-3", "out/a", "other/.vca-tmp-4"):
        server.put("results", f"unfinished/{key}", b"half")
    output = Output(OutputConfig(uri="s3://results/unfinished/out", storage=server.storage()))
    output.delete_unfinished("")
    output.delete_unfinished("manifests")
    left = [key for key in server.keys("results") if key.startswith("unfinished/")]
    assert left == ["unfinished/other/.vca-tmp-4", "unfinished/out/a", "unfinished/out/features/x/.vca-tmp-3"]


# ---------------------------------------------------------------------------------------------------- pre-flight


def check_fails(archive: Archive, *words: str) -> str:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        archive.check()
    assert time.monotonic() - started < 10.0
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_check_names_missing_places(server: S3Server) -> None:
    """A wrong bucket and a wrong prefix are told apart; an empty bucket is an empty archive."""
    server.put("films", "there/a.mp4", b"x")
    archive_at(server, "s3://films/there").check()
    archive_at(server, "s3://empty").check()
    check_fails(archive_at(server, "s3://no-such-bucket/x"), "archive.uri = 's3://no-such-bucket/x'", "bucket does not")
    check_fails(archive_at(server, "s3://films/the"), "archive.uri = 's3://films/the'", "no object under this prefix")
    check_fails(archive_at(server, "s3://Not_A_Bucket!"), "archive.uri", "not a valid bucket name")
    with pytest.raises(ConfigError, match="bucket does not exist"):
        listing(archive_at(server, "s3://no-such-bucket/x"))


def test_check_unreachable_endpoint(server: S3Server) -> None:
    """A closed port is one clear line within seconds, with the address that was tried."""
    address = f"http://127.0.0.1:{free_port()}"
    archive = Archive(ArchiveConfig(uri="s3://films", storage=StorageConfig(endpoint_url=address)))
    check_fails(archive, "archive.uri = 's3://films'", "cannot connect", address, "archive.storage.endpoint_url")


def test_check_without_credentials(server: S3Server, tmp_path: Path) -> None:
    """The line says where credentials may come from; a missing profile is named as such."""
    removed = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    nowhere = {"AWS_CONFIG_FILE": str(tmp_path / "no"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no")}
    with environment(nowhere, removed):
        config = ArchiveConfig(uri="s3://films", storage=server.storage(connect_timeout_s=3.0))  # a client of its own
        check_fails(Archive(config), "no usable credentials", "AWS_ACCESS_KEY_ID", "archive.storage.anonymous=true")
        config = ArchiveConfig(uri="s3://films", storage=server.storage(profile="nobody"))
        check_fails(Archive(config), "archive.storage.profile = 'nobody'", "no such profile")


def test_a_worker_asks_for_its_own_node_only(server: S3Server, tmp_path: Path) -> None:
    """A bucket that is slow when hundreds of workers start must not end the night; a node without credentials must."""
    with faulty_server(lambda method, path, headers: error_answer(503, "SlowDown")) as address:
        Archive(ArchiveConfig(uri="s3://films", storage=StorageConfig(endpoint_url=address))).check_node()
    nowhere = {"AWS_CONFIG_FILE": str(tmp_path / "no"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no")}
    with environment(nowhere, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")):
        archive = Archive(ArchiveConfig(uri="s3://films", storage=server.storage(connect_timeout_s=4.0)))
        with pytest.raises(ConfigError, match="no usable credentials"):
            archive.check_node()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error_answer(403, "AccessDenied"), ("access denied (AccessDenied)",)),
        (error_answer(403, "InvalidAccessKeyId", "key AKIA-secret"), ("access denied (InvalidAccessKeyId)",)),
        (error_answer(301, "PermanentRedirect"), ("another region", "archive.storage.region")),
        (error_answer(501, "NotImplemented"), ("NotImplemented", "archive.storage.endpoint_url")),
        (Answer(200, b"<html>welcome</html"), ("archive.storage.endpoint_url",)),
        (Answer(404, b"<html>nothing here</html>"), ("bucket does not exist",)),
    ],
    ids=["denied", "unknown key", "region", "other error", "not S3", "not S3 404"],
)
def test_check_answers_of_a_faulty_server(answer: Answer, words: tuple[str, ...]) -> None:
    """Whatever answers there, the user gets one line, without what the server said."""

    def reply(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        return Answer(403) if method == "HEAD" else answer  # the region is asked for with HEAD, again and again on 301

    with faulty_server(reply) as address:
        config = ArchiveConfig(uri="s3://films/x", storage=StorageConfig(endpoint_url=address))
        assert "secret" not in check_fails(Archive(config), "archive.uri = 's3://films/x'", *words)


def test_check_gives_up_on_a_silent_server() -> None:
    """A server that takes the connection and says nothing does not hold the night up."""
    with faulty_server(lambda *_: Answer(200, wait_s=30.0)) as address:
        storage = StorageConfig(endpoint_url=address, read_timeout_s=0.5)
        check_fails(Archive(ArchiveConfig(uri="s3://films", storage=storage)), "did not answer in time")


# ---------------------------------------------------------------------------------------------------- faults

ETAG = "900150983cd24fb0d6963f7d28e17f72"
BODY = bytes(range(256)) * 8


def ranged(headers: Mapping[str, str], **changes: object) -> Answer:
    """A correct answer to a range request for BODY."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
    assert found, "every read asks for a range"
    start, end = int(found[1]), min(int(found[2]) + 1, len(BODY))
    extra = {"ETag": f'"{ETAG}"', "Content-Range": f"bytes {start}-{end - 1}/{len(BODY)}"}
    return Answer(206, BODY[start:end], extra, **changes)


def open_faulty(address: str, whole: bool, **storage: object) -> bytes:
    settings = StorageConfig(endpoint_url=address, **{"max_attempts": 2, "read_timeout_s": 5.0, **storage})
    archive = Archive(ArchiveConfig(uri="s3://films", storage=settings))
    row = {"key": "a.mp4", "size_bytes": len(BODY), "version": f"{len(BODY)}/{ETAG}"}
    return read(archive, row, whole)


def test_broken_body_is_fetched_again() -> None:
    """A connection that breaks in the middle of a body costs a repetition, not the video."""
    calls: list[str] = []

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        calls.append(path)
        assert headers["If-Match"] == f'"{ETAG}"'
        return ranged(headers, cut_at=100 if len(calls) == 1 else None)

    with faulty_server(answer) as address:
        assert open_faulty(address, whole=True) == BODY
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda headers: ranged(headers, cut_at=100), ErrorCode.STORAGE_ERROR),
        (lambda headers: error_answer(403, "AccessDenied"), ErrorCode.ACCESS_DENIED),
        (lambda headers: error_answer(403, "InvalidObjectState"), ErrorCode.ACCESS_DENIED),
        (lambda headers: error_answer(404, "NoSuchKey"), ErrorCode.OBJECT_MISSING),
        (lambda headers: error_answer(412, "PreconditionFailed"), ErrorCode.OBJECT_CHANGED),
        (
            lambda headers: error_answer(500, "InternalError", "http://x?X-Amz-Signature=secret"),
            ErrorCode.STORAGE_ERROR,
        ),
        (lambda headers: error_answer(503, "SlowDown"), ErrorCode.STORAGE_ERROR),
        (lambda headers: error_answer(400, "Bad secret\nCode"), ErrorCode.STORAGE_ERROR),
        (lambda headers: Answer(206, BODY[:7]), ErrorCode.STORAGE_ERROR),
        (lambda headers: Answer(200, b"", wait_s=30.0), ErrorCode.STORAGE_TIMEOUT),
    ],
    ids=["broken", "denied", "glacier", "missing", "changed", "500", "503", "odd code", "short", "silent"],
)
def test_faults_become_codes(answer: object, code: ErrorCode) -> None:
    """Every way a storage can fail has its code, and the message holds nothing of what the server said."""
    assert callable(answer)
    with faulty_server(lambda method, path, headers: answer(headers)) as address:
        with pytest.raises(MediaError) as caught:
            open_faulty(address, whole=True, max_attempts=1, read_timeout_s=0.5)
        assert caught.value.code == code
        assert "secret" not in caught.value.message
        assert address not in caught.value.message
        assert "a.mp4" in caught.value.message


def test_server_without_ranges_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers every range with the whole object must not give a wrong copy."""
    monkeypatch.setattr(storage_module, "FETCH_BYTES", 1000)
    with faulty_server(lambda *_: Answer(200, BODY)) as address, pytest.raises(MediaError) as caught:
        open_faulty(address, whole=True)
    assert caught.value.code == ErrorCode.STORAGE_ERROR


def test_listing_that_breaks_off_is_no_short_listing() -> None:
    """What a broken listing does not name would look deleted: the run must stop."""
    page = (
        "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        "<Contents><Key>new%0Aline.mp4</Key><Size>3</Size></Contents></ListBucketResult>"
    )

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        query = parse_qs(urlsplit(path).query)
        return error_answer(403, "AccessDenied") if "continuation-token" in query else Answer(200, page.encode())

    for reply, word in ((answer, "access denied"), (lambda *_: Answer(200, page.encode()), "archive.uri")):
        with faulty_server(reply) as address:
            config = ArchiveConfig(uri="s3://films", storage=StorageConfig(endpoint_url=address))
            batches = Archive(config).list_batches(1)
            assert next(batches).to_pylist() == [
                {"key": r"new\nline.mp4", "size_bytes": 3, "version": "3@None", "kind": "media", "plain": False}
            ]
            with pytest.raises(ConfigError, match=word):
                list(batches)


# ---------------------------------------------------------------------------------------------------- output


@pytest.fixture
def output(server: S3Server, request: pytest.FixtureRequest) -> Output:
    prefix = re.sub(r"\W", "-", request.node.name)
    return Output(OutputConfig(uri=f"s3://results/{prefix}/", storage=server.storage()))


def unfinished_uploads(server: S3Server) -> list[object]:
    uploads: list[object] = server.client.list_multipart_uploads(Bucket="results").get("Uploads", [])
    return uploads


def test_output_check_leaves_nothing(server: S3Server, output: Output) -> None:
    """The probe object is gone again; what cannot be written is one line."""
    before = server.keys("results")
    output.check_writable()
    assert server.keys("results") == before
    with pytest.raises(ConfigError, match=r"output\.uri = 's3://no-such-bucket/x': the bucket does not exist"):
        Output(OutputConfig(uri="s3://no-such-bucket/x", storage=server.storage())).check_writable()
    with faulty_server(lambda *_: error_answer(403, "AccessDenied")) as address:
        config = OutputConfig(uri="s3://results", storage=StorageConfig(endpoint_url=address))
        with pytest.raises(ConfigError, match=r"output\.uri = 's3://results': access denied \(AccessDenied\)"):
            Output(config).check_writable()
    storage = StorageConfig(endpoint_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match=r"output\.uri = .*cannot connect"):
        Output(OutputConfig(uri="s3://results", storage=storage)).check_writable()


def test_output_round_trip(server: S3Server, output: Output) -> None:
    """The same meaning as on a local disk: replace, list, exists, move, delete."""
    output.write_bytes("t/b.json", b"old")
    output.write_bytes("t/b.json", b"new")
    output.write_bytes("t-other/c", b"")
    output.write_bytes("t/a/x", b"")
    assert output.read_bytes("t/b.json") == b"new"
    assert output.read_bytes("t/a/x") == b""
    assert output.list("t") == ["t/a/x", "t/b.json"]
    assert output.list() == ["t-other/c", "t/a/x", "t/b.json"]
    assert output.exists("t/b.json")
    assert output.exists("t/a")
    assert output.exists("t"), "although t-other comes first in key order"
    assert not output.exists("t/b")
    data = os.urandom(100_000)
    output.write_bytes("staging/x", data)
    output.move("staging/x", "t/b.json")
    assert output.read_bytes("t/b.json") == data
    assert not output.exists("staging")
    for missing in (lambda: output.read_bytes("no"), lambda: output.move("no", "t/b.json")):
        with pytest.raises(FileNotFoundError, match="output: no such file: no"):
            missing()
    output.delete("t/b.json")
    output.delete("t/b.json")
    output.delete_tree("t")
    output.delete_tree("t")
    assert output.list() == ["t-other/c"]
    assert output.uri_of("a/b") == "s3://results/test_output_round_trip/a/b"


def test_output_deletes_more_than_a_page(server: S3Server, output: Output) -> None:
    """One request deletes at most 1,000 objects; a tree may have more."""
    start = output.path("big").split("/", 1)[1]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: server.put("results", f"{start}/{n}", b""), range(1001)))
    assert len(output.list("big")) == 1001
    output.delete_tree("big")
    assert output.list() == []


@pytest.mark.parametrize("size_bytes", [0, 10, 60 << 20], ids=["empty", "small", "several parts"])
def test_output_stream_appears_whole_or_not_at_all(server: S3Server, output: Output, size_bytes: int) -> None:
    """No object before the block ends, none if it raises, and no unfinished upload that would be billed for ever."""
    block = os.urandom(10 << 20) if size_bytes > 10 else b"0123456789"

    def write(interrupted: bool) -> None:
        with output.open_write("a/b") as file:
            for _ in range(0, size_bytes, len(block)):
                file.write(block)
            assert output.list() == []
            if interrupted:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(interrupted=True)
    gc.collect()  # a forgotten buffer would be uploaded by its destructor
    assert output.list() == []
    assert unfinished_uploads(server) == []
    write(interrupted=False)
    assert len(output.read_bytes("a/b")) == size_bytes
    assert unfinished_uploads(server) == []


def test_output_failed_upload_is_an_os_error() -> None:
    """A publish that fails halfway sees an OSError with one clean line, and the upload is aborted."""
    seen: list[tuple[str, str]] = []

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        seen.append((method, urlsplit(path).query))
        if method == "POST" and "uploads" in path:
            body = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
            return Answer(200, body)
        return Answer(204) if method == "DELETE" else error_answer(403, "AccessDenied", "secret")

    with faulty_server(answer) as address:
        output = Output(OutputConfig(uri="s3://results/x", storage=StorageConfig(endpoint_url=address)))
        with (
            pytest.raises(OSError, match=r"output: access denied \(AccessDenied\): a$") as caught,
            output.open_write("a") as file,
        ):
            file.write(b"abc")
        assert "secret" not in str(caught.value)
        with pytest.raises(OSError, match=r"output: access denied \(AccessDenied\): b"):
            output.write_bytes("b", b"")
    assert ("DELETE", "uploadId=u1") in seen


@pytest.mark.parametrize("refused", ["POST", "PUT"])
def test_output_failed_upload_inside_the_block(refused: str) -> None:
    """A large file is uploaded while it is written: what fails there is one clean line too."""

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        if method == "POST" and refused != "POST":
            body = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
            return Answer(200, body)
        return Answer(204) if method == "DELETE" else error_answer(403, "AccessDenied", "secret")

    reached = False
    with faulty_server(answer) as address:
        output = Output(OutputConfig(uri="s3://results/x", storage=StorageConfig(endpoint_url=address)))

        def write() -> None:
            nonlocal reached
            with output.open_write("a") as file:
                file.write(b"x" * (60 << 20))
                reached = True

        with pytest.raises(OSError, match=r"^output: access denied \(AccessDenied\): a$"):
            write()
    assert not reached, "the failure is that of the write, not of the end of the block"


def test_has_tells_gone_from_unknown(server: S3Server) -> None:
    """An object that is not there is gone; a refusal or a server that is away is no answer."""
    server.put("films", "has/a b.mp4", b"x")
    archive = archive_at(server, "s3://films/has")
    assert archive.has("a b.mp4")
    assert not archive.has("a")
    with faulty_server(lambda *_: Answer(403)) as address:
        refused = Archive(ArchiveConfig(uri="s3://films/has", storage=StorageConfig(endpoint_url=address)))
        with pytest.raises(MediaError) as caught:
            refused.has("a b.mp4")
        assert caught.value.code == ErrorCode.ACCESS_DENIED
    away = StorageConfig(endpoint_url=f"http://127.0.0.1:{free_port()}", max_attempts=1)
    with pytest.raises(MediaError) as caught:
        Archive(ArchiveConfig(uri="s3://films/has", storage=away)).has("a b.mp4")
    assert caught.value.code == ErrorCode.STORAGE_ERROR


def test_output_parquet_for_pyarrow_and_duckdb(server: S3Server, output: Output) -> None:
    """What is written through open_write is read through `filesystem` and `path` by the usual tools."""
    import duckdb

    table = pa.table({"x": list(range(1000))})
    with output.open_write("t/part-0.parquet") as file, pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
    assert pq.read_table(output.path("t/part-0.parquet"), filesystem=output.filesystem).equals(table)
    connection = duckdb.connect()
    connection.register_filesystem(output.filesystem)
    query = f"select sum(x) from read_parquet('{output.uri_of('t/part-0.parquet')}')"
    assert connection.sql(query).fetchall() == [(499500,)]


@pytest.mark.media
def test_real_media_is_the_same_from_s3(server: S3Server, media_dir: Path) -> None:
    """A folder of real clips, uploaded: kinds as on disk, bytes as on disk, and PyAV decodes through ranges."""
    import av

    folder = media_dir / "androidx-media" / "mkv"
    keys = server.upload_folder(folder, "films", "real/mkv")
    archive = archive_at(server, "s3://films/real/mkv")
    rows = listing(archive)
    assert sorted(rows) == keys
    local = listing(Archive(ArchiveConfig(uri=str(folder))))
    assert {key: row["kind"] for key, row in rows.items()} == {key: row["kind"] for key, row in local.items()}
    key = "bbb_960x540_60fps_vp8.webm"
    assert read(archive, rows[key], whole=True) == (folder / key).read_bytes()

    class RangeFile:
        """The smallest file object over ranges that PyAV takes."""

        def __init__(self, source: RangeSource) -> None:
            self.source, self.position = source, 0

        def read(self, size: int) -> bytes:
            data = self.source.read_range(self.position, size)
            self.position += len(data)
            return data

        def seek(self, offset: int, whence: int = 0) -> int:
            self.position = offset + (0, self.position, self.source.size_bytes)[whence]
            return self.position

        def tell(self) -> int:
            return self.position

    row = rows[key]
    opened = archive.open(key, int(str(row["size_bytes"])), str(row["version"]), stage_limit_bytes=0, whole=False)
    with opened as source:
        assert isinstance(source, RangeSource)
        with av.open(RangeFile(source)) as container:
            assert next(container.decode(video=0)).width == 960
