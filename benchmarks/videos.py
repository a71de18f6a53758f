"""Generated videos for benchmarks: long groups of pictures, moving texture with grain, sound, at any length.

What costs time in decoding (size, bit rate, group length) is that of common web video; what is to be seen is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE_HZ = 44_100


@dataclass(frozen=True, slots=True)
class Look:
    """A kind of video. `gop` is the largest distance of key frames, in pictures."""

    width: int
    height: int
    fps: int = 25
    gop: int = 250
    crf: int = 26

    def __str__(self) -> str:
        return f"{self.height}p{self.fps}"


P720 = Look(1280, 720)
P360 = Look(640, 360)
TINY = Look(160, 90, fps=10, gop=20)


def clip(path: Path, look: Look, seconds: int, seed: int = 0) -> Path:
    """One video with cuts every few seconds. Kept if it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    options = {"preset": "veryfast", "crf": str(look.crf), "sc_threshold": "0"}
    draw = np.random.default_rng(seed)
    with av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart"}) as out:
        video = out.add_stream("libx264", rate=look.fps, options=options)
        video.width, video.height, video.pix_fmt, video.gop_size = look.width, look.height, "yuv420p", look.gop
        audio = out.add_stream("aac", rate=RATE_HZ, layout="stereo")
        audio.bit_rate = 96_000
        pictures = _pictures(look, draw)
        for second in range(seconds):
            for k in range(look.fps):
                frame = av.VideoFrame.from_ndarray(next(pictures), format="rgb24")
                frame.pts, frame.time_base = second * look.fps + k, Fraction(1, look.fps)
                out.mux(video.encode(frame))
            sound = _second_of_sound(second, draw)
            for first in range(0, RATE_HZ, 1024):
                part = np.ascontiguousarray(sound[:, first : first + 1024])
                piece = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
                piece.sample_rate, piece.pts = RATE_HZ, second * RATE_HZ + first
                piece.time_base = Fraction(1, RATE_HZ)
                out.mux(audio.encode(piece))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return unfinished.rename(path)


def _pictures(look: Look, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """A drifting texture with a cut every 4 s and a fresh cut of grain for each picture."""
    grain = draw.normal(0, 5, (look.height, look.width * 2)).astype(np.int16)
    while True:
        coarse = draw.integers(0, 256, (look.height // 20 + 4, look.width // 20 + 40, 3)).astype(np.uint8)
        texture = coarse.repeat(20, axis=0).repeat(20, axis=1)
        for k in range(4 * look.fps):
            left, top = (k * 60 // look.fps) % 600, (k * 20 // look.fps) % 60
            view = texture[top : top + look.height, left : left + look.width].astype(np.int16)
            shift = int(draw.integers(look.width))
            yield np.clip(view + grain[:, shift : shift + look.width, None], 0, 255).astype(np.uint8)


def _second_of_sound(second: int, draw: np.random.Generator) -> np.ndarray:
    times = np.arange(RATE_HZ) / RATE_HZ
    tone = 0.2 * np.sin(2 * np.pi * (220 + 40 * (second % 12)) * times)
    return (np.stack([tone, tone]) + draw.normal(0, 0.02, (2, RATE_HZ))).astype(np.float32)


def looped(path: Path, master: Path, seconds: int) -> Path:
    """A long video: the packets of `master` again and again, without encoding them anew. Kept if it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with (
        av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart"}) as out,
        av.open(str(master)) as source,
    ):
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams if s.type in ("video", "audio")}
        length = source.duration or 0  # microseconds
        rounds = -(-seconds * 1_000_000 // length)
        newest: dict[int, int] = {}
        for number in range(rounds):
            source.seek(0)
            for packet in source.demux():
                if packet.dts is None:
                    continue
                shift = int(number * length / 1_000_000 / packet.time_base)
                packet.pts, packet.dts = (packet.pts or 0) + shift, packet.dts + shift
                if packet.dts <= newest.get(packet.stream_index, packet.dts - 1):
                    continue  # the last packet of sound reaches into the next round
                newest[packet.stream_index] = packet.dts
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    return unfinished.rename(path)


def long_archive(folder: Path, look: Look, n_videos: int, seconds: int) -> Path:
    """A folder of long videos. What is repeated is no multiple of a segment, so key frames lie anywhere in them."""
    length_s = min(66, seconds)
    master = clip(folder.parent / "masters" / f"{look}-{length_s}s-0.mp4", look, length_s)
    for k in range(n_videos):
        looped(folder / f"long-{k}.mp4", master, seconds)
    return folder


def archive(folder: Path, look: Look, n_clips: int, seconds: int, n_different: int = 8) -> Path:
    """A folder of clips. They are hard links to a few different files: contents cost no time to make twice."""
    masters = folder.parent / "masters"
    sources = [clip(masters / f"{look}-{seconds}s-{k}.mp4", look, seconds, seed=k) for k in range(n_different)]
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n_clips):
        place = folder / f"clip-{k:05d}.mp4"
        if not place.exists():
            place.hardlink_to(sources[k % n_different])
    return folder
