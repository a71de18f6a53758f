"""MLflow: one run per job. Tracking may fail at any time; the night's tables never depend on it."""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vca.core.errors import one_line
from vca.pipelines.config import TrackingConfig

log = logging.getLogger(__name__)


class Tracker:
    """Logs one job to MLflow. After the first failure it stops trying and `error` says why.

    Every call to MLflow goes through `_try`: a broken tracking server is an expected failure here, of any type its
    client may raise, and it is reported in the run's summary.
    """

    def __init__(self, config: TrackingConfig, run_name: str) -> None:
        self._config = config
        self.run_id: str | None = None
        self.error: str | None = None
        if config.enabled:
            self._try("start", lambda: self._start(run_name))

    @property
    def state(self) -> str:
        """One line for the summary."""
        if not self._config.enabled:
            return "off"
        if self.error is not None:
            return f"FAILED, tables are published all the same ({self.error})"
        uri = self._config.uri or ""
        store = f"; mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else ""
        return f"run {self.run_id} in experiment {self._config.experiment}{store}"

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log the resolved configuration, flattened to dotted names."""
        self._try("parameters", lambda: self._mlflow().log_params(_flat(values)))

    def progress(self, metrics: Mapping[str, float], step: int) -> None:
        self._try("progress", lambda: self._mlflow().log_metrics(dict(metrics), step=step))

    def finish(
        self,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        tables: Mapping[str, str],
    ) -> None:
        """Close the run: figures, text artifacts by file name, and the published tables as datasets (name to URI)."""
        self._try("finish", lambda: self._finish(metrics, tags, artifacts, tables), last=True)

    def _try(self, what: str, call: Callable[[], object], last: bool = False) -> None:
        """After a failure only the closing call is tried once more: it holds what matters."""
        if not self._config.enabled or (self.error is not None and not (last and self.run_id is not None)):
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001  see the class
            self.error = one_line(f"{what}: {type(error).__name__}: {error}")
            log.warning("tracking failed: %s", self.error)

    def _mlflow(self) -> Any:
        import mlflow

        return mlflow

    def _start(self, run_name: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, int(self._config.timeout_s))))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        mlflow = self._mlflow()
        for name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.ERROR)
        if self._config.uri is not None:
            mlflow.set_tracking_uri(self._config.uri)
        name, artifacts = self._config.experiment, self._config.artifact_uri
        if artifacts is not None and mlflow.get_experiment_by_name(name) is None:
            mlflow.create_experiment(name, artifacts if "://" in artifacts else Path(artifacts).absolute().as_uri())
        mlflow.set_experiment(name)
        self.run_id = mlflow.start_run(run_name=run_name).info.run_id

    def fail(self, reason: str) -> None:
        """Close the run as failed: nothing was published."""
        self._try("fail", lambda: self._fail(reason), last=True)

    def _fail(self, reason: str) -> None:
        mlflow = self._mlflow()
        mlflow.set_tag("vca.error", reason)
        mlflow.end_run("FAILED")

    def _finish(
        self,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        tables: Mapping[str, str],
    ) -> None:
        mlflow = self._mlflow()
        mlflow.log_metrics(dict(metrics))
        mlflow.set_tags(dict(tags))
        with tempfile.TemporaryDirectory() as folder:
            for name, text in artifacts.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            mlflow.log_artifacts(folder)
        self._log_tables(tables, tags["vca.run_id"])
        mlflow.end_run("FINISHED")

    def _log_tables(self, tables: Mapping[str, str], digest: str) -> None:
        """The published tables as datasets; the run id is their digest, since published files never change."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        for name, uri in tables.items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
                source = resolve_dataset_source(uri)
            dataset = MetaDataset(source=source, name=name, digest=digest)  # type: ignore[abstract]
            self._mlflow().log_input(dataset, context="published")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
