"""On-screen text: reading, following over time, grouping."""

import socket
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from vca.core.schemas import TextSource
from vca.models.ocr import OcrConfig, TextLine, TextReader, ocr_definition, pieces_from_lines, same_text

pytestmark = pytest.mark.integration

Frames = npt.NDArray[np.uint8]
TEN_S = 10_000_000


@pytest.fixture(scope="module")
def reader() -> TextReader:
    return TextReader(OcrConfig())


def picture(*texts: tuple[int, int, str], size: int = 40, seed: int = 0) -> Frames:
    """A noisy dark gradient of 1280 x 720 with white texts at (x, y)."""
    rng = np.random.default_rng(seed)
    shade = np.linspace(30, 90, 1280)[None, :, None] + rng.normal(0, 2, (720, 1280, 3))
    image = Image.fromarray(shade.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=size)
    for x, y, text in texts:
        draw.text((x, y), text, font=font, fill=(240, 240, 240))
    return np.asarray(image)


def spans(n: int) -> npt.NDArray[np.int64]:
    starts = np.arange(n, dtype=np.int64) * TEN_S
    return np.stack([starts, starts + TEN_S], axis=1)


def letters(text: str | None) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text or "").casefold() if c.isalnum())


def grab(path: Path, shares: Sequence[float]) -> Frames:
    """Frames at shares of a clip's length."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([frames[int(s * (len(frames) - 1))].to_ndarray(format="rgb24") for s in shares])


def test_reads_captions_and_logo(reader: TextReader) -> None:
    """A caption of two lines is one piece with a newline; a logo that stays is one piece beside changing captions."""
    logo = (1080, 30, "NEWS24")
    frames = np.stack(
        [
            picture(logo, (100, 590, "The meeting starts at 9:30"), (100, 645, "in the main hall")),
            picture(logo, (100, 590, "The meeting starts at 9:30"), (100, 645, "in the main hall"), seed=1),
            picture(logo, (100, 620, "Goodbye and thank you"), seed=2),
        ]
    )
    pieces = reader.read(frames, spans(3))
    found = {(p.start_us // TEN_S, p.end_us // TEN_S, letters(p.text)) for p in pieces}
    assert found == {
        (0, 3, "news24"),
        (0, 2, "themeetingstartsat930inthemainhall"),
        (2, 3, "goodbyeandthankyou"),
    }
    assert next(p for p in pieces if "meeting" in str(p.text)).text == "The meeting starts at 9:30\nin the main hall"
    assert all(p.source is TextSource.OCR and p.confidence is not None and p.confidence > 0.9 for p in pieces)


def test_still_picture_is_read_once(reader: TextReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that differ by noise only cost one reading; one changed character costs another."""
    calls = []
    original = reader._read_frame

    def counted(frame: Frames) -> list[TextLine]:
        calls.append(1)
        return original(frame)

    monkeypatch.setattr(reader, "_read_frame", counted)
    frames = np.stack([picture((100, 600, "Room 17"), seed=seed) for seed in range(4)])
    changed = picture((100, 600, "Room 11"), seed=4)[None]
    pieces = reader.read(np.concatenate([frames, changed]), spans(5))
    assert len(calls) == 2
    assert [(p.text, p.start_us // TEN_S, p.end_us // TEN_S) for p in pieces] == [("Room 17", 0, 4), ("Room 11", 4, 5)]


def test_channel_order(reader: TextReader) -> None:
    """Frames are RGB, the engine was trained on BGR: a red frame reaches it with red last."""
    seen: list[Frames] = []
    engine = reader._engine

    class Spy:
        txts = None

        def __call__(self, image: Frames) -> "Spy":
            seen.append(image)
            return self

    reader._engine = Spy()
    try:
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[..., 0] = 200
        reader.read(frame[None], spans(1))
    finally:
        reader._engine = engine
    assert seen[0][0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize("shape", [(0, 720, 1280, 3), (1, 90, 160, 3), (2, 5, 4, 3)])
def test_empty_small_and_tiny(reader: TextReader, shape: tuple[int, int, int, int]) -> None:
    """No frames, thumbnails and pictures smaller than a letter hold no text and do not crash."""
    assert reader.read(np.full(shape, 80, np.uint8), spans(shape[0])) == []


def test_kind_none_reads_nothing() -> None:
    """Switched off, the reader loads no engine and the feature set does not depend on it."""
    config = OcrConfig(kind="none")
    assert TextReader(config).read(picture((100, 600, "Some text"))[None], spans(1)) == []
    assert ocr_definition(config) is None
    assert ocr_definition(OcrConfig(frames_per_minute=0)) is None


def test_definition_names_what_shapes_the_text() -> None:
    """Threads do not change text; confidence does."""
    assert ocr_definition(OcrConfig(threads=2)) == ocr_definition(OcrConfig())
    assert ocr_definition(OcrConfig(min_confidence=0.7)) != ocr_definition(OcrConfig())


def test_never_uses_the_network(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A fresh reader loads and reads with sockets forbidden, and prints nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    pieces = TextReader(OcrConfig()).read(picture((100, 600, "Good morning"))[None], spans(1))
    assert [p.text for p in pieces] == ["Good morning"]
    assert capfd.readouterr() == ("", "")


# --- real pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.media
def test_film_titles(reader: TextReader, media_dir: Path) -> None:
    """Titles fading over a moving mountain: small, low contrast, 170 lines."""
    frames = grab(media_dir / "mux.js" / "sintel-captions.ts", [0.0, 0.6, 0.84])
    pieces = reader.read(frames, spans(3))
    assert [(letters(p.text), p.start_us // TEN_S) for p in pieces] == [
        ("theblenderfoundationpresents", 1),
        ("thedurianopenmovieproject", 2),
    ]


@pytest.mark.media
def test_burned_in_frame_numbers(reader: TextReader, media_dir: Path) -> None:
    """Each frame of this clip shows its own number; digits are never merged into one piece."""
    path = media_dir / "mediabunny" / "test" / "public" / "frames.webm"
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    chosen = [12, 13, 47, 88]
    pictures: Frames = np.stack([frames[i].to_ndarray(format="rgb24")[::2, ::2] for i in chosen]).astype(np.uint8)
    assert [p.text for p in reader.read(pictures, spans(len(chosen)))] == [str(i) for i in chosen]


@pytest.mark.media
def test_pictures_without_text(reader: TextReader, media_dir: Path) -> None:
    """Animals, drawings and space give no text."""
    clips = [
        "torchcodec/dog_eating_854132.mp4",
        "intel_sample_videos/bottle-detection.mp4",
        "torchcodec/nasa_13013.mp4",
    ]
    for clip in clips:
        assert reader.read(grab(media_dir / clip, [0.3]), spans(1)) == [], clip


# --- following and grouping, without the engine ----------------------------------------------------------------------


def line(text: str, x: float = 0, y: float = 0, confidence: float = 0.9, width: float = 100) -> TextLine:
    return TextLine(text, confidence, x, y, x + width, y + 20)


def test_same_text() -> None:
    """Case, spaces and a misread letter do not make a new text; a digit does."""
    assert same_text("THE BLENDER FOUNDATION", "the blender foundat1on".replace("1", "i"))
    assert same_text("Breaking news tonight", "Breakinq news tonight")
    assert not same_text("00:01:12", "00:01:13")
    assert not same_text("Goal", "Foul")


def test_misreadings_merge_into_the_surest() -> None:
    """Consecutive readings of one line are one piece with the text of highest confidence and the mean confidence."""
    frames = [[line("Breakinq news", confidence=0.7)], [line("Breaking news", confidence=0.9)], []]
    (piece,) = pieces_from_lines(frames, spans(3))
    assert (piece.text, piece.start_us, piece.end_us) == ("Breaking news", 0, 2 * TEN_S)
    assert piece.confidence == pytest.approx(0.8)


def test_text_that_returns_is_a_new_piece() -> None:
    """A gap of one frame ends a piece: the text was not there in between."""
    frames = [[line("Replay")], [], [line("Replay")]]
    assert [(p.start_us, p.end_us) for p in pieces_from_lines(frames, spans(3))] == [(0, TEN_S), (2 * TEN_S, 3 * TEN_S)]


def test_rolling_credits_are_followed() -> None:
    """A line that moves stays one piece."""
    frames = [[line("Directed by A. Person", y=400 - 100 * i)] for i in range(3)]
    (piece,) = pieces_from_lines(frames, spans(3))
    assert piece.end_us == 3 * TEN_S


def test_reading_order_of_a_block() -> None:
    """Rows from top to bottom, words of a row from left to right, far columns apart."""
    frames = [[line("world", x=110, y=2), line("second row", y=25), line("Hello"), line("ELSEWHERE", x=900, y=500)]]
    assert [p.text for p in pieces_from_lines(frames, spans(1))] == ["Hello world\nsecond row", "ELSEWHERE"]


@given(
    st.lists(
        st.lists(
            st.builds(
                line,
                st.sampled_from(["Alpha one", "alpha one", "Beta", "Gamma ray", "12:30", "12:31"]),
                st.integers(0, 1000),
                st.integers(0, 700),
                st.floats(0.6, 1.0),
            ),
            max_size=5,
        ),
        max_size=6,
    )
)
def test_nothing_is_lost_or_invented(frames: list[list[TextLine]]) -> None:
    """Every frame's lines are covered by pieces alive in that frame, and pieces lie within the frames' spans."""
    pieces = pieces_from_lines(frames, spans(len(frames)))
    for index, lines in enumerate(frames):
        at = index * TEN_S
        alive = [p for p in pieces if p.start_us <= at < p.end_us]
        text = letters("".join(str(p.text) for p in alive))
        assert sum(len(letters(item.text)) for item in lines) == len(text)
        for item in lines:
            assert letters(item.text) in text
    assert pieces == sorted(pieces, key=lambda p: (p.start_us, p.end_us))
