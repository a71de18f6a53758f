"""The fusion model on a GPU: it gives what it gives on the CPU, in bfloat16 nearly so, and learns as the job does."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.fusion_cases import batch_of, blobs_of, config, spec, video
from tests.support.gpu import requires_gpu
from tests.support.tiny_models import save_tiny
from vca.core.records import VideoFeatures
from vca.core.taxonomy import TaskKind
from vca.models.fusion import Batch, FusionOutputs
from vca.models.fusion_config import FusionConfig
from vca.models.learning import FusionLearner, build_learner, parameter_groups
from vca.pipelines import training_worker
from vca.pipelines.train_config import TrainConfig
from vca.pipelines.training_checkpoint import RunState
from vca.pipelines.training_data import Slot

DEVICE = "cuda"
KINDS = ("bert", "modernbert", "qwen3")
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""The sizes of the default language model."""
TOLERANCE = 1e-4
"""Sums of float32 in another order, through few layers, on values near 1. TensorFloat-32 would be 10 times worse."""
BATCHED = 2e-5
"""Of scores alone and in a batch: the same, on one device, but a GPU chooses another kernel for another shape."""
GRADIENT = 1e-3
"""Of the length of a parameter's gradient, which is a sum over all positions of terms that nearly cancel."""
BF16_LARGEST, BF16_MEAN = 0.02, 0.005
"""Of probabilities. bfloat16 keeps 8 bits: what a layer gives is off by up to 0.4 %, and a probability moves by a
quarter of its logit at most. About ten times what autocast on a CPU gives with the same model."""

Outputs = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN rounds the inputs of convolutions to 10 bits unless told otherwise; the pyramid has some."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plm")
    for kind in KINDS:
        save_tiny(folder / kind, kind)
    save_tiny(folder / "minilm", "bert", **MINILM, max_position_embeddings=512)
    return {path.name: str(path) for path in folder.iterdir()}


def clips() -> list[VideoFeatures]:
    """Of several lengths; one has no picture, one no text."""
    return [video(16, 0), video(5, 1), replace(video(9, 2), vision=None, vision_mask=None), video(3, 3, text=False)]


def long_windows(checkpoint: str) -> FusionConfig:
    """Windows as the job has them: a minute, with room for text."""
    return config(checkpoint, inputs={"window_s": 60, "overlap_s": 20, "max_text_tokens": 256})


def moved(batch: Batch, device: str) -> Batch:
    return {name: values.to(device) for name, values in batch.items()}


def real_parts(outputs: FusionOutputs, batch: Batch) -> Outputs:
    """All outputs where there are steps, by name, float32 on the CPU."""
    assert outputs.gates is not None
    mask = batch["step_mask"].bool()
    found = {"gates": outputs.gates[mask]}
    for kind in ("steps", "places", "participants"):
        found |= {f"{kind}.{task}": values[mask] for task, values in getattr(outputs, kind).items()}
    found |= {f"video.{task}": values for task, values in outputs.video.items()}
    found |= {f"shares.{task}": values for task, values in outputs.video_shares.items()}
    for task, points in outputs.candidates.items():
        found |= {
            f"candidates.{task}": points.logits[points.mask],
            f"ends.{task}": points.ends[points.mask],
            f"mask.{task}": points.mask,
            f"centres.{task}": points.centres,
            f"strides.{task}": points.strides,
        }
    return {name: values.detach().float().cpu() for name, values in found.items()}


def drawn_targets(batch: Batch) -> Batch:
    """Labels of windows and steps drawn anew."""
    draw = torch.Generator().manual_seed(0)
    names = [n for n in batch if n.startswith(("target.video.", "target.steps."))]
    return batch | {n: torch.randint(0, 2, batch[n].shape, generator=draw).to(batch[n].dtype) for n in names}


def run(learner: FusionLearner, batch: Batch, bf16: bool = False) -> Outputs:
    device = next(learner.parameters()).device.type
    batch = moved(batch, device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        return real_parts(learner.eval().model(batch), batch)


def probabilities(outputs: Outputs) -> dict[str, torch.Tensor]:
    """What the logits mean, by task; shares and ends of candidates are left out."""
    found = {}
    for task in spec().taxonomy.tasks:
        kind = "steps" if task.kind in (TaskKind.SPAN, TaskKind.STEP) else "video"
        logits = outputs[f"{kind}.{task.name}"]
        found[task.name] = logits.softmax(-1) if task.kind is TaskKind.SINGLE_LABEL else logits.sigmoid()
        if f"candidates.{task.name}" in outputs:
            found[f"{task.name} (pyramid)"] = outputs[f"candidates.{task.name}"].sigmoid()
        if f"places.{task.name}" in outputs:
            found[f"{task.name} (places)"] = outputs[f"places.{task.name}"].softmax(-1)
        if f"participants.{task.name}" in outputs:
            found[f"{task.name} (participants)"] = outputs[f"participants.{task.name}"].sigmoid()
    return found


def train(learner: FusionLearner, batch: Batch, steps: int, bf16: bool = False) -> list[float]:
    """Losses of plain training steps, as the engine computes them without DeepSpeed."""
    device = next(learner.parameters()).device.type
    optimizer = torch.optim.AdamW(parameter_groups(learner.train(), 1e-3, 1e-3, 0.01))
    denominators = torch.full((len(learner.task_names),), float(len(batch["step_mask"])), device=device)
    losses = []
    for _ in range(steps):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss, _ = learner(batch, denominators)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


@requires_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["pyramid", "steps"])
def test_outputs_are_those_of_the_cpu(checkpoints: dict[str, str], kind: str, head: str) -> None:
    """Encoders and a decoder, every output; a padded batch with missing modalities."""
    fusion = config(checkpoints[kind], span_head=head)
    batch = batch_of(clips(), fusion)
    on_cpu = run(build_learner(fusion, spec(), seed=0), batch)
    on_gpu = run(build_learner(fusion, spec(), seed=0).to(DEVICE), batch)
    assert on_cpu.keys() == on_gpu.keys()
    wanted = {"gates", "video.content", "steps.events", "places.events", "participants.events", "shares.content"}
    assert wanted | ({"candidates.events", "ends.events"} if head == "pyramid" else set()) <= on_cpu.keys()
    for name, values in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


@requires_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_cpu(checkpoints: dict[str, str], kind: str) -> None:
    """Without chance, in float32: each parameter's gradient, whatever its size."""
    fusion = config(checkpoints[kind], plm={"model": checkpoints[kind], "tune": "full"})
    batch = batch_of(clips(), fusion)
    found: list[dict[str, torch.Tensor]] = []
    for device in ("cpu", DEVICE):
        learner = build_learner(fusion, spec(), seed=0).to(device).eval()
        loss, _ = learner(moved(batch, device), torch.full((4,), 4.0, device=device))
        loss.backward()
        found.append({n: p.grad.cpu() for n, p in learner.named_parameters() if p.grad is not None})
    on_cpu, on_gpu = found
    assert on_cpu.keys() == on_gpu.keys()
    for name, gradient in on_cpu.items():
        # Some are zero but for rounding: a bias of attention's keys moves all scores alike.
        allowed = GRADIENT * float(gradient.norm()) + 1e-6 * gradient.numel() ** 0.5
        assert float((on_gpu[name] - gradient).norm()) <= allowed, name


@requires_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_alone_or_in_a_batch(checkpoints: dict[str, str], kind: str) -> None:
    """Padding changes nothing on the GPU either."""
    fusion = config(checkpoints[kind])
    model = build_learner(fusion, spec(), seed=0).to(DEVICE).eval().model
    with torch.inference_mode():
        together = model(moved(batch_of(clips(), fusion), DEVICE))
        for i, clip in enumerate(clips()):
            alone, n = model(moved(batch_of([clip], fusion), DEVICE)), len(clip.steps)
            pairs = [(values[i], alone.video[task][0]) for task, values in together.video.items()]
            pairs += [(values[i, :n], alone.steps[task][0, :n]) for task, values in together.steps.items()]
            for task, points in together.candidates.items():
                own = alone.candidates[task]
                pairs.append((points.logits[i][points.mask[i]], own.logits[0][own.mask[0]]))
                pairs.append((points.ends[i][points.mask[i]], own.ends[0][own.mask[0]]))
            for batched, single in pairs:
                torch.testing.assert_close(batched, single, atol=BATCHED, rtol=BATCHED)


@requires_gpu
def test_bf16_is_near_float32(checkpoints: dict[str, str], figures: Callable[[str], None]) -> None:
    """The same trained model under autocast, as training computes it: differences of probabilities, task by task."""
    fusion = long_windows(checkpoints["minilm"])
    learner = build_learner(fusion, spec(), seed=0).to(DEVICE)
    # Untrained, or with the same truth everywhere, all probabilities would be near one half, or near 0 and 1.
    train(learner, moved(drawn_targets(batch_of([video(60, i) for i in range(16)], fusion)), DEVICE), steps=15)
    batch = batch_of([video(n, 100 + i) for i, n in enumerate((120, 90, 60, 120))], fusion)
    full, half = probabilities(run(learner, batch)), probabilities(run(learner, batch, bf16=True))
    apart = {task: (half[task] - values).abs() for task, values in full.items()}
    lines = [f"{task}: largest {float(d.max()):.1e}, mean {float(d.mean()):.1e}" for task, d in apart.items()]
    figures("bfloat16 against float32, difference of probabilities\n" + "\n".join(lines))
    assert max(float(d.max()) for d in apart.values()) > 0, "autocast did nothing"
    assert max(float(d.max()) for d in apart.values()) < BF16_LARGEST
    assert max(float(d.mean()) for d in apart.values()) < BF16_MEAN


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one, as Ray Train makes it before the loop starts. DeepSpeed takes to one group a process."""
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    file = tmp_path_factory.mktemp("process") / "group"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", DEVICE)
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            patch.setenv(name, value)
        torch.distributed.init_process_group(backend, init_method=f"file://{file}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@requires_gpu
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "fp32"), (2, "bf16"), (3, "bf16")])
def test_the_job_learns(
    checkpoints: dict[str, str], one_process: None, stage: int, precision: str, figures: Callable[[str], None]
) -> None:
    """The worker's own engine and step, with DeepSpeed, but windows from memory: a falling loss, weights finite."""
    pytest.importorskip("deepspeed", reason="the job's engine")
    fusion = config(checkpoints["bert"])
    values = {"batch_windows": 8, "micro_windows": 4, "workers": 1, "gpus": 1.0, "lr_plm": 3e-3, "lr_new": 3e-3}
    settings = TrainConfig.model_validate(values | {"precision": precision, "deepspeed": {"zero_stage": stage}})
    blobs = blobs_of([video(6 + i % 9, i) for i in range(8)], fusion)
    worker = object.__new__(training_worker._Worker)  # its __init__ asks Ray for rank and checkpoint
    worker.job = SimpleNamespace(spec=spec(), run_name="test")  # type: ignore[assignment]
    worker.config, worker.state, worker.workers = settings, RunState(), 1
    worker.tasks = tuple(task.name for task in spec().taxonomy.tasks)
    learner = build_learner(fusion, spec(), seed=0)
    device = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)
    worker.engine = training_worker._engine(learner, settings, 30, 0, device)
    worker.engine.train()
    assert worker.engine.device.type == DEVICE
    halves = cycle([(0, blobs[:4]), (1, blobs[4:])])
    passes = ((Slot(i // 2, number, np.arange(4), True), half) for i, (number, half) in enumerate(halves))
    for _ in range(30):
        worker._step(passes, np.full(len(worker.tasks), 8, np.float32))
    losses = worker.state.step_losses
    figures(f"ZeRO {stage}, {precision}: loss {losses[0]:.3f} to {losses[-1]:.3f} in 30 steps")
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@requires_gpu
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_training_rate(checkpoints: dict[str, str], tune: str, figures: Callable[[str], None]) -> None:
    """Losses fall in float32 and in bfloat16, from the same start; windows of a minute per second, for people."""
    fusion = long_windows(checkpoints["minilm"])
    fusion = fusion.model_copy(update={"plm": fusion.plm.model_copy(update={"tune": tune})})
    batch = moved(batch_of([video(120, i) for i in range(16)], fusion), DEVICE)
    n_windows, lines = len(batch["step_mask"]), []
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        learner = build_learner(fusion, spec(), seed=0).to(DEVICE)
        warm_up = train(learner, batch, steps=5, bf16=bf16)
        started = time.perf_counter()
        losses = warm_up + train(learner, batch, steps=20, bf16=bf16)  # reading the losses waits for the GPU
        rate = 20 * n_windows / (time.perf_counter() - started)
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0]
        lines.append(f"{name}: {rate:.0f} windows/s, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    n_tokens = int(batch["step_mask"].sum() + batch["token_mask"].sum()) // n_windows
    figures(f"training, sizes of MiniLM, {tune}, {n_windows} windows of {n_tokens} tokens a step\n" + "\n".join(lines))
