"""A running graph that is handed more and more rows, and what becomes of them when a part of it dies."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from tests.support.processes import titled, wait_for
from vca.pipelines import cluster
from vca.pipelines.cluster import Stage

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

SCHEMA = pa.schema([("n", pa.int64()), ("depth", pa.int64())])
LEAVES, DEPTH = 3, 3
N_ROWS = sum(LEAVES**d for d in range(DEPTH + 1))


class Pass:
    """A stage that adds nothing; all its rows are of one worker if the graph was put together wrongly."""

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        yield rows.append_column(f"pid{len(rows.column_names)}", pa.array([os.getpid()] * len(rows)))


class Twice(Pass):
    """A stage that makes two rows of one, one after the other."""

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        yield from super().__call__(rows)
        yield from super().__call__(rows)


def _first(waiting: list[dict[str, Any]], rows_out: int) -> tuple[list[dict[str, Any]], int] | None:
    return ([waiting.pop(0)], 1) if waiting and rows_out < 5 else None


def grow(then: Callable[[int], None] = lambda _: None) -> list[dict[str, Any]]:
    """Feed a tree: every row that comes back brings forth others, up to a depth. Returns what came back."""
    waiting = [{"n": 1, "depth": 0}]
    found: list[dict[str, Any]] = []
    stages = [Stage(Pass, [], 2, 0.3), Stage(Pass, [], 1, 0.3)]
    for rows in cluster.fed(lambda rows_out: _first(waiting, rows_out), SCHEMA, stages):
        for row in rows.to_pylist():
            found.append(row)
            if row["depth"] < DEPTH:
                waiting.extend({"n": 10 * row["n"] + k, "depth": row["depth"] + 1} for k in range(LEAVES))
            then(len(found))
    return found


def test_rows_that_were_found_on_the_way_are_read_by_the_same_workers() -> None:
    """Every row comes back once, the workers are not started again, and none of them does it all."""
    found = grow()
    assert len(found) == N_ROWS
    assert set(Counter(row["n"] for row in found).values()) == {1}
    assert len({row["pid2"] for row in found}) == 2
    assert len({row["pid3"] for row in found}) == 1


def test_an_empty_graph_ends() -> None:
    stages = [Stage(Pass, [], 1, 0.3)]
    assert sum(len(rows) for rows in cluster.fed(lambda _: None, SCHEMA, stages)) == 0


def test_what_is_of_one_table_stays_together() -> None:
    """Between the stages and on the way back, though each table is handed on as it comes: Ray is asked once for all."""
    waiting = [([{"n": 2 * n, "depth": 0}, {"n": 2 * n + 1, "depth": 0}], 4) for n in range(3)]
    stages = [Stage(Twice, [], 1, 0.3), Stage(Pass, [], 1, 0.3)]
    found = [table.to_pylist() for table in cluster.fed(lambda _: waiting.pop() if waiting else None, SCHEMA, stages)]
    assert sorted([row["n"] for row in rows] for rows in found) == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]


def test_tables_of_a_task_come_back_one_by_one() -> None:
    """The next stage begins with the first of them, and the end is known when all are back."""
    waiting = [([{"n": n, "depth": 0}], 2) for n in range(3)]
    stages = [Stage(Twice, [], 1, 0.3), Stage(Pass, [], 1, 0.3)]
    found = [
        len(rows) for rows in cluster.fed(lambda out: waiting.pop() if waiting and out < 2 else None, SCHEMA, stages)
    ]
    assert found == [1] * 6


@pytest.mark.parametrize("part", [pytest.param("_deal", marks=pytest.mark.long), "Dealer"])
def test_the_feed_may_be_killed(part: str) -> None:
    """Killed in the middle, the task that feeds the graph or the actor that it asks is started again: no row is lost,
    and none is done twice.
    """
    pid, struck = os.getpid(), []

    def strike(done: int) -> None:
        if done == N_ROWS // 3:
            victim = wait_for(lambda: titled(pid, part), f"a process of {part}")[0]
            struck.append(victim.pid)
            victim.kill()

    found = grow(strike)
    assert struck
    assert sorted(row["n"] for row in found) == sorted({row["n"] for row in found})
    assert len(found) == N_ROWS


def test_a_reader_that_is_given_up_leaves_nothing_behind() -> None:
    """When the driver stops in the middle, the actor goes, and the next graph is not disturbed."""
    waiting = [{"n": n, "depth": 0} for n in range(8)]
    stages = [Stage(Pass, [], 1, 0.3)]
    graph = cluster.fed(lambda rows_out: _first(waiting, rows_out), SCHEMA, stages)
    next(graph)
    graph.close()
    wait_for(lambda: not titled(os.getpid(), "Dealer"), "the end of the actor")
    assert len(grow()) == N_ROWS
