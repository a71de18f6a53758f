"""Checkpoints of a training run: what is kept, how a damaged one is noticed, which one is the newest.

`<output>/training/<run>/checkpoint-<step>/` holds `state.safetensors` (trained weights and AdamW's two moments),
`best.safetensors` (the weights of the best epoch so far) and `checkpoint.json`, written last: a folder without it is
unfinished and never read. Nothing here is a pickle, so reading a checkpoint runs no code. That is why DeepSpeed's own
checkpoints are not used: they are pickles, one for each worker, and tied to the number of workers and the ZeRO stage.
The price is that worker 0 gathers three float32 copies of what is trained.

Ray Train keeps a list of its own (`checkpoint_manager_snapshot.json`). It is told of every checkpoint but not asked for
them: its list is not written in one step, and it refuses one that another version of Ray wrote.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vca.core.errors import ConfigError
from vca.media.output import Output

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "checkpoint.json"
STATE, BEST = "state.safetensors", "best.safetensors"
KEPT = 2
"""Checkpoints that are left: the newest, and one before it in case somebody damages the newest."""
_NAME = re.compile(r"checkpoint-(\d{8})")


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """An epoch that is done."""

    epoch: int
    """From 1."""
    epochs: int
    """At most."""
    step: int
    """Optimiser steps so far."""
    train: Mapping[str, float]
    """Mean loss of each task over the epoch, and their sum as `loss`."""
    validation: Mapping[str, float]
    """Figures of `learning.validation_metric`; `score` decides, higher is better."""
    best_epoch: int
    """Whose weights are kept: the best score so far, within the tolerance."""
    learning_rate: float
    """Of new layers, at the end."""
    windows_per_s: float
    """Training windows a second, without validation."""
    left_s: float
    """Seconds to the last epoch; early stopping may come first."""


def is_kept(score: float, history: Sequence[EpochMetrics], tolerance: float) -> bool:
    """Whether an epoch's weights take the place of those that are kept."""
    return not history or score > max(m.validation["score"] for m in history) - tolerance


@dataclass
class RunState:
    """Where a run stands, apart from tensors. JSON-able."""

    step: int = 0
    """Optimiser steps done."""
    history: list[EpochMetrics] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    """Loss of every step so far."""
    loss_sums: list[float] = field(default_factory=list)
    """By task, of the epoch that is under way: loss times annotated windows."""
    loss_weights: list[float] = field(default_factory=list)
    """By task: annotated windows."""
    finished: bool = False

    @property
    def best(self) -> EpochMetrics | None:
        """The epoch whose weights are kept."""
        return self.history[self.history[-1].best_epoch - 1] if self.history else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: str
    """Relative to the output."""
    definition: dict[str, Any]
    """What shapes the run's result."""
    state: RunState
    files: Mapping[str, str]
    """SHA-256 by name."""


def run_folder(run_name: str) -> str:
    return f"training/{run_name}"


def checkpoints(output: Output, run_name: str) -> list[str]:
    """Folders of the finished checkpoints, oldest first."""
    folder = run_folder(run_name)
    names = sorted(name for name in output.folders(folder) if _NAME.fullmatch(name))
    return [f"{folder}/{name}" for name in names if output.exists(f"{folder}/{name}/{INDEX}")]


def save(
    output: Output,
    run_name: str,
    definition: dict[str, Any],
    state: RunState,
    tensors: "Mapping[str, Tensor]",
    best: "Mapping[str, Tensor]",
) -> str:
    """Write a checkpoint; returns its folder. Only one process does."""
    from safetensors.torch import save as to_bytes

    folder = f"{run_folder(run_name)}/checkpoint-{state.step:08d}"
    files = {}
    for name, content in ((STATE, tensors), (BEST, best)):
        data = to_bytes(dict(content))
        files[name] = hashlib.sha256(data).hexdigest()
        output.write_bytes(f"{folder}/{name}", data)
    index = {"definition": definition, "state": asdict(state), "files": files}
    output.write_bytes(f"{folder}/{INDEX}", json.dumps(index).encode())
    return folder


def read(output: Output, folder: str) -> Checkpoint:
    """The small part of a checkpoint. Raises `ConfigError` if it is damaged."""
    try:
        index = json.loads(output.read_bytes(f"{folder}/{INDEX}"))
        state = dict(index["state"])
        state["history"] = [EpochMetrics(**metrics) for metrics in state["history"]]
        return Checkpoint(folder, dict(index["definition"]), RunState(**state), dict(index["files"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, INDEX) from error


def read_tensors(output: Output, checkpoint: Checkpoint, name: str) -> "dict[str, Tensor]":
    """One of its two files. Raises `ConfigError` if it is missing or is not what was written."""
    from safetensors.torch import load

    try:
        data = output.read_bytes(f"{checkpoint.folder}/{name}")
    except FileNotFoundError as error:
        raise _damaged(checkpoint.folder, name) from error
    if hashlib.sha256(data).hexdigest() != checkpoint.files[name]:
        raise _damaged(checkpoint.folder, name)
    return load(data)


def _damaged(folder: str, name: str) -> ConfigError:
    return ConfigError(
        f"output: {folder}/{name} is damaged; delete the folder {folder} to go on from the checkpoint before it, or "
        f"{folder.rpartition('/')[0]} to start again"
    )


def prune(output: Output, run_name: str) -> None:
    """Delete all but the newest checkpoints, and what was left unfinished before them."""
    finished = checkpoints(output, run_name)
    if not finished:
        return
    oldest_kept = finished[-KEPT:][0].rpartition("/")[2]
    for name in output.folders(run_folder(run_name)):
        if _NAME.fullmatch(name) and name < oldest_kept:
            output.delete_tree(f"{run_folder(run_name)}/{name}")


def check_same(run_name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`ConfigError` naming the first setting that differs from the one a run was begun with."""
    old, new = _flat(before), _flat(now)
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            raise ConfigError(
                f"training run {run_name!r} was begun with {name} = {_short(old.get(name))}, now it is "
                f"{_short(new.get(name))}; put it back, take another run name, or delete {run_folder(run_name)}"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping):
        return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}.{name}").items()}
    return {prefix[1:]: values}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
