"""Shots from sampled frames."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vca.core.timeline import Span


def find_shots(
    frames: npt.NDArray[np.uint8], times_us: npt.NDArray[np.int64], span: Span, mask: npt.NDArray[np.bool_]
) -> tuple[Span, ...]:
    """Shots that cover `span` without gaps, from sampled frames [S, H, W, 3] RGB at times [S]; mask [S] marks real frames."""
    return (span,)


def join_shots(per_segment: Sequence[Sequence[Span]]) -> tuple[Span, ...]:
    """Shots of a whole video from those of its segments, in order."""
    return tuple(shot for shots in per_segment for shot in shots)
