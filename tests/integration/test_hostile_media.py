"""A file of the archive never makes the decoder open another file or an address, whatever it says.

With `isolation: off`: what the demuxers may do holds without the help of the kernel. tests/integration/
test_confinement.py is about the kernel.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.clips import make_clip
from tests.support.traps import Canary, Port, traps
from vca.core.errors import ErrorCode, MediaError
from vca.core.timeline import Span
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource, RangeSource
from vca.media.probe import MediaInfo
from vca.media.read import ReadPlan
from vca.media.source import Source
from vca.media.subtitles import parse_sidecar

pytestmark = pytest.mark.integration

PLAN = ReadPlan(step_us=500_000, frames_per_step=1, frame_size=32, audio=True, text=True, ocr_frames_per_minute=6.0)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(DecodeConfig(isolation="off")) as process:
        yield process


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 25, tone=[(0.0, 1.0)])


@pytest.fixture
def set_traps(clip: Path, tmp_path: Path) -> Iterator[tuple[Canary, Port]]:
    """The canary is a real video beside the hostile file: opening it would succeed."""
    canary = tmp_path / "canary.mp4"
    canary.write_bytes(clip.read_bytes())
    with traps(canary) as (file, port):
        yield file, port


def _playlists(canary: Path, url: str) -> dict[str, str]:
    """Formats of FFmpeg, and of players, that name other files."""
    host = url.partition("://")[2].partition("/")[0].partition(":")
    lines = {name: f"{name}://{host[0]}:{host[2]}/live" for name in ("rtmp", "rtsp", "udp", "tcp", "ftp", "tls")}
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n"
    return {
        "hls": f"{hls}#EXTINF:2,\n{url}\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n",
        "hls key": f'{hls}#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n',
        "hls map": f'{hls}#EXT-X-MAP:URI="{canary}"\n#EXTINF:2,\nfile:{canary}\n#EXT-X-ENDLIST\n',
        "hls master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
        "hls through protocols": f"{hls}#EXTINF:2,\nconcat:{canary}|{url}\n#EXTINF:2,\n"
        f"subfile,,start,0,end,9,,:{canary}\n",
        **{f"hls over {name}": f"{hls}#EXTINF:2,\n{line}\n" for name, line in lines.items()},
        "concat": f"ffconcat version 1.0\nfile '{canary}'\nfile '{url}'\n",
        "concat option": f"ffconcat version 1.0\nfile '{canary}'\noption safe 0\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        f'bandwidth="1"><BaseURL>{url}</BaseURL><SegmentList><Initialization sourceURL="{url}"/><SegmentURL '
        f'media="file:{canary}"/></SegmentList></Representation></AdaptationSet></Period></MPD>',
        "ismv manifest": f'<SmoothStreamingMedia><StreamIndex Url="{url}"/></SmoothStreamingMedia>',
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {host[2]} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "asf reference": f"[Reference]\r\nRef1={url}\r\nRef2={canary}\r\n",
        "pls": f"[playlist]\nFile1={url}\nFile2={canary}\nNumberOfEntries=2\nVersion=2\n",
        "ram": f"{url}\nfile://{canary}\n",
        "smil": f'<smil><body><video src="{url}"/></body></smil>',
        "vobsub": f"# VobSub index file, v7\nsize: 720x576\nid: en, index: 0\n# {canary}\n",
        "avisynth": f'Import("{canary}")\nDirectShowSource("{canary}")\n',
        "lavf filter": f"movie={canary}",
        "quicktime link": '<?xml version="1.0"?><?quicktime type="application/x-quicktime-media-link"?>'
        f'<embed src="{url}"/>',
    }


NAMES = sorted(_playlists(Path("/canary"), "http://127.0.0.1:1/x"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".mp4", ".m3u8", ".mpd"])
def test_text_that_names_others_is_no_media(
    decoder: DecoderProcess, tmp_path: Path, set_traps: tuple[Canary, Port], name: str, ending: str
) -> None:
    """Playlists, manifests, descriptions of sessions and scripts are not media, by file and by ranges."""
    canary, port = set_traps
    path = tmp_path / f"hostile{ending}"
    path.write_text(_playlists(canary.path, f"http://127.0.0.1:{port.number}/x.ts")[name])
    for source in (LocalSource(str(path)), _ranges(path)):
        with pytest.raises(MediaError) as caught:
            decoder.probe(source)
        assert caught.value.code is ErrorCode.NOT_MEDIA
        assert not canary.was_opened()
        assert not port.was_called()


def _ranges(path: Path) -> RangeSource:
    data = path.read_bytes()
    return RangeSource(lambda offset, size: data[offset : offset + size], len(data), path.name)


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _with_references(clip: bytes, reference: bytes) -> bytes:
    """An MP4 whose tracks say that their samples lie elsewhere: the entry of every `dref` is exchanged.

    The index stands behind the samples here, so no offset changes; the sizes of the boxes around it do.
    """
    end = clip.index(b"moov") - 4
    assert clip.index(b"mdat") < end, "the samples must come first"
    return clip[:end] + _rebuilt(clip[end:], reference)


def _rebuilt(boxes: bytes, reference: bytes) -> bytes:
    parts = []
    while boxes:
        size, kind = struct.unpack(">I4s", boxes[:8])
        content = boxes[8:size]
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            content = _rebuilt(content, reference)
        elif kind == b"dref":
            content = struct.pack(">II", 0, 1) + reference
        parts.append(_box(kind, content))
        boxes = boxes[size:]
    return b"".join(parts)


def _alias(path: Path) -> bytes:
    """A QuickTime alias, the kind of reference that FFmpeg can follow: it finds the file by its absolute path."""
    name = path.name.encode()[:63]
    record = bytes(6) + struct.pack(">HH", 0, 2)
    record += struct.pack(">B27s", 6, b"volume") + bytes(12) + struct.pack(">B63s", len(name), name)
    record += bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    absolute = f"volume:{str(path).strip('/').replace('/', ':')}".encode()
    posix = str(path).encode()
    for kind, text in ((2, absolute), (18, posix)):
        record += struct.pack(">HH", kind, len(text)) + text + bytes(len(text) % 2)
    return _box(b"alis", struct.pack(">I", 0), record + struct.pack(">HH", 0xFFFF, 0))


def _matroska_links(clip: Path, folder: Path) -> bytes:
    """A Matroska file that names the files before and after it, written over the names of its writers."""
    data = make_clip(folder / "plain.mkv", 25, tone=[(0.0, 1.0)]).read_bytes()
    for element, link in ((b"\x4d\x80", b"\x3c\x83\xab"), (b"\x57\x41", b"\x3e\x83\xbb")):
        at = data.index(element + b"\x8c" if element + b"\x8c" in data else element, 0, 4096)
        length = data[at + 2] & 0x7F
        name = b"canary.mp4".ljust(length - 1)[: length - 1]
        data = data[:at] + link + bytes([0x80 | (length - 1)]) + name + data[at + 3 + length :]
    return data


def _crafted(clip: Path, canary: Path, url: str, folder: Path) -> dict[str, bytes]:
    data = clip.read_bytes()
    location = url.encode() + b"\0"
    link = _box(b"rmra", _box(b"rmda", _box(b"rdrf", struct.pack(">I4sI", 0, b"url ", len(location)), location)))
    return {
        "mp4 reference to an address": _with_references(data, _box(b"url ", bytes(4), location)),
        "mp4 reference to a file": _with_references(data, _box(b"url ", bytes(4), f"file://{canary}".encode() + b"\0")),
        "mp4 alias of a file": _with_references(data, _alias(canary)),
        "quicktime reference movie": _box(b"ftyp", b"qt  ", bytes(4)) + _box(b"moov", link),
        "matroska linked segments": _matroska_links(clip, folder),
    }


CRAFTED = [
    "mp4 reference to an address", "mp4 reference to a file", "mp4 alias of a file", "quicktime reference movie",
    "matroska linked segments",
]  # fmt: skip


def _read(decoder: DecoderProcess, source: Source) -> MediaInfo | ErrorCode:
    try:
        info = decoder.probe(source)
        decoder.read(source, info, Span(0, info.duration_us), PLAN)
    except MediaError as error:
        return error.code
    return info


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("name", CRAFTED)
def test_references_in_containers_are_not_followed(
    clip: Path, tmp_path: Path, set_traps: tuple[Canary, Port], name: str, backend: str
) -> None:
    """What a container says about other files is ignored by both decoders; its own samples are read."""
    canary, port = set_traps
    path = tmp_path / ("hostile.mkv" if "matroska" in name else "hostile.mp4")
    path.write_bytes(_crafted(clip, canary.path, f"http://127.0.0.1:{port.number}/x", tmp_path)[name])
    with DecoderProcess(DecodeConfig.model_validate({"isolation": "off", "backend": backend})) as decoder:
        for source in (LocalSource(str(path)), _ranges(path)):
            found = _read(decoder, source)
            assert not canary.was_opened()
            assert not port.was_called()
            if "movie" in name:
                assert found in (ErrorCode.NO_STREAM, ErrorCode.HEADER_DAMAGED)
            elif "alias" not in name:  # FFmpeg knows no samples of a track whose file it must not open
                assert isinstance(found, MediaInfo)


def test_the_alias_is_one_that_ffmpeg_would_follow(clip: Path, tmp_path: Path, set_traps: tuple[Canary, Port]) -> None:
    """The test above can fail: with FFmpeg's own leave to do so, the same file opens the canary."""
    import av

    canary, _ = set_traps
    path = tmp_path / "hostile.mp4"
    path.write_bytes(_with_references(clip.read_bytes(), _alias(canary.path)))
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with suppress(av.FFmpegError), av.open(str(path), container_options=options) as container:
        list(container.demux())
    assert canary.was_opened()


def test_the_playlist_is_one_that_ffmpeg_would_follow(tmp_path: Path, set_traps: tuple[Canary, Port]) -> None:
    """The same for playlists: without our list of demuxers FFmpeg opens the canary."""
    import av

    canary, port = set_traps
    path = tmp_path / "hostile.ffconcat"
    path.write_text(_playlists(canary.path, f"http://127.0.0.1:{port.number}/x")["concat option"])
    with av.open(str(path), container_options={"safe": "0"}) as container:
        list(container.demux())
    assert canary.was_opened()


PROTOCOL_NAMES: list[str] = [
    "concat:a.mp4|canary.mp4", "concatf:canary.mp4", "subfile,,start,0,end,99999,,:canary.mp4", "pipe:0.mp4", "fd:.mp4",
    "file:canary.mp4", "crypto:canary.mp4", "cache:canary.mp4", "async:canary.mp4", "data:video%2Fmp4;base64,AA.mp4",
    "http:127.0.0.1.mp4", "s3:bucket.mp4", "tee:canary.mp4", "udp:127.0.0.1.mp4", "unix:canary.mp4", "-i canary.mp4",
    "--config=canary.mp4", "img%03d.mp4", "*.mp4", "canary.mp4?.mp4", "canary.mp4#.mp4", "|canary.mp4", "@canary.mp4",
]  # fmt: skip


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_names_are_only_names(clip: Path, tmp_path: Path, set_traps: tuple[Canary, Port], backend: str) -> None:
    """Names that are protocols, options and patterns of FFmpeg open the file that is called so, by both decoders."""
    canary, port = set_traps
    with DecoderProcess(DecodeConfig.model_validate({"isolation": "off", "backend": backend})) as decoder:
        for name in PROTOCOL_NAMES:
            path = tmp_path / name
            path.write_bytes(clip.read_bytes())
            found = _read(decoder, LocalSource(str(path)))
            assert isinstance(found, MediaInfo), name
            assert found.duration_us == 1_000_000
            assert not canary.was_opened(), name
            assert not port.was_called(), name


SIDECARS: dict[str, Callable[[Path, str], str]] = {
    "entity.ttml": lambda path, url: (
        f'<?xml version="1.0"?><!DOCTYPE tt [<!ENTITY a SYSTEM "file://{path}"><!ENTITY b '
        f'SYSTEM "{url}">]><tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="0s" end="1s">&a;&b;x</p>'
        "</div></body></tt>"
    ),
    "laughs.ttml": lambda path, url: (
        '<?xml version="1.0"?><!DOCTYPE tt [<!ENTITY a0 "ha">'
        + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
        + ']><tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="0s" end="1s">&a11;x</p></div></body></tt>'
    ),
    "style.vtt": lambda path, url: (
        f"WEBVTT\n\nSTYLE\n@import url({url});\n\n00:00.000 --> 00:01.000\n<img src={url}>x\n"
    ),
    "include.ass": lambda path, url: (
        f"[Script Info]\nScriptType: v4.00+\nInclude: {path}\nAudio File: {path}\n"
        f"Video File: {url}\n\n[Aegisub Project Garbage]\nVideo File: {path}\n\n[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        f"Dialogue: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,{{\\fn{path}}}x\n"
    ),
    "link.srt": lambda path, url: (
        f'1\n00:00:00,000 --> 00:00:01,000\n<font face="{path}"><a href="{url}">x</a></font>\n'
    ),
}


@pytest.mark.parametrize("name", sorted(SIDECARS))
def test_subtitle_files_lead_nowhere(name: str, set_traps: tuple[Canary, Port]) -> None:
    """Entities, imports, includes and links inside a subtitle file open nothing; entities are refused."""
    canary, port = set_traps
    text = SIDECARS[name](canary.path, f"http://127.0.0.1:{port.number}/x")
    if name.endswith(".ttml"):
        with pytest.raises(MediaError, match="document type definitions are refused"):
            parse_sidecar(text.encode(), name)
    else:
        assert [piece.text for piece in parse_sidecar(text.encode(), name)] == ["x"]
    assert not canary.was_opened()
    assert not port.was_called()
