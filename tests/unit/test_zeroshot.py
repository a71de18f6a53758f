"""Zero-shot tagging: honest without evidence and consistent with it. Its quality: tests/integration."""

import re
from collections.abc import Sequence
from typing import Any, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.records import CategoryScore, FloatArray, TextPiece, VideoFeatures
from vca.core.schemas import TextSource
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.core.timeline import Span, step_spans
from vca.models.text_windows import WindowConfig, clean_text, text_windows
from vca.models.zeroshot import ZeroShotConfig, ZeroShotTagger, zeroshot_version

STEP_US = 500_000
TAXONOMY = """
name: test
tasks:
  - name: topic
    kind: multi_label
    description: Topics.
    labels:
      - {name: sport, description: sport match stadium}
      - {name: football, description: football goal striker, parent: sport}
      - {name: food, description: recipe kitchen oven}
  - name: tone
    kind: single_label
    description: Tone.
    labels:
      - {name: bad, description: awful terrible broken}
      - {name: plain, description: tuesday office form}
      - {name: good, description: wonderful great lovely}
  - name: events
    kind: span
    description: Events.
    labels:
      - {name: goal, description: football goal striker}
      - {name: applause, description: "[applause]"}
    attributes:
      place:
        labels:
          - {name: stadium, description: sport match stadium}
          - {name: kitchen, description: recipe kitchen oven}
      participants:
        labels:
          - {name: athlete, description: keeper saves shot}
          - {name: cook, description: cook stirs sauce}
  - name: phase
    kind: step
    description: Phase.
    labels:
      - {name: cooking, description: recipe kitchen oven}
"""


def _word(word: str) -> npt.NDArray[np.float64]:
    return np.random.default_rng(crc32(word.encode())).normal(size=WordModel.dim)


class WordModel:
    """Sentences as sums of fixed random word vectors: same words, same direction. Counts what it is asked."""

    version = "words-1"
    dim = 256

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> FloatArray:
        self.asked += texts
        rows = np.array([sum(_word(word) for word in re.findall(r"\w+", text.lower()) or [text]) for text in texts])
        unit: FloatArray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


class PictureWords(WordModel):
    """A text tower in the space of the test's frames."""

    def __init__(self, kind: Literal["sigmoid", "softmax"]) -> None:
        super().__init__()
        self.kind: Literal["sigmoid", "softmax"] = kind
        self.logit_scale = 20.0
        self.logit_bias = -8.0 if kind == "sigmoid" else 0.0

    def embed_texts(self, texts: list[str]) -> FloatArray:
        return self.embed(texts)


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return parse_taxonomy(TAXONOMY, "test")


@pytest.fixture(scope="module")
def tagger(taxonomy: Taxonomy) -> ZeroShotTagger:
    return ZeroShotTagger(taxonomy, ZeroShotConfig(), WordModel())


def piece(start_s: float, end_s: float, text: str | None, **more: Any) -> TextPiece:
    source = more.pop("source", TextSource.SUBTITLE)
    return TextPiece(round(start_s * 1e6), round(end_s * 1e6), source, text, **more)


def video(*pieces: TextPiece, duration_s: float = 60.0, vision: FloatArray | None = None) -> VideoFeatures:
    steps = step_spans(Span(0, round(duration_s * 1e6)), STEP_US)
    mask = None if vision is None else np.abs(vision).sum(axis=1) > 0
    return VideoFeatures("id", "key", round(duration_s * 1e6), STEP_US, steps, vision, mask, None, None, pieces)


def row(rows: Sequence[CategoryScore], label: str) -> CategoryScore:
    return next(r for r in rows if r.label == label)


NOTHING = [
    (),
    (piece(0, 5, None, source=TextSource.SPEECH),),
    (piece(0, 5, "00:01:22:10"), piece(6, 9, "A"), piece(10, 12, " "), piece(13, 15, "12% ||| --")),
    (piece(0, 5, "\u266a football goal striker \u266a"),),
    (piece(0, 5, "football goal striker", language="de"),),
    (piece(0, 5, "football goal striker", source=TextSource.OCR, confidence=0.2),),
]


@pytest.mark.parametrize("pieces", NOTHING)
def test_a_video_without_evidence_claims_nothing(
    tagger: ZeroShotTagger, taxonomy: Taxonomy, pieces: tuple[TextPiece, ...]
) -> None:
    """No words to judge: every row is there, every score and share is 0, nothing is selected."""
    result = tagger(video(*pieces))
    assert len(result.categories) == 6
    for r in result.categories:
        assert (r.score, r.selected) == (0.0, False)
        assert (r.evidence.vision, r.evidence.audio, r.evidence.text) == (0.0, 0.0, 0.0)
    assert result.events == ()
    assert result.embedding is None
    assert {name: scores.shape for name, scores in result.step_scores.items()} == {
        task.name: (120, len(task.labels)) for task in taxonomy.tasks[2:]
    }
    assert not any(scores.any() for scores in result.step_scores.values())


def test_words_of_a_label_select_it_and_its_parent(tagger: ZeroShotTagger) -> None:
    """The simplest positive case; the parent's score is at least the child's."""
    rows = tagger(video(piece(0, 4, "a goal of the football striker"))).categories
    football, sport, food = (row(rows, name) for name in ("football", "sport", "food"))
    assert football.selected
    assert sport.selected
    assert sport.score >= football.score
    assert not food.selected
    assert football.evidence.text == 1.0


def test_a_single_label_task_selects_at_most_one(tagger: ZeroShotTagger) -> None:
    """A clear tone is selected; words that are no label's select none; shares never exceed 1."""
    for text, expected in (("it was wonderful, great, lovely", ["good"]), ("ladder whisper carton seventeen", [])):
        tone = [r for r in tagger(video(piece(0, 4, text))).categories if r.task == "tone"]
        assert [r.label for r in tone if r.selected] == expected
        assert sum(r.score for r in tone) <= 1.0 + 1e-5


def test_an_event_lies_around_its_evidence_with_place_and_people(tagger: ZeroShotTagger) -> None:
    """Text near the event names place and participants; text far away does not."""
    result = tagger(
        video(
            piece(2, 6, "recipe kitchen oven"),
            piece(30, 33, "football goal striker"),
            piece(36, 39, "the keeper saves the shot"),
            piece(37, 40, "sport match stadium", source=TextSource.OCR),
        )
    )
    goals = [e for e in result.events if e.label == "goal"]
    assert len(goals) == 1
    assert goals[0].span.start_us == 30_000_000
    assert 33_000_000 <= goals[0].span.end_us <= 39_000_000
    assert goals[0].place == "stadium"
    assert goals[0].place_score is not None
    assert goals[0].place_score >= 0.5
    assert [name for name, _ in goals[0].participants] == ["athlete"]
    assert goals[0].evidence.text == 1.0


def test_step_scores_are_where_the_words_are(tagger: ZeroShotTagger) -> None:
    """Span and step tasks carry scores [S, L]; a step task makes no events."""
    result = tagger(video(piece(10, 14, "recipe kitchen oven")))
    phase = result.step_scores["phase"][:, 0]
    assert (phase[20:28] > 0.5).all()
    assert not phase[:20].any()
    assert not phase[28:].any()
    assert all(e.task != "phase" for e in result.events)


def test_a_sound_cue_is_an_event_and_not_a_subject(tagger: ZeroShotTagger) -> None:
    """ "[applause]" tells what happens; video-level tasks do not read it."""
    result = tagger(video(piece(5, 9, "[applause]")))
    assert [(e.label, e.span) for e in result.events] == [("applause", Span(5_000_000, 9_000_000))]
    assert all(r.score == 0.0 for r in result.categories)


def test_a_text_that_stays_counts_once_and_is_encoded_once(taxonomy: Taxonomy) -> None:
    """A logo on screen for an hour must not outvote what is said, nor cost an hour of encoding."""
    model = WordModel()
    tagger = ZeroShotTagger(taxonomy, ZeroShotConfig(), model)
    said = piece(0, 4, "football goal striker")
    logo = [piece(t, t + 1, "ladder whisper carton", source=TextSource.OCR) for t in range(10, 55, 5)]
    model.asked.clear()
    many = tagger(video(said, *logo))
    assert sorted(model.asked) == ["football goal striker", "ladder whisper carton"]
    assert many.categories == tagger(video(said, logo[0])).categories


def test_ranks_follow_scores_and_ties_the_taxonomy(tagger: ZeroShotTagger) -> None:
    """Ranks are 1..L in each task; with nothing to say they are the order of the file."""
    rows = [r for r in tagger(video()).categories if r.task == "topic"]
    assert [(r.label, r.rank) for r in rows] == [("sport", 1), ("football", 2), ("food", 3)]
    rows = [r for r in tagger(video(piece(0, 4, "recipe kitchen oven"))).categories if r.task == "topic"]
    assert [r.rank for r in rows] == [1, 2, 3]
    assert [r.score for r in rows] == sorted((r.score for r in rows), reverse=True)
    assert rows[0].label == "food"


def frames(model: PictureWords, text: str, at: slice) -> FloatArray:
    vision = np.zeros((120, model.dim), np.float32)
    vision[at] = 3.0 * model.embed([text])[0]  # not of length 1: the tagger must not rely on it
    return vision


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_frames_count_where_the_encoder_has_a_text_tower(
    taxonomy: Taxonomy, kind: Literal["sigmoid", "softmax"]
) -> None:
    """Frames of a football match give category, event and place without a word, and the shares say so."""
    tower = PictureWords(kind)
    tagger = ZeroShotTagger(taxonomy, ZeroShotConfig(), WordModel(), tower)
    vision = frames(tower, "football goal striker", slice(40, 60))
    result = tagger(video(vision=vision))
    assert row(result.categories, "football").selected
    assert row(result.categories, "football").evidence.vision == 1.0
    assert not row(result.categories, "food").selected
    assert [(e.label, e.span, e.evidence.vision) for e in result.events] == [
        ("goal", Span(20_000_000, 30_000_000), 1.0)
    ]
    assert not result.step_scores["events"][:40].any()
    without = ZeroShotTagger(taxonomy, ZeroShotConfig(), WordModel())(video(vision=vision))
    assert all(r.score == 0.0 for r in without.categories)


def test_two_modalities_share_the_evidence(taxonomy: Taxonomy) -> None:
    """Shares sum to 1 and the better witness gives the score."""
    tower = PictureWords("sigmoid")
    tagger = ZeroShotTagger(taxonomy, ZeroShotConfig(), WordModel(), tower)
    spoken = piece(20, 30, "football goal striker")
    vision = frames(tower, "football goal striker", slice(0, 120))
    both, text, seen = tagger(video(spoken, vision=vision)), tagger(video(spoken)), tagger(video(vision=vision))
    share = row(both.categories, "football").evidence
    assert share.text > 0.1
    assert share.vision > 0.1
    assert share.text + share.vision == pytest.approx(1.0)
    best = max(row(p.categories, "football").score for p in (text, seen))
    assert row(both.categories, "football").score == pytest.approx(best)


def test_frames_have_no_vote_in_a_task_about_what_is_said(taxonomy: Taxonomy) -> None:
    """`text_only_tasks` keeps the picture out of, by default, the sentiment."""
    tower = PictureWords("sigmoid")
    config = ZeroShotConfig(text_only_tasks=("tone",))
    tagger = ZeroShotTagger(taxonomy, config, WordModel(), tower)
    vision = frames(tower, "wonderful great lovely", slice(0, 120))
    assert all(r.score == 0.0 for r in tagger(video(vision=vision)).categories if r.task == "tone")


def test_the_version_names_numbers_and_model_but_not_labels(taxonomy: Taxonomy) -> None:
    """A new threshold does not make a new model; a new number or text model does."""
    config = ZeroShotConfig()
    tagger = ZeroShotTagger(taxonomy, config, WordModel())
    other = ZeroShotTagger(taxonomy.with_thresholds({"topic": 0.9}, "t"), config, WordModel())
    assert tagger.version == other.version == zeroshot_version(config, WordModel.version)
    assert zeroshot_version(ZeroShotConfig(offset=-6.0), WordModel.version) != tagger.version
    assert zeroshot_version(config, "words-2") != tagger.version


SAID = "football goal striker recipe kitchen oven wonderful awful ladder whisper the of [applause] 00:10 sport match"
WORDS = SAID.split(" ")
pieces_strategy = st.lists(
    st.tuples(
        st.integers(-5, 70),
        st.integers(0, 12),
        st.lists(st.sampled_from(WORDS), max_size=8),
        st.sampled_from(list(TextSource)),
        st.sampled_from([None, 0.3, 0.9]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(pieces_strategy, st.randoms())
def test_any_text_gives_a_sound_prediction(tagger: ZeroShotTagger, raw: list[Any], random: Any) -> None:
    """Scores in 0..1, parents above children, decisions that follow from scores, spans on the grid; order of input
    does not matter. Pieces may be empty, overlap, or lie outside the video."""
    pieces = [piece(a, a + n, " ".join(w) or None, source=s, confidence=c) for a, n, w, s, c in raw]
    result = tagger(video(*pieces))
    for r in result.categories:
        assert 0.0 <= r.score <= 1.0
        assert r.selected == (r.score >= r.threshold and (r.task == "topic" or r.rank == 1))
        assert r.evidence.vision + r.evidence.audio + r.evidence.text == pytest.approx(1.0 if r.score > 0 else 0.0)
    assert row(result.categories, "sport").score >= row(result.categories, "football").score
    for e in result.events:
        assert 0 <= e.span.start_us < e.span.end_us <= 60_000_000
        assert 0.0 <= e.score <= 1.0
        assert (e.place is None) == (e.place_score is None)
    for scores in result.step_scores.values():
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
    shuffled = list(pieces)
    random.shuffle(shuffled)
    again = tagger(video(*shuffled))
    assert [(r.label, r.selected) for r in again.categories] == [(r.label, r.selected) for r in result.categories]
    assert again.events == result.events


def test_a_video_without_steps_is_no_error(tagger: ZeroShotTagger) -> None:
    """Nothing could be decoded, subtitles exist: rows, no events."""
    empty = VideoFeatures(
        "id", "key", 1, STEP_US, np.zeros((0, 2), np.int64), None, None, None, None, (piece(0, 4, "football goal"),)
    )
    result = tagger(empty)
    assert result.events == ()
    assert result.step_scores["events"].shape == (0, 2)


# windows of text


def test_neighbours_join_within_a_source_and_far_pieces_do_not() -> None:
    """A sentence cut over two subtitles is judged whole; a pause, another stream or the length limit ends a window."""
    pieces = [
        piece(0, 2, "He runs up"),
        piece(2, 4, "and shoots."),
        piece(0, 4, "SCORE BOARD", source=TextSource.OCR),
        piece(10, 12, "Later that day"),
        piece(12, 19.5, "they went home."),
    ]
    found = {w.text: w.span for w in text_windows(pieces, WindowConfig())}
    assert found == {
        "He runs up and shoots.": Span(0, 4_000_000),
        "SCORE BOARD": Span(0, 4_000_000),
        "Later that day": Span(10_000_000, 12_000_000),
        "they went home.": Span(12_000_000, 19_500_000),
    }


def test_a_long_piece_is_cut_and_its_time_shared_out() -> None:
    """A transcript in one piece must not be judged by its first words alone."""
    words = [f"word{chr(97 + i % 26)}" for i in range(100)]
    found = text_windows([piece(0, 100, " ".join(words))], WindowConfig(max_words=40))
    assert [len(w.text.split()) for w in found] == [40, 40, 20]
    assert [w.span for w in found] == [Span(0, 40_000_000), Span(40_000_000, 80_000_000), Span(80_000_000, 100_000_000)]


@pytest.mark.parametrize(
    ("text", "words", "cues"),
    [
        ("<i>Hello</i> {\\an8}there\\Nfriend", "Hello there friend", []),
        (">> REPORTER: Good evening.", "REPORTER: Good evening.", []),
        ("- Who?\n- Me.", "Who? Me.", []),
        ("[door  slams] Who is there? (laughs)", "Who is there?", ["[door slams]", "(laughs)"]),
        ("\u266a la la la \u266a", "", []),
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3", []),
    ],
)
def test_markup_is_removed_and_cues_are_set_apart(text: str, words: str, cues: list[str]) -> None:
    """Tags of SRT, ASS and captions are not words."""
    assert clean_text(text) == (words, cues)


@given(st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**7), st.text(max_size=80)), max_size=20))
def test_windows_of_any_text_are_sorted_bounded_and_not_empty(raw: list[tuple[int, int, str]]) -> None:
    """Foreign text of any kind gives windows with letters, in order, inside the time of the pieces."""
    pieces = [TextPiece(a, a + n, TextSource.OCR, text) for a, n, text in raw]
    found = text_windows(pieces, WindowConfig())
    assert [w.span for w in found] == sorted(w.span for w in found)
    for w in found:
        assert any(c.isalpha() for c in w.text)
        assert min(p.start_us for p in pieces) <= w.span.start_us
        assert w.span.end_us <= max(p.end_us for p in pieces) + 1
