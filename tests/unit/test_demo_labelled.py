"""The labelled demo archive as a script: every model is trained on it and judged by it, so its truth must be right."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from vca.core.annotations import Split, SplitConfig, VideoTruth, read_rows
from vca.core.errors import ConfigError
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.core.timeline import US_PER_S
from vca.media.demo_encode import TICK_US
from vca.media.demo_labelled import LabelledClip, annotation_rows, labelled_clips, render, write_annotations
from vca.media.demo_plan import CONTENT, EVENTS, MODERATION, PAIRS, RULES, Facts, meets, plan_archive, sentiment_of
from vca.media.demo_render import PICTURES, SOUNDS
from vca.media.demo_sentences import ROLES, SENTENCES, compose


@pytest.fixture(scope="module")
def clips() -> list[LabelledClip]:
    return labelled_clips()


@pytest.fixture(scope="module")
def taxonomy(repository: Path) -> Taxonomy:
    path = repository / "configs" / "taxonomy.yaml"
    return parse_taxonomy(path.read_text(encoding="utf-8"), path.name)


@pytest.fixture(scope="module")
def truths(clips: list[LabelledClip], taxonomy: Taxonomy) -> dict[str, VideoTruth]:
    rows = ((f"row {i}", row) for i, row in enumerate(annotation_rows(clips)))
    return {truth.key or "": truth for truth in read_rows(rows, taxonomy, SplitConfig())}


@pytest.mark.parametrize(
    ("facts", "holds", "fails"),
    [
        (Facts("stove", "sizzle", "cooking"), {"food"}, set()),
        (Facts("stove", "sizzle", "filler"), set(), {"food"}),
        (Facts("road", "engine", "cooking"), {"vehicles_traffic"}, {"food"}),
        (Facts("pitch", "crowd"), {"sports"}, {"goal_or_score"}),
        (Facts("pitch", "speech"), set(), {"sports"}),
        (Facts("pitch", "crowd", None, "roar"), {"sports", "goal_or_score"}, {"applause"}),
        (Facts("stage", "melody", None, "roar"), {"music", "applause"}, {"goal_or_score"}),
        (Facts("harbour", "wind", None, "roar"), set(), {"applause", "goal_or_score"}),
        (Facts("blackboard", "speech"), {"education"}, set()),
        (Facts("blackboard", "melody"), {"music"}, {"education"}),
        (Facts("studio", "speech", "politics"), {"news", "politics"}, set()),
        (Facts("harbour", "speech", "politics"), {"politics"}, {"news"}),
        (Facts("fire", "wind", None, "bang"), {"explosions_and_blasts", "fire_or_explosion"}, set()),
        (Facts("fire", "melody"), {"music"}, {"explosions_and_blasts", "fire_or_explosion"}),
        (Facts("meadow", "wind", None, "bang"), {"animals", "fire_or_explosion"}, {"explosions_and_blasts"}),
        (Facts("gadget", "speech", "offer"), {"product_demonstration"}, set()),
        (Facts(None, "speech", "offer"), set(), {"product_demonstration"}),
        (Facts("forecast", None, "interview"), {"weather", "weather_report", "interview"}, set()),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),  # sets have no order
)
def test_rules_say_what_holds(facts: Facts, holds: set[str], fails: set[str]) -> None:
    """Labels mean what the documentation says, both halves of a pair being needed in one scene."""
    met = {name for name in RULES if meets(name, facts)}
    assert met >= holds
    assert not met & fails


def test_words_decide_the_sentiment_before_sounds() -> None:
    """Polar words win over a melody or a drone; without either a clip is neutral."""
    assert sentiment_of([Facts("road", "melody", "negative"), Facts("stage", "wind")]) == "negative"
    assert sentiment_of([Facts("road", "drone", "filler"), Facts("stage", "wind", "positive")]) == "positive"
    assert sentiment_of([Facts("road", "drone", "filler"), Facts("stage", "wind")]) == "negative"
    assert sentiment_of([Facts("road", "wind"), Facts("stage", "melody")]) == "positive"
    assert sentiment_of([Facts("road", "engine", "filler")]) == "neutral"


def test_rows_give_the_truth_back(clips: list[LabelledClip], truths: dict[str, VideoTruth]) -> None:
    """Rows fit the starter taxonomy, annotate every task of every clip, and lose nothing."""
    assert len(truths) == len(clips)
    for clip in clips:
        truth = truths[clip.key]
        assert truth.split is clip.split
        assert truth.labels == {
            "content": clip.content,
            "moderation": clip.moderation,
            "sentiment": frozenset({clip.sentiment}),
        }
        assert sorted(truth.events["events"], key=repr) == sorted(clip.events, key=repr)


def test_labels_are_those_of_the_scenes(clips: list[LabelledClip]) -> None:
    """A label of a clip is there because of one of its scenes, and no scene is forgotten."""
    for clip in clips:
        met = {name for scene in clip.scenes for name in RULES if meets(name, scene.facts)}
        assert clip.content - {"technology"} == met & set(CONTENT), clip.key
        assert clip.moderation == met & set(MODERATION), clip.key
        assert {event.label for event in clip.events} == met & set(EVENTS), clip.key
        assert clip.sentiment == sentiment_of([scene.facts for scene in clip.scenes])
        assert clip.title is not None or "technology" not in clip.content


def test_every_label_is_frequent_in_every_split(clips: list[LabelledClip]) -> None:
    """Nothing can be learned or judged from labels that are not there; shares are those the documentation promises."""
    sizes = Counter(clip.split for clip in clips)
    assert sizes == {Split.TRAIN: 132, Split.VALIDATION: 22, Split.CALIBRATION: 22, Split.TEST: 44}
    for split in Split:
        part = [clip for clip in clips if clip.split is split]
        content = Counter(label for clip in part for label in clip.content)
        rarer = Counter(label for clip in part for label in clip.moderation)
        rarer.update(label for clip in part for label in {event.label for event in clip.events})
        moods = Counter(clip.sentiment for clip in part)
        assert content.keys() == {*CONTENT, "technology"}
        assert rarer.keys() == {*MODERATION, *EVENTS}
        slack = 1.5 / len(part)  # small splits deal in whole clips
        assert min(content.values()) / len(part) >= 0.14 - slack, (split, content)
        assert min(rarer.values()) / len(part) >= 0.10 - slack, (split, rarer)
        assert min(moods[mood] for mood in ("negative", "neutral", "positive")) / len(part) >= 0.2, (split, moods)


def test_no_half_of_a_pair_gives_its_label_away(clips: list[LabelledClip]) -> None:
    """The halves of a pair occur together in one clip without meeting in a scene almost as often as they meet."""
    for name in PAIRS:
        first, second = RULES[name]
        both = [c for c in clips if any(first.holds(s.facts) for s in c.scenes)]
        given_first = sum(any(meets(name, s.facts) for s in c.scenes) for c in both) / len(both)
        assert 0.3 < given_first < 0.7, (name, given_first)
        both = [c for c in both if any(second.holds(s.facts) for s in c.scenes)]
        given_both = sum(any(meets(name, s.facts) for s in c.scenes) for c in both) / len(both)
        assert 0.4 < given_both < 0.7, (name, given_both)


def test_clips_lack_modalities_and_the_labels_that_need_them(clips: list[LabelledClip]) -> None:
    """Silent, audio-only and text-free clips exist in each split, and no label comes from what is not in the file."""
    for split in Split:
        part = [clip for clip in clips if clip.split is split]
        silent = [clip for clip in part if not clip.has_audio]
        blind = [clip for clip in part if not clip.has_video]
        mute = [clip for clip in part if clip.title is None and not clip.spoken]
        assert min(len(silent), len(blind)) >= 0.05 * len(part) - 1 >= 0.1
        assert len(mute) >= 0.08 * len(part) - 1
        assert any(clip.has_audio and all(s.facts.sound != "speech" for s in clip.scenes) for clip in part)
        for clip in silent:
            assert not clip.content & {"music", "sports", "education"}
            assert not {event.label for event in clip.events} & {"applause", "goal_or_score", "fire_or_explosion"}
        for clip in blind:
            assert clip.content <= {"music", "politics"}
            assert clip.title is None
            assert all(event.place is None for event in clip.events)
        for clip in mute:
            assert not clip.content & {"politics", "food", "news", "technology"}
            assert "alcohol" not in clip.moderation


def test_times_are_consistent(clips: list[LabelledClip]) -> None:
    """Scenes tile the clip on the grid of cuts, cuts can be seen, words, bursts and events lie inside their scenes."""
    for clip in clips:
        spans = [scene.span for scene in clip.scenes]
        assert 7 * US_PER_S <= clip.duration_us <= 15 * US_PER_S
        assert spans[0].start_us == 0
        assert all(a.end_us == b.start_us for a, b in itertools.pairwise(spans))
        assert all(span.end_us % TICK_US == 0 and span.duration_us >= 2_400_000 for span in spans)
        if clip.has_video:
            assert all(a.facts.picture != b.facts.picture for a, b in itertools.pairwise(clip.scenes)), clip.key
        for scene in clip.scenes:
            inner = [span for span, _ in scene.lines] + ([scene.burst] if scene.burst else [])
            assert all(scene.span.start_us < s.start_us and s.end_us < scene.span.end_us for s in inner), clip.key
            assert (scene.burst is None) == (scene.facts.burst is None)
            assert (scene.facts.picture is not None) == clip.has_video
            assert (scene.facts.sound is not None) == clip.has_audio
        for event in clip.events:
            assert any(s.start_us <= event.span.start_us and event.span.end_us <= s.end_us for s in spans)
            if event.label in ("applause", "goal_or_score", "fire_or_explosion"):
                assert 1_600_000 <= event.span.duration_us <= 3_000_000


def test_who_takes_part_is_named_or_shown(clips: list[LabelledClip]) -> None:
    """Participants vary within an event label where words name them, and are fixed where the picture shows them."""
    events = [event for clip in clips for event in clip.events]
    varied = {label: {e.participants for e in events if e.label == label} for label in EVENTS}
    assert varied["goal_or_score"] == {frozenset({"athlete", "crowd"})}
    assert varied["applause"] == {frozenset({"crowd", "presenter"}), frozenset({"crowd", "musician"})}
    assert all(who is not None and "interviewee" in who for who in varied["interview"])
    assert len(varied["interview"]) >= 3
    assert frozenset() in varied["fire_or_explosion"]
    assert {"firefighter", "police"} <= {role for who in varied["fire_or_explosion"] for role in who or ()}


def test_keys_tell_nothing(clips: list[LabelledClip]) -> None:
    """A model that sees keys, or their order, learns neither split nor label."""
    assert len({clip.key.rpartition(".")[0] for clip in clips}) == len(clips)
    assert [clip.key for clip in clips] == sorted(clip.key for clip in clips)
    quarters = [Counter(clip.split for clip in clips[i : i + 55]) for i in range(0, 220, 55)]
    assert all(20 <= quarter[Split.TRAIN] <= 46 for quarter in quarters), quarters
    for ending in (".mp4", ".mkv"):
        shares = [np.mean([c.key.endswith(ending) for c in clips if c.split is split]) for split in Split]
        assert max(shares) - min(shares) < 0.45


def test_equal_seeds_are_equal_in_every_process(clips: list[LabelledClip]) -> None:
    """The order of sets differs from process to process; the archive and its truth must not."""
    code = (
        "import json; from vca.media.demo_labelled import *; print(json.dumps(annotation_rows(labelled_clips(40, 3))))"
    )
    for salt in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": salt}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == json.loads(json.dumps(annotation_rows(labelled_clips(40, 3))))
    assert labelled_clips(40, 4) != labelled_clips(40, 3)


@pytest.mark.parametrize("n", [20, 33, 50])
def test_splits_have_their_shares(n: int) -> None:
    """Any size is dealt out whole, to within one clip of the shares."""
    sizes = Counter(draft.split for draft in plan_archive(n, 1))
    assert sum(sizes.values()) == n
    for split, share in ((Split.TRAIN, 0.6), (Split.VALIDATION, 0.1), (Split.CALIBRATION, 0.1), (Split.TEST, 0.2)):
        assert abs(sizes[split] - share * n) <= 1


def test_too_few_clips_are_refused() -> None:
    """Splits of a clip or none would fail much later, in the evaluation."""
    with pytest.raises(ConfigError, match="clips = 19: too few"):
        labelled_clips(19)


def test_sentences_can_be_shown_and_are_many(taxonomy: Taxonomy) -> None:
    """No pool is small, titles fit into the picture, and roles are participants of the taxonomy."""
    participants = taxonomy.task("events").attributes.participants
    assert participants is not None
    known = {label.name for label in participants.labels}
    assert {role for fillers in ROLES.values() for role in fillers.values() if role} <= known
    rng = np.random.default_rng(0)
    font = ImageFont.load_default(18)
    for kind, pool in SENTENCES.items():
        assert len(pool) == len(set(pool)) >= 12, kind
        made = [compose(kind, rng) for _ in range(120)]
        assert len({line.text for line in made}) >= 30 or kind.startswith("title_"), kind
        for line in made:
            assert line.text.isascii()
            assert not set("{}") & set(line.text)
            assert not kind.startswith("title_") or font.getlength(line.text) < 300, line.text
    assert compose("emergency", rng).roles <= {"firefighter", "police", "medic"}


def test_facts_can_be_drawn_and_heard(clips: list[LabelledClip]) -> None:
    """Every picture and sound of the plan has a painter or a synthesiser."""
    facts = [scene.facts for clip in clips for scene in clip.scenes]
    assert {f.picture for f in facts} == {*PICTURES, None}
    assert {f.sound for f in facts} | {f.burst for f in facts} == {*SOUNDS, None}


def test_annotations_are_json_lines(tmp_path: Path) -> None:
    """The file holds the rows, one a line, and is not touched when it is right already."""
    clips = labelled_clips(20, 5)
    path = tmp_path / "new" / "labels.jsonl"
    write_annotations(path, clips)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == annotation_rows(clips)
    before = path.stat().st_mtime_ns
    write_annotations(path, clips)
    assert path.stat().st_mtime_ns == before


def test_equal_clips_are_equal_bytes(clips: list[LabelledClip]) -> None:
    """The same script gives the same file: the feature store and the tagging job see nothing new."""
    clip = min((c for c in clips if c.has_video and c.has_audio), key=lambda c: c.duration_us)
    assert render(clip) == render(clip)
