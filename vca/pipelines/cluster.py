"""Ray: connecting, checking resources, and the streaming graphs. Resources are stated here and nowhere else."""

import logging
import os
import re
import secrets
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vca.core.errors import ConfigError, PublishError
from vca.pipelines.config import RayConfig, ResourcesConfig
from vca.pipelines.predict import PredictSettings, PredictStage
from vca.pipelines.read_queue import Dealer, ReadQueue, Take, packed, unpacked
from vca.pipelines.scoring import ScoreSettings, ScoreStage
from vca.pipelines.stages import TASKS, EncodeStage, ReadAndEncodeStage, ReadSettings, ReadStage
from vca.pipelines.watch import Watch, Work
from vca.pipelines.window_set import WindowSettings, WindowStage
from vca.pipelines.workers import of_packed, that_ends

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray Data's own actors trip a warning of Ray's core in every run
}
"""Set where the user has not: nothing phones home, and the log belongs to the job."""

UNWATCHED = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "10",
}
"""Of a cluster that this process starts, and that ends with it: nobody looks at its metrics and lists of tasks, and no
driver prints its logs. They cost CPU in every process, all the time.
"""

_AUTHENTICATION = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Where one of these is set, the user has decided."""

RETRIES = {"max_restarts": 20, "max_task_retries": -1}
"""What a dead worker costs. The restarts are bounded, or a segment that kills its worker each time would hold up the
night without end. The retries are not: while a dead node is not yet known to be dead, Ray uses one up every fraction of
a second, and a handful of them ended the run.
"""

BLOCK_BYTES = 128 << 20
REMINDER_S = 10.0
PREDICTOR_SEGMENTS = 256
"""Segments a predictor must have to tag before another is started: libraries and models take ten seconds of CPU here,
and a zero-shot tagger 20 ms for a segment."""


@dataclass(frozen=True, slots=True)
class Slots:
    """How many workers of each stage, and what one of them takes."""

    readers: int
    reader_cpus: float
    encoders: int  # 0: the readers encode
    encoder_cpus: float
    encoder_gpus: float
    predictors: int
    predictor_cpus: float
    predictor_gpus: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a graph: a class over Arrow tables, and the fixed pool of workers that runs it."""

    kind: type
    arguments: Sequence[Any]
    size: int
    cpus: float
    gpus: float = 0.0


def connect(config: RayConfig) -> bool:
    """Join the cluster of the environment, or start a local one. Returns whether this call did, for `disconnect`."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    address = config.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            with _native_stderr_filtered():
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"ray.address = {address!r}: {first}; start the cluster with `RAY_AUTH_MODE=token ray start --head` "
                "or unset the address"
            ) from error
        return True
    for name, value in UNWATCHED.items():
        os.environ.setdefault(name, value)
    # Ray listens on every address of the machine and knows no way to stay on loopback. It asks for a token, but its own
    # is a file that other users may be able to read, and the same for every cluster. This one lives as long as the run.
    if not _AUTHENTICATION & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with _native_stderr_filtered():
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            **quiet,
        )
    return True


@contextmanager
def _native_stderr_filtered() -> Iterator[None]:
    """Keep Ray's note that it obeys RAY_BACKEND_LOG_LEVEL out of the job's log; every other line passes.

    The note comes from C++ and knows no other switch.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if b"Set ray log level from environment variable" not in line:
                    sys.stderr.write(line.decode(errors="replace"))


def disconnect(connected: bool) -> None:
    """Undo what `connect` did: stop a local cluster, leave another."""
    import ray

    if connected:
        ray.shutdown()


def head_address() -> str:
    """Where the head node of the cluster listens, host:port."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def work_out_slots(config: ResourcesConfig) -> Slots:
    """Fill in what the configuration leaves open, and refuse what the cluster does not have.

    Without GPUs each CPU gets one worker that reads and encodes. Where encoders are asked for, a reader and
    an encoder share a CPU: the kernel balances the two better than whole CPUs for each would.
    """
    import ray

    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = int(cluster.get("CPU", 0)), cluster.get("GPU", 0.0)
    for field, wanted in (("encoder_gpus", config.encoder_gpus), ("predictor_gpus", config.predictor_gpus)):
        if wanted > gpus and not config.autoscaling:
            raise ConfigError(
                f"resources.{field} = {wanted:g}: the cluster has {gpus:g} GPUs; set it to 0, add a GPU node, "
                "or set resources.autoscaling if one will be started"
            )
    if cpus == 0 and not config.autoscaling:
        raise ConfigError("ray.address: the cluster has no CPUs for tasks; add a worker node")
    on_gpu = config.encoder_gpus > 0
    encoders = config.encoders or (max(1, int(gpus / config.encoder_gpus)) if on_gpu else 0)
    readers = config.readers or max(1, cpus)
    predictor_on_gpu = config.predictor_gpus > 0
    predictors = config.predictors or max(1, int(gpus / config.predictor_gpus) if predictor_on_gpu else cpus)
    # The rest is room for Ray's own small tasks.
    reader_share, encoder_share = (0.8, 0.1) if on_gpu else (0.45, 0.45) if encoders else (0.9, 0.0)
    scale = min(1.0, cpus / max(readers, encoders, 1)) if cpus else 1.0
    return Slots(
        readers=readers,
        reader_cpus=round(reader_share * scale, 3),
        encoders=encoders,
        encoder_cpus=round(encoder_share * scale, 3),
        encoder_gpus=config.encoder_gpus,
        predictors=predictors,
        predictor_cpus=round(min(0.9, 0.9 * cpus / predictors) if cpus else 0.9, 3),
        predictor_gpus=config.predictor_gpus,
    )


class RemoteWatch:
    """A `Watch` in an actor on the driver's node: driver and workers talk to the same one, by the driver's clock."""

    def __init__(self, deadline: datetime | None, budget_us: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Killed, it comes back with the same deadline and a fresh budget, which is better than a lost night.
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": here,
        }
        actor: Any = ray.remote(Watch)
        self._actor = actor.options(**options).remote(deadline, budget_us)

    def begin(self, work: Work, may_defer: bool) -> bool:
        import ray

        answer = self._actor.begin.remote(work, may_defer)
        return not may_defer or bool(ray.get(answer))

    def end(self, work: Work, decoded_us: int = 0) -> None:
        self._actor.end.remote(work, decoded_us)

    def close(self) -> None:
        """Let the actor go. Handles lie in workers and tracebacks, so counting them would keep it for a while."""
        import ray

        with suppress(ray.exceptions.RayError):  # a cluster that died takes it along, and has said so before
            ray.kill(self._actor)

    def oldest(self) -> Work | None:
        """None too where the actor does not answer: whoever asks wants to help, not to fail the run."""
        import ray

        try:
            found: Work | None = ray.get(self._actor.oldest.remote(), timeout=10.0)
        except (ray.exceptions.RayError, TimeoutError):
            return None
        return found


def read_and_encode(
    queue: ReadQueue, settings: ReadSettings, encoders: Any, slots: Slots, watch: RemoteWatch
) -> Iterator[pa.Table]:
    """Stream the tasks of `queue` through decoding and encoding; yields `stages.ENCODED` rows as they are done. Between
    two of them the caller tells the queue what it learned.
    """
    if slots.encoders == 0:
        stages = [Stage(ReadAndEncodeStage, [settings, encoders, watch], slots.readers, slots.reader_cpus)]
    else:
        arguments = [encoders, settings.plan.step_us, slots.encoder_gpus, watch]
        stages = [
            Stage(ReadStage, [settings, watch], slots.readers, slots.reader_cpus),
            Stage(EncodeStage, arguments, slots.encoders, slots.encoder_cpus, slots.encoder_gpus),
        ]
    yield from fed(queue.take, TASKS, stages)


def fed(take: Take, schema: pa.Schema, stages: Sequence[Stage]) -> Iterator[pa.Table]:
    """Stream the tasks that `take` hands out through `stages`, as rows of `schema`.

    `take` is asked again whenever results were looked at, so they may decide what comes next. The end has come when it
    hands out nothing and all that it did is back.
    """
    feed = _Feed(take, schema)
    try:
        feed.start()
        dataset = _fed_dataset(feed.dealer, feed.here)
        for stage in stages:
            kind = of_packed(stage.kind)
            dataset = _stage(dataset, kind, list(stage.arguments), stage.size, stage.cpus, stage.gpus)
        # Without prefetching: what Ray held back until more comes would never come.
        for row in _rows(dataset, prefetch_batches=0):
            rows = unpacked(row)
            yield rows
            feed.fill(returned=len(rows))
    finally:
        feed.close()


class _Feed:
    """The driver's end of a `Dealer`, which lives in an actor on the driver's node."""

    def __init__(self, take: Take, schema: pa.Schema) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._take, self._schema = take, schema
        self.here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        actor: Any = ray.remote(Dealer)
        self.dealer: Any = actor.options(scheduling_strategy=self.here, **options).remote()
        self._tasks: deque[pa.Table] = deque()  # not known to be taken
        self._first = 0  # number of the first of them
        self._rows_out = 0  # results that are to come back
        self._taken: Any = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reminder = threading.Thread(target=self._remind, daemon=True)

    def start(self) -> None:
        """Hand out the first tasks."""
        self.fill()
        self._reminder.start()

    def close(self) -> None:
        """Let the actor go, at the end or in the middle."""
        import ray

        self._closed.set()
        if self._reminder.is_alive():
            self._reminder.join()
        if self._taken is not None:
            with suppress(ray.exceptions.RayError):  # Ray says of a call without an answer that it was lost, in red
                ray.get(self._taken, timeout=REMINDER_S)
        with suppress(ray.exceptions.RayError):
            ray.kill(self.dealer)

    def fill(self, returned: int = 0) -> None:
        """Hand out what there is room for."""
        with self._lock:
            self._fill(returned)

    def _remind(self) -> None:
        """A dealer that died when it had been told and not yet asked has forgotten, and nothing may come back that has
        it told again.
        """
        while not self._closed.wait(REMINDER_S):
            with self._lock:
                self._put()

    def _put(self) -> None:
        self._taken = self.dealer.put.remote(self._first, list(self._tasks), not self._rows_out)

    def _fill(self, returned: int) -> None:
        import ray

        self._rows_out -= returned
        before = len(self._tasks)
        while (taken := self._take(self._rows_out)) is not None:
            rows, n_rows = taken
            task = [{name: row[name] for name in self._schema.names} for row in rows]
            self._tasks.append(packed(pa.Table.from_pylist(task, self._schema)))
            self._rows_out += n_rows
        if len(self._tasks) == before and self._rows_out:
            return
        if self._taken is not None:
            number = ray.get(self._taken)
            while self._tasks and self._first < number:
                self._tasks.popleft()
                self._first += 1
        self._put()


def _fed_dataset(dealer: Any, here: Any) -> Any:
    """The tasks that a dealer hands out, one block each."""
    import ray

    # Block by block as they come: Ray would collect rows until they fill one, and the next stage would wait. It cuts
    # blocks of several rows for that, hence `packed`.
    _configure(in_order=False, block_bytes=1)
    dataset: Any = ray.data.from_items([0], override_num_blocks=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        # No CPUs, and so no fusion with the next stage, which would put all tasks into one worker.
        return dataset.map_batches(
            _deal, fn_args=[dealer], batch_size=None, num_cpus=0, max_retries=-1, scheduling_strategy=here
        )


def _deal(_: Any, dealer: Any) -> Iterator[pa.Table]:
    """Take tasks until there are no more; runs in a task of the graph."""
    import ray

    number = 0
    while tasks := ray.get(dealer.take.remote(number)):
        yield from tasks
        number += len(tasks)


def predict(
    groups: pa.Table, settings: PredictSettings, slots: Slots, watch: RemoteWatch, may_defer: bool
) -> Iterator[pa.Table]:
    """Stream `predict.GROUPS` rows through the tagger; yields `predict.PREDICTIONS` rows."""
    size = predictors_worth_starting(groups, slots.predictors)
    arguments = [settings, watch, may_defer]
    yield from _rows(
        _stage(_dataset(groups), PredictStage, arguments, size, slots.predictor_cpus, slots.predictor_gpus)
    )


def predictors_worth_starting(groups: pa.Table, at_most: int) -> int:
    """At least one, and no more than there is work for: each loads models of its own."""
    videos = pc.list_flatten(groups.column("videos").combine_chunks())
    n_segments: int = pc.sum(pc.struct_field(videos, "n_segments")).as_py() or 0
    return max(1, min(at_most, len(groups), n_segments // PREDICTOR_SEGMENTS))


def cut_windows(groups: pa.Table, settings: WindowSettings, workers: int | None) -> Iterator[pa.Table]:
    """Stream `predict.GROUPS` rows through `WindowStage`, in their order: the blocks of a window set are repeatable."""
    size, cpus = _pool(workers, len(groups))
    yield from _rows(_stage(_dataset(groups, in_order=True), WindowStage, [settings], size, cpus, 0))


def score(groups: pa.Table, settings: ScoreSettings, workers: int | None, gpus: float) -> Iterator[pa.Table]:
    """Stream `predict.GROUPS` rows through `ScoreStage`; yields `scoring.SCORED` rows."""
    size, cpus = _pool(workers, len(groups))
    yield from _rows(_stage(_dataset(groups), ScoreStage, [settings], size, cpus, gpus))


def _pool(workers: int | None, n_tasks: int) -> tuple[int, float]:
    """Size of a pool of whole-CPU workers and the CPUs of one: all of the cluster, unless fewer are asked for."""
    import ray

    available = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    size = max(1, min(workers or available, n_tasks))
    return size, round(min(0.9, 0.9 * available / size), 3)


def _stage(dataset: Any, stage: type, arguments: list[Any], size: int, cpus: float, gpus: float) -> Any:
    """One stage as a fixed pool of actors: loading models is dear, so no actor is given up while the graph runs.

    One task waits at each actor while another is worked on.
    """
    import ray

    with warnings.catch_warnings():
        # The only way to bound retries in Ray 2.60; it says that the arguments will move in 2.64.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return dataset.map_batches(
            that_ends(stage),
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=cpus,
            num_gpus=gpus,
            **RETRIES,
        )


def _rows(dataset: Any, prefetch_batches: int = 2) -> Iterator[pa.Table]:
    """Stream the results to the driver. A `VcaError` of a worker arrives as itself, not in Ray's report, and so does
    an output that a worker could not read.
    """
    from ray.exceptions import RayError

    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_batches)
    except RayError as error:
        for kind in (ConfigError, PublishError):
            found = re.search(rf"{kind.__module__}\.{kind.__name__}: (.+)", str(error))
            if found is not None:
                raise kind(found[1].strip()) from error
        found = re.search(r"(?:OSError|FileNotFoundError): (output: .+)", str(error))  # as `Output` raises them
        if found is not None:
            raise PublishError(f"{found[1].strip()}; nothing is lost, run again when the storage works") from error
        raise


def _dataset(rows: pa.Table, in_order: bool = False) -> Any:
    """One block per row: the row is the unit of scheduling. `in_order` costs waiting behind slow rows."""
    import ray

    _configure(in_order, BLOCK_BYTES)
    return ray.data.from_arrow([rows.slice(i, 1) for i in range(len(rows))])


def _configure(in_order: bool, block_bytes: int) -> None:
    """How Ray Data runs the graphs made after this. A stage hands its results on when they come to `block_bytes`, or
    with the end of a block.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = in_order
    context.target_max_block_size = block_bytes
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # The same error is raised. Printed here besides, a user's mistake would be eighty lines, and secrets not masked.
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
