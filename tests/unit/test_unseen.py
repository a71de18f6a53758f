"""Which pictures the decoder may leave out: never one that is on screen when somebody looks."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.media.unseen import UnseenPictures, can_skip

END_US = 400  # many of the streams are longer


def _media(name: str = "h264", extradata: bytes | None = None, *, uses_dts: bool = False) -> Any:
    decoder = SimpleNamespace(name=name, extradata=extradata, skip_frame="DEFAULT")
    return SimpleNamespace(
        video=SimpleNamespace(codec_context=decoder), uses_dts=uses_dts, packet_time_us=lambda packet: packet.pts
    )


def _packet(time_us: int | None, *, is_discard: bool = False) -> Any:
    return SimpleNamespace(pts=time_us, is_discard=is_discard)


_PICTURE: Any = SimpleNamespace(interlaced_frame=False)


def _told_to_skip(times_us: list[int], order: list[int], samples_us: list[int], end_us: int) -> list[int]:
    """Times of the packets, which come in `order`, before which the decoder is told to skip."""
    media = _media()
    unseen = UnseenPictures(media, np.array(samples_us, dtype=np.int64), end_us, captions=False)
    skipped = []
    for k in order:
        unseen.before(_packet(times_us[k]), None)
        if media.video.codec_context.skip_frame == "NONREF":
            skipped.append(times_us[k])
        unseen.shown(_PICTURE)
    return skipped


@given(
    gaps=st.lists(st.integers(1, 90), min_size=2, max_size=60),
    samples_us=st.lists(st.integers(0, END_US), max_size=60, unique=True).map(sorted),
    lags=st.lists(st.integers(0, 8), min_size=61, max_size=61),
)
def test_no_picture_is_skipped_that_is_on_screen_at_a_sample_time(
    gaps: list[int], samples_us: list[int], lags: list[int]
) -> None:
    """Whatever the rate and the order of decoding: compared with the definition, for which all times are known.

    Nor the first picture, which stands for the time before it, nor one that is still on screen at the end.
    """
    times_us = [sum(gaps[:k]) for k in range(len(gaps) + 1)]
    order = sorted(range(len(times_us)), key=lambda k: k + lags[k])
    first = min(times_us)
    ends_us = dict(pairwise(times_us))
    for time_us in _told_to_skip(times_us, order, samples_us, END_US):
        assert time_us > first
        assert ends_us[time_us] <= END_US
        assert not any(time_us <= sample_us < ends_us[time_us] for sample_us in samples_us)


def test_common_video_at_two_samples_a_second() -> None:
    """It is for this: 25 pictures a second, three between those that are predicted from the past only."""
    times_us = [k * 40_000 for k in range(101)]
    order = [0]
    for k in range(4, 101, 4):
        order += [k, k - 2, k - 3, k - 1]
    samples_us = [k * 500_000 + 250_000 for k in range(8)]
    skipped = _told_to_skip(times_us, order, samples_us, 4_000_000)
    between = {time_us for k, time_us in enumerate(times_us) if k % 2}
    assert len(between & set(skipped)) == len(between) - 4  # of eight samples four fall on pictures between


def test_pictures_that_are_not_shown_say_nothing_about_the_time_of_others() -> None:
    """An edit list hides the picture at 40: the one at 0 stays on screen until 80."""
    media = _media()
    unseen = UnseenPictures(media, np.array([50], dtype=np.int64), 1_000, captions=False)
    unseen.shown(_PICTURE)
    for packet in (_packet(-40), _packet(80), _packet(40, is_discard=True), _packet(0)):
        unseen.before(packet, None)
        assert media.video.codec_context.skip_frame == "DEFAULT"


@pytest.mark.parametrize("surprise", ["no time", "back", "interlaced", "captions", "damage", "error"])
def test_a_surprise_ends_the_skipping(surprise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on every picture is decoded; what was skipped before is asked for again, if there is any."""
    complaints = [0]
    monkeypatch.setattr("vca.media.unseen._n_errors", lambda: complaints[0])
    monkeypatch.setattr("vca.media.unseen.side_data", lambda frame, _kind: frame.captions)
    plain, with_captions = (SimpleNamespace(interlaced_frame=False, captions=found) for found in (None, b"\xfc"))
    for n_before in (0, 4):
        media = _media()
        decoder = media.video.codec_context
        unseen = UnseenPictures(media, np.array([5_000], dtype=np.int64), 10_000, captions=True)
        unseen.shown(plain)  # type: ignore[arg-type]
        for time_us in (0, 160, 40, 80, 120)[: n_before + 1]:
            unseen.before(_packet(time_us), None)
        assert decoder.skip_frame == ("NONREF" if n_before else "DEFAULT")
        assert not unseen.skipped_too_much
        if surprise == "no time":
            unseen.before(_packet(None), None)
        elif surprise == "back":
            unseen.before(_packet(30), 120)
        elif surprise == "interlaced":
            unseen.shown(SimpleNamespace(interlaced_frame=True))  # type: ignore[arg-type]
        elif surprise == "captions":
            unseen.shown(with_captions)  # type: ignore[arg-type]
        elif surprise == "damage":
            unseen.stop()
        else:
            complaints[0] += 1
            unseen.before(_packet(320), None)
        assert decoder.skip_frame == "DEFAULT"
        assert unseen.skipped_too_much == bool(n_before)
        for time_us in (480, 360, 400):
            unseen.before(_packet(time_us), None)
            assert decoder.skip_frame == "DEFAULT"


def test_complaints_behind_the_last_packet_count(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints = [0]
    monkeypatch.setattr("vca.media.unseen._n_errors", lambda: complaints[0])
    media = _media()
    unseen = UnseenPictures(media, np.zeros(0, dtype=np.int64), 10_000, captions=False)
    unseen.shown(_PICTURE)
    for time_us in (0, 160, 40):
        unseen.before(_packet(time_us), None)
    complaints[0] += 1
    unseen.finish()
    assert unseen.skipped_too_much
    assert media.video.codec_context.skip_frame == "DEFAULT"


def _hvcc(n_layers: int) -> bytes:
    return bytes([1, *[0] * 20, n_layers << 3, 0])


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (_media(), True),
        (_media(uses_dts=True), False),
        (_media("vp9"), False),
        (_media("hevc", _hvcc(1)), True),
        (_media("hevc", _hvcc(2)), False),  # the lower layer refers to nothing of the upper one, but not the reverse
        (_media("hevc", _hvcc(0)), False),  # not told
        (_media("hevc", b"\0\0\0\1\x40\1" + bytes(30)), False),  # the header of MPEG-TS has no such field
        (_media("hevc", None), False),
        (SimpleNamespace(video=None, uses_dts=False), False),
    ],
)
def test_codecs_whose_word_is_relied_on(media: Any, expected: bool) -> None:
    assert can_skip(media) is expected
