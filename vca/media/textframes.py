"""Chooses the few frames worth reading text from: reading one costs as much time as decoding many seconds of video.

Text that is meant to be read stands still while the picture behind it moves. So the picture is cut into small tiles,
and a tile counts when it is full of strokes (steps of luma), has the same strokes as in the sample before, and others
than two samples before and than in the frames chosen so far. A frame is chosen when some such tiles lie side by side.
One frame of every still shot passes too, which is wanted: there may be signs. Text that never stands still (a clock
with fractions of a second, a crawl) and text that takes more than two samples to fade in is not found so: a segment
in which nothing was chosen by its middle gives one frame that has lines of strokes at all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vca.core.timeline import Span

Image = npt.NDArray[np.uint8]
Tiles = npt.NDArray[np.bool_]  # [h // 8, w // 16]

STROKE_STEP = 24  # smallest step of luma across a stroke; subtitles have 100 and more, a thin white title on sky 30
TILE = (8, 16)  # height and width in pixels of the small luma, about two letters of a subtitle
TILE_DENSITY = 0.08  # share of stroke pixels that makes a tile look like text
STILL = 0.7  # correlation from which on the strokes of a tile stood still; the rest is what moves behind the letters
SAME = 0.6  # correlation from which on they are not new; other text in the same line reaches 0.5
NOISE = 16.0  # variance of the steps in a flat, compressed tile
RUN = 3  # tiles side by side: letters come in lines
MIN_TILES = 4  # in such runs, about a word
SHORT_US = 1_000_000  # a video this short may have one sample only, and nothing stands still in that
GONE = 0.5  # a text is gone when more than this share of its tiles is
BURST = 4  # frames that may be chosen at once at the start of a segment
IDLE_US = 15_000_000
"""Without any new text, one frame in this time is looked at, if the budget has some to spare."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is compared of a sample."""

    shape: tuple[int, ...]  # of the luma
    steps: npt.NDArray[np.float32]  # [h // 8, w // 16, 128] steps in a tile, less their mean
    variance: npt.NDArray[np.float32]  # [h // 8, w // 16]
    dense: Tiles


@dataclass(slots=True)
class _Chosen:
    picture: Image
    look: _Look
    tiles: Tiles  # those that made it worth reading
    start_us: int
    end_us: int | None = None


class TextFramePicker:
    """Picks frames of one segment, at most `per_minute` a minute, and tells how long their text stays."""

    def __init__(self, span: Span, per_minute: float, height: int) -> None:
        assert per_minute > 0
        assert height > 0
        self._span = span
        self._height = height
        self._budget = max(1, math.ceil(per_minute * span.duration_us / 60_000_000))
        self._burst = min(self._budget, BURST)
        self._chosen: list[_Chosen] = []
        self._before: _Look | None = None
        self._two_before: _Look | None = None
        self._missed: Tiles | None = None  # new tiles for which there was no budget
        self._time_us = span.start_us  # of the sample before

    def offer(self, time_us: int, gray: Image, fetch: Callable[[], Image]) -> None:
        """Show one sample, in order of time: its small luma [h, w]. `fetch()` gives its RGB [H, W, 3] if chosen."""
        look, before = _look(gray), self._before
        if before is not None and before.shape != look.shape:  # a stream may change its size
            before = self._two_before = self._missed = None
        for chosen in self._chosen:
            if chosen.end_us is None and not _still_shown(chosen, look):
                chosen.end_us = time_us
        if before is None:
            new = look.dense & (self._span.duration_us <= SHORT_US)
        else:
            still = look.dense & (_correlation(look, before) >= STILL)
            new = still.copy()
            known = [self._two_before, *(chosen.look for chosen in self._chosen if chosen.end_us is None)]
            for earlier in known:
                if earlier is not None:
                    new &= _correlation(look, earlier) < SAME
            if self._missed is not None:
                new |= self._missed & still
        new = _in_lines(new)
        is_new = int(new.sum()) >= MIN_TILES
        tokens = self._tokens(time_us)
        last_us = self._chosen[-1].start_us if self._chosen else self._span.start_us
        idle = time_us - last_us >= IDLE_US and tokens >= 2
        if (is_new and tokens >= 1) or idle or self._last_chance(time_us, look):
            # Strokes that stood still were there at the sample before, too.
            start_us = self._time_us if is_new and before is not None else time_us
            self._chosen.append(_Chosen(self._fit(fetch()), look, new, max(start_us, self._span.start_us)))
            self._missed = None
        else:
            self._missed = new if is_new else None  # still new at the next sample, if it is still there
        self._before, self._two_before, self._time_us = look, before, time_us

    def _last_chance(self, time_us: int, look: _Look) -> bool:
        late = 2 * (time_us - self._span.start_us) >= self._span.duration_us
        return late and not self._chosen and int(_in_lines(look.dense).sum()) >= MIN_TILES

    def result(self) -> tuple[Image, npt.NDArray[np.int64]]:
        """Pictures [M, h, w, 3] RGB, h at most `height`, and from when until when their text was on screen, [M, 2] us.

        The spans are as exact as the samples are dense. Those of texts shown together overlap.
        """
        if not self._chosen:
            return np.zeros((0, self._height, self._height, 3), np.uint8), np.zeros((0, 2), np.int64)
        spans = [
            (chosen.start_us, max(self._span.end_us if chosen.end_us is None else chosen.end_us, chosen.start_us + 1))
            for chosen in self._chosen
        ]
        return np.stack([chosen.picture for chosen in self._chosen]), np.array(spans, dtype=np.int64)

    def _tokens(self, time_us: int) -> int:
        """Frames that may still be chosen now: a burst at the start, the rest of the budget spread evenly."""
        passed = min(max(time_us - self._span.start_us, 0) / self._span.duration_us, 1.0)
        return self._burst + math.floor((self._budget - self._burst) * passed + 0.5) - len(self._chosen)

    def _fit(self, picture: Image) -> Image:
        height, width = picture.shape[:2]
        if self._chosen:  # a stream may change its size
            height, width = self._chosen[0].picture.shape[:2]
        elif height > self._height:
            height, width = self._height, max(1, round(width * self._height / height))
        if picture.shape[:2] == (height, width):
            return picture.copy()  # the caller may use the memory again
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _look(gray: Image) -> _Look:
    wide = gray.astype(np.int16)
    step = np.zeros(gray.shape, dtype=np.float32)
    step[:, 1:-1] = np.abs(wide[:, 2:] - wide[:, :-2])
    dense = _cut(step >= STROKE_STEP).mean(axis=2) >= TILE_DENSITY
    # Blurred by a pixel, as compression and resampling move strokes a little.
    tiles = _cut(np.asarray(cv2.blur(step, (3, 3)), dtype=np.float32))
    steps = tiles - tiles.mean(axis=2, keepdims=True)
    return _Look(gray.shape, steps, np.asarray((steps**2).mean(axis=2), dtype=np.float32), dense)


def _cut(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pixels [h, w] as tiles [h // 8, w // 16, 128]; what is left over at the right and below is not looked at."""
    height, width = (size // tile * tile for size, tile in zip(pixels.shape, TILE, strict=True))
    tiled = pixels[:height, :width].reshape(height // TILE[0], TILE[0], width // TILE[1], TILE[1])
    return tiled.transpose(0, 2, 1, 3).reshape(height // TILE[0], width // TILE[1], TILE[0] * TILE[1])


def _correlation(a: _Look, b: _Look) -> npt.NDArray[np.float32]:
    """Correlation of the strokes tile by tile; noise in flat tiles counts as none."""
    product = np.einsum("ijk,ijk->ij", a.steps, b.steps) / a.steps.shape[2]
    return np.asarray(product / np.sqrt((a.variance + NOISE) * (b.variance + NOISE)), dtype=np.float32)


def _still_shown(chosen: _Chosen, look: _Look) -> bool:
    if look.shape != chosen.look.shape or not chosen.tiles.any():
        return False
    return float((_correlation(look, chosen.look)[chosen.tiles] >= SAME).mean()) >= 1 - GONE


def _in_lines(tiles: Tiles) -> Tiles:
    """The tiles that have others side by side, three in a row at least."""
    lines = np.zeros_like(tiles)
    for column in range(tiles.shape[1] - RUN + 1):
        window = slice(column, column + RUN)
        lines[:, window] |= tiles[:, window].all(axis=1, keepdims=True)
    return lines
