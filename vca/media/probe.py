"""What a file holds: streams, sizes, rates and how long it really is. Runs in the decoding child."""

from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import av
import numpy as np

from vca.core.errors import ErrorCode, MediaError
from vca.core.timeline import US_PER_S
from vca.media.container import Media, can_decode
from vca.media.frames import clockwise_turn, display_size, orientation

HDR_TRANSFERS = (16, 18)
"""SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG), numbers of ITU-T H.273."""

_LARGEST_FPS = 10_000.0
"""Beyond what cameras do; a damaged header says anything."""
_TRIAL_PACKETS = 64
"""Packets given to a decoder before the probe does without a decoded picture."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """Fields of `schemas.MEDIA_INFO`. Sizes are those of the upright picture with square pixels."""

    duration_us: int
    declared_duration_us: int | None
    container: str
    video_codec: str | None
    audio_codec: str | None
    width: int | None
    height: int | None
    rotation: int | None
    """Degrees clockwise that turn the coded picture upright."""
    fps: float | None
    variable_fps: bool | None
    hdr: bool | None
    has_video: bool
    has_audio: bool
    n_video_streams: int
    n_audio_streams: int
    n_subtitle_streams: int
    n_frames: int | None
    """Packets with pictures; None where the file was not scanned."""

    def to_row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "MediaInfo":
        return cls(**row)


@dataclass(slots=True)
class _Scan:
    """What demuxing showed."""

    video_times: "array[int]"
    video_end_us: int = 0
    extent_us: int = 0
    n_packets: int = 0
    n_encrypted: int = 0
    complete: bool = False
    picture: av.VideoFrame | None = None


def probe_media(media: Media, *, scan_all: bool, max_duration_h: float) -> MediaInfo:
    """Demux (all packets, or only up to the first picture) and decode at most one picture.

    Raises `MediaError`: no_frames, encrypted, too_long. Undecodable packets are left to the reader, which tries all of
    them.
    """
    scan = _scan(media, scan_all)
    if scan.n_packets == 0:
        raise MediaError(ErrorCode.NO_FRAMES, "streams are declared but there is not a single packet")
    if scan.n_encrypted == scan.n_packets:
        raise MediaError(ErrorCode.ENCRYPTED, "the packets are encrypted and no key is available")
    declared_us = _declared_duration_us(media, scan)
    fps, variable = _frame_rate(media, scan)
    duration_us = _duration_us(media, scan, declared_us, fps)
    limit_us = round(max_duration_h * 3600 * US_PER_S)
    if duration_us > limit_us and scan.complete:
        # Whoever believes the header waits for a missing end; beyond the limit the packets are the better witness.
        declared_us, duration_us = None, _duration_us(media, scan, None, fps)
    if duration_us > limit_us:
        message = f"{duration_us / 3600 / US_PER_S:.6g} h are above decode.max_duration_h = {max_duration_h:g}"
        raise MediaError(ErrorCode.TOO_LONG, message)
    video = media.video
    context = video.codec_context if video is not None and can_decode(video) else None
    width = height = rotation = None
    if video is not None and context is not None and context.width and context.height:
        matrix = orientation(scan.picture) if scan.picture is not None else None
        rotation = clockwise_turn(matrix)
        coded = scan.picture if scan.picture is not None else context
        width, height = display_size(coded.width, coded.height, video.sample_aspect_ratio, matrix)
    transfer = int(scan.picture.color_trc) if scan.picture is not None else None
    return MediaInfo(
        duration_us=duration_us,
        declared_duration_us=declared_us,
        container=media.format,
        video_codec=context.name if context is not None else None,
        audio_codec=media.audio.codec_context.name if media.audio is not None and can_decode(media.audio) else None,
        width=width,
        height=height,
        rotation=rotation,
        fps=fps,
        variable_fps=variable,
        hdr=transfer in HDR_TRANSFERS if transfer is not None else None,
        has_video=video is not None,
        has_audio=media.audio is not None,
        n_video_streams=media.n_video,
        n_audio_streams=media.n_audio,
        n_subtitle_streams=len(media.subtitles),
        n_frames=len(scan.video_times) if scan.complete and video is not None else None,
    )


def _scan(media: Media, scan_all: bool) -> _Scan:
    scan = _Scan(array("q"))
    trials = _TRIAL_PACKETS if can_decode(media.video) else 0
    # Without a declared duration the packets are the only honest answer, also over byte ranges.
    declared = media.duration_is_declared and media.container.duration is not None
    to_the_end = scan_all or not declared
    packets = media.container.demux([s for s in (media.video, media.audio) if s is not None])
    try:
        for packet in packets:
            is_video = media.video is not None and packet.stream_index == media.video.index
            if packet.size > 0:
                _count(media, scan, packet, is_video)
            if is_video and trials > 0:
                trials -= 1
                scan.picture = _first_picture(packet)
                trials = 0 if scan.picture is not None else trials
            if not to_the_end and trials <= 0 and scan.n_packets > 0:
                return scan
        scan.complete = True
    except MemoryError:
        raise
    except av.FFmpegError:
        scan.complete = True  # damaged here; whatever lies behind cannot be reached by the reader either
    return scan


def _count(media: Media, scan: _Scan, packet: "av.Packet[Any]", is_video: bool) -> None:
    if scan.n_encrypted == scan.n_packets:  # of interest is only whether all are
        scan.n_encrypted += packet.has_sidedata("encryption_info")
    scan.n_packets += 1
    time_us = media.packet_time_us(packet)
    if packet.is_discard:
        return
    if time_us is not None:
        ticks = packet.dts if media.uses_dts or packet.pts is None else packet.pts
        end_us = media.to_clock((ticks or 0) + (packet.duration or 0), packet.stream_index)
        scan.extent_us = max(scan.extent_us, end_us)
        if is_video:
            scan.video_end_us = max(scan.video_end_us, end_us)
    if is_video and not _never_shown(media, packet):
        scan.video_times.append(time_us if time_us is not None else -1)


def _never_shown(media: Media, packet: "av.Packet[Any]") -> bool:
    """A VP9 picture that others refer to, in a packet of its own. Muxers may join it with a shown one instead: such a
    superframe ends in its index (VP9 bitstream specification 6.2 and annex B).
    """
    video = media.video
    if video is None or not can_decode(video) or video.codec_context.name not in ("vp9", "libvpx-vp9"):
        return False
    data = memoryview(packet)
    marker, profile = data[0] >> 6, (data[0] >> 5 & 1) | (data[0] >> 4 & 1) << 1
    if marker != 2 or profile == 3 or data[-1] >> 5 == 6:
        return False
    show_existing_frame, show_frame = data[0] >> 3 & 1, data[0] >> 1 & 1
    return not show_existing_frame and not show_frame


def _first_picture(packet: "av.Packet[Any]") -> av.VideoFrame | None:
    try:
        frames = packet.decode()
    except MemoryError:
        raise
    except av.FFmpegError:
        return None
    return frames[0] if frames else None


def _declared_duration_us(media: Media, scan: _Scan) -> int | None:
    """What the header says, from the zero of the clock; None where FFmpeg would only guess."""
    if not media.duration_is_declared:
        return None
    declared = media.container.duration or 0
    for stream in (media.video, media.audio):
        if stream is not None and stream.duration and stream.time_base:
            declared = max(declared, media.to_clock((stream.start_time or 0) + stream.duration, stream.index))
    # Matroska counts its duration from time 0, not from the first packet. A start later than that is no missing end.
    if scan.complete and 0 < declared - scan.extent_us <= media.zero_us:
        declared = scan.extent_us
    return declared or None


def _duration_us(media: Media, scan: _Scan, declared_us: int | None, fps: float | None) -> int:
    known = max(declared_us or 0, scan.extent_us)
    if not scan.complete:
        known = max(known, media.container.duration or 0)
    # The last packet of some containers has no duration: it lasts as long as a picture does.
    if fps and scan.complete and declared_us is None:
        known = max(known, max(scan.video_times, default=0) + round(US_PER_S / fps))
    return max(known, round(US_PER_S / fps) if fps else 0, 1000)


def _frame_rate(media: Media, scan: _Scan) -> tuple[float | None, bool | None]:
    """Average frames per second, and whether the distances differ (more than 2 % of them by over a tenth)."""
    if media.video is None:
        return None, None
    rate = float(media.video.average_rate or 0) if can_decode(media.video) else 0.0
    declared = rate if 0 < rate <= _LARGEST_FPS else None
    times = np.sort(np.frombuffer(scan.video_times, dtype=np.int64)) if len(scan.video_times) else np.zeros(0, np.int64)
    deltas = np.diff(times)
    deltas = deltas[deltas > 0]
    if not scan.complete or len(deltas) == 0:
        return declared, None
    tick_us = float(media.video.time_base or 0) * US_PER_S
    middle = float(np.median(deltas))
    odd = np.abs(deltas - middle) > max(0.1 * middle, 1.5 * tick_us)
    return min(US_PER_S / float(deltas.mean()), _LARGEST_FPS), bool(odd.mean() > 0.02)
