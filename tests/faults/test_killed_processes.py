"""A process of the cluster is killed in the middle of a run: the run ends by itself, and only what was hit is lost."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.outcomes import assert_mended
from tests.support.processes import DecoderAtWork, meanwhile, titled, wait_for
from tests.support.runs import Job
from tests.support.tally import TALLY
from vca.pipelines import cluster, run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

TARGET = "school/lesson-07.mp4"


@pytest.fixture
def job(small_archive: Path, undisturbed: Job, tmp_path: Path) -> Job:
    """A first run on the archive that `undisturbed` has tagged."""
    return Job(str(small_archive), str(tmp_path / "out"), undisturbed.settings)


@pytest.mark.long
def test_a_killed_decoder_costs_its_video_one_night(job: Job, undisturbed: Job) -> None:
    """That video is quarantined as a crash and comes back next time; the others are tagged as ever."""

    def kill_decoder() -> None:
        at_work = DecoderAtWork(os.getpid(), Path(job.archive) / TARGET)
        wait_for(at_work.caught, f"a decoder that reads {TARGET}").kill()

    with meanwhile(kill_decoder):
        assert job.tag() == run.EXIT_OK, job.text
    TALLY.injected["killed decoder"] += 1
    assert job.query("SELECT key, error_code, will_retry, attempts FROM quarantine") == [
        {"key": TARGET, "error_code": "decode_crash", "will_retry": True, "attempts": 1}
    ]
    assert "SIGKILL" in job.query("SELECT error_message AS m FROM quarantine")[0]["m"]
    tagged = {row["key"] for row in job.query("SELECT key FROM videos WHERE status = 'tagged'")}
    everything = {row["key"] for row in undisturbed.query("SELECT key FROM videos")}
    assert tagged == everything - {TARGET}

    assert job.tag() == run.EXIT_OK, job.text
    newest = job.query("FROM runs ORDER BY run_id DESC LIMIT 1")[0]
    assert (newest["tagged"], newest["unchanged"], newest["quarantined"]) == (1, len(tagged), 0)
    assert job.query("SELECT attempts FROM videos WHERE key = ?".replace("?", f"'{TARGET}'")) == [{"attempts": 2}]
    assert job.query("FROM quarantine") == []
    assert_mended(job, undisturbed, "killed decoder", apart_from=("attempts",))


STAGES = {
    "ReadAndEncodeStage": (),
    "ReadStage": ("resources.encoders=2",),
    "EncodeStage": ("resources.encoders=2",),
    "PredictStage": (),
}
"""What has them in a run."""


@pytest.mark.parametrize(
    "stage", ["ReadAndEncodeStage", *(pytest.param(stage, marks=pytest.mark.long) for stage in list(STAGES)[1:])]
)
def test_a_killed_worker_costs_nothing(job: Job, undisturbed: Job, stage: str) -> None:
    """Ray starts another one and hands it the same work: every video is tagged in the same run, once."""

    def kill_worker() -> None:
        pid = os.getpid()
        if stage == "PredictStage":
            worker = wait_for(lambda: titled(pid, stage), f"a worker of {stage}")[0]
        else:
            child = wait_for(DecoderAtWork(pid, Path(job.archive) / TARGET).caught, f"a decoder that reads {TARGET}")
            reader = child.parent()
            assert reader is not None
            worker = titled(pid, stage)[0] if stage == "EncodeStage" else reader
        struck.append(worker.cmdline()[0])
        worker.kill()
        if stage == "EncodeStage":
            child.resume()

    struck: list[str] = []
    with meanwhile(kill_worker):
        assert job.tag(*STAGES[stage]) == run.EXIT_OK, job.text
    assert stage in struck[0]
    TALLY.injected["killed worker"] += 1
    assert_mended(job, undisturbed, "killed worker")


class Poison:
    """A stage whose worker dies of one row, whoever tries it."""

    def __init__(self) -> None:
        pass

    def __call__(self, rows: pa.Table) -> pa.Table:
        if rows.column("n")[0].as_py() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


class DiesOnce:
    """A stage that makes five rows of one, as a reader does of five segments, and is killed after the third, once."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for i in range(5):
            if i == 3 and not self._marker.exists():
                self._marker.touch()
                time.sleep(1.0)  # what was yielded is on its way: it is to be seen by the next stage
                os.kill(os.getpid(), signal.SIGKILL)
            yield rows.append_column("i", pa.array([i] * len(rows)))


@pytest.mark.long
def test_what_a_worker_had_handed_on_is_not_doubled(tmp_path: Path) -> None:
    """The task is done again from its start; each of its rows arrives once."""
    marker = tmp_path / "died"
    tasks = [([{"n": n}], 5) for n in (0, 1)]
    stages = [cluster.Stage(DiesOnce, [marker], 1, 0.5)]
    schema = pa.schema([("n", pa.int64())])
    found = list(cluster.fed(lambda rows_out: tasks.pop(0) if tasks else None, schema, stages))
    TALLY.injected["killed worker"] += 1
    assert marker.exists()
    assert sorted((row["n"], row["i"]) for rows in found for row in rows.to_pylist()) == [
        (n, i) for n in (0, 1) for i in range(5)
    ]


@pytest.mark.long
def test_a_row_that_kills_every_worker_ends_the_run_in_the_end() -> None:
    """Workers are restarted, but not for ever: the night ends with an error instead of never."""
    from ray.exceptions import RayError

    dataset = cluster._dataset(pa.table({"n": [0, 1, 2]}))
    started = time.monotonic()
    with pytest.raises(RayError):
        list(cluster._rows(cluster._stage(dataset, Poison, [], 1, 0.5, 0)))
    TALLY.injected["killed worker"] += cluster.RETRIES["max_restarts"] + 1
    assert time.monotonic() - started < 400
