"""Probabilities, thresholds and decisions: what is fitted, on what, and what becomes of it."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.config import build_config
from vca.core.metrics import expected_calibration_error
from vca.core.records import Evidence, VideoLogits
from vca.core.spans import SpanDecoding
from vca.core.taxonomy import Attribute, Attributes, Label, Task, TaskKind, Taxonomy
from vca.core.timeline import Span
from vca.models.calibration import (
    Calibration,
    Platt,
    TaskCalibration,
    decide,
    logistic,
    reliability,
    uncalibrated,
)
from vca.models.calibration_fit import GRID, best_f1_threshold, fit_calibration

S = 1_000_000


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
    attributes=Attributes(place=Attribute(labels=labels("p", "q")), participants=Attribute(labels=labels("r", "s"))),
)
SPEECH = task("speech", TaskKind.STEP, "voice")


def taxonomy(*tasks: Task) -> Taxonomy:
    return Taxonomy(name="test", tasks=tasks)


def grid(n: int) -> np.ndarray:
    return np.stack([np.arange(n), np.arange(1, n + 1)], axis=1) * S


def f32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def truth_of(
    video_id: str,
    held: Mapping[str, Sequence[str]] | None = None,
    events: Mapping[str, Sequence[TrueEvent]] | None = None,
) -> VideoTruth:
    return VideoTruth(
        video_id,
        None,
        Split.CALIBRATION,
        labels={name: frozenset(values) for name, values in (held or {}).items()},
        events={name: tuple(values) for name, values in (events or {}).items()},
    )


def fit_labels(one: Task, logits: np.ndarray, held: Sequence[Sequence[str]]) -> TaskCalibration:
    """Fit one video-level task from logits [V, L]."""
    rows = [VideoLogits(video={one.name: f32(x)}, steps={}) for x in logits]
    truths = [truth_of(f"v{i:05}", {one.name: names}) for i, names in enumerate(held)]
    return fit_calibration(rows, truths, [grid(1)] * len(rows), taxonomy(one)).tasks[one.name]


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_a_model_that_is_too_sure_is_cooled() -> None:
    """Logits three times too large get a temperature of about 3, and the calibration error falls."""
    draw = np.random.default_rng(0)
    honest = draw.normal(0, 1.5, (400, 3))
    held = draw.random((400, 3)) < logistic(honest)
    names = [[n for n, h in zip("abc", row, strict=True) if h] for row in held]
    # Few positives a label would use the temperature alone: take the curves of their own away to see it.
    fitted = fit_labels(CONTENT, 3 * honest, names).model_copy(update={"platt": {}})
    assert fitted.temperature == pytest.approx(3.0, abs=0.4)
    after = Calibration(tasks={"content": fitted})
    probabilities = [after.probabilities(VideoLogits({"content": f32(3 * x)}, {})).video["content"] for x in honest]
    before = expected_calibration_error(logistic(3 * honest), held)
    assert expected_calibration_error(np.stack(probabilities), held) < 0.5 * before


def test_softmax_of_one_label_tasks() -> None:
    """Their probabilities sum to 1 and are cooled like the others; the order of labels never changes."""
    draw = np.random.default_rng(1)
    honest = draw.normal(0, 1.0, (600, 2))
    share = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    chosen = np.where(draw.random(600) < share[:, 0], 0, 1)
    fitted = fit_labels(MOOD, 2.5 * honest, [["xy"[j]] for j in chosen])
    assert fitted.temperature == pytest.approx(2.5, abs=0.5)
    found = Calibration(tasks={"mood": fitted}).probabilities(VideoLogits({"mood": f32([2.0, -1.0])}, {})).video["mood"]
    assert found.sum() == pytest.approx(1.0)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(1 / (1 + math.exp(-3.0 / fitted.temperature)), abs=1e-6)


@pytest.mark.parametrize(("n_positive", "own"), [(49, False), (50, True)])
def test_a_curve_of_its_own_needs_examples(n_positive: int, own: bool) -> None:
    """From 50 positives and 50 negatives on; then a label whose logits are shifted is put right."""
    draw = np.random.default_rng(2)
    logits = draw.normal(0, 2, (300, 3))
    held = np.zeros((300, 3), np.bool_)
    order = np.argsort(-(logits[:, 0] + draw.logistic(size=300)))
    held[order[:n_positive], 0] = True
    names = [["a"] if row[0] else [] for row in held]
    fitted = fit_labels(CONTENT, logits, names)
    assert set(fitted.platt) == ({"a"} if own else set())
    if own:
        given_a = Calibration(tasks={"content": fitted})
        found = [given_a.probabilities(VideoLogits({"content": f32(x)}, {})).video["content"][0] for x in logits]
        assert np.mean(found) == pytest.approx(n_positive / 300, abs=0.01)  # the offset makes the means agree


def test_a_curve_that_turns_the_ranking_around_is_not_used() -> None:
    """A label the model has backwards keeps the temperature: calibration must not hide that."""
    logits = np.zeros((200, 3))
    logits[:100, 0], logits[100:, 0] = -2.0, 2.0
    fitted = fit_labels(CONTENT, logits, [["a"]] * 100 + [[]] * 100)
    assert fitted.platt == {}


def test_a_split_without_errors_leaves_doubt() -> None:
    """Targets short of 0 and 1: a perfect calibration split of 20 videos does not make every later score certain."""
    logits = np.where(np.arange(20)[:, None] < 10, 4.0, -4.0) * np.ones((1, 2)) * [1.0, -1.0]
    fitted = fit_labels(MOOD, logits, [["x"]] * 10 + [["y"]] * 10)
    found = Calibration(tasks={"mood": fitted}).probabilities(VideoLogits({"mood": f32([4.0, -4.0])}, {})).video["mood"]
    assert 0.9 < found[0] < 0.99
    # Independent labels: 10 of 20 in each of three, so the surest that can be said is about (30 + 1) / (30 + 2).
    many = fit_labels(CONTENT, np.repeat(logits[:, :1], 3, axis=1), [["a", "b", "c"]] * 10 + [[]] * 10)
    sure = Calibration(tasks={"content": many}).probabilities(VideoLogits({"content": f32([4.0] * 3)}, {}))
    assert sure.video["content"] == pytest.approx(31 / 32, abs=1e-3)


def test_a_task_without_annotations_stays_as_it_is() -> None:
    """No temperature, thresholds of 0.5."""
    fitted = fit_calibration(
        [VideoLogits({"content": f32([1, 2, 3])}, {})], [truth_of("v0", {"mood": ["x"]})], [grid(1)], taxonomy(CONTENT)
    ).tasks["content"]
    assert (fitted.temperature, fitted.platt, fitted.thresholds, fitted.n_videos) == (1.0, {}, {}, 0)


def test_reliability_points() -> None:
    """Bins that hold nothing are no points."""
    assert reliability([0.1, 0.1, 0.9], [0, 1, 1], bins=10) == [(0.1, 0.5, 2), (0.9, 1.0, 1)]


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_thresholds_by_hand() -> None:
    """The best F1, midway between the last that is taken and the first that is not."""
    # Take 0.9: F1 2/4; 0.9 to 0.6: 2*2/(3+3) = 4/6... down to 0.4: 3 of 4 right, 6/7: the best; midway to 0.2 is 0.3.
    probabilities, held = [0.9, 0.6, 0.5, 0.4, 0.2, 0.1], [True, False, True, True, False, False]
    assert best_f1_threshold(probabilities, held) == pytest.approx(0.3)
    # All equal: one cut, midway to 0. Nothing separates, everything is taken.
    assert best_f1_threshold([0.8, 0.8], [True, False]) == pytest.approx(0.4)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=25).filter(
        lambda rows: any(held for _, held in rows)
    )
)
def test_no_threshold_is_better(rows: list[tuple[float, bool]]) -> None:
    """Against every cut between the probabilities; strictly between 0 and 1, where clipping does not forbid it."""
    p, held = np.array([x for x, _ in rows]), np.array([h for _, h in rows])
    threshold = best_f1_threshold(p, held)
    assert 0.0 < threshold < 1.0

    def f1(cut: float) -> float:
        taken = p >= cut
        return float(2 * (taken & held).sum() / (taken.sum() + held.sum()))

    if 0.01 < threshold < 0.99:
        assert f1(threshold) == pytest.approx(max(f1(cut) for cut in p), abs=1e-9)


def test_few_examples_lean_on_the_task() -> None:
    """With 3 positives a tenth of the threshold is the label's own; without any it is 0.5."""
    logits = np.full((40, 3), -3.0)
    logits[:30, 0] = np.linspace(2, 3, 30)  # a: 30 positives, well separated
    logits[:3, 1] = 0.0  # b: 3 positives, separated lower
    names = [["a", "b"] if i < 3 else ["a"] if i < 30 else [] for i in range(40)]
    fitted = fit_labels(CONTENT, logits, names)
    t = fitted.temperature

    def p(logit: float) -> float:
        return float(logistic(np.array(logit / t)))

    alone_a, alone_b = (p(2) + p(-3)) / 2, (p(0) + p(-3)) / 2
    # a and b pooled: everything above -3 is right, so the threshold of the task is b's.
    assert fitted.thresholds["a"] == pytest.approx(alone_a, abs=1e-4)
    assert fitted.thresholds["b"] == pytest.approx(0.1 * alone_b + 0.9 * alone_b, abs=1e-4)
    assert fitted.thresholds["c"] == 0.5


def test_the_label_of_a_video_is_taken_unless_silence_is_better() -> None:
    """Without videos on which nothing holds there is no reason to say nothing; with them there may be."""
    logits = np.array([[0.2, 0.0], [0.1, 0.0], [0.0, 0.3], [3.0, 0.0]])
    always = fit_labels(MOOD, logits, [["x"], ["x"], ["y"], ["x"]])
    assert always.thresholds == {"x": 0.01, "y": 0.01}
    # Nothing holds where x is claimed weakly: x needs more than that; y has one positive and stays low.
    wary = fit_labels(MOOD, logits, [[], [], ["y"], ["x"]])
    weak, strong = (1 / (1 + math.exp(-d / wary.temperature)) for d in (0.2, 3.0))
    assert weak < wary.thresholds["x"] < strong
    assert wary.thresholds["y"] == 0.01
    # A label that never held keeps 0.5.
    assert fit_labels(MOOD, logits[:2], [["x"], ["x"]]).thresholds["y"] == 0.5


# --- events ----------------------------------------------------------------------------------------------------------


def event_case(scores: Sequence[float], spans: Sequence[tuple[int, int]], name: str) -> tuple[VideoLogits, VideoTruth]:
    """Logits of `goal` by step; `talk` is far off."""
    steps = np.stack([f32(scores), np.full(len(scores), -6.0, np.float32)], axis=1)
    places = np.tile(f32([[2.0, 0.0]]), (len(scores), 1))
    people = np.tile(f32([[2.0, -2.0]]), (len(scores), 1))
    events = [TrueEvent("goal", Span(a * S, b * S), "p", frozenset({"r"})) for a, b in spans]
    return VideoLogits({}, {"events": steps}, {"events": places}, {"events": people}), truth_of(
        name, events={"events": events}
    )


def fit_events(cases: Sequence[tuple[VideoLogits, VideoTruth]]) -> TaskCalibration:
    steps = [grid(len(logits.steps["events"])) for logits, _ in cases]
    return fit_calibration([c[0] for c in cases], [c[1] for c in cases], steps, taxonomy(EVENTS)).tasks["events"]


def test_decoding_is_chosen_by_what_it_finds() -> None:
    """Events one second apart are merged by default; where the split shows that this is wrong, they no longer are."""
    scores = [-4, 4, 4, 4, -4, 4, 4, 4, -4, -4]
    apart = fit_events([event_case(scores, [(1, 4), (5, 8)], f"v{i}") for i in range(3)])
    assert apart.decoding.merge_gap_ms == 0
    joined = fit_events([event_case(scores, [(1, 8)], f"v{i}") for i in range(3)])
    assert joined.decoding == SpanDecoding() == GRID[0]  # as good as any: the default stays


def test_thresholds_of_labels_without_events_are_left_alone() -> None:
    """A label without a positive has nothing to learn from."""
    fitted = fit_events([event_case([-4, 4, 4, 4, -4], [(1, 4)], "v0")])
    assert fitted.thresholds["talk"] == 0.5
    assert 0.0 < fitted.thresholds["goal"] < 1.0
    assert fitted.n_videos == 1


def test_events_may_need_less_than_their_steps() -> None:
    """Lone wrong steps make the threshold of steps strict; smoothing removes them, so events get a lower one."""
    scores = np.full((60, 2), -5.0, np.float32)
    scores[0:3, 0], scores[6:9, 0] = 5.0, 0.5
    scores[12:60:3, 0] = 0.5  # 16 wrong steps, each alone
    found = [TrueEvent("goal", Span(0, 3 * S // 2)), TrueEvent("goal", Span(3 * S, 9 * S // 2))]
    one = VideoLogits({}, {"events": scores}, {"events": np.zeros((60, 2))}, {"events": np.zeros((60, 2))})
    fitted = fit_calibration([one], [truth_of("v0", events={"events": found})], [grid(60) // 2], taxonomy(EVENTS))
    probabilities = fitted.probabilities(one)
    assert fitted.tasks["events"].thresholds["goal"] <= probabilities.steps["events"][6, 0]
    assert fitted.tasks["events"].thresholds["talk"] == 0.5  # the factor is for labels that were seen
    assert [e.span for e in decide(probabilities, grid(60) // 2, taxonomy(EVENTS), fitted).events] == [
        event.span for event in found
    ]


def test_attributes_are_fitted_inside_events() -> None:
    """Places and participants have temperatures of their own, and participants thresholds; outside nothing is known."""
    fitted = fit_events([event_case([-4, 4, 4, 4, -4], [(1, 4)], f"v{i}") for i in range(4)])
    assert fitted.place_temperature < 1.0  # always right, so it may be surer
    assert fitted.participants.keys() == {"r", "s"}
    assert fitted.participants["s"] == 0.5  # never there
    elsewhere = fit_events([event_case([-4, 4, 4, 4, -4], [], f"v{i}") for i in range(4)])
    assert (elsewhere.place_temperature, elsewhere.participants) == (1.0, {})


def test_steps_count_by_events() -> None:
    """One event of 60 steps is one example, not 60: no curve of its own."""
    logits = np.concatenate([np.full(60, 2.0), np.full(60, -2.0)])
    one = VideoLogits({}, {"speech": f32(logits)[:, None]})
    event = TrueEvent("voice", Span(0, 60 * S))
    fitted = fit_calibration([one], [truth_of("v0", events={"speech": [event]})], [grid(120)], taxonomy(SPEECH))
    assert fitted.tasks["speech"].platt == {}
    # A step task may say "none": independent labels, also where there is only one.
    found = fitted.probabilities(one).steps["speech"]
    assert found[0, 0] > 0.5 > found[-1, 0]


# --- what is fitted on -----------------------------------------------------------------------------------------------


def random_split(n: int, seed: int) -> tuple[list[VideoLogits], list[VideoTruth], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    logits, truths = [], []
    for i in range(n):
        start = int(draw.integers(0, 5))
        goal = TrueEvent("goal", Span(start * S, (start + 3) * S), "p", frozenset({"r"}))
        logits.append(
            VideoLogits(
                video={"content": f32(draw.normal(0, 2, 3)), "mood": f32(draw.normal(0, 2, 2))},
                steps={"events": f32(draw.normal(0, 2, (10, 2))), "speech": f32(draw.normal(0, 2, (10, 1)))},
                places={"events": f32(draw.normal(0, 2, (10, 2)))},
                participants={"events": f32(draw.normal(0, 2, (10, 2)))},
            )
        )
        held = {"content": [name for name in "ab" if draw.random() < 0.5], "mood": ["xy"[int(draw.integers(2))]]}
        events = {"events": [goal], "speech": [TrueEvent("voice", Span(0, 4 * S))]}
        truths.append(truth_of(f"v{i:03}", held, events))
    return logits, truths, [grid(10)] * n


ALL = taxonomy(CONTENT, MOOD, EVENTS, SPEECH)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.integers(1, 8), st.randoms())
def test_fit_properties(seed: int, n: int, chance: random.Random) -> None:
    """On random logits: valid numbers, the same from any order of videos, and the same after a round trip by JSON."""
    logits, truths, steps = random_split(n, seed)
    fitted = fit_calibration(logits, truths, steps, ALL)
    for one in fitted.tasks.values():
        assert all(0.0 < t < 1.0 for t in [*one.thresholds.values(), *one.participants.values()])
        assert 0.1 <= one.temperature <= 10.0
    again = build_config(Calibration, json.loads(fitted.model_dump_json()), "calibration.json")
    assert again == fitted
    order = list(range(n))
    chance.shuffle(order)
    assert fit_calibration([logits[i] for i in order], [truths[i] for i in order], steps, ALL) == fitted
    probabilities = fitted.probabilities(logits[0])
    for arrays in (probabilities.video, probabilities.steps, probabilities.places, probabilities.participants):
        assert all(((p >= 0) & (p <= 1)).all() and p.dtype == np.float32 for p in arrays.values())
    prediction = decide(probabilities, steps[0], ALL, fitted)
    assert sum(row.selected for row in prediction.categories if row.task == "mood") <= 1
    assert [e.span for e in prediction.events] == sorted(e.span for e in prediction.events)


def test_videos_that_are_not_annotated_teach_nothing() -> None:
    """What is not annotated is not negative: such a video may as well be missing."""
    logits, truths, steps = random_split(6, 0)
    alone = fit_calibration(logits[:5], truths[:5], steps[:5], ALL)
    silent = [*truths[:5], truth_of("v999")]
    assert fit_calibration(logits, silent, steps, ALL) == alone


# --- deciding --------------------------------------------------------------------------------------------------------


def calibrated(**tasks: TaskCalibration) -> Calibration:
    return Calibration(tasks=tasks)


def test_categories_by_hand() -> None:
    """Rank by probability, select by the label's threshold, evidence by the shares."""
    fitted = TaskCalibration(
        kind=TaskKind.MULTI_LABEL, labels=("a", "b", "c"), thresholds={"a": 0.9, "b": 0.3}, temperature=2.0,
        platt={"c": Platt(slope=2.0, offset=-1.0)},
    )  # fmt: skip
    logits = VideoLogits(
        {"content": f32([2.0, 0.0, 1.0])}, {}, video_shares={"content": f32([[2, 1, 1], [0, 0, 1], [0.5, 0.5, 0]])}
    )
    calibration = calibrated(content=fitted)
    rows = decide(calibration.probabilities(logits), grid(0), taxonomy(CONTENT), calibration).categories
    # a: logistic(2/2) = 0.73 < 0.9; c: logistic(2*1 - 1) = 0.73 >= 0.5; b: logistic(0) = 0.5 >= 0.3. Ties keep order.
    assert [(r.label, r.rank, r.selected, r.threshold) for r in rows] == [
        ("a", 1, False, 0.9),
        ("c", 2, True, 0.5),
        ("b", 3, True, 0.3),
    ]
    assert [r.score for r in rows] == pytest.approx([0.7310586, 0.7310586, 0.5])
    assert rows[0].evidence == Evidence(vision=0.5, audio=0.25, text=0.25)
    assert rows[2].evidence == Evidence(text=1.0)


def test_one_label_at_most() -> None:
    """Only the best label is selected, and only above its threshold; never without evidence."""
    calibration = calibrated(
        mood=TaskCalibration(kind=TaskKind.SINGLE_LABEL, labels=("x", "y"), thresholds={"x": 0.8, "y": 0.1})
    )

    def chosen(logits: Sequence[float], shares: Any = None) -> list[str]:
        given_shares = {} if shares is None else {"mood": f32(shares)}
        said = VideoLogits({"mood": f32(logits)}, {}, video_shares=given_shares)
        rows = decide(calibration.probabilities(said), grid(0), taxonomy(MOOD), calibration).categories
        return [r.label for r in rows if r.selected]

    assert chosen([2.0, 0.0]) == ["x"]  # 0.88
    assert chosen([1.0, 0.0]) == []  # 0.73 < 0.8; y would reach its threshold, but is not the best
    assert chosen([0.0, 0.1]) == ["y"]
    assert chosen([2.0, 0.0], np.ones((2, 3)) / 3) == ["x"]
    assert chosen([2.0, 0.0], np.zeros((2, 3))) == []


def test_events_by_hand() -> None:
    """Span, score, place, participants and evidence from the steps inside, and nothing from those outside."""
    calibration = calibrated(
        events=TaskCalibration(
            kind=TaskKind.SPAN,
            labels=("goal", "talk"),
            thresholds={"goal": 0.6, "talk": 0.6},
            decoding=SpanDecoding(smooth_ms=0, low_ratio=1.0, merge_gap_ms=0),
            participants={"r": 0.3},
        )
    )
    probabilities = VideoLogits(
        video={},
        steps={"events": f32([[0.1, 0], [0.8, 0], [0.6, 0], [0.2, 0], [0.1, 0.9]])},
        places={"events": f32([[1, 0], [0.2, 0.8], [0.4, 0.6], [1, 0], [0.5, 0.5]])},
        participants={"events": f32([[1, 1], [0.5, 0.6], [0.3, 0.2], [1, 1], [0.2, 0.6]])},
        step_shares=f32([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0.2, 0.3, 0.5]]),
    )
    prediction = decide(probabilities, grid(5), taxonomy(EVENTS), calibration)
    goal, talk = prediction.events
    assert (goal.label, goal.span, goal.task) == ("goal", Span(1 * S, 3 * S), "events")
    assert goal.score == pytest.approx(0.7)  # mean of 0.8 and 0.6
    assert (goal.place, goal.place_score) == ("q", pytest.approx(0.7))  # mean of 0.8 and 0.6
    # r has mean 0.4 and a threshold of 0.3; s has mean 0.4 and the taxonomy's 0.5.
    assert goal.participants == (("r", pytest.approx(0.4)),)
    assert goal.evidence == Evidence(audio=1.0)  # the step without any modality has no say
    assert talk.span == Span(4 * S, 5 * S)
    assert talk.participants == (("s", pytest.approx(0.6)),)
    assert talk.evidence.text == pytest.approx(0.5)
    assert np.array_equal(prediction.step_scores["events"], probabilities.steps["events"])


def test_no_evidence_no_event() -> None:
    """A video without any modality has no events, whatever the model's prior says."""
    steps = {"events": np.full((4, 2), 0.9, np.float32)}
    calibration = uncalibrated(taxonomy(EVENTS))
    seen = VideoLogits({}, steps, step_shares=np.full((4, 3), 1 / 3, np.float32))
    blind = VideoLogits({}, steps, step_shares=np.zeros((4, 3), np.float32))
    assert len(decide(seen, grid(4), taxonomy(EVENTS), calibration).events) == 2
    assert decide(blind, grid(4), taxonomy(EVENTS), calibration).events == ()
    bare = decide(VideoLogits({}, steps), grid(4), taxonomy(EVENTS), calibration).events[0]
    assert (bare.place, bare.participants, bare.evidence) == (None, (), Evidence())


def test_uncalibrated_is_the_model_itself() -> None:
    """The "before" of a comparison: plain logistic and softmax, and the taxonomy's thresholds."""
    own = Task(
        name="content", kind=TaskKind.MULTI_LABEL, description="t", threshold=0.4,
        labels=(Label(name="a", description="a", threshold=0.7), Label(name="b", description="b")),
    )  # fmt: skip
    calibration = uncalibrated(taxonomy(own))
    assert calibration.thresholds() == {"content.a": 0.7, "content.b": 0.4}
    found = calibration.probabilities(VideoLogits({"content": f32([0.0, 1.0])}, {})).video["content"]
    assert found == pytest.approx(1 / (1 + np.exp([0.0, -1.0])))
