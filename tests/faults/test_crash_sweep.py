"""The driver kills itself before each change of its output in turn, and the next run mends it.

Every driver is a process of its own that joins the cluster of these tests; `tests.support.doomed` says how the points
are hit exactly. test_killed_driver.py kills drivers with a cluster of their own, from outside.
"""

import random
from pathlib import Path

import pytest

from tests.support.drivers import KILLED, Point, killed_copy
from tests.support.outcomes import assert_mended
from tests.support.runs import Job
from tests.support.tally import TALLY
from vca.core.schemas import TABLES
from vca.media.output import Output
from vca.media.output_lock import LOCK
from vca.pipelines import run
from vca.pipelines.publish import recover

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

SEED = 11
TALLY.seeds["crash sweep"] = SEED


def test_the_second_night_has_rows_for_every_table(second: Job) -> None:
    """Or the sweep below would leave steps of publishing out."""
    newest = second.reader().current()
    assert newest is not None
    assert {t for t, table in newest.tables.items() for f in table.files if f.run_id == newest.run_id} == set(TABLES)


@pytest.fixture(scope="module")
def complete(stored: Path, second: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a second night that was killed before its first file was moved to its place."""
    return killed_copy(second, stored, tmp_path_factory.mktemp("complete"), change("rename to tables/"))


def assert_the_next_run_mends(job: Job, out: Path) -> None:
    """One run more publishes the tables of the undisturbed one, and the run after it has nothing to do."""
    mended = Job(job.archive, str(out), job.settings)
    assert mended.tag() == run.EXIT_OK, mended.text
    assert_mended(mended, job, KILLED)
    before = mended.reader().current()
    assert mended.tag() == run.EXIT_OK
    assert "nothing to do: all unchanged" in mended.text
    after = mended.reader().current()
    assert before is not None
    assert after is not None
    assert after.tables["videos"] == before.tables["videos"]


def change(pattern: str, number: int = 1) -> Point:
    return Point("change", number, pattern)


def some_long(points: list[Point], short: set[int]) -> list[object]:
    """All points; those that are not in `short` are left to `make faults`."""
    marks = [() if i in short else (pytest.mark.long,) for i in range(len(points))]
    return [pytest.param(point, id=str(point), marks=mark) for point, mark in zip(points, marks, strict=True)]


N_CHANGES = 56
"""A first night has some more: the parts of the feature store vary with the speed of the machine."""
SWEEP = [
    *(change("", n) for n in sorted(random.Random(SEED).sample(range(1, N_CHANGES), 25))),
    *(Point("line", k, r"\] read") for k in (1, 2, 3, 4)),
    Point("line", 1, r"\] tag"),  # there may be no second one: predictions come as Ray hands them over
]


@pytest.mark.parametrize("point", some_long(SWEEP, {3}))
def test_a_first_night_killed_anywhere(first: Job, tmp_path: Path, point: Point) -> None:
    """30 points over the whole run: while segments are stored, while videos are tagged, in staging and publishing."""
    assert_the_next_run_mends(first, killed_copy(first, None, tmp_path, point))


@pytest.mark.long
@pytest.mark.parametrize("k", [1, 2])  # a part holds two segments: it is written when the next one comes
def test_killed_between_the_segments_of_a_video(first: Job, tmp_path: Path, k: int) -> None:
    """What is stored of a long video is kept: the next run reads the other segments only. In waves of two videos."""
    quiet = Job(first.archive, str(tmp_path / "quiet"), (*first.settings, "sampling.segment_s=30"))
    assert quiet.tag() == run.EXIT_OK, quiet.text
    job = Job(first.archive, str(tmp_path / "out"), (*quiet.settings, "run.wave_videos=2"))
    killed_copy(job, None, tmp_path, change(r"rename to features/\w+/part-", k + 1))
    stored = _parts(tmp_path)
    assert len(stored) == k
    assert_the_next_run_mends(quiet, tmp_path / "out")
    assert {name: time for name, time in _parts(tmp_path).items() if name in stored} == stored


def _parts(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("out/features/*/part-*")}


PUBLISHING = [
    *(change(f"{verb} staging/RUN/tables/{table}/") for table in TABLES for verb in ("write", "rename to")),
    change("write staging/RUN/.vca-tmp"),
    change("rename to staging/RUN/manifest.json"),
    *(change(f"rename to tables/{table}/") for table in TABLES),
    change("write manifests/", 1),
    change("rename to manifests/RUN.json"),
    change("write manifests/", 2),
    change("rename to manifests/current.json"),
    *(change("rmdir staging/", k) for k in (1, 2, 7, 13)),
    change("remove staging/RUN/manifest.json"),
    change("rmdir staging/RUN$"),
]
SWAP = PUBLISHING.index(change("rename to manifests/current.json"))


STAGED = PUBLISHING.index(change("rename to staging/RUN/manifest.json"))


@pytest.mark.parametrize("point", some_long(PUBLISHING, {SWAP}))
def test_a_later_night_killed_at_every_step_of_publishing(
    stored: Path, second: Job, tmp_path: Path, point: Point
) -> None:
    """With rows of an older run, a changed video, a deleted and a broken one; readers see one night or the other.

    Up to the staging manifest recovery must leave what was there before, to the byte. From there the next run goes on
    as from any other such state: every ninth of these points goes all the way, which is to tag everything again.
    """
    out = killed_copy(second, stored, tmp_path, point)
    seen = Job(second.archive, str(out), second.settings)
    number = PUBLISHING.index(point)
    gone = seen.query("SELECT count(*) AS n FROM all_videos WHERE status = 'gone'")[0]["n"]
    assert gone == int(number > SWAP), "a half-published night is visible"
    if number <= STAGED and number % 9:
        recover(Output(seen.config().output), seen.reader())
        assert _contents(out) == _contents(stored)
    else:
        assert_the_next_run_mends(second, out)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


RECOVERING = PUBLISHING[PUBLISHING.index(change("rename to tables/videos/")) :]


@pytest.mark.parametrize("point", some_long(RECOVERING, {5}))
def test_killed_again_while_finishing_a_killed_run(complete: Path, second: Job, tmp_path: Path, point: Point) -> None:
    """Recovery is itself stopped at every step, and the run after that ends it."""
    assert_the_next_run_mends(second, killed_copy(second, complete, tmp_path, point))
