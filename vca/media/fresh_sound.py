"""Decoders of sound that start afresh in the middle of a stream that is read on."""

from fractions import Fraction
from typing import Any

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream

from vca.media.container import can_decode

_MADE_ANEW = frozenset({"aac", "aac_latm", "ac3", "eac3", "mp2", "mp2float", "mp3", "mp3float", "opus"})
"""Decoders of sound that keep something when they are flushed: AAC and AC-3 fill bands with noise, and would go on with
other noise than after a seek. Their streams say all that a new decoder has to know.
"""
_FLUSHED = ("pcm_", "flac", "alac", "vorbis")
"""Decoders of sound, by the start of their names, that a flush makes as good as new."""


def can_start_afresh(stream: AudioStream | None) -> bool:
    """Whether `fresh_decoder` gives the sound of this stream as after a seek, to the bit."""
    if stream is None or not can_decode(stream):
        return True
    name = stream.codec_context.name
    return name in _MADE_ANEW or name.startswith(_FLUSHED)


def fresh_decoder(stream: AudioStream | None) -> AudioCodecContext:
    """A decoder for the packets of a stream that was never fed: the one of the stream has been drained."""
    assert stream is not None
    old = stream.codec_context
    if old.name not in _MADE_ANEW:
        old.flush_buffers()
        return old
    new = AudioCodecContext.create(old.name, "r")
    assert isinstance(new, AudioCodecContext)
    new.extradata = old.extradata
    new.thread_count = 1
    return new


def opus_cut_ticks(packet: "av.Packet[Any]", frame: av.AudioFrame) -> int:
    """How much of its first packet a new decoder of Opus left out at the start of `frame`, in ticks.

    FFmpeg adds that to the time of the frame only if the decoder knows the time base of its packets, which PyAV tells
    the decoders of a container alone. Packets hold a multiple of 2.5 ms (RFC 6716, section 2.1.4).
    """
    if packet.time_base is None or not packet.duration:
        return 0
    unit = frame.sample_rate // 400
    whole = round(packet.duration * packet.time_base * frame.sample_rate / unit) * unit
    cut_s = Fraction(max(0, whole - frame.samples), frame.sample_rate)
    return int(cut_s / packet.time_base + Fraction(1, 2))  # as FFmpeg rounds
