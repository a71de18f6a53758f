"""The report: every figure by hand on a small archive, and equal to scikit-learn on a random one."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.errors import ConfigError
from vca.core.metrics import expected_calibration_error
from vca.core.records import CategoryScore, Event, Evidence, Prediction
from vca.core.taxonomy import Attribute, Attributes, Label, Task, TaskKind, Taxonomy
from vca.core.timeline import Span
from vca.models.evaluation import EvaluationConfig, Judged, Report, compare, evaluate

S = 1_000_000
ONCE = EvaluationConfig(bootstrap_samples=0)


def labels(*names: str) -> tuple[Label, ...]:
    return tuple(Label(name=name, description=name) for name in names)


def task(name: str, kind: TaskKind, *names: str, attributes: Attributes | None = None) -> Task:
    return Task(name=name, kind=kind, description=name, labels=labels(*names), attributes=attributes or Attributes())


CONTENT = task("content", TaskKind.MULTI_LABEL, "a", "b", "c")
MOOD = task("mood", TaskKind.SINGLE_LABEL, "x", "y")
EVENTS = task(
    "events",
    TaskKind.SPAN,
    "goal",
    "talk",
    "rain",
    attributes=Attributes(place=Attribute(labels=labels("p", "q")), participants=Attribute(labels=labels("r", "s"))),
)
SPEECH = task("speech", TaskKind.STEP, "voice", "music")


def taxonomy(*tasks: Task) -> Taxonomy:
    return Taxonomy(name="test", tasks=tasks)


def grid(n: int) -> np.ndarray:
    return np.stack([np.arange(n), np.arange(1, n + 1)], axis=1) * S


def judged(
    video_id: str,
    held: dict[str, Sequence[str]] | None = None,
    scores: dict[str, dict[str, float]] | None = None,
    selected: Sequence[str] = (),
    truth: dict[str, tuple[TrueEvent, ...]] | None = None,
    found: Sequence[Event] = (),
    step_scores: dict[str, np.ndarray] | None = None,
    n_steps: int = 10,
    **more: Any,
) -> Judged:
    rows = []
    for name, by_label in (scores or {}).items():
        for rank, (label, score) in enumerate(sorted(by_label.items(), key=lambda item: -item[1]), start=1):
            rows.append(CategoryScore(name, label, score, 0.5, label in selected, rank, Evidence()))
    names = {name: frozenset(values) for name, values in (held or {}).items()}
    return Judged(
        truth=VideoTruth(video_id, None, Split.TEST, labels=names, events=truth or {}),
        prediction=Prediction(tuple(rows), tuple(found), step_scores or {}),
        steps=grid(n_steps),
        duration_us=n_steps * S,
        **more,
    )


def values(report: Report) -> dict[str, float]:
    return {name: interval.value for name, interval in report.headline.items()}


# --- multi_label -----------------------------------------------------------------------------------------------------


def content_by_hand() -> list[Judged]:
    scores = [(0.9, 0.9, 0.3), (0.8, 0.8, 0.2), (0.7, 0.7, 0.1), (0.6, 0.1, 0.6)]
    held = [("a",), ("b",), ("a", "b"), ()]
    selected = [("a", "b"), ("b",), ("a",), ("c",)]
    return [
        judged(f"v{i}", {"content": h}, {"content": dict(zip("abc", s, strict=True))}, chosen)
        for i, (s, h, chosen) in enumerate(zip(scores, held, selected, strict=True))
    ]


def test_labels_by_hand() -> None:
    """Ranking uses all scores, decisions what was selected; a label that never holds is left out and counted."""
    report = evaluate(content_by_hand(), taxonomy(CONTENT), ONCE)
    details = report.tasks["content"]
    # a, ranked 0.9 yes, 0.8 no, 0.7 yes, 0.6 no: (1 + 2/3) / 2 = 5/6.
    # b, ranked no, yes, yes, no: (1/2 + 2/3) / 2 = 7/12.
    assert details["labels"]["a"]["ap"] == pytest.approx(5 / 6)
    assert details["labels"]["b"]["ap"] == pytest.approx(7 / 12)
    assert details["labels"]["c"]["ap"] is None
    assert details["labels"]["c"]["roc_auc"] is None
    assert values(report)["content.map_macro"] == pytest.approx((5 / 6 + 7 / 12) / 2)
    assert (details["n_labels"], details["n_labels_without_positives"]) == (3, 1)
    # Selected: a yes, b no (v0); b yes (v1); a yes, b missed (v2); c no (v3): 3 right, 2 wrong, 1 missed: F1 = 6/9.
    assert values(report)["content.f1_micro"] == pytest.approx(2 / 3)
    assert details["labels"]["b"]["at_decision"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    # a: both true ones selected, F1 1; b: 1/2; c is left out.
    assert details["f1_macro"] == pytest.approx(3 / 4)
    # At 0.5 a is taken in all four videos (2 right), b in three (2 right).
    assert details["labels"]["a"]["at_half"]["precision"] == 0.5
    assert details["labels"]["b"]["at_half"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8})
    # a: of the 4 pairs of a positive (0.9, 0.7) and a negative (0.8, 0.6), three are in order.
    assert details["labels"]["a"]["roc_auc"] == pytest.approx(3 / 4)
    assert details["labels"]["a"]["brier"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.36) / 4)
    assert report.score == report.headline["content.map_macro"]
    assert report.n_videos == 4
    assert report.hours == pytest.approx(40 / 3600)


def test_labels_are_those_of_sklearn() -> None:
    """On a random archive with equal scores, wherever scikit-learn has the figure."""
    draw = np.random.default_rng(0)
    names = [f"l{j}" for j in range(6)]
    truth, scores = draw.random((60, 6)) < 0.3, draw.random((60, 6)).round(1)
    chosen = scores >= 0.7
    rows = [
        judged(
            f"v{i:02}",
            {"content": [n for n, t in zip(names, truth[i], strict=True) if t]},
            {"content": dict(zip(names, scores[i].tolist(), strict=True))},
            [n for n, c in zip(names, chosen[i], strict=True) if c],
        )
        for i in range(60)
    ]
    report = evaluate(rows, taxonomy(task("content", TaskKind.MULTI_LABEL, *names)), ONCE)
    details, found = report.tasks["content"], values(report)
    close = {"abs": 1e-6}
    assert found["content.map_macro"] == pytest.approx(average_precision_score(truth, scores, average="macro"), **close)
    assert found["content.ap_micro"] == pytest.approx(average_precision_score(truth, scores, average="micro"), **close)
    assert found["content.gap_at_20"] == pytest.approx(found["content.ap_micro"], **close)
    assert found["content.f1_micro"] == pytest.approx(f1_score(truth, chosen, average="micro"), **close)
    assert details["f1_macro"] == pytest.approx(f1_score(truth, chosen, average="macro"), **close)
    assert details["roc_auc_macro"] == pytest.approx(roc_auc_score(truth, scores, average="macro"), **close)
    assert details["pooled"]["brier"] == pytest.approx(brier_score_loss(truth.ravel(), scores.ravel()), **close)
    ece = [expected_calibration_error(scores[:, j], truth[:, j]) for j in range(6)]
    assert details["ece_macro"] == pytest.approx(np.mean(ece), **close)
    for j, name in enumerate(names):
        label = details["labels"][name]
        assert label["n_positive"] == truth[:, j].sum()
        assert label["ap"] == pytest.approx(average_precision_score(truth[:, j], scores[:, j]), **close)
        rates = precision_recall_fscore_support(truth[:, j], chosen[:, j], average="binary")[:3]
        assert list(label["at_decision"].values()) == pytest.approx(rates, **close)
        area = np.trapezoid(label["roc_curve"]["true_positive_rate"], label["roc_curve"]["false_positive_rate"])
        assert area == pytest.approx(label["roc_auc"], abs=1e-4)  # curves are rounded to five digits


def test_curves_are_thinned() -> None:
    """A report of an archive of thousands of videos stays small; the ends of a curve stay."""
    draw = np.random.default_rng(0)
    rows = [
        judged(f"v{i}", {"content": ["a"] if draw.random() < 0.5 else []}, {"content": {"a": float(draw.random())}})
        for i in range(900)
    ]
    curves = evaluate(rows, taxonomy(task("content", TaskKind.MULTI_LABEL, "a")), ONCE).tasks["content"]["labels"]["a"]
    for curve, x in (("pr_curve", "recall"), ("roc_curve", "false_positive_rate")):
        points = curves[curve][x]
        assert len(points) <= 200
        assert (points[0], points[-1]) == (0.0, 1.0)
        assert points == sorted(points)


def test_labels_a_prediction_lacks_or_has_too_many() -> None:
    """A missing label has score 0 and is not selected; a foreign label or task changes nothing."""
    rows = content_by_hand()
    full = evaluate(rows, taxonomy(CONTENT), ONCE)
    foreign = CategoryScore("content", "zebra", 1.0, 0.5, True, 1, Evidence())
    other = CategoryScore("other", "a", 1.0, 0.5, True, 1, Evidence())
    more = [
        Judged(r.truth, Prediction((foreign, other, *r.prediction.categories), ()), r.steps, r.duration_us)
        for r in rows
    ]
    assert evaluate(more, taxonomy(CONTENT), ONCE) == full
    nothing = [Judged(r.truth, Prediction((), ()), r.steps, r.duration_us) for r in rows]
    silent = evaluate(nothing, taxonomy(CONTENT), ONCE)
    # All scores are equal: one threshold, with the share of positives as precision: 2 of 4 for a and for b.
    assert values(silent)["content.map_macro"] == pytest.approx(0.5)
    assert silent.tasks["content"]["pooled"]["at_decision"]["f1"] == 0.0


# --- single_label ----------------------------------------------------------------------------------------------------


def test_one_label_by_hand() -> None:
    """Who says nothing is wrong, unless nothing holds; the rest is counted in one table."""
    rows = [
        judged("v0", {"mood": ["x"]}, {"mood": {"x": 0.9, "y": 0.1}}, ["x"]),
        judged("v1", {"mood": ["x"]}, {"mood": {"x": 0.4, "y": 0.6}}, ["y"]),
        judged("v2", {"mood": ["y"]}, {"mood": {"x": 0.3, "y": 0.7}}, []),
        judged("v3", {"mood": ["y"]}, {"mood": {"x": 0.2, "y": 0.8}}, ["y"]),
        judged("v4", {"mood": []}, {"mood": {"x": 0.5, "y": 0.5}}, []),
        judged("v5", {}, {"mood": {"x": 0.5, "y": 0.5}}, ["x"]),  # not annotated: not judged
    ]
    report = evaluate(rows, taxonomy(MOOD), ONCE)
    details, found = report.tasks["mood"], values(report)
    assert details["n_videos"] == 5
    assert details["confusion"]["labels"] == ["x", "y", "(none)"]
    assert details["confusion"]["rows_are_truth"] == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["mood.accuracy"] == pytest.approx(3 / 5)
    # F1: x 2*1/(2+0+1) = 2/3 (2 videos), y 2*1/(2+1+1) = 1/2 (2 videos), none 2*1/(2+1+0) = 2/3 (1 video).
    assert found["mood.weighted_f1"] == pytest.approx((2 * 2 / 3 + 2 * 1 / 2 + 2 / 3) / 5)
    assert details["n_without_decision"] == 2
    assert details["labels"]["x"]["at_decision"]["recall"] == 0.5
    # Squared distances: 0.01 + 0.01, 0.36 + 0.36, 0.09 + 0.09, 0.04 + 0.04, and 0.25 + 0.25 without a label.
    assert details["brier"] == pytest.approx((0.02 + 0.72 + 0.18 + 0.08 + 0.5) / 5)
    # Confidence against being right, each alone in its bin: 0.9 yes, 0.6 no, 0.7 yes, 0.8 yes, 0.5 no.
    assert details["ece"] == pytest.approx((0.1 + 0.6 + 0.3 + 0.2 + 0.5) / 5)


def test_one_label_is_that_of_sklearn() -> None:
    """Accuracy, weighted F1 and the table, with undecided videos as a class of their own."""
    draw = np.random.default_rng(3)
    names = ["x", "y", "z"]
    mood = task("mood", TaskKind.SINGLE_LABEL, *names)
    truth, scores = draw.integers(0, 3, 80), draw.dirichlet([1, 1, 1], 80)
    found = np.where(scores.max(axis=1) >= 0.5, scores.argmax(axis=1), 3)
    rows = [
        judged(
            f"v{i:02}",
            {"mood": [names[truth[i]]]},
            {"mood": dict(zip(names, scores[i].tolist(), strict=True))},
            [names[found[i]]] if found[i] < 3 else [],
        )
        for i in range(80)
    ]
    report = evaluate(rows, taxonomy(mood), ONCE)
    table = confusion_matrix(truth, found, labels=range(4))
    assert report.tasks["mood"]["confusion"]["rows_are_truth"] == table.tolist()
    assert values(report)["mood.accuracy"] == pytest.approx(accuracy_score(truth, found), abs=1e-6)
    weighted = f1_score(truth, found, average="weighted", zero_division=0)
    assert values(report)["mood.weighted_f1"] == pytest.approx(weighted, abs=1e-6)


def test_a_right_answer_outside_the_taxonomy() -> None:
    """Judged against a restricted taxonomy, a video whose label was cut away cannot be right, and is left out."""
    rows = [judged("v0", {"mood": ["z"]}), judged("v1", {"mood": ["x"]}, {"mood": {"x": 1.0}}, ["x"])]
    report = evaluate(rows, taxonomy(MOOD), ONCE)
    assert report.tasks["mood"]["n_videos"] == 1
    assert values(report)["mood.accuracy"] == 1.0


# --- span ------------------------------------------------------------------------------------------------------------


def true(label: str, start: int, end: int, place: str | None = None, people: Sequence[str] | None = None) -> TrueEvent:
    return TrueEvent(label, Span(start * S, end * S), place, None if people is None else frozenset(people))


def event(label: str, start: int, end: int, score: float, place: str | None = None, people: str = "") -> Event:
    span = Span(start * S, end * S)
    return Event("events", label, span, score, place, 0.5 if place else None, tuple((p, 0.9) for p in people))


def events_by_hand() -> list[Judged]:
    return [
        judged(
            "v0",
            truth={"events": (true("goal", 0, 4, "p", ["r"]), true("talk", 5, 9, "q", []))},
            found=[
                event("goal", 0, 4, 0.9, "p", "rs"),  # exact; one participant too many
                event("talk", 5, 7, 0.8, "p", "r"),  # tIoU 2/4: counts at 0.5; wrong place, nobody was there
                event("rain", 0, 9, 0.7),  # a class without events
            ],
        ),
        judged(
            "v1",
            truth={"events": (true("goal", 2, 6), true("goal", 8, 10, "q", ["r", "s"]))},
            found=[
                event("goal", 1, 6, 0.6, "p", "r"),  # tIoU 4/5; place and participants are not annotated
                event("goal", 0, 1, 0.95),  # nothing there
            ],
        ),
        judged("v2", truth={}, found=[event("goal", 0, 9, 0.99)]),  # not annotated: not judged
    ]


def test_events_by_hand() -> None:
    """mAP@tIoU, segment F1, and place and participants on what was found and annotated."""
    report = evaluate(events_by_hand(), taxonomy(EVENTS), EvaluationConfig(bootstrap_samples=0, tious=(0.75, 0.5)))
    details, found = report.tasks["events"], values(report)
    # goal: 3 events; ranked 0.95 no, 0.9 yes, 0.6 yes: precision 0, 1/2, 2/3, from there on 2/3 twice: AP 4/9 at both.
    # talk: 1 event; found at 0.5: AP 1; at 0.75 AP 0. rain: no event, left out.
    assert found["events.map_at_0.5"] == pytest.approx((4 / 9 + 1) / 2)
    assert found["events.map_at_0.75"] == pytest.approx((4 / 9 + 0) / 2)
    assert found["events.map_average"] == pytest.approx((4 / 9 + 1 / 2) / 2)
    assert details["labels"]["goal"]["ap"] == pytest.approx({"0.5": 4 / 9, "0.75": 4 / 9})
    assert details["labels"]["rain"]["ap"] == {"0.5": None, "0.75": None}
    assert (details["n_labels"], details["n_labels_without_truth"], details["n_found_without_truth"]) == (3, 1, 1)
    # Segments at 0.5, all classes: 3 right, 2 wrong (rain, 0.95), 1 missed: 6/9.
    assert found["events.segment_f1_at_0.5"] == pytest.approx(2 / 3)
    # Matched and annotated: goal of v0 (place right), talk of v0 (wrong).
    assert found["events.place_accuracy"] == pytest.approx(1 / 2)
    # Participants: r right, s too many; for talk r too many: 1 right, 2 wrong, 0 missed: 2/4. 8..10 was not found.
    assert found["events.participants_f1"] == pytest.approx(1 / 2)
    assert details["place"] == {"n_events": 2, "n_correct": 1}
    # Frames of 1 s: v0 goal 4 of 4, talk 2 right 2 missed, rain 9 wrong; v1 goal 4 right, 2 missed, 1 and 1 wrong.
    assert found["events.frame_f1"] == pytest.approx(2 * 10 / (2 * 10 + 11 + 4))
    assert report.tasks["events"]["main"] == "events.map_at_0.5"
    assert report.score.value == found["events.map_at_0.5"]


def test_scores_of_steps_in_a_span_task_are_judged_too() -> None:
    """Average precision of single steps says what the model knows before events are made; equal to scikit-learn."""
    draw = np.random.default_rng(4)
    rows = [
        judged(
            f"v{i}",
            truth={"events": (true("goal", i, i + 3),)},
            step_scores={"events": draw.random((10, 3)).astype(np.float32)},
        )
        for i in range(4)
    ]
    details = evaluate(rows, taxonomy(EVENTS), ONCE).tasks["events"]
    held = np.concatenate([(np.arange(10) >= i) & (np.arange(10) < i + 3) for i in range(4)])
    scores = np.concatenate([r.prediction.step_scores["events"][:, 0] for r in rows])
    assert details["labels"]["goal"]["step_ap"] == pytest.approx(average_precision_score(held, scores), abs=1e-6)
    assert details["step_map"] == details["labels"]["goal"]["step_ap"]  # the other labels have no positives


def test_step_scores_of_another_taxonomy_are_refused() -> None:
    """Columns have no names; a wrong number of them would be judged as other labels."""
    row = judged("v0", truth={"events": (true("goal", 0, 3),)}, step_scores={"events": np.zeros((10, 2), np.float32)})
    with pytest.raises(AssertionError, match="step scores of events"):
        evaluate([row], taxonomy(EVENTS), ONCE)


# --- step ------------------------------------------------------------------------------------------------------------


def test_steps_by_hand() -> None:
    """The best label if it reaches its threshold; a step without a label is a class of its own."""
    scores = np.array([[0.9, 0.1], [0.2, 0.7], [0.6, 0.8], [0.3, 0.4], [0.1, 0.2]], np.float32)
    row = judged(
        "v0", truth={"speech": (true("voice", 0, 2), true("music", 2, 4))}, step_scores={"speech": scores}, n_steps=5
    )
    # Truth v v m m -, found v m m - -: three of five right; labels: 2 right, 1 wrong, 2 missed.
    report = evaluate([row], taxonomy(SPEECH), ONCE)
    assert values(report)["speech.accuracy"] == pytest.approx(3 / 5)
    assert values(report)["speech.frame_f1"] == pytest.approx(4 / 7)
    assert report.tasks["speech"]["confusion"]["rows_are_truth"] == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    expected = f1_score([0, 0, 1, 1, 2], [0, 1, 1, 2, 2], average="weighted")
    assert values(report)["speech.weighted_f1"] == pytest.approx(expected, abs=1e-6)
    # With a threshold of 0.35 of its own, music is found in the fourth step as well.
    own = judged(
        "v0",
        truth={"speech": (true("voice", 0, 2), true("music", 2, 4))},
        step_scores={"speech": scores},
        n_steps=5,
        thresholds={"speech.music": 0.35},
    )
    assert values(evaluate([own], taxonomy(SPEECH), ONCE))["speech.accuracy"] == pytest.approx(4 / 5)


def test_the_shorter_event_names_a_step() -> None:
    """Where annotations of a step task overlap, as in training."""
    row = judged(
        "v0",
        truth={"speech": (true("voice", 0, 4), true("music", 1, 2))},
        step_scores={"speech": np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]], np.float32)},
        n_steps=4,
    )
    assert values(evaluate([row], taxonomy(SPEECH), ONCE))["speech.accuracy"] == 1.0


# --- the whole report ------------------------------------------------------------------------------------------------

ALL = taxonomy(CONTENT, MOOD, EVENTS, SPEECH)


def random_archive(n: int, seed: int, skill: float = 0.3) -> list[Judged]:
    """Videos with all kinds of tasks, each annotated in most of them."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        held = {"content": [name for name in "abc" if draw.random() < 0.4], "mood": [str(draw.choice(["x", "y"]))]}
        scores = {
            "content": {name: float(draw.random() * 0.7 + skill * (name in held["content"])) for name in "abc"},
            "mood": {name: float(draw.random() * 0.7 + skill * (name in held["mood"])) for name in "xy"},
        }
        chosen = [name for by_label in scores.values() for name, score in by_label.items() if score > 0.5]
        start = int(draw.integers(0, 5))
        shift = int(draw.integers(0, 3))
        label = str(draw.choice(["goal", "talk"]))
        truth = {"events": (true(label, start, start + 4, "p", ["r"]),), "speech": (true("voice", 0, start + 1),)}
        start += shift
        found = [event(label, start, start + 4, float(draw.random()), str(draw.choice(["p", "q"])), "r")]
        steps = {"speech": draw.random((10, 2)).astype(np.float32)}
        if draw.random() < 0.1:
            del truth["events"]
        rows.append(judged(f"v{i:03}", held, scores, chosen, truth, found, steps))
    return rows


def test_the_report_is_plain_json() -> None:
    """Other rooms and MLflow take it as it is; nothing in it is NaN."""
    report = evaluate(random_archive(12, 0), ALL, EvaluationConfig(bootstrap_samples=20))
    text = json.dumps(report.to_dict(), allow_nan=False)
    again = json.loads(text)
    assert again["headline"]["mood.accuracy"].keys() == {"value", "low", "high"}
    assert set(again["tasks"]) == {"content", "mood", "events", "speech"}
    mains = [again["headline"][found["main"]]["value"] for found in again["tasks"].values()]
    assert again["score"]["value"] == pytest.approx(np.mean(mains))


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.randoms())
def test_report_properties(seed: int, chance: random.Random) -> None:
    """The order of the videos changes nothing at all; figures lie between 0 and 1; intervals hold together."""
    rows = random_archive(10, seed)
    config = EvaluationConfig(bootstrap_samples=20)
    report = evaluate(rows, ALL, config)
    shuffled = list(rows)
    chance.shuffle(shuffled)
    assert evaluate(shuffled, ALL, config) == report
    for interval in report.headline.values():
        assert 0.0 <= interval.low <= interval.high <= 1.0
        assert 0.0 <= interval.value <= 1.0


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000))
def test_a_doubled_archive_has_the_same_figures(seed: int) -> None:
    """Every video twice: every ratio and every ranking without equal scores stays as it is."""
    rows = random_archive(8, seed)
    once, twice = evaluate(rows, ALL, ONCE), evaluate(rows * 2, ALL, ONCE)
    assert values(twice) == pytest.approx(values(once))


def test_intervals_by_brute_force() -> None:
    """The fast bootstrap is the slow one: resample the list of videos, evaluate again, take percentiles."""
    from vca.core.metrics import bootstrap_weights

    rows = sorted(random_archive(12, 5), key=lambda r: r.truth.video_id)
    config = EvaluationConfig(bootstrap_samples=12, seed=9, confidence=0.9)
    report = evaluate(rows, ALL, config)
    drawn: dict[str, list[float]] = {}
    for weights in bootstrap_weights(len(rows), 12, seed=9)[1:]:
        resample = [row for row, n in zip(rows, weights, strict=True) for _ in range(int(n))]
        once = evaluate(resample, ALL, ONCE)
        for name, value in (values(once) | {"score": once.score.value}).items():
            drawn.setdefault(name, []).append(value)
    for name, interval in (report.headline | {"score": report.score}).items():
        expected = np.quantile(drawn[name], [0.05, 0.95])
        assert [interval.low, interval.high] == pytest.approx(expected, abs=1e-9), name


def test_a_comparison_is_paired() -> None:
    """The same videos are drawn for both sides, so a small steady gain is seen; against itself there is none."""
    better, worse = random_archive(40, 1, skill=0.3), random_archive(40, 1, skill=0.25)
    config = EvaluationConfig(bootstrap_samples=200)
    difference = compare(better, worse[::-1], ALL, config)
    a, b = evaluate(better, ALL, config), evaluate(worse, ALL, config)
    gain = difference["content.map_macro"]
    apart = a.headline["content.map_macro"], b.headline["content.map_macro"]
    assert gain.value == pytest.approx(apart[0].value - apart[1].value)
    assert gain.low > 0
    assert apart[0].low < apart[1].high  # the two intervals overlap: unpaired, nothing could be said
    assert difference["score"].value == pytest.approx(a.score.value - b.score.value)
    assert set(difference) == {*a.headline, "score"}
    zero = compare(better, better, ALL, config)
    assert all((i.value, i.low, i.high) == (0.0, 0.0, 0.0) for i in zero.values())


def test_comparing_different_videos_is_refused() -> None:
    """A gate that compared two test splits would promote the one that is easier."""
    rows = random_archive(5, 0)
    with pytest.raises(ConfigError, match="different videos, such as \\['v004'\\]"):
        compare(rows, rows[:-1], ALL, ONCE)


def test_nothing_to_judge_is_one_clear_line() -> None:
    """An empty split, a split without annotations, and one in which nothing holds are the user's to mend."""
    with pytest.raises(ConfigError, match="split is empty"):
        evaluate([], ALL, ONCE)
    with pytest.raises(ConfigError, match="no task of the taxonomy is annotated"):
        evaluate([judged("v0")], ALL, ONCE)
    with pytest.raises(ConfigError, match="nothing to measure"):
        evaluate([judged("v0", truth={"events": ()})], ALL, ONCE)


def test_a_resample_without_a_class_leaves_it_out() -> None:
    """With one positive in three videos, a third of the resamples lack it: the interval comes from the others."""
    rows = [
        judged("v0", {"content": ["a"]}, {"content": {"a": 0.5}}),
        judged("v1", {"content": []}, {"content": {"a": 0.9}}),
        judged("v2", {"content": []}, {"content": {"a": 0.1}}),
    ]
    interval = evaluate(rows, taxonomy(CONTENT), EvaluationConfig(bootstrap_samples=100)).headline["content.map_macro"]
    assert not math.isnan(interval.low + interval.high)
    assert interval.value == pytest.approx(0.5)
    assert interval.high == 1.0  # resamples without v1


@pytest.mark.parametrize("tious", [(), (0.0,), (1.1,), (0.5, 0.5)])
def test_thresholds_that_mean_nothing_are_refused(tious: tuple[float, ...]) -> None:
    """Each once, above 0, up to 1."""
    with pytest.raises(ValidationError, match="give at least one overlap"):
        EvaluationConfig(tious=tious)
