"""Opening a container safely, choosing its streams, and telling what is wrong with bytes that do not open.

Only demuxers of the list below may run. FFmpeg guesses playlists (HLS, DASH, concat) and text formats from content;
a playlist would make the child open other files, a text file would become "video".
"""

import math
import resource
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import av.container
import av.stream
import av.subtitles.stream
from av.audio.stream import AudioStream
from av.sidedata.sidedata import SideDataContainer, Type
from av.stream import Disposition
from av.video.stream import VideoStream

from vca.core.errors import ErrorCode, MediaError, one_line
from vca.core.timeline import US_PER_S, ticks_to_us

_DEMUXERS = (
    "mov matroska avi mpegts mpeg mpegvideo m4v h264 hevc vvc av1 obu ivf vc1 vc1test dirac evc avs2 avs3 cavsvideo "
    "flv live_flv asf asf_o wtv mxf gxf nut nsv rm ogg dv h261 h263 mjpeg ingenient gif apng amv "
    "yuv4mpegpipe swf bink smk roq 3dostr 4xm nuv pva pmp ivr r3d mlv ty lmlm4 "
    "mp3 aac ac3 eac3 ac4 dts dtshd truehd mlp loas latm flac wav w64 aiff caf au amr amrnb amrwb ape tta wv tak mpc "
    "mpc8 voc gsm oma shn dsf iff qcp xwma sox spdif act daud bonk osq qoa aa aax"
)
"""FFmpeg names of the containers that hold audio or video."""

_ESTIMATED_DURATION = (
    "mpegts mpeg mpegvideo mp3 aac ac3 eac3 ac4 dts dtshd truehd mlp loas latm m4v h264 hevc vvc av1 obu vc1 mjpeg "
    "cavsvideo dirac dv amr amrnb amrwb gif"
)
"""Containers without a duration in the header: FFmpeg guesses one from the bit rate or from timestamps at the end."""

DTS_ONLY = frozenset({"avi"})
"""Containers that store decoding times only; presentation times that FFmpeg derives for B-frames are unreliable."""

_MAGIC: tuple[tuple[int, bytes], ...] = (
    *((4, box) for box in (b"ftyp", b"moov", b"moof", b"mdat", b"styp", b"sidx", b"wide", b"free", b"skip", b"pnot")),
    (0, b"\x1a\x45\xdf\xa3"),  # EBML: Matroska, WebM
    (0, b"RIFF"),
    (0, b"RF64"),
    (0, b"OggS"),
    (0, b"FLV\x01"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG video
    (0, b"\x06\x0e\x2b\x34"),  # MXF
    (0, b"ID3"),
    (0, b"fLaC"),
    (0, b"GIF8"),
    (0, b"FORM"),
    (0, b"#!AMR"),
    (0, b"DKIF"),
    (0, b".RMF"),
)
HEAD_BYTES = 4096
_STATM = Path("/proc/self/statm")
_SHORT_OF_MEMORY = 0.8


class SeekableFile(Protocol):
    """What FFmpeg needs of a Python file; `read` must not return more than asked for."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(slots=True)
class Media:
    """An opened container and the streams that are read from it. Closed by `close`."""

    container: av.container.InputContainer
    video: VideoStream | None  # the main one, cover art excluded; may lack a decoder, see `can_decode`
    audio: AudioStream | None
    subtitles: list[av.subtitles.stream.SubtitleStream]
    n_video: int
    n_audio: int
    zero_us: int  # container start: the zero of the presentation clock
    format: str = field(init=False)
    uses_dts: bool = field(init=False)
    _time_bases: dict[int, Fraction] = field(init=False, default_factory=dict)
    _closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        # Asked for with every packet, and PyAV makes a new object of each answer.
        self.format = self.container.format.name
        self.uses_dts = self.format in DTS_ONLY

    @property
    def duration_is_declared(self) -> bool:
        return self.format not in _ESTIMATED_DURATION.split()

    def time_base(self, stream_index: int) -> Fraction:
        """Seconds of a tick of a stream; a microsecond where the container does not say."""
        found = self._time_bases.get(stream_index)
        if found is None:
            found = self.container.streams[stream_index].time_base or Fraction(1, US_PER_S)
            self._time_bases[stream_index] = found
        return found

    def bytes_until(self, time_us: int) -> list[int]:
        """Where in the file the packets before `time_us` on the clock end, for each stream with an index that says.

        Empty without one, and once closed: PyAV would read the index that is gone.
        """
        ends: list[int] = []
        for stream in () if self._closed else (self.video, self.audio):
            if stream is None or not stream.time_base:
                continue
            ticks = int((time_us + self.zero_us) / US_PER_S / stream.time_base)
            entries = stream.index_entries
            number = entries.search_timestamp(ticks, backward=False, any_frame=True)
            if 0 <= number < len(entries):
                ends.append(entries[number].pos + entries[number].size)
        return ends

    def packet_time_us(self, packet: "av.Packet[Any]") -> int | None:
        """Presentation time of a packet on the clock; decoding time where the container knows no other."""
        ticks = packet.dts if self.uses_dts or packet.pts is None else packet.pts
        return None if ticks is None else self.to_clock(ticks, packet.stream_index)

    def packet_duration_us(self, packet: "av.Packet[Any]") -> int:
        """0 where the container does not say."""
        return ticks_to_us(packet.duration, self.time_base(packet.stream_index)) if packet.duration else 0

    def to_clock(self, ticks: int, stream_index: int) -> int:
        return ticks_to_us(ticks, self.time_base(stream_index)) - self.zero_us

    def close(self) -> None:
        self._closed = True
        self.container.close()


def side_data(frame: av.VideoFrame, kind: Type) -> bytes | None:
    """What rides on a decoded picture, such as captions or a turn.

    `frame.side_data` keeps what it hands out in the frame, which makes a reference cycle: the picture stays until
    Python looks for garbage. That held a gigabyte of 1080p pictures, and decoders took fresh memory for each.
    """
    make: Any = SideDataContainer  # the stubs take it for something that only PyAV makes
    found = make(frame).get(kind)
    return None if found is None else bytes(found)


def can_decode(stream: av.stream.Stream | None) -> bool:
    return stream is not None and stream.codec_context is not None


def open_media(file: str | SeekableFile, head: bytes, size_bytes: int, max_pixels: int) -> Media:
    """Open a local path or a file object; `head` is its first `HEAD_BYTES`.

    Raises `MediaError`: empty_file, not_media, header_damaged, no_stream, unsupported_codec, too_many_pixels.
    """
    if size_bytes == 0:
        raise MediaError(ErrorCode.EMPTY_FILE, "the object has no bytes")
    try:
        container = av.open(
            f"file:{file}" if isinstance(file, str) else file,  # "file:" keeps a name like http:x from being a protocol
            mode="r",
            metadata_errors="replace",
            buffer_size=256 * 1024,
            # max_pixels reaches the decoders that look for stream parameters, before our own check below can
            options={"max_pixels": str(max_pixels)},
            container_options={"format_whitelist": _DEMUXERS.replace(" ", ","), "protocol_whitelist": "file"},
        )
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise _open_failure(error, head) from error
    media = _choose_streams(container)
    try:
        _check_streams(media, max_pixels)
    except MediaError:
        media.close()
        raise
    return media


def _choose_streams(container: av.container.InputContainer) -> Media:
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    audios = list(container.streams.audio)
    best_video, best_audio = container.streams.best("video"), container.streams.best("audio")
    zero_us: int | None = container.start_time  # None for some raw streams, whatever the stubs say
    return Media(
        container=container,
        video=best_video if best_video in videos else _first_decodable(videos),
        audio=best_audio if best_audio in audios else _first_decodable(audios),
        subtitles=list(container.streams.subtitles),
        n_video=len(videos),
        n_audio=len(audios),
        zero_us=zero_us or 0,
    )


def _first_decodable(streams: list[Any]) -> Any:
    return next((s for s in streams if can_decode(s)), streams[0] if streams else None)


def _check_streams(media: Media, max_pixels: int) -> None:
    if media.video is None and media.audio is None:
        raise MediaError(ErrorCode.NO_STREAM, f"the container ({media.format}) holds no audio or video stream")
    if not can_decode(media.video) and not can_decode(media.audio):
        raise MediaError(ErrorCode.UNSUPPORTED_CODEC, "no decoder for any of the audio and video streams")
    if media.video is not None and can_decode(media.video):
        context = media.video.codec_context
        context.thread_count = 1
        # A later picture may be larger than the header says: FFmpeg checks every one against this.
        context.options = {"max_pixels": str(max_pixels)}
        if (context.width or 0) * (context.height or 0) > max_pixels:
            message = f"picture of {context.width}x{context.height} is above decode.max_pixels = {max_pixels}"
            raise MediaError(ErrorCode.TOO_MANY_PIXELS, message)
    if media.audio is not None and can_decode(media.audio):
        media.audio.codec_context.thread_count = 1


def _open_failure(error: Exception, head: bytes) -> MediaError:
    if isinstance(error, av.error.DecoderNotFoundError | av.error.DemuxerNotFoundError):
        return MediaError(ErrorCode.UNSUPPORTED_CODEC, one_line(str(error.strerror)))
    if any(head[at : at + len(magic)] == magic for at, magic in _MAGIC) or _is_transport_stream(head):
        return MediaError(ErrorCode.HEADER_DAMAGED, f"a known container that does not open: {_reason(error)}")
    return MediaError(ErrorCode.NOT_MEDIA, "the content is no audio or video container")


def _is_transport_stream(head: bytes) -> bool:
    return any(
        len(head) >= start + 5 * packet and all(head[start + k * packet] == 0x47 for k in range(5))
        for packet, start in ((188, 0), (192, 4), (204, 0))
    )


def _reason(error: Exception) -> str:
    """The decoder's words without the path, which is of no use in a table."""
    return one_line(getattr(error, "strerror", None) or str(error))


def decoder_message(error: Exception) -> str:
    return _reason(error)


def even(value: float) -> int:
    """Nearest even size, at least 2."""
    return max(2, 2 * math.floor(value / 2 + 0.5))


def memory_is_short() -> bool:
    """Whether this process is close to its limit of private memory (RLIMIT_DATA)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY or not _STATM.exists():
        return False
    data_pages = int(_STATM.read_text(encoding="ascii").split()[5])
    return data_pages * resource.getpagesize() > _SHORT_OF_MEMORY * limit
