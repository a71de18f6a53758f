"""How near the encoders come to the bare models, and how well training fills a GPU: `python -m benchmarks.gpu`.

Models have full size and random weights, which change no speed; nothing is downloaded. Both sides of a comparison run
in turn, several rounds in one process; figures are medians. FLOPs are those of the matrix products, convolutions and
attention that one step runs forward and backward, counted by `torch.utils.flop_counter` (attention over a sliding
window counts whole, since that is what is computed). Model FLOPs utilisation divides them by the step's time and by the
vendor's peak for dense products. `--tiny` tries the program itself, on any machine: its figures mean nothing.

Shape letters: B windows, S steps, N text tokens, D features.
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from vca.core.taxonomy import Taxonomy
from vca.models.audio import SAMPLE_RATE, AudioConfig, WindowEncoder, build_audio
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.fusion_inputs import collate_arrays
from vca.models.learning import FusionLearner, build_learner, parameter_groups
from vca.models.vision import ImageEncoder, VisionConfig, build_vision

STEP_US = 500_000
PEAK_FLOPS = {
    # FLOP/s without sparsity, from NVIDIA's data sheets of the SXM modules. float32 is that of the plain units:
    # TensorFloat-32 stays off, as in training.
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 67e12},
}
TARGETS = {"share_of_ceiling": 0.95, "mfu_bfloat16": 0.5}


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured; `tiny` is for trying."""

    width: int
    layers: int
    heads: int
    inner: int
    image_px: int
    mel_frames: int
    mel_bins: int
    plm_layers: int
    plm_inner: int
    vocabulary: int
    segment_frames: int  # one call of the tagging job: a minute at two steps a second
    long_frames: int
    segment_s: int
    long_s: int
    vision_batches: tuple[int, ...]
    audio_batches: tuple[int, ...]
    tokens: tuple[int, ...]  # of a window
    pass_tokens: int  # of a forward pass
    round_s: float


FULL = Size(
    768, 12, 12, 3072, 224, 1024, 128, 22, 1152, 50_368, 120, 4096, 60, 1800,
    (64, 128, 256, 512), (16, 32, 64, 128), (512, 2048), 32_768, 0.4,
)  # fmt: skip
TINY = Size(16, 1, 2, 24, 32, 64, 16, 3, 24, 64, 4, 9, 2, 5, (2, 4), (2, 4), (32, 48), 96, 0.0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Encoders and training on a GPU.")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="rounds through all sides")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the program")
    parser.add_argument("--compile", action="store_true", help="training with torch.compile on the language model")
    parser.add_argument("--only", choices=("vision", "audio", "fusion"), help="one part")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    report = measure(TINY if options.tiny else FULL, device, options.rounds, options.compile, options.only)
    print(table(report))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(size: Size, device: str, rounds: int, compiled: bool = False, only: str | None = None) -> dict[str, Any]:
    """All figures, JSON-able."""
    torch.manual_seed(0)
    report: dict[str, Any] = {"machine": machine(device), "rounds": rounds, "targets": TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        if only in (None, "vision"):
            report["vision"] = vision(Path(folder) / "vision", size, device, rounds)
        if only in (None, "audio"):
            report["audio"] = audio(Path(folder) / "audio", size, device, rounds)
        if only in (None, "fusion"):
            report["fusion"] = fusion(Path(folder) / "plm", size, device, rounds, compiled)
    return report


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": name,
        "torch": torch.__version__,
        "transformers": hf.__version__,
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "peak_flops": PEAK_FLOPS.get(name),
    }


# --- encoders --------------------------------------------------------------------------------------------------------


def vision(folder: Path, size: Size, device: str, rounds: int) -> dict[str, Any]:
    """Frames per second of the encoder, uint8 frames in main memory to features there, against the bare model."""
    sizes: dict[str, Any] = {"num_attention_heads": size.heads, "intermediate_size": size.inner}
    tower = hf.SiglipVisionConfig(
        **sizes, hidden_size=size.width, num_hidden_layers=size.layers, image_size=size.image_px, patch_size=16
    )
    text = hf.SiglipTextConfig(  # the encoder drops it
        **sizes,
        hidden_size=size.width,
        num_hidden_layers=1,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        projection_size=size.width,
    )
    both = hf.SiglipConfig(text_config=text.to_dict(), vision_config=tower.to_dict())
    hf.SiglipModel(both).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    processor: dict[str, Any] = {
        "image_processor_type": "SiglipImageProcessor",
        "image_mean": half,
        "image_std": half,
        "resample": 2,
    }
    processor["size"] = {"height": size.image_px, "width": size.image_px}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    config = VisionConfig.model_validate({"kind": "huggingface", "model": str(folder), "device": device})
    encoder = build_vision(config, STEP_US)
    assert isinstance(encoder, ImageEncoder)
    model, batches = encoder.model.model, encoder.model.batches

    def bare(batch: int) -> Callable[[], None]:
        pixels = torch.randn(batch, 3, size.image_px, size.image_px, device=device).to(encoder.model.dtype)
        return lambda: _forward(lambda: model.get_image_features(pixel_values=pixels))

    batch, best, ceiling = _best_batch(bare, size.vision_batches, device)
    sides, counts = {"ceiling": ceiling}, {"ceiling": best}
    wide = round(size.image_px * 16 / 9)  # the reader serves frames with this short side
    draw = np.random.default_rng(0)
    for name, n, columns, at_once in (
        ("long, 16:9", size.long_frames, wide, batch),
        ("long, square", size.long_frames, size.image_px, batch),
        ("segment, 16:9", size.segment_frames, wide, batch),
        ("segment, 16:9, default batch", size.segment_frames, wide, config.batch_size),
    ):
        frames = draw.integers(0, 256, (n, size.image_px, columns, 3), dtype=np.uint8)
        sides[name] = _calls(encoder, frames, np.ones(n, np.bool_), batches, at_once)
        counts[name] = n
    gpu = encoder.model.on_gpu
    made: dict[str, Any] = {"dtype": str(encoder.model.dtype), "batch": batch, "ceiling_batch": best}
    made["inputs_on_gpu"] = gpu is not None and gpu.reproduces(size.image_px, wide)
    return made | _rates(sides, counts, "frames", rounds, size.round_s, device) | {"halved": batches.size < batch}


def audio(folder: Path, size: Size, device: str, rounds: int) -> dict[str, Any]:
    """Windows per second of the encoder, sound in main memory to features there, against the bare model."""
    config = hf.ASTConfig(
        hidden_size=size.width, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        intermediate_size=size.inner, max_length=size.mel_frames, num_mel_bins=size.mel_bins,
    )  # fmt: skip
    hf.ASTModel(config).save_pretrained(folder)
    extractor: Any = hf.ASTFeatureExtractor  # untyped in transformers
    extractor(num_mel_bins=size.mel_bins, max_length=size.mel_frames).save_pretrained(folder)
    encoder = build_audio(
        AudioConfig.model_validate({"kind": "huggingface", "model": str(folder), "device": device}), STEP_US
    )
    assert isinstance(encoder, WindowEncoder)
    model, batches = encoder.model.model, encoder.model.batches

    def bare(batch: int) -> Callable[[], None]:
        values = torch.randn(batch, size.mel_frames, size.mel_bins, device=device).to(encoder.model.dtype)
        return lambda: _forward(lambda: model(input_values=values))

    batch, best, ceiling = _best_batch(bare, size.audio_batches, device)
    sides, counts = {"ceiling": ceiling}, {"ceiling": best}
    for name, seconds in (("long", size.long_s), ("segment", size.segment_s)):
        pcm = np.random.default_rng(0).normal(0, 0.1, seconds * SAMPLE_RATE).astype(np.float32)
        sides[name] = _calls(encoder, pcm, np.ones(seconds * 1_000_000 // STEP_US, np.bool_), batches, batch)
        counts[name] = max(1, -(-(len(pcm) - encoder.window) // encoder.hop) + 1)
    made: dict[str, Any] = {"dtype": str(encoder.model.dtype), "batch": batch, "ceiling_batch": best}
    made["inputs_on_gpu"] = encoder.model.on_gpu is not None
    return made | _rates(sides, counts, "windows", rounds, size.round_s, device) | {"halved": batches.size < batch}


def _forward(call: Callable[[], Any]) -> None:
    with torch.inference_mode():
        call()


def _calls(encoder: Any, values: Any, mask: Any, batches: Any, at_once: int) -> Callable[[], None]:
    def call() -> None:
        batches.size = at_once
        encoder.encode(values, mask, STEP_US)
        if batches.size < at_once:
            raise RuntimeError(f"a batch of {at_once} does not fit into the memory of this GPU")

    return call


def _best_batch(
    bare: Callable[[int], Callable[[], None]], sizes: tuple[int, ...], device: str
) -> tuple[int, int, Callable[[], None]]:
    """The batch with which the bare model has most items per second, its call, and the smallest batch within 1 % of it,
    which the encoder gets: the first batch of a call waits for its copy.
    """
    rates = {}
    for batch in sizes:
        call = bare(batch)
        seconds(call, device, 2)
        rates[batch] = batch / seconds(call, device, 5)
    best = max(rates, key=lambda batch: rates[batch])
    return min(batch for batch in sizes if rates[batch] >= 0.99 * rates[best]), best, bare(best)


def _rates(
    sides: Mapping[str, Callable[[], None]], counts: Mapping[str, int], unit: str, rounds: int, round_s: float,
    device: str,
) -> dict[str, Any]:  # fmt: skip
    """Items per second of each side, and their share of the ceiling in the same round."""
    spent = in_turn(sides, rounds, round_s, device)
    rates = {name: [counts[name] / s for s in found] for name, found in spent.items()}
    shares = {
        name: statistics.median(own / top for own, top in zip(found, rates["ceiling"], strict=True))
        for name, found in rates.items()
        if name != "ceiling"
    }
    return {f"{unit}_per_s": {n: statistics.median(r) for n, r in rates.items()}, "share_of_ceiling": shares}


# --- training --------------------------------------------------------------------------------------------------------


def fusion(folder: Path, size: Size, device: str, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """Whole training steps (forward, backward, clipping, AdamW) as the job computes them, without DeepSpeed."""
    _save_plm(folder, size)
    peaks = machine(device)["peak_flops"] or {}
    found = []
    for tune in ("lora", "full"):
        learner = build_learner(*_settings(folder, tune, size), seed=0).to(device).train()
        optimizer = torch.optim.AdamW(parameter_groups(learner, 1e-6, 1e-6, 0.05))
        sides: dict[str, Callable[[], None]] = {}
        rows: dict[str, dict[str, Any]] = {}
        for n_tokens in size.tokens:
            for precision in ("bfloat16", "float32"):
                wanted = n_windows = max(1, size.pass_tokens // n_tokens)
                while True:
                    step = _Step(learner, optimizer, _batch(learner, n_windows, n_tokens, device), precision)
                    try:
                        flops = step.flops()
                        step()
                        break
                    except torch.OutOfMemoryError:
                        if n_windows == 1:
                            raise
                        n_windows //= 2
                        torch.cuda.empty_cache()
                name = f"{tune} {precision} {n_tokens}"
                sides[name] = step
                rows[name] = {
                    "tune": tune, "precision": precision, "compiled": compiled, "window_tokens": n_tokens,
                    "windows": n_windows, "halved": n_windows < wanted, "flops_per_step": flops,
                }  # fmt: skip
        if compiled:  # not before FLOPs are counted: the counter does not see into compiled code
            learner.model.plm.compile()
        for name, spent in in_turn(sides, rounds, size.round_s, device).items():
            row, step_s = rows[name], statistics.median(spent)
            row |= {"step_s": step_s, "tokens_per_s": row["windows"] * row["window_tokens"] / step_s}
            row["flops_per_s"] = row["flops_per_step"] / step_s
            peak = peaks.get(row["precision"])
            row["mfu"] = None if peak is None else row["flops_per_s"] / peak
            found.append(row)
    return found


class _Step:
    def __init__(
        self, learner: FusionLearner, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], precision: str
    ) -> None:
        self._learner, self._optimizer, self._batch = learner, optimizer, batch
        self._device, self._bf16 = batch["step_mask"].device, precision == "bfloat16"
        n_windows = float(len(batch["step_mask"]))
        self._denominators = torch.full((len(learner.task_names),), n_windows, device=self._device)
        self._trained = [p for p in learner.parameters() if p.requires_grad]

    def __call__(self) -> None:
        self._gradients()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def flops(self) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self._gradients()
        self._optimizer.zero_grad()
        return int(counter.get_total_flops())

    def _gradients(self) -> None:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss, _ = self._learner(self._batch, self._denominators)
        loss.backward()


def _save_plm(folder: Path, size: Size) -> None:
    """A ModernBERT of random weights, and a tokenizer of a few words, which is all that the descriptions need."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("[PAD]", "[UNK]", "a", "b"))}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = hf.PreTrainedTokenizerFast
    tokenizer(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = hf.ModernBertConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, num_hidden_layers=size.plm_layers,
        num_attention_heads=size.heads, intermediate_size=size.plm_inner, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    hf.ModernBertModel(config).save_pretrained(folder)


def _settings(folder: Path, tune: str, size: Size) -> tuple[FusionConfig, FusionSpec]:
    labels = [{"name": f"l{i}", "description": "a"} for i in range(20)]
    tasks = [
        {"name": "content", "kind": "multi_label", "description": "a", "labels": labels},
        {"name": "events", "kind": "span", "description": "b", "labels": labels},
    ]
    # No window loses a modality: its text would be gone, and the pass shorter than what is counted.
    whole = {"drop_vision": 0.0, "drop_audio": 0.0, "drop_text": 0.0}
    inputs = {"window_s": max(size.tokens) * STEP_US / 1e6 / 2, "overlap_s": 0, "max_text_tokens": max(size.tokens)}
    plain = FeatureStatistics(mean=(0.0,) * size.width, std=(1.0,) * size.width)
    return (
        FusionConfig.model_validate({"plm": {"model": str(folder), "tune": tune}, "inputs": inputs} | whole),
        FusionSpec(
            taxonomy=Taxonomy.model_validate({"name": "benchmark", "tasks": tasks}),
            feature_set="random", step_us=STEP_US, vision=plain, audio=plain,
        ),
    )  # fmt: skip


def _batch(learner: FusionLearner, n_windows: int, n_tokens: int, device: str) -> dict[str, torch.Tensor]:
    """Windows of exactly so many tokens: tasks, steps, and as many of text as fill it; an event in each."""
    draw, spec, width = np.random.default_rng(0), learner.model.spec, learner.model.width
    n_tasks, n_labels = len(spec.taxonomy.tasks), len(spec.taxonomy.tasks[0].labels)
    n_steps = n_tokens // 2
    n_text = n_tokens - n_tasks - n_steps
    windows = []
    for _ in range(n_windows):
        window: dict[str, Any] = {
            "n_steps": np.array(n_steps, np.int32),
            "token_ids": draw.integers(0, 4, n_text).astype(np.int32),
            "token_kind": np.zeros(n_text, np.uint8),
            "token_steps": np.sort(draw.integers(0, n_steps, n_text)).astype(np.int32),
            "target.video.content": draw.integers(0, 2, n_labels).astype(np.uint8),
            "target.steps.events": draw.integers(0, 2, (n_steps, n_labels)).astype(np.uint8),
            "target.spans.events": np.array([[1.0, n_steps / 2, 0.0]], np.float32),
        }
        for name in ("vision", "audio", "text"):
            window[name] = draw.normal(size=(n_steps, width)).astype(np.float16)
            window[f"{name}_mask"] = np.ones(n_steps, np.uint8)
        windows.append(window)
    return {name: values.to(device) for name, values in collate_arrays(windows).items()}


# --- time ------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], None], device: str, times: int) -> float:
    """Wall time of one of so many calls, until the GPU is through."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def in_turn(
    sides: Mapping[str, Callable[[], None]], rounds: int, round_s: float, device: str
) -> dict[str, list[float]]:
    """Seconds of a call, by side and round; each side runs `round_s` or one call in each round."""
    times = {}
    for name, call in sides.items():
        seconds(call, device, 1)  # what is built on first use
        times[name] = max(1, math.ceil(round_s / seconds(call, device, 1)))
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            spent[name].append(seconds(call, device, times[name]))
    return spent


def table(report: Mapping[str, Any]) -> str:
    m = report["machine"]
    lines = [f"{m['name']}, torch {m['torch']}, transformers {m['transformers']}, medians of {report['rounds']} rounds"]
    for part, unit in (("vision", "frames"), ("audio", "windows")):
        if part not in report:
            continue
        found = report[part]
        lines.append(
            f"\n{part} encoder, {found['dtype']}, batches of {found['batch']}"
            + ", inputs made on the GPU" * found["inputs_on_gpu"]
        )
        for name, rate in found[f"{unit}_per_s"].items():
            share = found["share_of_ceiling"].get(name)
            lines.append(
                f"  {name:30}{rate:12.1f} {unit}/s" + ("" if share is None else f"{share:8.2f} of the ceiling")
            )
    if "fusion" in report:
        lines.append("\ntraining of the fusion model" + (", compiled" if report["fusion"][0]["compiled"] else ""))
    for row in report.get("fusion", []):
        mfu = "" if row["mfu"] is None else f"   MFU {row['mfu']:.2f}"
        name = f"{row['tune']}, {row['precision']}, {row['windows']} x {row['window_tokens']} tokens"
        lines.append(f"  {name:38}{row['tokens_per_s']:12.0f} tokens/s{mfu}" + (" (batch halved)" * row["halved"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
