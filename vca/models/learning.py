"""What a training step computes: losses, parameter groups, what is saved, and the figure that stops training.

Shape letters: B windows, S steps, L labels, P places, Q kinds of participants, K tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vca.core.taxonomy import Task, TaskKind
from vca.models.fusion import Batch, FusionModel, FusionOutputs
from vca.models.fusion_config import FusionConfig, FusionSpec
from vca.models.pyramid import pyramid_loss

Judged = dict[str, npt.NDArray[Any]]


def build_learner(fusion: FusionConfig, spec: FusionSpec, seed: int) -> "FusionLearner":
    """The model with its losses; equal seeds give equal new layers, whatever ran before."""
    torch.manual_seed(seed)
    return FusionLearner(FusionModel(fusion, spec))


class FusionLearner(nn.Module):
    """A model that answers a batch with its loss: what a training engine wraps."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.model = model
        self.task_names = tuple(task.name for task in model.spec.taxonomy.tasks)

    def forward(self, batch: Batch, denominators: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its parts by task [K], detached.

        A part is the sum of the windows' losses divided by `denominators` [K], the number of windows of the whole
        optimiser step in which the task is annotated: however a step is cut into micro batches and over workers, the
        sum of all cuts is the same.
        """
        losses = self.window_losses(batch)  # [B, K]
        parts = losses.sum(dim=0) / denominators.clamp(min=1).to(losses.dtype)
        return parts.sum(), parts.detach()

    def window_losses(self, batch: Batch) -> Tensor:
        """Loss [B, K] of every window and task; 0 where the task is not annotated."""
        outputs = self.model(batch)
        parts = [task_losses(task, outputs, batch, self.model.config, self.model.spec) for task in self._tasks()]
        return torch.stack(parts, dim=1).float()

    def _tasks(self) -> tuple[Task, ...]:
        return self.model.spec.taxonomy.tasks

    @torch.no_grad()
    def judge(self, batch: Batch) -> Judged:
        """Logits and targets of what is annotated, for `validation_metric`; the model must be in evaluation mode."""
        assert not self.training, "dropout would make the figure random"
        outputs = self.model(batch)
        found: Judged = {}
        for task in self._tasks():
            kind = "steps" if task.kind in (TaskKind.SPAN, TaskKind.STEP) else "video"
            target = batch.get(f"target.{kind}.{task.name}")
            if target is None:
                continue
            rows = batch[f"known.{kind}.{task.name}"].bool()
            logits = (outputs.steps if kind == "steps" else outputs.video)[task.name]
            if kind == "steps":
                rows = rows[:, None] & batch["step_mask"].bool()
            found[f"logits.{task.name}"] = logits[rows].float().cpu().numpy()
            found[f"target.{task.name}"] = target[rows].cpu().numpy()
        found["loss"] = self.window_losses(batch).cpu().numpy()
        return found


def task_losses(task: Task, outputs: FusionOutputs, batch: Batch, config: FusionConfig, spec: FusionSpec) -> Tensor:
    """Loss [B] of one task: `l_time + w_place * l_place + w_participants * l_participants` for events,
    and that of the pyramid where the model has one.
    """
    if task.kind in (TaskKind.SPAN, TaskKind.STEP):
        logits, candidates = outputs.steps[task.name], outputs.candidates.get(task.name)
        target, known = _target(batch, "steps", task.name)
        if target is None or known is None:  # a loss of 0 keeps every parameter in the graph, as ZeRO and DDP want
            nothing = logits.sum(dim=(1, 2)) * 0.0
            return nothing if candidates is None else nothing + (candidates.logits.sum() + candidates.ends.sum()) * 0.0
        time = _binary(logits, target, _positive_weights(task, spec, logits)).mean(dim=-1)
        loss = _mean_where(time, batch["step_mask"].bool())
        loss = loss + _place_loss(task, outputs, batch, config) + _people_loss(task, outputs, batch, config)
        if candidates is not None:
            loss = loss + pyramid_loss(candidates, batch[f"target.spans.{task.name}"])
        return loss * known
    logits = outputs.video[task.name]
    target, known = _target(batch, "video", task.name)
    if target is None or known is None:
        return logits.sum(dim=1) * 0.0
    if task.kind is TaskKind.SINGLE_LABEL:
        return nn.functional.cross_entropy(logits.float(), target.long(), reduction="none") * known
    return _binary(logits, target, _positive_weights(task, spec, logits)).mean(dim=-1) * known


def _place_loss(task: Task, outputs: FusionOutputs, batch: Batch, config: FusionConfig) -> Tensor:
    logits = outputs.places.get(task.name)
    target = batch.get(f"target.place.{task.name}")
    if logits is None or target is None:
        return torch.zeros((), device=batch["step_mask"].device) if logits is None else logits.sum(dim=(1, 2)) * 0.0
    mask = batch["step_mask"].bool() & (target >= 0)
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), target.clamp(min=0).long().flatten(), reduction="none"
    )
    return config.place_weight * _mean_where(losses.view_as(mask), mask)


def _people_loss(task: Task, outputs: FusionOutputs, batch: Batch, config: FusionConfig) -> Tensor:
    logits = outputs.participants.get(task.name)
    target = batch.get(f"target.participants.{task.name}")
    if logits is None or target is None:
        return torch.zeros((), device=batch["step_mask"].device) if logits is None else logits.sum(dim=(1, 2)) * 0.0
    mask = batch["step_mask"].bool() & batch[f"target.participants_mask.{task.name}"].bool()
    return config.participants_weight * _mean_where(_binary(logits, target, None).mean(dim=-1), mask)


def _target(batch: Batch, kind: str, name: str) -> tuple[Tensor | None, Tensor | None]:
    known = batch.get(f"known.{kind}.{name}")
    return batch.get(f"target.{kind}.{name}"), None if known is None else known.float()


def _binary(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(
        logits.float(), target.float(), pos_weight=weights, reduction="none"
    )


def _positive_weights(task: Task, spec: FusionSpec, like: Tensor) -> Tensor | None:
    weights = spec.positive_weights.get(task.name)
    return None if weights is None else torch.tensor(weights, device=like.device, dtype=torch.float32)


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [B] of values [B, S] over the mask; 0 for a row without any."""
    weights = mask.to(values.dtype)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


# --- what is trained and saved ---------------------------------------------------------------------------------------


def parameter_groups(learner: FusionLearner, lr_plm: float, lr_new: float, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser: the language model's apart from new layers, biases and norms undecayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("model.plm."), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": found, "lr": lr_plm if of_plm else lr_new, "weight_decay": weight_decay if decays else 0.0}
        for (of_plm, decays), found in sorted(groups.items())
    ]


def trainable_state(learner: FusionLearner) -> dict[str, Tensor]:
    """Copies of everything that is trained, float32 on the CPU, by the name it has in `learner.model`."""
    return {
        name: parameter.detach().to("cpu", torch.float32).clone().contiguous()
        for name, parameter in learner.model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable(learner: FusionLearner, state: Mapping[str, Tensor]) -> None:
    """Inverse of `trainable_state`; raises `ValueError` naming what is missing, left over or of another shape."""
    load_weights(learner.model, state)


def load_weights(model: FusionModel, state: Mapping[str, Tensor]) -> None:
    """Copy saved weights into a model made with the same configuration."""
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        raise ValueError(f"weights do not fit the model: missing {missing[:2]}, left over {extra[:2]}")
    for name, parameter in wanted.items():
        if parameter.shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the model {tuple(parameter.shape)}")
        if not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{name} holds values that are not finite")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


# --- the figure that stops training ----------------------------------------------------------------------------------


def validation_metric(judged: Sequence[Judged], tasks: Sequence[Task]) -> dict[str, float]:
    """One value a task and their mean as `score`, higher is better, plus the mean `loss`.

    Macro average precision over labels with positives for multi_label, span and step tasks (by step), accuracy for
    single_label. A task without anything to judge is left out; without any task the score is minus the loss.
    """
    from sklearn.metrics import average_precision_score

    found: dict[str, float] = {}
    for task in tasks:
        parts = [(j[f"logits.{task.name}"], j[f"target.{task.name}"]) for j in judged if f"logits.{task.name}" in j]
        if not parts or not sum(len(target) for _, target in parts):
            continue
        logits, target = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if task.kind is TaskKind.SINGLE_LABEL:
            found[task.name] = float((logits.argmax(axis=1) == target).mean())
            continue
        positive = [i for i in range(target.shape[1]) if target[:, i].any()]
        if positive:
            found[task.name] = float(np.mean([average_precision_score(target[:, i], logits[:, i]) for i in positive]))
    loss = float(np.concatenate([j["loss"] for j in judged]).sum(axis=1).mean())
    score = float(np.mean(list(found.values()))) if found else -loss
    return found | {"score": score, "loss": loss}
