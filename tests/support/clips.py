"""Small videos made on the spot: picture k shows the number k in its brightness, sound is a tone of known pieces."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LEVELS = 24
"""Brightness of picture k is 40 + 8 * (k % LEVELS): far enough apart to survive compression."""


def level(k: int) -> int:
    return 40 + 8 * (k % LEVELS)


def shown(gray: float) -> int:
    """The number (modulo LEVELS) that a picture of this mean brightness shows."""
    return round((gray - 40) / 8)


def make_clip(
    path: Path,
    n_frames: int = 50,
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    gop: int = 25,
    times_ms: Sequence[int] | None = None,
    tone: Sequence[tuple[float, float]] = (),
    options: dict[str, str] | None = None,
) -> Path:
    """A video of `n_frames`, with a 440 Hz tone in the given pieces `(start_s, end_s)` where there are any.

    `times_ms` gives a presentation time to every picture instead of a constant rate.
    """
    with av.open(str(path), "w") as out:
        video = out.add_stream(
            codec, rate=fps, options=({"sc_threshold": "0"} if codec == "libx264" else {}) | (options or {})
        )
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.gop_size = gop
        video.thread_count = 1
        video.codec_context.time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
        audio = out.add_stream("aac", rate=16_000, layout="mono") if tone else None
        for k in range(n_frames):
            picture = np.full((size[1], size[0], 3), level(k), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts = times_ms[k] if times_ms is not None else k
            frame.time_base = video.codec_context.time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            for start_s, end_s in tone:
                t = np.arange(round(start_s * 16_000), round(end_s * 16_000))
                wave = (0.5 * np.sin(2 * np.pi * 440 * t / 16_000)).astype(np.float32)
                sound = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = 16_000, int(t[0]), Fraction(1, 16_000)
                for part in _frames_of(sound):
                    out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    return path


def _frames_of(sound: av.AudioFrame) -> list[av.AudioFrame]:
    wave, start = sound.to_ndarray(), sound.pts or 0
    parts = []
    for at in range(0, wave.shape[1], 1024):
        part = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, at : at + 1024]), format="fltp", layout="mono")
        part.sample_rate, part.pts, part.time_base = 16_000, start + at, Fraction(1, 16_000)
        parts.append(part)
    return parts
