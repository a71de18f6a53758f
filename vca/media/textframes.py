"""Frames worth reading text from."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vca.core.timeline import Span


class TextFramePicker:
    """Chooses few frames of a segment for text recognition."""

    def __init__(self, span: Span, per_minute: float, height: int) -> None:
        self._span = span
        self._per_minute = per_minute
        self._height = height

    def offer(
        self, time_us: int, gray: npt.NDArray[np.uint8], fetch: Callable[[], npt.NDArray[np.uint8]]
    ) -> None:
        """Show one sampled frame: its small luma [h, w]; `fetch()` gives the RGB picture [H, W, 3] if it is chosen."""

    def result(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Chosen frames [M, h, w, 3] RGB and their spans [M, 2] in microseconds."""
        return np.zeros((0, self._height, 0, 3), np.uint8), np.zeros((0, 2), np.int64)
