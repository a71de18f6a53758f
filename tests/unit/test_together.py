"""Segments that are read in one task: each exactly once, in order, and no reader is left without work."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vca.pipelines.run import TOGETHER, together

VIDEOS = st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(0, 60), max_size=60), max_size=4)
"""Segments still to be read of each video: some may be stored already."""


def ones(videos: dict[str, set[int]]) -> list[dict[str, object]]:
    return [{"video_id": v, "segment_index": i} for v, indices in videos.items() for i in sorted(indices)]


@given(VIDEOS, st.integers(1, 16))
def test_each_segment_once_and_in_order(videos: dict[str, set[int]], readers: int) -> None:
    """Tasks cover the segments that were asked for, and no other, with neighbours of one video only."""
    tasks = together(ones(videos), readers)
    covered = [(t["video_id"], t["segment_index"] + i) for t in tasks for i in range(t["n_together"])]
    assert covered == [(one["video_id"], one["segment_index"]) for one in ones(videos)]
    assert all(1 <= task["n_together"] <= TOGETHER for task in tasks)


@given(st.integers(1, 400), st.integers(1, 16))
def test_every_reader_has_work(n_segments: int, readers: int) -> None:
    """One long video keeps all readers busy to near its end."""
    tasks = together(ones({"a": set(range(n_segments))}), readers)
    assert len(tasks) >= min(n_segments, 4 * readers)
    assert Counter(task["n_together"] for task in tasks[:-1]).keys() <= {max(t["n_together"] for t in tasks)}
