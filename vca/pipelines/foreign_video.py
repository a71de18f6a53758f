"""One video of features that somebody else computed, checked: its vectors, their times, its text.

Shape letters: N vectors, D features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vca.core.annotations import TIME_LIMIT_S
from vca.core.errors import ConfigError, one_line
from vca.core.records import FloatArray, TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import US_PER_S, seconds_to_us

MAX_WIDTH = 65_536
MAX_KEY = 1024
MAX_TEXT = 20_000
HALF_MAX = 65_504.0
"""Largest float16: features are stored as that."""
MIN_STEP_S, MAX_STEP_S = 0.001, 3600.0
SLACK_US = 2
"""How far times may lie beside a grid: two roundings to microseconds."""
Spans = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Track:
    """One modality of one video: the vectors that are there, and when."""

    values: FloatArray
    """[N, D]; finite, and within float16."""
    n_steps: int
    """Steps with and without a vector."""
    step_s: float | None
    """Length of a step of an array with a fixed step."""
    positions: npt.NDArray[np.int64] | None = None
    """[N] number of each vector's step, with `step_s`."""
    times: Spans | None = None
    """[N, 2] microseconds, without `step_s`; sorted by start."""
    end: int = 0
    """Microseconds; end of the last of `times`, those without a vector included."""

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    def spans(self, step_us: int) -> Spans:
        """[N, 2] microseconds. A track whose own step is that of the grid lies on the grid, also where its step is no
        whole number of microseconds: vectors stay as they are, and time drifts by at most half a microsecond a step.
        """
        if self.times is None:
            assert self.positions is not None
            return self._scaled(np.stack([self.positions, self.positions + 1], axis=1), step_us)
        fit = self._fit()
        if fit is None or round(fit[0]) != step_us:
            return self.times
        starts, lengths = fit[1] * step_us, self.times[:, 1] - self.times[:, 0]
        lengths = np.where(lengths >= step_us - SLACK_US, step_us, lengths)
        return np.stack([starts, starts + lengths], axis=1)

    def end_us(self, step_us: int) -> int:
        """End of the last step, microseconds, on the clock of `spans`."""
        if self.times is None:
            return int(self._scaled(np.array([self.n_steps]), step_us)[0])
        fit = self._fit()
        if fit is None or round(fit[0]) != step_us:
            return self.end
        whole = int((self.end + SLACK_US) // fit[0])
        rest = self.end - whole * fit[0]
        return whole * step_us + (round(rest) if rest > SLACK_US else 0)

    def _scaled(self, edges: npt.NDArray[np.int64], step_us: int) -> Spans:
        assert self.step_s is not None
        if seconds_to_us(self.step_s) == step_us:
            return np.asarray(edges * step_us, np.int64)
        return np.asarray(np.rint(edges * (self.step_s * US_PER_S)), np.int64)

    def own_step(self) -> tuple[Literal["regular", "single", "irregular"], int]:
        """The step of the track itself, microseconds. A single vector with times says little: it may be a short last
        step.
        """
        if self.times is None:
            assert self.step_s is not None
            return "regular", seconds_to_us(self.step_s)
        if len(self.times) == 1 and self.times[0, 0] == 0:
            return "single", int(self.times[0, 1])
        fit = self._fit()
        return ("irregular", 0) if fit is None else ("regular", round(fit[0]))

    def _fit(self) -> tuple[float, npt.NDArray[np.int64]] | None:
        """The step in microseconds and the number of each vector's step [N], if `times` are a grid from 0 on.

        Times are rounded to microseconds, so a step of a third of a second is met only up to `SLACK_US`.
        """
        assert self.times is not None
        starts, lengths = self.times[:, 0], self.times[:, 1] - self.times[:, 0]
        smallest = int(np.diff(starts).min()) if len(starts) > 1 else 0
        if smallest <= 0:
            return None
        step = float(starts[-1]) / max(1, round(float(starts[-1]) / smallest))
        positions = np.rint(starts / step).astype(np.int64)
        on_grid = np.abs(starts - positions * step) <= SLACK_US
        whole = np.abs(lengths[:-1] - step) <= SLACK_US
        if not (on_grid.all() and whole.all() and lengths[-1] <= step + SLACK_US and (np.diff(positions) > 0).all()):
            return None
        return step, positions


@dataclass(frozen=True, slots=True)
class ForeignVideo:
    """One video as its file gives it."""

    where: str
    """File, and key in a Parquet file, for messages."""
    key: str
    tracks: Mapping[str, Track]
    text: tuple[TextPiece, ...] = ()

    def end_us(self, step_us: int) -> int:
        return max(track.end_us(step_us) for track in self.tracks.values())


def make_video(where: str, key: str, tracks: Mapping[str, Track], text: list[TextPiece]) -> ForeignVideo:
    """The video with its text in order of time; a key that tables and logs cannot show is refused."""
    if not key or len(key) > MAX_KEY or not key.isprintable():
        raise ConfigError(f"{where}: key {one_line(ascii(key))} is empty, too long or not printable; give another")
    order = sorted(text, key=lambda p: (p.start_us, p.end_us, p.source, p.text or "", p.language or ""))
    return ForeignVideo(where, key, tracks, tuple(order))


def timed_track(kept: FloatArray, times_s: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_], name: str) -> Track:
    """Vectors [N, D] that are there, of steps with times [M, 2] in seconds of which the mask [M] tells N."""
    starts, ends = times_s[:, 0], times_s[:, 1]
    good = (starts >= 0) & (ends <= TIME_LIMIT_S) & (ends > starts)  # false for NaN
    spans = np.rint(np.where(good[:, None], times_s, 0.0) * US_PER_S).astype(np.int64)
    good &= spans[:, 1] > spans[:, 0]
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ConfigError(
            f"{name}: times {row} = [{starts[row]:g}, {ends[row]:g}]; they start at 0 or later and end after"
        )
    order = np.lexsort((spans[mask][:, 1], spans[mask][:, 0]))
    return Track(kept[order], len(spans), None, times=spans[mask][order], end=int(spans[:, 1].max()))


def checked_values(values: npt.NDArray[Any], name: str) -> FloatArray:
    """Vectors [N, D] as float32; what float16 cannot hold is refused."""
    if values.shape[1] > MAX_WIDTH:
        raise ConfigError(f"{name} is {values.shape[1]} wide; the limit is {MAX_WIDTH}")
    if not np.isfinite(values).all():
        raise ConfigError(f"{name} holds NaN or infinity; mend them, or mask their steps out with a mask")
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if largest > HALF_MAX:
        raise ConfigError(f"{name} holds {largest:g}, beyond {HALF_MAX:g} of float16; scale the features down")
    return values.astype(np.float32)


PIECE = ("start_s", "end_s", "text", "source", "language")


def text_piece(row: Any, where: str) -> TextPiece:
    """One object with start_s, end_s, text and perhaps source and language."""
    if not isinstance(row, dict) or set(row) - set(PIECE):
        raise ConfigError(f"{where}: must be an object with {', '.join(PIECE)} and nothing else")
    times = [t for name in ("start_s", "end_s") if isinstance(t := row.get(name), int | float) and t is not True]
    if len(times) != 2 or not all(0 <= t <= TIME_LIMIT_S for t in times):
        raise ConfigError(f"{where}: start_s and end_s must be seconds, 0 or later")
    start_us, end_us = (seconds_to_us(float(t)) for t in times)
    if end_us <= start_us:
        raise ConfigError(f"{where}: ends at {times[1]:g} s, not after its start")
    source, language, text = row.get("source") or str(TextSource.SIDECAR), row.get("language"), row.get("text")
    if source not in list(TextSource):
        raise ConfigError(f"{where}: source {one_line(ascii(source))} is unknown; use {', '.join(TextSource)}")
    for name, value in (("text", text), ("language", language)):
        if value is not None and not (isinstance(value, str) and len(value) <= MAX_TEXT and _encodes(value)):
            raise ConfigError(f"{where}: {name} must be text of at most {MAX_TEXT} characters")
    if (text is None) != (source == TextSource.SPEECH):
        raise ConfigError(f"{where}: only pieces of source speech are without text; give the text")
    return TextPiece(start_us, end_us, TextSource(source), text, language=language)


def _encodes(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is None
