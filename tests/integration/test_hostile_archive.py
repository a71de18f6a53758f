"""Names and texts of strangers go through a whole run as data: into rows, never into a path or a terminal."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clips import make_clip
from tests.support.runs import LIGHT, REPOSITORY, Job
from tests.support.s3 import s3_server
from tests.support.traps import Canary, Port, traps
from vca.core.identity import display_key, is_plain_key
from vca.core.schemas import TABLES
from vca.tables.query import format_table, query, status

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

NAMES = [
    "-rf.mp4", "--config=x.mp4", "--.mp4", "-.mp4",  # options
    "http:x.mp4", "file:canary.mp4", "concat:canary.mp4|b.mp4", "pipe:0.mp4", "s3:b.mp4",
    "subfile,,start,0,end,9999,,:canary.mp4",  # protocols of FFmpeg
    "';DROP TABLE videos;--.mp4", '"quoted" and \'.mp4', "$video.mp4", "?.mp4", "%s%n%d{0}.mp4",  # SQL, formats
    "<script>alert(1)<.mp4", "&lt;b&gt;.mp4", "[a](b).mp4", "`id`.mp4", "$(id).mp4", "a;id|b&.mp4", "~.mp4", "*.mp4",
    "=cmd|' calc'!A0.mp4", "@SUM(1).mp4", "\\..\\x.mp4", "..mp4", "a b  c.mp4", " lead.mp4",
    "e\u0301.mp4", "\u00e9.mp4", "日本語.mp4", "x" * 251 + ".mp4",  # one letter in two ways; the longest name
]  # fmt: skip
"""Names that are odd but plain: a video is tagged under each of them."""
BAD_NAMES = ["new\nline.mp4", "esc\x1b[31m.mp4", "bell\x07.mp4", "del\x7f.mp4", "\u202egpj.mp4", "zero\u200b.mp4"]
"""Names that cannot be shown: the file is in quarantine, and never opened."""
BAD_BYTES = [b"\xff\xfe.mp4", b"half\xe2\x82.mp4"]
S3_KEYS = [
    "../up.mp4", "a/../../up.mp4", "a/./b.mp4", "x//y.mp4", "/lead.mp4", "//lead.mp4", "http://127.0.0.1:PORT/x.mp4",
    "https://user:pass@host/x.mp4", "s3://films/secret.mp4", "file:///etc/passwd.mp4", "a?versionId=1.mp4", "a#b.mp4",
    "a%2Fb.mp4", "a+b.mp4", "a::b.mp4", "deep/" * 190 + "x.mp4", "k" * 900 + ".mp4",
]  # fmt: skip
"""Keys that no file system has."""

EVIL = "=1+2 <script>alert(1)</script> '; DROP TABLE videos; -- \x1b[31m\x9b2J\u202e [x](javascript:y) |a|b|"
"""Text of a subtitle. What is markup of subtitles is taken out when it is read, the rest is kept as it is."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 10, size=(32, 32)).read_bytes()


@pytest.fixture
def set_traps(clip: bytes, tmp_path: Path) -> Iterator[tuple[Canary, Port]]:
    (tmp_path / "canary.mp4").write_bytes(clip)
    with traps(tmp_path / "canary.mp4") as (canary, port):
        yield canary, port


def _states(job: Job) -> dict[str, tuple[str, str | None]]:
    rows = job.query("SELECT key, status, error_code FROM videos")
    return {row["key"]: (row["status"], row["error_code"]) for row in rows}


def _one_line_each(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    for text in [*job.text.splitlines(), *(record.getMessage() for record in caplog.records)]:
        assert text.isprintable(), text


@pytest.mark.long
def test_names_in_a_folder(
    clip: bytes, tmp_path: Path, set_traps: tuple[Canary, Port], caplog: pytest.LogCaptureFixture
) -> None:
    """Each name ends in its one right state, nothing else is opened, and the log keeps its lines."""
    canary, port = set_traps
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in [*NAMES, *BAD_NAMES, *map(os.fsdecode, BAD_BYTES)]:
        (archive / name).write_bytes(clip)
    job = Job(str(archive), str(tmp_path / "out"), LIGHT)
    with caplog.at_level(logging.WARNING):
        assert job.tag() == 0, job.text
    bad = [display_key(name) for name in [*BAD_NAMES, *map(os.fsdecode, BAD_BYTES)]]
    expected = dict.fromkeys(NAMES, ("tagged", None)) | dict.fromkeys(bad, ("quarantined", "bad_key"))
    assert all(map(is_plain_key, NAMES))
    assert _states(job) == expected
    assert f"{len(expected)} listed = {len(NAMES)} tagged + {len(bad)} quarantined" in job.text
    assert "decoding   no new privileges, no network, no other process, no foreign file" in job.said
    assert not canary.was_opened()
    assert not port.was_called()
    _one_line_each(job, caplog)
    assert job.tag() == 0
    assert "nothing to do: all unchanged" in job.text
    _outputs_are_clean(job)


def test_keys_in_a_bucket(clip: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a bucket any text is a key. No key reaches a path, another object or an address."""
    with s3_server("films") as server, traps(tmp_path) as (_, port):
        keys = [*NAMES, *(key.replace("PORT", str(port.number)) for key in S3_KEYS)]
        bad = [name for name in BAD_NAMES if "\n" not in name]  # moto cannot take that one
        for key in [*keys, *bad]:
            server.put("films", f"videos/{key}", clip)
        server.put("films", "up.mp4", b"outside")
        server.put("films", "secret.mp4", b"outside")
        where = f"archive.storage.endpoint_url={server.endpoint_url}"
        job = Job("s3://films/videos", str(tmp_path / "out"), (where, *LIGHT))
        with caplog.at_level(logging.WARNING):
            assert job.tag() == 0, job.text
        expected = dict.fromkeys(keys, ("tagged", None))
        expected |= {display_key(key): ("quarantined", "bad_key") for key in bad}
        assert _states(job) == expected
        assert not port.was_called()
        _one_line_each(job, caplog)
        _outputs_are_clean(job)


def _outputs_are_clean(job: Job) -> None:
    """All ways to look at the tables show every key, and nothing that a terminal or a spreadsheet obeys."""
    reader = job.reader()
    rows = query(reader, "SELECT key, status, error_message FROM videos")
    for style in ("text", "json"):
        assert all(line.isprintable() for line in format_table(rows, None, style).splitlines())  # type: ignore[arg-type]
    keys = {row["key"] for row in csv.DictReader(io.StringIO(format_table(rows, None, "csv")))}
    assert {key.removeprefix("'") for key in keys} == {key.removeprefix("'") for key in _states(job)}
    assert not any(key.startswith(("=", "+", "-", "@")) for key in keys)
    assert all(line.isprintable() for line in status(reader).splitlines())
    assert sorted(path.name for path in (Path(job.output) / "tables").iterdir()) == sorted(
        name for name in TABLES if job.query(f"SELECT count(*) AS n FROM all_{name}")[0]["n"]
    )


def _shown(job: Job, *arguments: str) -> str:
    command = [sys.executable, "-m", "vca.cli", *arguments, "--output", job.output]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600, cwd=REPOSITORY)
    return done.stdout


def test_text_of_strangers(clip: bytes, tmp_path: Path) -> None:
    """A subtitle with HTML, SQL, Markdown, a formula and escape sequences: kept as text, shown without effect."""
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "film.mp4").write_bytes(clip)
    cue = f"1\n00:00:00,000 --> 00:00:00,400\n{EVIL}\n"
    (archive / "film.en.srt").write_text(cue, encoding="utf-8")
    database = tmp_path / "mlflow.db"
    tracking = ("tracking.enabled=true", f"tracking.uri=sqlite:///{database}", f"tracking.artifact_uri={tmp_path}/art")
    job = Job(str(archive), str(tmp_path / "out"), (*LIGHT, *tracking))
    assert job.tag() == 0, job.text
    (row,) = job.query("SELECT text FROM transcripts")
    text: str = row["text"]
    assert text.startswith("=1+2 alert(1) '; DROP TABLE videos; -- ")
    assert "\x1b" not in text
    assert "\x9b" not in text
    sql = "SELECT key, text FROM transcripts"
    for style in ("text", "json"):
        shown = _shown(job, "query", sql, "--format", style)
        assert all(line.isprintable() for line in shown.splitlines())
        assert "DROP TABLE videos" in shown
    values: dict[str, Any] = json.loads(_shown(job, "query", sql, "--format", "json"))
    assert values["text"] == text
    (line,) = csv.DictReader(io.StringIO(_shown(job, "query", sql, "--format", "csv")))
    assert line["text"] == f"'{text}"
    assert job.query("SELECT count(*) AS n FROM videos") == [{"n": 1}]
    assert "DROP TABLE" not in _shown(job, "status")
    kept = [path for path in (tmp_path / "art").rglob("*") if path.is_file()]
    assert kept
    for path in [database, *kept]:  # what people say in videos, and what these are called, stays in the tables
        assert b"DROP TABLE videos" not in path.read_bytes(), path
        assert b"film.mp4" not in path.read_bytes(), path
