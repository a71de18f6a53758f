"""Closed captions: 608 in all its styles and channels, the text of 708, and bytes that are damaged."""

import io
import re
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.core.records import TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import Span
from vca.media.captions import MAX_CAPTION_US, Caption, CaptionCollector, CaptionDecoder, choose_captions

ALL = Span(0, 10**12)
FRAME_US = 33_367
RCL, BS, DER, RU2, RU3, RDC, TR, EDM, CR, ENM, EOC = 0x20, 0x21, 0x24, 0x25, 0x26, 0x29, 0x2A, 0x2C, 0x2D, 0x2E, 0x2F
ROW_14, ROW_15 = (0x14, 0x40), (0x14, 0x60)
ENGLISH = (  # service 1 of the Big Buck Bunny sample, as Comcast's caption-inspector decodes it
    "- FINE. 2024. | I WIN, WE MOVE IN THERE. | I'LL TAKE THE WEST WING. YOU TAKE THE EAST WING. | "
    "YOU CAN BE THE FIRST GENTLEMAN. | - ACTUALLY, THAT SOUNDS KIND OF GREAT. | "
    "THANKS FOR COMING WITH ME TO GET MY STUFF. | - HOW COULD I PASS UP AN OPPORTUNITY | "
    "TO LOOK AT OUR FUTURE HOUSE? | - OH, JUST REMEMBERED. | I KIND OF GOT YOU AN ENGAGEMENT PRESENT. | "
    "- IS IT A WAFFLE TOWER? | - I MEAN, IT'S A LITTLE BETTER THAN THAT."
)
ENGLISH_608 = (  # channel 1 of the same, which lost every fifth pair when it was made
    "- 20. - THAT'S STRETCH | - FINE. 20. | I N, WE MOVE THERE. | I'LL TAKTHE WESTING. U TAKE T EAST WI. | "
    "U CAN BEHE FIRSTENTLEMAN | ACTUALLYTHAT SOUS KIND OF EAT. | THANKS F COMING TH ME TO GET MSTUFF. | "
    "- HOCOULD I SS UP AN OORTUNITY | TO LOOAT OUR FURE HOUS | - OH, JU REMEMBED. | KIND OF T YOU AN EAGEMENT ESENT. | "
    "IS IT A FFLE TOW? | - I MEANIT'S A LTLE BETT AN THAT."
)


def parity(byte: int) -> int:
    """The byte with odd parity, as line 21 carries it."""
    return byte | 0x80 if byte.bit_count() % 2 == 0 else byte


def triplet(pair: tuple[int, int], field: int = 0) -> bytes:
    return bytes((0xFC | field, parity(pair[0]), parity(pair[1])))


class Line21:
    """Writes pairs, one a frame, as a caption encoder does: control codes twice."""

    def __init__(self, channel: int = 1) -> None:
        self.decoder = CaptionDecoder()
        self.now_us = 0
        self._field, self._offset = divmod(channel - 1, 2)

    def send(self, *items: int | tuple[int, int] | str) -> "Line21":
        """Ints are control codes, tuples other code pairs of channel 1, strings are text."""
        for item in items:
            if isinstance(item, str):
                raw = item.encode("ascii")
                raw += b"\0" * (len(raw) % 2)
                pairs = [(raw[i], raw[i + 1]) for i in range(0, len(raw), 2)]
            else:
                first, second = (0x14 + self._field, item) if isinstance(item, int) else item
                pairs = [(first | self._offset << 3, second)] * 2
            for pair in pairs:
                self.decoder.feed(triplet(pair, self._field), self.now_us)
                self.now_us += FRAME_US
        return self

    def wait(self, until_us: int) -> "Line21":
        self.now_us = until_us
        return self

    def texts(self) -> list[str]:
        return [caption.text for caption in self.decoder.captions()]


def read(path: Path | io.BytesIO) -> CaptionCollector:
    collector = CaptionCollector()
    with av.open(path if isinstance(path, io.BytesIO) else str(path)) as container:
        zero_us = container.start_time or 0
        for frame in container.decode(video=0):
            collector.feed(frame, round((frame.time or 0.0) * 1e6) - zero_us)
    return collector


def joined(pieces: list[TextPiece] | list[Caption], channel: str) -> str:
    """The captions of a channel on one line each, as in the constants above."""
    stream = [piece.stream if isinstance(piece, TextPiece) else piece.channel for piece in pieces]
    texts = [piece.text or "" for piece, name in zip(pieces, stream, strict=True) if name == channel]
    return " | ".join(text.replace("\n", " ") for text in texts)


@pytest.mark.parametrize("channel", [1, 2, 3, 4])
def test_pop_on_in_every_channel(channel: int) -> None:
    """A pop-on caption appears at its end-of-caption code and lasts until the screen is erased."""
    line = Line21(channel).send(RCL, ENM, ROW_14, "HELLO ", ROW_15, "WORLD").wait(2_000_000).send(EOC)
    line.wait(5_000_000).send(EDM)
    assert line.decoder.captions() == [Caption(2_000_000, 5_000_000, f"CC{channel}", "HELLO\nWORLD")]


def test_pop_on_replaced_without_erase() -> None:
    """The next caption ends the one before it; one that is never erased ends after 16 s at most."""
    line = Line21().send(RCL, ENM, ROW_15, "ONE").wait(1_000_000).send(EOC, RCL, ENM, ROW_15, "TWO")
    line.wait(3_000_000).send(EOC).wait(60_000_000).send("")
    line.decoder.feed(b"", 60_000_000)
    assert line.decoder.captions() == [
        Caption(1_000_000, 3_000_000, "CC1", "ONE"),
        Caption(3_000_000, 3_000_000 + MAX_CAPTION_US, "CC1", "TWO"),
    ]


def test_roll_up_gives_every_row_once() -> None:
    """Rows that roll up are not repeated; a row starts with its first letter."""
    line = Line21().send(RU3, CR, ROW_15).wait(1_000_000).send("FIRST ROW").wait(2_000_000).send(RU3, CR, ROW_15)
    line.wait(3_000_000).send("SECOND").wait(4_000_000).send(RU3, CR, ROW_15, "THIRD").wait(6_000_000).send(EDM)
    captions = line.decoder.captions()
    assert [caption.text for caption in captions] == ["FIRST ROW", "SECOND", "THIRD"]
    assert captions[0].start_us == 1_000_000
    assert 2_000_000 <= captions[0].end_us < 2_200_000
    assert captions[2].end_us == 6_000_000


def test_paint_on_is_read_as_it_is_written() -> None:
    """Paint-on text starts with its first letter and lasts until the erase."""
    line = Line21().wait(1_000_000).send(RDC, ROW_15, "PAINTED ").send("ON").wait(4_000_000).send(EDM)
    assert line.texts() == ["PAINTED ON"]
    assert 1_000_000 < line.decoder.captions()[0].start_us < 1_300_000


def test_letters_of_other_languages() -> None:
    """Special letters stand for themselves, extended ones replace the plain letter before them, styles take a space."""
    line = Line21().send(RCL, ROW_15, "CANCIO", (0x12, 0x22), "N ", (0x11, 0x37), (0x11, 0x2E), "caf\\ ")
    line.send((0x11, 0x33), "QUE", (0x13, 0x34), "S", EOC, EDM)
    assert line.texts() == ["CANCIÓN ♪ café ¿QUßS"]


def test_corrections() -> None:
    """Backspace and delete-to-end-of-row take back what was typed; a tab places what follows."""
    line = Line21().send(RCL, ROW_15, "WRONGX", BS, " ROW", (0x17, 0x23), "END", EOC, EDM)
    assert line.texts() == ["WRONG ROW END"]
    line = Line21().send(RCL, ROW_15, "ALL OF IT", (0x14, 0x72), DER, "X ", EOC, EDM)  # indent 4
    assert line.texts() == ["ALL X"]


def test_repeated_control_codes_count_once() -> None:
    """Codes are sent twice; where only one arrives, nothing changes, and a letter typed twice is two letters."""
    line = Line21().send(RCL, ROW_15, "LL", (0x11, 0x37), EOC, EDM)
    assert line.texts() == ["LL♪"]
    single = CaptionDecoder()
    pairs = [(0x14, RCL), (0x14, 0x60), (0x41, 0x42), (0x41, 0x42), (0x14, EOC), (0x00, 0x00), (0x14, EOC), (0x14, EDM)]
    for i, pair in enumerate(pairs):
        single.feed(triplet(pair), i * FRAME_US)
    assert [caption.text for caption in single.captions()] == ["ABAB"]


def test_what_is_not_captions() -> None:
    """Programme data, the text service, text before any mode and invalid triplets are not read as captions."""
    line = Line21(3)
    for pair in ((0x01, 0x03), (0x4D, 0x4F), (0x56, 0x49), (0x0F, 0x2A)):  # an XDS title inside field 2
        line.decoder.feed(triplet(pair, 1), 0)
    line.send(RCL, ROW_15, "YES", EOC, EDM)
    assert line.texts() == ["YES"]
    assert Line21().send(TR, "STOCKS", RCL, ROW_15, "YES", EOC, EDM).texts() == ["YES"]
    assert Line21().send("BEFORE", EOC, EDM).texts() == []
    decoder = CaptionDecoder()
    decoder.feed(b"\xf8\x94\x20" + b"\xfc\x94", 0)
    assert decoder.captions() == []


def dtvcc(*blocks: tuple[int, bytes], sequence: int = 0, lost: int = 0) -> bytes:
    """One DTVCC packet as triplets; `lost` pairs are cut off its end."""
    body = b"".join(bytes((number << 5 | len(data),)) + data for number, data in blocks)
    body += b"\0" * (1 - len(body) % 2)
    packet = bytes((sequence << 6 | (len(body) + 1) // 2,)) + body
    pairs = [packet[i : i + 2] for i in range(0, len(packet), 2)]
    pairs = pairs[: len(pairs) - lost]
    return b"".join(bytes((0xFF if i == 0 else 0xFE,)) + pair for i, pair in enumerate(pairs))


DEFINE = b"\x98\x00\x3c\x3c\x01\x29\x11"  # window 0, hidden, two rows


def test_708_pop_on() -> None:
    """A hidden window is loaded, shown and hidden; rows keep their order, letters outside ASCII come through."""
    decoder = CaptionDecoder()
    decoder.feed(dtvcc((1, DEFINE + b"\x92\x01\x00second \x10\x39")), 0)
    decoder.feed(dtvcc((1, b"\x92\x00\x00\xc9t\xe9 \x7f"), (2, b"nothing"), sequence=1), FRAME_US)
    decoder.feed(dtvcc((1, b"\x8b\x01")), 1_000_000)
    decoder.feed(dtvcc((1, b"\x8a\xff")), 3_000_000)
    assert decoder.captions() == [Caption(1_000_000, 3_000_000, "S1", "Été ♪\nsecond ™")]


def test_708_commands_across_blocks_and_lost_pairs() -> None:
    """A command may be cut between two blocks, and a packet that lost its last pair still gives what it has."""
    decoder = CaptionDecoder()
    decoder.feed(dtvcc((1, DEFINE[:3])), 0)
    decoder.feed(dtvcc((1, DEFINE[3:] + b"HALF")), 0)
    decoder.feed(dtvcc((1, b"\x18\x06\xa9 AND MORE WORDS"), lost=1), 0)
    decoder.feed(dtvcc((1, b"\x89\x01")), 1_000_000)
    decoder.feed(dtvcc((1, b"\x8c\x01")), 2_000_000)
    (caption,) = decoder.captions()
    assert caption.text.startswith("HALFک AND MORE WOR")
    assert (caption.start_us, caption.end_us) == (1_000_000, 2_000_000)


def test_choice_between_608_and_708() -> None:
    """The same captions sent twice are read once: from the fuller set, 608 if both are the same."""
    both = [Caption(0, 1, "CC1", "SAME"), Caption(0, 1, "S1", "SAME")]
    assert [caption.channel for caption in choose_captions(both)] == ["CC1"]
    damaged = [Caption(0, 1, "CC1", "SAE"), Caption(0, 1, "S1", "SAME"), Caption(0, 1, "S2", "SAME")]
    assert [caption.channel for caption in choose_captions(damaged)] == ["S1"]
    assert choose_captions([Caption(0, 1, "CC1", "- . -")]) == []


@given(st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 10**8)), max_size=30))
def test_any_bytes_are_survived(pictures: list[tuple[bytes, int]]) -> None:
    """Random triplets in any order never fail, and captions have real spans."""
    decoder = CaptionDecoder()
    for cc_data, time_us in pictures:
        decoder.feed(cc_data, time_us)
    assert all(caption.start_us < caption.end_us for caption in decoder.captions())


@given(st.lists(st.binary(min_size=2, max_size=2), max_size=80), st.sampled_from([0xFC, 0xFD, 0xFE]))
def test_valid_triplets_are_survived(pairs: list[bytes], marker: int) -> None:
    """Valid triplets of random content never fail, in 608 and in 708."""
    decoder = CaptionDecoder()
    decoder.feed(bytes((0xFF, 0x3F, 0x25)) + b"".join(bytes((marker,)) + pair for pair in pairs), 0)
    decoder.feed(b"".join(bytes((marker,)) + pair for pair in pairs[::-1]), FRAME_US)
    choose_captions(decoder.captions())


@pytest.mark.media
def test_big_buck_bunny_608_and_708(media_dir: Path) -> None:
    """Both standards decode as Comcast's caption-inspector decodes them; the damaged 608 loses to the whole 708."""
    decoder = CaptionDecoder()
    with av.open(str(media_dir / "caption-inspector/BigBuckBunny_256x144-24fps.ts")) as container:
        for frame in container.decode(video=0):
            decoder.feed(bytes(frame.side_data["A53_CC"]), round((frame.time or 0.0) * 1e6) - 31_000_000)
    captions = decoder.captions()
    assert joined(captions, "CC1") == ENGLISH_608
    assert joined(captions, "CC3").startswith("020. -ESO EUN ESTIRAMITO. | -Bie 24. | YO GANO, NOS DAMOS AÍ.")
    pieces = read(media_dir / "caption-inspector/BigBuckBunny_256x144-24fps.ts").pieces(ALL)
    assert joined(pieces, "S1") == ENGLISH
    assert {piece.stream for piece in pieces} == {"S1", "S2", "S3", "S4", "S5", "S6"}
    assert {piece.source for piece in pieces} == {TextSource.CAPTION}
    assert re.search(r"VERLOBUNGSGESCHENK", joined(pieces, "S4"))
    first = next(piece for piece in pieces if piece.stream == "S1")
    assert first.start_us == pytest.approx(3_753_000, abs=2_000)
    assert first.end_us == pytest.approx(6_006_000, abs=50_000)


@pytest.mark.media
def test_roll_up_in_two_languages(media_dir: Path) -> None:
    """A live programme with English in field 1 and French in field 2."""
    pieces = read(media_dir / "mux.js/multi-channel-608-captions.ts").pieces(ALL)
    assert joined(pieces, "CC1") == "PERIOD, FOLKS. | WE'RE LOSING TIME FROM QUESTION | PERIOD."
    french = "être une période de questions | très courte, chers députés. | Nous perdons du te"
    assert joined(pieces, "CC3") == french


@pytest.mark.media
def test_captions_of_hls_and_sintel(media_dir: Path) -> None:
    """Captions packed into one frame, and solid blocks in place of letters the encoder did not have."""
    (path,) = (media_dir / "androidx-media/hls/cea608").glob("*.ts")
    pieces = read(path).pieces(ALL)
    assert [piece.text for piece in pieces] == ["First subtitle", "Second subtitle"]
    assert (pieces[0].start_us, pieces[0].end_us) == (0, 875_000)
    (piece,) = read(media_dir / "mux.js/sintel-captions.ts").pieces(ALL)
    assert piece.text == "ASUKA , f Japanese"


@pytest.mark.media
def test_span_takes_what_starts_in_it(media_dir: Path) -> None:
    """Neighbouring segments share no caption and lose none."""
    collector = read(media_dir / "mux.js/multi-channel-608-captions.ts")
    halves = collector.pieces(Span(0, 3_000_000)) + collector.pieces(Span(3_000_000, 10_000_000))
    assert halves == collector.pieces(ALL)


@pytest.mark.media
def test_malformed_sei_and_no_captions(media_dir: Path) -> None:
    """Damaged SEI messages and videos without captions give no text and no error."""
    parts = [(media_dir / f"mux.js/malformed-sei{part}").read_bytes() for part in ("-init.mp4", ".m4s")]
    assert read(io.BytesIO(b"".join(parts))).pieces(ALL) == []
    assert read(media_dir / "mux.js/test-no-audio-segment.ts").pieces(ALL) == []
