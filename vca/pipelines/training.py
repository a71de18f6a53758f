"""Training, as the driver sees it: one call that starts the workers, tells how it goes and returns the best weights.

Ray Train (V2) starts the workers, joins them into a process group and starts them again when one dies; they go on from
the newest checkpoint in the output (`training_checkpoint`). When the driver itself dies, the same call with the same
arguments goes on in the same way. What a worker does is in `training_worker`, which rows it sees in `training_data`.
"""

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vca.core.annotations import Split
from vca.core.errors import ConfigError, one_line
from vca.core.identity import digest
from vca.media.output import Output
from vca.models.fusion_config import FusionConfig, FusionSpec
from vca.pipelines import training_checkpoint
from vca.pipelines.progress import clock
from vca.pipelines.train_config import TrainConfig
from vca.pipelines.training_checkpoint import Checkpoint, EpochMetrics, run_folder
from vca.pipelines.training_data import READER_CPUS, read_index
from vca.pipelines.window_set import INDEX, WindowSet

POLL_S = 0.5
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
RULES = 2
"""Raised when the loop or the model would make other weights of the same settings."""

STAY = ("RAY_CHDIR_TO_TRIAL_DIR", "0")
"""Ray Train would move the workers into a folder of its own, where relative paths of models lead nowhere."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    weights: str
    """The best epoch's weights: a safetensors file, relative to the output; for `learning.load_weights`."""
    epochs: tuple[EpochMetrics, ...]
    """All epochs of the run, those before a restart included."""
    step_losses: tuple[float, ...]
    """The loss of every optimiser step."""
    resumed_from: int | None
    """Optimiser steps that were done when this call began; None for a new run."""

    @property
    def best(self) -> EpochMetrics:
        return self.epochs[self.epochs[-1].best_epoch - 1]


def train(
    window_set: WindowSet,
    fusion: FusionConfig,
    spec: FusionSpec,
    config: TrainConfig,
    output: Output,
    run_name: str,
    report: Callable[[EpochMetrics], None],
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train a fusion model, or go on with the run of this name. Ray must be connected.

    `report` gets every epoch when its checkpoint is written, also those of an earlier start; `say` gets lines for a
    person. Both are called in the caller's thread. Raises `ConfigError` for what a user can mend: a split without
    windows, other settings than the run was begun with, a damaged checkpoint, a loss that is not finite, a cluster that
    is too small. What keeps failing after `max_failures` restarts is Ray Train's `TrainingFailedError`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_name):
        raise ConfigError(f"training run {run_name!r}: a run name has letters, digits, '.', '_' and '-' only")
    definition = _definition(window_set, fusion, spec, config, output)
    found = newest_checkpoint(output, run_name)
    if found is not None:
        training_checkpoint.check_same(run_name, found.definition, definition)
    told = _Told(report, say or (lambda _: None))
    if found is not None:
        told.epochs(found.state.history)
    if found is None or not found.state.finished:
        _check_cluster(config)
        _run_workers(window_set, fusion, spec, config, output, run_name, definition, told)
    last = newest_checkpoint(output, run_name)
    assert last is not None, f"training ended without a checkpoint: {run_name}"
    assert last.state.finished, f"training ended early: {last.folder}"
    told.epochs(last.state.history)
    return TrainResult(
        weights=f"{last.folder}/{training_checkpoint.BEST}",
        epochs=tuple(last.state.history),
        step_losses=tuple(last.state.step_losses),
        resumed_from=None if found is None else found.state.step,
    )


def newest_checkpoint(output: Output, run_name: str) -> Checkpoint | None:
    """Where a run stands. Raises `ConfigError` if its newest checkpoint is damaged."""
    folders = training_checkpoint.checkpoints(output, run_name)
    return training_checkpoint.read(output, folders[-1]) if folders else None


def progress_line(metrics: EpochMetrics) -> str:
    """An epoch for a person."""
    figures = [f"{name} {value:.3f}" for name, value in metrics.validation.items() if name not in ("score", "loss")]
    best = "best so far" if metrics.best_epoch == metrics.epoch else f"best was epoch {metrics.best_epoch}"
    return (
        f"epoch {metrics.epoch}/{metrics.epochs}: loss {metrics.train['loss']:.4f}, "
        f"validation score {metrics.validation['score']:.4f} ({', '.join(figures)}; {best}), "
        f"{metrics.windows_per_s:.1f} windows/s" + (f", at most {clock(metrics.left_s)} left" if metrics.left_s else "")
    )


class _Told:
    """What the caller has heard already: a worker that is started again tells some things twice."""

    def __init__(self, report: Callable[[EpochMetrics], None], say: Callable[[str], None]) -> None:
        self._report, self._say, self._last = report, say, 0

    def epochs(self, history: Sequence[EpochMetrics]) -> None:
        for metrics in history:
            if metrics.epoch > self._last:
                self._last = metrics.epoch
                self._report(metrics)
                self._say(progress_line(metrics))

    def message(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "epoch":
            self.epochs([EpochMetrics(**message["metrics"])])
        elif message.get("kind") == "progress":
            self._say(
                f"epoch {message['epoch']}, step {message['step']}/{message['steps']}: loss {message['loss']:.4f}, "
                f"{message['windows_per_s']:.1f} windows/s, at most {clock(message['left_s'])} left"
            )
        elif message.get("kind") == "failure":
            self._say(f"training: {message['text']}; going on from the newest checkpoint")


def _definition(
    window_set: WindowSet, fusion: FusionConfig, spec: FusionSpec, config: TrainConfig, output: Output
) -> dict[str, Any]:
    """What shapes the result. A run only goes on with the same."""
    return {
        "rules": RULES,
        "windows": digest("window set", output.read_bytes(f"{window_set.folder}/{INDEX}").decode()),
        "fusion": fusion.model_dump(mode="json"),
        "spec": digest("spec", spec.model_dump_json()),
        "train": config.shaping,
    }


def _check_cluster(config: TrainConfig) -> None:
    """Ray Train would wait for ever for workers that no node can hold."""
    import ray

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, kind, wanted in (
        ("cpus", "CPU", config.workers * config.cpus + READER_CPUS),
        ("gpus", "GPU", config.workers * config.gpus),
    ):
        if wanted > have.get(kind, 0.0):
            raise ConfigError(
                f"train.workers = {config.workers} with train.{name} = {getattr(config, name):g} need {wanted:g} "
                f"{kind}s with the reading of data, the cluster has {have.get(kind, 0.0):g}; lower one of them"
            )


def _run_workers(
    window_set: WindowSet,
    fusion: FusionConfig,
    spec: FusionSpec,
    config: TrainConfig,
    output: Output,
    run_name: str,
    definition: dict[str, Any],
    told: _Told,
) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from vca.pipelines.training_worker import Job, run

    os.environ.setdefault(*STAY)
    training, validation = (
        ray.put(read_index(output, window_set.folder, window_set.blocks, split))
        for split in (Split.TRAIN, Split.VALIDATION)
    )
    # Ray's own list of checkpoints; see `training_checkpoint`. Without it Ray Train begins with an empty one.
    output.delete(f"{run_folder(run_name)}/{RAY_SNAPSHOT}")
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    job = Job(run_name, output, fusion, spec, config, definition, training, validation)
    storage = {} if not output.uri_of("").startswith("s3://") else {"storage_filesystem": _arrow(output)}
    # As Any: the types of these names are those of V1, which V2 replaces when it is imported.
    v2: Any = ray.train
    loop: Any = run
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if config.gpus > 0 else "gloo"),
        scaling_config=v2.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus > 0,
            resources_per_worker={"CPU": config.cpus} | ({"GPU": config.gpus} if config.gpus > 0 else {}),
        ),
        run_config=v2.RunConfig(
            name=run_name,
            storage_path=output.path("training"),
            failure_config=v2.FailureConfig(max_failures=config.max_failures),
            callbacks=[_forwarder(mailbox)],
            logging_config=v2.LoggingConfig(log_level="CRITICAL"),
            **storage,
        ),
    )
    refused = _follow(trainer.fit, mailbox, told)
    if refused is not None:
        raise ConfigError(refused)


def _follow(fit: Callable[[], Any], mailbox: Any, told: _Told) -> str | None:
    """Run `fit` beside and pass on what comes in, so that the caller hears it in its own thread. Returns what worker 0
    returned.
    """
    import ray

    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(fit())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the caller
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name="training")
    thread.start()
    while True:
        ended = not thread.is_alive()
        for message in ray.get(mailbox.take.remote()):
            told.message(message)
        if ended:
            break
        thread.join(POLL_S)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    answer: str | None = outcome[0].return_value
    return answer


class _Mailbox:
    """An actor between Ray Train's controller, in which reports arrive, and the driver, which asks for them."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def put(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        messages, self._messages = self._messages, []
        return messages


def _forwarder(mailbox: Any) -> Any:
    """Ray Train's way of telling: it calls this in its controller, a process of its own."""
    from ray.train import UserCallback

    class Forwarder(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
            mailbox.put.remote(metrics[0])

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            rank = min(worker_exceptions)
            lines = str(worker_exceptions[rank]).strip().splitlines() or [type(worker_exceptions[rank]).__name__]
            mailbox.put.remote({"kind": "failure", "text": one_line(f"worker {rank} failed ({lines[-1]})")})

    return Forwarder()


def _arrow(output: Output) -> Any:
    """The output's filesystem as pyarrow knows it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(output.filesystem))
