"""Where windows of a long video meet: which steps those are, and how their scores are held against the others."""

import numpy as np
import pytest

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.records import VideoLogits
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import Span, step_spans
from vca.models.fusion_inputs import InputsConfig
from vca.models.seams import check_seams, seam_steps

STEP_US = 500_000
INPUTS = InputsConfig(window_s=3, overlap_s=1)  # six steps, two of them shared
TAXONOMY = Taxonomy.model_validate(
    {
        "name": "t",
        "tasks": [
            {"name": "events", "kind": "span", "description": "d", "labels": [{"name": "x", "description": "x"}]},
            {"name": "topic", "kind": "multi_label", "description": "d", "labels": [{"name": "y", "description": "y"}]},
        ],
    }
)


def grid(n_steps: int) -> np.ndarray:
    return step_spans(Span(0, n_steps * STEP_US), STEP_US)


def test_seam_steps_by_hand() -> None:
    """Windows begin at 0 and 4; a third one ends with the video and shares more."""
    assert np.flatnonzero(seam_steps(grid(10), INPUTS)).tolist() == [4, 5]
    assert np.flatnonzero(seam_steps(grid(11), INPUTS)).tolist() == [4, 5, 6, 7, 8, 9]
    assert not seam_steps(grid(6), INPUTS).any()
    assert not len(seam_steps(np.zeros((0, 2), np.int64), INPUTS))


def test_both_places_by_hand() -> None:
    """Probability 0.5 at the seam and 0.1 elsewhere; an event covers one step of each."""
    n = 10
    scores = np.full((n, 1), 0.1, np.float32)
    scores[4:6] = 0.5
    event = TrueEvent("x", Span(3 * STEP_US, 5 * STEP_US))
    truth = VideoTruth("v", "v.mp4", Split.TEST, None, {}, {"events": (event,)})
    short = VideoLogits({}, {"events": np.full((6, 1), 0.9, np.float32)})
    check = check_seams(
        [VideoLogits({}, {"events": scores}), short], [truth, truth], [grid(n), grid(6)], TAXONOMY, INPUTS
    )
    assert check is not None
    assert (check.n_at_seams, check.n_inside) == (2, 8)
    assert check.at_seams == pytest.approx(0.25)
    assert check.inside == pytest.approx((0.9**2 + 7 * 0.1**2) / 8)


def test_no_seam_is_no_figure() -> None:
    """Videos of one window, and videos without annotated events, say nothing."""
    truth = VideoTruth("v", "v.mp4", Split.TEST, None, {"topic": frozenset()}, {})
    found = VideoLogits({}, {"events": np.zeros((10, 1), np.float32)})
    assert check_seams([found], [truth], [grid(10)], TAXONOMY, INPUTS) is None
    assert check_seams([], [], [], TAXONOMY, INPUTS) is None
