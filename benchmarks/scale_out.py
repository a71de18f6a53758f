"""Whether more nodes do more work, and what videos of very different lengths cost.

Several raylets on this machine stand for nodes of one CPU each. A stage that waits stands for decoding and encoding:
one machine has not the cores of eight, but it has their scheduling. How long it waits was measured with the real stages
on a segment of a generated video just before. The graph, the queue in front of it and the number of workers are the
job's.

The clock starts when all workers are there: they wait for each other in their constructors. It stops when the driver
holds the last row. Each measurement has a cluster and a process of its own.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import jobs, videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio
from vca.pipelines import cluster
from vca.pipelines.cluster import Stage
from vca.pipelines.config import RayConfig, ResourcesConfig
from vca.pipelines.plan import Action
from vca.pipelines.read_queue import TOGETHER_BYTES, ReadQueue
from vca.pipelines.stages import EncodeStage, ReadStage

TARGET_EFFICIENCY, TARGET_MAKESPAN = 0.9, 1.15
SKEW = 20
SEGMENT_S = 60
TASKS = pa.schema(
    [
        ("video_id", pa.string()),
        *((name, pa.int64()) for name in ("size_bytes", "n_segments", "segment_index", "n_together")),
    ]
)


@dataclass(frozen=True)
class Waits:
    """What stands for the work on one segment."""

    probe_s: float
    read_s: float
    encode_s: float
    row_bytes: int
    """Features, which go from the worker to the driver."""

    @property
    def segment_s(self) -> float:
        """All the work on one: a CPU cannot do two things at once."""
        return self.read_s + self.encode_s


def measure(settings: Settings) -> list[Report]:
    """The same work for each node on 1, 2, 4 and 8 nodes; then long and short videos on the largest cluster."""
    sizes = (1, 2) if settings.small else (1, 2, 4, 8)
    per_node = 4 if settings.small else 16
    waits = Waits(0.01, 0.1, 0.02, 1 << 20) if settings.small else measured_waits(settings)
    conditions = {name: round(value, 3) for name, value in asdict(waits).items()} | {"cpus_of_a_node": 1}
    return [_efficiency(settings, waits, sizes, per_node, conditions), _skew(settings, waits, sizes[-1], conditions)]


def measured_waits(settings: Settings) -> Waits:
    """How long the real stages take for one segment here, each with the machine to itself."""
    look = videos.P360
    folder = settings.folder("segment")
    videos.clip(folder / "segment.mp4", look, SEGMENT_S)
    videos.clip(folder / "longer.mp4", look, SEGMENT_S + 2)
    from vca.pipelines import run
    from vca.pipelines.watch import Watch

    with tempfile.TemporaryDirectory(dir=settings.work) as output:
        job = run.prepare(jobs.tag_config(folder, Path(output) / "out", *jobs.LIGHT))
        tasks = job.plan(Path(output)).rows(Action.DECODE)
    settings_of_readers = job.read_settings
    reader = ReadStage(settings_of_readers, Watch())
    encoder = EncodeStage(job.config.encoders, settings_of_readers.plan.step_us, 0.0, Watch())
    from vca.pipelines.stages import TASKS as READ_TASKS

    found = {}
    for row in tasks.to_pylist() * 2:  # the first time, libraries are loaded
        whole = {"media": None, "segment_index": None, "n_together": 1}
        task = pa.Table.from_pylist([{n: (row | whole)[n] for n in READ_TASKS.names}], schema=READ_TASKS)
        (read,) = reader(task)
        (encoded,) = encoder(read)
        found[row["key"]] = (read.column("read_s")[0].as_py(), encoded.column("encode_s")[0].as_py(), encoded.nbytes)
    read_s, encode_s, row_bytes = found["segment.mp4"]
    return Waits(found["longer.mp4"][0], read_s, encode_s, row_bytes)


def _efficiency(
    settings: Settings, waits: Waits, sizes: Sequence[int], per_node: int, conditions: dict[str, Any]
) -> Report:
    names = {n: f"{n} nodes, s" for n in sizes}
    sides = {name: _side(waits, n, [1] * per_node * n) for n, name in names.items()}
    found = in_turn(sides, settings.rounds)
    least_s = per_node * waits.segment_s
    figures = [
        Figure(
            f"efficiency of {n} nodes", ratio(found, names[sizes[0]], names[n]), "x", TARGET_EFFICIENCY, "at least",
            samples={name: found[name] for name in (names[sizes[0]], names[n])},
            note=f"waiting alone takes {least_s:.1f} s on any number of nodes",
        )
        for n in sizes[1:]
    ]  # fmt: skip
    conditions = {"segments_per_node": per_node} | conditions
    return Report("scale_out", "Scaling out, the same work for each node", figures, conditions)


def _skew(settings: Settings, waits: Waits, n_nodes: int, conditions: dict[str, Any]) -> Report:
    n_long, n_short = (1, 6) if settings.small else (n_nodes, 6 * n_nodes)
    n_segments = [SKEW] * n_long + [1] * n_short
    found = in_turn({"makespan, s": _side(waits, n_nodes, n_segments)}, settings.rounds)
    bound_s = (sum(n_segments) * waits.segment_s + n_long * waits.probe_s) / n_nodes
    found["lower bound, s"] = [bound_s] * settings.rounds
    figure = Figure(
        f"makespan over its lower bound, {n_nodes} nodes", ratio(found, "makespan, s", "lower bound, s"), "x",
        TARGET_MAKESPAN, samples=found, note="lower bound: all workers wait all the time",
    )  # fmt: skip
    conditions = {"long_videos": n_long, "segments_of_one": SKEW, "short_videos": n_short} | conditions
    return Report("scale_out_skew", f"Lengths that differ by a factor of {SKEW}", [figure], conditions)


def _side(waits: Waits, n_nodes: int, n_segments: Sequence[int]) -> Any:
    """A measurement in a process of its own."""

    def side() -> float:
        command = [sys.executable, "-m", "benchmarks.scale_out"]
        request = json.dumps({"waits": asdict(waits), "n_nodes": n_nodes, "n_segments": list(n_segments)})
        done = subprocess.run([*command, request], cwd=jobs.REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.splitlines()[-1].removeprefix("makespan_s "))

    return side


# --- one measurement, in its own process -----------------------------------------------------------------------------


class Gate:
    """Lets all workers begin at the same moment."""

    def __init__(self, n_workers: int) -> None:
        self._barrier = asyncio.Barrier(n_workers)
        self._opened_at = 0.0

    async def wait(self) -> None:
        await self._barrier.wait()
        self._opened_at = self._opened_at or time.time()

    async def opened_at(self) -> float:
        return self._opened_at


class WaitingStage:
    """Waits where a worker would open, or decode and encode."""

    def __init__(self, gate: Any, waits: Waits) -> None:
        import ray

        self._waits = waits
        self._payload = pa.array([bytes(waits.row_bytes)], pa.large_binary())
        ray.get(gate.wait.remote())

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        (task,) = tasks.to_pylist()  # all are too large to be read together
        if task["segment_index"] is None and task["n_segments"] > 1:
            time.sleep(self._waits.probe_s)
            yield _row(tasks, "probed", pa.nulls(1, pa.large_binary()))
            return
        for _ in range(task["n_together"]):
            time.sleep(self._waits.segment_s)
            yield _row(tasks, "read", self._payload)


def _row(tasks: pa.Table, outcome: str, features: pa.Array) -> pa.Table:
    return tasks.append_column("outcome", pa.array([outcome])).append_column("features", features)


def makespan_s(waits: Waits, n_nodes: int, n_segments: Sequence[int]) -> float:
    """Seconds for videos of so many segments, largest first as the plan has them, on a cluster of its own."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in cluster.QUIET.items():
        os.environ.setdefault(name, value)
    nodes = Cluster()
    for _ in range(n_nodes):
        nodes.add_node(num_cpus=1, object_store_memory=256 << 20, include_dashboard=False)
    nodes.wait_for_nodes()
    cluster.connect(RayConfig(address=nodes.address))
    try:
        slots = cluster.work_out_slots(ResourcesConfig())
        assert (slots.readers, slots.encoders) == (n_nodes, 0)
        actor: Any = ray.remote(num_cpus=0)(Gate)
        gate = actor.remote(slots.readers)
        stages = [Stage(WaitingStage, [gate, waits], slots.readers, slots.reader_cpus)]
        todo = [
            {"video_id": str(k), "size_bytes": n * TOGETHER_BYTES, "n_segments": n}
            for k, n in enumerate(sorted(n_segments, reverse=True))
        ]
        queue, n_read = ReadQueue(todo, slots.readers, slots.encoders), 0
        for rows in cluster.fed(queue.take, TASKS, stages):
            for row in rows.to_pylist():
                later = range(row["n_segments"]) if row["outcome"] == "probed" else ()
                task = {name: row[name] for name in ("video_id", "size_bytes", "n_segments")}
                queue.heard(row["video_id"], [task | {"segment_index": i} for i in later])
                n_read += row["outcome"] == "read"
            ended_at = time.time()
        assert n_read == sum(n_segments), "segments were lost"
        return float(ended_at - ray.get(gate.opened_at.remote()))
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print("makespan_s", makespan_s(Waits(**request["waits"]), request["n_nodes"], request["n_segments"]))
