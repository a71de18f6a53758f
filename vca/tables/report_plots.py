"""Plots of an evaluation as PNG files, from the plain values of `Comparison.to_dict`.

Figures are made without pyplot: no global state, nothing to close, no display.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, LIGHT = "#3b6ea5", "#d98032", "#9a9a9a", "#e4e4e4"
COLOURS = ("#3b6ea5", "#d98032", "#5a9367", "#b5495b", "#7d6aa8", "#8c6d46", "#4fa3a5", "#c2a12f")
LEGEND_LABELS = 8
"""Labels that get a colour and a name in a plot of curves; the others are thin grey lines."""
BAR_LABELS = 60
MATRIX_LABELS = 40
DPI = 110

Draw = Callable[["Axes"], None]


def save(path: Path, width: float, height: float, draw: Draw) -> Path:
    """Draw one pair of axes of this size, in inches, into a PNG file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Names of labels and systems are no formulas, whatever characters they hold.
    settings: Any = {"text.parse_math": False, "axes.titlelocation": "left", "axes.titlesize": 11, "font.size": 9}
    with rc_context(settings):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        figure.savefig(path, format="png", metadata={"Software": None})
    return path


def systems_plot(path: Path, intervals: Mapping[str, Mapping[str, float]], title: str) -> Path:
    """One figure of every system, with its interval."""
    names = list(intervals)

    def draw(axes: "Axes") -> None:
        for line, name in enumerate(names):
            found = intervals[name]
            colour = BLUE if line == 0 else GREY
            axes.barh(line, found["value"], height=0.66, color=colour)
            axes.plot([found["low"], found["high"]], [line, line], color="black", linewidth=1.2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_title(title)
        _grid(axes, "x")

    return save(path, 8, 1.1 + 0.3 * len(names), draw)


def bars_plot(path: Path, values: Mapping[str, float | None], title: str) -> Path:
    """One bar for each label, in the order of the taxonomy; a label without anything to measure has none."""
    names = list(values)[:BAR_LABELS]
    left_out = len(values) - len(names)

    def draw(axes: "Axes") -> None:
        known = [0.0 if (value := values[name]) is None else value for name in names]
        bars = axes.barh(range(len(names)), known, height=0.66, color=BLUE)
        axes.bar_label(bars, ["–" if values[name] is None else f"{values[name]:.2f}" for name in names], padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1)
        axes.set_title(title + (f" ({left_out} more labels left out)" if left_out else ""))
        _grid(axes, "x")

    return save(path, 8, 1.0 + 0.26 * len(names), draw)


def curves_plot(
    path: Path,
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    pooled: Mapping[str, Sequence[float]] | None,
    axis_names: tuple[str, str],
    title: str,
) -> Path:
    """Curves by label, most frequent first, and of all labels together."""
    x_name, y_name = axis_names
    style = "steps-post" if y_name == "precision" else "default"

    def draw(axes: "Axes") -> None:
        for place, (name, curve) in reversed(list(enumerate(curves.items()))):
            named = place < LEGEND_LABELS
            axes.plot(
                curve[x_name],
                curve[y_name],
                color=COLOURS[place] if named else LIGHT,
                linewidth=1.2 if named else 0.7,
                label=name if named else "_",
                drawstyle=style,
            )
        if pooled is not None:
            axes.plot(pooled[x_name], pooled[y_name], color="black", linewidth=2, label="all labels", drawstyle=style)
        if x_name == "false_positive_rate":
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.03)
        axes.set_xlabel(x_name.replace("_", " "))
        axes.set_ylabel(y_name.replace("_", " "))
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return save(path, 6.6, 4.2, draw)


def confusion_plot(path: Path, labels: Sequence[str], rows: Sequence[Sequence[float]], title: str) -> Path:
    """Counts with the truth in rows; the colour is the share of the row."""
    import numpy as np

    n = min(len(labels), MATRIX_LABELS)
    counts = np.asarray(rows, np.float64).reshape(len(labels), len(labels))[:n, :n]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left_out = len(labels) - n

    def draw(axes: "Axes") -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i in range(n):
            for j in range(n):
                if counts[i, j]:
                    colour = "white" if shares[i, j] > 0.55 else "black"
                    axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(n), labels[:n], rotation=45, ha="right")
        axes.set_yticks(range(n), labels[:n])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(title + (f" ({left_out} more labels left out)" if left_out else ""))

    return save(path, 3.4 + 0.42 * n, 2.6 + 0.42 * n, draw)


def reliability_plot(path: Path, series: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> Path:
    """Share of positives against the predicted probability, by name; the diagonal is perfect calibration."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        for (name, points), colour in zip(series.items(), (ORANGE, BLUE), strict=False):
            x, y = [point["probability"] for point in points], [point["share"] for point in points]
            biggest = max((point["n"] for point in points), default=1)
            axes.plot(x, y, color=colour, linewidth=1.4, label=name)
            axes.scatter(x, y, s=[12 + 50 * point["n"] / biggest for point in points], color=colour)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share that is true")
        axes.set_title(title)
        axes.legend(frameon=False, loc="upper left")

    return save(path, 4.6, 4.2, draw)


def overlaps_plot(path: Path, series: Mapping[str, Mapping[str, float]], title: str) -> Path:
    """What becomes of mAP as an event needs more overlap, one line for each system."""

    def draw(axes: "Axes") -> None:
        for place, (name, points) in enumerate(series.items()):
            colour = COLOURS[place] if place < LEGEND_LABELS else LIGHT
            axes.plot([float(x) for x in points], list(points.values()), marker="o", color=colour, label=name)
        axes.set_ylim(-0.01, 1.03)
        axes.set_xlabel("needed overlap (tIoU)")
        axes.set_ylabel("mAP")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return save(path, 6.6, 3.8, draw)


def _grid(axes: "Axes", axis: Any) -> None:
    axes.grid(axis=axis, color=LIGHT)
    axes.set_axisbelow(True)
    axes.tick_params(left=False)
