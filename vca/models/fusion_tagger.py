"""Tagging a whole video with a trained model: windows, logits, calibration, decisions.

Windows overlap. In a step that several windows see, their logits are averaged with weights that fall off linearly to
the ends of each window, because a state near an end has seen one side of its surroundings only. Ends of the video do
not count as ends. The logits of video-level tasks are averaged over the windows by their number of steps. Of the points
of a pyramid, those of the window count in which the point's step weighs most.

Shape letters: S steps of the video, W steps of a window, L labels, M modalities, G points of a pyramid.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vca.core.metrics import Bools, Ints
from vca.core.records import FloatArray, Prediction, VideoFeatures, VideoLogits
from vca.models.calibration import decide
from vca.models.fusion_inputs import MODALITIES, Modality, Window, collate_arrays, windows_of
from vca.models.plm import load_language
from vca.models.saved_model import SavedModel, load_weights_into_model, read_card
from vca.models.weights import resolve_device

BATCH_WINDOWS = 8


class FusionTagger:
    """A saved model as a function of `VideoFeatures`. Deterministic; a video gives the same alone and among others."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        saved = read_card(folder)
        self.card, self.calibration, self.taxonomy = saved.card, saved.calibration, saved.card.spec.taxonomy
        self.scorer = FusionScorer(saved, device)

    def __call__(self, video: VideoFeatures) -> Prediction:
        probabilities = self.calibration.probabilities(self.scorer(video))
        return decide(probabilities, video.steps, self.taxonomy, self.calibration)


class FusionScorer:
    """Logits of whole videos."""

    def __init__(self, saved: SavedModel, device: str = "auto") -> None:
        card = saved.card
        self._model = load_weights_into_model(saved)
        self._language = load_language(card.fusion.plm, device)
        self._inputs, self._spec = card.fusion.inputs, card.spec
        self._device = resolve_device(device, "predict.device")
        self._model.to(self._device)

    def __call__(self, video: VideoFeatures) -> VideoLogits:
        assert video.step_us == self._spec.step_us, (
            f"{video.key}: steps of {video.step_us} us, not {self._spec.step_us}"
        )
        windows = windows_of(video, self._inputs, self._language)
        weights = window_weights(windows, len(video.steps))
        parts: list[VideoLogits] = []
        for first in range(0, len(windows), BATCH_WINDOWS):
            now = slice(first, first + BATCH_WINDOWS)
            parts += self._forward(windows[now], video.steps, own_steps(windows, weights, len(video.steps))[now])
        return merge_windows(windows, weights, parts, len(video.steps))

    def _forward(self, windows: Sequence[Window], grid: Ints, owned: Sequence[Bools]) -> list[VideoLogits]:
        import torch

        batch = {
            name: values.to(self._device) for name, values in collate_arrays([w.arrays() for w in windows]).items()
        }
        with torch.inference_mode():
            outputs = self._model(batch)
        assert outputs.gates is not None
        found = []
        for i, window in enumerate(windows):
            n = window.n_steps
            candidates, spans = {}, {}
            for task, points in outputs.candidates.items():
                kept = points.mask[i].cpu().numpy() & owned[i][points.centres.long().clamp(max=n - 1).cpu().numpy()]
                candidates[task] = points.logits[i].float().cpu().numpy()[kept]
                ends = points.ends[i].float().cpu().numpy()[kept]
                spans[task] = _in_time(ends, grid[window.first_step : window.first_step + n])
            found.append(
                VideoLogits(
                    video={t: v[i].float().cpu().numpy() for t, v in outputs.video.items()},
                    steps={t: v[i, :n].float().cpu().numpy() for t, v in outputs.steps.items()},
                    places={t: v[i, :n].float().cpu().numpy() for t, v in outputs.places.items()},
                    participants={t: v[i, :n].float().cpu().numpy() for t, v in outputs.participants.items()},
                    step_shares=outputs.gates[i, :n].float().cpu().numpy(),
                    video_shares={t: v[i].float().cpu().numpy() for t, v in outputs.video_shares.items()},
                    candidates=candidates,
                    candidate_spans=spans,
                )
            )
        return found


def _in_time(ends: FloatArray, steps: Ints) -> Ints:
    """Ends [G, 2] in steps of a window as microseconds, inside the window; at least one microsecond long."""
    edges = np.append(steps[:, 0], steps[-1, 1])
    spans: Ints = np.rint(np.interp(ends, np.arange(len(edges)), edges)).astype(np.int64)
    spans[:, 1] = np.maximum(spans[:, 1], spans[:, 0] + 1)
    return spans


def window_weights(windows: Sequence[Window], n_steps: int) -> list[FloatArray]:
    """What the steps of each window weigh [W] where windows overlap."""
    return [
        seam_weights(window.n_steps, window.first_step == 0, window.first_step + window.n_steps == n_steps)
        for window in windows
    ]


def own_steps(windows: Sequence[Window], weights: Sequence[FloatArray], n_steps: int) -> list[Bools]:
    """Which steps of each window [W] weigh most in it, of all windows; the first one where several weigh the same."""
    best = np.zeros(n_steps, np.float32)
    owner = np.zeros(n_steps, np.int64)
    for index, (window, weight) in enumerate(zip(windows, weights, strict=True)):
        place = slice(window.first_step, window.first_step + window.n_steps)
        more = weight > best[place]
        owner[place] = np.where(more, index, owner[place])
        best[place] = np.where(more, weight, best[place])
    return [owner[w.first_step : w.first_step + w.n_steps] == index for index, w in enumerate(windows)]


def merge_windows(
    windows: Sequence[Window], weights: Sequence[FloatArray], parts: Sequence[VideoLogits], n_steps: int
) -> VideoLogits:
    """The logits of a video's windows as those of the video, by the rule of the module."""
    if len(parts) == 1:
        return parts[0]
    total = np.zeros(n_steps, np.float64)
    for window, weight in zip(windows, weights, strict=True):
        total[window.first_step : window.first_step + window.n_steps] += weight

    def in_time(arrays: Sequence[FloatArray]) -> FloatArray:
        merged = np.zeros((n_steps, arrays[0].shape[1]), np.float64)
        for window, weight, values in zip(windows, weights, arrays, strict=True):
            merged[window.first_step : window.first_step + window.n_steps] += weight[:, None] * values
        return (merged / total[:, None]).astype(np.float32)

    def whole(arrays: Sequence[FloatArray]) -> FloatArray:
        lengths = [window.n_steps for window in windows]
        return np.average(np.stack(arrays), axis=0, weights=lengths).astype(np.float32)

    return VideoLogits(
        video={t: whole([p.video[t] for p in parts]) for t in parts[0].video},
        steps={t: in_time([p.steps[t] for p in parts]) for t in parts[0].steps},
        places={t: in_time([p.places[t] for p in parts]) for t in parts[0].places},
        participants={t: in_time([p.participants[t] for p in parts]) for t in parts[0].participants},
        step_shares=in_time([p.step_shares for p in parts if p.step_shares is not None]),
        video_shares={t: whole([p.video_shares[t] for p in parts]) for t in parts[0].video_shares},
        candidates={t: np.concatenate([p.candidates[t] for p in parts]) for t in parts[0].candidates},
        candidate_spans={t: np.concatenate([p.candidate_spans[t] for p in parts]) for t in parts[0].candidate_spans},
    )


def seam_weights(n_steps: int, at_start: bool, at_end: bool) -> FloatArray:
    """Weight [W] of a window's steps: distance to the nearest end of the window that is no end of the video."""
    place = np.arange(n_steps, dtype=np.float32)
    distance = np.full(n_steps, np.float32(n_steps))
    if not at_start:
        distance = np.minimum(distance, place + 1)
    if not at_end:
        distance = np.minimum(distance, n_steps - place)
    return distance


def without(video: VideoFeatures, modalities: Sequence[Modality]) -> VideoFeatures:
    """The same video as if it lacked some modalities, for ablations and for checking the evidence."""
    assert set(modalities) <= set(MODALITIES), modalities
    if "vision" in modalities:
        video = replace(video, vision=None, vision_mask=None)
    if "audio" in modalities:
        video = replace(video, audio=None, audio_mask=None)
    return replace(video, text=()) if "text" in modalities else video
