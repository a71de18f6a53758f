"""The fusion model on real classes: encoders and decoders, padding, windows, gradients, saving."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.fusion_cases import TAXONOMY, batch_of, config, spec, video
from tests.support.tiny_models import save_tiny
from vca.core.errors import ConfigError
from vca.core.records import VideoLogits
from vca.models.calibration import uncalibrated
from vca.models.fusion import drop_modalities
from vca.models.fusion_inputs import MODALITIES, windows_of
from vca.models.fusion_tagger import FusionTagger, merge_windows, seam_weights, window_weights, without
from vca.models.learning import build_learner, load_trainable, parameter_groups, trainable_state
from vca.models.plm import load_language, load_plm
from vca.models.saved_model import read_card, save_model

pytestmark = pytest.mark.integration

KINDS = ("bert", "modernbert", "qwen3")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plm")
    for kind in KINDS:
        save_tiny(folder / kind, kind)
    return {kind: str(folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_sees_every_other(checkpoints: dict[str, str], kind: str) -> None:
    """Encoder or decoder: changing the last step changes the state of the first, so the model looks both ways."""
    fusion = config(checkpoints[kind])
    model = build_learner(fusion, spec(), seed=0).model.eval()
    clip = video(10, text=False)
    assert clip.vision is not None
    changed = clip.vision.copy()
    changed[-1] += 5
    outputs = [model(batch_of([c], fusion)) for c in (clip, replace(clip, vision=changed))]
    moved = (outputs[0].steps["events"][0, 0] - outputs[1].steps["events"][0, 0]).abs().max()
    assert float(moved.detach()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_alone_or_in_a_batch(checkpoints: dict[str, str], kind: str) -> None:
    """Padding changes nothing: scores agree to 2e-6, rounding of float32 sums in another order."""
    fusion = config(checkpoints[kind], span_head="pyramid")
    model = build_learner(fusion, spec(), seed=0).model.eval()
    clips = [video(16, 0), video(5, 1), replace(video(9, 2), vision=None, vision_mask=None), video(3, 3, text=False)]
    together = model(batch_of(clips, fusion))
    for i, clip in enumerate(clips):
        alone, n = model(batch_of([clip], fusion)), len(clip.steps)
        for task in together.video:
            torch.testing.assert_close(together.video[task][i], alone.video[task][0], atol=2e-6, rtol=1e-5)
        for task in together.steps:
            torch.testing.assert_close(together.steps[task][i, :n], alone.steps[task][0, :n], atol=2e-6, rtol=1e-5)
        for task, found in together.candidates.items():
            own = alone.candidates[task]
            torch.testing.assert_close(found.logits[i][found.mask[i]], own.logits[0][own.mask[0]], atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(found.ends[i][found.mask[i]], own.ends[0][own.mask[0]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tune", "head"),
    [
        ("bert", "lora", "steps"),
        ("bert", "full", "steps"),
        ("qwen3", "lora", "steps"),
        ("bert", "frozen", "steps"),
        ("bert", "lora", "pyramid"),
    ],
)
def test_everything_that_is_trained_gets_a_gradient(
    checkpoints: dict[str, str], kind: str, tune: str, head: str
) -> None:
    """A parameter without gradient would make ZeRO hang, and would not be learned. Frozen ones stay frozen."""
    fusion = config(checkpoints[kind], plm={"model": checkpoints[kind], "tune": tune, "lora_rank": 4}, span_head=head)
    learner = build_learner(fusion, spec(), seed=0)
    loss, parts = learner(batch_of([video(12, 0), video(8, 1)], fusion), torch.full((4,), 2.0))
    loss.backward()
    assert torch.isfinite(parts).all()
    assert float(parts.min()) > 0
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    # Positions that no sequence reaches and words that no text holds get zeros, not None.
    missing = [name for name, p in trained.items() if p.grad is None and "word_embeddings" not in name]
    assert not missing
    of_plm = [name for name in trained if name.startswith("model.plm.")]
    assert bool(of_plm) == (tune != "frozen")
    assert all(("lora_" in name) == (tune == "lora") for name in of_plm)
    groups = parameter_groups(learner, 1e-4, 1e-3, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(trained)


def test_the_cut_of_a_batch_does_not_matter(checkpoints: dict[str, str]) -> None:
    """Loss and gradients of a batch are the sum of those of its parts, whatever is annotated where."""
    fusion = config(checkpoints["bert"], dropout=0.0, feature_noise=0.0, drop_vision=0.0, drop_audio=0.0, drop_text=0.0)
    learner = build_learner(fusion, spec(), seed=0).eval()
    batch = batch_of([video(12, 0), video(8, 1), video(5, 2)], fusion)
    batch["known.video.mood"][1] = 0
    denominators = torch.tensor([3.0, 2.0, 3.0, 3.0])
    whole, _ = learner(batch, denominators)
    parts = [learner({k: v[i : i + 1] for k, v in batch.items()}, denominators)[0] for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).sum(), atol=1e-6, rtol=1e-6)


def test_a_task_nobody_annotated_costs_nothing(checkpoints: dict[str, str]) -> None:
    """Masked losses: without a target the loss is 0 and the heads get no gradient from it."""
    fusion = config(checkpoints["bert"])
    learner = build_learner(fusion, spec(), seed=0).eval()
    batch = batch_of([video(12, 0)], fusion)
    batch = {k: v for k, v in batch.items() if not k.endswith((".mood", ".pace"))}
    _, parts = learner(batch, torch.ones(4))
    assert parts[1] == 0
    assert parts[3] == 0
    assert parts[0] > 0


def test_missing_modalities(checkpoints: dict[str, str]) -> None:
    """Every subset gives finite scores; the gate gives a missing modality no share, and shares sum to 1 or 0."""
    fusion = config(checkpoints["bert"])
    model = build_learner(fusion, spec(), seed=0).model.eval()
    for gone, absent in ((("vision",), [0]), (("audio", "text"), [1, 2]), (("vision", "audio", "text"), [0, 1, 2])):
        outputs = model(batch_of([without(video(6), gone)], fusion))
        assert outputs.gates is not None
        assert not outputs.gates[0, :, absent].any()
        sums = outputs.gates.sum(-1)
        assert bool(((sums - 1).abs() < 1e-5).logical_or(sums == 0).all())
        assert all(bool(torch.isfinite(x).all()) for x in outputs.video.values())
        if len(absent) == 3:
            assert not outputs.gates.any()


def test_a_window_never_loses_its_last_modality(checkpoints: dict[str, str]) -> None:
    """Modality dropout leaves something to learn from."""
    fusion = config(checkpoints["bert"], drop_vision=0.95, drop_audio=0.95, drop_text=0.95)
    batch = batch_of([video(6, i) for i in range(8)], fusion)
    torch.manual_seed(0)
    dropped = 0
    for _ in range(20):
        left = drop_modalities(batch, fusion)
        has = torch.stack([left[f"{name}_mask"].bool().any(dim=1) for name in MODALITIES], dim=1)
        assert bool(has.any(dim=1).all())
        assert left["token_mask"].bool().any(dim=1).tolist() == has[:, 2].tolist(), "words go with the text"
        dropped += int((~has).sum())
    assert dropped > 100


def test_weights_come_back(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A saved folder gives bit-equal predictions, holds no pickle, and is refused when damaged or mixed up."""
    fusion = config(checkpoints["bert"])
    learner = build_learner(fusion, spec(), seed=3)
    state = trainable_state(learner)
    card = save_model(tmp_path / "m", fusion, spec(), state, uncalibrated(TAXONOMY), {"run": "test"})
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "calibration.json", "model.json", "taxonomy.yaml", "weights.safetensors",
    ]  # fmt: skip
    first, second = FusionTagger(tmp_path / "m", "cpu"), FusionTagger(tmp_path / "m", "cpu")
    clip = video(40)
    assert first.scorer(clip).steps["events"].tolist() == second.scorer(clip).steps["events"].tolist()
    assert first(clip) is not None
    other = build_learner(fusion, spec(), seed=4)
    load_trainable(other, state)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), trainable_state(other).values(), strict=True))
    again = save_model(tmp_path / "n", fusion, spec(), state, uncalibrated(TAXONOMY), {"run": "other"})
    assert again.model_version == card.model_version, "notes for people do not make another model"

    weights = tmp_path / "m" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=r"weights.safetensors is damaged"):
        read_card(tmp_path / "m")
    weights.unlink()
    with pytest.raises(ConfigError, match=r"weights.safetensors is missing"):
        read_card(tmp_path / "m")
    card_path = tmp_path / "n" / "model.json"
    changed = json.loads(card_path.read_text())
    changed["spec"]["step_us"] = 250_000
    card_path.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="cut videos differently"):
        read_card(tmp_path / "n")


def test_long_videos_are_merged_without_a_seam(checkpoints: dict[str, str]) -> None:
    """The weights of a window fall off to its inner ends, and a constant stays constant when merged."""
    assert seam_weights(6, at_start=True, at_end=False).tolist() == [6, 5, 4, 3, 2, 1]
    assert seam_weights(6, at_start=False, at_end=False).tolist() == [1, 2, 3, 3, 2, 1]
    assert seam_weights(3, at_start=True, at_end=True).tolist() == [3, 3, 3]
    fusion = config(checkpoints["bert"])
    windows = windows_of(video(50), fusion.inputs, load_language(fusion.plm))
    assert len(windows) > 4
    parts = [
        VideoLogits(
            {"content": np.array([1.0, i], np.float32)},
            {"events": np.full((w.n_steps, 2), 2.5, np.float32)},
            step_shares=np.full((w.n_steps, 3), 1 / 3, np.float32),
        )
        for i, w in enumerate(windows)
    ]
    merged = merge_windows(windows, window_weights(windows, 50), parts, 50)
    np.testing.assert_allclose(merged.steps["events"], 2.5, atol=1e-6)
    assert merged.video["content"][0] == 1.0


def test_a_pyramid_finds_events_of_a_long_video(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Saved, loaded and asked about several windows: candidates of every part of the video, inside it, none twice."""
    fusion = config(checkpoints["bert"], span_head="pyramid", pyramid_levels=2)
    learner = build_learner(fusion, spec(), seed=3)
    thresholds = {label.name: 0.002 for label in TAXONOMY.task("events").labels}
    calibration = uncalibrated(TAXONOMY)
    events = calibration.tasks["events"].model_copy(update={"thresholds": thresholds})  # an untrained head says 0.01
    calibration = calibration.model_copy(update={"tasks": {**calibration.tasks, "events": events}})
    save_model(tmp_path / "m", fusion, spec(), trainable_state(learner), calibration, {})
    tagger, clip = FusionTagger(tmp_path / "m", "cpu"), video(50)
    n_windows = len(windows_of(clip, fusion.inputs, load_language(fusion.plm)))
    assert n_windows > 4
    logits = tagger.scorer(clip)
    spans = logits.candidate_spans["events"]
    assert logits.candidates["events"].shape == (len(spans), len(thresholds))
    assert 50 <= len(spans) < 50 * 1.5 + 2 * n_windows, "a point for every step, and one for about every other"
    assert spans.min() >= 0
    assert spans.max() <= clip.duration_us
    found = [event for event in tagger(clip).events if event.task == "events"]
    assert found
    for event in found:
        assert event.place is not None
        assert event.evidence.vision + event.evidence.audio + event.evidence.text == pytest.approx(1, abs=1e-6)


def test_too_long_a_window_is_one_line(checkpoints: dict[str, str]) -> None:
    """The language model takes 64 positions here: the message says what is asked and what to change."""
    fusion = config(checkpoints["bert"], inputs={"window_s": 60, "max_text_tokens": 16})
    with pytest.raises(ConfigError, match=r"4 tasks, 120 steps and 16 text tokens are 140 tokens, .* takes 64"):
        build_learner(fusion, spec(), seed=0)


def test_pretrained_weights_stay_untouched(checkpoints: dict[str, str]) -> None:
    """LoRA starts as nothing: the language model's states are those of the published weights."""
    fusion = config(checkpoints["bert"])
    bare = load_plm(fusion.plm.model_copy(update={"tune": "frozen"})).eval()
    tuned = load_plm(fusion.plm).eval()
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(bare(input_ids=ids).last_hidden_state, tuned(input_ids=ids).last_hidden_state)
