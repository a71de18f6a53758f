"""The demo archive through the real decoding child: what the truth promises is what the reader finds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vca.core.errors import MediaError
from vca.core.schemas import Status, TextSource
from vca.core.timeline import seconds_to_us, segment_spans
from vca.media.decode_config import DecodeConfig
from vca.media.demo import CLIPS, DemoClip, demo_truth
from vca.media.isolation import DecoderProcess
from vca.media.read import ReadPlan, Segment
from vca.media.source import LocalSource

pytestmark = pytest.mark.integration

TRUTH = demo_truth()
EMBEDDED = {clip.key for clip in CLIPS if clip.packing.embedded}
STEP_US = 500_000
PLAN = ReadPlan(STEP_US, 1, 180, audio=True, text=True, ocr_frames_per_minute=20.0)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(DecodeConfig()) as process:
        yield process


def read_all(decoder: DecoderProcess, path: Path) -> list[Segment]:
    source = LocalSource(str(path))
    info = decoder.probe(source)
    return [decoder.read(source, info, span, PLAN) for span in segment_spans(info.duration_us, seconds_to_us(60))]


@pytest.mark.parametrize("clip", [c for c in TRUTH if c.status is not Status.QUARANTINED], ids=lambda c: c.key)
def test_a_readable_clip_gives_what_it_holds(clip: DemoClip, demo_archive: Path, decoder: DecoderProcess) -> None:
    """Coverage, picture, sound and embedded words; the cut-short clip says how far it got."""
    segments = read_all(decoder, demo_archive / clip.key)
    assert len(segments) == (2 if clip.duration_us > seconds_to_us(60) else 1)
    covered = sum(segment.coverage_us for segment in segments) / clip.duration_us
    if clip.status is Status.PARTIAL:
        assert 0.4 < covered < 0.8
        assert segments[-1].failure is not None
    else:
        assert covered == pytest.approx(1.0, abs=0.02)
        assert all(segment.failure is None for segment in segments)
    for segment in segments:
        assert (segment.audio is not None) == clip.has_audio
        assert (segment.frames is not None) == clip.has_video
        if segment.frames is not None:
            assert segment.frames.shape[2] > segment.frames.shape[1], "on screen every clip is wider than high"
    if clip.key in EMBEDDED:
        spoken = [piece for piece in clip.texts if piece.source is TextSource.SUBTITLE]
        found = [piece for segment in segments for piece in segment.text if piece.text]
        wanted = [p for p in spoken if p.start_us < covered * clip.duration_us]
        assert [piece.text for piece in found][: len(wanted)] == [piece.text for piece in wanted]
        for piece, truth in zip(found, wanted, strict=False):
            assert piece.start_us == pytest.approx(truth.start_us, abs=20_000)


@pytest.mark.parametrize("clip", [c for c in TRUTH if c.has_video], ids=lambda c: c.key)
def test_every_cut_is_found(clip: DemoClip, demo_archive: Path, decoder: DecoderProcess) -> None:
    """Hard cuts between unlike pictures are found within a step; nothing is invented inside a shot."""
    segments = read_all(decoder, demo_archive / clip.key)
    edges = {segment.span.start_us for segment in segments}  # a segment always starts a shot; joining comes later
    covered_us = sum(segment.coverage_us for segment in segments)
    found = [shot.start_us for segment in segments for shot in segment.shots if shot.start_us not in edges]
    true = [shot.start_us for shot in clip.shots[1:] if shot.start_us < covered_us]
    assert found == pytest.approx(true, abs=STEP_US)


@pytest.mark.parametrize("clip", [c for c in TRUTH if c.status is Status.QUARANTINED], ids=lambda c: c.key)
def test_a_lost_clip_says_why(clip: DemoClip, demo_archive: Path, decoder: DecoderProcess) -> None:
    """The code in the quarantine table is the one the truth promises."""
    with pytest.raises(MediaError) as caught:
        decoder.probe(LocalSource(str(demo_archive / clip.key)))
    assert caught.value.code is clip.error_code
