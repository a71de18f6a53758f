"""What decoding, encoding and tagging give for some demo clips, as plain numbers; `demo.json` holds the accepted ones.

    python -m tests.golden.renew

writes the numbers of this code into `demo.json`. Look at the difference before committing it: each changed number is a
change that users will see in their tables.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.runs import REPOSITORY
from vca.core.records import BoolArray, FloatArray, Prediction, TextPiece, VideoFeatures
from vca.core.timeline import Span, step_spans
from vca.media.demo import make_demo_archive
from vca.media.isolation import DecoderProcess
from vca.media.read import Segment
from vca.media.source import LocalSource
from vca.models.encode import SegmentEncoder
from vca.models.text import TextModel
from vca.models.zeroshot import ZeroShotTagger
from vca.pipelines.config import read_config, read_taxonomy
from vca.pipelines.run import read_plan

GOLDEN = Path(__file__).with_name("demo.json")
CLIPS = (
    "news/2026-03-01/weather.mkv",  # H.264, AAC, embedded SRT
    "tech/phone-review.webm",  # AV1, Opus, embedded WebVTT
    "film/silent-1925.avi",  # MPEG-4 without sound: all words are in the picture
    "damaged/broken-transfer.mkv",  # cut short
)
"""Clips that carry their words: no sidecar files, which are read by other code."""


def observe(archive: Path) -> dict[str, Any]:
    """The numbers for each clip, by key: JSON values only."""
    config = read_config(
        str(REPOSITORY / "configs" / "local.yaml"),
        [f"archive.uri={archive}", "output.uri=out", f"taxonomy={REPOSITORY / 'configs' / 'taxonomy.yaml'}"],
    )
    encoder = SegmentEncoder(config.encoders, config.step_us)
    text_model = TextModel(config.predict.text_model, "predict.text_model")
    tagger = ZeroShotTagger(read_taxonomy(config), config.predict.zeroshot, text_model)
    plan = read_plan(config)
    observed = {}
    with DecoderProcess(config.decode) as decoder:
        for key in CLIPS:
            source = LocalSource(str(archive / key))
            info = decoder.probe(source)
            span = Span(0, info.duration_us)
            segment = decoder.read(source, info, span, plan)
            encoded = encoder(
                segment.frames,
                segment.frame_mask,
                segment.audio,
                segment.audio_mask,
                segment.ocr_frames,
                segment.ocr_spans,
                span.start_us,
            )
            text = sorted(
                (*segment.text, *encoded.text), key=lambda p: (p.start_us, p.end_us, str(p.source), p.text or "")
            )
            video = VideoFeatures(
                video_id=key,
                key=key,
                duration_us=info.duration_us,
                step_us=config.step_us,
                steps=step_spans(span, config.step_us),
                vision=None if encoded.vision is None else encoded.vision.astype(np.float32),
                vision_mask=encoded.vision_mask,
                audio=None if encoded.audio is None else encoded.audio.astype(np.float32),
                audio_mask=encoded.audio_mask,
                text=tuple(text),
                shots=segment.shots,
            )
            observed[key] = _reading(segment, text) | _features(video) | _tags(tagger(video))
    return observed


def _reading(segment: Segment, text: list[TextPiece]) -> dict[str, Any]:
    return {
        "span_us": [segment.span.start_us, segment.span.end_us],
        "coverage_us": segment.coverage_us,
        "failure": None if segment.failure is None else str(segment.failure.code),
        "frame_times_us": segment.frame_times_us.tolist(),
        "shots_us": [[shot.start_us, shot.end_us] for shot in segment.shots],
        "text": [
            {
                "source": str(piece.source),
                "start_us": piece.start_us,
                "end_us": piece.end_us,
                "text": piece.text,
                "confidence": None if piece.confidence is None else round(piece.confidence, 3),
            }
            for piece in text
        ],
    }


def _features(video: VideoFeatures) -> dict[str, Any]:
    return {
        "vision": _statistics(video.vision, video.vision_mask),
        "audio": _statistics(video.audio, video.audio_mask),
    }


def _statistics(values: FloatArray | None, mask: BoolArray | None) -> dict[str, Any] | None:
    if values is None or mask is None:
        return None
    kept = values[mask].astype(np.float64)
    return {
        "steps": int(mask.sum()),
        "dim": int(kept.shape[1]),
        "mean": round(float(kept.mean()), 5),
        "std": round(float(kept.std()), 5),
        # every 16th feature, averaged over time: a permutation or a scale changes them
        "samples": [round(float(value), 5) for value in kept.mean(axis=0)[::16]],
    }


def _tags(prediction: Prediction) -> dict[str, Any]:
    return {
        "selected": {f"{c.task}/{c.label}": round(c.score, 5) for c in prediction.categories if c.selected},
        "events": [
            {
                "label": f"{event.task}/{event.label}",
                "start_us": event.span.start_us,
                "end_us": event.span.end_us,
                "score": round(event.score, 5),
                "place": event.place,
                "participants": [label for label, _ in event.participants],
            }
            for event in prediction.events
        ],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder)
        make_demo_archive(archive, seed=0)
        text = json.dumps(observe(archive), indent=1, ensure_ascii=False)
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
