"""The report of an evaluation: a comparison for the terminal, one HTML page that needs nothing else, and its plots.

Input is the plain dict of `vca.pipelines.judging.Comparison.to_dict` (systems with figures and intervals, differences,
evidence), which can come from a JSON file. Names in it are untrusted: the page escapes them and allows no script.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vca.tables import report_plots as plots
from vca.tables.report_page import PAGE

UNCALIBRATED = "uncalibrated"
"""The examined system before calibration: it is in the dict for the reliability diagrams, and in no comparison."""
NOTHING = "–"
TEXT_WIDTH = 124


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column is a name."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot inside the page."""

    title: str
    data: str
    """PNG in base64."""


@dataclass(frozen=True, slots=True)
class Section:
    """One task on the page."""

    name: str
    summary: str
    tables: Sequence[tuple[str, Table]]
    pictures: Sequence[Picture]


def comparison_text(comparison: Mapping[str, Any], width: int = TEXT_WIDTH) -> str:
    """The comparison on one screen: main figure of every task with its interval, and the gain of the examined system.

    Columns that do not fit into `width` characters are named below the table.
    """
    figures = main_figures(comparison)
    names = _compared(comparison)
    columns = ["score", *figures]
    cells = [
        [name, *(_short(_figure(comparison, name, f)) for f in columns), _gain(comparison, name)] for name in names
    ]
    # A figure such as content.map_macro has its task in the first line and its name in the second.
    heads = [("system", ""), *((c.partition(".")[0], c.partition(".")[2]) for c in columns)]
    heads.append(("better by", f"({comparison['examined']})"))
    rows = [*map(list, zip(*heads, strict=True)), *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    shown = list(range(len(heads)))
    while sum(widths[i] + 2 for i in shown) - 2 > width and len(shown) > 3:
        del shown[-2]
    left_out = [name for i, name in enumerate(columns, start=1) if i not in shown]
    lines = ["  ".join(row[i].ljust(widths[i]) for i in shown).rstrip() for row in rows]
    lines.insert(2, "-" * max(map(len, lines)))
    report = comparison["systems"][comparison["examined"]]
    lines.append(
        f"{report['n_videos']} test videos, {report['hours']:.2f} h. [ ]: interval by video; *: beyond chance."
    )
    if left_out:
        lines.append(f"not shown for lack of room: {', '.join(left_out)}")
    return "\n".join(lines)


def main_figures(comparison: Mapping[str, Any]) -> list[str]:
    """The figure of every task that counts for the score, such as `events.map_at_0.5`."""
    examined = comparison["systems"][comparison["examined"]]
    mains = [task["main"] for task in examined["tasks"].values()]
    return [name for name in mains if name in examined["headline"]]


def write_report(comparison: Mapping[str, Any], folder: Path, about: Mapping[str, str] | None = None) -> list[Path]:
    """Write `report.html`, the same plots as PNG files, `comparison.txt` and `comparison.json`; their paths.

    `about` are lines for the head of the page, such as model version, annotations and features.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    overview = plots.systems_plot(
        folder / "systems.png",
        {name: comparison["systems"][name]["score"] for name in _compared(comparison)},
        "Score: mean of the tasks' main figures",
    )
    written.append(overview)
    sections = []
    for number, (name, task) in enumerate(comparison["systems"][comparison["examined"]]["tasks"].items(), start=1):
        stem = f"{number:02d}_{re.sub(r'[^a-z0-9_]+', '_', name.lower())[:40]}"
        pictures = _plots(comparison, name, task, folder, stem)
        written += pictures
        sections.append(
            Section(name, _summary(task), _tables(comparison, name, task), [_picture(path) for path in pictures])
        )
    page = folder / "report.html"
    page.write_text(_page(comparison, about or {}, _picture(overview), sections), encoding="utf-8")
    text = folder / "comparison.txt"
    text.write_text(comparison_text(comparison) + "\n", encoding="utf-8")
    data = folder / "comparison.json"
    data.write_text(json.dumps(comparison, indent=1, sort_keys=False), encoding="utf-8")
    return [page, text, data, *written]


def _page(comparison: Mapping[str, Any], about: Mapping[str, str], overview: Picture, sections: list[Section]) -> str:
    from jinja2 import Environment, StrictUndefined

    examined = comparison["systems"][comparison["examined"]]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        examined=comparison["examined"],
        about={**about, "test videos": str(examined["n_videos"]), "hours": f"{examined['hours']:.2f}"},
        overview=overview,
        systems=_systems_table(comparison),
        differences=_differences_table(comparison),
        evidence=comparison.get("evidence"),
        seams=comparison.get("seams"),
        sections=sections,
    )


# --- the comparison --------------------------------------------------------------------------------------------------


def _compared(comparison: Mapping[str, Any]) -> list[str]:
    """The examined system, other systems, then the examined one with fewer modalities."""
    examined = comparison["examined"]
    names = [name for name in comparison["systems"] if name not in (examined, UNCALIBRATED)]
    subsets = [name for name in names if name.startswith(f"{examined} ")]
    return [examined, *(name for name in names if name not in subsets), *subsets]


def _figure(comparison: Mapping[str, Any], system: str, figure: str) -> Mapping[str, float] | None:
    report = comparison["systems"][system]
    found: Mapping[str, float] | None = report["score"] if figure == "score" else report["headline"].get(figure)
    return found


def _gain(comparison: Mapping[str, Any], system: str) -> str:
    found = comparison["differences"].get(system, {}).get("score")
    if found is None:
        return ""
    value, low, high = (f"{found[name]:+.2f}".replace("0.", ".", 1) for name in ("value", "low", "high"))
    return f"{value} [{low} {high}]{'*' if found['low'] > 0 else ''}"


def _short(found: Mapping[str, float] | None) -> str:
    """`0.912 [.88 .95]`."""
    if found is None:
        return NOTHING
    low, high = (f"{found[name]:.2f}".removeprefix("0").replace("1.00", "1.0") for name in ("low", "high"))
    return f"{found['value']:.3f} [{low} {high}]"


def _long(found: Mapping[str, float] | None) -> str:
    return NOTHING if found is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _systems_table(comparison: Mapping[str, Any]) -> Table:
    figures = ["score", *comparison["systems"][comparison["examined"]]["headline"]]
    names = _compared(comparison)
    return Table(["", *names], [[f, *(_long(_figure(comparison, name, f)) for name in names)] for f in figures])


def _differences_table(comparison: Mapping[str, Any]) -> Table:
    names = [name for name in _compared(comparison) if name in comparison["differences"]]
    figures = list(dict.fromkeys(f for name in names for f in comparison["differences"][name]))
    figures.sort(key=lambda figure: figure != "score")

    def cell(name: str, figure: str) -> str:
        found = comparison["differences"][name].get(figure)
        if found is None:
            return NOTHING
        mark = " *" if found["low"] > 0 else " (worse)" if found["high"] < 0 else ""
        return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]{mark}"

    return Table(["", *(f"against {name}" for name in names)], [[f, *(cell(n, f) for n in names)] for f in figures])


# --- one task --------------------------------------------------------------------------------------------------------


def _summary(task: Mapping[str, Any]) -> str:
    parts = [f"{task['kind']}, {task['n_videos']} annotated videos"]
    for key, text in (
        ("n_labels_without_positives", "labels without positives, left out of macro figures"),
        ("n_labels_without_truth", "labels without events, left out of mAP"),
        ("n_found_without_truth", "events found of such labels, which no figure counts"),
        ("n_without_decision", "videos without a decision, counted as wrong"),
    ):
        if task.get(key):
            parts.append(f"{task[key]} {text}")
    if place := task.get("place"):
        parts.append(f"place right in {place['n_correct']} of {place['n_events']} found events that have one")
    return "; ".join(parts)


_CALIBRATION = ("ece_macro", "brier_macro", "ece", "brier", "step_ece", "step_brier")
_LABEL_COLUMNS = ("n_positive", "n_truth", "n_found", "ap", "roc_auc", "step_ap", "ece", "brier")


def _tables(comparison: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> list[tuple[str, Table]]:
    tables = []
    before = _before(comparison, name)
    measures = [key for key in _CALIBRATION if key in task]
    if before is not None and measures:
        rows = [[key, _number(before.get(key)), _number(task[key])] for key in measures]
        tables.append(("Calibration", Table(["", "before", "after"], rows)))
    labels = task["labels"]
    columns = [column for column in _LABEL_COLUMNS if any(column in found for found in labels.values())]
    overlaps = _overlaps(labels.values()) if "ap" in columns else []
    heads = ["label"]
    for column in columns:
        heads += [f"AP@{tiou}" for tiou in overlaps] if column == "ap" and overlaps else [column.replace("_", " ")]
    heads += ["precision", "recall", "F1"]
    rows = []
    for label, found in labels.items():
        row = [label]
        for column in columns:
            value = found.get(column)
            row += [_number(value.get(t)) for t in overlaps] if isinstance(value, Mapping) else [_number(value)]
        rows.append([*row, *(_number(found["at_decision"][rate]) for rate in ("precision", "recall", "f1"))])
    tables.append(("Labels, at the fitted thresholds", Table(heads, rows)))
    return tables


def _overlaps(labels: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(tiou for found in labels if isinstance(found["ap"], Mapping) for tiou in found["ap"]))


def _plots(comparison: Mapping[str, Any], name: str, task: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    written = []
    labels = task["labels"]
    if "pooled" in task:
        ordered = dict(sorted(labels.items(), key=lambda item: -item[1]["n_positive"]))
        for curve, axes, what in (
            ("pr_curve", ("recall", "precision"), "precision and recall"),
            ("roc_curve", ("false_positive_rate", "true_positive_rate"), "ROC"),
        ):
            curves = {label: found[curve] for label, found in ordered.items() if curve in found}
            if curves:
                path = folder / f"{stem}_{curve}.png"
                written.append(plots.curves_plot(path, curves, task["pooled"].get(curve), axes, f"{name}: {what}"))
    if "confusion" in task:
        path = folder / f"{stem}_confusion.png"
        rows = task["confusion"]["rows_are_truth"]
        written.append(plots.confusion_plot(path, task["confusion"]["labels"], rows, f"{name}: what is taken for what"))
    if overlaps := _by_overlap(comparison, name, labels):
        path = folder / f"{stem}_overlap.png"
        written.append(plots.overlaps_plot(path, overlaps, f"{name}: mAP by needed overlap"))
    if reliability := _reliability(comparison, name, task):
        path = folder / f"{stem}_reliability.png"
        written.append(plots.reliability_plot(path, reliability, f"{name}: calibration"))
    bars, what = _bars(labels)
    written.append(plots.bars_plot(folder / f"{stem}_labels.png", bars, f"{name}: {what} by label"))
    return written


def _by_overlap(
    comparison: Mapping[str, Any], name: str, labels: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Figures by tIoU of the systems, for tasks that have events."""
    series = {}
    for system in (
        _compared(comparison) if any(isinstance(found.get("ap"), Mapping) for found in labels.values()) else []
    ):
        headline = comparison["systems"][system]["headline"]
        points = {tiou: headline.get(f"{name}.map_at_{tiou}") for tiou in _overlaps(labels.values())}
        known = {tiou: point["value"] for tiou, point in points.items() if point is not None}
        if known:
            series[system] = known
    return series


def _before(comparison: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    report = comparison["systems"].get(UNCALIBRATED)
    found: Mapping[str, Any] | None = None if report is None else report["tasks"].get(name)
    return found


def _reliability(
    comparison: Mapping[str, Any], name: str, task: Mapping[str, Any]
) -> dict[str, Sequence[Mapping[str, float]]]:
    series = {}
    for what, found in (("before calibration", _before(comparison, name)), ("after calibration", task)):
        points = None if found is None else found.get("pooled", found).get("reliability")
        if points:
            series[what] = points
    return series


def _bars(labels: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float | None], str]:
    """AP where there is one (of events at tIoU 0.5, or the first that was asked for), else F1."""
    overlaps = _overlaps(found for found in labels.values() if "ap" in found)
    if overlaps:
        tiou = "0.5" if "0.5" in overlaps else overlaps[0]
        return {label: found["ap"].get(tiou) for label, found in labels.items()}, f"AP at tIoU {tiou}"
    if all("ap" in found for found in labels.values()):
        return {label: found["ap"] for label, found in labels.items()}, "AP"
    return {label: found["at_decision"]["f1"] for label, found in labels.items()}, "F1"


def _picture(path: Path) -> Picture:
    return Picture(path.stem.replace("_", " "), base64.b64encode(path.read_bytes()).decode("ascii"))


def _number(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
