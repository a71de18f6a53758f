"""Pictures by presentation time: which frame is on screen at each sample time, upright, in RGB, at the wanted size.

Colours: the matrix (BT.601, 709, 2020) and range that the stream declares are applied; a stream that declares no matrix
is taken as BT.601, FFmpeg's own convention, because the pretrained encoders were fed by it. HDR is not tone-mapped: PQ
and HLG pictures look flat and keep their transfer function. Transparency is dropped.

PyAV's pictures are scaled out of the decoder's own pixel format in one go, with colour at full resolution: half the
error and less than half the cost of converting them to RGB first (decision 0022). decord hands out RGB at full size
only.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Interpolation, VideoReformatter

from vca.media.container import even, memory_is_short, side_data

_LONGEST_TOLERANCE_US = 250_000
_FOREVER_US = 1 << 62
# Without the two flags swscale gives colours at half the width, and white as 253.
_SCALING = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

Rgb = npt.NDArray[np.uint8]  # [H, W, 3]
Matrix = tuple[int, int, int, int]  # a, b, c, d of x' = a x + c y, y' = b x + d y


class Picture(Protocol):
    """A decoded picture whose pixels are fetched only if somebody looks at it."""

    @property
    def matrix(self) -> Matrix | None: ...

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as coded, not turned."""

    def scaled(self, reformatter: VideoReformatter, width: int, height: int) -> av.VideoFrame:
        """RGB24, not turned."""


class PyavPicture:
    __slots__ = ("_frame",)

    def __init__(self, frame: av.VideoFrame) -> None:
        self._frame = frame

    @property
    def matrix(self) -> Matrix | None:
        return orientation(self._frame)

    @property
    def size(self) -> tuple[int, int]:
        return self._frame.width, self._frame.height

    def scaled(self, reformatter: VideoReformatter, width: int, height: int) -> av.VideoFrame:
        return reformatter.reformat(
            self._frame, width=width, height=height, format="rgb24", interpolation=_SCALING, threads=1
        )


class DecordError(Exception):
    """decord could not decode a frame that the packets promise."""


class DecordPicture:
    __slots__ = ("_index", "_reader")

    def __init__(self, reader: Any, index: int) -> None:
        self._reader = reader
        self._index = index

    @property
    def matrix(self) -> Matrix | None:
        return None  # turned pictures are left to PyAV

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self._pixels().shape
        return width, height

    def scaled(self, reformatter: VideoReformatter, width: int, height: int) -> av.VideoFrame:
        picture = av.VideoFrame.from_ndarray(self._pixels(), format="rgb24")
        return reformatter.reformat(picture, width=width, height=height, interpolation=_SCALING, threads=1)

    def _pixels(self) -> Rgb:
        import decord

        try:
            return np.asarray(self._reader[self._index].asnumpy(), dtype=np.uint8)
        except decord.DECORDError as error:
            if memory_is_short():
                raise MemoryError from error
            raise DecordError(str(error)) from error


class Shaper:
    """Brings pictures of any size to one upright size [height, width]. A picture of another shape is stretched."""

    def __init__(self, height: int, width: int) -> None:
        self.height = height
        self.width = width
        self._reformatter = VideoReformatter()

    def __call__(self, picture: Picture) -> Rgb:
        matrix = picture.matrix
        turned = matrix is not None and _swaps_axes(matrix)
        width, height = (self.height, self.width) if turned else (self.width, self.height)
        scaled = picture.scaled(self._reformatter, width, height)
        return turn_upright(np.asarray(scaled.to_ndarray(), dtype=np.uint8), matrix)


class ScreenSampler:
    """Gives every sample time the frame on screen: the one with the greatest presentation time at or before it.

    Frames come in presentation order with `show`; `take(indices, picture, time_us)` gets each frame in use, once.
    Times before the first frame get it if `hold_before_us` says so (a stream that starts a little late).
    """

    def __init__(
        self,
        times_us: npt.NDArray[np.int64],
        take: Callable[[range, Picture, int], None],
        *,
        hold_before_us: int | None,
        stale_after_us: int,
    ) -> None:
        """`hold_before_us`: a first frame before this time also covers earlier sample times; None means always.

        `stale_after_us`: after damage, a frame older than this is not taken for what is on screen.
        """
        self._times = times_us
        self._take = take
        self._hold_before_us = hold_before_us
        self._stale_after_us = stale_after_us
        self._next = 0  # first sample without an answer
        self._shown: Picture | None = None
        self._shown_us = 0
        self._duration_us = 0
        self._damaged = False
        self.first_us: int | None = None

    @property
    def times_us(self) -> npt.NDArray[np.int64]:
        return self._times

    @property
    def done(self) -> bool:
        return self._next >= len(self._times)

    @property
    def end_us(self) -> int:
        """Until when the last frame is known to be on screen."""
        return self._shown_us + self._duration_us

    def damage(self) -> None:
        """A packet was lost here: what the last frame shows may be out of date."""
        self._damaged = True

    def show(self, picture: Picture, time_us: int, duration_us: int) -> None:
        if self._shown is None:
            self.first_us = time_us
            if self._hold_before_us is None or time_us < self._hold_before_us:
                self._assign(time_us, picture, time_us)
            else:
                self._next = int(np.searchsorted(self._times, time_us, "left"))
        else:
            self._assign(self._fresh_until(time_us), self._shown, self._shown_us)
            self._next = max(self._next, int(np.searchsorted(self._times, time_us, "left")))
        self._shown, self._shown_us, self._duration_us = picture, time_us, duration_us
        self._damaged = False

    def hold_until(self, end_us: int) -> None:
        """The last frame shown is good until `end_us` at least."""
        if self._shown is not None:
            self._duration_us = max(self._duration_us, end_us - self._shown_us)

    def finish(self, *, at_end: bool) -> None:
        """No more frames: at the end of the stream, or because the rest is of no interest."""
        if self._shown is not None:
            # One frame of tolerance: durations are rounded, and the last frame often carries none.
            end_us = self.end_us + min(self._duration_us, _LONGEST_TOLERANCE_US) if at_end else _FOREVER_US
            self._assign(self._fresh_until(end_us), self._shown, self._shown_us)

    def _fresh_until(self, end_us: int) -> int:
        if not self._damaged:
            return end_us
        return min(end_us, self._shown_us + max(self._stale_after_us, 2 * self._duration_us))

    def _assign(self, end_us: int, picture: Picture, time_us: int) -> None:
        end = int(np.searchsorted(self._times, end_us, "left"))
        if end > self._next:
            self._take(range(self._next, end), picture, time_us)
            self._next = end


def orientation(frame: av.VideoFrame) -> Matrix | None:
    """The display matrix as four signs (ISO/IEC 14496-12, 8.3.2), or None for an upright picture.

    Only quarter turns and mirrors are applied; any other angle counts as the nearest of them.
    """
    found = side_data(frame, SideData.DISPLAYMATRIX)
    if found is None or len(found) < 36:
        return None
    a, b, _, c, d = np.frombuffer(found, dtype=np.int32)[:5].tolist()
    is_turned = abs(a) + abs(d) < abs(b) + abs(c)
    matrix = (0, _sign(b), _sign(c), 0) if is_turned else (_sign(a), 0, 0, _sign(d))
    return None if matrix == (1, 0, 0, 1) else matrix


def clockwise_turn(matrix: Matrix | None) -> int:
    """0, 90, 180 or 270 degrees; a mirrored picture counts as its turn."""
    if matrix is None:
        return 0
    a, b, _, _ = matrix
    if a:
        return 0 if a > 0 else 180
    return 90 if b > 0 else 270


def turn_upright(image: Rgb, matrix: Matrix | None) -> Rgb:
    if matrix is None:
        return image
    a, b, c, d = matrix
    if a:
        return image[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    # x' = c y, y' = b x: rows become columns, then mirrors where the sign is negative
    return image.transpose(1, 0, 2)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]


def display_size(
    width: int, height: int, sample_aspect_ratio: Fraction | None, matrix: Matrix | None = None
) -> tuple[int, int]:
    """Upright size (width, height) with square pixels; the taller of the two ways to square a pixel is never taken."""
    ratio = sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 16) <= ratio <= 16:
        ratio = Fraction(1)  # nonsense in a header
    width = max(1, round(width * ratio))
    return (height, width) if matrix is not None and _swaps_axes(matrix) else (width, height)


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height), both even, with the given short side and the same aspect."""
    scale = short_side / min(width, height)
    return even(width * scale), even(height * scale)


def decord_reader(
    path: str, times_us: Sequence[int], key_indices: Sequence[int], zero_us: int, size: tuple[int, int]
) -> Any | None:
    """A decord reader whose own index agrees with the scanned packets, else None.

    `times_us` are the sorted presentation times on our clock, `key_indices` the places of key frames among them; `size`
    is (width, height) of the first picture. decord indexes packets: where packets and pictures do not match one to one
    it repeats or drops frames without a word. It numbers key frames in decoding order: where pictures that come later
    in the file are shown before a key frame (open GOPs), it seeks to the wrong place and shows the wrong picture.
    """
    import decord

    try:
        reader = decord.VideoReader(path, num_threads=1)
        stamps = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        first = reader[0]
    except (decord.DECORDError, AssertionError, RuntimeError) as error:
        if memory_is_short():
            raise MemoryError from error
        return None
    expected = (np.asarray(times_us, dtype=np.float64) + zero_us) / 1e6
    if list(reader.get_key_indices()) != list(key_indices):
        return None
    if len(stamps) != len(expected) or not np.allclose(stamps, expected, rtol=0, atol=2e-4):
        return None
    return reader if (first.shape[1], first.shape[0]) == size else None


def _swaps_axes(matrix: Matrix) -> bool:
    return matrix[0] == 0


def _sign(value: int) -> int:
    return -1 if value < 0 else 1
