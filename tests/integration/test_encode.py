"""All encoders behind one call, and the identity of a feature set."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from vca.core.config import build_config
from vca.core.errors import ConfigError
from vca.core.identity import feature_set_id
from vca.core.records import BoolArray, FloatArray
from vca.core.schemas import TextSource
from vca.models.encode import EncodersConfig, SegmentEncoder, feature_definition
from vca.models.vision import vision_needs

pytestmark = pytest.mark.integration

STEP_US = 500_000
STEPS = 8
START_US = 60_000_000


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The encoder sets the thread count of the process; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder() -> SegmentEncoder:
    return SegmentEncoder(EncodersConfig(), STEP_US)


def arrays() -> dict[str, Any]:
    """A segment of four seconds with picture, sound and a caption."""
    needs = vision_needs(EncodersConfig().vision, STEP_US)
    assert needs is not None
    rng = np.random.default_rng(0)
    caption = Image.new("RGB", (640, 360), (20, 30, 60))
    ImageDraw.Draw(caption).text((60, 300), "Live from Geneva", font=ImageFont.load_default(size=32), fill="white")
    n_frames = STEPS * needs.frames_per_step
    return {
        "frames": rng.integers(0, 256, (n_frames, needs.frame_size, needs.frame_size, 3), dtype=np.uint8),
        "frame_mask": np.ones(n_frames, np.bool_),
        "audio": rng.normal(0, 0.05, STEPS * STEP_US * 16 // 1000).astype(np.float32),
        "audio_mask": np.ones(STEPS, np.bool_),
        "ocr_frames": np.asarray(caption)[None],
        "ocr_spans": np.array([[START_US, START_US + 4_000_000]]),
        "start_us": START_US,
    }


def test_whole_segment(encoder: SegmentEncoder) -> None:
    """One row per step and modality, half precision, text on the video's clock."""
    result = encoder(**arrays())
    assert result.vision is not None
    assert result.audio is not None
    assert str(result.vision.dtype) == str(result.audio.dtype) == "float16"
    assert len(result.vision) == len(result.audio) == STEPS
    assert result.vision_mask is not None
    assert result.vision_mask.all()
    assert [(p.source, p.text, p.start_us) for p in result.text] == [(TextSource.OCR, "Live from Geneva", START_US)]


def test_reruns_are_equal(encoder: SegmentEncoder) -> None:
    """The same arrays give the same row, bit for bit: retries write doublets, not variants."""
    first, second = encoder(**arrays()), encoder(**arrays())
    assert first.vision is not None
    assert first.audio is not None
    np.testing.assert_array_equal(first.vision, second.vision)
    np.testing.assert_array_equal(first.audio, second.audio)
    assert first.text == second.text


@pytest.mark.parametrize("absent", ["frames", "audio", "ocr_frames"])
def test_absent_modality(encoder: SegmentEncoder, absent: str) -> None:
    """A stream the video does not have is None in the result and leaves the others as they were."""
    full, part = encoder(**arrays()), encoder(**{**arrays(), absent: None})
    assert (part.vision is None) == (part.vision_mask is None) == (absent == "frames")
    assert (part.audio is None) == (part.audio_mask is None) == (absent == "audio")
    assert (part.text == []) == (absent == "ocr_frames")
    if absent != "frames":
        np.testing.assert_array_equal(part.vision, full.vision)
    if absent != "audio":
        np.testing.assert_array_equal(part.audio, full.audio)


def test_nothing_decoded(encoder: SegmentEncoder) -> None:
    """Streams that exist but gave no frame are absent, not rows of zeros."""
    values = arrays()
    values["frame_mask"] = np.zeros_like(values["frame_mask"])
    values["audio_mask"] = np.zeros_like(values["audio_mask"])
    result = encoder(**{**values, "ocr_frames": None, "ocr_spans": None})
    assert (result.vision, result.audio, result.text) == (None, None, [])


def test_partly_decoded(encoder: SegmentEncoder) -> None:
    """Steps without a frame are masked out, the rest keeps its values."""
    values = arrays()
    values["frame_mask"] = values["frame_mask"].copy()
    values["frame_mask"][len(values["frame_mask"]) // 2 :] = False
    result, full = encoder(**values), encoder(**arrays())
    assert result.vision_mask is not None
    assert result.vision_mask.tolist() == [True] * (STEPS // 2) + [False] * (STEPS // 2)
    assert result.vision is not None
    assert full.vision is not None
    np.testing.assert_array_equal(result.vision[0], full.vision[0])


class Odd:
    """A pretrained encoder whose half precision went wrong in some steps."""

    dim = 3

    def __init__(self, values: list[float]) -> None:
        self.values = np.tile(np.array(values, np.float32)[:, None], (1, self.dim))
        self.values[:, 0] = 1.0

    def encode(self, *_: object) -> tuple[FloatArray, BoolArray]:
        return self.values.copy(), np.ones(len(self.values), np.bool_)


@pytest.mark.parametrize("modality", ["vision", "audio"])
def test_values_that_half_precision_cannot_hold(
    encoder: SegmentEncoder, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    """An odd value costs its own step at most: not the segment, and not the night, for it comes again every night."""
    monkeypatch.setattr(encoder, f"_{modality}", Odd([0.5, 1e6, -1e6, 65519.0, np.nan, np.inf, -np.inf, 0.0]))
    result = encoder(**arrays())
    values, mask = getattr(result, modality), getattr(result, f"{modality}_mask")
    assert mask.tolist() == [True] * 4 + [False] * 3 + [True]
    assert values[:, 1].tolist() == [0.5, 65504.0, -65504.0, 65504.0, 0.0, 0.0, 0.0, 0.0]
    assert values[mask, 0].tolist() == [1.0] * 5
    monkeypatch.setattr(encoder, f"_{modality}", Odd([np.nan] * STEPS))
    result = encoder(**arrays())
    assert getattr(result, modality) is getattr(result, f"{modality}_mask") is None


def test_everything_off() -> None:
    """All encoders can be switched off; the call then returns an empty row and loads nothing."""
    values = {name: {"kind": "none"} for name in ("vision", "audio", "ocr")} | {"speech": {"vad": "none"}}
    result = SegmentEncoder(build_config(EncodersConfig, values, "test"), STEP_US)(**arrays())
    assert (result.vision, result.audio, result.text) == (None, None, [])


def test_threads_are_set() -> None:
    """The process runs with the configured number of threads, whatever the libraries set when loaded."""
    SegmentEncoder(EncodersConfig.model_validate({"threads": 2}), STEP_US)
    assert torch.get_num_threads() == 2
    SegmentEncoder(EncodersConfig(), STEP_US)
    assert torch.get_num_threads() == 1


def test_feature_set_follows_what_shapes_features() -> None:
    """Every setting that changes features changes the id; those that only change speed do not."""

    def identity(
        values: dict[str, Any], step_us: int = STEP_US, segment_us: int = 60_000_000, mode: str = "all"
    ) -> str:
        definition = feature_definition(build_config(EncodersConfig, values, "test"), step_us, segment_us, mode)
        json.dumps(definition, allow_nan=False)
        return feature_set_id(definition)

    base = identity({})
    for same in ({"threads": 4}, {"ocr": {"threads": 2}}, {"speech": {"device": "cpu", "batch_size": 2}}):
        assert identity(same) == base, same
    for other in (
        {"vision": {"kind": "none"}},
        {"audio": {"kind": "none"}},
        {"speech": {"min_silence_ms": 100}},
        {"ocr": {"frames_per_minute": 12}},
    ):
        assert identity(other) != base, other
    assert len({base, identity({}, step_us=250_000), identity({}, segment_us=1), identity({}, mode="key")}) == 4


def test_wrong_setting_names_the_field() -> None:
    """A typo in the configuration is one line with the field and the nearest known name."""
    with pytest.raises(ConfigError, match=r"unknown key 'ocr.frames_per_minut'; did you mean 'frames_per_minute'"):
        build_config(EncodersConfig, {"ocr": {"frames_per_minut": 3}}, "test")
