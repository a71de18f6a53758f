"""Trained models in the MLflow registry: registering, fetching, and the gate in front of the nightly job.

A model is an MLflow pyfunc model whose loader is the installed module `vca.pipelines.served` and whose data is the
model folder (JSON, YAML, safetensors): nothing is pickled and no code travels with it. The alias `candidate` is the
newest version, `champion` the one that tags. The registry is trusted to name a model, not to carry it: every file is
compared with the checksums of the version's tags.

Order of registering: artifacts, then the version with all its tags in one step, then the alias. What a failure leaves
is taken back, so a version is whole or absent.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import Field

from vca import __version__
from vca.core.config import Config, without_secrets
from vca.core.errors import ConfigError, VcaError, one_line
from vca.media.output import Output
from vca.models.saved_model import MODEL, WEIGHTS, read_card
from vca.models.weights import sha256_file
from vca.pipelines.config import TrackingConfig
from vca.pipelines.model_store import model_place, store_model
from vca.pipelines.promotion import GateConfig, RegisteredVersion, Trial, Verdict, promotion_tags, weigh
from vca.pipelines.served import example_rows, signature
from vca.pipelines.tracking import NOT_THERE, enter_experiment, open_mlflow

log = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"
LOADER = "vca.pipelines.served"
DATA = "model"
"""Name of the model folder inside the artifact's `data/`."""
_PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class RegistryConfig(Config):
    enabled: bool = True
    """Register the trained model. Without it the model stays in the output and is used by its path."""
    name: str = Field("vca-fusion", pattern=r"^[^/:]+$")
    """Name of the model in the MLflow registry."""
    gate: GateConfig = GateConfig()
    """When a new model becomes champion."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a version says about its model. All of it is metadata of the MLflow model."""

    model_version: str
    taxonomy_version: str
    feature_set: str
    preprocessing: str
    """Hash of how videos become windows."""
    weights_sha256: str
    step_us: int
    dims: tuple[int, int]
    """Widths of vision and audio features; 0: the model has no such modality."""
    thresholds: Mapping[str, float]
    """By `task.label`."""

    def tags(self) -> dict[str, str]:
        names = ("model_version", "taxonomy_version", "feature_set", "preprocessing", "weights_sha256")
        return {f"vca.{name}": str(getattr(self, name)) for name in names}

    def metadata(self) -> dict[str, Any]:
        thresholds = {name: float(value) for name, value in self.thresholds.items()}
        return self.tags() | {"vca.version": __version__, "vca.step_us": self.step_us, "vca.thresholds": thresholds}


def facts_of(folder: Path) -> ModelFacts:
    """Facts of a model folder. Raises `ConfigError` if the folder is damaged."""
    saved = read_card(folder)
    card, spec = saved.card, saved.card.spec
    return ModelFacts(
        model_version=card.model_version,
        taxonomy_version=spec.taxonomy.version,
        feature_set=spec.feature_set,
        preprocessing=card.preprocessing,
        weights_sha256=card.weights_sha256,
        step_us=spec.step_us,
        dims=tuple(0 if part is None else len(part.mean) for part in (spec.vision, spec.audio)),  # type: ignore[arg-type]
        thresholds=saved.calibration.thresholds(),
    )


@contextmanager
def mlflow_errors(doing: str, tracking: TrackingConfig) -> Iterator[None]:
    """Turn whatever MLflow's client raises inside the block into one `ConfigError` line. Keep the block small."""
    try:
        yield
    except VcaError:
        raise
    except Exception as error:  # what its stores raise: requests, SQLAlchemy, botocore
        server = tracking.uri or "MLFLOW_TRACKING_URI"
        reason = one_line(without_secrets(f"{type(error).__name__}: {error}"))
        raise ConfigError(
            f"tracking.uri = {server!r}: {doing} failed ({reason}); check that this MLflow server runs and has its "
            "artifacts, then try again"
        ) from error


def check_registry(registry: RegistryConfig, tracking: TrackingConfig) -> None:
    """Ask the registry for the name: before hours of training, a server that is down is a `ConfigError`."""
    if not tracking.enabled:
        raise ConfigError(
            "tracking.enabled = false: registering needs MLflow; set it to true or registry.enabled=false"
        )
    with mlflow_errors("asking for the registered models", tracking):
        open_mlflow(tracking).MlflowClient().search_registered_models(f"name = '{_quoted(registry.name)}'")


def _quoted(name: str) -> str:
    if "'" in name:
        raise ConfigError(f"registry.name = {name!r}: leave out the quote")
    return name


def log_and_register(
    folder: Path, facts: ModelFacts, name: str, tracking: TrackingConfig, run_id: str | None = None
) -> RegisteredVersion:
    """Log a model folder to MLflow and register it under `name` as the new `candidate`.

    `run_id` is the training's run; None opens one for this. Raises `ConfigError` with one line, and then neither a
    version nor an alias of it is left; the folder is as before.
    """
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)}
    with ExitStack() as undo:
        with mlflow_errors("registering the model", tracking):
            client = open_mlflow(tracking).MlflowClient()
            run = run_id or _open_run(client, tracking, facts, undo)
            model_id = _log_model(client, run, folder, facts, undo)
            _make_name(client, name, undo)
            made = client.create_model_version(
                name,
                f"models:/{model_id}",
                run,
                tags=facts.tags() | {"vca.files": json.dumps(files, sort_keys=True)},
                model_id=model_id,
            )
            undo.callback(_take_back, client.delete_model_version, name, made.version)
            client.set_registered_model_alias(name, CANDIDATE, made.version)
            if run_id is None:
                client.set_terminated(run)
        undo.pop_all()
    version = str(made.version)
    return RegisteredVersion(name, version, run, facts.model_version, facts.feature_set, facts.taxonomy_version, files)


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if not found:
        raise ConfigError(f"model {str(folder)!r}: no files there; give the folder of a trained model")
    return found


def _open_run(client: Any, tracking: TrackingConfig, facts: ModelFacts, undo: ExitStack) -> str:
    run = client.create_run(enter_experiment(tracking), run_name=f"register {facts.model_version}")
    undo.callback(_take_back, client.set_terminated, run.info.run_id, "FAILED")
    return str(run.info.run_id)


def _log_model(client: Any, run_id: str, folder: Path, facts: ModelFacts, undo: ExitStack) -> str:
    """The MLflow model of a run, complete and marked as ready; its id.

    Not `mlflow.pyfunc.log_model`: that loads the model to try the example, swallows what goes wrong, and acts on the
    active run of the thread.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=re.sub(r"[^A-Za-z0-9_-]", "-", facts.model_version),
        source_run_id=run_id,
        tags=facts.tags(),
        model_type="vca tagger",
    )
    undo.callback(_take_back, client.delete_logged_model, logged.model_id)
    with tempfile.TemporaryDirectory(prefix="vca-register-") as temporary:
        data = shutil.copytree(folder, Path(temporary, DATA))  # MLflow takes the name of the folder along
        place = Path(temporary, "packed")
        mlflow.pyfunc.save_model(
            path=str(place),
            loader_module=LOADER,
            data_path=str(data),
            mlflow_model=mlflow.models.Model(
                artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id
            ),
            signature=signature(),
            input_example=example_rows(facts.step_us, *facts.dims),
            pip_requirements=[f"vca=={__version__}"],
            metadata=facts.metadata(),
        )
        client.log_model_artifacts(logged.model_id, str(place))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def _make_name(client: Any, name: str, undo: ExitStack) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    else:
        undo.callback(_take_back, client.delete_registered_model, name)


def _take_back(call: Callable[..., object], *arguments: object) -> None:
    """One step of tidying up after a failure, which is what the user must hear about."""
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001  as in mlflow_errors; often the same server is down
        log.warning("could not tidy up %s: %s", arguments, one_line(without_secrets(str(error))))


def find_version(name: str, alias: str, tracking: TrackingConfig) -> RegisteredVersion | None:
    """The version that carries an alias; None if there is no such model or alias. Raises `ConfigError`."""
    with mlflow_errors(f"asking for the {alias} of {name}", tracking):
        from mlflow.exceptions import MlflowException

        client = open_mlflow(tracking).MlflowClient()
        try:
            found = client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in (NOT_THERE, "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
                return None
            raise
    return _described(found)


def resolve_champion(name: str, tracking: TrackingConfig) -> RegisteredVersion:
    """The version that tags. Raises `ConfigError` with the way out if there is none."""
    found = find_version(name, CHAMPION, tracking)
    if found is None:
        raise ConfigError(
            f"model: the registry has no champion of {name!r}; train one with `vca finetune`, "
            "or set predict.model=zeroshot"
        )
    return found


def _described(found: Any) -> RegisteredVersion:
    """From the tags, which anybody may have edited: names become paths in the output, so they are checked."""
    tags = dict(found.tags)
    what = f"model {found.name} version {found.version}"
    try:
        files = json.loads(tags["vca.files"])
        version = RegisteredVersion(
            name=str(found.name),
            version=str(found.version),
            run_id=str(found.run_id or ""),
            model_version=tags["vca.model_version"],
            feature_set=tags["vca.feature_set"],
            taxonomy_version=tags["vca.taxonomy_version"],
            files={str(file): str(checksum) for file, checksum in files.items()},
        )
    except (KeyError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{what}: its tag {one_line(str(error))} is missing or damaged, so vca did not register it as it is; "
            "register the model again with `vca finetune`"
        ) from error
    names = [version.model_version, *(part for name in version.files for part in name.split("/"))]
    bad = [name for name in names if not _PLAIN_NAME.match(name)]
    if bad or not version.files:
        raise ConfigError(f"{what}: its tags name {(bad or ['no file'])[0]!r}; register the model again")
    return version


def fetch_model(version: RegisteredVersion, output: Output, tracking: TrackingConfig) -> str:
    """Copy a version once into the output, so that workers never need MLflow. Its place, `models/<model_version>`.

    A model that lies there already, fetched or trained, is compared with the version and used; MLflow is not asked.
    Raises `ConfigError` for a server that is down, artifacts that are missing, and files that are not the registered.
    """
    place = model_place(version.model_version)
    if output.exists(f"{place}/{MODEL}"):
        _check_stored(version, output, place)
        return place
    with tempfile.TemporaryDirectory(prefix="vca-fetch-") as temporary:
        with mlflow_errors(f"fetching {version.uri}", tracking):
            mlflow = open_mlflow(tracking)
            local = mlflow.artifacts.download_artifacts(artifact_uri=version.uri, dst_path=temporary)
        folder = Path(local, "data", DATA)
        _check_files(version, folder)
        return store_model(output, folder, version.model_version)


def _check_stored(version: RegisteredVersion, output: Output, place: str) -> None:
    """Compare the small files. `model.json` holds the checksum of the weights, which is compared on loading, and notes
    about the training, which may differ between two trainings that gave the same model.
    """
    try:
        card = json.loads(output.read_bytes(f"{place}/{MODEL}"))
        same = (card["model_version"], card["weights_sha256"]) == (version.model_version, version.files[WEIGHTS])
        for name in sorted(version.files.keys() - {MODEL, WEIGHTS}):
            same = same and sha256(output.read_bytes(f"{place}/{name}")).hexdigest() == version.files[name]
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            f"output: {place} is not the model that {version.uri} registered; delete it to fetch the model again"
        )


def _check_files(version: RegisteredVersion, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{version.uri}: its artifacts hold no data/{DATA}; register the model again")
    found = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)}
    for name in sorted(found.keys() | version.files.keys()):
        if found.get(name) != version.files.get(name):
            what = "is missing" if name not in found else "is not what was registered (other sha256)"
            raise ConfigError(f"{version.uri}: {name} {what}; restore the artifact, or register the model again")


def promote(candidate: RegisteredVersion, trial: Trial, gate: GateConfig, tracking: TrackingConfig) -> Verdict:
    """Decide, record the decision on the version, and move the alias `champion` if it says so, figures first.

    Raises `ConfigError` if the registry does not answer, or if another model became champion since the trial. MLflow
    has no compare-and-set: two promotions within the same second can still cross.
    """
    verdict = weigh(trial, gate)
    champion = find_version(candidate.name, CHAMPION, tracking)
    expected, current = (None if c is None else c.version for c in (trial.champion, champion))
    if verdict.promoted and current != expected:
        raise ConfigError(
            f"model {candidate.name}: champion was version {expected or 'none'} when version {candidate.version} was "
            f"judged and is {current or 'none'} now; evaluate again"
        )
    with mlflow_errors("recording the decision", tracking):
        client = open_mlflow(tracking).MlflowClient()
        for name, value in promotion_tags(trial, gate, verdict).items():
            client.set_model_version_tag(candidate.name, candidate.version, name, value)
        if verdict.promoted:
            client.set_registered_model_alias(candidate.name, CHAMPION, candidate.version)
        outcome = "champion" if verdict.promoted else "not promoted"
        client.set_model_version_tag(candidate.name, candidate.version, "vca.promotion", outcome)
    return verdict
