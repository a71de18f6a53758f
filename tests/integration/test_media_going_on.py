"""Segments that are read one after the other go on where the one before ended, and are the same as after a seek."""

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.clips import make_clip
from vca.core.errors import MediaError
from vca.core.timeline import Span, segment_spans
from vca.media import demux
from vca.media.container import HEAD_BYTES, Media, open_media
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource, RangeSource
from vca.media.probe import MediaInfo, probe_media
from vca.media.read import ReadPlan, Segment, SegmentReader

pytestmark = pytest.mark.integration

PLAN = ReadPlan(500_000, 1, 48, audio=True, text=True, ocr_frames_per_minute=6.0)
CONFIG = DecodeConfig(backend="pyav")


class File:
    """A media file, and how often it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size
        self.opened = 0
        media = self.open()
        self.info: MediaInfo = probe_media(media, scan_all=True, max_duration_h=24.0)
        media.close()
        self.opened = 0

    def open(self) -> Media:
        self.opened += 1
        with self.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return open_media(str(self.path), head, self.size_bytes, CONFIG.max_pixels)

    def reader(self) -> SegmentReader:
        return SegmentReader(self.open, str(self.path))


def read(reader: SegmentReader, file: File, span: Span, plan: ReadPlan) -> Segment | MediaError:
    try:
        return reader.read(file.info, span, plan, CONFIG)
    except MediaError as error:
        return error


def differences(a: Segment | MediaError, b: Segment | MediaError) -> list[str]:
    if isinstance(a, MediaError) or isinstance(b, MediaError):
        same = isinstance(a, MediaError) and isinstance(b, MediaError) and a.code == b.code
        return [] if same else [f"{a!r} {b!r}"]
    found = []
    for name in (field.name for field in fields(Segment)):
        left, right = getattr(a, name), getattr(b, name)
        if name == "failure":
            left, right = left and left.code, right and right.code
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
            same = np.array_equal(left, right)
        else:
            same = left is right or (type(left) is type(right) and left == right)
        if not same:
            found.append(name)
    return found


def both_ways(file: File, length_us: int, plan: ReadPlan) -> int:
    """Read all segments in order with one reader, and each with a reader of its own; returns how often it was opened
    the first way.
    """
    spans = segment_spans(file.info.duration_us, length_us)
    reader, file.opened = file.reader(), 0
    with_one = [read(reader, file, span, plan) for span in spans]
    reader.close()
    opened = file.opened
    for span, one in zip(spans, with_one, strict=True):
        alone = file.reader()
        assert differences(one, read(alone, file, span, plan)) == [], (file.path.name, span)
        alone.close()
    return opened


@pytest.mark.parametrize("mode", ["exact", "keyframes"])
@pytest.mark.parametrize(
    ("name", "codec", "gop", "options", "opened"),
    [
        ("a.mp4", "libx264", 125, {}, 1),  # with B-frames, and key frames that lie in the middle of segments
        ("a.mkv", "libx264", 125, {}, 1),
        ("a.ts", "libx264", 30, {}, 1),
        ("open.mp4", "libx264", 40, {"x264-params": "open-gop=1:bframes=3"}, 1),
        ("a.webm", "libvpx-vp9", 100, {"deadline": "realtime", "cpu-used": "8"}, 1),
        ("a.avi", "mpeg4", 60, {}, None),  # knows decoding times only: each segment seeks
    ],
)
def test_the_same_as_after_a_seek(
    tmp_path: Path, name: str, codec: str, gop: int, options: dict[str, str], opened: int | None, mode: str
) -> None:
    """Pictures, masks, text and shots to the bit, for containers, codecs, groups of pictures open and closed."""
    if name.endswith("webm"):
        path = make_clip(tmp_path / name, 300, codec=codec, gop=gop, options=options)
    else:
        path = make_clip(tmp_path / name, 300, codec=codec, gop=gop, options=options, tone=[(0.0, 12.0)])
    file = File(path)
    plan = replace(PLAN, mode=mode)
    for length_us in (1_000_000, 3_500_000):
        found = both_ways(file, length_us, plan)
        # What reaches the end of the file leaves nothing to go on from, which with key frames only is early.
        assert mode == "keyframes" or opened is None or found <= opened + 1, "a segment was sought for nothing"


def test_noise_in_sound(demo_archive: Path) -> None:
    """AAC fills bands with noise of its own making. The same noise, or a night that was cut short ends with others."""
    file = File(demo_archive / "school/lesson-07.mp4")
    assert both_ways(file, 30_000_000, PLAN) == 1


def test_sound_that_begins_before_it_is_heard(demo_archive: Path) -> None:
    """A new decoder of Opus leaves out its first milliseconds, and the rest is in its place all the same."""
    file = File(demo_archive / "kitchen/onion-soup.webm")
    for length_us in (1_000_000, 3_000_000):
        assert both_ways(file, length_us, PLAN) <= 2


def test_slow_pictures_and_long_silences(tmp_path: Path) -> None:
    """A picture that stays for several segments, and sound that ends long before."""
    path = make_clip(tmp_path / "v.mkv", 9, times_ms=[0, 40, 4000, 4040, 6000, 6040, 15_000, 15_040, 18_000])
    both_ways(File(path), 1_000_000, PLAN)
    path = make_clip(tmp_path / "s.mp4", 500, tone=[(0.0, 1.0)])
    both_ways(File(path), 2_000_000, PLAN)


def test_sound_behind_a_hole(tmp_path: Path) -> None:
    """A decoder that starts behind a hole has nothing to overlap its first frame with: that one may differ."""
    path = make_clip(tmp_path / "h.mkv", 300, gop=125, tone=[(0.0, 7.2), (9.0, 12.0)])
    file = File(path)
    reader = file.reader()
    for span in segment_spans(file.info.duration_us, 1_000_000):
        one, alone = (read(r, file, span, PLAN) for r in (reader, file.reader()))
        assert isinstance(one, Segment)
        assert isinstance(alone, Segment)
        if span.start_us == 9_000_000:
            assert one.audio is not None
            assert alone.audio is not None
            np.testing.assert_array_equal(one.audio[2048:], alone.audio[2048:])
            one = replace(one, audio=alone.audio)
        assert differences(one, alone) == []
    reader.close()


def test_only_what_follows_goes_on(tmp_path: Path) -> None:
    """Another place or another plan is sought: the answer never depends on what was asked before."""
    file = File(make_clip(tmp_path / "a.mp4", 300, gop=125, tone=[(0.0, 12.0)]))
    spans = segment_spans(file.info.duration_us, 2_000_000)
    reader = file.reader()
    small = replace(PLAN, frame_size=32)
    for span, plan in ((spans[0], PLAN), (spans[2], PLAN), (spans[1], PLAN), (spans[2], small), (spans[2], small)):
        alone = file.reader()
        assert differences(read(reader, file, span, plan), read(alone, file, span, plan)) == []
        alone.close()
    reader.close()


@pytest.mark.long
def test_real_media(media_dir: Path) -> None:
    """Whatever is odd about them: damaged, cut, with captions, edit lists or times that jump."""
    paths = [p for p in sorted(media_dir.rglob("*")) if p.is_file() and 20_000 < p.stat().st_size < 300_000]
    went_on = n_segments = 0
    for path in paths:
        try:
            file = File(path)
        except MediaError:
            continue
        if 4_000_000 < file.info.duration_us < 40_000_000:
            n_segments += len(segment_spans(file.info.duration_us, 2_000_000))
            went_on += len(segment_spans(file.info.duration_us, 2_000_000)) - both_ways(file, 2_000_000, PLAN)
    assert n_segments > 50
    assert went_on > n_segments / 4


def test_a_range_is_fetched_once(tmp_path: Path) -> None:
    """Through the child: the segments of one version of an object cost its bytes once; another starts afresh."""
    path = make_clip(tmp_path / "a.mp4", 900, size=(320, 180), gop=250, tone=[(0.0, 36.0)], options={"qp": "0"})
    with path.open("ab") as file:  # so large that it takes several requests
        file.write(b"\0\0\0\0free" + bytes(8 << 20))
    data = path.read_bytes()
    calls: list[tuple[int, int]] = []

    def fetch(offset: int, size: int) -> bytes:
        calls.append((offset, size))
        return data[offset : offset + size]

    def source(version: str | None) -> RangeSource:
        return RangeSource(fetch, len(data), "a.mp4", version)

    with DecoderProcess(CONFIG) as decoder:
        info = decoder.probe(LocalSource(str(path)))
        spans = segment_spans(info.duration_us, 6_000_000)
        first = [decoder.read(source("v1"), info, span, PLAN) for span in spans]
        assert sum(size for _, size in calls) <= len(data)
        ends = sorted((offset, offset + size) for offset, size in calls)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends)), "a byte was fetched twice"
        n_calls = len(calls)
        for version in ("v2", None, None):
            assert decoder.read(source(version), info, spans[0], PLAN).coverage_us == 6_000_000
            assert len(calls) > n_calls, "bytes of another version were used"
            n_calls = len(calls)
        assert [segment.coverage_us for segment in first] == [span.duration_us for span in spans]


def test_what_is_kept_back_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that lie far apart in the file would be held in memory: the next segment seeks instead."""
    monkeypatch.setattr(demux, "_PENDING_BYTES", 2_000)
    file = File(make_clip(tmp_path / "a.mp4", 300, gop=25, tone=[(0.0, 12.0)]))
    assert both_ways(file, 2_000_000, PLAN) > 1
