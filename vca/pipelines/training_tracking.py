"""The record of a training run in MLflow: settings, curves, dataset versions, figures, the report.

Tracking may fail at any time: the trained model lies in the output and never depends on it. What could not be sent is
kept and sent when the run is closed. Registering a model is another matter, see `vca.pipelines.registry`.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vca.pipelines.config import TrackingConfig
from vca.pipelines.tracking import Tracker, flatten, log_dataset

METRICS_PER_REQUEST = 1000  # limit of MLflow's REST interface
DIGEST_LIMIT = 36  # characters that MLflow keeps of a dataset's digest


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A version of something that a model was made from or judged on."""

    name: str
    """Such as `annotations` or `features`."""
    uri: str
    """Where it lies."""
    digest: str
    """Its version: `annotation_version(truths)`, a feature set."""
    context: str
    """What it was used for: `training`, `test`."""


def report_figures(report: Mapping[str, Any], prefix: str = "test") -> dict[str, float]:
    """Figures of an evaluation report (`Report.to_dict`) under names for `TrainingTracker.figures`.

    Headline figures with their intervals as `.low` and `.high`, and F1 and AP of every label, so that the MLflow UI can
    sort and compare runs by any of them. Undefined figures are left out.
    """
    figures: dict[str, float | None] = {}
    for name, found in {"score": report["score"], **report["headline"]}.items():
        figures |= {name: found["value"], f"{name}.low": found["low"], f"{name}.high": found["high"]}
    for task, details in report["tasks"].items():
        for label, found in details["labels"].items():
            ap = found.get("ap")
            figures[f"{task}.labels.{label}.f1"] = found["at_decision"]["f1"]
            figures[f"{task}.labels.{label}.ap"] = ap.get("0.5") if isinstance(ap, Mapping) else ap
    return {f"{prefix}.{name}": float(value) for name, value in figures.items() if value is not None}


class TrainingTracker(Tracker):
    """A `Tracker` for a run that lasts hours and may be started again.

    Give the `run_id` of the first start as `resume`: the curves go on in the same MLflow run.
    """

    def __init__(self, config: TrackingConfig, run_name: str, resume: str | None = None) -> None:
        self._waiting: list[tuple[str, Callable[[], object]]] = []
        super().__init__(config, run_name, resume)

    @property
    def state(self) -> str:
        """One line for the summary."""
        if self.error is not None:
            return f"FAILED, the model is kept all the same ({self.error})"
        return super().state

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log the resolved configuration, flattened to dotted names. A run that goes on keeps its first values."""
        self._send("parameters", lambda: self._log_new_parameters(flatten(values)))

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """A point of every curve, such as `train.loss` and `validation.score`."""
        self._send("curves", self._points(metrics, number))

    def datasets(self, versions: Sequence[DatasetVersion]) -> None:
        """The data as inputs of the run, by version."""

        def send() -> None:
            for version in versions:
                log_dataset(version.name, version.uri, version.digest[:DIGEST_LIMIT], version.context)

        self._send("datasets", send)

    def folder(self, path: Path, place: str = "") -> None:
        """All files of a folder as artifacts below `place`. Keep the folder until the run is closed."""
        self._send("artifacts", lambda: self._mlflow().log_artifacts(str(path), place or None))

    def figures(self, values: Mapping[str, float]) -> None:
        """Results without a time axis, such as the headline numbers of the evaluation."""
        self._send("figures", self._points(values, 0))

    def finish(
        self,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        tables: Mapping[str, str],
    ) -> None:
        """Send what is still waiting and close the run. What failed earlier and works now is no error any more."""
        self._send_the_rest()
        super().finish(metrics, tags, artifacts, tables)

    def fail(self, reason: str) -> None:
        """Close the run as failed: there is no new model. Its curves are kept."""
        self._send_the_rest()
        super().fail(reason)

    def _send(self, what: str, call: Callable[[], object]) -> None:
        if self._config.enabled:
            self._waiting.append((what, call))
            self._drain()

    def _drain(self) -> None:
        while self._waiting and self._try(*self._waiting[0]):
            del self._waiting[0]

    def _send_the_rest(self) -> None:
        if self.error is not None:
            self.error = None
            if self.run_id is None:  # the server was down when training began
                self._try("start", self._start)
        self._drain()

    def _points(self, metrics: Mapping[str, float], step: int) -> Callable[[], None]:
        """A call that logs metrics with the time of now, whenever it is made."""
        at_ms = int(time.time() * 1000)
        values = {name: float(value) for name, value in metrics.items()}

        def send() -> None:
            from mlflow.entities import Metric

            points = [Metric(name, value, at_ms, step) for name, value in values.items()]
            client = self._mlflow().MlflowClient()
            for first in range(0, len(points), METRICS_PER_REQUEST):
                client.log_batch(self.run_id, metrics=points[first : first + METRICS_PER_REQUEST])

        return send

    def _log_new_parameters(self, values: Mapping[str, str]) -> None:
        """MLflow refuses to change a parameter, so of a run that goes on only the new ones are sent."""
        mlflow = self._mlflow()
        known = mlflow.MlflowClient().get_run(self.run_id).data.params
        changed = {name: value for name, value in values.items() if known.get(name, value) != value}
        mlflow.log_params({name: value for name, value in values.items() if name not in known})
        if changed:
            mlflow.set_tag("vca.changed_on_resume", json.dumps(changed, sort_keys=True)[:TAG_LIMIT])


TAG_LIMIT = 5000  # MLflow's stores take at least this much in a tag
