"""One pass over the packets of a segment: seek, demux, decode, hand over to collectors."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import av
from av.sidedata.sidedata import Type as SideData

from vca.core.timeline import US_PER_S, Span, ticks_to_us
from vca.media.audio import AudioCollector
from vca.media.captions import CaptionCollector
from vca.media.container import Media, can_decode, decoder_message, memory_is_short, side_data
from vca.media.frames import PyavPicture, ScreenSampler
from vca.media.fresh_sound import can_start_afresh, fresh_decoder, opus_cut_ticks
from vca.media.subtitles import SubtitleCollector
from vca.media.unseen import UnseenPictures, can_skip

_INTERLEAVE_US = 10 * US_PER_S
"""How far behind one stream may lag another in the file. Beyond it a stream that is silent has ended."""
_WARM_UP_US = 300_000
"""Sound decoded before the segment, so that overlapping transforms and bit reservoirs are filled."""
_PENDING_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Collectors:
    """Who gets what. None: that part is not wanted."""

    sampler: ScreenSampler | None = None
    sound: AudioCollector | None = None
    subtitles: list[tuple[int, SubtitleCollector]] = field(default_factory=list)  # stream index, collector
    captions: CaptionCollector | None = None


@dataclass(frozen=True, slots=True)
class VideoPacket:
    """What decord needs to be checked against."""

    time_us: int | None
    duration_us: int
    clean: bool
    is_key: bool


@dataclass(slots=True)
class Handover:
    """Where a pass ended, for the pass over the span right behind it: it neither seeks nor decodes anything twice.

    Made by `SegmentPass.handover`. The media and their decoders go with it.
    """

    media: Media
    end_us: int
    pictures: list[tuple[av.VideoFrame, int, int]]
    """The last that were shown, with time and duration: one of them is on screen when the next span starts."""
    packets: list["av.Packet[Any]"]
    """Read already, but wanted by the next span; of the sound also those that warm its decoder up."""
    last_us: int | None
    dts: tuple[int | None, int | None]
    video_end_us: int


class SegmentPass:
    """Reads `span` once. After `run` its attributes tell what was met.

    `video` is "decode", "look" (list the packets, decode only the first picture) or "skip". `preroll_us` asks for
    pictures before the span too, for captions that are transmitted before they show. `skips` leaves out pictures that
    no sample time falls on, where that changes nothing else.
    """

    def __init__(
        self,
        media: Media,
        span: Span,
        to: Collectors,
        *,
        video: Literal["decode", "look", "skip"],
        keyframes: bool = False,
        preroll_us: int = 0,
        skips: bool = True,
    ) -> None:
        self.damaged = 0
        self.n_video_packets = 0
        self.n_audio_packets = 0
        self.n_encrypted = 0
        self.n_pictures = 0
        self.video_start_us: int | None = None  # earliest time of a video packet that was met
        self.video_end_us = 0  # end of the last video packet that was met, decodable or not
        self.at_end = False
        self.error: str | None = None  # the decoder's last complaint
        self.has_captions = False
        self.packets: list[VideoPacket] = []
        self.first_picture: av.VideoFrame | None = None

        self._media = media
        self._span = span
        self._to = to
        self._mode = video if can_decode(media.video) else "skip"
        self._keyframes = keyframes
        self._preroll_us = preroll_us
        self._decode_from_us = span.start_us - preroll_us
        self._sought = False
        self._late = False
        self._unseen: UnseenPictures | None = None
        if skips and self._mode == "decode" and not keyframes and to.sampler is not None and can_skip(media):
            self._unseen = UnseenPictures(media, to.sampler.times_us, span.end_us, captions=to.captions is not None)
        self._video_done = self._mode == "skip"
        self._audio_done = to.sound is None or not can_decode(media.audio)
        self._sound_decoder = media.audio.codec_context if media.audio is not None and not self._audio_done else None
        self._pending: list[av.Packet[Any]] | None = []  # since the last key frame before the span; None: decoding
        self._pending_bytes = 0
        self._anchor_us: int | None = None  # pictures before it depend on pictures that were not decoded
        self._first_dts: int | None = None
        self._dts_shift: int | None = None
        self._last_us: int | None = None
        self._period_us = self._nominal_period_us()
        self._first_audio = True
        self._opus_begins = False  # its decoder was made by us and has given nothing yet
        self._goes_on = False
        self._dropped = False
        self._shown: deque[tuple[av.VideoFrame, int, int]] = deque(maxlen=3)
        self._kept: list[av.Packet[Any]] | None = []  # see `Handover.packets`; None: too much, or not to be told
        self._kept_bytes = 0
        self._replayed: Iterator[av.Packet[Any]] = iter(())

    @property
    def skipped_too_much(self) -> bool:
        """What came later told that every picture was wanted."""
        return self._unseen is not None and self._unseen.skipped_too_much

    def run(self, back_us: int | None) -> bool:
        """Read the span, from `back_us` before it or (None) from the start of the file.

        Returns False where the seek landed too late: open the file again and go back further; or, if
        `skipped_too_much`, go back as far again without skipping. The collectors have then seen a part of the packets
        and must be made anew.
        """
        streams = self._streams()
        if not streams:
            return True
        seeks = back_us is not None and self._span.start_us > back_us
        if seeks and not self._seek(self._span.start_us - (back_us or 0)):
            return False
        return self._read(self._demux(streams))

    def run_on(self, before: Handover) -> bool:
        """Read the span that starts where the pass behind `before` ended. Returns False as `run` does.

        The pictures are those of an uninterrupted decoder. The sound starts afresh with the same packets as after a
        seek, so that it is the same, too.
        """
        assert before.media is self._media, "a handover of other media"
        assert before.end_us == self._span.start_us, "a handover of another place"
        self._goes_on = True
        self._pending = None
        self._last_us, self.video_end_us = before.last_us, before.video_end_us
        self._first_dts, self._dts_shift = before.dts
        if not self._audio_done:
            self._sound_decoder = fresh_decoder(self._media.audio)
            self._opus_begins = self._sound_decoder.name == "opus"
        if before.pictures:
            self.n_video_packets, self.video_start_us = len(before.pictures), before.pictures[0][1]
        for frame, time_us, duration_us in before.pictures:
            self._show_at(frame, time_us, duration_us)
        if self._late:
            return False
        self._replayed = iter(before.packets)
        return self._read(chain(self._replayed, self._demux(self._streams())))

    def handover(self) -> Handover | None:
        """For the next span; None where that must seek: after damage, with captions, where only decoding times tell."""
        fit = (
            self._video_done
            and not self.at_end
            and not self._late
            and self.damaged == 0
            and not self.has_captions
            and not self._media.uses_dts
            and (self._to.sound is None or can_start_afresh(self._media.audio))
        )
        pictures = list(self._shown)
        if self._mode == "decode":
            fit = fit and bool(pictures) and pictures[0][1] <= self._span.end_us
        if not fit or self._kept is None or self._mode == "look":
            return None
        packets = [*self._kept, *self._replayed]  # a short span may not have come to the end of those that it was given
        clock = (self._last_us, (self._first_dts, self._dts_shift), self.video_end_us)
        return Handover(self._media, self._span.end_us, pictures, packets, *clock)

    def _read(self, packets: Iterator["av.Packet[Any]"]) -> bool:
        for packet in packets:
            self._route(packet)
            if self._late or self.skipped_too_much:
                return False
            if (self._video_done and self._audio_done and self._wanted()) or self._far_behind(packet):
                break
        else:
            self.at_end = True
            if self._dropped and not self._pending:
                return False  # the file ended before a key frame came
        self._finish()
        return not self._late and not self.skipped_too_much

    def _keep(self, packet: "av.Packet[Any]") -> None:
        if self._kept is None:
            return
        self._kept.append(packet)
        self._kept_bytes += packet.size
        if self._kept_bytes > _PENDING_BYTES:
            self._kept = None

    def _wanted(self) -> bool:
        """With neither pictures nor sound to wait for, only the time of subtitle packets ends the pass."""
        return self._mode != "skip" or self._to.sound is not None

    def _streams(self) -> list[Any]:
        streams: list[Any] = []
        if self._mode != "skip":
            streams.append(self._media.video)
        if not self._audio_done:
            streams.append(self._media.audio)
        wanted = {index for index, _ in self._to.subtitles}
        return streams + [s for s in self._media.subtitles if s.index in wanted]

    def _seek(self, time_us: int) -> bool:
        stream = self._media.video if self._mode != "skip" else self._media.audio
        if stream is None or not stream.time_base:
            return False
        ticks = int((time_us + self._media.zero_us) / US_PER_S / stream.time_base)
        try:
            self._media.container.seek(ticks, stream=stream, backward=True)
        except MemoryError:
            raise
        except (av.FFmpegError, OverflowError):
            return False
        self._sought = True
        return True

    def _demux(self, streams: list[Any]) -> Iterator["av.Packet[Any]"]:
        try:
            for packet in self._media.container.demux(streams):
                if packet.size > 0:  # the empty ones at the end tell decoders to flush, which `_finish` does
                    yield packet
        except MemoryError:
            raise
        except av.FFmpegError as error:
            self.damaged += 1
            self.error = decoder_message(error)

    def _far_behind(self, packet: "av.Packet[Any]") -> bool:
        if packet.dts is None:
            return False
        return self._media.to_clock(packet.dts, packet.stream_index) > self._span.end_us + _INTERLEAVE_US

    def _route(self, packet: "av.Packet[Any]") -> None:
        if self._media.video is not None and packet.stream_index == self._media.video.index:
            self._video_packet(packet)
        elif self._media.audio is not None and packet.stream_index == self._media.audio.index:
            self._audio_packet(packet)
        else:
            for index, collector in self._to.subtitles:
                if index == packet.stream_index:
                    collector.feed(packet)
            time_us = self._media.packet_time_us(packet)
            if time_us is None or time_us >= self._span.end_us - _WARM_UP_US:
                self._keep(packet)

    def _finish(self) -> None:
        self._release_pending()
        if self._mode == "decode":
            if not self._video_done:
                self._decode_video(None)
            if self._unseen is not None:
                self._unseen.finish()
            if self._to.sampler is not None:
                if self._keyframes:  # the last one stands for the pictures behind it, which were met but not decoded
                    self._to.sampler.hold_until(self.video_end_us)
                self._to.sampler.finish(at_end=self.at_end)
        if self._to.sound is not None and can_decode(self._media.audio):
            self._decode_audio(None)
            self._to.sound.flush()

    def _count_encrypted(self, packet: "av.Packet[Any]") -> None:
        """Of interest is only whether all are: the first that is not ends the counting."""
        if self.n_encrypted == self.n_video_packets + self.n_audio_packets - 1:
            self.n_encrypted += packet.has_sidedata("encryption_info")

    # sound

    def _audio_packet(self, packet: "av.Packet[Any]") -> None:
        self.n_audio_packets += 1
        time_us = self._media.packet_time_us(packet)
        if time_us is None:
            self._kept = None
        elif time_us >= self._span.end_us - _WARM_UP_US - self._media.packet_duration_us(packet):
            self._keep(packet)
        if self._audio_done:
            return
        self._count_encrypted(packet)
        if time_us is not None:
            if self._first_audio and self._sought and time_us > self._span.start_us:
                self._late = True
            self._first_audio = False
            if time_us >= self._span.end_us:
                self._audio_done = True
                return
            if time_us < self._span.start_us - _WARM_UP_US - self._media.packet_duration_us(packet):
                return
        self._decode_audio(packet)

    def _decode_audio(self, packet: "av.Packet[Any] | None") -> None:
        assert self._media.audio is not None
        assert self._to.sound is not None
        assert self._sound_decoder is not None
        try:
            frames = self._sound_decoder.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            self._complain(error, packet)
            return
        for frame in frames:
            # the stream's time base: frames that come out at the flush carry none
            pts = frame.pts
            if self._opus_begins and pts is not None and packet is not None:
                pts += opus_cut_ticks(packet, frame)
            self._opus_begins = False
            time_us = None if pts is None else self._media.to_clock(pts, self._media.audio.index)
            try:
                self._to.sound.feed(frame, time_us)
            except MemoryError:
                raise
            except (av.FFmpegError, ValueError) as error:  # a header that changed in mid-stream to something senseless
                self._complain(error, packet)

    # pictures

    def _video_packet(self, packet: "av.Packet[Any]") -> None:
        self.n_video_packets += 1
        self._count_encrypted(packet)
        time_us = self._media.packet_time_us(packet)
        if time_us is not None and not packet.is_discard:
            self.video_start_us = time_us if self.video_start_us is None else min(self.video_start_us, time_us)
            self.video_end_us = max(
                self.video_end_us, time_us + (self._media.packet_duration_us(packet) or self._period_us)
            )
        if self._mode == "look":
            self._look(packet, time_us)
        elif self._video_done:
            self._keep(packet)
        elif self._keyframes and not packet.is_keyframe and self._pending is None:
            return
        elif self._pending is None:
            self._decode_video(packet)
        else:
            self._hold(packet, time_us)

    def _look(self, packet: "av.Packet[Any]", time_us: int | None) -> None:
        clean = packet.pts is not None and not packet.is_corrupt and not packet.is_discard
        length_us = self._media.packet_duration_us(packet) or self._period_us
        self.packets.append(VideoPacket(time_us, length_us, clean, packet.is_keyframe))
        if self.first_picture is None and self.damaged == 0:
            self._decode_video(packet)

    def _hold(self, packet: "av.Packet[Any]", time_us: int | None) -> None:
        """Keep packets back until it is clear from which key frame decoding must start: the last one before the span.

        Seeking lands up to some groups of pictures early. To demux them costs next to nothing compared with decoding.
        """
        assert self._pending is not None
        is_early = time_us is not None and time_us <= max(self._decode_from_us, 0)
        if packet.is_keyframe and is_early:
            self._pending, self._pending_bytes = [packet], packet.size
            self._anchor_us = time_us
            return
        if not self._pending and self._sought:
            if packet.is_keyframe:
                self._late = True  # the first key frame lies behind the start: go back further
            self._dropped = True  # pictures without their key frame
            return
        self._pending.append(packet)
        self._pending_bytes += packet.size
        dts_us = time_us if packet.dts is None else self._media.to_clock(packet.dts, packet.stream_index)
        if dts_us is None or dts_us > self._decode_from_us or self._pending_bytes > _PENDING_BYTES:
            self._release_pending()

    def _release_pending(self) -> None:
        pending, self._pending = self._pending, None
        for index, packet in enumerate(pending or ()):
            if not self._keyframes or packet.is_keyframe or index == 0:
                self._decode_video(packet)

    def _decode_video(self, packet: "av.Packet[Any] | None") -> None:
        assert self._media.video is not None
        if packet is not None:
            if packet.is_corrupt:
                self._damage()
            if self._first_dts is None:
                self._first_dts = packet.dts
            if self._unseen is not None:
                self._unseen.before(packet, self._last_us)
        try:
            frames = self._media.video.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            self._complain(error, packet)
            self._damage(count=False)
            return
        for frame in frames:
            self._show(frame)

    def _show(self, frame: av.VideoFrame) -> None:
        time_us = self._frame_time_us(frame)
        if self._sought and self._anchor_us is not None and time_us < self._anchor_us:
            return  # refers to pictures before the key frame
        self._show_at(frame, time_us, self._frame_duration_us(frame))

    def _show_at(self, frame: av.VideoFrame, time_us: int, duration_us: int) -> None:
        self.n_pictures += 1
        if self.first_picture is None:
            self.first_picture = frame
            self.has_captions = side_data(frame, SideData.A53_CC) is not None
            inside = self._sought or self._goes_on
            if self.has_captions and self._to.captions is not None and inside and not self._preroll_us:
                self._late = True  # come again with pictures from before the span
        if self._mode == "look":
            return
        if self._unseen is not None:
            self._unseen.shown(frame)
        self._shown.append((frame, time_us, duration_us))
        if self._to.captions is not None:
            self._to.captions.feed(frame, time_us)
        if self._to.sampler is not None:
            self._to.sampler.show(PyavPicture(frame), time_us, duration_us)
            captions_open = self.has_captions and self._to.captions is not None and time_us < self._span.end_us
            self._video_done = self._to.sampler.done and not captions_open

    def _frame_time_us(self, frame: av.VideoFrame) -> int:
        """Time on the clock, never going back.

        AVI and some raw streams know decoding times only. The decoder hands those through with the packet that let the
        frame out, late by its reordering delay; the first frame tells the delay. A stream whose times jump back (joined
        recordings) goes on frame by frame.
        """
        ticks = frame.pts
        if self._media.uses_dts or ticks is None:
            ticks = frame.dts
            if ticks is not None and self._first_dts is not None:
                if self._dts_shift is None:
                    self._dts_shift = ticks - self._first_dts
                ticks -= self._dts_shift
        assert self._media.video is not None
        time_us = None if ticks is None else self._media.to_clock(ticks, self._media.video.index)
        if self._last_us is not None and (time_us is None or time_us <= self._last_us):
            time_us = self._last_us + self._frame_duration_us(frame)
        self._last_us = time_us if time_us is not None else 0
        return self._last_us

    def _frame_duration_us(self, frame: av.VideoFrame) -> int:
        assert self._media.video is not None
        # the stream's time base: frames that come out at the flush carry none
        return ticks_to_us(frame.duration, self._media.time_base(self._media.video.index)) or self._period_us

    def _complain(self, error: Exception, packet: "av.Packet[Any] | None") -> None:
        if packet is None or isinstance(error, EOFError):
            return
        if memory_is_short():  # decoders report a failed allocation as bad data
            raise MemoryError
        self.damaged += 1
        self.error = decoder_message(error)

    def _damage(self, *, count: bool = True) -> None:
        self.damaged += count
        if self._unseen is not None:
            self._unseen.stop()  # the picture before stands in for the lost one
        if self._to.sampler is not None:
            self._to.sampler.damage()

    def _nominal_period_us(self) -> int:
        rate = (
            self._media.video.average_rate if self._media.video is not None and can_decode(self._media.video) else None
        )
        return min(US_PER_S, max(1000, round(US_PER_S / rate))) if rate else 40_000
