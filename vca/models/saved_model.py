"""A trained model as one folder: saved together, loaded together, and refused if anything in it does not fit.

`model.json` says what the model is, `weights.safetensors` holds what was trained, `taxonomy.yaml` its label space,
`calibration.json` how its scores become probabilities and decisions. The pretrained language model is not in it: it is
named with its checksum. Nothing here is pickled and no code comes with a model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from vca.core.config import Config, build_config, parse_yaml
from vca.core.errors import ConfigError, one_line
from vca.core.identity import canonical_json, digest
from vca.core.taxonomy import Taxonomy
from vca.models.calibration import Calibration
from vca.models.fusion_config import FusionConfig, FusionSpec
from vca.models.fusion_inputs import RULES
from vca.models.plm import plm_definition
from vca.models.weights import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

    from vca.models.fusion import FusionModel

MODEL, WEIGHTS, TAXONOMY, CALIBRATION = "model.json", "weights.safetensors", "taxonomy.yaml", "calibration.json"
FILES = (MODEL, WEIGHTS, TAXONOMY, CALIBRATION)


class ModelCard(Config):
    """`model.json`. Everything that shapes what the model says is in `model_version`."""

    format: Literal[1] = 1
    model_version: str = Field(min_length=1)
    """Name of the model: a hash of all below, the weights and the calibration."""
    fusion: FusionConfig
    """How the model is built."""
    spec: FusionSpec
    """What it was made for: taxonomy, feature set, grid."""
    plm: dict[str, Any]
    """Identity of the pretrained language model."""
    preprocessing: str
    """Hash of how videos become windows; a program with other rules refuses the model."""
    weights_sha256: str
    """Of `weights.safetensors`."""
    trained_on: dict[str, Any] = Field(default_factory=dict)
    """Where it comes from: annotations, run, figures. For people; nothing depends on it."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model folder that was read and checked."""

    folder: Path
    card: ModelCard
    calibration: Calibration


def preprocessing_hash(fusion: FusionConfig, spec: FusionSpec) -> str:
    """What must be equal for a window to mean the same in training and in tagging."""
    return digest(
        "preprocessing",
        str(RULES),
        canonical_json(fusion.inputs.model_dump(mode="json")),
        str(spec.step_us),
        spec.feature_set,
    )


def save_model(
    folder: Path,
    fusion: FusionConfig,
    spec: FusionSpec,
    state: Mapping[str, "Tensor"],
    calibration: Calibration,
    trained_on: Mapping[str, Any],
) -> ModelCard:
    """Write the folder, `model.json` last."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / WEIGHTS)
    (folder / TAXONOMY).write_text(_taxonomy_yaml(spec.taxonomy), encoding="utf-8")
    (folder / CALIBRATION).write_text(calibration.model_dump_json(indent=2), encoding="utf-8")
    identity = {
        "fusion": fusion.model_dump(mode="json"),
        "spec": spec.model_dump(mode="json"),
        "plm": plm_definition(fusion.plm),
        "preprocessing": preprocessing_hash(fusion, spec),
        "weights_sha256": sha256_file(folder / WEIGHTS),
    }
    version = digest("fusion model", canonical_json(identity), canonical_json(calibration.model_dump(mode="json")))
    values = identity | {"model_version": f"fusion-{version[:12]}", "trained_on": dict(trained_on)}
    card = build_config(ModelCard, values, MODEL)
    (folder / MODEL).write_text(card.model_dump_json(indent=2), encoding="utf-8")
    return card


def read_card(folder: Path) -> SavedModel:
    """Read and check everything but the tensors. Raises `ConfigError` naming the file and the way out."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"model {str(folder)!r}: {', '.join(missing)} is missing; copy the whole folder again")
    card = build_config(ModelCard, _json(folder / MODEL), str(folder / MODEL))
    calibration = build_config(Calibration, _json(folder / CALIBRATION), str(folder / CALIBRATION))
    taxonomy_text = (folder / TAXONOMY).read_text("utf-8")
    if build_config(Taxonomy, parse_yaml(taxonomy_text, TAXONOMY), TAXONOMY) != card.spec.taxonomy:
        raise ConfigError(f"model {str(folder)!r}: {TAXONOMY} is not that of {MODEL}; copy the whole folder again")
    if sha256_file(folder / WEIGHTS) != card.weights_sha256:
        raise ConfigError(f"model {str(folder)!r}: {WEIGHTS} is damaged (other sha256); copy the folder again")
    if preprocessing_hash(card.fusion, card.spec) != card.preprocessing:
        raise ConfigError(
            f"model {str(folder)!r}: made by another version of vca, which cut videos differently; train again"
        )
    return SavedModel(folder, card, calibration)


def load_weights_into_model(saved: SavedModel) -> "FusionModel":
    """The model in evaluation mode. Raises `ConfigError` for weights, or a language model, that do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from vca.models.fusion import FusionModel
    from vca.models.learning import load_weights

    here = plm_definition(saved.card.fusion.plm)
    if here != saved.card.plm:
        raise ConfigError(
            f"model {saved.card.model_version}: it was trained on other weights of {saved.card.fusion.plm.model}; "
            "bring back those, or train again"
        )
    model = FusionModel(saved.card.fusion, saved.card.spec)
    try:
        load_weights(model, load_file(saved.folder / WEIGHTS))
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"model {saved.card.model_version}: {one_line(str(error))}; copy the folder again") from error
    return model.eval().requires_grad_(False)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({one_line(str(error))}); copy the model folder again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object; copy the model folder again")
    return value


def _taxonomy_yaml(taxonomy: Taxonomy) -> str:
    values = taxonomy.model_dump(mode="json")
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
