"""Closed captions carried with the pictures (CEA-608 and the text of CEA-708), decoded to text in time.

FFmpeg's own `cc_dec` reads one 608 channel only and gives no display times through PyAV, so the decoders are written
here, after ANSI/CTA-608-E with 47 CFR 15.119 and after ANSI/CTA-708-E. Only text and its times are kept, no styling.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import av
from av.sidedata.sidedata import Type as SideData

from vca.core.records import TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import Span
from vca.media.container import side_data

ROWS = 15
COLUMNS = 32
COLUMNS_708 = 42  # of the widest, 16:9 window
MAX_CAPTION_US = 16_000_000
"""A caption ends 16 s after it appeared at the latest, as its erase command may be lost."""

_BASIC = {0x2A: "á", 0x5C: "é", 0x5E: "í", 0x5F: "ó", 0x60: "ú", 0x7B: "ç", 0x7C: "÷", 0x7D: "Ñ", 0x7E: "ñ", 0x7F: " "}
# 0x7F is a solid block: what encoders put where they had no letter. It carries no text, hence the space.
_SPECIAL = "®°½¿™¢£♪à èâêîôû"  # 0x30..0x3F after 0x11
_EXTENDED = (
    "ÁÉÓÚÜü'¡*'—©℠•\"\"ÀÂÇÈÊËëÎÏïÔÙùÛ«»",  # 0x20..0x3F after 0x12: Spanish, French
    "ÃãÍÌìÒòÕõ{}\\^_|~ÄäÖöß¥¤│ÅåØø┌┐└┘",  # 0x20..0x3F after 0x13: Portuguese, German, Danish
)
_PAC_ROWS = (11, 11, 1, 2, 3, 4, 12, 13, 14, 15, 5, 6, 7, 8, 9, 10)  # by (first byte & 7) * 2 + (second byte bit 5)


_C1_PARAMETERS = (*(0,) * 8, *(1,) * 6, 0, 0, 2, 3, 2, 0, 0, 0, 0, 4, *(6,) * 8)  # bytes after 0x80..0x9F of CEA-708
_G2 = dict(
    zip(b"\x25\x2a\x2c\x31\x32\x33\x34\x35\x39\x3a\x3c\x3d\x3f\x76\x77\x78\x79", "…ŠŒ''\"\"•™šœ℠Ÿ⅛⅜⅝⅞", strict=True)
)

Emit = Callable[[int, int, str], None]


class Caption(NamedTuple):
    start_us: int
    end_us: int
    channel: str
    text: str


class _Mode(Enum):
    POP_ON = "pop_on"  # written off screen, shown at once
    ROLL_UP = "roll_up"  # written into the base row, older rows move up
    PAINT_ON = "paint_on"  # written on screen
    TEXT = "text"  # the text service T1..T4: not captions, ignored


@dataclass(slots=True)
class _Screen:
    """One caption memory; rows count from 1 as in the standard."""

    cells: dict[int, dict[int, str]] = field(default_factory=dict)

    def put(self, row: int, column: int, char: str) -> None:
        self.cells.setdefault(row, {})[column] = char

    def text(self, columns: int = COLUMNS) -> str:
        """Rows from the top, joined by newlines, without the spaces that only place them."""
        rows = []
        for row in sorted(self.cells):
            cells = self.cells[row]
            line = "".join(cells.get(column, " ") for column in range(columns))
            rows.append(" ".join(line.split()))
        return "\n".join(row for row in rows if row)


class _Channel:
    """State of one caption channel. `emit(start_us, end_us, text)` gets every finished caption."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._mode: _Mode | None = None  # unknown until the first mode command: text before it is not ours to show
        self._shown = _Screen()
        self._hidden = _Screen()
        self._shown_us: int | None = None  # since when the text on screen is there and not emitted yet
        self._row = ROWS
        self._column = 0

    def character(self, char: str, time_us: int) -> None:
        if self._mode is None or self._mode is _Mode.TEXT:
            return
        screen = self._hidden if self._mode is _Mode.POP_ON else self._shown
        if screen is self._shown and self._shown_us is None and not char.isspace():
            self._shown_us = time_us
        screen.put(self._row, self._column, char)
        self._column = min(self._column + 1, COLUMNS - 1)  # the last cell is overwritten, as the standard says

    def backspace(self) -> None:
        if self._mode is None or self._mode is _Mode.TEXT:
            return
        self._column = max(self._column - 1, 0)
        self._clear_to_end(self._column, self._column + 1)

    def place(self, row: int, column: int, time_us: int) -> None:
        """A preamble address code. In roll-up it names the base row, and text that is there moves with it."""
        if self._mode is _Mode.ROLL_UP and row != self._row:
            self._finish(time_us)
            self._shown = _Screen()
        self._row, self._column = row, column

    def tab(self, columns: int) -> None:
        self._column = min(self._column + columns, COLUMNS - 1)

    def command(self, code: int, time_us: int) -> None:
        """A miscellaneous control code, 0x20..0x2F."""
        if code == 0x20:  # resume caption loading
            self._switch(_Mode.POP_ON, time_us)
        elif code == 0x21:
            self.backspace()
        elif code == 0x24:  # delete to end of row
            self._clear_to_end(self._column, COLUMNS)
        elif code in (0x25, 0x26, 0x27):  # roll-up, 2 to 4 rows
            if self._mode is not _Mode.ROLL_UP:
                self._switch(_Mode.ROLL_UP, time_us)
                self._shown, self._hidden = _Screen(), _Screen()
                self._row, self._column = ROWS, 0
        elif code == 0x29:  # resume direct captioning
            self._switch(_Mode.PAINT_ON, time_us)
        elif code in (0x2A, 0x2B):  # text restart, resume text display
            self._mode = _Mode.TEXT
        elif code == 0x2C:  # erase displayed memory
            self._finish(time_us)
            self._shown = _Screen()
        elif code == 0x2D and self._mode is _Mode.ROLL_UP:  # carriage return
            self._finish(time_us)
            self._shown, self._column = _Screen(), 0
        elif code == 0x2E:  # erase non-displayed memory
            self._hidden = _Screen()
        elif code == 0x2F:  # end of caption: the memories change places
            self._finish(time_us)
            self._mode = _Mode.POP_ON
            self._shown, self._hidden = self._hidden, self._shown
            self._shown_us = time_us

    def open_caption(self) -> tuple[int, str] | None:
        """Start and text of the caption on screen."""
        text = self._shown.text() if self._shown_us is not None else ""
        return (self._shown_us, text) if self._shown_us is not None and text else None

    def _switch(self, mode: _Mode, time_us: int) -> None:
        if self._mode is _Mode.ROLL_UP and mode is not _Mode.ROLL_UP:
            self._finish(time_us)
            self._shown = _Screen()
        elif self._mode is not mode and mode is not _Mode.POP_ON:
            self._finish(time_us)
        self._mode = mode

    def _finish(self, time_us: int) -> None:
        caption = self.open_caption()
        self._shown_us = None
        if caption is not None:
            self._emit(caption[0], time_us, caption[1])

    def _clear_to_end(self, start: int, end: int) -> None:
        screen = self._hidden if self._mode is _Mode.POP_ON else self._shown
        cells = screen.cells.get(self._row, {})
        for column in range(start, end):
            cells.pop(column, None)


class _Field:
    """The byte pairs of one field: finds the channel, drops repeated control codes, steps over XDS packets."""

    def __init__(self, first: _Channel, second: _Channel) -> None:
        self._channels = (first, second)
        self._current: int | None = None
        self._last_control: tuple[int, int] | None = None
        self._in_xds = False

    def pair(self, first: int, second: int, time_us: int) -> None:
        # Parity is not checked: the transport guards these bytes better, and some encoders leave it out.
        first, second = first & 0x7F, second & 0x7F
        if 0x10 <= first <= 0x1F:
            self._in_xds = False
            # Every control code is sent twice so that one gets through; the second of an adjacent pair is void.
            if self._last_control == (first, second):
                self._last_control = None
                return
            self._last_control = (first, second)
            self._current = (first >> 3) & 1
            self._control(first & 0x17, second, time_us)
            return
        if first == 0 and second == 0:
            return  # padding; it does not part a control code from its repetition
        self._last_control = None
        if 0x01 <= first <= 0x0F:
            self._in_xds = first != 0x0F  # extended data services: programme names and ratings; 0x0F ends the packet
            return
        if self._in_xds or self._current is None:
            return
        channel = self._channels[self._current]
        for code in (first, second):
            if code >= 0x20:
                channel.character(_BASIC.get(code, chr(code)), time_us)

    def _control(self, first: int, second: int, time_us: int) -> None:
        assert self._current is not None
        channel = self._channels[self._current]
        if second >= 0x40:
            index = (first & 7) * 2 + ((second >> 5) & 1)
            indent = ((second & 0x0E) >> 1) * 4 if second & 0x10 else 0
            channel.place(_PAC_ROWS[index], indent, time_us)
        elif first == 0x11 and 0x20 <= second <= 0x2F:
            channel.character(" ", time_us)  # a mid-row style change takes one cell
        elif first == 0x11 and second >= 0x30:
            channel.character(_SPECIAL[second - 0x30], time_us)
        elif first in (0x12, 0x13) and second >= 0x20:
            channel.backspace()  # an extended letter replaces the plain one sent before it
            channel.character(_EXTENDED[first - 0x12][second - 0x20], time_us)
        elif first in (0x14, 0x15) and 0x20 <= second <= 0x2F:
            channel.command(second, time_us)
        elif first == 0x17 and 0x21 <= second <= 0x23:
            channel.tab(second - 0x20)


class _Window:
    """One of the eight windows of a 708 service."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.visible = False
        self._screen = _Screen()
        self._shown_us: int | None = None
        self._row = 0
        self._column = 0

    def show(self, visible: bool, time_us: int) -> None:
        if visible and not self.visible and self._screen.cells:
            self._shown_us = time_us
        if not visible:
            self._finish(time_us)
        self.visible = visible

    def put(self, char: str, time_us: int) -> None:
        if self.visible and self._shown_us is None and not char.isspace():
            self._shown_us = time_us
        self._screen.put(self._row, self._column, char)
        self._column = min(self._column + 1, COLUMNS_708 - 1)

    def backspace(self) -> None:
        self._column = max(self._column - 1, 0)
        self._screen.cells.get(self._row, {}).pop(self._column, None)

    def carriage_return(self, time_us: int) -> None:
        """On screen, the row is finished, as in 608 roll-up; off screen the pen moves down."""
        self._column = 0
        if self.visible:
            self.clear(time_us)
        else:
            self._row = min(self._row + 1, ROWS - 1)

    def clear(self, time_us: int) -> None:
        self._finish(time_us)
        self._screen = _Screen()

    def move(self, row: int, column: int) -> None:
        self._row, self._column = min(row, ROWS - 1), min(column, COLUMNS_708 - 1)

    def open_caption(self) -> tuple[int, str] | None:
        text = self._screen.text(COLUMNS_708) if self.visible and self._shown_us is not None else ""
        return (self._shown_us, text) if self._shown_us is not None and text else None

    def _finish(self, time_us: int) -> None:
        caption = self.open_caption()
        self._shown_us = None
        if caption is not None:
            self._emit(caption[0], time_us, caption[1])


class _Service:
    """One 708 caption service: commands and letters into windows (CTA-708-E section 7)."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._windows: dict[int, _Window] = {}
        self._current = -1  # no window
        self._rest = b""

    def feed(self, block: bytes, time_us: int) -> None:
        """Take one service block; a command may go on in the next block of the service, so its start is kept."""
        data = self._rest + block
        i = 0
        while i < len(data):
            size = _code_size(data, i)
            if i + size > len(data):
                break
            self._code(data[i : i + size], time_us)
            i += size
        self._rest = data[i:]

    def open_captions(self) -> list[tuple[int, str]]:
        return [caption for window in self._windows.values() if (caption := window.open_caption()) is not None]

    def _put(self, char: str, time_us: int) -> None:
        window = self._windows.get(self._current)
        if window is not None:
            window.put(char, time_us)

    def _code(self, data: bytes, time_us: int) -> None:
        code = data[0]
        if 0x80 <= code < 0xA0:
            self._command(code, data[1:], time_us)
        elif code == 0x10 and (0x20 <= data[1] < 0x80 or data[1] >= 0xA0):
            self._put(_G2.get(data[1], " "), time_us)
        elif code == 0x18:  # a letter of 16 bits, in practice UTF-16 without surrogates
            self._put(data[1:3].decode("utf-16-be", "replace"), time_us)
        elif code >= 0x20:
            self._put("♪" if code == 0x7F else chr(code), time_us)
        elif (window := self._windows.get(self._current)) is not None:
            if code == 0x08:
                window.backspace()
            elif code == 0x0C:  # form feed
                window.clear(time_us)
                window.move(0, 0)
            elif code == 0x0D:
                window.carriage_return(time_us)

    def _command(self, code: int, data: bytes, time_us: int) -> None:
        if code <= 0x87:  # set current window
            self._current = code - 0x80
        elif code <= 0x8C:  # clear, display, hide, toggle, delete the windows of a bit map
            for index, window in list(self._windows.items()):
                if not data[0] >> index & 1:
                    continue
                if code == 0x88:
                    window.clear(time_us)
                elif code == 0x8B:
                    window.show(not window.visible, time_us)
                else:
                    window.show(code == 0x89, time_us)
                if code == 0x8C:
                    del self._windows[index]
        elif code == 0x8F:  # reset
            for window in self._windows.values():
                window.show(False, time_us)
            self._windows.clear()
        elif code == 0x92 and self._current in self._windows:  # set pen location
            self._windows[self._current].move(data[0] & 0x0F, data[1] & 0x3F)
        elif code >= 0x98:  # define window
            self._current = code - 0x98
            window = self._windows.setdefault(self._current, _Window(self._emit))
            if not window.visible:  # a hidden one is loaded anew; its delete command may be lost
                window.clear(time_us)
                window.move(0, 0)
            window.show(bool(data[0] & 0x20), time_us)


def _code_size(data: bytes, i: int) -> int:
    """Bytes of the code at `i` with its parameters (CTA-708-E 7.1); more than are there if it is cut off."""
    code = data[i]
    if 0x80 <= code < 0xA0:
        return 1 + _C1_PARAMETERS[code - 0x80]
    if code >= 0x20 or code < 0x10:
        return 1
    if code > 0x10:
        return 2 if code < 0x18 else 3
    if i + 1 >= len(data):
        return 2
    extended = data[i + 1]
    if extended < 0x20:
        return 2 + extended // 8
    if 0x80 <= extended < 0x90:
        return 6 if extended < 0x88 else 7
    if 0x90 <= extended < 0xA0:
        return 3 + (data[i + 2] & 0x1F) if i + 2 < len(data) else 3
    return 2


class CaptionDecoder:
    """608 and 708 captions from `cc_data` triplets (ATSC A/53 part 4: marker and type, two bytes).

    Channels are CC1 to CC4 (608) and S1 to S63 (708).
    """

    def __init__(self) -> None:
        self._finished: list[Caption] = []
        self._channels = {f"CC{n}": _Channel(self._sink(f"CC{n}")) for n in range(1, 5)}
        channels = list(self._channels.values())
        self._fields = (_Field(channels[0], channels[1]), _Field(channels[2], channels[3]))
        self._services: dict[str, _Service] = {}
        self._packet = bytearray()
        self._last_us: int | None = None

    def feed(self, cc_data: bytes, time_us: int) -> None:
        """Take the triplets of one picture (may be none), in presentation order; a cut-off last triplet is left out."""
        self._last_us = time_us if self._last_us is None else max(self._last_us, time_us)
        for i in range(0, len(cc_data) - 2, 3):
            marker, first, second = cc_data[i : i + 3]
            if not marker & 0x04:
                continue
            kind = marker & 0x03
            if kind <= 1:
                self._fields[kind].pair(first, second, time_us)
                continue
            if kind == 3:  # a DTVCC packet starts; of one that lost a pair, what came is used
                self._service_blocks(bytes(self._packet[1:]), time_us)
                self._packet.clear()
            elif not self._packet:
                continue  # the start was before the first picture
            self._packet += bytes((first, second))
            size = (self._packet[0] & 0x3F) * 2 or 128
            if len(self._packet) >= size:
                self._service_blocks(bytes(self._packet[1:size]), time_us)
                self._packet.clear()

    def captions(self) -> list[Caption]:
        """All captions so far, by start; those still on screen end at the last picture."""
        shown = [(name, channel.open_caption()) for name, channel in self._channels.items()]
        shown += [(name, caption) for name, service in self._services.items() for caption in service.open_captions()]
        last_us = self._last_us or 0
        on_screen = [_caption(c[0], last_us, name, c[1]) for name, c in shown if c is not None]
        return sorted(self._finished + on_screen, key=_start)

    def _service_blocks(self, data: bytes, time_us: int) -> None:
        i = 0
        while i < len(data):
            number, size = data[i] >> 5, data[i] & 0x1F
            i += 1
            if number == 7 and i < len(data):
                number = data[i] & 0x3F
                i += 1
            if number == 0 or size == 0:
                return  # a null block ends the packet
            name = f"S{number}"
            if name not in self._services:
                self._services[name] = _Service(self._sink(name))
            self._services[name].feed(data[i : i + size], time_us)
            i += size

    def _sink(self, name: str) -> Emit:
        return lambda start_us, end_us, text: self._finished.append(_caption(start_us, end_us, name, text))


def _start(caption: Caption) -> int:
    return caption.start_us


def _caption(start_us: int, end_us: int, channel: str, text: str) -> Caption:
    return Caption(start_us, min(max(end_us, start_us + 1), start_us + MAX_CAPTION_US), channel, text)


class CaptionCollector:
    """Captions of one video stream, from the A/53 side data of its decoded frames.

    A roll-up row is one piece, from its first letter to the carriage return that moves it up (it stays readable a
    little longer, but the next row would repeat it). The letters of a pop-on caption are sent up to some seconds before
    it shows: feed the frames before the segment too if they are decoded anyway, or its first caption may be missing.
    """

    def __init__(self, zero_us: int = 0) -> None:
        """`zero_us` is taken off every time given to `feed`."""
        self._zero_us = zero_us
        self._decoder = CaptionDecoder()

    def feed(self, frame: av.VideoFrame, time_us: int) -> None:
        """Take one decoded frame, every one and in presentation order, shown at `time_us`."""
        self._decoder.feed(side_data(frame, SideData.A53_CC) or b"", time_us - self._zero_us)

    def pieces(self, span: Span) -> list[TextPiece]:
        """Captions that start in `span`, by start; `stream` is the channel."""
        return [
            TextPiece(c.start_us, c.end_us, TextSource.CAPTION, c.text, stream=c.channel)
            for c in choose_captions([c for c in self._decoder.captions() if span.start_us <= c.start_us < span.end_us])
        ]


def choose_captions(captions: list[Caption]) -> list[Caption]:
    """One copy of captions that came in several: 608 or 708, and no channel that repeats another.

    Broadcasters send the same captions as 608 and as 708. The set whose best channel has more letters wins (a
    transcoder to a lower frame rate drops 608 pairs but keeps 708 whole); 608 wins a tie. Captions without any letter,
    digit or note sign are left out.
    """
    channels: dict[str, list[Caption]] = {}
    for caption in captions:
        if not any(c.isalnum() or c == "♪" for c in caption.text):
            continue
        items = channels.setdefault(caption.channel, [])
        if items and items[-1][:2] == caption[:2]:  # two 708 windows shown together are one caption
            items[-1] = caption._replace(text=f"{items[-1].text}\n{caption.text}")
        else:
            items.append(caption)
    letters = {name: sum(c.isalnum() for item in items for c in item.text) for name, items in channels.items()}
    best_608 = max((n for name, n in letters.items() if name.startswith("CC")), default=0)
    best_708 = max((n for name, n in letters.items() if name.startswith("S")), default=0)
    kept: dict[tuple[str, ...], list[Caption]] = {}
    for name in sorted(channels, key=lambda name: int(name.lstrip("CS"))):
        if name.startswith("S") == (best_708 > best_608):
            kept.setdefault(tuple(item.text for item in channels[name]), channels[name])
    return sorted((item for items in kept.values() for item in items), key=_start)
