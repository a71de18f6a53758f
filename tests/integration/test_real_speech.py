"""Real labels: speech and silence in meetings, learned from sound descriptors alone, beside the speech detector."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import Figures, MediaRun
from vca.core.metrics import step_mask
from vca.core.timeline import Span, iou, merge_spans, seconds_to_us, step_spans
from vca.pipelines.finetune import finetune
from vca.pipelines.finetune_config import read_finetune_config

pytestmark = [pytest.mark.integration, pytest.mark.media, pytest.mark.long, pytest.mark.timeout(900)]

TAXONOMY = """
name: meetings
tasks:
  - name: activity
    kind: span
    description: Somebody speaks in a meeting.
    labels: [{name: speech, description: Somebody speaks.}]
"""
SPLITS = {"train": "train", "dev": "development", "test": "test"}
LENGTH_S = 30.0
STEP_US = 500_000


def turns(folder: Path, name: str) -> dict[str, list[Span]]:
    """Speech by meeting, overlapping speakers once (columns of the RTTM format)."""
    found: dict[str, list[Span]] = {}
    for fields in (line.split() for line in (folder / f"debug.{name}.rttm").read_text("utf-8").splitlines()):
        if fields:
            start = float(fields[3])
            span = Span(seconds_to_us(start), seconds_to_us(min(start + float(fields[4]), LENGTH_S)))
            found.setdefault(fields[1], []).append(span)
    return {meeting: merge_spans(spans) for meeting, spans in found.items()}


def labels(folder: Path) -> list[dict[str, Any]]:
    """The repository's own split; two training meetings are kept for calibration."""
    rows = []
    for short, name in SPLITS.items():
        for meeting, spans in turns(folder, name).items():
            split = {"train": "train", "dev": "validation", "test": "test"}[short]
            split = "calibration" if meeting in ("trn08", "trn09") else split
            video = {"key": f"pyannote_ami/{meeting}.flac", "task": "activity", "split": split}
            rows += [{**video, "label": "speech", "start_s": s.start_us / 1e6, "end_s": s.end_us / 1e6} for s in spans]
    return rows


def test_speech_from_descriptors(
    media_tagged: MediaRun, media_dir: Path, repository: Path, tmp_path: Path, figures: Figures
) -> None:
    """Frame F1 and segment F1 of the fine-tuned model next to silero-vad's, on two meetings it never heard."""
    folder = media_dir / "pyannote_ami"
    shutil.copytree(Path(media_tagged.job.output) / "features", tmp_path / "out" / "features")
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels(folder))), encoding="utf-8")
    (tmp_path / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    config = read_finetune_config(
        str(repository / "configs" / "demo_finetune.yaml"),
        [
            f"output.uri={tmp_path}/out",
            f"taxonomy={tmp_path}/taxonomy.yaml",
            f"annotations.files=['{tmp_path}/labels.jsonl']",
            "fusion.inputs={window_s: 15, overlap_s: 5}",
            "fusion.drop_audio=0",
            "fusion.span_head=steps",  # speech fills most of the time; docs/experiments.md has the pyramid's figures
            "train.epochs=6",
            "baselines=[probe]",
            "registry.enabled=false",
            "tracking.enabled=false",
        ],
    )
    said: list[str] = []
    assert finetune(config, said.append) == 0
    (report,) = (tmp_path / "out" / "reports").glob("*/comparison.json")
    systems = json.loads(report.read_text("utf-8"))["systems"]

    truth, heard = turns(folder, "test"), vad(media_tagged)
    steps = step_spans(Span(0, seconds_to_us(LENGTH_S)), STEP_US)
    wanted = np.concatenate([step_mask(truth[m], steps) for m in sorted(truth)])
    found = np.concatenate([step_mask(heard[m], steps) for m in sorted(truth)])
    silero = 2 * (wanted & found).sum() / (wanted.sum() + found.sum())
    rows = {name: systems[name]["headline"] for name in ("fusion", "linear probe")}
    lines = ["speech in two meetings of 30 s   frame F1  segment F1 at 0.5"]
    for name, row in rows.items():
        frame, segment = row["activity.frame_f1"]["value"], row["activity.segment_f1_at_0.5"]["value"]
        lines.append(f"{name:32} {frame:8.3f}  {segment:.3f}")
    spans = {m: heard[m] for m in sorted(truth)}
    lines.append(f"{'silero-vad':32} {silero:8.3f}  {segment_f1(truth, spans):.3f}")
    figures("\n".join(lines))
    everything = 2 * wanted.mean() / (1 + wanted.mean())
    assert rows["fusion"]["activity.frame_f1"]["value"] > everything + 0.1, "no better than 'always speech'"


def vad(run: MediaRun) -> dict[str, list[Span]]:
    """What the published run heard."""
    found: dict[str, list[Span]] = {}
    for row in run.job.query("FROM transcripts WHERE source = 'speech' AND key LIKE 'pyannote_ami/%'"):
        span = Span(seconds_to_us(row["start_s"]), seconds_to_us(row["end_s"]))
        found.setdefault(Path(row["key"]).stem, []).append(span)
    return {meeting: merge_spans(spans) for meeting, spans in found.items()}


def segment_f1(truth: dict[str, list[Span]], found: dict[str, list[Span]]) -> float:
    """F1 of spans that overlap a true one by half (intersection over union), one to one."""
    hits = n_truth = n_found = 0
    for meeting, spans in truth.items():
        left = list(found.get(meeting, []))
        n_truth, n_found = n_truth + len(spans), n_found + len(left)
        for span in spans:
            best = next((s for s in left if iou(span, s) >= 0.5), None)
            if best is not None:
                left.remove(best)
                hits += 1
    return 2 * hits / (n_truth + n_found)
