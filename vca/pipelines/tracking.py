"""MLflow: one run per job. Tracking may fail at any time; the night's tables never depend on it."""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vca.core.config import without_secrets
from vca.core.errors import one_line
from vca.pipelines.config import TrackingConfig

log = logging.getLogger(__name__)


class Tracker:
    """Logs one job to MLflow. After the first failure it stops trying and `error` says why.

    Every call to MLflow goes through `_try`: a broken tracking server is an expected failure here, of any type its
    client may raise, and it is reported in the run's summary.
    """

    def __init__(self, config: TrackingConfig, run_name: str, resume: str | None = None) -> None:
        """Opens the run. `resume` is the MLflow id of a run to go on with; one that is gone gives way to a new one."""
        self._config = config
        self._run_name = run_name
        self._resume = resume
        self.run_id: str | None = None
        self.error: str | None = None
        if config.enabled:
            self._try("start", self._start)

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
        self._try("parameters", lambda: self._mlflow().log_params(flatten(values)))

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

    def _try(self, what: str, call: Callable[[], object], last: bool = False) -> bool:
        """Whether it worked. After a failure only the closing call is tried once more: it holds what matters."""
        if not self._config.enabled or (self.error is not None and not (last and self.run_id is not None)):
            return False
        try:
            call()
        except Exception as error:  # noqa: BLE001  see the class
            if self.error is None:  # the closing call fails for the same reason, which the log needs once
                self.error = one_line(without_secrets(f"{what}: {type(error).__name__}: {error}"))
                log.warning("tracking failed: %s", self.error)
            return False
        return True

    def _mlflow(self) -> Any:
        import mlflow

        return mlflow

    def _start(self) -> None:
        mlflow = open_mlflow(self._config)
        enter_experiment(self._config)
        if self._resume is not None and self._is_known(self._resume):
            self.run_id = mlflow.start_run(run_id=self._resume).info.run_id
        else:
            self.run_id = mlflow.start_run(run_name=self._run_name).info.run_id

    def _is_known(self, run_id: str) -> bool:
        mlflow = self._mlflow()
        try:
            return bool(mlflow.MlflowClient().get_run(run_id).info.lifecycle_stage == "active")
        except mlflow.exceptions.MlflowException as error:
            if error.error_code == NOT_THERE:
                return False
            raise

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Close the run as failed if the block raises."""
        try:
            yield
        except BaseException as error:
            self.fail(type(error).__name__)
            raise

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
        for name, uri in tables.items():
            # The run id serves as the digest, since published files never change.
            log_dataset(name, uri, tags["vca.run_id"], "published")
        mlflow.end_run("FINISHED")


NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
"""Code of MLflow's error for what it does not know."""


def open_mlflow(config: TrackingConfig) -> Any:
    """The package `mlflow`, pointed at the configured server: quiet, with short timeouts. Contacts nothing."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, int(config.timeout_s))))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    if config.uri is not None:
        mlflow.set_tracking_uri(config.uri)
    return mlflow


def enter_experiment(config: TrackingConfig) -> str:
    """Id of the configured experiment, made if it does not exist, active from now on. Call `open_mlflow` first."""
    import mlflow

    name, place = config.experiment, config.artifact_uri
    if place is not None and mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, place if "://" in place else Path(place).absolute().as_uri())
    return str(mlflow.set_experiment(name).experiment_id)


def log_dataset(name: str, uri: str, digest: str, context: str) -> None:
    """Log a dataset by name, place and version (at most 36 characters) as an input of the active run."""
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
        source = resolve_dataset_source(uri)
    dataset = MetaDataset(source=source, name=name, digest=digest)  # type: ignore[abstract]
    mlflow.log_input(dataset, context=context)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
