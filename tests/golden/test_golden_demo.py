"""Decoding, encoding and tagging give the numbers in `demo.json`; `python -m tests.golden.renew` renews it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.renew import CLIPS, GOLDEN, observe

TOLERANCE = {"vision": 2e-3, "audio": 2e-3, "selected": 1e-3, "score": 1e-3, "confidence": 1e-2}
"""Of the floats below a name. All else, times and words above all, must be equal.

Features are stored as float16, which is 5e-4 coarse near 1, and float sums differ by as much between processors; scores
and the reader's confidence come from larger models, whose sums differ more, and are judged in hundredths.
"""


def differences(expected: Any, found: Any, place: str = "", tolerance: float = 0.0) -> list[str]:
    """Where two JSON values differ, one line each."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{place}/{name}: only in one" for name in sorted(expected.keys() ^ found.keys())]
        for name in expected.keys() & found.keys():
            below = TOLERANCE.get(name, tolerance)
            lines += differences(expected[name], found[name], f"{place}/{name}", below)
        return lines
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{place}[{i}]", tolerance)]
    if isinstance(expected, float) and isinstance(found, float) and abs(expected - found) <= tolerance:
        return []
    return [] if type(expected) is type(found) and expected == found else [f"{place}: {expected!r} became {found!r}"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return values


def test_the_demo_gives_the_accepted_numbers(demo_archive: Path, golden: dict[str, Any]) -> None:
    """A change of any frame time, shot, word, feature, label or event is seen and has to be accepted by hand."""
    found = json.loads(json.dumps(observe(demo_archive)))
    assert sorted(found) == sorted(CLIPS)
    assert differences(golden, found) == []


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (("frame_times_us", 3), 1),
        (("shots_us", 0, 1), 1),
        (("text", 0, "start_us"), 1),
        (("vision", "steps"), 1),
        (("vision", "mean"), 0.0021),
        (("vision", "samples", 2), -0.0021),
        (("coverage_us",), -1),
    ],
    ids=str,
)
def test_a_changed_number_is_seen(golden: dict[str, Any], path: tuple[Any, ...], change: float) -> None:
    """The comparison itself can fail: one number beyond its tolerance is one line."""
    changed = copy.deepcopy(golden)
    place = changed[CLIPS[0]]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] += change
    assert len(differences(golden, changed)) == 1


def test_a_changed_tag_is_seen(golden: dict[str, Any]) -> None:
    """Scores beyond 1e-3 and lost labels are seen, in a clip that has some."""
    key = next(key for key in CLIPS if golden[key]["selected"])
    label = next(iter(golden[key]["selected"]))
    scored, lost = copy.deepcopy(golden), copy.deepcopy(golden)
    scored[key]["selected"][label] += 0.0011
    del lost[key]["selected"][label]
    assert len(differences(golden, scored)) == len(differences(golden, lost)) == 1
