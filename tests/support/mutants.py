"""Damaged copies of real media files and subtitles, the same for the same seed."""

import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LARGEST_BYTES = 600_000
"""Larger originals are left out: a corpus of hundreds must be read in minutes."""
ABSURD = (0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""For a field of four bytes: nothing, the largest, the smallest negative."""


@dataclass(frozen=True)
class Mutant:
    """`name` tells its number, what was done, and to which file."""

    name: str
    data: bytes


def originals(folder: Path, extensions: frozenset[str]) -> dict[str, bytes]:
    """Files of a folder by their path below it."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if 0 < p.stat().st_size <= LARGEST_BYTES}


MEDIA = frozenset(
    f".{name}" for name in ("mp4", "m4a", "mov", "mkv", "webm", "avi", "ts", "wav", "mp3", "ogg", "flac", "flv", "mpg")
)
SUBTITLES = frozenset({".srt", ".vtt", ".ass", ".ssa", ".ttml"})


def media_mutants(files: Mapping[str, bytes], count: int, seed: int) -> Iterator[Mutant]:
    """`count` mutants; every kind of damage comes in turn, to a file drawn by chance."""
    chance = random.Random(seed)
    names = sorted(files)
    kinds = list(_DAMAGE.items())
    for number in range(count):
        kind, damage = kinds[number % len(kinds)]
        fitting = [name for name in names if _FIELDS.get(kind, lambda _: True)(files[name])]
        name = chance.choice(fitting)
        data = damage(bytearray(files[name]), files[chance.choice(names)], chance)
        yield Mutant(f"{number:04d}-{kind}-{name.rpartition('/')[2]}", bytes(data))


def _bit_flips(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    end = len(data) if chance.random() < 0.5 else min(len(data), 4096)
    for _ in range(chance.choice((1, 8, 64, 512))):
        data[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(data)


def _truncated(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    return bytes(data[: max(1, int(len(data) * chance.random()))])


def _zeroed(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data)), chance.choice((16, 512, 16_384, len(data) // 3))
    data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


def _noise(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data)), chance.choice((16, 512, 16_384))
    data[at : at + length] = chance.randbytes(len(data[at : at + length]))
    return bytes(data)


def _header_swap(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    length = chance.choice((16, 64, 1024, 8192))
    return other[:length] + bytes(data[length:])


def _spliced(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    return bytes(data[: len(data) // 2]) + other[len(other) // 2 :]


def _repeated(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data)), chance.choice((512, 16_384, 65_536))
    return bytes(data[: at + length] + data[at:])


def _fields(*markers: bytes, reach: int, little: bool = False) -> Callable[[bytearray, bytes, random.Random], bytes]:
    """Absurd values in some of the four-byte fields behind a marker (of those that the file has)."""

    def damage(data: bytearray, other: bytes, chance: random.Random) -> bytes:
        places = [at + len(m) for m in markers for at in _all(data, m)]
        for at in chance.sample(places, min(len(places), chance.randint(1, 3))):
            for _ in range(chance.randint(1, 4)):
                field = at + 4 * chance.randrange(reach // 4)
                value = chance.choice((*ABSURD, chance.getrandbits(32)))
                data[field : field + 4] = struct.pack("<I" if little else ">I", value)
        return bytes(data)

    return damage


def _all(data: bytes | bytearray, marker: bytes) -> list[int]:
    found, at = [], data.find(marker)
    while at >= 0 and len(found) < 50:
        found.append(at)
        at = data.find(marker, at + 1)
    return found


def _matroska_duration(data: bytearray, other: bytes, chance: random.Random) -> bytes:
    """Duration and time-code scale of the segment, and the size of its picture."""
    for element in (b"\x44\x89", b"\x2a\xd7\xb1", b"\xb0", b"\xba"):
        at = data.find(element, 0, 4096)
        if at < 0 or chance.random() < 0.3:
            continue
        size = data[at + len(element)] & 0x7F
        if not 0 < size <= 8:
            continue
        start = at + len(element) + 1
        absurd = (struct.pack(">d", chance.choice((1e300, -1.0, 1e12, 1e18))), b"\xff" * 8, b"\0" * 8, b"\x7f" * 8)
        data[start : start + size] = chance.choice(absurd)[:size]
    return bytes(data)


_MP4_TIMES = _fields(b"mvhd", b"tkhd", b"mdhd", b"elst", b"mehd", b"tfdt", reach=28)
_MP4_SAMPLES = _fields(b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"co64", b"stss", b"trun", reach=40)
_MP4_PICTURES = _fields(b"avc1", b"avcC", b"hvc1", b"mp4a", b"esds", b"colr", b"pasp", reach=32)
_AVI = _fields(b"avih", b"strh", b"strf", b"idx1", b"movi", reach=48, little=True)
_RIFF = _fields(b"RIFF", b"fmt ", b"data", b"LIST", reach=12, little=True)
_EBML = b"\x1a\x45\xdf\xa3"

_DAMAGE: dict[str, Callable[[bytearray, bytes, random.Random], bytes]] = {
    "bit_flips": _bit_flips,
    "truncated": _truncated,
    "mp4_times": _MP4_TIMES,
    "zeroed": _zeroed,
    "mkv_header": _matroska_duration,
    "header_swap": _header_swap,
    "mp4_samples": _MP4_SAMPLES,
    "noise": _noise,
    "avi_header": _AVI,
    "spliced": _spliced,
    "mp4_pictures": _MP4_PICTURES,
    "repeated": _repeated,
    "riff_sizes": _RIFF,
}
_FIELDS: dict[str, Callable[[bytes], bool]] = {
    "mp4_times": lambda data: b"mvhd" in data,
    "mp4_samples": lambda data: b"stts" in data,
    "mp4_pictures": lambda data: b"mvhd" in data,
    "mkv_header": lambda data: data.startswith(_EBML),
    "avi_header": lambda data: b"avih" in data,
    "riff_sizes": lambda data: data.startswith(b"RIFF"),
}


# ------------------------------------------------------------------------------------------------------ subtitles


def subtitle_mutants(texts: Mapping[str, bytes], count: int, seed: int) -> Iterator[Mutant]:
    """`count` subtitle files: first what was made to hurt, one of each, then damaged copies of real ones."""
    chance = random.Random(seed)
    made = _hostile_subtitles()
    names = sorted(texts)
    damages: Sequence[Callable[[bytearray, bytes, random.Random], bytes]] = (_bit_flips, _truncated, _noise, _spliced)
    for number in range(count):
        if number < len(made):
            name, data = made[number]
        else:
            name = chance.choice(names)
            data = chance.choice(damages)(bytearray(texts[name]), texts[chance.choice(names)], chance)
        yield Mutant(f"{number:04d}-{name.rpartition('/')[2]}", data)


def _cue(text: str, start: str = "00:00:01,000", end: str = "00:00:02,000") -> str:
    return f"1\n{start} --> {end}\n{text}\n\n"


def _hostile_subtitles() -> list[tuple[str, bytes]]:
    ass = "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha" * 50}">' for i in range(10))
    tt = '<tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="1s" end="2s">{}</p></div></body></tt>'
    return [
        ("megabyte-line.srt", _cue("x" * 1_000_000).encode()),
        ("many-cues.srt", b"".join(_cue(f"line {i}").encode() for i in range(20_000))),
        ("nul.srt", _cue("be\0fore and \0 after\0").encode()),
        ("control.srt", _cue("\x1b[31mred\x07 \x08\x7f\x85").encode()),
        ("markup.srt", _cue("<script>alert(1)</script><b><i><font color='{\\an8}'>x</b>" * 20).encode()),
        ("sql.srt", _cue("'; DROP TABLE videos; --").encode()),
        ("formula.srt", _cue('=HYPERLINK("http://x")').encode()),
        ("negative.srt", _cue("before the start", "-00:00:05,000", "-00:00:01,000").encode()),
        ("negative-end.srt", _cue("backwards", "00:00:03,000", "00:00:01,000").encode()),
        (
            "overlapping.srt",
            "".join(_cue(f"{i}", "00:00:00,500", f"00:00:{i % 60:02d},900") for i in range(99)).encode(),
        ),
        ("huge-times.srt", _cue("never", "99999999:59:59,999", "999999999:59:59,999").encode()),
        ("from-now-on.srt", _cue("always", "00:00:00,000", "99999999:59:59,999").encode()),
        ("latin1.srt", _cue("Gr\xfc\xdfe aus K\xf6ln").encode("latin-1")),
        ("utf16-without-mark.srt", _cue("Grüße").encode("utf-16-le")),
        ("utf16-odd.srt", b"\xff\xfe" + _cue("Grüße").encode("utf-16-le")[:-1]),
        ("utf32.srt", _cue("Grüße").encode("utf-32")),
        ("surrogates.srt", _cue("a\ud800b\udfff").encode("utf-8", "surrogatepass")),
        ("mixed-encodings.srt", _cue("Grüße").encode() + _cue("Gr\xfc\xdfe").encode("latin-1")),
        ("noise.srt", random.Random(1).randbytes(50_000)),
        ("empty.srt", b""),
        ("only-mark.srt", b"\xef\xbb\xbf"),
        ("only-newlines.srt", b"\r\n\r" * 100_000),
        ("arrows.srt", b"-->" * 200_000),
        ("megabyte-line.vtt", b"WEBVTT\n\n00:01.000 --> 00:02.000\n" + b"<c.a>" * 200_000),
        ("note-without-end.vtt", b"WEBVTT\n\nNOTE " + b"x " * 500_000),
        (
            "times.vtt",
            b"WEBVTT\n\n00:61.000 --> 00:99.999 line:-5% position:1e999%\nodd\n\n99:99:99.999 --> 0:0:0.0\nx",
        ),
        ("braces.ass", (ass + "Dialogue: 0,0:00:01.00,0:00:02.00,Default," + "{" * 100_000).encode()),
        ("drawing.ass", (ass + "Dialogue: 0,0:00:01.00,0:00:02.00,Default,{\\p1}" + "m 0 0 l 1 1 " * 50_000).encode()),
        ("times.ass", (ass + "Dialogue: 0,-1:99:99.99,9999999999:00:00.00,Default,x\n").encode()),
        ("bomb.ttml", f"<!DOCTYPE tt [{entities}]>{tt.format('&e9;')}".encode()),
        ("outside.ttml", f'<!DOCTYPE tt [<!ENTITY x SYSTEM "file:///etc/passwd">]>{tt.format("&x;")}'.encode()),
        ("deep.ttml", tt.format("<span>" * 100_000 + "x" + "</span>" * 100_000).encode()),
        ("times.ttml", tt.replace('"1s"', '"-5s"').replace('"2s"', '"1e400s"').format("x").encode()),
        ("cut.ttml", tt.format("half")[:60].encode()),
    ]
