"""The fusion model: a pretrained language model that reads vision, audio and text on one time axis (design section 8).

Every step of the grid becomes one token, a gated sum of its modalities; text tokens stand among the steps in order of
time; a token for each task goes in front. Heads read task scores from the strongest states of the whole sequence, step
scores from the states of the steps, and events from a pyramid over these.

Shape letters: B windows, S steps, N text tokens, K tasks, T = K + S + N tokens, H width of the language model, D width
of a modality's features, M = 3 modalities (vision, audio, text), L labels, P places, Q kinds of participants.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vca.core.errors import ConfigError
from vca.core.taxonomy import Task, TaskKind, Taxonomy
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.fusion_inputs import MODALITIES, Language
from vca.models.plm import load_language, load_plm, position_limit
from vca.models.pyramid import Candidates, Pyramid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Tensor]
VISION, AUDIO, TEXT = range(len(MODALITIES))


@dataclass
class FusionOutputs:
    """Logits by task. `gates` [B, S, M] and `video_shares` [B, L, M] tell where they come from."""

    video: dict[str, Tensor] = field(default_factory=dict)  # [B, L]
    steps: dict[str, Tensor] = field(default_factory=dict)  # [B, S, L]
    places: dict[str, Tensor] = field(default_factory=dict)  # [B, S, P]
    participants: dict[str, Tensor] = field(default_factory=dict)  # [B, S, Q]
    candidates: dict[str, Candidates] = field(default_factory=dict)  # with `span_head: pyramid`
    gates: Tensor | None = None
    video_shares: dict[str, Tensor] = field(default_factory=dict)


class FusionModel(nn.Module):
    """See the module. Loads the language model; initialise torch's seed before for repeatable new layers."""

    def __init__(self, config: FusionConfig, spec: FusionSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.plm: PreTrainedModel = load_plm(config.plm)
        embeddings = self.plm.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        words = embeddings.weight.detach()
        self.width, self.word_std = words.shape[1], float(words.std())
        _check_length(config, spec, position_limit(self.plm))
        self.steps = StepTokens(config, spec, self.width, self.word_std)
        self.kinds = nn.Embedding(2, self.width)
        nn.init.zeros_(self.kinds.weight)
        self.task_tokens = nn.Parameter(_task_tokens(spec.taxonomy, load_language(config.plm, "cpu"), self.word_std))
        tasks = spec.taxonomy.tasks
        self.video_heads = nn.ModuleDict(
            {t.name: LabelEvidence(self.width, len(t.labels), config.dropout) for t in tasks if not _in_time(t)}
        )
        self.step_heads = nn.ModuleDict({t.name: StepHead(t, self.width, config.dropout) for t in tasks if _in_time(t)})
        spans = [t for t in tasks if t.kind is TaskKind.SPAN and config.span_head == "pyramid"]
        self.pyramids = nn.ModuleDict(
            {t.name: Pyramid(self.width, len(t.labels), config.pyramid_levels, config.dropout) for t in spans}
        )

    def forward(self, batch: Batch) -> FusionOutputs:
        """A batch of `fusion_inputs.collate` to logits. Padding changes nothing."""
        if self.training:
            batch = drop_modalities(batch, self.config)
        words = self._words(batch)  # [B, N, H]
        steps, gates = self.steps(batch)  # 1. one gated token a step
        sequence, mask, order = self._interleave(batch, steps, words)  # 2. tasks, then steps and text by time
        states = self._read(sequence, mask, order)  # 3. the language model, put back in place
        return self._heads(batch, states, steps, gates)  # 4. what each task says

    def _words(self, batch: Batch) -> Tensor:
        words: Tensor = self.plm.get_input_embeddings()(batch["token_ids"]) + self.kinds(batch["token_kind"])
        return words

    def _interleave(self, batch: Batch, steps: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T, H] in reading order, their mask [B, T], and that order [B, T]: padding last, a phrase behind
        the step in which it starts.
        """
        n_windows, n_tasks = steps.shape[0], self.task_tokens.shape[0]
        tasks = self.task_tokens[None].expand(n_windows, -1, -1)
        tokens = torch.cat([tasks.to(steps.dtype), steps, words.to(steps.dtype)], dim=1)
        mask = torch.cat(
            [torch.ones_like(batch["step_mask"][:, :1]).expand(-1, n_tasks), batch["step_mask"], batch["token_mask"]], 1
        ).bool()
        places = torch.arange(steps.shape[1], device=steps.device)[None].expand(n_windows, -1)
        rank = torch.cat([places.new_full((n_windows, n_tasks), -1), 2 * places, 2 * batch["token_steps"] + 1], 1)
        order = rank.masked_fill(~mask, 2**31 - 1).argsort(dim=1, stable=True)
        return _take(tokens, order), mask.gather(1, order), order

    def _read(self, sequence: Tensor, mask: Tensor, order: Tensor) -> Tensor:
        # Padding behind the longest window of the batch costs time and says nothing.
        longest = int(mask.sum(dim=1).max())
        kept = sequence[:, :longest]
        states = self.plm(inputs_embeds=kept, attention_mask=mask[:, :longest].long()).last_hidden_state
        states = nn.functional.pad(states, (0, 0, 0, sequence.shape[1] - longest))
        back = order.argsort(dim=1, stable=True)
        return _take(states, back)  # [B, T, H] as tasks, steps, text

    def _heads(self, batch: Batch, states: Tensor, steps: Tensor, gates: Tensor) -> FusionOutputs:
        n_tasks, n_steps = self.task_tokens.shape[0], steps.shape[1]
        states = states.to(steps.dtype)
        step_states = states[:, n_tasks : n_tasks + n_steps]
        read, read_mask = states[:, n_tasks:], torch.cat([batch["step_mask"], batch["token_mask"]], 1).bool()
        text_share = gates.new_zeros(*batch["token_mask"].shape, len(MODALITIES))
        text_share[..., TEXT] = 1.0
        shares = torch.cat([gates, text_share], dim=1)  # [B, S + N, M]
        outputs = FusionOutputs(gates=gates)
        for index, task in enumerate(self.spec.taxonomy.tasks):
            if _in_time(task):
                head = self.step_heads[task.name](steps, step_states)
                outputs.steps[task.name] = head["time"]
                if "place" in head:
                    outputs.places[task.name] = head["place"]
                if "participants" in head:
                    outputs.participants[task.name] = head["participants"]
                if task.name in self.pyramids:
                    outputs.candidates[task.name] = self.pyramids[task.name](steps + step_states, batch["step_mask"])
            else:
                logits, weights = self.video_heads[task.name](states[:, index], read, read_mask, steps)
                outputs.video[task.name] = logits
                outputs.video_shares[task.name] = weights.detach() @ shares.detach()
        return outputs


def drop_modalities(batch: Batch, config: FusionConfig) -> Batch:
    """The batch as if some windows lacked a modality, drawn anew each time; never the last one that a window has."""
    steps = batch["step_mask"].bool()
    has = torch.stack([_mask(batch, name).any(dim=1) for name in MODALITIES], dim=1)  # [B, M]
    shares = torch.tensor((config.drop_vision, config.drop_audio, config.drop_text), device=steps.device)
    draw = torch.rand(has.shape, device=steps.device).masked_fill(~has, -1.0)
    last = nn.functional.one_hot(draw.argmax(dim=1), has.shape[1]).bool()
    keep = (draw >= shares) | last
    dropped = dict(batch)
    for i, name in enumerate(MODALITIES):
        dropped[f"{name}_mask"] = _mask(batch, name) & keep[:, i, None]
    dropped["token_mask"] = batch["token_mask"].bool() & keep[:, TEXT, None]
    return dropped


def _mask(batch: Batch, name: str) -> Tensor:
    """Which steps have the modality [B, S]."""
    steps = batch["step_mask"].bool()
    mask = batch.get(f"{name}_mask")
    return torch.zeros_like(steps) if mask is None else mask.bool() & steps


class StepTokens(nn.Module):
    """One token a step: projectors into the language model's space, a gate over the modalities that are there, learned
    vectors for those that are missing.
    """

    def __init__(self, config: FusionConfig, spec: FusionSpec, width: int, word_std: float) -> None:
        super().__init__()
        self._noise = config.feature_noise
        statistics = {"vision": spec.vision, "audio": spec.audio}
        self.projectors = nn.ModuleDict()
        for name, known in statistics.items():
            if known is not None:
                self.projectors[name] = Projector(known, width, config.dropout)
        self.text = nn.Sequential(nn.LayerNorm(width), *_two_layers(width, width, config.dropout))
        self.missing = nn.Parameter(torch.randn(len(MODALITIES), width) * 0.02)
        self.modality = nn.Parameter(torch.randn(len(MODALITIES), width) * 0.02)
        self.gate = nn.Sequential(
            nn.Linear(len(MODALITIES) * width, width), nn.GELU(), nn.Linear(width, len(MODALITIES))
        )
        self.join = nn.Linear(len(MODALITIES) * width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.constant_(self.norm.weight, word_std)  # tokens as large as the words the language model knows

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens [B, S, H] and gates [B, S, M], zero where no modality is there."""
        present = torch.stack([_mask(batch, name) for name in MODALITIES], dim=-1)  # [B, S, M]
        nothing = self.modality.new_zeros(*present.shape[:2], self.modality.shape[1])
        parts = [self._part(name, batch, nothing) for name in MODALITIES]
        found = torch.stack(parts, dim=2) + self.modality  # [B, S, M, H]
        values = torch.where(present[..., None], found, self.missing.expand_as(found))
        scores = self.gate(values.flatten(2)).masked_fill(~present, -1e4)
        gates = scores.softmax(dim=-1) * present
        weights = torch.where(present, gates * present.sum(-1, keepdim=True), torch.ones_like(gates))
        return self.norm(self.join((values * weights[..., None]).flatten(2))), gates

    def _part(self, name: str, batch: Batch, nothing: Tensor) -> Tensor:
        values = batch.get(name)
        if name == "text":  # through the layers even without text: every parameter stays in the graph, as ZeRO wants
            text: Tensor = self.text(nothing if values is None else values)
            return text
        if name not in self.projectors:
            return nothing
        projector = self.projectors[name]
        if values is None:
            values = nothing.new_zeros(*nothing.shape[:2], projector.get_buffer("mean").shape[0])
        elif self.training and self._noise:
            values = values + self._noise * torch.randn_like(values) * projector.get_buffer("std")
        part: Tensor = projector(values)
        return part


class Projector(nn.Module):
    """Standardised features to the width of the language model."""

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: FeatureStatistics, width: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(statistics.mean), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std), persistent=False)
        self.layers = nn.Sequential(*_two_layers(len(statistics.mean), width, dropout))

    def forward(self, values: Tensor) -> Tensor:
        projected: Tensor = self.layers(((values - self.mean) / self.std).clamp(-10, 10))
        return projected


def _two_layers(width_in: int, width: int, dropout: float) -> list[nn.Module]:
    return [
        nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.LayerNorm(width)
    ]  # fmt: skip


SHARPNESS = 2.0
"""Of the soft maximum over positions: the larger, the more the strongest position alone decides."""


class LabelEvidence(nn.Module):
    """Each position of the sequence says what it has for each label; the strongest say most (log-sum-exp pooling,
    Pinheiro and Collobert, 2015). A step speaks twice, from its state and from its own token: what it shows is not lost
    among what is around it. The state of the task's token adds what only the whole tells.
    """

    def __init__(self, width: int, n_labels: int, dropout: float) -> None:
        super().__init__()
        self.states = nn.Sequential(*_evidence_layers(width, n_labels, dropout))
        self.steps = nn.Sequential(*_evidence_layers(width, n_labels, dropout))
        self.task = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, n_labels))

    def forward(self, task_state: Tensor, states: Tensor, mask: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Task state [B, H], states [B, S + N, H] and their mask, step tokens [B, S, H] to logits [B, L] and the weight
        [B, L, S + N] of each position in them.
        """
        own = nn.functional.pad(self.steps(steps), (0, 0, 0, states.shape[1] - steps.shape[1]))
        evidence = SHARPNESS * (self.states(states) + own).masked_fill(~mask[..., None], -1e4)  # [B, S + N, L]
        pooled = evidence.logsumexp(dim=1) / SHARPNESS
        return pooled + self.task(task_state), evidence.softmax(dim=1).transpose(1, 2)


def _evidence_layers(width: int, n_labels: int, dropout: float) -> list[nn.Module]:
    return [
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, n_labels)
    ]  # fmt: skip


class StepHead(nn.Module):
    """Scores of a step from its token and its state: the first knows the moment, the second what is around it."""

    def __init__(self, task: Task, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Dropout(dropout))
        parts = {"time": len(task.labels)}
        if task.attributes.place is not None:
            parts["place"] = len(task.attributes.place.labels)
        if task.attributes.participants is not None:
            parts["participants"] = len(task.attributes.participants.labels)
        self.parts = nn.ModuleDict({name: nn.Linear(width, n) for name, n in parts.items()})

    def forward(self, steps: Tensor, states: Tensor) -> dict[str, Tensor]:
        hidden = self.body(torch.cat([steps, states], dim=-1))
        return {name: layer(hidden) for name, layer in self.parts.items()}


def _in_time(task: Task) -> bool:
    return task.kind in (TaskKind.SPAN, TaskKind.STEP)


def _take(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


def _task_tokens(taxonomy: Taxonomy, language: Language, word_std: float) -> Tensor:
    """[K, H]: a task starts as what its description means, as large as a word."""
    vectors: Tensor = torch.from_numpy(language.embed([task.description for task in taxonomy.tasks]))
    tokens: Tensor = vectors * (word_std * vectors.shape[1] ** 0.5)
    return tokens


def _check_length(config: FusionConfig, spec: FusionSpec, limit: int) -> None:
    n_tasks, n_steps = len(spec.taxonomy.tasks), config.inputs.window_steps(spec.step_us)
    needed = n_tasks + n_steps + config.inputs.max_text_tokens
    if needed > limit:
        raise ConfigError(
            f"fusion.inputs: {n_tasks} tasks, {n_steps} steps and {config.inputs.max_text_tokens} text tokens are "
            f"{needed} tokens, the language model takes {limit}; make window_s or max_text_tokens smaller"
        )
