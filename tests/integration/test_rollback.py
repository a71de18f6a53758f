"""Rollback between real runs: the next one plans from the run in force and decodes nothing twice."""

import shutil
from pathlib import Path

import pytest

from tests.support.runs import LIGHT, Job, stable_rows
from vca.core.errors import ConfigError
from vca.media.output import Output
from vca.media.output_lock import LOCK, output_lock
from vca.pipelines import run
from vca.pipelines.config import RetentionConfig
from vca.pipelines.housekeeping import prune, rollback
from vca.tables.verify import verify

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

FIRST_NIGHT, SECOND_NIGHT = "news/2026-03-01/weather.mkv", "film/silent-1925.avi"


def add(demo_archive: Path, key: str, archive: Path) -> None:
    (archive / key).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(demo_archive / key, archive / key)


def check_whole(job: Job) -> None:
    said: list[str] = []
    assert verify(job.reader(), said.append), "\n".join(said)
    assert "0 warnings" in said[-1], "\n".join(said)


@pytest.mark.long
def test_a_run_after_a_rollback_starts_from_the_run_in_force(demo_archive: Path, tmp_path: Path) -> None:
    """It tags again what the run that was rolled back had tagged, from stored features, and the tables are the same."""
    job = Job(str(tmp_path / "archive"), str(tmp_path / "out"), LIGHT)
    add(demo_archive, FIRST_NIGHT, tmp_path / "archive")
    assert job.tag() == run.EXIT_OK, job.text
    add(demo_archive, SECOND_NIGHT, tmp_path / "archive")
    assert job.tag() == run.EXIT_OK, job.text
    second = stable_rows(job.reader(), "video_categories")
    first_run, second_run = job.reader().runs()

    said: list[str] = []
    assert rollback(job.config().output, first_run, said.append) == 0
    assert "videos     1 tagged (before: 2 tagged)" in said
    assert [row["key"] for row in job.query("FROM videos")] == [FIRST_NIGHT]
    check_whole(job)

    assert job.tag() == run.EXIT_OK, job.text
    last = job.query("FROM runs ORDER BY run_id DESC LIMIT 1")[0]
    assert (last["tagged"], last["unchanged"], last["decoded_s"]) == (1, 1, 0.0)
    assert second_run not in {row["run_id"] for row in job.query("FROM all_videos")}
    assert stable_rows(job.reader(), "video_categories").equals(second)
    check_whole(job)

    third_run = job.reader().runs()[-1]
    assert rollback(job.config().output, second_run, said.append) == 0
    assert job.tag() == run.EXIT_OK, job.text
    assert "nothing to do: all unchanged" in job.text
    assert third_run not in {row["run_id"] for row in job.query("FROM all_videos")}
    assert prune(job.config().output, RetentionConfig(runs=1, min_age_h=0), False, said.append) == 0
    assert len(job.reader().runs()) == 1
    assert stable_rows(job.reader(), "video_categories").equals(second)
    check_whole(job)


def test_a_run_that_finds_the_output_in_use_touches_nothing(demo_archive: Path, tmp_path: Path) -> None:
    """Also where it would have refused later, and where the output is new."""
    add(demo_archive, FIRST_NIGHT, tmp_path / "archive")
    job = Job(str(tmp_path / "archive"), str(tmp_path / "out"), LIGHT)
    with output_lock(Output(job.config().output), "run x"):
        with pytest.raises(ConfigError, match="in use by run x"):
            job.tag()
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    assert job.said == []
    (tmp_path / "archive" / FIRST_NIGHT).unlink()
    with pytest.raises(ConfigError, match="no media objects found"):
        job.tag()
    assert not (tmp_path / "out").exists(), "a refused run leaves no lock and no folder"
