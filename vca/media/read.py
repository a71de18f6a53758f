"""One bounded segment of a video as arrays on one clock: pictures, sound, text, shots. Runs in the decoding child.

One pass over the packets serves everything. Where the user chose decord it takes over the pictures of short, clean
files of common codecs: there the pass decodes a single picture and otherwise only looks at packets, and if the look
disappoints PyAV decodes after all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from vca.core.errors import ErrorCode, Failure, MediaError
from vca.core.records import BoolArray, FloatArray, TextPiece
from vca.core.timeline import US_PER_S, Span, sample_times, step_spans
from vca.media.audio import AudioCollector, samples_between
from vca.media.captions import CaptionCollector
from vca.media.container import Media, can_decode
from vca.media.decode_config import DecodeConfig
from vca.media.demux import Collectors, Handover, SegmentPass
from vca.media.frames import (
    DecordError,
    DecordPicture,
    Picture,
    ScreenSampler,
    Shaper,
    decord_reader,
    orientation,
    scaled_size,
)
from vca.media.probe import MediaInfo
from vca.media.shots import find_shots
from vca.media.subtitles import SubtitleCollector
from vca.media.textframes import TextFramePicker

DECORD_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4"})
_LOOK_SIZE = 224
"""Short side of the pictures that on-screen text is looked for in, and shots too where no encoder wants pictures."""
_BT2020 = (9, 10)
_BACK_US = (300_000, 10 * US_PER_S, 60 * US_PER_S)
"""How far before the segment to seek. 0.3 s warms the audio decoder up; the others are for coarse indexes."""
_CAPTION_PREROLL_US = 4 * US_PER_S
"""A pop-on caption is transmitted up to some seconds before it shows."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What the encoders asked for."""

    step_us: int
    frames_per_step: int
    """0: no encoder wants pictures."""
    frame_size: int
    """Short side in pixels; the aspect ratio is kept."""
    audio: bool
    text: bool
    """Embedded subtitles and captions."""
    ocr_frames_per_minute: float
    """0: no on-screen text."""
    ocr_height: int = 720
    mode: Literal["exact", "keyframes"] = "exact"

    @property
    def pictures(self) -> bool:
        return self.frames_per_step > 0 or self.ocr_frames_per_minute > 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Shape letters: S grid steps of `span`, K = `plan.frames_per_step`, n samples at 16 kHz, M pictures with text."""

    span: Span
    frames: npt.NDArray[np.uint8] | None
    """[S*K, H, W, 3] RGB, upright, square pixels; None where no picture is to be had or wanted."""
    frame_mask: BoolArray
    """[S*K]: where a frame is on screen."""
    frame_times_us: npt.NDArray[np.int64]
    """[S*K]: presentation time of that frame, -1 where masked."""
    audio: FloatArray | None
    """[n] mono, covers `span` exactly, silence in gaps; None where no sound is to be had or wanted."""
    audio_mask: BoolArray
    """[S]: steps with decoded sound."""
    text: tuple[TextPiece, ...]
    """Embedded subtitles and captions that start in `span`."""
    ocr_frames: npt.NDArray[np.uint8]
    """[M, h, w, 3] RGB."""
    ocr_spans: npt.NDArray[np.int64]
    """[M, 2]: from when until when what the picture shows is on screen."""
    shots: tuple[Span, ...]
    coverage_us: int
    """Steps for which the main stream (video if there is one, else sound) really delivered."""
    failure: Failure | None
    """Set where only a part could be decoded."""


class _Pictures:
    """Collects the sampled pictures of a segment, and from them the frames for text recognition and the shots."""

    def __init__(self, info: MediaInfo, span: Span, plan: ReadPlan, max_bytes: int) -> None:
        self._stride = max(plan.frames_per_step, 1)
        self.times_us = sample_times(span, plan.step_us, self._stride)
        self.mask = np.zeros(len(self.times_us), dtype=np.bool_)
        self.pts_us = np.full(len(self.times_us), -1, dtype=np.int64)
        self.frames: npt.NDArray[np.uint8] | None = None
        self._span = span
        self._plan = plan
        self._max_bytes = max_bytes
        self._size = (info.width, info.height) if info.width and info.height else None
        self._one_in = slice(self._stride // 2, None, self._stride)  # the middle sample of every step
        self._shaper: Shaper | None = None
        self._look: Shaper | None = None
        self._large: Shaper | None = None
        wants_text = plan.ocr_frames_per_minute > 0
        self.picker = TextFramePicker(span, plan.ocr_frames_per_minute, plan.ocr_height) if wants_text else None

    def sampler(self) -> ScreenSampler:
        first = self._span.start_us == 0
        return ScreenSampler(
            self.times_us,
            self._take,
            hold_before_us=None if first else self._span.start_us + self._plan.step_us,
            stale_after_us=self._plan.step_us,
        )

    def shots(self) -> tuple[Span, ...]:
        if self.frames is None:
            return ()
        some = self._one_in
        return find_shots(self.frames[some], self.times_us[some], self._span, self.mask[some])

    def _take(self, indices: range, picture: Picture, time_us: int) -> None:
        if self._shaper is None:
            self._prepare(picture)
        assert self._shaper is not None
        assert self.frames is not None
        small = self._shaper(picture)
        self.frames[indices.start : indices.stop] = small
        self.mask[indices.start : indices.stop] = True
        self.pts_us[indices.start : indices.stop] = time_us
        middles = [i for i in indices if i % self._stride == self._stride // 2]
        if self.picker is not None and self._look is not None and self._large is not None and middles:
            large = self._large
            look = small if self._look is self._shaper else self._look(picture)
            gray = (look @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.uint8)
            for index in middles:
                self.picker.offer(int(self.times_us[index]), gray, lambda: large(picture))

    def _prepare(self, picture: Picture) -> None:
        if self._size is None:  # the header told no size
            self._size = picture.size
        short_side = self._plan.frame_size if self._plan.frames_per_step > 0 else _LOOK_SIZE
        width, height = scaled_size(*self._size, short_side)
        size_bytes = len(self.times_us) * width * height * 3
        if size_bytes > self._max_bytes:
            message = f"{len(self.times_us)} pictures of {width}x{height} are above decode.max_output_mb"
            raise MediaError(ErrorCode.OUTPUT_LIMIT, message)
        self._shaper = Shaper(height, width)
        self.frames = np.zeros((len(self.times_us), height, width, 3), dtype=np.uint8)
        self._look = self._shaper if short_side == _LOOK_SIZE else self._shaper_of(_LOOK_SIZE)
        self._large = self._shaper_of(max(2, min(self._plan.ocr_height, *self._size)))

    def _shaper_of(self, short_side: int) -> Shaper:
        assert self._size is not None
        width, height = scaled_size(*self._size, short_side)
        return Shaper(height, width)


class SegmentReader:
    """Decodes segments of one object. Read in order, each goes on where the one before ended.

    Without that a segment begins with decoding from the key frame before it, which is half a group of pictures on
    average: of a minute of common web video 8 %. Where going on is not safe the next segment seeks, as the first does.
    """

    def __init__(self, reopen: Callable[[], Media], path: str | None) -> None:
        """`reopen` opens the object; `path` is its name where it is a local file."""
        self._reopen = reopen
        self._path = path
        self._before: Handover | None = None
        self._before_plan: ReadPlan | None = None
        self._skips = True

    def read(self, info: MediaInfo, span: Span, plan: ReadPlan, config: DecodeConfig) -> Segment:
        """Decode `span`.

        Raises `MediaError`: output_limit; and where neither picture nor sound decodes no_frames, truncated,
        decode_error, encrypted or unsupported_codec.
        """
        before, self._before = self._before, None
        if before is not None and (before.end_us != span.start_us or self._before_plan != plan):
            before.media.close()
            before = None
        job = _Job(self._reopen, info, span, plan, config, before, skips=self._skips)
        try:
            if before is not None and job.read_on(before):
                pass
            elif self._path is not None and _decord_is_worth_a_look(job.media, info, span, plan, config):
                job.read_with_decord(self._path)
            else:
                job.read_with_pyav(sound_and_text=True)
            segment = job.segment()
            self._before, self._before_plan = job.handover(), plan
            self._skips = job.skips
            return segment
        finally:
            if self._before is None:
                job.media.close()

    def close(self) -> None:
        if self._before is not None:
            self._before.media.close()
            self._before = None


def _decord_is_worth_a_look(media: Media, info: MediaInfo, span: Span, plan: ReadPlan, config: DecodeConfig) -> bool:
    """What can be told before any packet is read.

    Only videos of one segment: decord reads a whole file before it hands out a frame.
    """
    return (
        config.backend == "decord"
        and plan.pictures
        and plan.mode == "exact"
        and span.start_us == 0
        and span.end_us >= info.duration_us
        and media.format in DECORD_CONTAINERS
        and media.video is not None
        and can_decode(media.video)
        and media.video.codec_context.name in DECORD_CODECS
    )


class _Job:
    """The reading of one segment: passes over the packets, their collectors, and what is made of them."""

    def __init__(
        self,
        reopen: Callable[[], Media],
        info: MediaInfo,
        span: Span,
        plan: ReadPlan,
        config: DecodeConfig,
        before: Handover | None = None,
        *,
        skips: bool,
    ) -> None:
        """`skips`: pictures that nobody looks at, until it turns out that they matter in this file."""
        self.skips = skips
        self.media = reopen() if before is None else before.media
        self._reopen = reopen
        self._info = info
        self._span = span
        self._plan = plan
        self._max_bytes = config.max_output_mb * 1024 * 1024
        self._steps = step_spans(span, plan.step_us)
        if samples_between(span.start_us, span.end_us) * 4 > self._max_bytes:
            raise MediaError(ErrorCode.OUTPUT_LIMIT, "the sound of the segment is above decode.max_output_mb")
        self._sound: AudioCollector | None = None
        self._subtitles: list[tuple[int, SubtitleCollector]] = []
        self._passed: SegmentPass
        self._renew()

    def read_on(self, before: Handover) -> bool:
        """Go on where the segment before ended. Returns False where it turns out that a seek is needed."""
        one = self._pass("decode" if self._plan.pictures else "skip")
        goes_on = one.run_on(before)
        self.skips &= not one.skipped_too_much
        return goes_on

    def handover(self) -> Handover | None:
        """For the segment behind this one."""
        return self._passed.handover()

    def read_with_pyav(self, *, sound_and_text: bool) -> None:
        """Seek to the key frame before the span and decode; where an index misleads, go back further."""
        preroll_us = 0
        backs_us = [*_BACK_US, None] if self._span.start_us > 0 else [None]
        while backs_us:
            if self._used:
                self.media.close()
                self.media = self._reopen()
            self._renew(sound_and_text=sound_and_text)
            video: Literal["decode", "skip"] = "decode" if self._plan.pictures else "skip"
            one = self._pass(video, preroll_us=preroll_us)
            if one.run(backs_us[0]):
                return
            if one.skipped_too_much:
                self.skips = False
                continue
            backs_us.pop(0)
            preroll_us = _CAPTION_PREROLL_US if one.has_captions and self._plan.text else 0
        raise AssertionError("a pass from the start of the file cannot land late")

    def read_with_decord(self, path: str) -> None:
        """Sound, text and a look at the packets by PyAV, pictures by decord; by PyAV after all where they disagree."""
        look = self._pass("look")
        look.run(None)
        if self._show_with_decord(path, look):
            return
        sound, n_audio_packets = self._sound, look.n_audio_packets
        self.read_with_pyav(sound_and_text=False)
        self._sound, self._passed.n_audio_packets = sound, n_audio_packets

    def _show_with_decord(self, path: str, look: SegmentPass) -> bool:
        frame, packets = look.first_picture, look.packets
        if (
            frame is None
            or look.error is not None
            or (look.has_captions and self._plan.text)  # they ride on the frames, which decord does not hand out
            or not all(p.clean and p.time_us is not None for p in packets)
            or frame.format.name not in ("yuv420p", "yuvj420p")
            or frame.width % 2
            or frame.height % 2  # the two libraries place the last chroma sample differently
            or frame.colorspace in _BT2020
            or orientation(frame) is not None
        ):
            return False
        shown = sorted((p.time_us or 0, p.duration_us, p.is_key) for p in packets)
        times_us, keys = [time_us for time_us, _, _ in shown], [i for i, (_, _, is_key) in enumerate(shown) if is_key]
        reader = decord_reader(path, times_us, keys, self.media.zero_us, (frame.width, frame.height))
        if reader is None:
            return False
        sampler = self._sampler
        assert sampler is not None
        try:
            for index, (time_us, duration_us, _) in enumerate(shown):
                sampler.show(DecordPicture(reader, index), time_us, duration_us)
            sampler.finish(at_end=True)
        except DecordError:
            return False
        look.n_pictures = len(shown)
        return True

    def _renew(self, *, sound_and_text: bool = True) -> None:
        """Fresh collectors for one pass; sound and subtitles are kept where only pictures are missing."""
        plan, media = self._plan, self.media
        self._used = False
        self._pictures = _Pictures(self._info, self._span, plan, self._max_bytes) if plan.pictures else None
        self._sampler = self._pictures.sampler() if self._pictures is not None else None
        self._captions = CaptionCollector(0) if plan.text and plan.pictures else None
        self._reads_sound_and_text = sound_and_text
        if sound_and_text:
            self._sound = AudioCollector(self._span) if plan.audio and can_decode(media.audio) else None
            wanted = media.subtitles if plan.text else []
            self._subtitles = [(s.index, SubtitleCollector(s, media.zero_us)) for s in wanted]

    def _pass(self, video: Literal["decode", "look", "skip"], preroll_us: int = 0) -> SegmentPass:
        everything = self._reads_sound_and_text
        to = Collectors(
            sampler=self._sampler,
            sound=self._sound if everything else None,
            subtitles=self._subtitles if everything else [],
            captions=self._captions,
        )
        self._used = True
        keyframes = self._plan.mode == "keyframes"
        self._passed = SegmentPass(
            self.media, self._span, to, video=video, keyframes=keyframes, preroll_us=preroll_us, skips=self.skips
        )
        return self._passed

    # what came of it

    def segment(self) -> Segment:
        span, pictures, sound = self._span, self._pictures, self._sound
        n_samples = len(self._steps) * self._plan.frames_per_step
        wants_frames = self._plan.frames_per_step > 0 and pictures is not None
        has_picture = pictures is not None and bool(pictures.mask.any())
        audio_mask = sound.mask(self._steps) if sound is not None else np.zeros(len(self._steps), dtype=np.bool_)
        has_sound = bool(audio_mask.any())
        if not has_picture and not has_sound and (self._plan.pictures or self._plan.audio):
            raise self._nothing()
        coverage_us, failure = self._coverage(audio_mask, has_picture)
        if pictures is not None and pictures.picker is not None and has_picture:
            ocr_frames, ocr_spans = pictures.picker.result()
        else:
            ocr_frames, ocr_spans = np.zeros((0, 2, 2, 3), dtype=np.uint8), np.zeros((0, 2), dtype=np.int64)
        text = [piece for _, collector in self._subtitles for piece in collector.pieces(span)]
        if self._captions is not None:
            text += self._captions.pieces(span)
        return Segment(
            span=span,
            frames=pictures.frames if pictures is not None and wants_frames and has_picture else None,
            frame_mask=pictures.mask if pictures is not None and wants_frames else np.zeros(n_samples, dtype=np.bool_),
            frame_times_us=(
                pictures.pts_us if pictures is not None and wants_frames else np.full(n_samples, -1, dtype=np.int64)
            ),
            audio=sound.samples if sound is not None and has_sound else None,
            audio_mask=audio_mask,
            # Subtitles cut from a longer film may name an end behind the end of this video.
            text=tuple(replace(piece, end_us=min(piece.end_us, self._info.duration_us)) for piece in text),
            ocr_frames=ocr_frames,
            ocr_spans=ocr_spans,
            shots=pictures.shots() if pictures is not None and has_picture else (),
            coverage_us=coverage_us,
            failure=failure,
        )

    def _nothing(self) -> MediaError:
        one, span = self._passed, self._span
        where = f"{span.start_us / US_PER_S:.1f} s to {span.end_us / US_PER_S:.1f} s"
        n_packets = one.n_video_packets + one.n_audio_packets
        if n_packets and one.n_encrypted == n_packets:
            return MediaError(ErrorCode.ENCRYPTED, "the packets are encrypted and no key is available")
        if n_packets and one.error is not None:
            return MediaError(ErrorCode.DECODE_ERROR, f"nothing decodes from {where}: {one.error}")
        if not can_decode(self.media.video) and self.media.audio is None:
            return MediaError(ErrorCode.UNSUPPORTED_CODEC, "no decoder for the video stream")
        code = ErrorCode.TRUNCATED if span.start_us > 0 else ErrorCode.NO_FRAMES
        return MediaError(code, f"no picture and no sound from {where}: the data end earlier")

    def _coverage(self, audio_mask: BoolArray, has_picture: bool) -> tuple[int, Failure | None]:
        """Time really delivered, and why it is not all.

        With pictures a step counts if one was on screen in it. After the video stream's regular end (its last packet
        was shown) and before its regular start the sound stands in for it. A rest at the end shorter than a step is
        forgiven: declared durations are rounded.
        """
        one, lengths = self._passed, self._steps[:, 1] - self._steps[:, 0]
        video = self.media.video
        if self._pictures is not None and video is not None and has_picture:
            covered = self._pictures.mask.reshape(len(self._steps), -1).any(axis=1)
            covered |= self._stand_in(audio_mask) & self._outside_video()
            covered &= ~self._missed_head()
        elif audio_mask.any():
            covered = self._filled(audio_mask)
        else:  # neither was asked for
            covered = np.ones(len(self._steps), dtype=np.bool_)
        tail = np.cumsum(np.where(covered, 0, lengths)[::-1])[::-1]  # uncovered time from here on
        ends = np.flatnonzero(covered)
        last = ends[-1] if len(ends) else -1
        if last + 1 < len(covered) and tail[last + 1] <= self._plan.step_us:
            covered[last + 1 :] = True
        coverage_us = int(lengths[covered].sum())
        code = None
        if video is not None and self._plan.pictures and one.n_pictures == 0 and not self._video_ended_before():
            if not can_decode(video):
                code, message = ErrorCode.UNSUPPORTED_CODEC, "no decoder for the video stream; sound only"
            else:
                code, message = ErrorCode.DECODE_ERROR, f"no picture decodes, sound only: {one.error or 'no packets'}"
        elif coverage_us < self._span.duration_us:
            amount = f"{coverage_us / US_PER_S:.2f} s of {self._span.duration_us / US_PER_S:.2f} s"
            if one.damaged:
                code = ErrorCode.DECODE_ERROR
                message = f"{amount} decoded, {one.damaged} damaged packets: {one.error or 'marked corrupt'}"
            else:
                code, message = ErrorCode.TRUNCATED, f"{amount} decoded, then the data end"
        return coverage_us, None if code is None else Failure(code, "read", message)

    def _stand_in(self, audio_mask: BoolArray) -> BoolArray:
        if self._sound is not None:
            return audio_mask
        return np.full(len(self._steps), self._info.has_audio, dtype=np.bool_)  # not asked for, so not known better

    def _outside_video(self) -> BoolArray:
        """Steps before the first and behind the last video packet, if all the pictures in between were shown."""
        one, sampler = self._passed, self._sampler
        assert sampler is not None
        outside = np.zeros(len(self._steps), dtype=np.bool_)
        if one.at_end and sampler.end_us >= one.video_end_us - self._plan.step_us:
            outside |= self._steps[:, 1] > sampler.end_us
        start_us, first_us = one.video_start_us, sampler.first_us
        if start_us is not None and first_us is not None and first_us <= start_us + self._plan.step_us:
            outside |= self._steps[:, 0] < first_us
        return outside

    def _missed_head(self) -> BoolArray:
        """Steps before the first picture although packets were there: the head of the file is damaged or cut off."""
        one, sampler = self._passed, self._sampler
        assert sampler is not None
        start_us, first_us = one.video_start_us, sampler.first_us
        if start_us is None or first_us is None or first_us <= start_us + self._plan.step_us:
            return np.zeros(len(self._steps), dtype=np.bool_)
        return (self._steps[:, 1] > start_us) & (self._steps[:, 1] <= first_us)

    def _filled(self, audio_mask: BoolArray) -> BoolArray:
        """Sound with its gaps, unless packets were lost: some codecs send nothing in silence."""
        if self._passed.damaged:
            return audio_mask.copy()
        covered = audio_mask.copy()
        inside = np.flatnonzero(audio_mask)
        covered[inside[0] : inside[-1] + 1] = True
        return covered

    def _video_ended_before(self) -> bool:
        """The video stream declares its end before this segment: sound alone is all there is."""
        video = self.media.video
        if video is None or not video.duration or not video.time_base:
            return self._passed.n_video_packets == 0 and self._passed.at_end
        end_us = self.media.to_clock((video.start_time or 0) + video.duration, video.index)
        return end_us <= self._span.start_us + self._plan.step_us
