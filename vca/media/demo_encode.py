"""Writes the clips of the generated archives: pictures, sound and subtitles into a container, and files into a folder.

Equal input gives equal bytes on one build of FFmpeg. Shape letters: N samples.
"""

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pysubs2
from av.subtitles.subtitle import SubtitleSet

from vca.core.errors import ConfigError
from vca.core.records import TextPiece
from vca.core.timeline import US_PER_S, Span
from vca.media.demo_render import SYNTH_RATE, FloatArray, ScenePainter

TICK_US = 200_000  # cuts lie on multiples of this; it is a whole number of frames at every rate used


@dataclass(frozen=True, slots=True)
class Packing:
    """How a clip is stored. None leaves a stream out."""

    container: str
    video: str | None = "libx264"
    audio: str | None = "aac"
    width: int = 320
    height: int = 180
    fps: int = 15
    rate_hz: int = 44_100
    channels: int = 1
    rotation: int = 0
    """Degrees counter-clockwise that a player turns the stored picture; width and height are those on screen."""
    embedded: Literal["srt", "ass", "webvtt", "mov_text"] | None = None


def encode(
    packing: Packing, shots: Sequence[tuple[Span, ScenePainter | None]], wave: FloatArray, spoken: list[TextPiece]
) -> bytes:
    """A media file: shots that tile the time from 0, sound [N] at `SYNTH_RATE`, and the words of an embedded track.

    `wave` and `spoken` are not looked at where the packing has no such stream, and painters may be None then.
    """
    # The AV1 encoder talks to stderr unless told before it starts; errors still come through.
    os.environ.setdefault("SVT_LOG", "1")
    buffer = io.BytesIO()
    # bitexact: no random identifiers and no version strings, so that equal seeds give equal bytes
    with _scheduling_kept(), av.open(buffer, "w", format=packing.container, options={"fflags": "bitexact"}) as out:
        video = _video_stream(out, packing) if packing.video else None
        audio = _audio_stream(out, packing) if packing.audio else None
        subtitles = _SubtitleTrack(out, packing.embedded, spoken) if packing.embedded else None
        sound = _resample(wave, shots[-1][0].end_us, packing.rate_hz) if audio is not None else wave
        for span, painter in shots:
            for start_us in range(span.start_us, span.end_us, TICK_US):  # small turns keep the streams interleaved
                if subtitles is not None:
                    subtitles.write_until(start_us + TICK_US)
                if video is not None and painter is not None:
                    first, last = (t * packing.fps // US_PER_S for t in (start_us, start_us + TICK_US))
                    for index in range(first, last):
                        picture = painter.frame(index / packing.fps - span.start_us / US_PER_S)
                        stored = np.rot90(picture, -packing.rotation // 90)
                        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
                        frame.pts, frame.time_base = index, Fraction(1, packing.fps)
                        out.mux(video.encode(frame))
                if audio is not None:
                    first, last = (t * packing.rate_hz // US_PER_S for t in (start_us, start_us + TICK_US))
                    out.mux(audio.encode(_audio_frame(sound[first:last], first, packing)))
        for stream in (video, audio):
            if stream is not None:
                out.mux(stream.encode(None))
    return buffer.getvalue()


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """SVT-AV1 makes the process of root a real-time one for good; all it starts later would starve the rest."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def subtitle_text(pieces: list[TextPiece], form: str) -> str:
    """A subtitle file as text; `form` is srt, vtt, webvtt or ass."""
    subtitles = pysubs2.SSAFile()
    for piece in pieces:
        subtitles.append(pysubs2.SSAEvent(piece.start_us // 1000, piece.end_us // 1000, text=piece.text or ""))
    return subtitles.to_string("vtt" if form == "webvtt" else form)


def place_file(folder: Path, key: str, data: bytes, setting: str = "--archive") -> Path:
    """Write `data` to `folder / key` unless it is there already; a new file appears whole, by rename.

    Raises `ConfigError` where the folder cannot be written; `setting` is what named the folder.
    """
    path = folder / key
    try:
        if path.is_file() and path.read_bytes() == data:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)  # below, .part: no medium for a run that lists meanwhile
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            file.write(data)
        Path(file.name).chmod(0o644)  # temporary files are private; an archive is not
        return Path(file.name).replace(path)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ConfigError(f"{setting} = {str(folder)!r}: {why}; choose a folder that can be written") from error


def _video_stream(out: Any, packing: Packing) -> Any:
    fast = {
        # mbtree: with it, x264 gave other bytes in every second run, even on one thread
        "libx264": {"preset": "superfast", "crf": "26", "g": str(packing.fps * 2), "mbtree": "0"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "36", "b": "0", "g": str(packing.fps * 2)},
        "libsvtav1": {"preset": "12", "crf": "45", "svtav1-params": "lp=1"},
        "mpeg2video": {"b": "900k", "g": "12"},
        "mpeg4": {"b": "500k", "g": "20"},
    }
    stream = out.add_stream(packing.video, rate=packing.fps, options=fast[packing.video or ""])
    turned = packing.rotation % 180 != 0
    stream.width, stream.height = (packing.width, packing.height)[:: -1 if turned else 1]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1  # with threads, rate control may differ from run to run
    if packing.rotation:
        stream.set_display_rotation(packing.rotation)
    return stream


def _audio_stream(out: Any, packing: Packing) -> Any:
    options = {"aac_coder": "fast"} if packing.audio == "aac" else {}
    layout = "stereo" if packing.channels == 2 else "mono"
    stream = out.add_stream(packing.audio, rate=packing.rate_hz, layout=layout, options=options)
    stream.bit_rate = 64_000
    return stream


def _audio_frame(samples: FloatArray, first: int, packing: Packing) -> av.AudioFrame:
    planes = np.repeat(samples[None, :], packing.channels, axis=0)  # [channels, N]
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo" if packing.channels == 2 else "mono")
    frame.sample_rate, frame.pts, frame.time_base = packing.rate_hz, first, Fraction(1, packing.rate_hz)
    return frame


def _resample(wave: FloatArray, end_us: int, rate_hz: int) -> FloatArray:
    """Sound [N] from `SYNTH_RATE` to `rate_hz`, up to `end_us`."""
    times = np.arange(end_us * rate_hz // US_PER_S) * (SYNTH_RATE / rate_hz)
    return np.asarray(np.interp(times, np.arange(len(wave)), wave), dtype=np.float32)


class _SubtitleTrack:
    """An embedded subtitle stream; cues are written when their time has come."""

    def __init__(self, out: Any, form: str, pieces: list[TextPiece]) -> None:
        self._out = out
        if form == "mov_text":
            self._packets = self._encoded(out, pieces)
            return
        # Text subtitles of Matroska and WebM are the packets FFmpeg reads from a subtitle file: no encoder is needed.
        text = subtitle_text(pieces, form).encode()
        with av.open(io.BytesIO(text), "r", format=form) as source:
            stream = out.add_stream_from_template(source.streams.subtitles[0])
            self._packets = [packet for packet in source.demux() if packet.size]
        for packet in self._packets:
            packet.stream = stream

    def _encoded(self, out: Any, pieces: list[TextPiece]) -> list[Any]:
        stream = out.add_stream("mov_text")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.subtitle_header = pysubs2.SSAFile().to_string("ass").encode()
        packets = []
        for piece in pieces:
            cue = SubtitleSet.create(
                f"0,0,Default,,0,0,0,,{piece.text}".encode(),
                start=0,
                end=(piece.end_us - piece.start_us) // 1000,
                pts=piece.start_us // 1000,
            )
            packet = stream.codec_context.encode_subtitle(cue)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packets.append(packet)
        return packets

    def write_until(self, time_us: int) -> None:
        while self._packets and self._packets[0].pts * self._packets[0].time_base * US_PER_S < time_us:
            self._out.mux(self._packets.pop(0))
