"""Whether the places where windows of a long video meet are judged as well as the rest.

Shape letters: S steps of a video.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vca.core.annotations import VideoTruth
from vca.core.metrics import Bools, Ints, brier_score, step_mask
from vca.core.records import FloatArray, VideoLogits
from vca.core.taxonomy import TaskKind, Taxonomy
from vca.models.fusion_inputs import InputsConfig, window_starts


@dataclass(frozen=True, slots=True)
class SeamCheck:
    """Brier scores of step probabilities (lower is better) where windows overlap, and where one window stands alone."""

    at_seams: float
    inside: float
    n_at_seams: int
    """Pairs of step and label in steps that several windows see, over all videos of several windows."""
    n_inside: int


def check_seams(
    probabilities: Sequence[VideoLogits],
    truths: Sequence[VideoTruth],
    steps: Sequence[Ints],
    taxonomy: Taxonomy,
    inputs: InputsConfig,
) -> SeamCheck | None:
    """Compare both places, over all labels in time of annotated videos. None where no video has two windows.

    The three sequences are parallel; probabilities are calibrated, steps [S, 2] in microseconds.
    """
    scores: dict[bool, list[FloatArray]] = {True: [], False: []}
    outcomes: dict[bool, list[Bools]] = {True: [], False: []}
    for found, truth, grid in zip(probabilities, truths, steps, strict=True):
        seam = seam_steps(grid, inputs)
        if not seam.any():
            continue
        for task in taxonomy.tasks:
            if task.kind not in (TaskKind.SPAN, TaskKind.STEP) or task.name not in truth.events:
                continue
            for j, label in enumerate(task.label_names()):
                held = step_mask([e.span for e in truth.events[task.name] if e.label == label], grid)
                for at_seam in (True, False):
                    scores[at_seam].append(found.steps[task.name][seam == at_seam, j])
                    outcomes[at_seam].append(held[seam == at_seam])
    if not scores[True]:
        return None
    both = {at: (np.concatenate(scores[at]), np.concatenate(outcomes[at])) for at in (True, False)}
    return SeamCheck(
        at_seams=brier_score(*both[True]),
        inside=brier_score(*both[False]),
        n_at_seams=len(both[True][0]),
        n_inside=len(both[False][0]),
    )


def seam_steps(steps: Ints, inputs: InputsConfig) -> Bools:
    """Which steps [S] more than one window sees."""
    if not len(steps):
        return np.zeros(0, np.bool_)
    step_us = int(steps[0, 1] - steps[0, 0])
    length = inputs.window_steps(step_us)
    seen = np.zeros(len(steps), np.int64)
    for first in window_starts(len(steps), step_us, inputs):
        seen[first : first + length] += 1
    return seen > 1
