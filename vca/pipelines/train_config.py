"""Settings of the training loop, and what DeepSpeed is told of them."""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vca.core.config import Config

BUCKET_ELEMENTS = 50_000_000
"""Gradients that are sent in one go. DeepSpeed's own 500 million would be a buffer of 2 GB in every process."""


class DeepSpeedConfig(Config):
    zero_stage: int = Field(0, ge=0, le=3)
    """What is split over the workers: 0 nothing, 1 optimiser states, 2 gradients too, 3 weights too."""
    offload: Literal["none", "cpu"] = "none"
    """`cpu` keeps optimiser states (at stage 3 weights too) in main memory; needs a stage of 1 to 3."""

    whole_elements: int = Field(100_000, ge=0)
    """Stage 3 keeps weights of up to so many elements whole in every worker: splitting small ones costs more time than
    it saves memory."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offload == "cpu" and self.zero_stage == 0:
            raise ValueError("offload is cpu, but zero_stage 0 splits nothing off; set zero_stage to 1, 2 or 3")
        return self


class TrainConfig(Config):
    """How the model is trained. The result does not depend on workers, ZeRO stage and threads beyond rounding."""

    epochs: int = Field(30, ge=1)
    """Passes over the training windows; the learning rate ends at 0 with the last one."""
    patience: int | None = Field(8, ge=1)
    """Stop after so many epochs that were not kept; null never stops early."""
    tolerance: float = Field(0.0, ge=0.0, le=1.0)
    """Of two epochs whose validation scores differ by less, the later one is kept, which had the smaller steps. Raise
    it where few validation videos make the score jump."""
    batch_windows: int = Field(16, ge=1)
    """Windows of one optimiser step, over all workers. The last step of an epoch may hold fewer."""
    micro_windows: int = Field(4, ge=1)
    """Windows in one forward pass of one worker; what must fit into memory. Dropout follows these cuts."""
    lr_plm: float = Field(2e-4, gt=0.0, le=1.0)
    """Highest learning rate of the language model's trained weights."""
    lr_new: float = Field(5e-4, gt=0.0, le=1.0)
    """Highest learning rate of new layers."""
    weight_decay: float = Field(0.05, ge=0.0, le=1.0)
    """AdamW's decay of matrices; biases and norms have none."""
    warmup_share: float = Field(0.1, ge=0.0, le=0.5)
    """Share of all steps in which the learning rate rises; after that it falls along a cosine."""
    clip_norm: float = Field(1.0, gt=0.0)
    """Longest gradient."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of new layers, the order of the data, dropout and noise."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` computes matrix products in bfloat16; weights, their updates and checkpoints stay float32."""
    workers: int = Field(2, ge=1, le=4096)
    """Processes that train together."""
    cpus: float = Field(0.9, gt=0.0)
    """CPUs of the cluster for each worker. What is left over reads the data: leave some."""
    gpus: float = Field(0.0, ge=0.0, le=1.0)
    """GPUs for each worker; 0 trains on CPUs."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads of each worker."""
    max_failures: int = Field(3, ge=0)
    """Workers that may die before training gives up; each time it goes on from the newest checkpoint."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Checkpoints inside an epoch every so many steps, for long epochs; one at the end of each epoch in any case."""
    progress_steps: int = Field(25, ge=1)
    """Steps between two progress lines inside an epoch."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """What DeepSpeed splits and moves."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        in_one_go = self.micro_windows * self.workers
        if self.batch_windows % in_one_go:
            below = self.batch_windows // in_one_go * in_one_go
            raise ValueError(
                f"batch_windows {self.batch_windows} is no multiple of micro_windows {self.micro_windows} x workers "
                f"{self.workers} = {in_one_go}; set batch_windows to "
                + (f"{below} or {below + in_one_go}" if below else f"{in_one_go}")
            )
        return self

    @property
    def accumulation(self) -> int:
        """Forward passes of a worker in one optimiser step."""
        return self.batch_windows // (self.micro_windows * self.workers)

    @property
    def shaping(self) -> dict[str, Any]:
        """What shapes the result, JSON-able. A run goes on only with the same; the rest may change in between."""
        free = {"workers", "cpus", "gpus", "threads", "max_failures", "checkpoint_steps", "progress_steps", "deepspeed"}
        return self.model_dump(mode="json", exclude=free)


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Share of the highest learning rate in this step (from 0): a linear rise, then half a cosine down to 0."""
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def engine_settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration that DeepSpeed is started with."""
    stage, offload = config.deepspeed.zero_stage, config.deepspeed.offload == "cpu"
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,  # the order of sums would follow the timing
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": config.deepspeed.whole_elements,
    }
    if offload:
        place = {"device": "cpu", "pin_memory": config.gpus > 0}
        zero |= {"offload_optimizer": place} | ({"offload_param": place} if stage == 3 else {})
    return {
        "train_batch_size": config.batch_windows,
        "train_micro_batch_size_per_gpu": config.micro_windows,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": zero,
        # torch's AdamW everywhere: DeepSpeed's own CPU and GPU versions are compiled on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Not DeepSpeed's "bf16": it would keep the weights themselves in bfloat16 and every layer would have to match.
        # No "safe" modules: their gradients would be summed in bfloat16.
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
