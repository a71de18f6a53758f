"""Subtitles of embedded streams and of files beside the video."""

import av
import av.subtitles.stream

from vca.core.records import TextPiece
from vca.core.timeline import Span


class SubtitleCollector:
    """Decodes one embedded subtitle stream."""

    def __init__(self, stream: av.subtitles.stream.SubtitleStream, zero_us: int) -> None:
        self._stream = stream
        self._zero_us = zero_us

    def feed(self, packet: av.Packet) -> None:
        """Take one packet of the stream."""

    def pieces(self, span: Span) -> list[TextPiece]:
        """Subtitles that start in `span`."""
        return []


def parse_sidecar(data: bytes, name: str) -> list[TextPiece]:
    """Texts of a subtitle file."""
    return []
