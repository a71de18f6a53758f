"""Subtitles: what a viewer reads and when, from streams and from files in any encoding."""

import io
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.core.errors import ErrorCode, MediaError
from vca.core.records import TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import Span
from vca.media import subtitles
from vca.media.subtitles import SubtitleCollector, decode_text, parse_sidecar, plain_ass, plain_html

ALL = Span(0, 10**12)
DEEP = [  # the six cues of go-astisub's example-in.*
    (99.0, 101.04, "(deep rumbling)"),
    (124.08, 127.12, "MAN:\nHow did we end up here?"),
    (132.16, 135.2, "This place is horrible."),
    (140.24, 142.28, "Smells like balls."),
    (148.32, 151.36, "We don't belong\nin this shithole."),
    (151.4, 153.44, "(computer playing\nelectronic melody)"),
]
GUM = [
    (0.0, 3.766, "Did one of the last stories strike you as\nmore interesting than the other?"),
    (3.767, 10.732, "That's true. You don’t often find 632\npieces of gum stuck on a sidewalk"),
    (10.733, 14.066, "at a busy bus stop or anywhere\nelse for that matter."),
]
DESERT = [
    (0.331, 3.75, "The man in black fled across the desert,\n& the gunslinger followed."),
    (4.101, 5.43, "Go, then,"),
    (6.331, 9.675, "there are other < worlds than these."),
]
HELLO = [(1.0, 3.5, "Hello world!"), (5.0, 7.0, "This is a test."), (8.5, 10.0, "Goodbye!")]
STYLED = [
    (17.985, 20.521, "[instrumental music]"),
    (47.115, 48.282, "[ticks]"),
    (58.192, 59.727, "[instrumental music]"),
    (61.662, 63.063, "[dog barking]"),
    (86.787, 89.523, "[beeping]"),
    (89.59, 91.992, "[automated]\n'The time is 7:35.'"),
    (480.0, 540.0, "Test with multi line italics\nTerminated on the next line"),
    (540.0, 600.0, "Unterminated styles"),
    (600.0, 660.0, "Do no fall to the next item"),
    (720.0, 780.0, "x^3 * x = 100"),
]


def shown(pieces: list[TextPiece]) -> list[tuple[float, float, str | None]]:
    return [(piece.start_us / 1e6, piece.end_us / 1e6, piece.text) for piece in pieces]


def subrip(*cues: str) -> bytes:
    return "\n\n".join(f"{i}\n{cue}" for i, cue in enumerate(cues, 1)).encode()


def collect(path: Path | io.BytesIO) -> list[SubtitleCollector]:
    with av.open(path if isinstance(path, io.BytesIO) else str(path)) as container:
        streams = container.streams.subtitles
        zero_us = container.start_time or 0
        collectors = {stream.index: SubtitleCollector(stream, zero_us) for stream in streams}
        for packet in container.demux(*streams):
            if packet.stream_index in collectors:
                collectors[packet.stream_index].feed(packet)
        return list(collectors.values())


def matroska(codec: str, packets: list[tuple[int, int, bytes]], language: str = "und") -> io.BytesIO:
    """A file of one subtitle stream; packets are (start_ms, duration_ms, payload)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec)
        stream.metadata["language"] = language
        stream.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n\n[Events]\n"
        for start_ms, duration_ms, payload in packets:
            packet = av.Packet(payload)
            packet.stream = stream
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = start_ms
            packet.duration = duration_ms
            container.mux(packet)
    buffer.seek(0)
    return buffer


@pytest.mark.media
@pytest.mark.parametrize(
    ("name", "cues"),
    [
        *((f"example-in.{kind}", DEEP) for kind in ("srt", "vtt", "ssa")),
        ("example-in-non-utf8.srt", DEEP),
        ("example-in-non-utf8.vtt", DEEP),
        ("missing-sequence-in.srt", DEEP),
        *((f"example-in-carriage-return.{kind}", GUM) for kind in ("srt", "vtt", "ssa")),
        *((f"example-in-html-entities.{kind}", DESERT) for kind in ("srt", "vtt")),
        ("example-in-styled.srt", STYLED),
    ],
)
def test_sidecar_files_of_go_astisub(media_dir: Path, name: str, cues: list[tuple[float, float, str]]) -> None:
    """Texts and times are exact in every dialect: short fractions, UTF-16, CR only, entities, own field order."""
    pieces = parse_sidecar((media_dir / "subtitle_files/go-astisub" / name).read_bytes(), name)
    assert shown(pieces) == cues
    assert {(piece.source, piece.stream, piece.language) for piece in pieces} == {(TextSource.SIDECAR, name, None)}


@pytest.mark.media
@pytest.mark.parametrize("kind", ["srt", "vtt", "ass", "ssa"])
def test_sidecar_files_of_mediabunny(media_dir: Path, kind: str) -> None:
    """The same subtitles in four formats give the same pieces."""
    path = media_dir / f"mediabunny/test/public/subtitles/test.{kind}"
    assert shown(parse_sidecar(path.read_bytes(), path.name)) == HELLO


@pytest.mark.media
def test_files_that_are_no_subtitles(media_dir: Path) -> None:
    """A hopeless file is an expected failure with a code, not a crash and not an empty success."""
    broken = (media_dir / "subtitle_files/go-astisub/broken-1-in.vtt").read_bytes()
    video = (media_dir / "mux.js/sintel-captions.ts").read_bytes()[:100_000]
    for data in (b"", b"\0" * 1000, broken, video, b"plain words"):
        with pytest.raises(MediaError) as caught:
            parse_sidecar(data, "x.srt")
        assert caught.value.code == ErrorCode.NOT_MEDIA


def test_too_large_sidecar_is_refused_unread() -> None:
    """A huge file beside a video cannot fill the memory."""
    with pytest.raises(MediaError, match="at most"):
        parse_sidecar(b"x" * (subtitles.MAX_SIDECAR_BYTES + 1), "x.srt")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Où étais-tu passé, mon frère ? Ça va être une très belle soirée d'été.", "cp1252"),
        ("Können Sie mir bitte sagen, wo die nächste Straße zum Schloß führt?", "cp1252"),
        ("Я не знаю, где он живёт, но завтра мы встретимся на вокзале.", "cp1251"),
        ("我不知道他住在哪里,但是我们明天会在火车站见面。", "gb18030"),
        ("明日は駅で会いましょう。彼がどこに住んでいるのか知りません。", "cp932"),
        ("Καλημέρα, πού είναι ο σταθμός του τρένου παρακαλώ;", "cp1253"),
        ("naïve café", "utf-8-sig"),
        ("naïve café", "utf-16"),
        ("naïve café", "utf-32"),
    ],
)
def test_encodings(text: str, encoding: str) -> None:
    """Files of past decades keep their letters."""
    cues = subrip(*(f"00:00:{i:02},000 --> 00:00:{i + 1:02},000\n{text}" for i in range(3))).decode()
    pieces = parse_sidecar(cues.encode(encoding), "x.srt")
    assert [piece.text for piece in pieces] == [text] * 3


def test_times_that_make_no_sense() -> None:
    """Negative starts are clipped; texts that are never shown or absurdly late are dropped; none lasts an hour."""
    data = subrip(
        "-00:00:02,000 --> 00:00:01,500\nearly",
        "-00:00:02,000 --> -00:00:01,000\nbefore",
        "00:00:05,000 --> 00:00:05,000\nzero",
        "00:00:09,000 --> 00:00:08,000\nbackwards",
        "00:00:06,000 --> 09:00:00,000\nlong",
        "999:00:00,000 --> 999:00:01,000\nlate",
    )
    assert shown(parse_sidecar(data, "x.srt")) == [(0.0, 1.5, "early"), (6.0, 606.0, "long")]


def test_numbers_are_text_where_they_are_text() -> None:
    """A line that is a number is spoken text unless it is the number of the next cue."""
    data = b"1\n00:00:01,000 --> 00:00:02,000\nThe year is\n1984\n\n2\n00:00:03,000 --> 00:00:04,000\n42\n\n3\n"
    data += b"00:00:05,000 --> 00:00:06,000\n\n4\n00:00:07,000 --> 00:00:08,000\n2001"
    assert [piece.text for piece in parse_sidecar(data, "x.srt")] == ["The year is\n1984", "42", "2001"]


def test_webvtt_comments_names_and_voices() -> None:
    """Comments, styles and cue names are not read out; voices and times inside a cue leave the words."""
    data = (
        b"WEBVTT - title\n\nNOTE not this\n\nintro\n00:01.000 --> 00:02.000 align:start\n<v Bob>Hi <c.x>there</c>\n\n"
        b"NOTE\nnor this\n\nsecond\n01:00:03.500 --> 01:00:04.000\n<00:00:03.600>a &lt; b\n"
    )
    assert shown(parse_sidecar(data, "x.vtt")) == [(1.0, 2.0, "Hi there"), (3603.5, 3604.0, "a < b")]


def test_ass_bad_lines_cost_only_themselves() -> None:
    """One broken style or dialogue does not lose the file, and repeated layers of one line count once."""
    data = (
        "[Script Info]\n[V4+ Styles]\nStyle: x,y,not a number\n[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: 0,never,0:00:01.00,Default,,0,0,0,,lost\n"
        "Comment: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,a note\n"
        "Dialogue: 0,0:00:03.00,0:00:04.50,Default,,0,0,0,,kept, with commas\n"
        "Dialogue: 1,0:00:03.00,0:00:04.50,Default,,0,0,0,,{\\blur3}kept, with commas\n"
    )
    assert shown(parse_sidecar(data.encode(), "x.ass")) == [(3.0, 4.5, "kept, with commas")]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"{\an8\i1}Top{\i0} line", "Top line"),
        (r"one\Ntwo\nthree\hfour", "one\ntwo\nthree four"),
        (r"{\p1}m 0 0 l 100 0 100 100{\p0}text", "text"),
        (r"text{\p4}m 0 0", "text"),
        (r"{a comment}said", "said"),
        (r"\{braces\}", "{braces}"),
    ],
)
def test_ass_markup(text: str, plain: str) -> None:
    """Overrides, comments and vector drawings are not words."""
    assert plain_ass(text) == plain


@given(st.text(max_size=200))
def test_plain_text_is_plain(text: str) -> None:
    """Whatever comes in, pieces hold no control characters, no empty lines and no edge spaces."""
    for plain in (plain_html(text), plain_ass(text)):
        assert all(line and line == line.strip() for line in plain.split("\n")) or plain == ""
        assert not any(ord(c) < 32 and c != "\n" for c in plain)


@given(st.binary(max_size=400))
def test_hostile_files_fail_in_the_expected_way(data: bytes) -> None:
    """Any bytes give pieces with real spans or a MediaError."""
    for head in (b"", b"WEBVTT\n\n", b"[Events]\nDialogue: 0,", b"1\n00:00:01,0 --> 00:00:02,0\n"):
        try:
            pieces = parse_sidecar(head + data, "x")
        except MediaError:
            continue
        assert all(0 <= piece.start_us < piece.end_us and piece.text for piece in pieces)


def test_decode_text_never_fails() -> None:
    """Bytes of no encoding still become text."""
    assert isinstance(decode_text(bytes(range(256)) * 4), str)


@pytest.mark.media
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("androidx-media/mkv/sample_with_null_terminated_srt.mkv", [(0.0, 1.234, "This is the first")]),
        ("androidx-media/mkv/sample_with_ssa_subtitles.mkv", [(0.0, 0.5, "This is the first subtitle.")]),
        ("androidx-media/mkv/sample_with_vtt_subtitles.mkv", [(0.0, 1.234, "This is the first subtitle.")]),
        ("androidx-media/mkv/sample_with_vobsub.mkv", []),
        (
            "androidx-media/mkv/sample_with_overlapping_srt.mkv",  # the container starts at 0.067 s
            [
                (0.033, 0.263, "First subtitle - end overlaps second"),
                (0.083, 0.483, "Third subtitle - fully encompasses second"),
                (0.133, 0.383, "Second subtitle - beginning overlaps first"),
            ],
        ),
        *((f"mediabunny/test/public/subtitles/test-{kind}", HELLO) for kind in ("mp4-tx3g.mp4", "mov-tx3g.mov")),
        *((f"mediabunny/test/public/subtitles/test-{kind}", HELLO) for kind in ("mp4-ttml.mp4", "mov-ttml.mov")),
        *(
            (f"mediabunny/test/public/subtitles/test-mkv-{kind}.mkv", [(a + 0.021, b + 0.021, t) for a, b, t in HELLO])
            for kind in ("srt", "ass", "ssa", "vtt")
        ),
    ],
)
def test_embedded_streams(media_dir: Path, path: str, expected: list[tuple[float, float, str]]) -> None:
    """Every text codec gives its words at the times of its packets; picture subtitles give none and are no error."""
    (collector,) = collect(media_dir / path)
    got = shown(collector.pieces(ALL))
    # Matroska's cut of the last cue to the file's 10.021 s is part of the file, hence the tolerance of 1 ms.
    assert [text for *_, text in got] == [text for *_, text in expected]
    assert [t for start, end, _ in got for t in (start, end)] == pytest.approx(
        [t for start, end, _ in expected for t in (start, end)], abs=0.001
    )
    assert collector.skipped == 0


@pytest.mark.media
def test_embedded_languages_and_streams_stay_apart(media_dir: Path) -> None:
    """Two streams of one file keep their index and language once the file is closed; a span takes its own only."""
    collectors = collect(media_dir / "mediabunny/test/public/subtitles/test-mkv-multi.mkv")
    pieces = [collector.pieces(Span(5_000_000, 8_000_000))[0] for collector in collectors]
    assert [(p.stream, p.language, p.text, p.source) for p in pieces] == [
        ("2", "eng", "This is a test.", TextSource.SUBTITLE),
        ("3", "spa", "This is a test.", TextSource.SUBTITLE),
    ]
    assert [len(collector.pieces(Span(5_000_000, 8_000_000))) for collector in collectors] == [1, 1]


def test_embedded_missing_duration_and_bad_bytes() -> None:
    """Without a duration a text lasts to the next one, 5 s at most; text that is not UTF-8 is still read."""
    packets = [
        (1000, 0, b"first"),
        (3000, 0, b"second"),
        (20000, 1000, "café crème, s'il vous plaît".encode("cp1252")),
        (22000, 1000, b"{\\an8}{sic} &amp; <c.yellow>b</c>"),
    ]
    (collector,) = collect(matroska("srt", packets, "fre"))
    assert shown(collector.pieces(ALL)) == [
        (1.0, 3.0, "first"),
        (3.0, 8.0, "second"),
        (20.0, 21.0, "café crème, s'il vous plaît"),
        (22.0, 23.0, "{sic} & b"),
    ]
    assert {piece.language for piece in collector.pieces(ALL)} == {"fre"}


def test_embedded_malformed_packets_are_counted() -> None:
    """Garbage inside a stream costs only itself, and the caller can see how much there was."""
    packets = [(0, 1000, b"garbage"), (1000, 1000, b"0,0,Default,,0,0,0,,said"), (2000, 1000, b"\xff\xfe\xff")]
    (collector,) = collect(matroska("ass", packets))
    assert shown(collector.pieces(ALL)) == [(1.0, 2.0, "said")]
    assert collector.skipped == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        ("[Script Info]\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,", "{"),
        ("[Script Info]\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,}", "{\\p1"),
        ("1\n00:00:01,000 --> 00:00:02,000\n", "{\\"),
        ("1\n00:00:01,000 --> 00:00:02,000\n", "<br "),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\n", "<c.a"),
        ("1\n00:00:01,000 --> 00:00:02,000\n", "&am"),
    ],
    ids=["braces", "overrides", "srt overrides", "breaks", "tags", "entities"],
)
def test_time_grows_with_the_size_only(head: str, piece: str) -> None:
    """A worker parses files beside the video without a time limit: a megabyte of openings must not take hours."""
    parse_sidecar((head + piece * (1_000_000 // len(piece))).encode(), "x")


def test_deeply_nested_ttml_is_a_damaged_file() -> None:
    """An exception of any other kind would end the run of all videos."""
    nested = "<span>" * 20_000 + "x" + "</span>" * 20_000
    cue = f'<p begin="1s" end="2s">{nested}</p>'
    document = f'<tt xmlns="http://www.w3.org/ns/ttml"><body><div>{cue}</div></body></tt>'
    with pytest.raises(MediaError) as caught:
        parse_sidecar(document.encode(), "x.ttml")
    assert caught.value.code == ErrorCode.NOT_MEDIA
