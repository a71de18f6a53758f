"""The benchmarks in their small form: they run, compare what they say, and count right. Times are not looked at."""

import re
from pathlib import Path

import pytest

from benchmarks import retag, scale_out, train
from benchmarks.harness import Report, Settings

pytestmark = [pytest.mark.integration, pytest.mark.long]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, rounds=1, small=True)


def assert_measured(report: Report, *sides: str) -> None:
    """Every figure has a value, and every side of the first one was measured in every round."""
    assert all(figure.value > 0 for figure in report.figures)
    samples = report.figures[0].samples
    assert tuple(samples) == sides
    assert all(len(values) == 1 for values in samples.values())
    assert report.text()


def test_scale_out(settings: Settings) -> None:
    """On one node and on two; no segment is lost, or the benchmark itself fails."""
    efficiency, skew = scale_out.measure(settings)
    assert_measured(efficiency, "1 nodes, s", "2 nodes, s")
    assert_measured(skew, "makespan, s", "lower bound, s")
    assert skew.figures[0].value >= 1, "nothing is faster than its lower bound"


@pytest.mark.usefixtures("ray_cluster")
def test_retag(settings: Settings) -> None:
    """One side decodes every video, the other none, or the benchmark itself fails."""
    (report,) = retag.measure(settings)
    assert tuple(report.figures[1].samples) == ("from videos, whole run, s", "from features, whole run, s")
    assert report.conditions["videos"] == 3


@pytest.mark.usefixtures("ray_cluster")
def test_train(settings: Settings) -> None:
    """Both sides tell windows per second."""
    (report,) = train.measure(settings)
    assert_measured(report, "bare loop, windows/s", "vca, windows/s")
    assert re.search(r"bare loop, windows/s +[0-9.]+", report.text())
