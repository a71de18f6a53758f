"""The report: what stands in the table, that the page is safe and whole, and that odd input breaks nothing."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.records import CategoryScore, Event, Evidence, Prediction
from vca.core.taxonomy import Attribute, Attributes, Label, Task, TaskKind, Taxonomy
from vca.core.timeline import Span
from vca.models.evaluation import EvaluationConfig, Judged, compare, evaluate
from vca.tables.report import comparison_text, main_figures, write_report

S = 1_000_000
N_STEPS = 12


def task(name: str, kind: TaskKind, *names: str, places: bool = False) -> Task:
    labels = tuple(Label(name=n, description=n) for n in names)
    attributes = Attributes(place=Attribute(labels=labels)) if places else Attributes()
    return Task(name=name, kind=kind, description=name, labels=labels, attributes=attributes)


TAXONOMY = Taxonomy(
    name="test",
    tasks=(
        task("content", TaskKind.MULTI_LABEL, "news", "sports", "never"),
        task("mood", TaskKind.SINGLE_LABEL, "good", "bad"),
        task("events", TaskKind.SPAN, "goal", "talk", places=True),
        task("speech", TaskKind.STEP, "voice", "music"),
    ),
)


def judged(number: int, skill: float, rng: np.random.Generator) -> Judged:
    """A video whose scores are the truth mixed with chance."""
    held = [name for name, yes in zip(("news", "sports"), rng.random(2) < 0.5, strict=True) if yes]
    mood = "good" if number % 2 else "bad"
    start = int(rng.integers(0, 6))
    span = Span(start * S, (start + 4) * S)

    def score(true: bool) -> float:
        return float(np.clip(skill * true + (1 - skill) * rng.random(), 0.01, 0.99))

    rows = []
    for name, labels, right in (("content", ("news", "sports", "never"), held), ("mood", ("good", "bad"), [mood])):
        scores = {label: score(label in right) for label in labels}
        for rank, label in enumerate(sorted(scores, key=lambda la: -scores[la]), start=1):
            selected = scores[label] >= 0.5 if name == "content" else rank == 1
            rows.append(CategoryScore(name, label, scores[label], 0.5, selected, rank, Evidence()))
    shift = 0 if rng.random() < skill else 3
    found = Event("events", "goal", Span((start + shift) * S, (start + shift + 4) * S), score(True), place="goal")
    true = np.zeros((N_STEPS, 2))
    true[start : start + 4, 0] = 1
    noisy = (skill * true + (1 - skill) * rng.random(true.shape)).astype(np.float32)
    truth = VideoTruth(
        video_id=f"v{number:03d}",
        key=None,
        split=Split.TEST,
        labels={"content": frozenset(held), "mood": frozenset([mood])},
        events={"events": (TrueEvent("goal", span, "goal"),), "speech": (TrueEvent("voice", span),)},
    )
    steps = np.stack([np.arange(N_STEPS), np.arange(1, N_STEPS + 1)], axis=1) * S
    prediction = Prediction(tuple(rows), (found,), {"events": noisy, "speech": noisy})
    return Judged(truth, prediction, steps, N_STEPS * S)


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    """Four systems on thirty videos, as `vca.pipelines.judging.Comparison.to_dict` gives them, with real figures."""
    config = EvaluationConfig(bootstrap_samples=40)
    skills = {"fusion": 0.8, "fusion vision": 0.4, "uncalibrated": 0.75, "zero-shot": 0.2}
    systems = {name: [judged(n, skill, np.random.default_rng(n)) for n in range(30)] for name, skill in skills.items()}
    values = {
        "examined": "fusion",
        "systems": {name: evaluate(videos, TAXONOMY, config).to_dict() for name, videos in systems.items()},
        "differences": {
            name: {f: asdict(i) for f, i in compare(systems["fusion"], systems[name], TAXONOMY, config).items()}
            for name in ("fusion vision", "zero-shot")
        },
        "evidence": {"correlation": 0.7, "rank_correlation": 0.65, "top_agreement": 0.8, "n_pairs": 55},
    }
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def only(comparison: Mapping[str, Any], *tasks: str) -> dict[str, Any]:
    """A copy with fewer tasks: plots take most of the time."""
    found: dict[str, Any] = json.loads(json.dumps(comparison))
    for report in found["systems"].values():
        report["tasks"] = {name: report["tasks"][name] for name in tasks}
    return found


class Page(HTMLParser):
    """Which tags with which attributes, the text, and whether what is opened is closed."""

    VOID = ("meta", "img")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]


def test_the_text_fits_a_screen_and_holds_the_figures(comparison: Mapping[str, Any]) -> None:
    """Examined system first, subsets last, no uncalibrated system, every figure that of the dict."""
    assert main_figures(comparison) == ["content.map_macro", "mood.accuracy", "events.map_at_0.5", "speech.accuracy"]
    lines = comparison_text(comparison, width=200).splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == ["fusion", "zero-shot", "fusion vision"]
    assert len(lines) < 24
    score = comparison["systems"]["zero-shot"]["score"]
    low, high = f"{score['low']:.2f}"[1:], f"{score['high']:.2f}"[1:]
    assert f"{score['value']:.3f} [{low} {high}]" in lines[4]
    gain = comparison["differences"]["zero-shot"]["score"]
    assert gain["low"] > 0
    value, low, high = (f"+{gain[name]:.2f}".replace("0.", ".") for name in ("value", "low", "high"))
    assert lines[4].endswith(f"{value} [{low} {high}]*")
    assert "30 test videos" in lines[-1]


@pytest.mark.parametrize("width", [60, 80, 124])
def test_columns_that_do_not_fit_are_named(comparison: Mapping[str, Any], width: int) -> None:
    """A narrow terminal must not break the table, and the gain stays."""
    lines = comparison_text(comparison, width).splitlines()
    assert max(map(len, lines[:6])) <= width
    shown = [figure for figure in main_figures(comparison) if figure.partition(".")[0] in lines[0].split()]
    left_out = [figure for figure in main_figures(comparison) if figure in lines[-1]]
    assert [*shown, *left_out] == main_figures(comparison)
    assert [figure.partition(".")[2] for figure in shown] == lines[1].split()[:-1]
    assert "better by" in lines[0]
    assert "(fusion)" in lines[1]


def test_a_gain_within_chance_has_no_star(comparison: dict[str, Any]) -> None:
    """The star is a claim."""
    within = {"value": 0.01, "low": -0.01, "high": 0.03}
    changed = comparison | {"differences": {"zero-shot": {"score": within}}}
    assert "+.01 [-.01 +.03]\n" in comparison_text(changed)


@pytest.fixture(scope="module")
def folder(comparison: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    written = write_report(comparison, path, {"model": "fusion-1"})
    assert sorted(written) == sorted(path.iterdir())
    return path


def test_every_plot_is_there(folder: Path) -> None:
    """PR, ROC, confusion, reliability and bars where the kind of task has them; each a PNG with something on it."""
    names = {path.name for path in folder.glob("*.png")}
    assert names == {
        "systems.png",
        *(f"01_content_{what}.png" for what in ("pr_curve", "roc_curve", "reliability", "labels")),
        *(f"02_mood_{what}.png" for what in ("confusion", "reliability", "labels")),
        *(f"03_events_{what}.png" for what in ("overlap", "reliability", "labels")),
        *(f"04_speech_{what}.png" for what in ("confusion", "reliability", "labels")),
    }
    for path in folder.glob("*.png"):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 5000, f"{path.name} looks empty"


def test_the_page_needs_nothing_else(folder: Path, comparison: Mapping[str, Any]) -> None:
    """Well formed, all pictures inside and equal to the files, nothing loaded, every figure in the text."""
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert sorted(page.pictures()) == sorted(path.read_bytes() for path in folder.glob("*.png"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "form"})
    assert not re.search(r"https?://", page.text)
    for name, report in comparison["systems"].items():
        for interval in report["headline"].values() if name != "uncalibrated" else ():
            assert f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in page.text
    assert "1 labels without positives, left out of macro figures" in page.text
    before, after = (comparison["systems"][s]["tasks"]["content"]["ece_macro"] for s in ("uncalibrated", "fusion"))
    assert before != after
    assert re.search(rf"ece_macro\s*{before:.3f}\s*{after:.3f}", page.text)
    assert "fusion-1" in page.text


def test_data_and_text_lie_beside_the_page(folder: Path, comparison: Mapping[str, Any]) -> None:
    """Other programs read the figures, not the page."""
    assert json.loads((folder / "comparison.json").read_text()) == comparison
    assert (folder / "comparison.txt").read_text().rstrip("\n") == comparison_text(comparison)


def test_names_are_untrusted(comparison: Mapping[str, Any], tmp_path: Path) -> None:
    """Names of systems, tasks, labels and notes come from files of other people: no markup, no path, no formula."""
    evil = '<script>alert("x")</script>&$\\frac{'
    text = json.dumps(only(comparison, "content", "events", "speech"))
    for name in ('"fusion', '"events', '"news"', '"voice"', '"talk"'):
        inserted = json.dumps(evil)[1:-1]
        text = text.replace(name, f'"{inserted}{name[1:]}' if name[-1] != '"' else f'"{inserted}{name[1:-1]}"')
    text = text.replace('"speech"', '"../../../up"').replace('"speech.', '"../../../up.')
    folder = tmp_path / "in" / "report"
    written = write_report(json.loads(text), folder, {evil: evil})
    assert {path.parent for path in written} == {folder}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"Evaluation of {evil}fusion" in page.text
    assert "default-src 'none'" in source


def test_a_system_that_lacks_figures(comparison: Mapping[str, Any], tmp_path: Path) -> None:
    """One system only, a task without anything true, no evidence, no differences: dashes, not errors."""
    changed = only(comparison, "content", "mood")
    del changed["evidence"]
    changed["differences"] = {}
    changed["systems"] = {name: changed["systems"][name] for name in ("fusion", "zero-shot")}
    changed["systems"]["zero-shot"]["headline"] = {}
    content = changed["systems"]["fusion"]["tasks"]["content"]
    for found in [content["pooled"], *content["labels"].values()]:
        found.update({"ap": None, "roc_auc": None, "n_positive": 0})
        found.pop("pr_curve", None)
        found.pop("roc_curve", None)
    del changed["systems"]["fusion"]["headline"]["content.map_macro"]
    written = write_report(changed, tmp_path / "r")
    assert "01_content_pr_curve.png" not in {path.name for path in written}
    assert "–" in comparison_text(changed)
    assert "map_macro" not in comparison_text(changed)
