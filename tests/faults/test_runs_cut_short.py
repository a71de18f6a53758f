"""A run that ends early, or that waits for one video: what was begun is published, the rest comes first next time."""

import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.outcomes import assert_mended, assert_same_tables
from tests.support.processes import DecoderAtWork, meanwhile, wait_for
from tests.support.runs import Job
from tests.support.tally import TALLY
from vca.pipelines import run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

TARGET = "school/lesson-07.mp4"
ONE_READER = ("resources.readers=1", "resources.encoders=1")


@pytest.fixture
def job(small_archive: Path, undisturbed: Job, tmp_path: Path) -> Job:
    """A first run on the archive that `undisturbed` has tagged, one video after the other."""
    return Job(str(small_archive), str(tmp_path / "out"), (*undisturbed.settings, *ONE_READER))


def states(job: Job) -> dict[str, int]:
    """Of the newest run."""
    (row,) = job.query("FROM runs ORDER BY run_id DESC LIMIT 1")
    return {name: row[name] for name in ("tagged", "unchanged", "quarantined", "deferred")}


@pytest.mark.long
def test_a_deadline_ends_the_run_gently(
    job: Job, undisturbed: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The video in work is finished and tagged though the deadline passes meanwhile, and the log names what is waited
    for. Nothing else is begun. The next night does the rest.
    """
    deadline = datetime.now(UTC) + timedelta(days=1)

    def hold_until_late() -> None:
        held = wait_for(DecoderAtWork(os.getpid(), Path(job.archive) / TARGET).caught, f"a decoder that reads {TARGET}")
        wait_for(lambda: "held up: read" in caplog.text, "the watchdog")
        time.sleep(max(0.0, (deadline - datetime.now(UTC)).total_seconds()))
        held.resume()

    def soon(text: str, now: datetime) -> datetime:
        nonlocal deadline
        assert text == "06:00"
        deadline = now + timedelta(seconds=60)
        return deadline

    monkeypatch.setattr(run, "next_deadline", soon)
    with caplog.at_level(logging.WARNING), meanwhile(hold_until_late):
        assert job.tag('run.deadline="06:00"', "run.stall_s=3", "decode.wall_limit_s=300") == run.EXIT_OK, job.text
    assert f"held up: read of '{TARGET}'" in caplog.text
    TALLY.injected["deadline"] += 1
    first = states(job)
    left = first["deferred"]  # the largest is the first or, by the whim of the scheduler, the second to be read
    assert left in (1, 2), job.text
    assert first["tagged"] == 3 - left
    assert job.query(f"SELECT status FROM videos WHERE key = '{TARGET}'") == [{"status": "tagged"}]
    assert f"{left} deferred by deadline or budget" in job.text

    assert job.tag() == run.EXIT_OK, job.text
    assert f"{left}  decode  deferred by an earlier run" in job.text
    assert states(job) == {"tagged": left, "unchanged": 3 - left, "quarantined": 0, "deferred": 0}
    assert_mended(job, undisturbed, "deadline")


@pytest.mark.long
def test_tagging_stored_videos_again_waits_for_the_next_night(
    job: Job, undisturbed: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the deadline nothing is tagged anew, and the older tags stay in force."""
    assert job.tag() == run.EXIT_OK, job.text
    other_model = "predict.zeroshot.offset=-6.7"
    with monkeypatch.context() as patched:
        patched.setattr(run, "next_deadline", lambda _, now: now)
        assert job.tag(other_model, "run.deadline=22:00") == run.EXIT_OK, job.text
    assert states(job) == {"tagged": 0, "unchanged": 0, "quarantined": 0, "deferred": 3}
    assert_same_tables(job, undisturbed)
    assert job.tag(other_model) == run.EXIT_OK, job.text
    assert states(job)["tagged"] == 3
    assert "nothing decoded" in job.text


@pytest.mark.long
def test_a_budget_of_video_hours(job: Job, undisturbed: Job) -> None:
    """Each night does a piece of the archive, until all is done. No night does nothing."""
    budget = "run.max_video_hours=0.0001"
    assert job.tag(budget) == run.EXIT_OK, job.text
    first = states(job)
    assert first["tagged"] + first["deferred"] == 3
    assert first["tagged"] >= 1
    assert first["deferred"] >= 1, "one reader cannot have begun all before the first was done"
    for _ in range(first["deferred"]):
        assert job.tag(budget) == run.EXIT_OK, job.text
    TALLY.injected["budget"] += first["deferred"]
    assert states(job)["deferred"] == 0
    assert_mended(job, undisturbed, "budget")


@pytest.mark.long
def test_a_failure_that_was_final_is_retried_when_asked_for(job: Job, undisturbed: Job) -> None:
    """`vca tag --retry CODE`: without it the file waits until it changes."""

    def kill_decoder() -> None:
        at_work = DecoderAtWork(os.getpid(), Path(job.archive) / TARGET)
        wait_for(at_work.caught, f"a decoder that reads {TARGET}").kill()

    with meanwhile(kill_decoder):
        assert job.tag("run.max_attempts=1") == run.EXIT_OK, job.text
    assert job.query("SELECT key, will_retry FROM quarantine") == [{"key": TARGET, "will_retry": False}]
    assert job.tag("run.max_attempts=1") == run.EXIT_OK
    assert "nothing to do" in job.text
    assert job.tag("run.max_attempts=1", "run.retry=[decode_crash]") == run.EXIT_OK, job.text
    assert states(job) == {"tagged": 1, "unchanged": 2, "quarantined": 0, "deferred": 0}
    TALLY.injected["killed decoder"] += 1
    assert_mended(job, undisturbed, "killed decoder", apart_from=("attempts",))
