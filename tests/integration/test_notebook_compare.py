"""The notebook that compares fine-tuning runs, executed on runs logged as the fine-tuning job logs them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.test_notebook import empty_home, pictures
from tests.support.s3 import environment
from vca.pipelines.config import TrackingConfig
from vca.pipelines.training_tracking import DatasetVersion, TrainingTracker, report_figures

NOTEBOOK = "notebooks/02_compare_finetuning_runs.ipynb"
PLOTS = ["Curves", "Test figures", "Figures by label"]


def run_notebook(repository: Path, uri: str, folder: Path) -> tuple[list[bytes], str]:
    """The pictures and everything that was printed or shown as text."""
    notebook = nbformat.read(repository / NOTEBOOK, as_version=4)
    with (
        empty_home(folder / "home", folder),
        environment({"VCA_TRACKING_URI": uri}, ("MLFLOW_TRACKING_URI", "VCA_EXPERIMENT")),
    ):
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    outputs = [item for cell in notebook.cells if cell.cell_type == "code" for item in cell.outputs]
    assert [item.text for item in outputs if item.get("name") == "stderr"] == []
    text = "".join(item.text for item in outputs if item.get("name") == "stdout")
    return pictures(notebook), text + "".join(item["data"].get("text/html", "") for item in outputs if "data" in item)


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": min(1.0, value + 0.05)}


def report(skill: float) -> dict[str, Any]:
    """A report with the keys that `vca.models.evaluation.Report.to_dict` has."""
    rates = {"precision": skill, "recall": skill, "f1": skill}
    content = {"news": {"ap": skill, "at_decision": rates}, "sports": {"ap": 0.9, "at_decision": rates}}
    content["never"] = {"ap": None, "at_decision": rates}
    events = {"goal": {"ap": {"0.3": 0.99, "0.5": skill - 0.1}, "at_decision": rates}}
    return {
        "n_videos": 40,
        "hours": 0.1,
        "score": interval(skill),
        "headline": {"content.map_macro": interval(skill), "events.map_at_0.5": interval(skill - 0.1)},
        "tasks": {
            "content": {"kind": "multi_label", "main": "content.map_macro", "labels": content},
            "events": {"kind": "span", "main": "events.map_at_0.5", "labels": events},
            "mood": {"kind": "single_label", "main": "mood.accuracy", "labels": {"good": {"at_decision": rates}}},
        },
    }


@pytest.fixture
def tracking(tmp_path: Path) -> Iterator[TrackingConfig]:
    import mlflow

    before = mlflow.get_tracking_uri()
    yield TrackingConfig(
        uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="demo-finetune", artifact_uri=str(tmp_path / "artifacts")
    )
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


def log_run(tracking: TrackingConfig, folder: Path, name: str, lr: float, skill: float | None) -> TrainingTracker:
    """`skill` None: the run failed before its evaluation."""
    tracker = TrainingTracker(tracking, name)
    tracker.parameters({"train": {"lr_plm": lr, "batch_windows": 16}, "seed": 0})
    tracker.datasets([DatasetVersion("annotations", str(folder / "labels.jsonl"), "a1", "training")])
    for number in range(1, 4):
        tracker.epoch(number, {"train.loss": 1 / number, "validation.score": 0.2 * number, "train.content": 0.3})
    if skill is None:
        tracker.fail("a loss is not finite")
        return tracker
    place = folder / name
    place.mkdir()
    figures = report(skill)
    (place / "comparison.json").write_text(json.dumps({"examined": "fusion", "systems": {"fusion": figures}}))
    tracker.figures(report_figures(figures))
    tracker.folder(place, "report")
    tracker.finish({}, {}, {}, {})
    assert tracker.error is None
    return tracker


def test_no_outputs_are_stored(repository: Path) -> None:
    """A stored output would carry somebody's data and paths into the repository."""
    notebook = nbformat.read(repository / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.integration
def test_runs_are_compared(repository: Path, tracking: TrackingConfig, tmp_path: Path) -> None:
    """Three runs, one of which failed: the settings that differ, all plots, figures and the gate's verdict."""
    import mlflow

    log_run(tracking, tmp_path, "small", 1e-4, 0.71234)
    better = log_run(tracking, tmp_path, "large", 2e-4, 0.85678)
    log_run(tracking, tmp_path, "broken", 2e-4, None)
    client = mlflow.MlflowClient(tracking_uri=tracking.uri)
    client.create_registered_model("vca-fusion")
    tags = {"vca.promotion": "champion", "vca.promotion.reason": "there was no champion"}
    client.create_model_version("vca-fusion", str(tmp_path / "artifacts"), better.run_id, tags=tags)

    images, text = run_notebook(repository, tracking.uri or "", tmp_path)
    assert len(images) == len(PLOTS)
    for image in images:
        assert image.startswith(b"\x89PNG")
        assert len(image) > 10_000  # an empty pair of axes is smaller
    assert "2 settings are the same, 1 differ" in text
    assert "train.lr_plm" in text
    assert "batch_windows" not in text
    assert "0.712" in text
    assert "0.857" in text
    assert "content.never" not in text
    assert "vca-fusion 1" in text
    assert "there was no champion" in text
    keep = os.environ.get("VCA_TEST_PICTURES")  # a folder, to look at them
    for name, image in zip(PLOTS, images, strict=True) if keep else ():
        (Path(keep or "") / f"{name.lower().replace(' ', '_')}.png").write_bytes(image)


@pytest.mark.integration
def test_an_experiment_without_runs_is_no_error(repository: Path, tracking: TrackingConfig, tmp_path: Path) -> None:
    """Before the first fine-tuning: the pictures say that there is nothing, the text what experiments there are."""
    log_run(tracking.model_copy(update={"experiment": "other"}), tmp_path, "elsewhere", 1e-4, None)
    images, text = run_notebook(repository, tracking.uri or "", tmp_path)
    assert len(images) == len(PLOTS)
    assert "no experiment 'demo-finetune'; known: " in text
    assert "other" in text


@pytest.mark.integration
def test_a_wrong_address_makes_no_database(repository: Path, tmp_path: Path) -> None:
    """MLflow would answer with an empty new database, and the reader would look for the runs that were there."""
    with pytest.raises(Exception, match=r"no MLflow database at sqlite:///.*; set VCA_TRACKING_URI"):
        run_notebook(repository, f"sqlite:///{tmp_path}/typo.db", tmp_path)
    assert not (tmp_path / "typo.db").exists()
