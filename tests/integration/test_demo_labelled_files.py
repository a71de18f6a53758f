"""The labelled demo archive as files: what the script says can be seen, heard and read by the project's own reader."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pysubs2
import pytest

from vca.core.errors import ConfigError
from vca.core.timeline import US_PER_S, Span
from vca.media.decode_config import DecodeConfig
from vca.media.demo_labelled import LabelledClip, labelled_clips, make_labelled_archive, render, write_clip
from vca.media.isolation import DecoderProcess
from vca.media.read import ReadPlan, Segment
from vca.media.source import LocalSource
from vca.models.ocr import OcrConfig, TextReader

pytestmark = pytest.mark.integration

N, SEED = 24, 1
CLIPS = labelled_clips(N, SEED)
PLAN = ReadPlan(500_000, 1, 180, audio=True, text=True, ocr_frames_per_minute=OcrConfig().frames_per_minute)
RATE = 16_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by several processes."""
    folder = tmp_path_factory.mktemp("labelled") / "archive"
    make_labelled_archive(folder, N, SEED)
    return folder


@pytest.fixture(scope="module")
def segments(archive: Path) -> Iterator[dict[str, Segment]]:
    found = {}
    with DecoderProcess(DecodeConfig()) as decoder:
        for clip in CLIPS:
            source = LocalSource(str(archive / clip.key))
            info = decoder.probe(source)
            found[clip.key] = decoder.read(source, info, Span(0, info.duration_us), PLAN)
        yield found


def test_the_archive_is_the_script(archive: Path) -> None:
    """All files are there, no others, and processes beside each other make the bytes that one alone makes."""
    expected = {clip.key for clip in CLIPS} | {clip.sidecar for clip in CLIPS if clip.sidecar is not None}
    assert {p.relative_to(archive).as_posix() for p in archive.rglob("*") if p.is_file()} == expected
    for clip in CLIPS[:4]:
        assert (archive / clip.key).read_bytes() == render(clip)


def test_making_a_clip_again_changes_nothing(archive: Path) -> None:
    """Unchanged files keep their time of change, or the second run would tag everything again."""
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("tape-*")}
    for clip in CLIPS[:6]:
        write_clip(archive, clip)
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("tape-*")} == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Also where the file is written by another process."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file': [^\n]*; choose a folder"):
        make_labelled_archive(tmp_path / "file", N, SEED)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.key)
def test_streams_are_as_told(clip: LabelledClip, segments: dict[str, Segment]) -> None:
    """Length, picture and sound of every clip, and cuts between its scenes."""
    segment = segments[clip.key]
    assert segment.failure is None
    assert segment.coverage_us == pytest.approx(clip.duration_us, abs=100_000)
    assert (segment.frames is not None) == clip.has_video
    assert (segment.audio is not None) == clip.has_audio
    if segment.frames is not None:
        changes = np.abs(np.diff(segment.frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))  # [S - 1]
        cuts = [scene.span.start_us for scene in clip.scenes[1:]]
        at_cut = {min(len(changes) - 1, (us - 250_000) // 500_000) for us in cuts}
        within = [change for i, change in enumerate(changes) if i not in at_cut]
        assert 0.1 < np.median(within) < min(changes[i] for i in at_cut), "pictures move, and change at a cut"


def test_bursts_are_loud_where_the_truth_says(segments: dict[str, Segment]) -> None:
    """The exact times of applause, goals and blasts can be heard."""
    ratios = []
    for clip in CLIPS:
        for scene in clip.scenes:
            audio = segments[clip.key].audio
            if scene.burst is None or audio is None:
                continue
            first, last = (t * RATE // US_PER_S for t in (scene.burst.start_us, scene.burst.end_us))
            start, end = (t * RATE // US_PER_S for t in (scene.span.start_us, scene.span.end_us))
            rest = np.concatenate([audio[start:first], audio[last:end]])
            ratios.append(np.sqrt((audio[first:last] ** 2).mean() / (rest**2).mean()))
    assert len(ratios) >= 5
    assert np.median(ratios) > 1.2


def test_words_come_through_every_container(archive: Path, segments: dict[str, Segment]) -> None:
    """Subtitles beside and inside the files say what the truth says, when it says it."""
    embedded = 0
    for clip in CLIPS:
        wanted = [(piece.start_us, piece.end_us, piece.text) for piece in clip.spoken]
        if clip.sidecar is not None:
            cues = pysubs2.SSAFile.from_string((archive / clip.sidecar).read_text(encoding="utf-8"))
            found = [(cue.start * 1000, cue.end * 1000, cue.plaintext) for cue in cues]
        else:
            found = [(p.start_us, p.end_us, p.text) for p in segments[clip.key].text]
            embedded += bool(found)
        assert [text for *_, text in found] == [text for *_, text in wanted], clip.key
        for (start, end, _), (true_start, true_end, _) in zip(found, wanted, strict=True):
            assert (start, end) == pytest.approx((true_start, true_end), abs=20_000), clip.key
    assert embedded >= 3


def test_titles_are_read(segments: dict[str, Segment]) -> None:
    """The label `technology` is learned from what the default reader reads, at its default budget of frames."""
    reader = TextReader(OcrConfig())
    titled = [clip for clip in CLIPS if clip.title is not None]
    read = 0
    for clip in titled:
        segment = segments[clip.key]
        text = " ".join(piece.text or "" for piece in reader.read(segment.ocr_frames, segment.ocr_spans))
        read += (clip.title or "") in text
    assert len(titled) >= 6
    assert read >= len(titled) - 1
