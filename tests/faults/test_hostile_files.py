"""Damaged copies of real media and subtitles go through the real job: every one is accounted for, none costs the night.

The corpus is the same for the same seed; `tests.support.mutants` says what is done to the files.
"""

import logging
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from benchmarks.memory import peak_memory
from tests.support.mutants import MEDIA, SUBTITLES, media_mutants, originals, subtitle_mutants
from tests.support.outcomes import assert_balanced, assert_nothing_doubled, assert_nothing_left_over
from tests.support.runs import LIGHT_ENCODERS, Job
from tests.support.tally import TALLY
from vca.core.errors import CODES
from vca.core.schemas import TABLES
from vca.pipelines import run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

SEED = 41
TALLY.seeds["hostile files"] = SEED
WALL_LIMIT_S = 20
SETTINGS = (
    *LIGHT_ENCODERS,
    "sampling.segment_s=30",
    f"decode.wall_limit_s={WALL_LIMIT_S}",
    "decode.cpu_limit_s=15",
    "decode.memory_limit_mb=512",
    "decode.max_output_mb=128",
    "decode.max_duration_h=2",
)
MEMORY_BYTES = 4 << 30
"""Of this process, Ray with its object store, two workers a stage and their decoding children, all together."""


class Listener(logging.Handler):
    """Keeps what is logged, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def tag(job: Job, limit_s: float) -> None:
    """Run the job; it publishes, says nothing that looks like a defect, and keeps to its time and memory."""
    listener = Listener()
    logging.getLogger().addHandler(listener)
    try:
        with peak_memory(os.getpid()) as peak:
            started = time.monotonic()
            code = job.tag()
            wall_s = time.monotonic() - started
    finally:
        logging.getLogger().removeHandler(listener)
    assert code == run.EXIT_OK, job.text
    assert "Traceback" not in "\n".join([job.text, *listener.lines])
    TALLY.hangs += wall_s > limit_s
    TALLY.notes.append(
        f"hostile files   {job.text.count(' failed')} codes, {wall_s:.0f} s, {peak.bytes / 2**30:.2f} GiB"
    )
    assert wall_s < limit_s, f"{wall_s:.0f} s, of which one file may have been at work for much"
    assert peak.bytes < MEMORY_BYTES, peak.by_name


def assert_sane(job: Job, n_files: int) -> None:
    """One state for each file, a known code for each failure, and no number that cannot be."""
    assert_balanced(job)
    assert_nothing_doubled(job)
    assert_nothing_left_over(job)
    assert job.query("SELECT count(*) AS n FROM videos") == [{"n": n_files}]
    codes = {row["error_code"] for row in job.query("SELECT DISTINCT error_code FROM videos WHERE error_code NOT NULL")}
    assert codes <= {str(code) for code in CODES}
    nonsense = {
        "videos": "NOT (isfinite(duration_s) AND duration_s BETWEEN 0 AND 7200 AND coverage_s BETWEEN 0 AND duration_s)"
        " OR width <= 0 OR height <= 0 OR NOT isfinite(fps) OR fps <= 0 OR fps > 1e6 OR n_frames < 0",
        "video_categories": "NOT (score BETWEEN 0 AND 1)",
        "event_spans": "NOT (score BETWEEN 0 AND 1)",
        "video_embeddings": "NOT isfinite(list_aggregate(embedding, 'sum'))",
        "step_scores": "NOT (list_aggregate(scores, 'min') >= 0 AND list_aggregate(scores, 'max') <= 1)",
        "transcripts": "length(text) = 0",
    }
    for table, odd in nonsense.items():
        assert job.query(f"SELECT * FROM {table} WHERE {odd} LIMIT 3") == [], table
    for table in ("event_spans", "transcripts", "shots"):
        outside = f"SELECT t.* FROM {table} t JOIN videos v USING (video_id) WHERE NOT (t.start_s >= 0 "
        assert job.query(f"{outside} AND t.start_s <= t.end_s AND t.end_s <= v.duration_s + 1e-6) LIMIT 3") == [], table
    for table in (name for name in TABLES if name not in ("videos", "runs")):
        orphans = f"SELECT count(*) AS n FROM {table} ANTI JOIN videos USING (video_id)"
        assert job.query(orphans) == [{"n": 0}], table


def real_media(demo: Path) -> dict[str, bytes]:
    """The generated archive, and the folder of real media where there is one."""
    files = originals(demo, MEDIA)
    named = Path(os.environ.get("VCA_TEST_MEDIA") or Path(__file__).parents[3] / "shared" / "media")
    return files | {f"real/{name}": data for name, data in (originals(named, MEDIA) if named.is_dir() else {}).items()}


@pytest.mark.parametrize("count", [60, pytest.param(520, marks=pytest.mark.long)])
def test_damaged_media(demo_archive: Path, tmp_path: Path, count: int) -> None:
    """Bits, ranges, halves and headers of some files; declared sizes, times and counts of others."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for mutant in media_mutants(real_media(demo_archive), count, SEED):
        (archive / mutant.name).write_bytes(mutant.data)
    TALLY.injected["damaged media file"] += count
    job = Job(str(archive), str(tmp_path / "out"), SETTINGS)
    tag(job, limit_s=200 + count * 5)
    assert_sane(job, count)
    assert job.tag() == run.EXIT_OK  # what may pass is tried again, and ends the same way
    assert_balanced(job)
    assert_nothing_left_over(job)
    TALLY.resumed["damaged media file"] += 1


@pytest.mark.parametrize("count", [40, pytest.param(150, marks=pytest.mark.long)])
def test_damaged_subtitles(demo_archive: Path, tmp_path: Path, count: int) -> None:
    """Beside a good video each: the video is tagged whatever its subtitles are."""
    archive = tmp_path / "archive"
    archive.mkdir()
    clip = demo_archive / "radio/concert.m4a"
    for mutant in subtitle_mutants(originals(demo_archive, SUBTITLES), count, SEED):
        (archive / mutant.name).write_bytes(mutant.data)
        shutil.copy2(clip, (archive / mutant.name).with_suffix(".m4a"))
    TALLY.injected["damaged subtitles"] += count
    job = Job(str(archive), str(tmp_path / "out"), SETTINGS)
    tag(job, limit_s=200 + count * 5)
    assert_sane(job, count)
    assert job.query("SELECT key, error_code FROM videos WHERE status <> 'tagged'") == []
    control = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
    texts = [row["text"] for row in job.query("SELECT text FROM transcripts WHERE text NOT NULL")]
    assert not [text for text in texts if control.search(text)]
    TALLY.resumed["damaged subtitles"] += 1
