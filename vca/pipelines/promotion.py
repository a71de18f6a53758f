"""The gate in front of the alias `champion`: a new model must be better on the same test split, beyond chance.

Every decision, its figures and any override are tags of the model version.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from vca.core.config import Config
from vca.models.evaluation import Interval


class GateConfig(Config):
    margin: float = Field(0.0, ge=0.0)
    """The lower bound of the gain in `score` over the champion must be above this."""
    override: str | None = Field(None, min_length=1, max_length=1000)
    """Why the new model becomes champion whatever the gate says; recorded with it."""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version in the registry, as its tags describe it."""

    name: str
    version: str
    run_id: str
    model_version: str
    feature_set: str
    taxonomy_version: str
    files: Mapping[str, str]
    """Sha256 of every file of the model folder, by relative path."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class JudgedOn:
    """What a model was judged on. Figures of two models compare only where all of it agrees."""

    annotation_version: str
    split: str
    """Hash of the test videos."""
    feature_set: str
    n_videos: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate beside the present champion on the candidate's test split."""

    judged_on: JudgedOn
    score: Interval
    champion: RegisteredVersion | None = None
    """None: there is no champion yet."""
    champion_judged_on: JudgedOn | None = None
    """None: the champion could not be judged, for example because it needs other features."""
    difference: Interval | None = None
    """Paired difference of `score`, candidate - champion."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says, with the reason as one line."""

    promoted: bool
    reason: str
    overridden: bool = False


def weigh(trial: Trial, gate: GateConfig) -> Verdict:
    """The decision, from figures alone. An override counts only where the gate says no."""
    verdict = _weigh(trial, gate)
    if verdict.promoted or gate.override is None:
        return verdict
    return Verdict(True, f"override: {gate.override} (the gate said: {verdict.reason})", overridden=True)


def _weigh(trial: Trial, gate: GateConfig) -> Verdict:
    if trial.champion is None:
        return Verdict(True, "there was no champion")
    against = f"champion version {trial.champion.version}"
    ours, theirs, difference = trial.judged_on, trial.champion_judged_on, trial.difference
    if theirs is None or difference is None:
        return Verdict(False, f"{against} was not judged on the same test split, so the two cannot be compared")
    for name in ("annotation_version", "split", "feature_set"):
        if getattr(ours, name) != getattr(theirs, name):
            return Verdict(
                False, f"{against} was judged on another {name} ({getattr(theirs, name)}), so they cannot be compared"
            )
    figures = f"score {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] against {against}"
    if difference.low > gate.margin:
        return Verdict(True, f"{figures}: the lower bound is above {gate.margin:g}")
    return Verdict(False, f"{figures}: the lower bound is not above {gate.margin:g}")


def promotion_tags(trial: Trial, gate: GateConfig, verdict: Verdict) -> dict[str, str]:
    """The decision and its figures, as they are recorded on the version."""
    on = trial.judged_on
    tags = {
        "vca.promotion.reason": verdict.reason,
        "vca.promotion.score": _figures(trial.score),
        "vca.promotion.against": "none" if trial.champion is None else trial.champion.version,
        "vca.promotion.annotation_version": on.annotation_version,
        "vca.promotion.split": on.split,
        "vca.promotion.feature_set": on.feature_set,
        "vca.promotion.n_videos": str(on.n_videos),
        "vca.promotion.margin": f"{gate.margin:g}",
    }
    if trial.difference is not None:
        tags["vca.promotion.difference"] = _figures(trial.difference)
    if verdict.overridden and gate.override is not None:
        tags["vca.promotion.override"] = gate.override
    return tags


def _figures(interval: Interval) -> str:
    return f"{interval.value:.6f} [{interval.low:.6f}, {interval.high:.6f}]"
