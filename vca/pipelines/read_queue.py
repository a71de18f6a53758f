"""What is read next, and how it gets into a graph that runs already. Nothing here knows Ray.

How many segments a video has is known only once it was opened. The graph that opens it also reads its segments: they
are handed in while it runs, so that no worker waits for the last video to be opened and no model is loaded twice.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import pyarrow as pa

Take = Callable[[int], tuple[list[dict[str, Any]], int] | None]
"""What hands out tasks: asked with the number of rows that are to come back, answers with a task, which is one row or
several, and the rows that it will add; None if there is no room, or nothing is known, now or any more.
"""

_WHOLE = {"media": None, "segment_index": None, "n_together": 1}
"""A task that looks at a video, and reads it if it is one segment."""

SEGMENTS_TOGETHER = 10
"""Segments of a long video that one task reads at most: opening it and finding the place cost little then, and a worker
that is lost takes minutes of video along and no more."""

TOGETHER, TOGETHER_BYTES = 5, 8 << 20
"""Small videos that one task reads at most, and what they come to: how long they are is not known before they are
opened, and with encoders of their own the pictures of all are in memory at once."""


class ReadQueue:
    """Tasks in the order in which they are begun: `take` hands them out, `heard` puts in what was found on the way.

    Known segments come first, so that a video that was begun is soon done. When few of them wait, every other task
    opens videos, so that no worker runs dry until their segments are known. Neighbouring segments are one task, and so
    are small videos, the fewer the nearer the end is, so that all readers end together.
    """

    def __init__(self, videos: Iterable[dict[str, Any]], readers: int, encoders: int) -> None:
        self._videos, self._segments = deque(videos), deque[dict[str, Any]]()
        self._readers, self._encoders = readers, encoders
        self._opening = set[str]()
        self._open_next = True

    def take(self, rows_out: int) -> tuple[list[dict[str, Any]], int] | None:
        """The next task and how many rows come of it (see `Take`).

        There is room while each reader has less than three tasks, one of them in work, and each encoder three rows.
        """
        few = len(self._segments) + len(self._opening) < 3 * (self._readers + self._encoders)
        opens = bool(self._videos) and (not self._segments or (few and self._open_next))
        share = max(1, (len(self._segments) + len(self._videos)) // (4 * self._readers))
        n = self._n_small(min(TOGETHER, share)) if opens else self._n_neighbours(min(SEGMENTS_TOGETHER, share))
        if n == 0 or rows_out >= 3 * (self._readers * n + self._encoders):
            return None
        self._open_next = not opens
        if opens:
            videos = [self._videos.popleft() for _ in range(n)]
            self._opening.update(video["video_id"] for video in videos)
            return [video | _WHOLE for video in videos], n
        segments = [self._segments.popleft() for _ in range(n)]
        return [segments[0] | {"n_together": n}], n

    def _n_small(self, at_most: int) -> int:
        """How many of the next videos are one task: at least one."""
        n, size_bytes = 0, 0
        for video in islice(self._videos, at_most):
            size_bytes += video["size_bytes"]
            if n > 0 and size_bytes > TOGETHER_BYTES:
                break
            n += 1
        return n

    def _n_neighbours(self, at_most: int) -> int:
        """How many of the next segments are of one video and follow each other."""
        n = 0
        for segment in islice(self._segments, at_most):
            if n == 0:
                first = segment
            elif (segment["video_id"], segment["segment_index"]) != (first["video_id"], first["segment_index"] + n):
                break
            n += 1
        return n

    def heard(self, video_id: str, segments: Iterable[dict[str, Any]] = ()) -> None:
        """A row of this video came back; if it was the first look at it, `segments` are the tasks that follow, one for
        each segment, in order.
        """
        self._opening.discard(video_id)
        self._segments.extend(segments)

    def clear(self) -> list[dict[str, Any]]:
        """Give up what waits. Returns it."""
        left = [*self._segments, *self._videos]
        self._segments.clear()
        self._videos.clear()
        return left


def packed(rows: pa.Table) -> pa.Table:
    """`rows` as one row of lists, which stays whole where a graph cuts blocks into rows. One chunk is not copied."""
    offsets = pa.array([0, len(rows)], pa.int64())
    kinds = [pa.large_list(field) for field in rows.schema]
    chunks = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in rows.columns]
    cells = [pa.LargeListArray.from_arrays(offsets, c, kind) for c, kind in zip(chunks, kinds, strict=True)]
    return pa.Table.from_arrays(cells, names=rows.column_names)


def unpacked(row: pa.Table) -> pa.Table:
    """The rows that `packed` took, without a copy."""
    fields = [field.type.value_field.with_name(field.name) for field in row.schema]
    return pa.Table.from_arrays([column.chunk(0).flatten() for column in row.columns], schema=pa.schema(fields))


class Dealer:
    """Tasks on their way into a running graph, numbered in the order in which they enter it.

    The driver puts, a task inside the graph takes. Either end may be started again, and this object too: what was put
    is put again until it was taken, and what was taken is not kept.
    """

    def __init__(self) -> None:
        self._rows: dict[int, pa.Table] = {}
        self._taken, self._closed = 0, False
        self._filler: pa.Table | None = None
        self._news = asyncio.Condition()

    async def put(self, first: int, rows: list[pa.Table], closed: bool) -> int:
        """Rows from number `first` on, some of which may be known; all before were taken. Returns how many were taken
        by now. `closed`: no others will come.
        """
        async with self._news:
            self._taken = max(self._taken, first)
            self._rows |= {first + i: row for i, row in enumerate(rows) if first + i >= self._taken}
            self._filler = rows[0] if rows else self._filler
            self._closed = closed
            self._news.notify_all()
        return self._taken

    async def take(self, number: int) -> list[pa.Table]:
        """The rows from `number` on that are known; waits for one. Empty after the last one.

        A taker that begins anew asks for rows that are in the graph already. It gets others in their place: Ray knows
        by their number that it has them, and only counts.
        """
        async with self._news:
            if number > self._taken:
                self._rows = {i: row for i, row in self._rows.items() if i >= number}
                self._taken = number
            await self._news.wait_for(lambda: number < self._taken or number in self._rows or self._closed)
            if number < self._taken and self._filler is not None:
                return [self._filler] * (self._taken - number)
            return [self._rows[i] for i in range(number, number + len(self._rows)) if i in self._rows]
