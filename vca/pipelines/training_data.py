"""Which window is learned from when, and how a worker gets it.

The order is a pure function of seed, epoch and step: an epoch goes through the blocks in a drawn order and through the
rows of each block in a drawn order; a global batch is the next rows of that order. A batch is cut into slots of
`micro_windows` rows; slot `a * workers + r` is forward pass `a` of worker `r`. So the same rows meet in a forward pass
whatever the number of workers, and a run that goes on in the middle of an epoch goes on with the same rows.

Ray Data streams the blocks to each worker in its order. Its `streaming_split` is not used: it hands out blocks by
demand. The price: a worker reads all blocks, also those of which it needs few rows.

Shape letters: N windows, K tasks.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vca.core.annotations import Split
from vca.core.errors import ConfigError
from vca.media.output import Output

IntArray = npt.NDArray[np.int64]

READER_CPUS = 0.05
"""Of the cluster, for each block that is being read: it has to fit beside the workers, and is mostly waiting."""
RETRIES = 3

PLAN = pa.schema([pa.field("block", pa.string()), pa.field("rows", pa.list_(pa.int64()))])
"""One row is one visit to a block: which of its rows, in the order in which they are wanted."""


@dataclass(frozen=True, slots=True)
class Index:
    """Where the windows of one split lie, in the order of the set."""

    folder: str
    blocks: tuple[str, ...]
    block: IntArray  # [N] index into `blocks`
    row: IntArray  # [N] row inside the block
    annotated: npt.NDArray[np.bool_]  # [N, K]

    def __len__(self) -> int:
        return len(self.row)


def read_index(output: Output, folder: str, blocks: Sequence[str], split: Split) -> Index:
    """Reads two narrow columns of every block. Raises `ConfigError` for a split without windows."""
    places: list[IntArray] = []
    annotated: list[npt.NDArray[np.bool_]] = []
    for number, name in enumerate(blocks):
        table = read_block(output, f"{folder}/{name}", ["split", "annotated"])
        rows = np.flatnonzero(np.array(table.column("split").to_pylist()) == str(split))
        known = np.array(table.column("annotated").to_pylist(), np.bool_).reshape(len(table), -1)
        places.append(np.stack([np.full(len(rows), number), rows], axis=1).astype(np.int64))
        annotated.append(known[rows])
    place = np.concatenate(places) if places else np.zeros((0, 2), np.int64)
    if not len(place):
        raise ConfigError(
            f"annotations: the {split} split has no windows; put videos into it, or change annotations.splits"
        )
    return Index(folder, tuple(blocks), place[:, 0], place[:, 1], np.concatenate(annotated))


def read_block(output: Output, path: str, columns: list[str]) -> pa.Table:
    with output.errors(path), output.filesystem.open(output.path(path), "rb") as file:
        return pq.read_table(file, columns=columns)


def epoch_order(index: Index, seed: int, epoch: int) -> IntArray:
    """Windows [N] in the order of this epoch: blocks drawn, rows drawn inside a block."""
    draw = np.random.default_rng([seed, epoch])
    rank_of_block = draw.permutation(len(index.blocks))
    return np.lexsort((draw.random(len(index)), rank_of_block[index.block]))


@dataclass(frozen=True, slots=True)
class Slot:
    """One forward pass of one worker."""

    step: int
    """Optimiser step inside the epoch."""
    number: int
    """Of the slots of this step, over all workers."""
    windows: IntArray
    counts: bool
    """False where the last step of an epoch has no rows left: the pass is made all the same, because workers wait for
    each other, and its result is thrown away."""


def slots_of(order: IntArray, batch: int, micro: int, workers: int, worker: int, first_step: int = 0) -> list[Slot]:
    """The forward passes of a worker, in order."""
    found = []
    for step in range(first_step, -(-len(order) // batch)):
        rows = order[step * batch : (step + 1) * batch]
        for number in range(worker, batch // micro, workers):
            windows = rows[number * micro : (number + 1) * micro]
            found.append(Slot(step, number, windows if len(windows) else rows[:1], len(windows) > 0))
    return found


def denominators_of(index: Index, order: IntArray, batch: int, step: int) -> npt.NDArray[np.float32]:
    """Windows of the global batch in which each task is annotated [K]."""
    counted: npt.NDArray[np.float32] = index.annotated[order[step * batch : (step + 1) * batch]].sum(axis=0)
    return counted.astype(np.float32)


def visits(index: Index, windows: IntArray) -> pa.Table:
    """The visits to blocks that give these windows in order, schema `PLAN`."""
    block, row = index.block[windows], index.row[windows]
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    rows = [
        {"block": f"{index.folder}/{index.blocks[block[first]]}", "rows": part}
        for first, part in zip(starts, np.split(row, starts[1:]), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def stream(output: Output, index: Index, slots: Sequence[Slot]) -> Iterator[tuple[Slot, list[bytes]]]:
    """Each slot with its windows (safetensors bytes), while Ray Data reads the next blocks."""
    if not slots:
        return
    windows = np.concatenate([slot.windows for slot in slots])
    blobs = _blobs(output, visits(index, windows))
    for slot in slots:
        yield slot, [next(blobs) for _ in slot.windows]


def _blobs(output: Output, plan: pa.Table) -> Iterator[bytes]:
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    # One block for each visit. Not from_arrow: it asks a task of one whole CPU for the types, and none may be left.
    dataset: Any = ray.data.from_items(plan.to_pylist(), override_num_blocks=len(plan))
    with warnings.catch_warnings():
        # The only way to bound retries in Ray 2.60; it says that the arguments will move in 2.64.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset = dataset.map_batches(
            _take, fn_args=[output], batch_size=None, batch_format="pyarrow", num_cpus=READER_CPUS, max_retries=RETRIES
        )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for blob in table.column("arrays"):
            yield blob.as_py()


def _take(plan: pa.Table, output: Output) -> Iterator[pa.Table]:
    """Rows of blocks; runs in Ray's own workers."""
    for visit in plan.to_pylist():
        yield read_block(output, visit["block"], ["arrays"]).take(pa.array(visit["rows"], pa.int64()))
