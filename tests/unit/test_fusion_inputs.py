"""Windows of the fusion model: nothing is lost between video and batch, and training and tagging see the same."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.records import FloatArray, TextPiece, VideoFeatures
from vca.core.schemas import TextSource
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.core.timeline import Span, step_spans
from vca.models.fusion_inputs import (
    SHOWN,
    SPOKEN,
    InputsConfig,
    Language,
    annotated_tasks,
    collate,
    collate_arrays,
    targets_of,
    window_rows,
    windows_of,
)

STEP_US = 500_000
TAXONOMY: Taxonomy = parse_taxonomy(
    """
name: t
tasks:
  - {name: content, kind: multi_label, description: c,
     labels: [{name: a, description: a}, {name: b, description: b}]}
  - {name: mood, kind: single_label, description: m,
     labels: [{name: good, description: g}, {name: bad, description: b}]}
  - name: events
    kind: span
    description: when
    labels: [{name: x, description: x}, {name: y, description: y}]
    attributes:
      place: {labels: [{name: here, description: h}, {name: there, description: t}]}
      participants: {labels: [{name: me, description: m}, {name: you, description: u}]}
""",
    "taxonomy",
)


class Letters:
    """A tokenizer with one token a word, so that counts can be checked by eye."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [1 + len(word) for word in text.split()]}


def embed(texts: Sequence[str]) -> FloatArray:
    """Two numbers a phrase: how many words, and 1."""
    return np.array([[len(text.split()), 1.0] for text in texts], np.float32)


TOKENIZER = Language(Letters(), embed)


def video(n_steps: int, text: tuple[TextPiece, ...] = (), clipped_us: int = 0) -> VideoFeatures:
    duration_us = n_steps * STEP_US - clipped_us
    steps = step_spans(Span(0, duration_us), STEP_US)
    vision = np.arange(n_steps * 2, dtype=np.float32).reshape(n_steps, 2)
    audio_mask = np.arange(n_steps) % 2 == 0
    audio = np.where(audio_mask[:, None], 7.0, 0.0).astype(np.float32)
    return VideoFeatures(
        "v", "v.mp4", duration_us, STEP_US, steps, vision, np.ones(n_steps, np.bool_), audio, audio_mask, text
    )


def piece(start_s: float, end_s: float, text: str, source: TextSource = TextSource.SUBTITLE) -> TextPiece:
    return TextPiece(round(start_s * 1e6), round(end_s * 1e6), source, text)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 100))
def test_windows_cover_every_step(n_steps: int, window: int, overlap_percent: int) -> None:
    """Whatever the lengths: every step is in a window, none is longer than asked, the last one ends with the video."""
    overlap_s = window * 0.5 * overlap_percent / 200
    found = windows_of(video(n_steps), InputsConfig(window_s=window * 0.5, overlap_s=overlap_s), TOKENIZER)
    seen = np.zeros(n_steps, int)
    for w in found:
        assert 0 < w.n_steps <= window
        seen[w.first_step : w.first_step + w.n_steps] += 1
    assert seen.min() >= 1
    assert found[-1].first_step + found[-1].n_steps == n_steps
    assert [w.first_step for w in found] == sorted({w.first_step for w in found})


def test_features_are_those_of_the_steps() -> None:
    """A window's features are the rows of its steps, masks included."""
    (first, second) = windows_of(video(12), InputsConfig(window_s=4, overlap_s=1), TOKENIZER)
    assert (first.first_step, first.n_steps, second.first_step, second.n_steps) == (0, 8, 4, 8)
    assert second.vision is not None
    assert second.audio_mask is not None
    np.testing.assert_array_equal(second.vision[:, 0], np.arange(8, 24, 2))
    np.testing.assert_array_equal(second.audio_mask, [True, False] * 4)


def test_phrases_stand_where_they_start() -> None:
    """Tokens of a phrase stand at its first step, its vector on every step it lasts; text outside is not in it."""
    text = (piece(0.6, 2.0, "one three five"), piece(1.0, 1.4, "GOAL", TextSource.OCR), piece(9.0, 9.5, "late"))
    (window, _) = windows_of(video(24, text), InputsConfig(window_s=8, overlap_s=4), TOKENIZER)
    assert window.token_ids.tolist() == [4, 6, 5, 5]
    assert window.token_kind.tolist() == [SPOKEN, SPOKEN, SPOKEN, SHOWN]
    # 0.6 to 2.0 s touches steps 1 to 3, 1.0 to 1.4 s is inside step 2
    assert window.token_steps.tolist() == [1, 1, 1, 2]
    assert window.text is not None
    assert window.text_mask is not None
    assert window.text_mask.tolist() == [False, True, True, True] + [False] * 12
    assert window.text[1:4].tolist() == [[3, 1], [2, 1], [3, 1]]  # three words, and the mean of three and one


def test_weak_and_empty_text_is_left_out() -> None:
    """Recognised text without confidence in it, and speech without words, are no input."""
    text = (replace(piece(0, 1, "blur"), confidence=0.2), TextPiece(0, 1_000_000, TextSource.SPEECH, None))
    (window,) = windows_of(video(4, text), InputsConfig(), TOKENIZER)
    assert window.token_ids.tolist() == []


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 80))
def test_the_token_budget_holds(lengths: list[int], budget: int) -> None:
    """Never more tokens than allowed, never fewer than possible, and every phrase keeps its beginning."""
    text = tuple(piece(i, i + 0.5, " ".join(["w" * (i + 1)] * n)) for i, n in enumerate(lengths))
    (window,) = windows_of(video(20, text), InputsConfig(max_text_tokens=budget, window_s=60), TOKENIZER)
    assert len(window.token_ids) == min(sum(lengths), budget)


def truth(**more: object) -> VideoTruth:
    return VideoTruth("v", "v.mp4", Split.TRAIN, **more)  # type: ignore[arg-type]


def test_targets() -> None:
    """By hand: a step belongs to an event that covers half of it; the shorter event says where and who."""
    events = (
        TrueEvent("x", Span(250_000, 2_000_000), "here", frozenset({"me"})),
        TrueEvent("y", Span(1_000_000, 1_740_000), "there", None),
    )
    known = truth(labels={"content": frozenset({"b"}), "mood": frozenset({"bad"})}, events={"events": events})
    found = targets_of(known, TAXONOMY, video(5).steps)
    assert found["video.content"].tolist() == [0, 1]
    assert int(found["video.mood"]) == 1
    assert found["steps.events"][:, 0].tolist() == [1, 1, 1, 1, 0]
    assert found["steps.events"][:, 1].tolist() == [0, 0, 1, 0, 0]  # 0.24 of the fourth step's 0.5 s
    assert found["place.events"].tolist() == [0, 0, 1, 0, -1]
    assert found["participants_mask.events"].tolist() == [1, 1, 1, 1, 0]
    assert found["participants.events"][0].tolist() == [1, 0]
    # starts, ends in steps of 0.5 s and labels
    np.testing.assert_allclose(found["spans.events"], [[0.5, 4.0, 0], [2.0, 3.48, 1]], rtol=1e-6)
    later = targets_of(known, TAXONOMY, video(5).steps[3:])["spans.events"]
    np.testing.assert_allclose(later, [[0.0, 1.0, 0], [0.0, 0.48, 1]], rtol=1e-5, err_msg="cut at the window's start")
    assert targets_of(known, TAXONOMY, video(5).steps[4:])["spans.events"].shape == (0, 3), "behind all events"


def test_what_is_not_annotated_is_no_target() -> None:
    """A task nobody looked at has no target at all; one that was looked at and found empty has zeros."""
    known = truth(labels={"mood": frozenset()}, events={"events": ()})
    assert annotated_tasks(known, TAXONOMY) == [False, False, True]
    found = targets_of(known, TAXONOMY, video(3).steps)
    names = {"steps.events", "spans.events", "place.events", "participants.events", "participants_mask.events"}
    assert set(found) == names
    assert not found["steps.events"].any()


def test_stored_windows_make_the_batch_that_tagging_makes() -> None:
    """Rows through Parquet give bit-equal tensors to windows made directly, and padding is masked."""
    clips = [video(6, (piece(0, 1, "a bb"),)), video(3, clipped_us=100_000)]
    config = InputsConfig()
    rows = [
        window_rows(clip, truth(labels={"content": frozenset({"a"})}), TAXONOMY, config, TOKENIZER) for clip in clips
    ]
    table = pa.concat_tables(rows)
    assert table.column("annotated").to_pylist() == [[True, False, False]] * 2
    stored = collate(table.column("arrays").to_pylist())
    direct = collate_arrays([w.arrays() for clip in clips for w in windows_of(clip, config, TOKENIZER)])
    for name, values in direct.items():
        assert stored[name].equal(values), name
    assert stored["step_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert stored["token_mask"].tolist() == [[1, 1], [0, 0]]
    assert stored["known.video.content"].tolist() == [1, 1]
    assert stored["vision"].shape == (2, 6, 2)
    assert not stored["vision"][1, 3:].any()


def test_a_batch_may_mix_what_videos_have() -> None:
    """A window without sound or without an annotation sits beside one that has them."""
    silent = replace(video(3), audio=None, audio_mask=None)
    rows = [
        window_rows(video(4), truth(events={"events": ()}), TAXONOMY, InputsConfig(), TOKENIZER),
        window_rows(silent, truth(labels={"mood": frozenset({"good"})}), TAXONOMY, InputsConfig(), TOKENIZER),
    ]
    batch = collate(pa.concat_tables(rows).column("arrays").to_pylist())
    assert batch["audio_mask"].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert batch["known.steps.events"].tolist() == [1, 0]
    assert batch["known.video.mood"].tolist() == [0, 1]


def test_an_empty_video_has_no_windows() -> None:
    """Nothing to learn from is no row, not an error."""
    empty = VideoFeatures("v", "v", 0, STEP_US, np.zeros((0, 2), np.int64), None, None, None, None)
    assert len(window_rows(empty, truth(), TAXONOMY, InputsConfig(), TOKENIZER)) == 0


def test_overlap_is_less_than_half() -> None:
    """Otherwise steps would be averaged over three windows."""
    with pytest.raises(ValueError, match="overlap_s 40 is more than half of window_s 60"):
        InputsConfig(overlap_s=40)
