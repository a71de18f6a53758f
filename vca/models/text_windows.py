"""Pieces of text in time to windows a sentence encoder can judge. Pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import Field

from vca.core.config import Config
from vca.core.records import TextPiece
from vca.core.timeline import US_PER_S, Span

_MARKUP = re.compile(r"</?[^\s<>][^<>]{0,200}>|\{\\[^{}]{0,200}\}|\\[Nnh]|>>+|^\s*[-\u2013\u2014]\s", re.MULTILINE)
_CUE = re.compile(r"\[[^\[\]]{1,80}\]|\([^()]{1,80}\)")
_WORD = re.compile(r"[^\W\d_]+")
_SUNG = re.compile(r"[\u2669-\u266c]")
UNKNOWN_LANGUAGES = frozenset({"", "und", "mul", "mis", "zxx"})


class WindowConfig(Config):
    """How pieces of text are joined and which of them count."""

    window_s: float = Field(default=8.0, gt=0.0, le=600.0)
    """Neighbouring pieces are joined up to this length."""
    gap_s: float = Field(default=2.0, ge=0.0, le=600.0)
    """A longer pause ends a window."""
    max_words: int = Field(default=40, ge=4, le=400)
    """Longer pieces are cut, their time shared out by words."""
    min_letters: int = Field(default=4, ge=1)
    """Windows with fewer letters, counted in words of two and more, say nothing: timecodes, single letters."""
    min_confidence: float = Field(default=0.5, ge=0.0, le=1.0)
    """Recognised text below this is not evidence. Text without a confidence is."""
    languages: tuple[str, ...] | None = ("en", "eng")
    """Languages the text model reads; text marked as another one is left out. None takes all."""


@dataclass(frozen=True, slots=True)
class TextWindow:
    """Joined text. A cue names a sound, as in "[applause]": it tells what happens and not what is said."""

    span: Span
    text: str
    is_cue: bool


def text_windows(pieces: Iterable[TextPiece], config: WindowConfig) -> list[TextWindow]:
    """Windows of usable text, by time. Pieces join only within one source, stream and language.

    Sung lines are left out: lyrics are rarely about the subject of the video.
    """
    chains: dict[tuple[str, str, str], list[TextWindow]] = {}
    windows: list[TextWindow] = []
    for piece in sorted(pieces, key=lambda p: (p.start_us, p.end_us)):
        if piece.text is None or piece.end_us <= piece.start_us or not _readable_language(piece.language, config):
            continue
        if piece.confidence is not None and piece.confidence < config.min_confidence:
            continue
        span = Span(piece.start_us, piece.end_us)
        words, cues = clean_text(piece.text)
        windows += [TextWindow(span, cue, True) for cue in cues if letters(cue) >= config.min_letters]
        if words:
            chain = chains.setdefault((str(piece.source), piece.stream or "", piece.language or ""), [])
            for part in _cut(span, words, config.max_words):
                _append(chain, part, config)
    for chain in chains.values():
        windows += [window for window in chain if letters(window.text) >= config.min_letters]
    return sorted(windows, key=lambda w: (w.span, w.is_cue, w.text))


def clean_text(text: str) -> tuple[str, list[str]]:
    """The words of a piece without markup, and the sound cues in brackets."""
    plain = _MARKUP.sub(" ", text)
    if _SUNG.search(plain):
        return "", []
    cues = [" ".join(cue.split()) for cue in _CUE.findall(plain)]
    return " ".join(_CUE.sub(" ", plain).split()), cues


def letters(text: str) -> int:
    """Letters in words of two and more; in scripts without spaces a run of signs is a word."""
    return sum(len(word) for word in _WORD.findall(text) if len(word) > 1)


def _readable_language(language: str | None, config: WindowConfig) -> bool:
    primary = (language or "").replace("_", "-").split("-")[0].lower()
    return config.languages is None or primary in UNKNOWN_LANGUAGES or primary in config.languages


def _cut(span: Span, text: str, max_words: int) -> Iterator[TextWindow]:
    words = text.split()
    for first in range(0, len(words), max_words):
        part = words[first : first + max_words]
        start = span.start_us + span.duration_us * first // len(words)
        end = span.start_us + span.duration_us * (first + len(part)) // len(words)
        yield TextWindow(Span(start, max(end, start + 1)), " ".join(part), False)


def _append(chain: list[TextWindow], part: TextWindow, config: WindowConfig) -> None:
    """Join `part` to the last window of the chain, or start a new one. A repeated line only prolongs its window."""
    if chain:
        last = chain[-1]
        joined = Span(min(last.span.start_us, part.span.start_us), max(last.span.end_us, part.span.end_us))
        near = part.span.start_us - last.span.end_us <= config.gap_s * US_PER_S
        if near and part.text == last.text:
            chain[-1] = TextWindow(joined, last.text, False)
            return
        short = joined.duration_us <= config.window_s * US_PER_S
        if near and short and len(last.text.split()) + len(part.text.split()) <= config.max_words:
            chain[-1] = TextWindow(joined, f"{last.text} {part.text}", False)
            return
    chain.append(part)
