"""What one training worker does: one process of a Ray Train group, with a DeepSpeed engine around the model.

Gradients. The learner divides by the windows of the whole step (`denominators`), so the gradient of a step is the plain
sum over all forward passes of all workers. DeepSpeed averages over workers: the loss is multiplied by their number. It
also averages over accumulated passes: that is switched off (`scale_wrt_gas=False`).

Chance. Before each forward pass the generators are seeded by seed, step and slot. Dropout thus is the same after a
restart, and for any number of workers as long as `micro_windows` is the same.

Shape letters: K tasks.
"""

import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vca.core.errors import ConfigError
from vca.media.output import Output
from vca.models.fusion_config import FusionConfig, FusionSpec
from vca.pipelines import training_checkpoint
from vca.pipelines.train_config import TrainConfig, engine_settings, learning_rate_factor
from vca.pipelines.training_checkpoint import EpochMetrics, RunState
from vca.pipelines.training_data import Index, Slot, denominators_of, epoch_order, slots_of, stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vca.models.learning import FusionLearner

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know."""

    run_name: str
    output: Output
    fusion: FusionConfig
    spec: FusionSpec
    config: TrainConfig
    definition: dict[str, Any]
    train_index: Any
    """Reference in Ray's object store to the `Index` of the training windows."""
    validation_index: Any


def run(arguments: dict[str, Job]) -> str | None:
    """The loop that Ray Train starts in every worker. Returns why training cannot go on, or None.

    A `ConfigError` is returned, not raised: Ray Train would start the workers again and again for it.
    """
    import ray

    job = arguments["job"]
    # DeepSpeed looks for a GPU by itself, also in a worker that was given none. Set before transformers imports it.
    os.environ["DS_ACCELERATOR"] = "cuda" if job.config.gpus > 0 else "cpu"
    try:
        worker = _Worker(job, ray.get(job.train_index), ray.get(job.validation_index))
        worker.learn()
    except ConfigError as error:
        return str(error)
    return None


class _Worker:
    """State of one worker: engine, schedule, where the run stands."""

    def __init__(self, job: Job, train: Index, validation: Index) -> None:
        import torch
        from ray.train import get_context
        from ray.train.torch import get_device

        from vca.models.learning import build_learner, load_trainable, trainable_state

        self.job, self.config = job, job.config
        self.train, self.validation = train, validation
        self.rank, self.workers = get_context().get_world_rank(), get_context().get_world_size()
        self.tasks = tuple(task.name for task in job.spec.taxonomy.tasks)
        self.steps_per_epoch = -(-len(train) // self.config.batch_windows)
        self.steps = self.steps_per_epoch * self.config.epochs
        torch.set_num_threads(self.config.threads)
        checkpoint = self._newest()
        self.state = checkpoint.state if checkpoint else RunState()
        with _agreed():
            learner = build_learner(job.fusion, job.spec, self.config.seed)
            moments: dict[str, Tensor] = {}
            self.best: dict[str, Tensor] = trainable_state(learner)
            if checkpoint is not None:
                moments = training_checkpoint.read_tensors(job.output, checkpoint, training_checkpoint.STATE)
                _load(load_trainable, learner, _part(moments, "weight"), checkpoint.folder)
                self.best = training_checkpoint.read_tensors(job.output, checkpoint, training_checkpoint.BEST)
        if self.rank != 0:
            self.best = {}
        self.engine = _engine(learner, self.config, self.steps, self.state.step, get_device())
        if checkpoint is not None:
            _restore_moments(self.engine, moments, self.state.step)

    def _newest(self) -> training_checkpoint.Checkpoint | None:
        """The newest checkpoint, as worker 0 sees it: all must go on from the same one."""
        found: list[str] | None = None
        with _agreed():
            if self.rank == 0:
                found = training_checkpoint.checkpoints(self.job.output, self.job.run_name)[-1:]
        folders = _from_first(found)
        with _agreed():
            return training_checkpoint.read(self.job.output, folders[0]) if folders else None

    # --- the loop ----------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        while not self.state.finished:
            epoch = len(self.state.history)
            seconds, windows = self._train_epoch(epoch)
            train = self._epoch_losses()
            validation = self._validate(epoch)
            self._close_epoch(epoch, train, validation, windows / max(seconds, 1e-9), seconds)

    def _train_epoch(self, epoch: int) -> tuple[float, int]:
        """The rest of an epoch; returns its seconds and windows."""
        order = epoch_order(self.train, self.config.seed, epoch)
        first = self.state.step - epoch * self.steps_per_epoch
        slots = slots_of(order, self.config.batch_windows, self.config.micro_windows, self.workers, self.rank, first)
        started, windows = time.monotonic(), 0
        self.engine.train()
        passes = stream(self.job.output, self.train, slots)
        for step in range(first, self.steps_per_epoch):
            denominators = denominators_of(self.train, order, self.config.batch_windows, step)
            self._step(passes, denominators)
            windows += len(order[step * self.config.batch_windows : (step + 1) * self.config.batch_windows])
            self._on_the_way(epoch, step, time.monotonic() - started, windows)
        return time.monotonic() - started, windows

    def _step(self, passes: "Iterator[tuple[Slot, list[bytes]]]", denominators: npt.NDArray[np.float32]) -> None:
        """One optimiser step."""
        import torch
        from torch import distributed

        device = self.engine.device
        on_device = torch.from_numpy(denominators).to(device)
        parts = torch.zeros(len(self.tasks), device=device)
        for number in range(self.config.accumulation):
            slot, blobs = next(passes)
            _seed(self.config.seed, self.state.step, slot.number)
            loss, found = self.engine(self._batch(blobs), on_device)
            weight = float(slot.counts)
            parts += found * weight
            self.engine.backward(loss * (weight * self.workers), scale_wrt_gas=False)
            if number == self.config.accumulation - 1:
                distributed.all_reduce(parts)
                self._check_finite(parts)
            self.engine.step()  # moves weights after the last pass only
        state = self.state
        losses = parts.cpu().numpy().astype(np.float64)
        if not state.loss_sums:
            state.loss_sums, state.loss_weights = [0.0] * len(self.tasks), [0.0] * len(self.tasks)
        state.loss_sums = (np.array(state.loss_sums) + losses * denominators).tolist()
        state.loss_weights = (np.array(state.loss_weights) + denominators).tolist()
        state.step_losses.append(float(losses.sum()))
        state.step += 1

    def _batch(self, blobs: list[bytes]) -> "dict[str, Tensor]":
        """Windows as a batch in which every modality of the feature set is there, if only as masked zeros.

        Otherwise the projector of a modality would be left out by one worker and not by another, and ZeRO, which sends
        gradients (at stage 3 weights) as layers come by, would wait or break off.
        """
        import torch

        from vca.models.fusion_inputs import collate

        batch = collate(blobs)
        spec = self.job.spec
        for name, statistics in (("vision", spec.vision), ("audio", spec.audio)):
            if statistics is not None and name not in batch:
                batch[name] = torch.zeros(*batch["step_mask"].shape, len(statistics.mean))
                batch[f"{name}_mask"] = torch.zeros_like(batch["step_mask"])
        return {name: tensor.to(self.engine.device) for name, tensor in batch.items()}

    def _check_finite(self, parts: "Tensor") -> None:
        """All workers see the same sums, so all of them stop."""
        wrong = [name for name, ok in zip(self.tasks, parts.isfinite().tolist(), strict=True) if not ok]
        if wrong:
            raise ConfigError(
                f"training run {self.job.run_name!r}: the loss of {', '.join(wrong)} is not finite in step "
                f"{self.state.step + 1}; lower train.lr_plm and train.lr_new"
                + (", or set train.precision=fp32" if self.config.precision != "fp32" else "")
            )

    def _on_the_way(self, epoch: int, step: int, seconds: float, windows: int) -> None:
        """Progress and checkpoints inside an epoch; the same steps in every worker, because reporting waits for all."""
        from ray import train

        done = step + 1
        if done == self.steps_per_epoch:
            return
        every = self.config.checkpoint_steps
        if every is not None and self.state.step % every == 0:
            self._save({"kind": "checkpoint"})
        if done % self.config.progress_steps == 0:
            rate = windows / max(seconds, 1e-9)
            left_s = (self.steps - self.state.step) * self.config.batch_windows / rate
            line = {
                "kind": "progress",
                "epoch": epoch + 1,
                "step": done,
                "steps": self.steps_per_epoch,
                "loss": self.state.step_losses[-1],
                "windows_per_s": rate,
                "left_s": left_s,
            }
            train.report(line if self.rank == 0 else {})

    def _epoch_losses(self) -> dict[str, float]:
        """Mean loss of each task over the windows in which it is annotated, and their sum."""
        sums = zip(self.tasks, self.state.loss_sums, self.state.loss_weights, strict=True)
        found = {name: total / weight for name, total, weight in sums if weight}
        self.state.loss_sums, self.state.loss_weights = [], []
        return found | {"loss": sum(found.values())}

    def _validate(self, epoch: int) -> dict[str, float]:
        """Figures over the validation windows, the same in every worker."""
        from torch import distributed

        from vca.models.learning import validation_metric

        learner: FusionLearner = self.engine.module
        self.engine.eval()
        order = np.arange(len(self.validation))
        micro = self.config.micro_windows
        slots = slots_of(order, micro * self.workers, micro, self.workers, self.rank)
        judged = []
        for slot, blobs in stream(self.job.output, self.validation, slots):
            found = learner.judge(self._batch(blobs))
            if slot.counts:
                judged.append((slot.step, slot.number, found))
        gathered: list[Any] | None = [None] * self.workers if self.rank == 0 else None
        distributed.gather_object(judged, gathered)
        metrics: dict[str, float] = {}
        if gathered is not None:
            # In the order of the windows: sums do not depend on who judged what.
            everything = sorted((item for part in gathered for item in part), key=lambda item: item[:2])
            metrics = validation_metric([item[2] for item in everything], self.job.spec.taxonomy.tasks)
        metrics = _from_first(metrics)
        if not np.isfinite(metrics["score"]):
            raise ConfigError(
                f"training run {self.job.run_name!r}: the validation score of epoch {epoch + 1} is not finite; "
                "lower train.lr_plm and train.lr_new"
            )
        return metrics

    def _close_epoch(
        self, epoch: int, train: Mapping[str, float], validation: Mapping[str, float], rate: float, seconds: float
    ) -> None:
        """Book an epoch, keep its weights if they are the best, decide whether to stop, write the checkpoint."""
        state, before = self.state, self.state.best
        better = training_checkpoint.is_kept(validation["score"], state.history, self.config.tolerance)
        best_epoch = epoch + 1 if before is None or better else before.epoch
        patience = self.config.patience
        stopped = patience is not None and epoch + 1 - best_epoch >= patience
        state.finished = stopped or epoch + 1 == self.config.epochs
        metrics = EpochMetrics(
            epoch=epoch + 1,
            epochs=self.config.epochs,
            step=state.step,
            train=train,
            validation=validation,
            best_epoch=best_epoch,
            learning_rate=self.config.lr_new * learning_rate_factor(state.step, self.steps, self.config.warmup_share),
            windows_per_s=rate,
            left_s=0.0 if state.finished else seconds * (self.config.epochs - epoch - 1),
        )
        state.history.append(metrics)
        self._save({"kind": "epoch", "metrics": asdict(metrics)}, better=better)

    def _save(self, metrics: dict[str, Any], better: bool = False) -> None:
        """A checkpoint by worker 0, from what all workers hold, and the report of it to Ray Train."""
        from ray import train
        from ray.train import CheckpointUploadMode, get_context

        weights, moments = _gather(self.engine, self.rank == 0)
        if better:
            self.best = weights
        reported: train.Checkpoint | None = None
        if self.rank == 0:
            job = self.job
            tensors = {f"weight/{name}": tensor for name, tensor in weights.items()} | moments
            folder = training_checkpoint.save(job.output, job.run_name, job.definition, self.state, tensors, self.best)
            training_checkpoint.prune(job.output, job.run_name)
            reported = train.Checkpoint(job.output.path(folder), get_context().get_storage().storage_filesystem)
        train.report(
            metrics if self.rank == 0 else {},
            checkpoint=reported,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,  # it is where it belongs
        )


# --- the engine ------------------------------------------------------------------------------------------------------


def _engine(learner: "FusionLearner", config: TrainConfig, steps: int, step: int, device: "torch.device") -> Any:
    """The DeepSpeed engine on this device, its learning rate as of this step."""
    import deepspeed
    import torch

    from vca.models.learning import parameter_groups

    # DeepSpeed compiles an all-reduce over shared memory on its first start (half a minute, needs g++ and ninja). Only
    # its inference engine calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    groups = parameter_groups(learner, config.lr_plm, config.lr_new, config.weight_decay)
    for group in groups:
        group["initial_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: learning_rate_factor(at, steps, config.warmup_share), last_epoch=step - 1
    )
    engine, *_ = deepspeed.initialize(
        model=learner, optimizer=optimizer, lr_scheduler=schedule, config=engine_settings(config)
    )
    if config.deepspeed.zero_stage == 3:
        # DeepSpeed gathers a module's own weights again for the backward pass when it meets the module's output, which
        # it only looks for in tuples, lists and dicts; the fusion model answers with a dataclass.
        for parameter in learner.model.parameters(recurse=False):
            deepspeed.zero.register_external_parameter(learner, parameter)
    return engine


def _flat_groups(engine: Any) -> "list[Tensor] | None":
    """The flat float32 tensors that ZeRO's inner optimiser works on; None without ZeRO."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return None
    zero = engine.optimizer
    groups: list[Tensor] = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    return groups


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def _gather(engine: Any, keep: bool) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
    """Trained weights, and AdamW's moments as `<moment>/<name>`: float32 on the CPU. All workers must call it; only
    those that `keep` get something.
    """
    import deepspeed

    from vca.models.learning import trainable_state

    trained = _trained(engine)
    # Outside stage 3 this does nothing: the weights are whole already.
    with deepspeed.zero.GatheredParameters([p for _, p in trained]):
        weights = trainable_state(engine.module) if keep else {}
    _link_states(engine)
    moments = {}
    for moment in MOMENTS:
        for name, parameter in trained:
            if _flat_groups(engine) is None:
                full = engine.optimizer.state[parameter][moment]
            else:
                full = deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
            if keep:
                moments[f"{moment}/{name}"] = full.detach().float().cpu().reshape(full.shape).clone().contiguous()
    return weights, moments


def _link_states(engine: Any) -> None:
    """Let ZeRO 1 and 2 find the optimiser's state of every parameter.

    DeepSpeed 0.19 does it once, when the first parameter group has been stepped: the others have no state by then, and
    asking for it fails.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _restore_moments(engine: Any, saved: "Mapping[str, Tensor]", step: int) -> None:
    """Inverse of `_gather` for the moments. The weights were in the model before the engine took it."""
    import deepspeed
    import torch

    flat = _flat_groups(engine)
    inner = engine.optimizer if flat is None else engine.optimizer.optimizer
    # AdamW makes its state in its first step; here it has to be there before.
    for tensor in [p for _, p in _trained(engine)] if flat is None else flat:
        inner.state[tensor] = {"step": torch.tensor(float(step))} | {m: torch.zeros_like(tensor) for m in MOMENTS}
    _link_states(engine)
    for moment in MOMENTS:
        for name, parameter in _trained(engine):
            value = saved[f"{moment}/{name}"]
            if flat is None:
                inner.state[parameter][moment].copy_(value)
            elif engine.zero_optimization_stage() == 3:
                # Not safe_set_full_optimizer_state: in DeepSpeed 0.19 it reads past the end of a parameter whose size
                # is no multiple of the number of workers.
                part = parameter.ds_tensor.numel()
                padded = torch.zeros(part * engine.dp_world_size)
                padded[: value.numel()] = value.flatten()
                rank = torch.distributed.get_rank()
                deepspeed.utils.safe_set_local_optimizer_state(
                    parameter, padded[rank * part : (rank + 1) * part].to(parameter.ds_tensor.device), moment
                )
            else:
                deepspeed.utils.safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)


# --- small things ----------------------------------------------------------------------------------------------------


def _part(tensors: "Mapping[str, Tensor]", kind: str) -> "dict[str, Tensor]":
    return {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{kind}/")}


def _load(load: Any, learner: "FusionLearner", weights: "Mapping[str, Tensor]", folder: str) -> None:
    try:
        load(learner, weights)
    except ValueError as error:
        raise ConfigError(f"output: {folder} is of another model ({error}); take another run name") from error


def _seed(seed: int, step: int, slot: int) -> None:
    """Chance of one forward pass, whoever makes it."""
    import torch

    drawn = np.random.SeedSequence([seed, step, slot]).generate_state(3)
    torch.manual_seed(int(drawn[0]))
    random.seed(int(drawn[1]))
    np.random.seed(int(drawn[2]))  # noqa: NPY002 - for libraries that draw from numpy's global generator


def _from_first(value: Any) -> Any:
    """What worker 0 has, in every worker."""
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def _agreed() -> Iterator[None]:
    """A block in which a worker may find that it cannot go on: its `ConfigError` is raised in all workers, so that
    nobody waits for one that has left. After any other exception Ray Train ends the group.
    """
    from torch import distributed

    own: ConfigError | None = None
    try:
        yield
    except ConfigError as error:
        own = error
    found: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, None if own is None else str(own))
    problems = [text for text in found if text is not None]
    if problems:
        raise ConfigError(problems[0]) from own
