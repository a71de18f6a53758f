"""Which facts meet in which clip of the labelled demo archive, and what they mean.

A clip is drafted many times at random; the draft is kept that brings the counts of its split nearest to `TARGETS`. So
every split is balanced by construction, and the facts stay free to meet in any combination.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np

from vca.core.annotations import Split


class Facts(NamedTuple):
    """What holds in one scene. None: nothing, or the clip lacks the modality."""

    picture: str | None = None
    """Of `demo_render.PICTURES`."""
    sound: str | None = None
    """Of `demo_render.SOUNDS`, for the whole scene."""
    words: str | None = None
    """Pool of `demo_sentences.SENTENCES`; `interview` is a question and an answer."""
    burst: str | None = None
    """`roar` or `bang`: a loud sound over part of the scene."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A clip without times and sentences."""

    split: Split
    scenes: tuple[Facts, ...]
    title: str | None
    """Pool of the burned-in title; None: without."""
    lacks: str | None
    """`sound`, `picture` or `text` where the clip has none."""


class Rule(NamedTuple):
    """A fact of a scene: the field of `Facts`, and the values that count."""

    field: str
    values: frozenset[str]

    def holds(self, facts: Facts) -> bool:
        return getattr(facts, self.field) in self.values


def _rule(name: str, *values: str) -> Rule:
    return Rule(name, frozenset(values))


RULES: dict[str, tuple[Rule, ...]] = {
    # content: one fact
    "vehicles_traffic": (_rule("picture", "road"),),
    "animals": (_rule("picture", "meadow"),),
    "weather": (_rule("picture", "forecast"),),
    "music": (_rule("sound", "melody"),),
    "politics": (_rule("words", "politics"),),
    # content: two facts in one scene
    "food": (_rule("picture", "stove"), _rule("words", "cooking")),
    "sports": (_rule("picture", "pitch"), _rule("sound", "crowd")),
    "education": (_rule("picture", "blackboard"), _rule("sound", "speech")),
    "news": (_rule("picture", "studio"), _rule("words", "bulletin", "politics")),
    # moderation
    "alcohol": (_rule("words", "alcohol"),),
    "gambling": (_rule("picture", "roulette"),),
    "explosions_and_blasts": (_rule("picture", "fire"), _rule("burst", "bang")),
    # events
    "applause": (_rule("picture", "studio", "stage"), _rule("burst", "roar")),
    "goal_or_score": (_rule("picture", "pitch"), _rule("burst", "roar")),
    "weather_report": (_rule("picture", "forecast"),),
    "interview": (_rule("words", "interview"),),
    "fire_or_explosion": (_rule("burst", "bang"),),
    "product_demonstration": (_rule("picture", "gadget"), _rule("words", "offer")),
}
"""What holds for a clip: all parts of a rule, in the same scene. The label `technology` is left to the title."""

CONTENT = ("news", "sports", "music", "education", "animals", "food", "politics", "vehicles_traffic", "weather")
MODERATION = ("alcohol", "gambling", "explosions_and_blasts")
EVENTS = ("interview", "applause", "goal_or_score", "fire_or_explosion", "product_demonstration", "weather_report")
PAIRS = ("food", "sports", "education", "news", "explosions_and_blasts", "product_demonstration")
"""Rules whose two parts also occur apart, in different scenes of one clip: distractors."""

PLACES: dict[str | None, str] = {
    "studio": "studio",
    "forecast": "studio",
    "road": "street",
    "pitch": "stadium",
    "meadow": "nature",
    "harbour": "beach_or_water",
    "stove": "kitchen",
    "blackboard": "classroom",
    "stage": "stage",
    "gadget": "shop",
}
"""Place of an event by picture; the others do not say where they are."""

PICTURES = (*(name for name in PLACES if name), "roulette", "fire")
SPLITS = {Split.TRAIN: 0.6, Split.VALIDATION: 0.1, Split.CALIBRATION: 0.1, Split.TEST: 0.2}
LACKS = {"sound": 0.07, "picture": 0.07, "text": 0.1}
"""Share of silent, audio-only and text-free clips."""
TARGETS = {
    **dict.fromkeys(("news", "sports", "education", "food", "politics", "technology"), 0.18),
    **dict.fromkeys(("vehicles_traffic", "animals", "weather"), 0.16),
    "music": 0.22,
    **dict.fromkeys(("alcohol", "gambling", "explosions_and_blasts"), 0.14),
    **dict.fromkeys(("applause", "goal_or_score", "interview", "product_demonstration"), 0.15),
    "fire_or_explosion": 0.24,
    **{f"{name} apart": 0.12 for name in PAIRS},
    "positive words": 0.16,
    "negative words": 0.16,
    "positive sound": 0.14,
    "negative sound": 0.14,
    "neutral": 0.4,
    "words against sound": 0.06,
    "roar elsewhere": 0.08,
    "stage without applause": 0.06,
    "pitch apart from a roar": 0.07,
    "named in a fire": 0.1,
    "emergency without a bang": 0.08,
    "title_plain": 0.3,
}
"""Share of the clips of a split. They compete for scenes, so counts come near to them only."""
CANDIDATES = 32
"""Drafts for each clip; twice as many come little nearer to the targets."""

_Name = TypeVar("_Name", bound=str)


class _Part(NamedTuple):
    """What a theme asks of one scene."""

    wanted: dict[str, str]
    """Fields of `Facts` and their values."""
    forbidden: frozenset[tuple[str, str]]
    """Fields and values that the scene must not get."""


def _themes() -> Iterator[list[_Part]]:
    """What a clip can be made of: parts for one scene, or for two that must differ."""
    for name in PAIRS:
        first, second = RULES[name]
        for a in sorted(first.values):
            for b in sorted(second.values):
                yield [_part({first.field: a, second.field: b})]
                yield [_part({first.field: a}, second), _part({second.field: b}, first)]
    for picture in ("road", "meadow", "forecast", "roulette", "harbour"):
        yield [_part({"picture": picture})]
    for words in ("politics", "alcohol", "interview", "positive", "negative"):
        yield from [[_part({"words": words})]] * 2
    for sound in ("melody", "drone"):
        yield from [[_part({"sound": sound})]] * 2
    for picture in ("studio", "stage", "stage", "harbour", "road", "blackboard"):
        yield [_part({"picture": picture, "burst": "roar"})]
    yield from [[_part({"picture": "pitch", "sound": "crowd", "burst": "roar"})]] * 2
    roar, bang, crowd = _rule("burst", "roar"), _rule("burst", "bang"), _rule("sound", "crowd")
    for picture in ("stage", "harbour", "road"):
        yield [_part({"picture": "pitch"}, crowd), _part({"picture": picture, "sound": "crowd", "burst": "roar"})]
    yield [_part({"picture": "stage"}, roar)]
    yield [_part({"picture": "fire", "burst": "bang", "words": "emergency"})]
    yield [_part({"burst": "bang", "words": "emergency"})]
    yield [_part({"words": "emergency"}, bang)]
    yield [_part({"picture": "fire", "sound": "melody"}, bang)]
    yield [_part({"picture": "blackboard", "sound": "melody"})]


def _part(wanted: dict[str, str], without: Rule | None = None) -> _Part:
    forbidden = [] if without is None else [(without.field, value) for value in without.values]
    return _Part(wanted, frozenset(forbidden))


THEMES = tuple(_themes())
_FILL: dict[str, tuple[str | None, ...]] = {
    "picture": (*PICTURES, "harbour", "harbour", "stage"),
    "sound": ("speech", "speech", "speech", "wind", "engine", "chirps", "sizzle", "crowd"),
    "words": ("filler", "filler", None),
}
_NEVER_TOGETHER = ({"melody", "drone"}, {"positive", "negative"})
"""In one clip: its mood would have no answer."""


@dataclass(slots=True)
class _Slot:
    """A scene that is being drafted."""

    held: dict[str, str | None] = field(default_factory=dict)
    never: set[tuple[str, str]] = field(default_factory=set)

    def takes(self, part: _Part) -> bool:
        if part.wanted.keys() & self.held.keys() or not self.never.isdisjoint(part.wanted.items()):
            return False
        return part.forbidden.isdisjoint(self.held.items())

    def put(self, part: _Part) -> None:
        self.held |= part.wanted
        self.never |= part.forbidden


def plan_archive(n: int, seed: int) -> list[Draft]:
    """`n` drafts in random order; splits and missing modalities in exact shares, labels near to `TARGETS` in each."""
    rng = np.random.default_rng([seed, n])
    drafts: list[Draft] = []
    for split, count in _deal(SPLITS, n).items():
        lacks = [name for name, k in _deal(LACKS, count).items() for _ in range(k)]
        drafts += _plan_split(split, [*lacks, *[None] * (count - len(lacks))], rng)
    return [drafts[i] for i in rng.permutation(len(drafts))]


def meets(name: str, facts: Facts) -> bool:
    """Whether a scene fulfils a rule."""
    return all(rule.holds(facts) for rule in RULES[name])


def sentiment_of(scenes: Sequence[Facts]) -> str:
    """Polar words decide; without them the sound: a melody is bright, a drone is dark."""
    words, sounds = ({getattr(scene, name) for scene in scenes} for name in ("words", "sound"))
    for mood, sound in (("positive", "melody"), ("negative", "drone")):
        if mood in words:
            return mood
        if sound in sounds and not {"positive", "negative"} & words:
            return mood
    return "neutral"


def counted(draft: Draft) -> list[str]:
    """Names of `TARGETS` that a draft adds to, in their order: sums over a set would differ from run to run."""
    scenes = draft.scenes
    found = set().union(*(_fulfilled(scene) for scene in scenes))
    halves = set().union(*(_halves(scene) for scene in scenes))
    found |= {f"{name} apart" for name in PAIRS if name not in found and {(name, 0), (name, 1)} <= halves}
    words, sounds = ({getattr(scene, name) for scene in scenes} for name in ("words", "sound"))
    mood = sentiment_of(scenes)
    polar = bool({"positive", "negative"} & words)
    found.add("neutral" if mood == "neutral" else f"{mood} words" if polar else f"{mood} sound")
    if {"positive", "drone"} <= words | sounds or {"negative", "melody"} <= words | sounds:
        found.add("words against sound")
    if "sports apart" in found and any(scene.burst == "roar" for scene in scenes):
        found.add("pitch apart from a roar")
    for scene in scenes:
        if scene.burst == "roar" and not meets("applause", scene) and not meets("goal_or_score", scene):
            found.add("roar elsewhere")
        if scene.picture == "stage" and scene.burst is None:
            found.add("stage without applause")
        if scene.words == "emergency":
            found.add("named in a fire" if scene.burst == "bang" else "emergency without a bang")
    found |= {"title_technology": {"technology"}, None: set()}.get(draft.title, {"title_plain"})
    return [name for name in TARGETS if name in found]


@cache
def _fulfilled(facts: Facts) -> frozenset[str]:
    return frozenset(name for name in RULES if meets(name, facts))


@cache
def _halves(facts: Facts) -> frozenset[tuple[str, int]]:
    return frozenset((name, i) for name in PAIRS for i, rule in enumerate(RULES[name]) if rule.holds(facts))


def _deal(shares: Mapping[_Name, float], n: int) -> dict[_Name, int]:
    """Whole numbers next to `share * n`; rounding errors do not add up, so shares that sum to 1 give `n`."""
    counts: dict[_Name, int] = {}
    total, given = 0.0, 0
    for name, share in shares.items():
        total += share
        counts[name] = round(total * n) - given
        given += counts[name]
    return counts


def _plan_split(split: Split, lacks: Sequence[str | None], rng: np.random.Generator) -> list[Draft]:
    counts: Counter[str] = Counter()
    drafts = []
    for done, position in enumerate(rng.permutation(len(lacks)), start=1):
        best, best_cost = None, float("inf")
        for _ in range(CANDIDATES):
            draft = _draft(split, lacks[position], rng)
            # the change of sum((count - due)^2 / target) that this draft makes
            cost = sum((2 * (counts[name] - TARGETS[name] * done) + 1) / TARGETS[name] for name in counted(draft))
            if cost < best_cost:
                best, best_cost = draft, cost
        assert best is not None
        counts.update(counted(best))
        drafts.append(best)
    return drafts


def _draft(split: Split, lacks: str | None, rng: np.random.Generator) -> Draft:
    slots = [_Slot() for _ in range((2, 3, 3, 3, 4)[rng.integers(5)])]
    for index in rng.integers(0, len(THEMES), 2 * len(slots)).tolist():
        _place(slots, THEMES[index], rng)
    for position in range(len(slots)):
        for name, values in _FILL.items():
            if name not in slots[position].held:
                order = rng.permutation(len(values)).tolist()
                slots[position].held[name] = next(values[i] for i in order if _fits(slots, position, name, values[i]))
    gone = {"sound": ("sound", "burst"), "picture": ("picture",), "text": ("words",), None: ()}[lacks]
    scenes = tuple(Facts(**{k: v for k, v in slot.held.items() if k not in gone}) for slot in slots)
    title = (None, None, "title_plain", "title_plain", "title_technology")[rng.integers(5)]
    return Draft(split, scenes, title if lacks in (None, "sound") else None, lacks)


def _place(slots: list[_Slot], theme: list[_Part], rng: np.random.Generator) -> None:
    """Put the parts of a theme into different free scenes, or nothing at all."""
    order = rng.permutation(len(slots)).tolist()
    chosen: list[tuple[int, _Part]] = []
    for part in theme:
        for position in order:
            if slots[position].takes(part) and all(_fits(slots, position, *pair) for pair in part.wanted.items()):
                chosen.append((position, part))
                order.remove(position)
                break
        else:
            return
    for position, part in chosen:
        slots[position].put(part)


def _fits(slots: list[_Slot], position: int, name: str, value: str | None) -> bool:
    """No two equal pictures in a row (a cut must be seen), and moods that do not contradict each other."""
    if (name, value) in slots[position].never:
        return False
    if name == "picture":
        return all(slots[i].held.get(name) != value for i in (position - 1, position + 1) if 0 <= i < len(slots))
    rivals = {other for pair in _NEVER_TOGETHER if value in pair for other in pair if other != value}
    return not any(slot.held.get(name) in rivals for slot in slots)
