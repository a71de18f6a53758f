"""The anchor-free pyramid: which point answers for which event, that padding changes nothing, that it can learn."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.metrics import detect, detection_average_precision
from vca.core.records import VideoLogits
from vca.core.spans import soft_nms
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import Span, step_spans
from vca.models.calibration import decide, find_spans, uncalibrated
from vca.models.calibration_fit import fit_calibration
from vca.models.evaluation import EvaluationConfig, Judged, evaluate
from vca.models.fusion_inputs import InputsConfig, Window, window_starts
from vca.models.fusion_tagger import own_steps, window_weights
from vca.models.pyramid import Candidates, Pyramid, _assign, _distance_iou, pyramid_loss

WIDTH, STEP_US = 8, 500_000


def pyramid(n_labels: int = 2, n_levels: int = 3, dropout: float = 0.0) -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(WIDTH, n_labels, n_levels, dropout)


def events(*rows: tuple[float, float, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 3)


def test_points_of_all_levels() -> None:
    """Strides 1, 2 and 4 over six steps; the last point of a level may hang over the end."""
    found = pyramid()(torch.randn(2, 6, WIDTH), torch.ones(2, 6))
    assert found.centres.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 1.0, 3.0, 5.0, 2.0, 6.0]
    assert found.strides.tolist() == [1.0] * 6 + [2.0] * 3 + [4.0] * 2
    assert found.logits.shape == (2, 11, 2)
    assert found.mask.all()
    assert bool((found.ends[..., 0] < found.centres).all())
    assert bool((found.ends[..., 1] > found.centres).all())


def test_padding_changes_nothing() -> None:
    """A window in a batch with a longer one gives what it gives alone, and its padding is no point."""
    model, states = pyramid(), torch.randn(1, 6, WIDTH)
    alone = model(states, torch.ones(1, 6))
    padded = torch.cat([states, torch.full((1, 5, WIDTH), 100.0)], dim=1)
    among = model(padded, torch.cat([torch.ones(1, 6), torch.zeros(1, 5)], dim=1))
    assert int(among.mask.sum()) == alone.mask.shape[1]
    torch.testing.assert_close(among.logits[among.mask], alone.logits[0])
    torch.testing.assert_close(among.ends[among.mask], alone.ends[0])


def test_who_answers_for_an_event() -> None:
    """By hand: near the middle, inside, within the reach of the level; the shortest event wins."""
    found = pyramid()(torch.zeros(1, 16, WIDTH), torch.ones(1, 16))
    centres, strides = found.centres.tolist(), found.strides.tolist()

    def answers(*rows: tuple[float, float, int]) -> list[tuple[float, float, int]]:
        matched = _assign(found, events(*rows))[0].tolist()
        return [(s, c, m) for s, c, m in zip(strides, centres, matched, strict=True) if m >= 0]

    # 3 steps long, middle 3.5: ends at most 2.5 away, which is for the first level
    assert answers((2, 5, 0)) == [(1.0, 2.5, 0), (1.0, 3.5, 0), (1.0, 4.5, 0)]
    # 10 steps long: at least 4 away from one end, and below 8, which is for the second level
    assert answers((3, 13, 1)) == [(2.0, 7.0, 0), (2.0, 9.0, 0)]
    # the whole window: one end is farther than 8 from every point, which is for the last level
    assert answers((0, 16, 1)) == [(4.0, 2.0, 0), (4.0, 6.0, 0), (4.0, 10.0, 0), (4.0, 14.0, 0)]
    # the shorter of two at the same place, whatever their order
    assert {m for _, c, m in answers((2, 6, 0), (3, 5, 1)) if c in (3.5, 4.5)} == {1}
    assert answers((-1, -1, -1)) == [], "padding is nothing"


def test_distance_iou_by_hand() -> None:
    ends = torch.tensor([[0.0, 4.0], [0.0, 2.0], [0.0, 2.0]])
    true = torch.tensor([[0.0, 4.0], [2.0, 4.0], [1.0, 3.0]])
    # equal; apart with middles 2 away in a length of 4; half over: IoU 1/3, middles 1 away in 3
    expected = [0.0, 1 + 4 / 16, 1 - 1 / 3 + 1 / 9]
    torch.testing.assert_close(_distance_iou(ends, true), torch.tensor(expected))


@torch.no_grad()
def test_loss_of_padding_and_of_nothing() -> None:
    """Padded events cost nothing; without events the loss only asks for silence."""
    model = pyramid()
    found = model(torch.randn(1, 12, WIDTH), torch.ones(1, 12))
    once = pyramid_loss(found, events((2, 5, 0)))
    padded = pyramid_loss(found, events((2, 5, 0), (-1, -1, -1)))
    torch.testing.assert_close(once, padded)
    silent = Candidates(torch.full_like(found.logits, -20.0), found.ends, found.mask, found.centres, found.strides)
    assert float(pyramid_loss(silent, events((-1, -1, -1)))) < 1e-6 < float(pyramid_loss(silent, events((2, 5, 0))))


def test_it_learns_spans() -> None:
    """Two kinds of events of any length in noise are found after a few hundred steps.

    Their ends stay rough: without a language model below it, a point sees two points to either side.
    """
    draw = np.random.default_rng(0)
    model = pyramid(n_levels=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        states, rows = draw.normal(size=(n, 24, WIDTH)) * 0.3, np.full((n, 1, 3), -1.0)
        for i in range(n):
            start, length, label = draw.integers(0, 12), draw.integers(2, 12), draw.integers(0, 2)
            states[i, start : start + length, label] += 3.0
            rows[i, 0] = start, start + length, label
        return torch.tensor(states, dtype=torch.float32), torch.tensor(rows, dtype=torch.float32)

    for _ in range(400):
        states, rows = sample(16)
        loss = pyramid_loss(model(states, torch.ones(16, 24)), rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model.eval()
    states, rows = sample(40)
    with torch.no_grad():
        found = model(states, torch.ones(40, 24))
    precisions = []
    for label in (0, 1):
        truth, guessed = [], []
        for i in range(40):
            first, last, true_label = rows[i, 0].tolist()
            truth.append([Span(int(first * STEP_US), int(last * STEP_US))] if true_label == label else [])
            ends = (found.ends[i].clamp(0, 24) * STEP_US).long().numpy()
            spans, scores = soft_nms(ends, found.logits[i, :, label].sigmoid().numpy(), 0.5, 20)
            guessed.append([(Span(int(a), int(b)), float(s)) for (a, b), s in zip(spans, scores, strict=True) if b > a])
        precisions.append(detection_average_precision(detect(truth, guessed, (0.5,)))[0, 0])
    assert min(precisions) > 0.8, precisions


# --- from candidates to events ---------------------------------------------------------------------------------------


def test_soft_nms_by_hand() -> None:
    """A candidate that shares a third with a better one loses by exp(-(1/3)^2 / 0.5); one apart loses nothing."""
    spans = np.array([[0, 20], [10, 30], [100, 120], [0, 20]], np.int64)
    scores = np.array([0.9, 0.8, 0.5, 0.7], np.float32)
    kept, values = soft_nms(spans, scores, sigma=0.5, keep=3)
    assert kept.tolist() == [[0, 20], [10, 30], [100, 120]]
    np.testing.assert_allclose(values, [0.9, 0.8 * np.exp(-((1 / 3) ** 2) / 0.5), 0.5], rtol=1e-6)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20), st.floats(0.125, 0.875, width=32)), max_size=12),
    st.integers(1, 12),
)
def test_soft_nms_properties(rows: list[tuple[int, int, float]], keep: int) -> None:
    """Best first, never more than asked, no score rises, and the best stays as it is."""
    spans = np.array([(a, a + n) for a, n, _ in rows], np.int64).reshape(-1, 2)
    scores = np.array([s for *_, s in rows], np.float32)
    kept, values = soft_nms(spans, scores, 0.5, keep)
    assert len(kept) == len(values) == min(keep, len(rows))
    assert (np.diff(values) <= 1e-6).all()
    if rows:
        assert values[0] == scores.max()
        assert set(map(tuple, kept.tolist())) <= set(map(tuple, spans.tolist()))
        assert values.sum() <= scores.sum() + 1e-5


TAXONOMY = Taxonomy.model_validate(
    {
        "name": "t",
        "tasks": [
            {
                "name": "events",
                "kind": "span",
                "description": "d",
                "labels": [{"name": "x", "description": "x"}, {"name": "y", "description": "y"}],
            }
        ],
    }
)


def test_candidates_become_events_with_a_fitted_threshold() -> None:
    """Where candidates find the events, spans come from them, and the threshold tells true from false here."""
    grid = step_spans(Span(0, 20 * STEP_US), STEP_US)
    spans = np.array([[1_000_000, 4_000_000], [1_200_000, 4_100_000], [6_000_000, 8_000_000]], np.int64)
    logits, truths = [], []
    for i in range(6):
        candidates = np.array([[3.0, -6.0], [2.0, -6.0], [-1.2, -6.0]], np.float32)  # x here, and doubtful there
        steps = {"events": np.full((20, 2), -9.0, np.float32)}
        logits.append(VideoLogits({}, steps, candidates={"events": candidates}, candidate_spans={"events": spans}))
        event = TrueEvent("x", Span(1_000_000, 4_000_000))
        truths.append(VideoTruth(f"v{i}", f"{i}.mp4", Split.CALIBRATION, None, {}, {"events": (event,)}))
    fitted = fit_calibration(logits, truths, [grid] * 6, TAXONOMY)
    probabilities = fitted.probabilities(logits[0])
    assert probabilities.candidates["events"][0, 0] == np.float32(1 / (1 + np.exp(-3.0)))
    assert find_spans(fitted.tasks["events"], probabilities, grid, "events", 0) == [
        (Span(1_000_000, 4_000_000), float(probabilities.candidates["events"][0, 0]))
    ]
    assert find_spans(fitted.tasks["events"], probabilities, grid, "events", 1) == []


def test_a_ranking_has_what_a_decision_leaves_out() -> None:
    """Figures that rank see events below the threshold, from candidates and from steps; tables do not."""
    grid = step_spans(Span(0, 20 * STEP_US), STEP_US)
    spans = np.array([[1_000_000, 4_000_000], [6_000_000, 8_000_000]], np.int64)
    scores = np.zeros((20, 2), np.float32)
    scores[2:8, 0], scores[12:16, 0] = 0.9, 0.15
    from_steps = VideoLogits({}, {"events": scores})
    candidates = {"events": np.array([[0.9, 0.0], [0.15, 0.0]], np.float32)}
    from_points = replace(from_steps, candidates=candidates, candidate_spans={"events": spans})
    calibration = uncalibrated(TAXONOMY)
    for probabilities in (from_steps, from_points):
        plain = decide(probabilities, grid, TAXONOMY, calibration)
        ranked = decide(probabilities, grid, TAXONOMY, calibration, rank=True)
        assert plain.ranked == ()
        assert ranked.events == plain.events
        assert [e.span for e in plain.events] == [Span(1_000_000, 4_000_000)]
        assert [e.span for e in ranked.ranked] == [Span(1_000_000, 4_000_000), Span(6_000_000, 8_000_000)]
        truth = [TrueEvent("x", Span(a, b)) for a, b in spans.tolist()]
        video = VideoTruth("v", "v.mp4", Split.TEST, None, {}, {"events": tuple(truth)})
        whole, half = (
            evaluate([Judged(video, found, grid, 10_000_000)], TAXONOMY, EvaluationConfig(bootstrap_samples=0))
            for found in (ranked, plain)
        )
        assert whole.headline["events.map_at_0.5"].value == 1.0
        assert half.headline["events.map_at_0.5"].value == 0.5
        assert whole.headline["events.segment_f1_at_0.5"] == half.headline["events.segment_f1_at_0.5"]


@given(st.integers(1, 9), st.integers(1, 40))
def test_every_step_has_one_window(length: int, n_steps: int) -> None:
    """No candidate is lost or taken twice at a seam."""
    inputs = InputsConfig(window_s=length * 0.5, overlap_s=length // 2 * 0.5)
    starts = window_starts(n_steps, STEP_US, inputs)
    empty = np.zeros(0, np.int64)
    windows = [Window(s, min(length, n_steps), *[None] * 6, empty, empty, empty) for s in starts]
    owned = own_steps(windows, window_weights(windows, n_steps), n_steps)
    counts = np.zeros(n_steps, int)
    for window, mine in zip(windows, owned, strict=True):
        counts[window.first_step : window.first_step + window.n_steps] += mine
    assert (counts == 1).all()
