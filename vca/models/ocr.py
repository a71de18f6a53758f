"""Text read from the picture. Shape letters: M frames, h w picture size."""

import os
import unicodedata
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vca.core.config import Config
from vca.core.records import TextPiece
from vca.core.schemas import TextSource
from vca.models.weights import package_folder, sha256_file

_DETECTOR = "PP-OCRv6_det_small.onnx"
_RECOGNISER = "PP-OCRv6_rec_small.onnx"
_RULES = 1  # raise when the rules below change what text comes out of the same frames

_MIN_CHARACTERS = 2  # letters or digits; a lone "character" is mostly a curtain fold or a branch
_SAME_TEXT_RATIO = 0.8  # of difflib, on normalised text; below it two readings are different texts
_CELL_PX = 8
_STILL_LEVELS = 5  # of 255; compression noise moves the mean of a cell by 1 or 2, a changed letter by far more


class OcrConfig(Config):
    kind: Literal["none", "rapidocr"] = "rapidocr"
    """`rapidocr`: the packaged reader. `none`: off."""
    frames_per_minute: float = Field(6.0, ge=0.0, le=120.0)
    """Frames handed to the reader per minute of video. OCR is the dearest stage: 0.3 to 0.7 s a frame on one core."""
    height: int = Field(720, ge=64, le=2160)
    """Picture height for reading; smaller pictures are not enlarged."""
    min_confidence: float = Field(0.6, ge=0.0, le=1.0)
    """Lines below this mean character probability are dropped."""
    threads: int = Field(1, ge=1, le=64)
    """CPU threads of the reader, at most those of the machine."""


def ocr_definition(config: OcrConfig) -> dict[str, Any] | None:
    """What shapes the text, JSON-able; None where nothing is read. Threads do not count."""
    if config.kind == "none" or config.frames_per_minute == 0:
        return None
    models = _model_folder()
    return {
        "kind": config.kind,
        "version": version("rapidocr"),
        "detector": sha256_file(models / _DETECTOR),
        "recogniser": sha256_file(models / _RECOGNISER),
        "frames_per_minute": config.frames_per_minute,
        "height": config.height,
        "min_confidence": config.min_confidence,
        "rules": _RULES,
    }


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of text in a frame; the box is axis-aligned, in pixels."""

    text: str
    confidence: float
    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def height(self) -> float:
        return self.y1 - self.y0


@dataclass(slots=True)
class _Track:
    """A line that stays on screen over consecutive frames; it keeps the reading of highest confidence."""

    best: TextLine
    latest: TextLine
    first_frame: int
    last_frame: int
    confidences: list[float] = field(default_factory=list)


class TextReader:
    """Frames to pieces of on-screen text, with PP-OCRv6 small as packaged by rapidocr (no download, CPU)."""

    def __init__(self, config: OcrConfig) -> None:
        self.config = config
        self._engine = _load_engine(config) if config.kind == "rapidocr" else None

    def read(self, frames: npt.NDArray[np.uint8], spans: npt.NDArray[np.int64]) -> list[TextPiece]:
        """Read frames [M, h, w, 3] (RGB, in time order); frame m stands for `spans[m]` (microseconds, half-open).

        A piece is a block of text: lines that come and go together and lie close to each other, joined by newlines.
        Identical or nearly identical lines in consecutive frames are one piece over the union of their spans; texts
        with different digits are never merged (clocks, scores). Blocks that stay (a logo) do not repeat with those
        that change (captions).
        """
        assert frames.dtype == np.uint8, frames.dtype
        assert frames.ndim == 4, frames.shape
        assert spans.shape == (len(frames), 2), (spans.shape, frames.shape)
        lines_of_frames: list[list[TextLine]] = []
        cells: npt.NDArray[np.int16] | None = None  # of the frame that was really read
        for frame in frames:
            now = _cell_means(frame)
            if cells is None or int(np.abs(now - cells).max(initial=0)) > _STILL_LEVELS:
                lines_of_frames.append(self._read_frame(frame))
                cells = now
            else:
                lines_of_frames.append(lines_of_frames[-1])
        return pieces_from_lines(lines_of_frames, spans)

    def _read_frame(self, frame: npt.NDArray[np.uint8]) -> list[TextLine]:
        if self._engine is None:
            return []
        result = self._engine(np.ascontiguousarray(frame[:, :, ::-1]))  # the models were trained on BGR
        if not result.txts:
            return []
        lines = []
        for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
            clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
            if score >= self.config.min_confidence and len(_normalise(clean)) >= _MIN_CHARACTERS:
                (x0, y0), (x1, y1) = box.min(axis=0).tolist(), box.max(axis=0).tolist()
                lines.append(TextLine(clean, float(score), x0, y0, x1, y1))
        return lines


def pieces_from_lines(lines_of_frames: list[list[TextLine]], spans: npt.NDArray[np.int64]) -> list[TextPiece]:
    """Follow lines over frames, then join neighbours that came and went together. Sorted by start, then position."""
    groups: dict[tuple[int, int], list[_Track]] = {}
    for track in _tracks(lines_of_frames):
        groups.setdefault((track.first_frame, track.last_frame), []).append(track)
    pieces: list[TextPiece] = []
    for (first, last), tracks in sorted(groups.items()):
        pieces.extend(
            TextPiece(
                start_us=int(spans[first, 0]),
                end_us=int(spans[last, 1]),
                source=TextSource.OCR,
                text=_join([track.best for track in block]),
                confidence=float(np.mean([c for track in block for c in track.confidences])),
            )
            for block in _blocks(tracks)
        )
    return pieces


def same_text(a: str, b: str) -> bool:
    """Two readings of one text: equal but for case, spaces and marks, or nearly so with the same digits."""
    a, b = _normalise(a), _normalise(b)
    if a == b:
        return True
    if [c for c in a if c.isdigit()] != [c for c in b if c.isdigit()]:
        return False
    return SequenceMatcher(None, a, b, autojunk=False).ratio() >= _SAME_TEXT_RATIO


def _tracks(lines_of_frames: list[list[TextLine]]) -> list[_Track]:
    done: list[_Track] = []
    active: list[_Track] = []
    for index, lines in enumerate(lines_of_frames):
        waiting = list(active)
        active = []
        for line in lines:
            # By text and not by place, so that rolling credits are followed; the nearest one where texts repeat.
            same = [track for track in waiting if same_text(track.latest.text, line.text)]
            if same:
                track = min(same, key=lambda t: (t.latest.x0 - line.x0) ** 2 + (t.latest.y0 - line.y0) ** 2)
                waiting.remove(track)
                track.latest, track.last_frame = line, index
                if line.confidence > track.best.confidence:
                    track.best = line
            else:
                track = _Track(line, line, index, index)
            track.confidences.append(line.confidence)
            active.append(track)
        done.extend(waiting)
    return done + active


def _blocks(tracks: list[_Track]) -> list[list[_Track]]:
    """Connected components of lines that lie next to or below each other, in reading order."""
    blocks: list[list[_Track]] = []
    for track in sorted(tracks, key=lambda t: (t.best.y0, t.best.x0)):
        touching = [block for block in blocks if any(_near(track.best, other.best) for other in block)]
        merged = [other for block in touching for other in block] + [track]
        blocks = [block for block in blocks if block not in touching] + [merged]
    return sorted(blocks, key=lambda block: min((t.best.y0, t.best.x0) for t in block))


def _near(a: TextLine, b: TextLine) -> bool:
    height = max(a.height, b.height)
    gap_x = max(a.x0, b.x0) - min(a.x1, b.x1)
    gap_y = max(a.y0, b.y0) - min(a.y1, b.y1)
    beside = -gap_y > 0.5 * min(a.height, b.height) and gap_x < 1.5 * height
    below = gap_x < 0 and gap_y < 0.8 * height
    return beside or below


def _join(lines: list[TextLine]) -> str:
    """Reading order: rows from top to bottom, within a row from left to right."""
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=lambda item: (item.y0 + item.y1) / 2):
        previous = rows[-1][-1] if rows else None
        if previous and min(previous.y1, line.y1) - max(previous.y0, line.y0) > 0.5 * min(previous.height, line.height):
            rows[-1].append(line)
        else:
            rows.append([line])
    return "\n".join(" ".join(line.text for line in sorted(row, key=lambda item: item.x0)) for row in rows)


def _normalise(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _cell_means(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Mean colour of cells of 8 x 8 pixels; what is left over at the right and bottom edges is ignored."""
    rows, columns = frame.shape[0] // _CELL_PX, frame.shape[1] // _CELL_PX
    whole = frame[: rows * _CELL_PX, : columns * _CELL_PX]
    sums = whole.reshape(rows, _CELL_PX, columns, _CELL_PX, 3).sum(axis=(1, 3), dtype=np.uint16)
    means: npt.NDArray[np.int16] = (sums // _CELL_PX**2).astype(np.int16)
    return means


def _model_folder() -> Path:
    return package_folder("rapidocr", "encoders.ocr.kind = rapidocr") / "models"


def _load_engine(config: OcrConfig) -> Any:
    from rapidocr import RapidOCR

    models = _model_folder()
    threads = min(config.threads, os.cpu_count() or 1)  # rapidocr silently takes all cores where asked for more
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.text_score": 0.0,  # `min_confidence` decides, in one place
            # Explicit paths: with the default it compares checksums and would fetch the file again on a mismatch.
            "Det.model_path": str(models / _DETECTOR),
            "Rec.model_path": str(models / _RECOGNISER),
            # The third model turns lines by 180 degrees. Frames arrive upright, so it costs time and can only err.
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": threads,
        }
    )
