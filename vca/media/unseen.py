"""Pictures that need not be decoded: no sample time falls on them, and no other picture is made from them.

Of common H.264 at two samples a second they are nearly every second picture and a third of the time. The decoder itself
knows which pictures are not referred to (`skip_frame` of FFmpeg); from here comes only where nobody looks. No pixel of
any other picture changes by it. What is damaged is decoded in full: concealing an error may take any picture.
"""

from collections import deque
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideData

from vca.media.container import Media, can_decode, side_data

_N_KNOWN = 32  # more than the 16 pictures by which H.264 and HEVC may reorder
_HVCC_LAYERS_BYTE = 21  # ISO/IEC 14496-15, 8.3.3.1.2


class UnseenPictures:
    """Told each packet in decoding order, sets the decoder to skip the picture or not.

    A picture is on screen until the next one in order of presentation. That one may still be unknown, but some later
    one that was decoded before bounds its time, so whatever is skipped is surely on screen at no sample time.
    """

    def __init__(self, media: Media, times_us: npt.NDArray[np.int64], end_us: int, *, captions: bool) -> None:
        """`times_us`: all sample times of the pass, sorted. Pictures on screen at `end_us` or later are never skipped:
        they belong to a pass that goes on there. `captions`: what rides on the pictures is wanted.
        """
        assert media.video is not None
        self.skipped_too_much = False
        """What came later told that every picture was wanted: the pass must be made again."""
        self._media = media
        self._decoder = media.video.codec_context
        self._times_us = times_us
        self._end_us = end_us
        self._captions = captions
        self._known: deque[int] = deque(maxlen=_N_KNOWN)
        self._has_shown = False
        self._skips = False
        self._has_skipped = False
        self._stopped = False
        self._n_errors = _n_errors()

    def before(self, packet: "av.Packet[Any]", last_us: int | None) -> None:
        """Decide on a packet that is decoded next. `last_us`: time of the last picture that came out."""
        if self._stopped:
            return
        time_us = self._media.packet_time_us(packet)
        if _n_errors() != self._n_errors:
            self.stop()
        elif packet.is_discard:  # decoded, but not shown
            self._set(False)
        elif packet.pts is None or time_us is None or (last_us is not None and time_us <= last_us):
            self.stop()  # times are missing or jump back
        else:
            skips = self._has_shown and self._is_unseen(time_us)
            self._known.append(time_us)
            self._has_skipped |= skips
            self._set(skips)

    def shown(self, frame: av.VideoFrame) -> None:
        """A picture came out. Captions ride on any picture; of fields that are packets of their own, one may be on
        screen at a sample time and the other not.
        """
        self._has_shown = True
        if frame.interlaced_frame or (self._captions and side_data(frame, SideData.A53_CC) is not None):
            self.stop()

    def finish(self) -> None:
        """The pass ends; the decoder may be handed over."""
        self._set(False)
        if _n_errors() != self._n_errors:
            self.stop()

    def stop(self) -> None:
        """Decode all pictures from here on, and if some were skipped before, those too in another pass."""
        self._set(False)
        self._stopped = True
        self.skipped_too_much = self._has_skipped

    def _is_unseen(self, time_us: int) -> bool:
        next_us = min((known_us for known_us in self._known if known_us > time_us), default=None)
        if next_us is None or next_us > self._end_us:
            return False
        if min(self._known) > time_us:
            return False  # maybe the first picture, which stands for the time before it, too
        return bool(np.searchsorted(self._times_us, time_us) == np.searchsorted(self._times_us, next_us))

    def _set(self, skips: bool) -> None:
        if skips != self._skips:  # PyAV looks the name up each time
            self._decoder.skip_frame = "NONREF" if skips else "DEFAULT"
            self._skips = skips


def _n_errors() -> int:
    """How often FFmpeg has complained in this process. A decoder that conceals an error tells it in no other way.

    PyAV counts only while it has a log level: the decoding child sets one.
    """
    return av.logging.get_last_error()[0]


def can_skip(media: Media) -> bool:
    """Whether the decoder's word that nothing refers to a picture can be relied on, and the times of packets too.

    H.264 says it for each picture. HEVC says it for the pictures of the same temporal layer only, so there must be no
    other; streams without a header that says so (MPEG-TS) do not tell.
    """
    if media.video is None or not can_decode(media.video) or media.uses_dts:
        return False
    decoder = media.video.codec_context
    if decoder.name == "hevc":
        header = decoder.extradata or b""
        return len(header) > _HVCC_LAYERS_BYTE and header[0] == 1 and (header[_HVCC_LAYERS_BYTE] >> 3) & 7 == 1
    return decoder.name == "h264"
