"""A folder of weights from a stranger is data: no loader runs code of it, unpickles it, or reads outside of it."""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from tests.support.fusion_cases import TAXONOMY, config, spec
from tests.support.runs import REPOSITORY
from tests.support.tiny_models import save_tiny
from vca.core.errors import ConfigError
from vca.models.calibration import uncalibrated
from vca.models.fusion_tagger import FusionTagger
from vca.models.learning import build_learner, trainable_state
from vca.models.plm import PlmConfig, load_plm, plm_definition
from vca.models.saved_model import save_model
from vca.models.speech import SpeechConfig, SpeechReader
from vca.models.text import TextModel, TextModelConfig, text_definition
from vca.models.vision import VisionConfig, build_vision, vision_definition
from vca.models.weights import resolve_weights

pytestmark = pytest.mark.integration

STEP_US = 500_000


class Payload:
    """Unpickling it makes the marker."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._marker),)


def _save_vision(folder: Path) -> None:
    config = hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    hf.Dinov2Model(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
    _edit(folder, "preprocessor_config.json", image_processor_type="BitImageProcessor", **settings)


def _vision(folder: Path) -> None:
    config = VisionConfig(kind="huggingface", model=str(folder), device="cpu")
    vision_definition(config, STEP_US)
    build_vision(config, STEP_US)


def _plm(folder: Path) -> None:
    config = PlmConfig(model=str(folder))
    plm_definition(config)
    load_plm(config)


def _text(folder: Path) -> None:
    config = TextModelConfig(model=str(folder), max_tokens=32, device="cpu")
    text_definition(config)
    TextModel(config)


LOADERS: dict[str, Callable[[Path], None]] = {
    "text": _text,
    "text in a worker": lambda folder: TextModel(TextModelConfig(model=str(folder), max_tokens=32)) and None,
    "plm": _plm,
    "plm in a worker": lambda folder: load_plm(PlmConfig(model=str(folder))) and None,
    "vision": _vision,
    "speech": lambda folder: SpeechReader(SpeechConfig(asr_model=str(folder), device="cpu")) and None,
}
"""Every way to pretrained weights; workers load without asking for the identity first."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that the loaders take (the one for speech stops at the kind of model, after everything was looked at)."""
    base = tmp_path_factory.mktemp("sound")
    _save_vision(base / "vision")
    save_tiny(base / "text", "bert")
    return lambda loader: base / ("vision" if loader == "vision" else "text")


def _edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


def _code(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass C: pass\n")
    classes = ["AutoConfig", "AutoModel", "AutoModelForSpeechSeq2Seq", "AutoTokenizer", "AutoImageProcessor"]
    auto: dict[str, Any] = dict.fromkeys([*classes, "AutoFeatureExtractor", "AutoProcessor"], "evil.C")
    auto["AutoTokenizer"] = ["evil.C", None]
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        _edit(folder, name, auto_map=auto, trust_remote_code=True)


def _code_only(folder: Path, marker: Path) -> None:
    _code(folder, marker)
    _edit(folder, "config.json", model_type="evil", architectures=["C"])


def _pickled(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    _pickle_beside(folder, marker)


def _pickle_beside(folder: Path, marker: Path) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt", "training_args.bin", "scaler.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))


def _renamed_pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))


def _index_to_pickle(folder: Path, marker: Path) -> None:
    _pickle_beside(folder, marker)
    names = {"embeddings.word_embeddings.weight": "pytorch_model.bin"}
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    _edit(folder, "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=names)


def _index_outside(folder: Path, marker: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    names = {"embeddings.word_embeddings.weight": "../outside.safetensors"}
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    _edit(folder, "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=names)


def _adapter(folder: Path, marker: Path) -> None:
    _pickle_beside(folder, marker)
    shutil.copytree(folder, folder.parent / "elsewhere")
    base = str(folder.parent / "elsewhere")
    _edit(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path=base, target_modules=["query"])


def _foreign_kernel(folder: Path, marker: Path) -> None:
    _edit(folder, "config.json", text_config={"_attn_implementation": {"": "kernels-community/evil"}})


def _safetensors(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)


def _huge_header(folder: Path, marker: Path) -> None:
    _safetensors(folder, struct.pack("<Q", 2**63 - 1) + b"{}")


def _long_header(folder: Path, marker: Path) -> None:
    _safetensors(folder, struct.pack("<Q", 90_000_000) + b"{}")


def _offsets_behind_the_end(folder: Path, marker: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({"embeddings.word_embeddings.weight": entry}).encode()
    _safetensors(folder, struct.pack("<Q", len(header)) + header + bytes(64))


def _nested_header(folder: Path, marker: Path) -> None:
    header = b'{"a":' * 100_000
    _safetensors(folder, struct.pack("<Q", len(header)) + header)


REFUSED: dict[str, Callable[[Path, Path], None]] = {
    "only its own code": _code_only,
    "a pickle": _pickled,
    "a pickle under the name of safetensors": _renamed_pickle,
    "an index that leads to a pickle": _index_to_pickle,
    "an index that leads out of the folder": _index_outside,
    "an adapter that names another model": _adapter,
    "kernels from elsewhere": _foreign_kernel,
    "a header without end": _huge_header,
    "a header longer than the file": _long_header,
    "tensors behind the end": _offsets_behind_the_end,
    "a header nested without end": _nested_header,
}
HARMLESS: dict[str, Callable[[Path, Path], None]] = {
    "code beside a known kind": _code,
    "pickles beside the weights": _pickle_beside,
}


@pytest.fixture
def folder(tmp_path: Path, loader: str, sound: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(sound(loader), tmp_path / "inside" / "model"))


@pytest.mark.parametrize("loader", sorted(LOADERS))
@pytest.mark.parametrize("attack", sorted(REFUSED))
def test_hostile_folders_are_refused(folder: Path, tmp_path: Path, attack: str, loader: str) -> None:
    """One line that names the field, no traceback, nothing run, nothing unpickled."""
    marker = tmp_path / "executed"
    REFUSED[attack](folder, marker)
    with pytest.raises(ConfigError) as caught:
        LOADERS[loader](folder)
    assert "\n" not in str(caught.value)
    assert re.match(r"(encoders|predict|fusion)\.[a-z_.]+( = |:)", str(caught.value)), str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("loader", sorted(LOADERS))
@pytest.mark.parametrize("attack", sorted(HARMLESS))
def test_what_lies_beside_the_weights_is_left_alone(folder: Path, tmp_path: Path, attack: str, loader: str) -> None:
    """Code and pickles beside good weights are never touched; the model loads, or is refused for its kind."""
    marker = tmp_path / "executed"
    HARMLESS[attack](folder, marker)
    if loader == "speech":
        with pytest.raises(ConfigError, match=r"encoders\.speech\.asr_model"):
            LOADERS[loader](folder)
    else:
        LOADERS[loader](folder)
    assert not marker.exists()


@pytest.mark.parametrize("attack", ["a pickle", "a long header", "tensors behind the end", "another language model"])
def test_hostile_trained_models_are_refused(tmp_path: Path, attack: str) -> None:
    """Whoever forges a trained model fits its checksums too: what is inside is still only data, or one line."""
    save_tiny(tmp_path / "plm", "bert")
    fusion, folder, marker = config(str(tmp_path / "plm")), tmp_path / "model", tmp_path / "executed"
    state = trainable_state(build_learner(fusion, spec(), seed=0))
    save_model(folder, fusion, spec(), state, uncalibrated(TAXONOMY), {})
    _pickle_beside(folder, marker)
    assert FusionTagger(folder, "cpu") is not None, "files beside the model are of no interest"
    card = json.loads((folder / "model.json").read_text())
    if attack == "another language model":
        _pickled(tmp_path / "plm", marker)
    else:
        weights = folder / "weights.safetensors"
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        weights.write_bytes(
            {
                "a pickle": pickle.dumps(Payload(marker)),
                "a long header": struct.pack("<Q", 2**62) + b"{}",
                "tensors behind the end": struct.pack("<Q", len(header)) + header,
            }[attack]
        )
        card["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError) as caught:
        FusionTagger(folder, "cpu")
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_pickle_would_have_worked(tmp_path: Path) -> None:
    """The tests above can fail: whoever unpickles the payload makes the marker."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def test_a_plain_index_is_taken(tmp_path: Path) -> None:
    """Large models come in several files with an index; only those that lead elsewhere are refused."""
    save_tiny(tmp_path, "bert")
    weights = hf.BertModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert resolve_weights(str(tmp_path), "f") == str(tmp_path)
    load_plm(PlmConfig(model=str(tmp_path)))


FORBIDDEN = {
    r"trust_remote_code\W+True": "code from a checkpoint",
    r"\b(c?[pP]ickle|dill|joblib|cloudpickle|marshal|shelve)\.(load|loads|Unpickler)\b": "unpickling",
    r"\bimport (pickle|dill|joblib|cloudpickle|marshal|shelve)\b": "unpickling",
    r"\btorch\.(load|hub|jit\.load)\b": "torch.load unpickles",
    r"allow_pickle\s*=\s*True": "NumPy's pickles",
    r"\b(np|numpy)\.load\(": "NumPy's loader, whose headers may ask for any memory",
    r"\byaml\.(load|unsafe_load|full_load)\(": "YAML that makes objects",
    r"(?<![\w.])(eval|exec)\(": "running text",
    r"shell\s*=\s*True|os\.(system|popen)\(": "a shell",
    r"code_paths?\s*=": "code inside an MLflow model",
}


def test_our_code_never_asks_for_it() -> None:
    """No unpickling, no code from models, no shell, nowhere in what is shipped."""
    files = [path for room in ("vca", "jobs", "benchmarks") for path in (REPOSITORY / room).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        text = path.read_text(encoding="utf-8")
        for pattern, what in FORBIDDEN.items():
            assert not re.search(pattern, text), f"{path}: {what}"


def test_every_loader_says_so() -> None:
    """Each `from_pretrained` passes `trust_remote_code=False`, and each one that loads weights asks for safetensors."""
    for path in (REPOSITORY / "vca").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in re.finditer(r"AutoModel\w*\.from_pretrained\((?P<arguments>[^)]*\)?[^)]*)\)", text):
            assert "use_safetensors=True" in call["arguments"], f"{path}: {call[0]}"
        if "from_pretrained(" in text and "transformers" in text:
            assert '"trust_remote_code": False' in text or "checkpoint.arguments()" in text, path
