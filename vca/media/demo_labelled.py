"""The labelled demo archive: short clips of a small broadcaster with exact labels, to fine-tune and compare models on.

Scenes have facts (a picture, a sound, what is said, a burst of sound), and labels are rules over facts (`RULES` and
`PAIRS` of `demo_plan`). Some labels need one modality that no other can replace. The labels of `PAIRS` need two at the
same time: clips in which both halves occur, but in different scenes, are almost as frequent as those in which they
meet, so a model that averages over the clip cannot tell them apart. It is no proof of quality: the world is small, and
labels have no noise.

A label implies its parents in the taxonomy; annotations name the most exact one.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vca.core.annotations import Split, TrueEvent
from vca.core.errors import ConfigError
from vca.core.records import TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import US_PER_S, Span, us_to_seconds
from vca.media.demo_encode import TICK_US, Packing, encode, place_file, subtitle_text
from vca.media.demo_plan import CONTENT, MODERATION, PLACES, Draft, Facts, meets, plan_archive, sentiment_of
from vca.media.demo_render import SYNTH_RATE, FloatArray, Look, ScenePainter, synthesise
from vca.media.demo_sentences import Line, compose

MIN_CLIPS = 20
"""Fewer leave one clip in a split; from about 200 on every label is in every split."""
ANNOTATOR = "script"


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """One shot and its facts."""

    span: Span
    facts: Facts
    lines: tuple[tuple[Span, Line], ...]
    """What is said, and when."""
    burst: Span | None
    """When `facts.burst` is heard."""


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """The truth about one clip. Times follow the script; coded sound may run on by less than 0.1 s."""

    key: str
    """Below the root of the archive. It tells neither split nor label."""
    split: Split
    seed: int
    packing: Packing
    sidecar: str | None
    """Key of the subtitle file."""
    title: str | None
    """Burned into every picture of the clip."""
    scenes: tuple[LabelledScene, ...]
    content: frozenset[str]
    moderation: frozenset[str]
    sentiment: str
    events: tuple[TrueEvent, ...]

    @property
    def has_video(self) -> bool:
        return self.packing.video is not None

    @property
    def has_audio(self) -> bool:
        return self.packing.audio is not None

    @property
    def duration_us(self) -> int:
        return self.scenes[-1].span.end_us

    @property
    def spoken(self) -> list[TextPiece]:
        """The subtitles."""
        lines = (entry for scene in self.scenes for entry in scene.lines)
        return [TextPiece(span.start_us, span.end_us, TextSource.SUBTITLE, line.text) for span, line in lines]


_MP4 = Packing("mp4", fps=10, rate_hz=22_050)
_WEBM = Packing("webm", "libvpx-vp9", "libopus", fps=10, rate_hz=48_000)
_MKV = Packing("matroska", fps=10, rate_hz=32_000)
_SOUND = Packing("ipod", None, rate_hz=22_050)
_PACKINGS: tuple[tuple[str, Packing, str | None], ...] = (
    # extension, packing, suffix of the subtitle file
    (".mp4", _MP4, ".srt"),
    (".mp4", replace(_MP4, embedded="mov_text"), None),
    (".mov", replace(_MP4, container="mov"), ".en.vtt"),
    (".mp4", _MP4, ".srt"),
    (".mkv", replace(_MKV, embedded="srt"), None),
    (".mp4", _MP4, ".vtt"),
    (".mp4", replace(_MP4, embedded="mov_text"), None),
    (".webm", replace(_WEBM, embedded="webvtt"), None),
    (".mkv", replace(_MKV, embedded="ass"), None),
    (".mp4", _MP4, ".en.ass"),
)
_LENGTHS = {2: (18, 26), 3: (13, 20), 4: (12, 16)}
"""Ticks of a scene, by the number of scenes: clips last about 7 to 13 s."""
_BURST = (8, 15)
_BURST_ROOM = 4
_TWO_LINES = 18
_BASE_UNDER_BURST, _BURST_GAIN = 0.4, 1.5  # of sounds with a peak of 0.5: the sum stays below 1
_POOL_FROM = 24  # clips; starting processes costs as much as making some ten clips


def labelled_clips(n: int = 220, seed: int = 0) -> list[LabelledClip]:
    """The truth about the archive of this size and seed, in the order of the keys. Raises `ConfigError`."""
    if n < MIN_CLIPS:
        raise ConfigError(f"clips = {n}: too few for four splits; use {MIN_CLIPS} or more")
    return [_clip(draft, index, n, seed) for index, draft in enumerate(plan_archive(n, seed))]


def make_labelled_archive(folder: Path, n: int = 220, seed: int = 0) -> list[Path]:
    """Write media and sidecar files of `labelled_clips(n, seed)` below `folder`; returns their paths, media first.

    Works on all CPUs that this process may use. A file that is there with the same bytes is not touched. An archive of
    another size or seed has other keys: they do not get in each other's way. Raises `ConfigError` where the folder
    cannot be written.
    """
    clips = labelled_clips(n, seed)
    workers = min(len(os.sched_getaffinity(0)), 16)
    if workers == 1 or n < _POOL_FROM:
        return [path for clip in clips for path in write_clip(folder, clip)]
    # spawn: a forked child would inherit the locks of threads that run here, such as Ray's
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return [path for paths in pool.map(partial(write_clip, folder), clips, chunksize=4) for path in paths]


def write_clip(folder: Path, clip: LabelledClip) -> list[Path]:
    """Render one clip; returns its medium and, if it has one, its subtitle file."""
    written = [place_file(folder, clip.key, render(clip))]
    if clip.sidecar is not None:
        text = subtitle_text(clip.spoken, clip.sidecar.rpartition(".")[2])
        written.append(place_file(folder, clip.sidecar, text.encode()))
    return written


def render(clip: LabelledClip) -> bytes:
    """The media file."""
    shots: list[tuple[Span, ScenePainter | None]] = []
    rng, size = _rng(clip.key, clip.seed, 1), (clip.packing.width, clip.packing.height)
    for scene in clip.scenes:
        picture = scene.facts.picture
        painter = None
        if picture is not None:
            painter = ScenePainter(picture, clip.title or "", *size, rng, _look(picture, rng))
        shots.append((scene.span, painter))
    wave = _soundtrack(clip) if clip.has_audio else np.zeros(0, np.float32)
    return encode(clip.packing, shots, wave, clip.spoken)


def annotation_rows(clips: Iterable[LabelledClip]) -> list[dict[str, Any]]:
    """The truth in the columns of `vca.core.annotations.COLUMNS`: every task is annotated for every clip."""
    return [row for clip in clips for row in _rows(clip)]


def write_annotations(path: Path, clips: Iterable[LabelledClip]) -> None:
    """`annotation_rows` as JSON Lines. Raises `ConfigError` where the file cannot be written."""
    lines = [json.dumps(row, ensure_ascii=False) for row in annotation_rows(clips)]
    place_file(path.parent, path.name, ("\n".join(lines) + "\n").encode(), "annotations")


def _rows(clip: LabelledClip) -> Iterator[dict[str, Any]]:
    video = {"key": clip.key, "split": str(clip.split), "annotator": ANNOTATOR}
    for task, labels in (("content", clip.content), ("moderation", clip.moderation), ("sentiment", {clip.sentiment})):
        yield from ({**video, "task": task, "label": label} for label in sorted(labels))
        if not labels:
            yield {**video, "task": task, "label": None}
    for event in clip.events:
        start_s, end_s = us_to_seconds(event.span.start_us), us_to_seconds(event.span.end_us)
        time = {"start_s": start_s, "end_s": end_s}
        who = None if event.participants is None else sorted(event.participants)
        yield {**video, "task": "events", "label": event.label, **time, "place": event.place, "participants": who}
    if not clip.events:
        yield {**video, "task": "events", "label": None}


def _rng(key: str, seed: int, use: int) -> np.random.Generator:
    """Independent of the order in which clips are made."""
    return np.random.default_rng([seed, zlib.crc32(key.encode()), use])


def _clip(draft: Draft, index: int, n: int, seed: int) -> LabelledClip:
    stem = f"tapes-{n}-{seed}/tape-{index:04d}"
    rng = _rng(stem, seed, 0)
    ending, packing, suffix = _PACKINGS[rng.integers(len(_PACKINGS))]
    if draft.lacks == "picture":
        ending, packing, suffix = ".m4a", _SOUND, ".srt"
    if draft.lacks == "sound":
        packing = replace(packing, audio=None)
    scenes = _timed(draft.scenes, rng)
    if not any(scene.lines for scene in scenes):
        packing, suffix = replace(packing, embedded=None), None
    return LabelledClip(
        key=stem + ending,
        split=draft.split,
        seed=seed,
        packing=packing,
        sidecar=None if suffix is None else stem + suffix,
        title=None if draft.title is None else compose(draft.title, rng).text,
        scenes=scenes,
        content=_held(CONTENT, draft) | ({"technology"} if draft.title == "title_technology" else set()),
        moderation=_held(MODERATION, draft),
        sentiment=sentiment_of(draft.scenes),
        events=tuple(event for scene in scenes for event in _events(scene)),
    )


def _held(names: Sequence[str], draft: Draft) -> frozenset[str]:
    return frozenset(name for name in names if any(meets(name, facts) for facts in draft.scenes))


def _timed(drafted: Sequence[Facts], rng: np.random.Generator) -> tuple[LabelledScene, ...]:
    """Scenes one after the other, with their sentences and bursts."""
    scenes: list[LabelledScene] = []
    start = 0  # ticks
    for facts in drafted:
        length = int(rng.integers(*_LENGTHS[len(drafted)]))
        if facts.words == "interview":
            length = max(length, _TWO_LINES)
        burst = None
        if facts.burst is not None:
            ticks = int(rng.integers(*_BURST))
            length = max(length, ticks + _BURST_ROOM)
            at = start + int(rng.integers(2, length - ticks))
            burst = Span(at * TICK_US, (at + ticks) * TICK_US)
        span = Span(start * TICK_US, (start + length) * TICK_US)
        scenes.append(LabelledScene(span, facts, _lines(facts.words, span, rng), burst))
        start += length
    return tuple(scenes)


def _lines(words: str | None, span: Span, rng: np.random.Generator) -> tuple[tuple[Span, Line], ...]:
    kinds = [] if words is None else ["question", "answer"] if words == "interview" else [words]
    slot_us = span.duration_us // max(1, len(kinds))
    starts = [span.start_us + i * slot_us for i in range(len(kinds))]
    # 0.2 s free on both sides; slots are multiples of 0.1 s, which every subtitle format can say
    return tuple(
        (Span(start + 200_000, start + slot_us - 200_000), compose(kind, rng))
        for start, kind in zip(starts, kinds, strict=True)
    )


def _events(scene: LabelledScene) -> Iterator[TrueEvent]:
    facts, place = scene.facts, PLACES.get(scene.facts.picture)
    named = frozenset(role for _, line in scene.lines for role in line.roles)
    if meets("weather_report", facts):
        yield TrueEvent("weather_report", scene.span, place, frozenset({"presenter"}))
    if meets("product_demonstration", facts):
        yield TrueEvent("product_demonstration", scene.span, place, named)
    if meets("interview", facts):
        span = Span(scene.lines[0][0].start_us, scene.lines[-1][0].end_us)
        yield TrueEvent("interview", span, place, named | {"interviewee"})
    if scene.burst is None:
        return
    if meets("applause", facts):
        performer = "presenter" if facts.picture == "studio" else "musician"
        yield TrueEvent("applause", scene.burst, place, frozenset({"crowd", performer}))
    if meets("goal_or_score", facts):
        yield TrueEvent("goal_or_score", scene.burst, place, frozenset({"crowd", "athlete"}))
    if meets("fire_or_explosion", facts):
        yield TrueEvent("fire_or_explosion", scene.burst, place, named if facts.words == "emergency" else frozenset())


def _look(picture: str, rng: np.random.Generator) -> Look:
    red, green, blue = rng.uniform(0.85, 1.15, 3).tolist()
    mirrored = bool(rng.random() < 0.5) and picture != "blackboard"  # there is writing on it
    return Look(float(rng.uniform(0, 20)), float(rng.uniform(0.7, 1.4)), (red, green, blue), mirrored)


def _soundtrack(clip: LabelledClip) -> FloatArray:
    """All scenes in a row, bursts over their base sound, [N] at `SYNTH_RATE`."""
    rng = _rng(clip.key, clip.seed, 2)
    parts = []
    for scene in clip.scenes:
        assert scene.facts.sound is not None
        wave = synthesise(scene.facts.sound, scene.span.duration_us / US_PER_S, rng)
        if scene.burst is not None and scene.facts.burst is not None:
            loud = synthesise(scene.facts.burst, scene.burst.duration_us / US_PER_S, rng)
            first = (scene.burst.start_us - scene.span.start_us) * SYNTH_RATE // US_PER_S
            under = wave[first : first + len(loud)]
            under[:] = _BASE_UNDER_BURST * under + _BURST_GAIN * loud
        parts.append(wave)
    return np.concatenate(parts)
