"""The demo archive holds what its truth says: everything else is measured against it."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pysubs2
import pytest

from vca.core.errors import ConfigError
from vca.core.records import TextPiece
from vca.core.schemas import Status, TextSource
from vca.core.taxonomy import parse_taxonomy
from vca.core.timeline import US_PER_S
from vca.media import demo
from vca.media.demo import CLIPS, DemoClip, demo_truth, make_demo_archive
from vca.media.demo_render import PICTURES, SOUNDS, ScenePainter, synthesise

pytestmark = pytest.mark.integration

TRUTH = demo_truth()
WHOLE = [clip for clip in TRUTH if clip.status is Status.TAGGED]


def key_of(clip: DemoClip) -> str:
    return clip.key


def spoken(clip: DemoClip) -> list[TextPiece]:
    return [piece for piece in clip.texts if piece.source is TextSource.SUBTITLE]


def test_script_is_sound() -> None:
    """Cuts can be seen, titles can be drawn and read, and every name in the script exists."""
    assert len({clip.key for clip in CLIPS}) == len(CLIPS)
    for clip in CLIPS:
        for scene in clip.scenes:
            assert scene.picture in PICTURES
            assert scene.sound in SOUNDS
            assert (scene.title or clip.title).isascii()  # the font that comes with Pillow has no accents
        if clip.packing.video and clip.damage is None:
            assert all(a.picture != b.picture for a, b in itertools.pairwise(clip.scenes)), clip.key


def test_labels_are_those_of_the_starter_taxonomy(repository: Path) -> None:
    """A renamed label would silently turn every hit of the demo into a miss."""
    path = repository / "configs" / "taxonomy.yaml"
    taxonomy = parse_taxonomy(path.read_text(encoding="utf-8"), path.name)
    content, events = taxonomy.task("content"), taxonomy.task("events")
    assert events.attributes.place is not None
    assert events.attributes.participants is not None
    places = {label.name for label in events.attributes.place.labels}
    participants = {label.name for label in events.attributes.participants.labels}
    for clip in CLIPS:
        assert set(clip.labels) <= set(content.label_names()), clip.key
        for scene in clip.scenes:
            assert scene.event is None or scene.event in events.label_names(), clip.key
            assert scene.place is None or scene.place in places, clip.key
            assert set(scene.participants) <= participants, clip.key


def test_truth_is_consistent() -> None:
    """Scenes tile the duration, texts lie inside it in order, one clip is longer than a segment of 60 s."""
    for clip in TRUTH:
        assert clip.scenes[0].start_us == 0
        assert clip.scenes[-1].end_us == clip.duration_us
        assert all(a.end_us == b.start_us for a, b in itertools.pairwise(clip.scenes))
        assert all(0 <= piece.start_us < piece.end_us <= clip.duration_us for piece in clip.texts)
        assert all(a.end_us <= b.start_us for a, b in itertools.pairwise(spoken(clip)))
    assert sum(clip.duration_us > 60 * US_PER_S for clip in TRUTH) == 1
    assert demo_truth(1) != TRUTH
    assert [clip.labels for clip in demo_truth(1)] == [clip.labels for clip in TRUTH]


def test_archive_holds_media_and_sidecars_only(demo_archive: Path) -> None:
    """No half-written file and no hint at the truth is left in the archive."""
    expected = {clip.key for clip in TRUTH} | {clip.sidecar for clip in TRUTH if clip.sidecar is not None}
    assert {p.relative_to(demo_archive).as_posix() for p in demo_archive.rglob("*") if p.is_file()} == expected


@pytest.mark.parametrize("clip", WHOLE, ids=key_of)
def test_streams_are_as_told(clip: DemoClip, demo_archive: Path) -> None:
    """Duration, streams, rotation, and every stream decodes to its end."""
    with av.open(str(demo_archive / clip.key)) as source:
        assert source.duration is not None
        assert abs(source.duration - clip.duration_us) < 100_000
        assert bool(source.streams.video) == clip.has_video
        assert bool(source.streams.audio) == clip.has_audio
        ends = dict.fromkeys((stream.index for stream in source.streams if stream.type in ("video", "audio")), 0.0)
        for frame in itertools.chain.from_iterable(
            packet.decode() for packet in source.demux() if packet.stream.index in ends
        ):
            start = 0 if source.start_time is None else source.start_time / US_PER_S
            index = source.streams.video[0].index if isinstance(frame, av.VideoFrame) else source.streams.audio[0].index
            ends[index] = max(ends[index], frame.time - start)
            if isinstance(frame, av.VideoFrame):
                assert frame.rotation == clip.rotation
    for end_s in ends.values():
        assert abs(end_s - clip.duration_us / US_PER_S) < 0.2


@pytest.mark.parametrize("clip", [c for c in WHOLE if c.has_video], ids=key_of)
def test_cuts_are_where_the_truth_says(clip: DemoClip, demo_archive: Path) -> None:
    """Pictures move inside a shot and change at a cut."""
    times, frames = [], []
    with av.open(str(demo_archive / clip.key)) as source:
        start = 0 if source.start_time is None else source.start_time / US_PER_S
        for frame in source.decode(video=0):
            times.append(frame.time - start)
            frames.append(frame.to_ndarray(format="gray").astype(np.int16)[::4, ::4])
    change = np.array([np.abs(b - a).mean() for a, b in itertools.pairwise(frames)])
    cuts = sorted(np.argsort(change)[::-1][: len(clip.shots) - 1])
    expected = [shot.start_us / US_PER_S for shot in clip.shots[1:]]
    assert [times[i + 1] for i in cuts] == pytest.approx(expected, abs=0.06)
    assert np.median(change) > 0.1


@pytest.mark.parametrize("clip", [c for c in TRUTH if c.sidecar is not None], ids=key_of)
def test_sidecars_say_what_the_truth_says(clip: DemoClip, demo_archive: Path) -> None:
    """Words and times survive the formats and the encodings."""
    script = next(entry.sidecar for entry in CLIPS if entry.key == clip.key)
    assert script is not None
    assert clip.sidecar is not None
    text = (demo_archive / clip.sidecar).read_bytes().decode(script.encoding)
    cues = pysubs2.SSAFile.from_string(text)
    found = [(cue.start * 1000, cue.end * 1000, cue.plaintext) for cue in cues]
    assert found == [(piece.start_us, piece.end_us, piece.text) for piece in spoken(clip)]


def test_sidecars_come_in_several_formats_and_encodings() -> None:
    """The demo shows that encodings are guessed right; some must not be UTF-8."""
    sidecars = [clip.sidecar for clip in CLIPS if clip.sidecar is not None]
    assert {s.suffix.rpartition(".")[2] for s in sidecars} == {"srt", "vtt", "ass"}
    assert {"utf-8", "utf-8-sig", "utf-16", "cp1252"} == {s.encoding for s in sidecars}
    road = next(clip for clip in TRUTH if clip.key == "traffic/phone-video.mp4")
    assert any(not (piece.text or "").isascii() for piece in spoken(road))  # else cp1252 would be plain ASCII


@pytest.mark.parametrize("key", [clip.key for clip in CLIPS if clip.packing.embedded and clip.damage is None])
def test_embedded_subtitles_say_what_the_truth_says(key: str, demo_archive: Path) -> None:
    """Words and times survive Matroska, WebM and MP4."""
    clip = next(clip for clip in TRUTH if clip.key == key)
    found = []
    with av.open(str(demo_archive / key)) as source:
        stream = source.streams.subtitles[0]
        for packet in source.demux(stream):
            data = bytes(packet)
            if stream.codec_context.name == "mov_text":
                data = data[2 : 2 + int.from_bytes(data[:2], "big")]
            if packet.pts is None or not data:
                continue
            text = data.decode()
            words = text.split(",", 8)[8] if stream.codec_context.name in ("ass", "ssa") else text
            found.append((float(packet.pts * packet.time_base), words))
    assert [words for _, words in found] == [piece.text for piece in spoken(clip)]
    assert [time for time, _ in found] == pytest.approx([p.start_us / US_PER_S for p in spoken(clip)], abs=0.002)


def test_damage_is_real(demo_archive: Path) -> None:
    """One file ends early, one has lost its index, one is no medium at all."""
    cut_short = next(clip for clip in TRUTH if clip.status is Status.PARTIAL)
    with av.open(str(demo_archive / cut_short.key)) as source:
        last = max(frame.time for frame in source.decode(video=0))
        assert source.duration is not None
        assert 0.4 < last * US_PER_S / source.duration < 0.8
    lost = [clip for clip in TRUTH if clip.status is Status.QUARANTINED]
    assert len(lost) == 2
    for clip in lost:
        assert clip.error_code is not None
        with pytest.raises(av.FFmpegError):
            av.open(str(demo_archive / clip.key))


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="no scheduling policies here")
def test_making_av1_leaves_the_process_as_it_was(demo_archive: Path) -> None:
    """SVT-AV1 makes the process of root a real-time one, and with it all drivers that the tests start later."""
    made = [clip.key for clip in CLIPS if clip.packing.video == "libsvtav1"]
    assert made
    assert all((demo_archive / key).exists() for key in made)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_making_it_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchanged files keep their time of change, or the second run of the demo would tag everything again."""
    chosen = ("news/2026-03-01/weather.mkv", "traffic/phone-video.mp4")
    monkeypatch.setattr(demo, "CLIPS", tuple(clip for clip in CLIPS if clip.key in chosen))
    first = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in make_demo_archive(tmp_path)}
    assert len(first) == 3
    damaged = tmp_path / "traffic/phone-video.srt"
    damaged.write_bytes(b"somebody edited this")
    second = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in make_demo_archive(tmp_path)}
    assert [path.name for path in first if first[path] != second[path]] == ["phone-video.srt"]
    assert second[damaged][0] == first[damaged][0]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command that a new user types ends with a sentence, not with a traceback."""
    monkeypatch.setattr(demo, "CLIPS", tuple(clip for clip in CLIPS if clip.key == "radio/concert.m4a"))
    (tmp_path / "file").touch()
    (tmp_path / "taken/radio").mkdir(parents=True)
    (tmp_path / "taken/radio/concert.m4a").mkdir()
    for folder in ("file", "file/below", "taken"):
        with pytest.raises(ConfigError, match=rf"^--archive = '{tmp_path / folder}': [^\n]*; choose a folder"):
            make_demo_archive(tmp_path / folder)


def test_another_seed_is_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed reaches pictures and sounds."""
    monkeypatch.setattr(demo, "CLIPS", tuple(clip for clip in CLIPS if clip.key == "radio/concert.m4a"))
    a, b = (make_demo_archive(tmp_path / str(seed), seed)[0].read_bytes() for seed in (0, 1))
    assert a != b


@pytest.mark.parametrize("sound", SOUNDS)
def test_sounds_are_audible_and_bounded(sound: str) -> None:
    """No sound is silent, clipped or not a number."""
    wave = synthesise(sound, 2.0, np.random.default_rng(0))
    assert wave.shape == (32_000,)
    assert np.abs(wave).max() == pytest.approx(0.5, abs=0.05)
    assert np.sqrt(np.mean(wave**2)) > 0.02


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_move_and_carry_their_title(picture: str) -> None:
    """Every painter draws something that moves, at any size, and the title is burned in."""
    painter = ScenePainter(picture, "Title", 320, 180, np.random.default_rng(0))
    bare = ScenePainter(picture, "", 320, 180, np.random.default_rng(0))
    a, b, c = (painter.frame(t).astype(int) for t in (0.0, 0.5, 1.0))
    assert a.shape == (180, 320, 3)
    assert np.abs(a - b)[: 180 * 8 // 10].mean() > 1
    assert np.abs(b - c)[: 180 * 8 // 10].mean() > 1
    strip = np.abs(a - bare.frame(0.0).astype(int))[-28:]
    assert strip.mean() > 10


def test_import_is_light() -> None:
    """The command line imports this module: it must not drag in torch or a decoder of pictures."""
    code = "import sys, vca.media.demo; print([m for m in ('torch', 'cv2', 'pandas', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
