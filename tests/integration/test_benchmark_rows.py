"""The benchmarks of plan, publishing, queries and start run, and check what they measure."""

from pathlib import Path

import pytest

from benchmarks import plan, publish, start
from benchmarks.harness import Settings

pytestmark = [pytest.mark.integration, pytest.mark.long]


def test_plan(tmp_path: Path) -> None:
    """Every size is planned; the plan's own counts are checked in the process that makes it."""
    sizes, nights = plan.measure(Settings(tmp_path, rounds=1, small=True))
    assert set(sizes.figures[0].samples) == {"200 objects", "600 objects", "1400 objects"}
    assert sizes.conditions["changed"] == 4
    assert set(nights.figures[0].samples) == {"one run", "4 runs"}
    assert not list((tmp_path / "plan").glob("tmp*")), "what is not kept is removed"


def test_publish_and_questions(tmp_path: Path) -> None:
    """Ten rows a video of those that did not fail, and every question has an answer."""
    published, questions = publish.measure(Settings(tmp_path, rounds=1, small=True))
    failed = 2  # of 1,920
    assert published.conditions["rows"] == 1920 + 10 * (1920 - failed) + failed + 1
    assert published.conditions["video_categories"] == 1
    assert len(questions.figures) == 5
    assert all(int(figure.note.split()[0]) > 0 for figure in questions.figures)
    assert not list((tmp_path / "publish").iterdir())


def test_start(tmp_path: Path) -> None:
    """The plan that is timed finds nothing to do: that is checked before anything is timed."""
    (report,) = start.measure(Settings(tmp_path, rounds=1, small=True))
    assert [figure.what for figure in report.figures[1:]] == ["import vca", "vca --help", "vca plan, nothing changed"]
