"""All systems on the same test videos: the fine-tuned model, its modality subsets, and what it has to beat.

Pure computing over `scoring.Scored` rows, on the driver. Calibration, thresholds and span decoding of every system are
fitted on the calibration split; the test split is only reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vca.core.annotations import Split, VideoTruth
from vca.core.errors import ConfigError
from vca.core.records import Prediction, VideoLogits
from vca.core.taxonomy import Taxonomy
from vca.models.calibration import Calibration, decide, uncalibrated
from vca.models.calibration_fit import fit_calibration
from vca.models.evaluation import EvaluationConfig, Interval, Judged, Report, compare, evaluate
from vca.models.evidence import EvidenceCheck, check_evidence
from vca.models.fusion_inputs import MODALITIES
from vca.models.probe import LinearProbe
from vca.pipelines.scoring import SUBSETS, Scored, subset_name

FUSION, FROZEN, ZERO_SHOT, PROBE = "fusion", "frozen PLM", "zero-shot", "linear probe"
UNCALIBRATED = "uncalibrated"


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
        }


def by_split(truths: Sequence[VideoTruth], scored: Mapping[str, Scored]) -> dict[Split, list[VideoTruth]]:
    """The annotated videos that have features, by split. A needed split that is empty is a `ConfigError`."""
    found = {split: [t for t in truths if t.split is split and t.video_id in scored] for split in Split}
    require_splits(found)
    return found


def require_splits(found: Mapping[Split, Sequence[VideoTruth]]) -> None:
    """Refuse splits without a video before hours are spent."""
    for split in Split:
        if not found[split]:
            raise ConfigError(
                f"annotations: no video of split {str(split)!r} has features; annotate some, set their `split`, "
                "or change annotations.splits"
            )


def calibrations(
    truths: Sequence[VideoTruth], scored: Mapping[str, Scored], taxonomy: Taxonomy, systems: Sequence[str]
) -> dict[str, Calibration]:
    """Calibration of each system's logits, from the truths of the calibration split."""
    rows = [scored[truth.video_id] for truth in truths]
    grids = [row.steps for row in rows]
    return {s: fit_calibration([row.logits[s] for row in rows], truths, grids, taxonomy) for s in systems}


def judge(
    truths: Mapping[Split, Sequence[VideoTruth]],
    scored: Mapping[str, Scored],
    taxonomy: Taxonomy,
    fitted: Mapping[str, Calibration],
    config: EvaluationConfig,
) -> Comparison:
    """Compare all systems that were scored on the test split. `fitted` names the trained ones, the examined one first.

    A subset of the modalities is decided with the calibration of the whole model: there is one model, and what a video
    lacks is not known beforehand.
    """
    examined = next(iter(fitted))
    test = truths[Split.TEST]
    rows = [scored[truth.video_id] for truth in test]
    said: dict[str, list[Prediction]] = {}
    for system in _systems(examined, fitted, rows):
        calibration = fitted[system if system in fitted else examined]
        said[system] = [_decide(row.logits[system], row, taxonomy, calibration) for row in rows]
    raw = uncalibrated(taxonomy)
    said[UNCALIBRATED] = [_decide(row.logits[examined], row, taxonomy, raw) for row in rows]
    if all(row.probe is not None for row in rows):
        said[PROBE] = _probe(truths, scored, taxonomy)
    if all(row.zeroshot is not None for row in rows):
        said[ZERO_SHOT] = [row.zeroshot for row in rows if row.zeroshot is not None]
    thresholds = fitted[examined].thresholds()
    judged = {
        system: [
            Judged(truth, prediction, row.steps, row.duration_us, thresholds)
            for truth, prediction, row in zip(test, predictions, rows, strict=True)
        ]
        for system, predictions in said.items()
    }
    return Comparison(
        examined=examined,
        reports={system: evaluate(videos, taxonomy, config) for system, videos in judged.items()},
        differences={
            system: compare(judged[examined], videos, taxonomy, config)
            for system, videos in judged.items()
            if system not in (examined, UNCALIBRATED)
        },
        calibration=fitted[examined],
        evidence=_evidence(examined, rows, fitted[examined]),
        judged=judged,
    )


def _systems(examined: str, fitted: Mapping[str, Calibration], rows: Sequence[Scored]) -> list[str]:
    names = [*fitted, *(subset_name(examined, kept) for kept in SUBSETS[1:])]
    return [name for name in names if all(name in row.logits for row in rows)]


def _decide(logits: VideoLogits, row: Scored, taxonomy: Taxonomy, calibration: Calibration) -> Prediction:
    return decide(calibration.probabilities(logits), row.steps, taxonomy, calibration)


def _probe(
    truths: Mapping[Split, Sequence[VideoTruth]], scored: Mapping[str, Scored], taxonomy: Taxonomy
) -> list[Prediction]:
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
    return [_decide(x, row, taxonomy, calibration) for x, row in zip(logits(Split.TEST), rows, strict=True)]


def _evidence(examined: str, rows: Sequence[Scored], calibration: Calibration) -> EvidenceCheck:
    left_out = {name: subset_name(examined, tuple(m for m in MODALITIES if m != name)) for name in MODALITIES}
    if any(system not in row.logits for system in left_out.values() for row in rows):
        return EvidenceCheck(0.0, 0.0, 0.0, 0)
    full = [calibration.probabilities(row.logits[examined]) for row in rows]
    without = {
        name: [calibration.probabilities(row.logits[system]) for row in rows] for name, system in left_out.items()
    }
    return check_evidence(full, without)
