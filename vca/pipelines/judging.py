"""All systems on the same test videos: the fine-tuned model, its modality subsets, and what it has to beat.

Pure computing over `scoring.Scored` rows, on the driver. Calibration, thresholds and span decoding of every system are
fitted on the calibration split; the test split is only reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vca.core.annotations import Split, VideoTruth
from vca.core.errors import ConfigError
from vca.core.records import Prediction, VideoLogits
from vca.core.taxonomy import Taxonomy
from vca.models.calibration import Calibration, decide, uncalibrated
from vca.models.calibration_fit import fit_calibration
from vca.models.evaluation import EvaluationConfig, Interval, Judged, Report, compare, evaluate
from vca.models.evidence import EvidenceCheck, check_evidence
from vca.models.fusion_inputs import MODALITIES, InputsConfig
from vca.models.probe import LinearProbe
from vca.models.seams import SeamCheck, check_seams
from vca.pipelines.scoring import SUBSETS, Scored, subset_name

FUSION, FROZEN, ZERO_SHOT, PROBE = "fusion", "frozen PLM", "zero-shot", "linear probe"
CHAMPION = "champion"
UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True, slots=True)
class Decider:
    """How logits of one system become decisions. A champion brings its own labels and thresholds."""

    taxonomy: Taxonomy
    calibration: Calibration

    def __call__(self, logits: VideoLogits, row: Scored) -> Prediction:
        return decide(self.calibration.probabilities(logits), row.steps, self.taxonomy, self.calibration, rank=True)


@dataclass(frozen=True, slots=True)
class _Said:
    """What one system says about the test videos, in their order."""

    predictions: Sequence[Prediction]
    taxonomy: Taxonomy
    """Order of the columns of its step scores."""
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of an evaluation. `examined` is the system that the others are compared with."""

    examined: str
    reports: Mapping[str, Report]
    """By system, the examined one first."""
    differences: Mapping[str, Mapping[str, Interval]]
    """By other system: examined minus other, paired by video."""
    calibration: Calibration
    """Of the examined system."""
    evidence: EvidenceCheck
    seams: SeamCheck | None
    """None where every test video fits into one window."""
    judged: Mapping[str, Sequence[Judged]]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the judged videos, as JSON can hold it."""
        return {
            "examined": self.examined,
            "systems": {name: report.to_dict() for name, report in self.reports.items()},
            "differences": {
                name: {figure: asdict(interval) for figure, interval in found.items()}
                for name, found in self.differences.items()
            },
            "evidence": asdict(self.evidence),
            "seams": None if self.seams is None else asdict(self.seams),
        }


def by_split(truths: Sequence[VideoTruth], scored: Mapping[str, Scored]) -> dict[Split, list[VideoTruth]]:
    """The truths whose videos were scored, by split."""
    return {split: [t for t in truths if t.split is split and t.video_id in scored] for split in Split}


def require_splits(found: Mapping[Split, Sequence[VideoTruth]]) -> None:
    """Refuse splits without a video before hours are spent."""
    for split in Split:
        if not found[split]:
            raise ConfigError(
                f"annotations: no video of split {str(split)!r} has features; annotate some, set their `split`, "
                "or change annotations.splits"
            )


def fit_deciders(
    truths: Sequence[VideoTruth], scored: Mapping[str, Scored], taxonomy: Taxonomy, systems: Sequence[str]
) -> dict[str, Decider]:
    """Calibration of each system's logits, from the truths of the calibration split."""
    rows = [scored[truth.video_id] for truth in truths]
    grids = [row.steps for row in rows]
    fitted = {s: fit_calibration([row.logits[s] for row in rows], truths, grids, taxonomy) for s in systems}
    return {system: Decider(taxonomy, calibration) for system, calibration in fitted.items()}


def judge(
    truths: Mapping[Split, Sequence[VideoTruth]],
    scored: Mapping[str, Scored],
    taxonomy: Taxonomy,
    whole: Taxonomy,
    deciders: Mapping[str, Decider],
    config: EvaluationConfig,
    inputs: InputsConfig,
) -> Comparison:
    """Compare all systems that were scored on the test split. `deciders` names the trained ones, the examined first.

    `inputs` is how the examined one cuts windows.

    `taxonomy` is what was trained and is judged, `whole` the label space in which zero-shot answers.
    A subset of the modalities is decided with the calibration of the whole model: there is one model, and what a video
    lacks is not known beforehand.
    """
    examined = next(iter(deciders))
    test = truths[Split.TEST]
    rows = [scored[truth.video_id] for truth in test]
    said: dict[str, _Said] = {}
    for system in _systems(examined, deciders, rows):
        said[system] = _decided(deciders.get(system, deciders[examined]), system, rows)
    raw = Decider(taxonomy, uncalibrated(taxonomy))
    said[UNCALIBRATED] = replace(_decided(raw, examined, rows), thresholds={})
    if all(row.probe is not None for row in rows):
        said[PROBE] = _probe(truths, scored, taxonomy)
    if all(row.zeroshot is not None for row in rows):
        said[ZERO_SHOT] = _Said([row.zeroshot for row in rows if row.zeroshot is not None], whole, {})
    judged = {
        system: [
            Judged(
                truth, _in_columns(prediction, found.taxonomy, taxonomy), row.steps, row.duration_us, found.thresholds
            )
            for truth, prediction, row in zip(test, found.predictions, rows, strict=True)
        ]
        for system, found in said.items()
    }
    calibration = deciders[examined].calibration
    return Comparison(
        examined=examined,
        reports={system: evaluate(videos, taxonomy, config) for system, videos in judged.items()},
        differences={
            system: compare(judged[examined], videos, taxonomy, config)
            for system, videos in judged.items()
            if system not in (examined, UNCALIBRATED)
        },
        calibration=calibration,
        evidence=_evidence(examined, rows, calibration),
        seams=check_seams(
            [calibration.probabilities(row.logits[examined]) for row in rows],
            test,
            [row.steps for row in rows],
            taxonomy,
            inputs,
        ),
        judged=judged,
    )


def _systems(examined: str, deciders: Mapping[str, Decider], rows: Sequence[Scored]) -> list[str]:
    names = [*deciders, *(subset_name(examined, kept) for kept in SUBSETS[1:])]
    return [name for name in names if all(name in row.logits for row in rows)]


def _judged(said: _Said, taxonomy: Taxonomy, truths: Sequence[VideoTruth], rows: Sequence[Scored]) -> list[Judged]:
    return [
        Judged(truth, _in_columns(prediction, said.taxonomy, taxonomy), row.steps, row.duration_us, said.thresholds)
        for truth, prediction, row in zip(truths, said.predictions, rows, strict=True)
    ]


def _decided(decider: Decider, system: str, rows: Sequence[Scored]) -> _Said:
    predictions = [decider(row.logits[system], row) for row in rows]
    return _Said(predictions, decider.taxonomy, decider.calibration.thresholds())


def _in_columns(prediction: Prediction, own: Taxonomy, wanted: Taxonomy) -> Prediction:
    """Step scores with the columns of another taxonomy; what the system does not know is 0."""
    scores = {}
    for task in wanted.tasks:
        found = prediction.step_scores.get(task.name)
        if found is None:
            continue
        names = own.task(task.name).label_names()
        zeros = np.zeros(len(found), np.float32)
        columns = [found[:, names.index(la)] if la in names else zeros for la in task.label_names()]
        scores[task.name] = np.stack(columns, axis=1)
    return replace(prediction, step_scores=scores)


def _probe(truths: Mapping[Split, Sequence[VideoTruth]], scored: Mapping[str, Scored], taxonomy: Taxonomy) -> _Said:
    """Train the probe on the training split, calibrate it like the others, and tag the test split with it."""
    train = [(truth, scored[truth.video_id]) for truth in truths[Split.TRAIN]]
    features = [row.probe for _, row in train if row.probe is not None]
    probe = LinearProbe(taxonomy, [truth for truth, _ in train], features, [row.steps for _, row in train])

    def logits(split: Split) -> list[VideoLogits]:
        found = [scored[truth.video_id].probe for truth in truths[split]]
        return [probe(features) for features in found if features is not None]

    grids = [scored[truth.video_id].steps for truth in truths[Split.CALIBRATION]]
    calibration = fit_calibration(logits(Split.CALIBRATION), truths[Split.CALIBRATION], grids, taxonomy)
    rows = [scored[truth.video_id] for truth in truths[Split.TEST]]
    decider = Decider(taxonomy, calibration)
    predictions = [decider(x, row) for x, row in zip(logits(Split.TEST), rows, strict=True)]
    return _Said(predictions, taxonomy, calibration.thresholds())


def _evidence(examined: str, rows: Sequence[Scored], calibration: Calibration) -> EvidenceCheck:
    left_out = {name: subset_name(examined, tuple(m for m in MODALITIES if m != name)) for name in MODALITIES}
    if any(system not in row.logits for system in left_out.values() for row in rows):
        return EvidenceCheck(0.0, 0.0, 0.0, 0)
    full = [calibration.probabilities(row.logits[examined]) for row in rows]
    without = {
        name: [calibration.probabilities(row.logits[system]) for row in rows] for name, system in left_out.items()
    }
    return check_evidence(full, without)
