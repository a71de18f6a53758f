"""A small archive like a broadcaster's, made from a script: what `make demo` tags, and what tests know the truth about.

The script (`CLIPS`) says what is shown, heard and said; `demo_truth` gives it times; `make_demo_archive` renders it.
The seed moves cuts, textures and sounds, never words. Equal seeds give equal bytes on one build of FFmpeg.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vca.core.errors import ErrorCode
from vca.core.records import TextPiece
from vca.core.schemas import Status, TextSource
from vca.core.timeline import US_PER_S, Span
from vca.media.demo_encode import TICK_US, Packing, encode, place_file, subtitle_text
from vca.media.demo_render import FloatArray, ScenePainter, synthesise


@dataclass(frozen=True, slots=True)
class Scene:
    """One shot: a picture of `demo_render.PICTURES`, a sound of `SOUNDS`, and what is said, spread evenly over it."""

    duration_s: float
    picture: str
    sound: str
    lines: tuple[str, ...] = ()
    event: str | None = None
    """Label of the task `events` that holds for the scene."""
    place: str | None = None
    participants: tuple[str, ...] = ()
    title: str | None = None
    """Burned into the picture; None is the title of the clip."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A subtitle file beside the clip: `suffix` follows the clip's name without extension, and ends in the format."""

    suffix: str
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class Clip:
    """One entry of the script. `labels` are those of the task `content` that a person would give."""

    key: str
    title: str
    labels: tuple[str, ...]
    packing: Packing
    scenes: tuple[Scene, ...]
    sidecar: Sidecar | None = None
    damage: Literal["cut_short", "no_index", "not_media"] | None = None


@dataclass(frozen=True, slots=True)
class DemoEvent:
    label: str
    span: Span
    place: str | None
    participants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DemoClip:
    """The truth about one file. Times follow the script; coded sound may run on by less than 0.1 s."""

    key: str
    sidecar: str | None
    status: Status
    error_code: ErrorCode | None
    labels: tuple[str, ...]
    events: tuple[DemoEvent, ...]
    duration_us: int
    scenes: tuple[Span, ...]
    texts: tuple[TextPiece, ...]
    """Subtitles (`subtitle`) and burned-in titles (`ocr`), also those behind the place where a file is cut short."""
    has_video: bool
    has_audio: bool
    rotation: int

    @property
    def shots(self) -> tuple[Span, ...]:
        """Between two of them is a cut."""
        return self.scenes if self.has_video else ()


_MP4 = Packing("mp4")
_VP9 = Packing("webm", "libvpx-vp9", "libopus", rate_hz=48_000)

CLIPS: tuple[Clip, ...] = (
    Clip(
        "news/2026-03-01/evening-news.mp4", "Evening News", ("news", "politics"),
        Packing("mp4", width=426, height=240, fps=25, channels=2),
        (
            Scene(7, "studio", "speech", ("Good evening and welcome to the evening news.",
                  "Parliament voted today on the new budget after a long debate."), None, "studio", ("presenter",)),
            Scene(6, "road", "engine", ("Our correspondent reports live from the capital.",
                  "The prime minister told journalists that the government will not resign."), None, "street",
                  ("reporter",), "Live from the capital"),
            Scene(4, "studio", "speech", ("These were the headlines, good night.",), None, "studio", ("presenter",)),
        ),
        Sidecar(".srt"),
    ),
    Clip(
        "news/2026-03-01/weather.mkv", "Weather Forecast", ("weather",), Packing("matroska", embedded="srt"),
        (
            Scene(8, "forecast", "speech", ("Heavy rain will spread from the west this evening.",
                  "Expect strong wind and thunderstorms near the coast."), "weather_report", "studio", ("presenter",)),
            Scene(5, "studio", "speech", ("Tomorrow stays cloudy with temperatures around twelve degrees.",),
                  "weather_report", "studio", ("presenter",)),
        ),
    ),
    Clip(
        "sports/cup-final.ts", "Cup Final 2:1", ("sports",),
        Packing("mpegts", "mpeg2video", "mp2", 426, 240, 25, 48_000, 2),
        (
            Scene(6, "pitch", "crowd", ("The final is in its last minutes and the score is one all.",
                  "The striker runs past two defenders."), None, "stadium", ("athlete",)),
            Scene(6, "stage", "crowd", ("Goal! What a shot, the keeper had no chance!",
                  "The fans in the stadium are on their feet."), "goal_or_score", "stadium", ("athlete", "crowd"),
                  "Goal!"),
            Scene(5, "pitch", "crowd", ("The referee blows the whistle, the home team wins the cup.",), None, "stadium",
                  ("athlete",)),
        ),
        Sidecar(".vtt"),
    ),
    Clip(
        "kitchen/onion-soup.webm", "Onion soup", ("food",), _VP9,
        (
            Scene(6, "stove", "sizzle", ("Slice the onions and fry them slowly in butter.",
                  "Keep stirring until they are soft and golden."), "cooking_step", "kitchen", ("cook",)),
            Scene(6, "studio", "speech", ("Now pour in the stock, a little salt, and let the soup simmer.",),
                  "cooking_step", "kitchen", ("cook",)),
        ),
        Sidecar(".en.ass"),
    ),
    Clip(
        "kitchen/crème brûlée.mkv", "Dessert of the day", ("food",),
        Packing("matroska", "libvpx-vp9", "libopus", rate_hz=48_000, embedded="ass"),
        (
            Scene(6, "stove", "sizzle", ("Whisk the egg yolks with sugar and warm cream.",), "cooking_step", "kitchen",
                  ("cook",)),
            Scene(5, "gadget", "speech", ("Bake the crème brûlée in the oven, then chill the dessert.",),
                  "cooking_step", "kitchen", ("cook",), "Bake for 40 minutes"),
        ),
    ),
    Clip(
        "wildlife/deer.mp4", "Deer in the valley", ("animals", "science_nature"),
        Packing("mp4", fps=10, embedded="mov_text"),
        (
            Scene(7, "meadow", "chirps", ("A herd of deer crosses the meadow at dawn.",
                  "The birds warn each other when a fox comes near."), None, "nature", ("animal",)),
            Scene(6, "harbour", "wind", ("In winter the animals move down to the water to find food.",), None, "nature",
                  ("animal",)),
        ),
    ),
    Clip(
        "traffic/phone-video.mp4", "Road report", ("vehicles_traffic",), Packing("mp4", rotation=90, fps=30),
        (
            Scene(6, "road", "engine", ("There is a long traffic jam on the motorway – the queue is ten kilometres.",),
                  None, "street", ("vehicle",)),
            Scene(5, "gadget", "engine", ("A lorry broke down, drivers should take the road past the café.",), None,
                  "vehicle_interior", ("vehicle",), "Queue: 10 km"),
        ),
        Sidecar(".srt", "cp1252"),
    ),
    Clip(
        "school/lesson-07.mp4", "Lesson 7: equations", ("education",), Packing("mp4", fps=10, rate_hz=22_050),
        tuple(
            Scene(seconds, picture, "speech", lines, None, "classroom", ("teacher",))
            for seconds, picture, lines in (
                (16, "blackboard", ("Good morning class, today we learn how to solve an equation.",
                                    "An equation says that two sides are equal.",
                                    "Write the first exercise into your notebooks.")),
                (14, "studio", ("The teacher asks: what is the value of the unknown number?",
                                "Subtract five from both sides and then divide by three.")),
                (18, "blackboard", ("Here you see the solution on the blackboard.",
                                    "The students check the result together.",
                                    "Every step must keep both sides equal.")),
                (12, "gadget", ("You may use a calculator for the second exercise.",
                                "Please show how you found the answer.")),
                (15, "blackboard", ("For homework, read the chapter about linear functions.",
                                    "We will write a short test on Friday.")),
            )
        ),
        Sidecar(".en.srt", "utf-16"),
    ),
    Clip(
        "radio/concert.m4a", "", ("music",), Packing("ipod", None, "aac", channels=2),
        (
            Scene(6, "stage", "melody", ("The orchestra opens the concert with a slow song.",), None, "stage",
                  ("musician",)),
            Scene(5, "stage", "crowd", ("The singer thanks the audience for the applause.",), "applause", "stage",
                  ("musician", "crowd")),
        ),
        Sidecar(".srt"),
    ),
    Clip(
        "music/live at the harbour.mov", "Live at the harbour", ("music",), Packing("mov", channels=2),
        (
            Scene(6, "stage", "melody", ("The band plays its new song on the open stage.",), None, "stage",
                  ("musician",)),
            Scene(6, "harbour", "melody", ("The guitar solo is the best part of the album.",), None, "stage",
                  ("musician",)),
        ),
        Sidecar(".vtt", "utf-8-sig"),
    ),
    Clip(
        "film/silent-1925.avi", "THE LOST HAT", ("film_animation",), Packing("avi", "mpeg4", None, fps=10),
        (
            Scene(6, "road", "engine", title="A silent film in one act"),
            Scene(5, "meadow", "wind", title="The hero loses his hat"),
            Scene(5, "studio", "wind", title="The end of the film"),
        ),
    ),
    Clip(
        "tech/phone-review.webm", "Phone review", ("technology",),
        Packing("webm", "libsvtav1", "libopus", rate_hz=48_000, embedded="webvtt"),
        (
            Scene(6, "gadget", "speech", ("This new phone has a fast processor and a bright screen.",),
                  "product_demonstration", "studio", ("presenter",)),
            Scene(6, "studio", "speech", ("The battery lasts two days and the software gets updates for years.",),
                  "product_demonstration", "studio", ("presenter",), "Battery: two days"),
        ),
    ),
    Clip(
        "travel/Málaga/old-town.mp4", "Holiday by the sea", ("travel",), _MP4,
        (
            Scene(6, "harbour", "wind", ("We spend our holiday by the sea and walk through the old town.",), None,
                  "beach_or_water"),
            Scene(6, "meadow", "chirps", ("The hotel offers guided tours to the mountain villages.",), None, "nature"),
        ),
        Sidecar(".en.vtt"),
    ),
    Clip(
        "damaged/broken-transfer.mkv", "City council", ("politics",), Packing("matroska", embedded="srt"),
        (
            Scene(6, "studio", "speech", ("The city council discusses the election of the mayor.",), None,
                  "parliament_or_court", ("politician",)),
            Scene(8, "harbour", "speech", ("The minister answers questions from the opposition.",
                  "The law will be voted on next week."), None, "parliament_or_court", ("politician",)),
        ),
        damage="cut_short",
    ),
    Clip(
        "damaged/lost-index.mp4", "Lost", (), _MP4, (Scene(6, "road", "engine"),), damage="no_index"
    ),
    Clip(
        "damaged/notes.mp4", "", (), _MP4, (Scene(6, "road", "engine", ("Shooting notes, not a video.",)),),
        damage="not_media",
    ),
)  # fmt: skip


def demo_truth(seed: int = 0) -> list[DemoClip]:
    """What the archive of this seed holds, in the order of the script."""
    return [_truth(clip, seed) for clip in CLIPS]


def make_demo_archive(folder: Path, seed: int = 0) -> list[Path]:
    """Write media and sidecar files below `folder`; returns their paths, the order of the script, media first.

    A file that is there with the same bytes is not touched, so that the next run finds it unchanged. New ones appear
    whole, by rename. Raises `ConfigError` where the folder cannot be written.
    """
    written = []
    for clip in CLIPS:
        truth = _truth(clip, seed)
        written.append(place_file(folder, clip.key, _render(clip, truth, seed)))
        if clip.sidecar is not None and truth.sidecar is not None:
            text = subtitle_text(_spoken(truth), clip.sidecar.suffix.rpartition(".")[2])
            written.append(place_file(folder, truth.sidecar, text.encode(clip.sidecar.encoding)))
    return written


def _rng(clip: Clip, seed: int, use: int) -> np.random.Generator:
    """Independent of the order in which clips are made."""
    return np.random.default_rng([seed, zlib.crc32(clip.key.encode()), use])


def _truth(clip: Clip, seed: int) -> DemoClip:
    jitter = _rng(clip, seed, 0).integers(-2, 3, len(clip.scenes))  # ticks
    lengths = [round(s.duration_s * US_PER_S / TICK_US + j) * TICK_US for s, j in zip(clip.scenes, jitter, strict=True)]
    ends = np.cumsum(lengths).tolist()
    spans = [Span(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    whole = clip.damage in (None, "cut_short")
    has_video = clip.packing.video is not None and whole
    texts: list[TextPiece] = []
    for scene, span in zip(clip.scenes, spans, strict=True):
        slot_ms = span.duration_us // 1000 // max(1, len(scene.lines))
        for i, line in enumerate(scene.lines):
            start_ms = span.start_us // 1000 + i * slot_ms + 200
            start_us, end_us = start_ms // 10 * 10_000, (start_ms + slot_ms - 400) // 10 * 10_000  # ASS has 10 ms
            texts.append(TextPiece(start_us, end_us, TextSource.SUBTITLE, line))
        title = clip.title if scene.title is None else scene.title
        if has_video and title:
            texts.append(TextPiece(span.start_us, span.end_us, TextSource.OCR, title))
    codes = {"no_index": ErrorCode.HEADER_DAMAGED, "not_media": ErrorCode.NOT_MEDIA}
    return DemoClip(
        key=clip.key,
        sidecar=clip.key.rpartition(".")[0] + clip.sidecar.suffix if clip.sidecar else None,
        status=Status.TAGGED if clip.damage is None else Status.PARTIAL if whole else Status.QUARANTINED,
        error_code=codes.get(clip.damage or ""),
        labels=clip.labels,
        events=tuple(
            DemoEvent(scene.event, span, scene.place, scene.participants)
            for scene, span in zip(clip.scenes, spans, strict=True)
            if scene.event is not None
        ),
        duration_us=ends[-1],
        scenes=tuple(spans),
        texts=tuple(texts) if whole else (),
        has_video=has_video,
        has_audio=clip.packing.audio is not None and whole,
        rotation=clip.packing.rotation,
    )


def _spoken(truth: DemoClip) -> list[TextPiece]:
    return [piece for piece in truth.texts if piece.source is TextSource.SUBTITLE]


def _render(clip: Clip, truth: DemoClip, seed: int) -> bytes:
    if clip.damage == "not_media":
        return "\n".join(line for scene in clip.scenes for line in scene.lines).encode()
    data = _encode(clip, truth, seed)
    if clip.damage == "cut_short":
        return data[: len(data) * 55 // 100]
    # The index of an MP4 is written last: a recorder that lost power leaves such a file.
    return data[: data.rindex(b"moov") - 4] if clip.damage == "no_index" else data


def _encode(clip: Clip, truth: DemoClip, seed: int) -> bytes:
    packing, rng = clip.packing, _rng(clip, seed, 1)
    shots = []
    for scene, span in zip(clip.scenes, truth.scenes, strict=True):
        title = clip.title if scene.title is None else scene.title
        shots.append((span, ScenePainter(scene.picture, title, packing.width, packing.height, rng)))
    wave = _soundtrack(clip, truth, seed) if packing.audio else np.zeros(0, np.float32)
    return encode(packing, shots, wave, _spoken(truth))


def _soundtrack(clip: Clip, truth: DemoClip, seed: int) -> FloatArray:
    """All scenes in a row, [N] at `SYNTH_RATE`."""
    rng = _rng(clip, seed, 2)
    parts = [
        synthesise(scene.sound, span.duration_us / US_PER_S, rng)
        for scene, span in zip(clip.scenes, truth.scenes, strict=True)
    ]
    return np.concatenate(parts)
