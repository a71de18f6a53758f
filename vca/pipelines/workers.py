"""What a stage is in a worker process of Ray. Nothing here knows Ray."""

import atexit
import os
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from vca.pipelines.read_queue import packed, unpacked


def of_packed(kind: Any) -> type:
    """The stage `kind` over `packed` tables, under the same name, by which its workers are known."""

    class Stage(kind):  # type: ignore[misc]
        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            for rows in super().__call__(unpacked(block)):
                yield packed(rows)

    Stage.__name__ = kind.__name__
    return Stage


def that_ends(kind: Any) -> type:
    """The stage `kind`, whose process is gone when it has ended.

    Ray 2.60 takes its own objects apart at the end of a process, and every few runs a worker then waits for itself: one
    that has left the cluster, and keeps its memory for good. Python's end comes before that.
    """

    class Stage(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            atexit.register(_end_now)
            super().__init__(*arguments)

    Stage.__name__ = kind.__name__
    return Stage


def _end_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
