"""Which model tags tonight: the registry's champion, zero-shot, or one that is named.

The registry may be down at night. Then the model of the newest published run stays in force, or, where that was
zero-shot, zero-shot: a night must not change the model by accident.
"""

from dataclasses import dataclass
from pathlib import Path

from vca.core.errors import ConfigError
from vca.core.taxonomy import Taxonomy
from vca.media.output import Output
from vca.models.saved_model import read_card
from vca.models.tagger import check_taxonomies
from vca.pipelines.config import TagConfig, TrackingConfig
from vca.pipelines.model_store import local_folder, model_place
from vca.pipelines.promotion import RegisteredVersion
from vca.pipelines.registry import CHAMPION, fetch_model, find_version
from vca.pipelines.tracking import open_mlflow
from vca.tables.manifest import OutputReader
from vca.tables.query import query

ZEROSHOT, AUTO = "zeroshot", "auto"
JOINT = "+"
"""Between the trained model and the zero-shot tagger, which answers for labels that were not trained."""


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model of a run. Nothing is fetched yet."""

    model_version: str
    """As it is written into the tables."""
    note: str
    """One line for a person."""
    trained: str | None = None
    """Name of the trained model; None tags zero-shot."""
    registered: RegisteredVersion | None = None
    """Where to fetch it from; None: it lies in the output."""


def choose_model(
    config: TagConfig, output: Output, published: OutputReader, feature_set: str, zeroshot: str
) -> ChosenModel:
    """Decide by name only; writes nothing. Raises `ConfigError` for a model that cannot tag these features."""
    wanted = config.predict.model
    if wanted == ZEROSHOT:
        return ChosenModel(zeroshot, "zero-shot")
    if wanted != AUTO:
        return _check_features(_trained(wanted, zeroshot, "named by predict.model"), output, feature_set)
    name = config.predict.registered
    try:
        champion = _champion(name, config.tracking)
    except ConfigError as error:
        before = _published_model(published)
        if before is None:
            return ChosenModel(zeroshot, f"zero-shot: {error}")
        return _check_features(_trained(before, zeroshot, f"as in the newest run: {error}"), output, feature_set)
    if champion is None:
        return ChosenModel(zeroshot, f"zero-shot: the registry has no champion of {name!r}")
    if champion.feature_set != feature_set:
        raise _other_features(f"the champion {champion.uri}", champion.feature_set, feature_set)
    return _trained(champion.model_version, zeroshot, f"the champion, {champion.uri}", champion)


def place_model(chosen: ChosenModel, output: Output, taxonomy: Taxonomy, tracking: TrackingConfig) -> str | None:
    """Bring the model into the output, if it is not there, and check it whole. Returns its place there."""
    if chosen.trained is None:
        return None
    place = model_place(chosen.trained)
    if chosen.registered is not None:
        place = fetch_model(chosen.registered, output, tracking)
    with local_folder(output, place) as folder:
        check_taxonomies(read_card(folder).card.spec.taxonomy, taxonomy)
    return place


def _trained(name: str, zeroshot: str, why: str, registered: RegisteredVersion | None = None) -> ChosenModel:
    return ChosenModel(f"{name}{JOINT}{zeroshot}", f"{name}, {why}", name, registered)


def _champion(name: str, tracking: TrackingConfig) -> RegisteredVersion | None:
    """None without a registry, too. A SQLite file that is not there is not made by asking."""
    if not tracking.enabled:
        raise ConfigError("tracking.enabled is false, so there is no registry to ask")
    uri, prefix = open_mlflow(tracking).get_tracking_uri(), "sqlite:///"
    if uri.startswith(prefix) and not Path(uri[len(prefix) :]).exists():
        return None
    return find_version(name, CHAMPION, tracking)


def _published_model(published: OutputReader) -> str | None:
    """The trained model of the newest published run, None for zero-shot or no run."""
    if published.current() is None:
        return None
    rows = query(published, "SELECT model_version FROM runs ORDER BY run_id DESC LIMIT 1").column(0).to_pylist()
    return rows[0].partition(JOINT)[0] if rows and JOINT in str(rows[0]) else None


def _check_features(chosen: ChosenModel, output: Output, feature_set: str) -> ChosenModel:
    with local_folder(output, model_place(chosen.trained or "")) as folder:
        theirs = read_card(folder).card.spec.feature_set
    if theirs != feature_set:
        raise _other_features(f"the model {chosen.trained}", theirs, feature_set)
    return chosen


def _other_features(what: str, theirs: str, ours: str) -> ConfigError:
    return ConfigError(
        f"predict.model: {what} was trained on feature set {theirs}, this configuration makes {ours}; "
        "restore the settings of sampling and encoders, train on the new features, or set predict.model=zeroshot"
    )
