"""How many workers a run starts. What they do is tested with Ray, in integration."""

import pytest

from vca.pipelines.cluster import PREDICTOR_SEGMENTS, predictors_worth_starting
from vca.pipelines.predict import StoredVideo, group_by_part


@pytest.mark.parametrize(
    ("n_segments", "expected"),
    [
        ([1], 1),
        ([1] * (2 * PREDICTOR_SEGMENTS - 1), 1),
        ([1] * (2 * PREDICTOR_SEGMENTS), 2),
        ([PREDICTOR_SEGMENTS] * 2, 2),  # two long videos are two tasks
        ([100 * PREDICTOR_SEGMENTS], 1),  # one video is one task, however long it is
        ([1] * (100 * PREDICTOR_SEGMENTS), 4),
    ],
)
def test_predictors_are_started_for_work_that_is_worth_it(n_segments: list[int], expected: int) -> None:
    """Each loads models for seconds: a handful of videos gets one, a night all that were asked for."""
    stored = {f"v{i}": StoredVideo("f", n, (f"part-{i}",)) for i, n in enumerate(n_segments)}
    assert predictors_worth_starting(group_by_part(stored), at_most=4) == expected
