"""Speech activity and, with a tiny random Whisper checkpoint, recognition."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from vca.core.config import build_config
from vca.core.errors import ConfigError
from vca.core.metrics import speech_activity_error
from vca.core.records import FloatArray
from vca.core.schemas import TextSource
from vca.core.timeline import Span, seconds_to_us
from vca.models.speech import SAMPLE_RATE, SpeechConfig, SpeechReader, speech_definition

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reader() -> SpeechReader:
    return SpeechReader(SpeechConfig())


def decode(path: Path) -> FloatArray:
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(path)) as container:
        blocks = [b.to_ndarray()[0] for frame in container.decode(audio=0) for b in resampler.resample(frame)]
    return np.concatenate([*blocks, *(b.to_ndarray()[0] for b in resampler.resample(None))]).astype(np.float32)


def reference(path: Path, name: str) -> list[Span]:
    """Speech of one file in an RTTM file."""
    spans = []
    for line in path.read_text("utf-8").splitlines():
        fields = line.split()
        if fields and fields[1] == name:
            start, duration = float(fields[3]), float(fields[4])
            spans.append(Span(seconds_to_us(start), seconds_to_us(start + duration)))
    return spans


@pytest.mark.media
@pytest.mark.parametrize(("part", "prefix"), [("development", "dev"), ("test", "tst")])
def test_speech_activity_on_meetings(reader: SpeechReader, media_dir: Path, part: str, prefix: str) -> None:
    """Far-field meetings the defaults were not chosen on: under 15 % of the speech is missed or invented."""
    folder = media_dir / "pyannote_ami"
    wrong = spoken = 0.0
    for path in sorted(folder.glob(f"{prefix}*.flac")):
        found = [Span(p.start_us, p.end_us) for p in reader.read(decode(path), 0)]
        truth = reference(folder / f"debug.{part}.rttm", path.stem)
        error = speech_activity_error(truth, found, Span(0, 30_000_000))
        wrong += error.false_alarm_s + error.missed_s
        spoken += error.reference_s
    assert spoken > 30
    assert wrong / spoken < 0.15


@pytest.mark.media
def test_clock_and_shape_of_pieces(reader: SpeechReader, media_dir: Path) -> None:
    """Pieces carry no words, lie on the video's clock whatever the segment's start, and do not overlap."""
    pcm = decode(media_dir / "whisper" / "jfk.flac")
    at_zero, later = reader.read(pcm, 0), reader.read(pcm, 7_000_000)
    assert [p.start_us + 7_000_000 for p in at_zero] == [p.start_us for p in later]
    assert all(p.source is TextSource.SPEECH and p.text is None for p in at_zero)
    assert all(p.confidence is not None and 0.25 < p.confidence <= 1 for p in at_zero)
    assert all(a.end_us <= b.start_us for a, b in pairwise(at_zero))
    assert at_zero[-1].end_us <= round(len(pcm) / SAMPLE_RATE * 1_000_000)
    spoken = sum(p.end_us - p.start_us for p in at_zero)
    assert 7_000_000 < spoken < 11_000_000


@pytest.mark.media
def test_music_is_not_speech(reader: SpeechReader, media_dir: Path) -> None:
    """Half a minute of orchestral film music raises no false alarm."""
    assert reader.read(decode(media_dir / "caption-inspector" / "BigBuckBunny_160x90-24fps.mov"), 0) == []


@pytest.mark.media
def test_broken_samples_do_not_silence_the_rest(reader: SpeechReader, media_dir: Path) -> None:
    """NaN and infinite samples at the start leave the speech after them found."""
    pcm = decode(media_dir / "whisper" / "jfk.flac")
    broken = pcm.copy()
    broken[:100] = np.nan
    broken[100:110] = np.inf
    clean, found = reader.read(pcm, 0), reader.read(broken, 0)
    assert [(p.start_us, p.end_us) for p in found[1:]] == [(p.start_us, p.end_us) for p in clean[1:]]
    assert len(found) > 1


@pytest.mark.media
def test_every_call_starts_afresh(reader: SpeechReader, media_dir: Path) -> None:
    """The recurrent state of one segment does not leak into the next: results do not depend on the order of work."""
    pcm = decode(media_dir / "whisper" / "jfk.flac")
    first = reader.read(pcm, 0)
    reader.read(np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32), 0)
    assert reader.read(pcm, 0) == first


@pytest.mark.parametrize("n_samples", [0, 1, 511, 512, 513, SAMPLE_RATE])
def test_silence_and_odd_lengths(reader: SpeechReader, n_samples: int) -> None:
    """Silence of any length, down to nothing, is no speech and no crash."""
    assert reader.read(np.zeros(n_samples, np.float32), 0) == []


def test_detector_matches_the_window_by_window_model(reader: SpeechReader) -> None:
    """The batched detector gives the probabilities of the original streaming model."""
    from silero_vad import load_silero_vad

    rng = np.random.default_rng(1)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pcm = (0.2 * np.sin(2 * np.pi * 160 * t * (1 + 0.1 * np.sin(9 * t))) + rng.normal(0, 0.05, len(t))).astype("f4")
    threads = torch.get_num_threads()
    stream = load_silero_vad(onnx=True)
    torch.set_num_threads(threads)
    whole = len(pcm) // 512 * 512
    expected = [stream(torch.from_numpy(pcm[i : i + 512]), SAMPLE_RATE).item() for i in range(0, whole, 512)]
    assert reader._vad is not None
    np.testing.assert_allclose(reader._vad.audio_forward(pcm[:whole]), expected, atol=1e-4)


def test_loading_leaves_the_thread_count_alone() -> None:
    """Importing silero_vad sets one thread for the process; the reader undoes that."""
    import subprocess
    import sys

    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from vca.models.speech import SpeechConfig, SpeechReader\n"
        "SpeechReader(SpeechConfig()); print(torch.get_num_threads())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert (out.stdout.strip(), out.stderr.strip()) == ("2", "")


def test_definition_names_what_shapes_the_pieces() -> None:
    """Settings that change pieces change the definition; device and batch size do not."""
    base = speech_definition(SpeechConfig())
    assert base is not None
    assert speech_definition(SpeechConfig(device="cpu", batch_size=7)) == base
    assert speech_definition(SpeechConfig(threshold=0.6)) != base
    assert speech_definition(SpeechConfig(vad="none")) is None


# --- recognition, on a tiny random Whisper ---------------------------------------------------------------------------

LANGUAGES = ("en", "de", "fr")


def save_tiny_whisper(folder: Path, multilingual: bool = True) -> None:
    """A random Whisper of two layers with a byte-level tokenizer and Whisper's special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"]
    specials += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *specials])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": specials[1:]})
    features = WhisperFeatureExtractor(feature_size=16)  # type: ignore[no-untyped-call]
    processor = WhisperProcessor(features, tokenizer)  # type: ignore[no-untyped-call]
    start, end = vocabulary["<|startoftranscript|>"], vocabulary["<|endoftext|>"]
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.8,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    settings: dict[str, object] = {
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": end,
        "max_length": 448,
        "no_timestamps_token_id": vocabulary["<|notimestamps|>"],
        # Letters only, so that the words of random weights are printable.
        "suppress_tokens": [i for token, i in vocabulary.items() if not (len(token) == 1 and token.isascii())],
        "is_multilingual": multilingual,
    }
    if multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in LANGUAGES}
        settings["task_to_id"] = {task: vocabulary[f"<|{task}|>"] for task in ("translate", "transcribe")}
    model.generation_config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    save_tiny_whisper(folder)
    return folder


def asr_config(folder: Path, **settings: Any) -> SpeechConfig:
    return SpeechConfig(asr_model=str(folder), asr_max_tokens=12, device="cpu", **settings)


@pytest.mark.media
def test_words_lie_inside_the_speech(whisper_folder: Path, media_dir: Path) -> None:
    """Every recognised chunk starts and ends with speech, has words, a language and a confidence; reruns agree."""
    pcm = decode(media_dir / "whisper" / "jfk.flac")
    reader = SpeechReader(asr_config(whisper_folder))
    pieces = reader.read(pcm, 2_000_000)
    speech = [p for p in pieces if p.source is TextSource.SPEECH]
    words = [p for p in pieces if p.source is TextSource.ASR]
    assert speech == SpeechReader(SpeechConfig()).read(pcm, 2_000_000)
    assert words
    starts, ends = {p.start_us for p in speech}, {p.end_us for p in speech}
    for piece in words:
        assert piece.text
        assert piece.language in LANGUAGES
        assert piece.confidence is not None
        assert 0 < piece.confidence <= 1
        assert piece.start_us in starts
        assert piece.end_us in ends
    assert reader.read(pcm, 2_000_000) == pieces


@pytest.mark.media
def test_chunks_fit_the_encoder_and_do_not_depend_on_the_batch(whisper_folder: Path, media_dir: Path) -> None:
    """Two minutes of speech without a pause worth the name become chunks of at most 30 s, in any batch size alike."""
    pcm = np.tile(decode(media_dir / "pyannote_ami" / "trn05.flac"), 4)
    pieces = SpeechReader(asr_config(whisper_folder, asr_language="de", batch_size=3)).read(pcm, 0)
    words = [p for p in pieces if p.source is TextSource.ASR]
    assert len(words) >= 4
    assert all(p.end_us - p.start_us <= 30_000_000 for p in words)
    assert {p.language for p in words} == {"de"}
    singly = SpeechReader(asr_config(whisper_folder, asr_language="de", batch_size=1)).read(pcm, 0)
    assert [p.text for p in singly if p.source is TextSource.ASR] == [p.text for p in words]


def test_recogniser_is_not_asked_about_silence(whisper_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognisers invent words for silence and noise: without speech the model must not run at all."""
    reader = SpeechReader(asr_config(whisper_folder))

    def never(*_: object) -> list[object]:
        raise AssertionError("the recogniser was asked")

    monkeypatch.setattr(reader._recogniser, "_generate", never)
    assert reader.read(np.zeros(SAMPLE_RATE * 3, np.float32), 0) == []
    noise = np.random.default_rng(0).normal(0, 0.05, SAMPLE_RATE * 3).astype(np.float32)
    assert reader.read(noise, 0) == []


@pytest.mark.media
def test_english_only_model_gets_no_language(tmp_path: Path, media_dir: Path) -> None:
    """English-only checkpoints refuse a language argument; they must work without one."""
    save_tiny_whisper(tmp_path, multilingual=False)
    pieces = SpeechReader(asr_config(tmp_path)).read(decode(media_dir / "whisper" / "jfk.flac"), 0)
    words = [p for p in pieces if p.source is TextSource.ASR]
    assert words
    assert {p.language for p in words} == {None}


def test_wrong_settings_name_the_field(whisper_folder: Path, tmp_path: Path) -> None:
    """A recogniser without detector, an unknown language, a missing folder and a non-Whisper are one-line errors."""
    with pytest.raises(ConfigError, match=r"^x\.yaml: asr_model needs the detector.* set vad to silero$"):
        build_config(SpeechConfig, {"vad": "none", "asr_model": str(whisper_folder)}, "x.yaml")
    with pytest.raises(ConfigError, match=r"asr_language = xx: the model knows de, en, fr"):
        SpeechReader(asr_config(whisper_folder, asr_language="xx"))
    with pytest.raises(ConfigError, match=r"encoders\.speech\.asr_model .* no such folder"):
        SpeechReader(asr_config(tmp_path / "missing"))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_definition_looks_for_the_parts(whisper_folder: Path, tmp_path: Path, lost: str) -> None:
    """Half a folder stops the run before the first video, not in every worker after the first hour."""
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(whisper_folder, folder)
    patterns = {"tokenizer.json": ["tokenizer*", "vocab*", "merges*"], "preprocessor_config.json": ["*processor*"]}
    for pattern in patterns.get(lost, [lost]):
        for file in folder.glob(pattern):
            file.unlink()
    with pytest.raises(ConfigError, match=rf"^encoders\.speech\.asr_model = {folder}: the folder has no [^\n]*$"):
        speech_definition(asr_config(folder))


def test_definition_follows_the_recogniser(whisper_folder: Path, tmp_path: Path) -> None:
    """Another recogniser or language is another feature set; the same weights elsewhere are the same."""
    import shutil

    base = speech_definition(asr_config(whisper_folder))
    assert base != speech_definition(SpeechConfig())
    assert base != speech_definition(asr_config(whisper_folder, asr_language="de"))
    shutil.copytree(whisper_folder, tmp_path / "copy")
    assert speech_definition(asr_config(tmp_path / "copy")) == base
