"""What is read next, and the numbers under which it enters the graph."""

import asyncio
from collections import deque
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.pipelines.read_queue import SEGMENTS_TOGETHER, TOGETHER, TOGETHER_BYTES, Dealer, ReadQueue, packed, unpacked

LARGE = TOGETHER_BYTES


def video(number: int, size_bytes: int = LARGE) -> dict[str, Any]:
    return {"video_id": f"v{number}", "size_bytes": size_bytes}


def segments(number: int, n: int) -> list[dict[str, Any]]:
    return [video(number) | {"segment_index": i} for i in range(n)]


def name(task: dict[str, Any]) -> str:
    """`v3` for a first look, `v3.2` for a segment, `v3.2-4` for neighbours."""
    first, n = task["segment_index"], task["n_together"]
    if first is None:
        return str(task["video_id"])
    return f"{task['video_id']}.{first}" + (f"-{first + n - 1}" if n > 1 else "")


def taken(queue: ReadQueue, n: int) -> list[str]:
    """The next tasks, while there is room for all of them."""
    return [name(found[0][0]) for found in (queue.take(0) for _ in range(n)) if found is not None]


def test_a_video_that_was_begun_goes_before_one_that_was_not() -> None:
    """Few videos are half done at any time, which is what a killed run or a deadline would leave."""
    queue = ReadQueue([video(i) for i in range(6)], readers=2, encoders=1)
    assert taken(queue, 2) == ["v0", "v1"]
    queue.heard("v0", segments(0, 10))
    queue.heard("v1")
    assert taken(queue, 2) == ["v0.0", "v0.1"]
    assert taken(queue, 4) == ["v2", "v0.2", "v3", "v0.3"], "others are opened before the segments run out"
    queue.heard("v0")
    queue.heard("v2", segments(2, 9))
    queue.heard("v3")
    assert taken(queue, 4) == ["v0.4-5", "v0.6", "v0.7", "v0.8"]


def test_short_videos_do_not_hold_up_the_last_segments() -> None:
    """Videos of one segment never add any; they must not be preferred until there are no more of them."""
    queue = ReadQueue([video(i) for i in range(7)], readers=2, encoders=1)
    assert taken(queue, 1) == ["v0"]
    queue.heard("v0", segments(0, 3))
    order = []
    while "v0.2" not in order:
        order += taken(queue, 1)
        queue.heard(order[-1].partition(".")[0])
    assert order == ["v0.0", "v1", "v0.1", "v2", "v0.2"]


def test_there_is_room_for_so_much() -> None:
    """What is handed out cannot be chosen any more; what is not keeps nobody busy."""
    queue = ReadQueue([video(i) for i in range(1000)], readers=2, encoders=1)
    assert queue.take(8) is not None
    assert queue.take(9) is None
    queue.heard("v0", segments(0, 1000))
    found = queue.take(62)
    assert found is not None
    assert name(found[0][0]) == "v0.0-9"
    assert found[1] == SEGMENTS_TOGETHER
    assert queue.take(63) is None


def test_what_waits_can_be_given_up() -> None:
    """After the deadline: the tasks come back, so that every video ends in a state."""
    queue = ReadQueue([video(i) for i in range(4)], readers=1, encoders=1)
    assert taken(queue, 1) == ["v0"]
    queue.heard("v0", segments(0, 2))
    assert [task["video_id"] for task in queue.clear()] == ["v0", "v0", "v1", "v2", "v3"]
    assert queue.take(0) is None


LEFT = st.lists(st.one_of(st.none(), st.sets(st.integers(0, 60), max_size=60)), max_size=12)
"""Of each video the segments that are still to be read; none for a video of one segment."""


def test_small_videos_are_one_task() -> None:
    """What Ray does for a task is shared by them, no task is more than minutes of video, and the last are single."""
    queue = ReadQueue([video(i, LARGE // 5 if i > 0 else LARGE) for i in range(32)], readers=1, encoders=1)
    sizes = []
    while (found := queue.take(0)) is not None:
        assert [row["n_together"] for row in found[0]] == [1] * found[1] == [1] * len(found[0])
        sizes.append(found[1])
    assert sizes == [1, 5, 5, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1]


@settings(deadline=None)
@given(LEFT, st.integers(1, 16), st.integers(0, 16), st.integers(1, 4), st.sampled_from([1, LARGE // 3, LARGE]))
def test_each_segment_once_and_in_order(
    left: list[set[int] | None], readers: int, encoders: int, returned_at_once: int, size_bytes: int
) -> None:
    """Whatever comes back when: every video is opened once, and of its segments each is read once, in order, with
    neighbours of the same video only; and videos of which none is opened yet.
    """
    queue = ReadQueue([video(i, size_bytes) for i in range(len(left))], readers, encoders)
    out: deque[tuple[str, int | None]] = deque()
    done: list[tuple[str, int | None]] = []
    while True:
        while (found := queue.take(len(out))) is not None:
            task, n_rows = found
            assert 1 <= n_rows == sum(row["n_together"] for row in task) <= SEGMENTS_TOGETHER
            assert len(task) == 1 or all(row["segment_index"] is None for row in task)
            assert len(task) == 1 or (len(task) <= TOGETHER and len(task) * size_bytes <= TOGETHER_BYTES)
            for row in task:
                first = row["segment_index"]
                out += [(row["video_id"], None if first is None else first + i) for i in range(row["n_together"])]
        if not out:
            break
        for _ in range(min(returned_at_once, len(out))):
            video_id, index = out.popleft()
            done.append((video_id, index))
            todo = left[int(video_id[1:])] if index is None else None
            queue.heard(video_id, [{"video_id": video_id, "segment_index": i} for i in sorted(todo or ())])
    assert [v for v, index in done if index is None] == [f"v{i}" for i in range(len(left))]
    for number, wanted in enumerate(left):
        assert [i for v, i in done if v == f"v{number}" and i is not None] == sorted(wanted or ())


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 16))
def test_every_reader_has_work_to_the_end(n_segments: int, readers: int) -> None:
    """Of one long video: tasks get smaller towards the end, and the last ones are single segments."""
    queue = ReadQueue([], readers, encoders=1)
    queue.heard("v0", segments(0, n_segments))
    sizes = []
    while (found := queue.take(0)) is not None:
        sizes.append(found[1])
    assert sum(sizes) == n_segments
    assert sizes == sorted(sizes, reverse=True)
    assert sizes.count(1) >= min(n_segments, 4 * readers)


@given(st.lists(st.tuples(st.text(), st.none() | st.lists(st.integers(0, 9)), st.none() | st.binary()), max_size=5))
def test_packed_rows_come_back_as_they_were(rows: list[tuple[str, list[int] | None, bytes | None]]) -> None:
    """Values, types and what may be null, of one table or of several in a row."""
    kinds = {"a": pa.string(), "b": pa.list_(pa.struct([("c", pa.int8())])), "d": pa.large_binary()}
    schema = pa.schema([pa.field(name, kind, nullable=name != "a") for name, kind in kinds.items()])
    found = [{"a": a, "b": None if b is None else [{"c": c} for c in b], "d": d} for a, b, d in rows]
    tables = [pa.Table.from_pylist(found[:2], schema), pa.Table.from_pylist(found[2:], schema)]
    row = packed(pa.concat_tables(tables))
    assert len(row) == 1
    back = unpacked(row)
    assert back.schema == schema
    assert back.to_pylist() == found


def rows(*numbers: int) -> list[pa.Table]:
    return [pa.table({"n": [number]}) for number in numbers]


def numbers(tables: list[pa.Table]) -> list[int]:
    return [table.column("n")[0].as_py() for table in tables]


def test_rows_are_dealt_once_and_then_forgotten() -> None:
    """The driver puts again what it does not know to be taken; the taker sees each row once."""

    async def deal() -> None:
        dealer = Dealer()
        assert await dealer.put(0, rows(0, 1), closed=False) == 0
        assert numbers(await dealer.take(0)) == [0, 1]
        waiting = asyncio.create_task(dealer.take(2))
        await asyncio.sleep(0)
        assert await dealer.put(0, rows(0, 1, 2), closed=False) == 2
        assert numbers(await waiting) == [2]
        assert await dealer.put(2, rows(2, 3), closed=True) == 2
        assert numbers(await dealer.take(3)) == [3]
        assert await dealer.take(4) == []

    asyncio.run(deal())


def test_a_taker_that_begins_anew_is_told_how_many_there_were() -> None:
    """Ray numbers what a task gives and has the first ones; fewer or more would shift all that follow."""

    async def deal() -> None:
        dealer = Dealer()
        await dealer.put(0, rows(0, 1, 2), closed=False)
        await dealer.take(0)
        waiting = asyncio.create_task(dealer.take(3))
        await asyncio.sleep(0)
        await dealer.put(3, rows(3), closed=False)
        assert numbers(await waiting) == [3]
        again = await dealer.take(0)
        assert len(again) == 3
        assert numbers(await dealer.take(3)) == [3]

    asyncio.run(deal())


def test_a_dealer_that_begins_anew_goes_on_where_it_was() -> None:
    """It has forgotten everything; the number of the first row it gets tells it what was taken."""

    async def deal() -> None:
        dealer = Dealer()
        waiting = asyncio.create_task(dealer.take(5))
        await asyncio.sleep(0)
        await dealer.put(4, rows(4, 5, 6), closed=False)
        assert numbers(await waiting) == [5, 6]

    asyncio.run(deal())
