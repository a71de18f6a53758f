"""Whether the shares of evidence mean anything: gate weights held against what happens without a modality.

Shape letters: L labels, M modalities, N pairs of video and label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vca.core.metrics import Floats
from vca.core.records import VideoLogits
from vca.models.fusion_inputs import MODALITIES, Modality


@dataclass(frozen=True, slots=True)
class EvidenceCheck:
    """How far the shares of vision, audio and text agree with leaving each of them out."""

    correlation: float
    """Pearson's, over all pairs and modalities; 0 where either side does not vary."""
    rank_correlation: float
    """Spearman's."""
    top_agreement: float
    """Share of pairs in which the modality with the largest share is the one that hurts most when it is left out."""
    n_pairs: int
    """Videos and labels that were looked at: those the full model is sure of."""


def check_evidence(
    full: Sequence[VideoLogits], left_out: Mapping[Modality, Sequence[VideoLogits]], min_probability: float = 0.5
) -> EvidenceCheck:
    """Compare the shares behind each confident label of a video with the fall of its probability.

    `full` and each list of `left_out` are parallel: calibrated probabilities of the same videos, with everything and
    without one modality. A rise counts as no fall. Pairs in which nothing falls say nothing about shares and are left
    out, as are videos with one modality only, of which the shares are known beforehand.
    """
    shares, falls = [], []
    for i, video in enumerate(full):
        present = np.array(video.step_shares).sum(axis=0) > 0 if video.step_shares is not None else np.zeros(3, bool)
        if present.sum() < 2:
            continue
        for task, probabilities in video.video.items():
            without = np.stack([left_out[name][i].video[task] for name in MODALITIES])  # [M, L]
            drop = np.maximum(probabilities[None] - without, 0) * present[:, None]
            for j in np.flatnonzero((probabilities >= min_probability) & (drop.sum(axis=0) > 0.05)).tolist():
                shares.append(video.video_shares[task][j])
                falls.append(drop[:, j] / drop[:, j].sum())
    if not shares:
        return EvidenceCheck(0.0, 0.0, 0.0, 0)
    x, y = np.stack(shares), np.stack(falls)  # [N, M]
    return EvidenceCheck(
        correlation=_correlation(x.ravel(), y.ravel()),
        rank_correlation=_correlation(_ranks(x.ravel()), _ranks(y.ravel())),
        top_agreement=float((x.argmax(axis=1) == y.argmax(axis=1)).mean()),
        n_pairs=len(x),
    )


def _correlation(a: Floats, b: Floats) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=np.float64)
