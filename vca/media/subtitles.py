"""Subtitles as plain text in time: embedded streams, packet by packet, and files beside the video.

Plain text means: no markup of any kind, entities resolved, lines kept and joined by a newline, no empty lines.
"""

import codecs
import html
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import av
import pysubs2
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle
from charset_normalizer import from_bytes

from vca.core.errors import ErrorCode, MediaError
from vca.core.records import TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import US_PER_S, Span, ticks_to_us
from vca.media.captions import CaptionDecoder, choose_captions

MAX_SIDECAR_BYTES = 8 * 2**20
MAX_TIME_US = 100 * 3_600_000_000
"""Later than 100 hours is a broken time, not a subtitle."""
MISSING_DURATION_US = 5_000_000
"""How long a subtitle without an end is taken to be shown, unless the next one starts earlier."""
MAX_PIECE_US = 600_000_000
GUESS_BYTES = 128 * 1024  # enough of a file to tell its encoding
MAX_TEXT = 2000  # characters of one piece; longer is not something a viewer reads
MAX_PIECES = 100_000  # of one stream or file

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark starts with that one's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2060\ufeff]")  # marks of direction too
_BITMAP_CODECS = ("dvdsub", "dvbsub", "pgssub", "xsub")
_SRT_LIKE = ("srt", "subrip", "webvtt", "text")  # FFmpeg leaves unknown tags and entities in their text

_BRACES = re.compile(r"\{[^}]*\}")  # ASS: overrides and comments
_OVERRIDE = re.compile(r"\{\\[^}]*\}")  # what players take over from ASS into SubRip
_DRAWING = re.compile(r"\\p(\d+)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<[0-9:.]+>|</>")
_TIME = re.compile(r"(-?)(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,:](\d{1,9}))?")
_CUE = re.compile(rf"\s*({_TIME.pattern})\s*-{{1,2}}>\s*({_TIME.pattern})(?:\s|$)")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_ASS_FIELDS = ("Layer", "Start", "End", "Style", "Name", "MarginL", "MarginR", "MarginV", "Effect", "Text")
# What legacy subtitle files are written in; a free guess among all code pages goes wrong on short files.
_LEGACY_ENCODINGS = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp932", "gb18030", "big5"]
_LEGACY_ENCODINGS += ["euc_kr", "euc_jp", "utf_16_le", "utf_16_be"]

Cue = tuple[int, int | None, str]  # start_us, end_us or None if the source has none, plain text


class SubtitleCollector:
    """Decodes one embedded subtitle stream.

    Streams of pictures (DVD, DVB, Blu-ray) carry no text and give no pieces. `skipped` counts packets that should have
    given text and did not: malformed, without a time, or of an unknown codec.
    """

    def __init__(self, stream: SubtitleStream, zero_us: int) -> None:
        """`zero_us`: the container's start time, taken off every packet time."""
        self.skipped = 0
        self._stream = stream
        self._index = str(stream.index)  # read now: after the container is closed, the stream's memory is gone
        self._zero_us = zero_us
        # PyAV gives no codec context where FFmpeg has no decoder (TTML, some WebVTT in Matroska).
        context: object = stream.codec_context
        self._codec = stream.codec_context.name if context is not None else None
        language = stream.metadata.get("language", "").strip().lower()
        self._language = language if language not in ("", "und") else None
        self._captions = CaptionDecoder() if self._codec == "cc_dec" else None
        self._cues: dict[Cue, None] = {}  # a dict, so that a packet read twice around a seek counts once
        self._changes: set[int] = set()  # every time the stream rewrites or clears the screen

    def feed(self, packet: "av.Packet[SubtitleStream]") -> None:
        """Take one packet of the stream."""
        payload = bytes(packet)
        if packet.pts is None or packet.time_base is None or len(self._cues) >= MAX_PIECES:
            self.skipped += bool(payload)
            return
        start_us = ticks_to_us(packet.pts, packet.time_base) - self._zero_us
        end_us = start_us + ticks_to_us(packet.duration, packet.time_base) if packet.duration else None
        if self._captions is not None:  # a QuickTime caption track: the packets are A/53 triplets
            self._captions.feed(payload, start_us)
            return
        if not payload or self._codec in _BITMAP_CODECS:
            return
        self._changes.add(start_us)
        try:
            if self._codec is None:
                cues = _unknown_codec(payload, start_us, end_us)
            else:
                cues = [(start_us, end_us, text) for text in self._decode(packet, payload)]
        except (av.FFmpegError, ValueError):
            self.skipped += 1
            return
        self._cues.update(dict.fromkeys(cue for cue in cues if cue[2]))

    def pieces(self, span: Span) -> list[TextPiece]:
        """Subtitles that start in `span`, by start."""
        if self._captions is not None:
            shown = [(c.start_us, c.end_us, c.text) for c in choose_captions(self._captions.captions())]
        else:
            shown = _place(self._cues, sorted(self._changes))
        return [
            TextPiece(start_us, end_us, TextSource.SUBTITLE, text, stream=self._index, language=self._language)
            for start_us, end_us, text in shown
            if span.start_us <= start_us < span.end_us
        ]

    def _decode(self, packet: "av.Packet[SubtitleStream]", payload: bytes) -> list[str]:
        try:
            subtitles = self._stream.decode2(packet)
        except av.InvalidDataError:  # FFmpeg refuses text that is not UTF-8
            if self._codec not in _SRT_LIKE:
                raise
            return [plain_html(decode_text(payload.split(b"\0", 1)[0]))]
        texts = []
        for rect in subtitles or ():
            if isinstance(rect, AssSubtitle):
                fields = rect.ass.decode("utf-8", "replace").split(",", 8)  # ReadOrder, Layer, ..., Effect, Text
                if len(fields) < 9:
                    raise ValueError("not a dialogue")
                like_srt = self._codec in _SRT_LIKE
                texts.append(plain_html(plain_ass(fields[8], _OVERRIDE)) if like_srt else plain_ass(fields[8]))
        return texts


def parse_sidecar(data: bytes, name: str) -> list[TextPiece]:
    """Texts of a subtitle file in SubRip, WebVTT, ASS/SSA or TTML, by start; the format is told from the content.

    Starts before 0 are moved to 0. Left out are texts that are never shown (no end after their start, an end before 0),
    that start after 100 hours, and bad lines. A text is shown for 10 minutes at most. A file that is too large or of
    none of the formats is a `MediaError`; a well-formed file without texts gives an empty list.
    """
    if len(data) > MAX_SIDECAR_BYTES:
        raise MediaError(
            ErrorCode.NOT_MEDIA, f"subtitle file of {len(data)} bytes; at most {MAX_SIDECAR_BYTES} are read"
        )
    text = decode_text(data)
    head = text.lstrip()[:4096]
    if head.startswith("WEBVTT"):
        cues = list(_webvtt_cues(text))
    elif "[script info]" in head.lower() or re.search(r"^(\[Events\]|Dialogue:)", text, re.MULTILINE):
        cues = list(_ass_cues(text))
    elif "http://www.w3.org/ns/ttml" in head:
        try:
            cues = _ttml_cues(text)
        except ValueError as error:
            raise MediaError(ErrorCode.NOT_MEDIA, f"subtitle file is damaged TTML: {error}") from error
    elif any(_CUE.match(line) for line in _LINE_BREAK.split(text)):
        cues = list(_subrip_cues(text))
    else:
        raise MediaError(ErrorCode.NOT_MEDIA, "the content is neither SubRip, WebVTT, ASS/SSA nor TTML subtitles")
    unique = dict.fromkeys(cue for cue in cues if cue[2])
    return [
        TextPiece(start_us, end_us, TextSource.SIDECAR, shown, stream=name)
        for start_us, end_us, shown in _place(list(unique)[:MAX_PIECES], [])
    ]


def decode_text(data: bytes) -> str:
    """Text of unknown encoding: byte order mark, else UTF-8, else the best guess among the legacy encodings."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    try:
        return data.decode("utf-8").replace("\0", "")
    except UnicodeDecodeError:
        guesses = list(from_bytes(data[:GUESS_BYTES], cp_isolation=_LEGACY_ENCODINGS))
        best = guesses[0] if guesses else None
        for guess in guesses:  # French and Portuguese score the same as cp1250, which is rarer
            if guess.encoding == "cp1252" and guess.chaos <= guesses[0].chaos:
                best = guess if guess.coherence >= guesses[0].coherence else best
        return data.decode(best.encoding if best is not None else "cp1252", "replace")


def plain_ass(text: str, braces: re.Pattern[str] = _BRACES) -> str:
    """Plain text of an ASS dialogue: comments, overrides, drawings and escapes resolved."""
    text = text.replace(r"\{", "\x01").replace(r"\}", "\x02")
    kept, position, drawing = [], 0, False
    # Up to the last closing brace every opening one finds its end at once; behind it each would look through the rest,
    # which takes hours in a file of braces.
    for block in braces.finditer(text, 0, text.rfind("}") + 1):
        if not drawing:
            kept.append(text[position : block.start()])
        for level in _DRAWING.findall(block.group()):
            drawing = int(level) > 0
        position = block.end()
    if not drawing:
        kept.append(text[position:])
    plain = re.sub(r"\\[Nn]", "\n", "".join(kept)).replace(r"\h", " ")
    return _tidy(plain.replace("\x01", "{").replace("\x02", "}"))


def plain_html(text: str) -> str:
    """Plain text of a SubRip or WebVTT cue: tags dropped (the speaker of `<v Name>` too), entities resolved."""
    return _tidy(html.unescape(_TAG.sub("", re.sub(r"<br\s*/?>", "\n", text, flags=re.IGNORECASE))))


def _tidy(text: str) -> str:
    lines = (" ".join(_INVISIBLE.sub("", line).split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)[:MAX_TEXT]


def _place(cues: Iterable[Cue], changes: Sequence[int]) -> list[tuple[int, int, str]]:
    """Cues by start with ends that hold. A missing end is the next change of the screen, 5 s away at most."""
    placed = []
    for start_us, end_us, text in cues:
        last_us = end_us
        if last_us is None:
            later = bisect_right(changes, start_us)
            last_us = min(start_us + MISSING_DURATION_US, changes[later] if later < len(changes) else MAX_TIME_US)
        first_us = max(start_us, 0)
        if first_us < last_us and first_us < MAX_TIME_US:
            placed.append((first_us, min(last_us, first_us + MAX_PIECE_US), text))
    return sorted(placed, key=lambda cue: cue[0])


def _unknown_codec(payload: bytes, start_us: int, end_us: int | None) -> list[Cue]:
    """Packets FFmpeg cannot decode: TTML documents, or text as it stands; anything else is a `ValueError`."""
    text = payload.split(b"\0", 1)[0].decode("utf-8")
    if "http://www.w3.org/ns/ttml" not in text:
        if any(not c.isprintable() and c not in "\t\r\n" for c in text):
            raise ValueError("not text")
        return [(start_us, end_us, plain_html(text))]
    cues: list[Cue] = []
    for cue_start_us, cue_end_us, cue_text in _ttml_cues(text):
        # Times in the document are on the track's clock (ISO/IEC 14496-30) and hold inside the packet only.
        first, last = max(cue_start_us, start_us), min(cue_end_us or MAX_TIME_US, end_us or MAX_TIME_US)
        if first < last:
            cues.append((first, last, cue_text))
    return cues


def _ttml_cues(text: str) -> list[Cue]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("document type definitions are refused")
    try:
        events = pysubs2.SSAFile.from_string(text, format_="ttml")
    except RecursionError as error:
        raise ValueError("its elements are nested too deeply") from error
    # ParseError is a SyntaxError; the rest is what the library makes of odd times and attributes.
    except (SyntaxError, NotImplementedError, LookupError, AttributeError, ArithmeticError, TypeError) as error:
        raise ValueError(str(error)) from error
    return [(event.start * 1000, event.end * 1000, plain_ass(event.text)) for event in events]


def _microseconds(match: Sequence[str | None]) -> int:
    sign, hours, minutes, seconds, fraction = match
    whole_s = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    us = whole_s * US_PER_S + int((fraction or "0")[:6].ljust(6, "0"))
    return -us if sign else us


def _subrip_cues(text: str) -> Iterator[Cue]:
    """Cues of SubRip. Read here because pysubs2 1.8 wants milliseconds in every time and takes a last line that is a
    number for the number of the next cue.
    """
    times: tuple[int, int] | None = None
    lines: list[str] = []
    for line in _LINE_BREAK.split(text):
        cue = _CUE.match(line)
        if cue is None:
            lines.append(line)
            continue
        if times is not None:
            if lines and lines[-1].strip().isdecimal() and (len(lines) == 1 or not lines[-2].strip()):
                lines.pop()  # the number of the cue that starts here
            yield *times, _subrip_text(lines)
        times, lines = _cue_times(cue), []
    if times is not None:
        yield *times, _subrip_text(lines)


def _subrip_text(lines: list[str]) -> str:
    return plain_html(plain_ass("\n".join(lines), _OVERRIDE))


def _webvtt_cues(text: str) -> Iterator[Cue]:
    """Cues of WebVTT. Read here because pysubs2 1.8 adds comments, styles and cue names to the cue before them."""
    times: tuple[int, int] | None = None
    lines: list[str] = []
    for line in [*_LINE_BREAK.split(text), ""]:
        cue = _CUE.match(line)
        if times is not None and (cue is not None or not line.strip()):
            yield *times, plain_html("\n".join(lines))
            times, lines = None, []
        if cue is not None:
            times = _cue_times(cue)
        elif times is not None:
            lines.append(line)


def _cue_times(cue: re.Match[str]) -> tuple[int, int]:
    groups = cue.groups()
    return _microseconds(groups[1:6]), _microseconds(groups[7:12])


def _ass_cues(text: str) -> Iterator[Cue]:
    """Dialogue lines of ASS and SSA. Read here because pysubs2 1.8 gives up the whole file at one bad line and does not
    follow the file's own order of fields.
    """
    fields: tuple[str, ...] = _ASS_FIELDS
    in_events = False
    for line in _LINE_BREAK.split(text):
        kind, _, rest = line.strip().partition(":")
        if line.lstrip().startswith("["):
            in_events = line.strip().lower() == "[events]"
        elif kind == "Format" and in_events:
            names = tuple(name.strip() for name in rest.split(","))
            fields = names if {"Start", "End", "Text"} <= set(names) else _ASS_FIELDS
        elif kind == "Dialogue":
            values = dict(zip(fields, rest.strip().split(",", len(fields) - 1), strict=False))
            start, end = (_TIME.fullmatch(values.get(name, "").strip()) for name in ("Start", "End"))
            if start is not None and end is not None and "Text" in values:
                yield _microseconds(start.groups()), _microseconds(end.groups()), plain_ass(values["Text"])
