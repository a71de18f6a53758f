"""Pictures that nobody looks at are not decoded, and nothing that comes out changes by it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from benchmarks.videos import Look, clip
from tests.integration.test_media_going_on import PLAN, File, differences, read
from tests.support.clips import make_clip
from vca.core.errors import MediaError
from vca.core.timeline import segment_spans
from vca.media import demux
from vca.media.read import ReadPlan, Segment

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _errors_are_counted() -> Any:
    """As in the decoding child: without a level PyAV drops what FFmpeg says."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    yield
    av.logging.set_level(level)


def read_all(file: File, length_us: int, plan: ReadPlan) -> tuple[list[Segment | MediaError], int]:
    """All segments in order with one reader, and how many pictures came out of the decoder."""
    n_pictures = 0
    show = demux.SegmentPass._show

    def counted(self: demux.SegmentPass, frame: av.VideoFrame) -> None:
        nonlocal n_pictures
        n_pictures += 1
        show(self, frame)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demux.SegmentPass, "_show", counted)
        reader = file.reader()
        segments = [read(reader, file, span, plan) for span in segment_spans(file.info.duration_us, length_us)]
        reader.close()
    return segments, n_pictures


def both_ways(path: Path, length_us: int, plan: ReadPlan = PLAN) -> float:
    """Read with and without skipping, compare, and return the share of pictures that were decoded."""
    file = File(path)
    with_all: list[Segment | MediaError]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demux, "can_skip", lambda media: False)
        with_all, n_all = read_all(file, length_us, plan)
    some, n_some = read_all(file, length_us, plan)
    for k, (one, other) in enumerate(zip(with_all, some, strict=True)):
        assert differences(one, other) == [], (path.name, k)
    return n_some / max(n_all, 1)


@pytest.mark.parametrize("length_us", [60_000_000, 3_000_000])
@pytest.mark.parametrize(
    ("name", "codec", "options", "most"),
    [
        ("a.mp4", "libx264", {}, 0.7),
        ("a.ts", "libx264", {}, 0.7),
        ("open.mkv", "libx264", {"x264-params": "open-gop=1:bframes=2:b-pyramid=0"}, 0.7),
        ("hevc.mp4", "libx265", {"x265-params": "log-level=none:bframes=3"}, 0.8),
        ("layers.mp4", "libx265", {"x265-params": "log-level=none:bframes=3:temporal-layers=3"}, 1.0),
        ("past-only.mp4", "libx264", {"bf": "0"}, 1.0),
        ("fields.mp4", "libx264", {"x264-params": "interlaced=1"}, 1.0),
        ("a.avi", "libx264", {}, 1.0),  # knows decoding times only
    ],
)
def test_a_third_less_is_decoded(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], most: float, length_us: int
) -> None:
    path = make_clip(tmp_path / name, 300, codec=codec, gop=100, options=options, tone=[(0.0, 12.0)])
    share = both_ways(path, length_us)
    assert share <= most
    assert share == 1.0 or most < 1.0, "skipped where it may not"


def test_texture_and_many_samples(tmp_path: Path) -> None:
    """Pictures in which each depends on its neighbours; more samples than pictures leave nothing to skip."""
    path = clip(tmp_path / "a.mp4", Look(320, 180), 8)
    assert both_ways(path, 60_000_000) < 0.65
    assert both_ways(path, 2_000_000, replace(PLAN, frames_per_step=3)) < 0.95
    assert both_ways(path, 60_000_000, replace(PLAN, frames_per_step=30)) == 1.0


def test_damage_is_decoded_as_before(tmp_path: Path) -> None:
    """A picture lost in the middle lets the one before stand for it, at most for a time: no matter what was skipped."""
    whole = clip(tmp_path / "whole.mp4", Look(320, 180), 8).read_bytes()
    start = whole.index(b"mdat")
    for seed in range(6):
        draw, data = random.Random(seed), bytearray(whole)
        for _ in range(8):
            at = draw.randrange(start + 2000, len(data) - 64)
            data[at : at + 64] = draw.randbytes(64)
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(data)
        both_ways(path, 3_000_000)


def test_the_decoder_is_handed_over_as_it_was(tmp_path: Path) -> None:
    """A pass that goes on with every picture wanted gets every picture."""
    path = make_clip(tmp_path / "a.mp4", 200, gop=100)
    file = File(path)
    reader = file.reader()
    spans = segment_spans(file.info.duration_us, 2_000_000)
    with pytest.MonkeyPatch.context() as patch:
        for k, span in enumerate(spans):
            patch.setattr(demux, "can_skip", lambda media, k=k: k % 2 == 0)
            alone = file.reader()
            assert differences(read(reader, file, span, PLAN), read(alone, file, span, PLAN)) == []
            alone.close()
    reader.close()
    assert file.opened == 1 + len(spans)


@pytest.mark.long
def test_real_media(media_dir: Path) -> None:
    """Whatever is odd about them: damaged, cut, with captions, edit lists or times that jump."""
    shares = []
    for path in sorted(p for p in media_dir.rglob("*") if p.is_file() and 20_000 < p.stat().st_size < 1_000_000):
        try:
            file = File(path)
        except MediaError:
            continue
        if file.info.has_video and file.info.duration_us < 40_000_000:
            shares.append(both_ways(path, 3_000_000))
    assert len(shares) > 50
    assert sum(share < 0.9 for share in shares) > 10
