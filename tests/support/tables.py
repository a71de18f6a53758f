"""A small published output with realistic rows: four nights of an archive, written with the schemas of the core.

Night 1 tags 24 videos, one only up to a damage, and quarantines 2 files. Night 2 adds 4 videos; of the older ones
`GONE` was deleted, `SPOILED` was replaced by a damaged file, and `DEFERRED` (changed) and `WAITING` (new) were not
reached. Night 3 retags with another model. Night 4 finds one new file, which fails: it is over its failure budget. What
each video is about is derived from its key, so that every call writes the same rows.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vca.core import identity
from vca.core.errors import CODES, ErrorCode
from vca.core.schemas import TABLES, Status
from vca.tables.manifest import CURRENT, Manifest, ManifestFile, ManifestTable, Pointer, manifest_path, table_file_path

NIGHTS = [datetime(2026, 11, day, 1, 30, tzinfo=UTC) for day in (1, 2, 3, 4)]
RUN_IDS = [f"{night:%Y%m%dT%H%M%SZ}-{n:06x}" for n, night in enumerate(NIGHTS, 0xA1)]
MODELS = ["zeroshot-4f0c21", "zeroshot-4f0c21", "fusion-91d7aa", "fusion-91d7aa"]

SUBJECTS = ["news", "sports", "music", "politics", "food", "weather"]
EVENTS = {
    "news": ("interview", "studio", ["presenter", "interviewee"]),
    "sports": ("goal_or_score", "stadium", ["athlete", "crowd"]),
    "music": ("applause", "stage", ["musician", "crowd"]),
    "politics": ("speech_to_audience", "parliament_or_court", ["politician"]),
    "food": ("cooking_step", "kitchen", ["cook"]),
    "weather": ("weather_report", "studio", ["presenter"]),
}
LINES = {
    "news": [
        "Good evening, here are tonight's headlines.",
        "Our reporter is live at the scene.",
        "Thank you, minister.",
    ],
    "sports": ["Kick-off in the second half.", "Goal! He puts it in the back of the net!", "What a save."],
    "music": ["This next song is a new one.", "[applause]", "好听的歌。"],
    "politics": ["Members of the parliament, we vote today.", "The budget is not balanced.", "Order, order!"],
    "food": ["Chop the onions finely.", "Now add the garlic to the pan.", "Bake it for forty minutes."],
    "weather": ["Tomorrow will be sunny.", "Heavy rain in the north.", "Snow in the mountains at the weekend."],
}

KEYS = [f"{2020 + n % 6}/{SUBJECTS[n % 6]}/{SUBJECTS[n % 6]}_{n:03d}.mp4" for n in range(24)]
NEW_KEYS = [f"2026/{SUBJECTS[n % 6]}/{SUBJECTS[n % 6]}_{n:03d}.mkv" for n in range(24, 28)]
GONE, SPOILED, DEFERRED, PARTIAL = KEYS[2], KEYS[7], KEYS[9], KEYS[11]
WAITING = "2026/news/too_late.mp4"
BROKEN = {'2021/odd/it\'s "empty".mp4': ErrorCode.EMPTY_FILE, "2022/odd/片头.avi": ErrorCode.DECODE_TIMEOUT}
LATE = {"2026/odd/phone.webm": ErrorCode.UNSUPPORTED_CODEC}

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def write_run(
    root: Path,
    run_id: str,
    rows: Rows,
    *,
    created_at: datetime = NIGHTS[0],
    counts: Mapping[str, int] | None = None,
    model_version: str = MODELS[0],
) -> Manifest:
    """Publish rows (or Arrow tables) by table name as one run on top of the one in force."""
    current = root / CURRENT
    parent = None
    if current.exists():
        name = Pointer.from_json(current.read_bytes(), "current").run_id
        parent = Manifest.from_json((root / manifest_path(name)).read_bytes(), name)
    tables = {}
    for name, table in TABLES.items():
        files = list(parent.tables[name].files) if parent is not None and name in parent.tables else []
        if len(rows.get(name, ())):
            values = rows[name]
            data = values if isinstance(values, pa.Table) else pa.Table.from_pylist(list(values), schema=table.schema)
            path = table_file_path(name, run_id, "part-00000.parquet")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(data, root / path, compression="zstd")
            size_bytes = (root / path).stat().st_size
            files.append(ManifestFile(path=path, run_id=run_id, rows=data.num_rows, size_bytes=size_bytes))
        tables[name] = ManifestTable(rows=sum(file.rows for file in files), files=tuple(files))
    manifest = Manifest(
        run_id=run_id,
        parent=None if parent is None else parent.run_id,
        created_at=created_at,
        feature_set="fs-2d1c9e",
        model_version=model_version,
        taxonomy_version="tx-77b0f4",
        counts=dict(counts or {}),
        tables=tables,
    )
    current.parent.mkdir(parents=True, exist_ok=True)
    (root / manifest_path(run_id)).write_text(manifest.to_json(), encoding="utf-8")
    current.write_text(Pointer.to(run_id).to_json(), encoding="utf-8")
    return manifest


def make_output(root: Path) -> Path:
    """Write the four nights described above; returns `root`."""
    first, second, third, fourth = RUN_IDS
    rows = _tagged(KEYS, first, 0)
    _add(rows, _quarantined(BROKEN, first, 0))
    _publish(root, rows, 0, unchanged=0)

    rows = _tagged(NEW_KEYS, second, 1)
    rows["videos"].append(video_row(GONE, second, Status.GONE, at=NIGHTS[1]))
    for key in (DEFERRED, WAITING):
        rows["videos"].append(video_row(key, second, Status.DEFERRED, at=NIGHTS[1], content="second"))
    _add(rows, _quarantined({SPOILED: ErrorCode.HEADER_DAMAGED}, second, 1))
    _publish(root, rows, 1, unchanged=len(KEYS) + len(BROKEN) - 3)

    again = [key for key in [*KEYS, *NEW_KEYS] if key not in (GONE, SPOILED, DEFERRED)]
    _publish(root, _tagged(again, third, 2), 2, unchanged=len(BROKEN) + 3)
    _publish(root, _quarantined(LATE, fourth, 3), 3, unchanged=len(again) + len(BROKEN) + 3)
    return root


def video_row(
    key: str, run_id: str, status: Status, *, at: datetime = NIGHTS[0], content: str = "first", **columns: Any
) -> dict[str, Any]:
    """A row of `videos` whose optional columns are null unless given."""
    return {
        "video_id": identity.video_id(key),
        "key": key,
        "run_id": run_id,
        "uri": f"s3://archive/{key}",
        "fingerprint": identity.fingerprint(content),
        "status": str(status),
        "attempts": 1,
        "size_bytes": 1_000_000,
        "tagged_at": at,
    } | columns


def _tagged(keys: Sequence[str], run_id: str, night: int) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for key in sorted(keys):
        about = key.split("/")[1]
        dice = random.Random(key)
        duration_s = round(dice.uniform(60, 900), 2)
        whole = key != PARTIAL
        status = Status.TAGGED if whole else Status.PARTIAL
        columns: dict[str, Any] = {
            "error_code": None if whole else str(ErrorCode.DECODE_ERROR),
            "error_message": None if whole else "invalid data at 0x3f00",
            "duration_s": duration_s,
            "coverage_s": duration_s if whole else duration_s * 0.4,
            "width": 1280,
            "height": 720,
            "fps": 25.0,
            "n_frames": int(duration_s * 25),
            "container": "mov,mp4",
            "codecs": "h264+aac",
            "has_video": True,
            "has_audio": True,
            "text_sources": ["subtitle", "ocr"],
            "feature_set": "fs-2d1c9e",
            "model_version": MODELS[night],
            "taxonomy_version": "tx-77b0f4",
        }
        rows["videos"].append(video_row(key, run_id, status, at=NIGHTS[night], **columns))
        rows_of_video = _children(about, dice, duration_s * (1.0 if whole else 0.4), night)
        identity_columns = {"video_id": identity.video_id(key), "key": key, "run_id": run_id}
        for name, children in rows_of_video.items():
            rows[name] += [identity_columns | child for child in children]
    return rows


def _children(about: str, dice: random.Random, covered_s: float, night: int) -> dict[str, list[dict[str, Any]]]:
    evidence = {"vision": 0.25, "audio": 0.125, "text": 0.625}
    sure = 0.08 if MODELS[night].startswith("fusion") else 0.0
    scores = {label: dice.uniform(0.05, 0.55) for label in SUBJECTS}
    scores[about] = dice.uniform(0.6, 0.9) + sure
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    categories = [
        {"task": "content", "label": label, "score": score, "threshold": 0.5, "selected": score >= 0.5, "rank": rank}
        for rank, (label, score) in enumerate(ranked, 1)
    ]
    mood = dice.choice(["negative", "neutral", "positive"])
    categories.append({"task": "sentiment", "label": mood, "score": 0.7, "threshold": 0.5, "selected": True, "rank": 1})
    kinds = [EVENTS[about]] * 3 + [EVENTS[dice.choice(SUBJECTS)]]
    events: list[dict[str, Any]] = []
    for label, place, participants in kinds:
        start_s = round(dice.uniform(0, covered_s * 0.85) * 2) / 2
        end_s = min(start_s + round(dice.uniform(4, 60) * 2) / 2, covered_s)
        events.append(
            {
                "event_id": identity.digest(about, label, str(start_s)),
                "task": "events",
                "label": label,
                "start_s": start_s,
                "end_s": end_s,
                "score": dice.uniform(0.5, 0.95),
                "place": place if dice.random() < 0.8 else None,
                "place_score": 0.8,
                "participants": [{"label": who, "score": dice.uniform(0.5, 0.9)} for who in participants],
            }
        )
    for event in events:
        event["place_score"] = None if event["place"] is None else event["place_score"]
    text = [
        {"source": source, "stream": "2", "language": "en", "start_s": start_s, "end_s": start_s + 2.5, "text": line}
        for start_s, line, source in zip((1.0, 20.5, 41.25), LINES[about], ("subtitle", "asr", "ocr"), strict=True)
    ]
    text.append({"source": "speech", "start_s": 50.0, "end_s": 55.0, "text": None})
    cuts = sorted({0.0, covered_s, *(round(dice.uniform(1, covered_s - 1), 2) for _ in range(6))})
    return {
        "video_categories": [row | {"evidence": evidence} for row in categories],
        "event_spans": [row | {"evidence": evidence} for row in sorted(events, key=lambda event: event["start_s"])],
        "transcripts": text,
        "shots": [
            {"shot_index": n, "start_s": start, "end_s": end} for n, (start, end) in enumerate(itertools.pairwise(cuts))
        ],
        "step_scores": [{"task": "events", "start_s": n / 2, "scores": [0.25, 0.5]} for n in range(4)],
        "video_embeddings": [{"embedding": [0.6, 0.8, 0.0]}],
    }


def _quarantined(failures: Mapping[str, ErrorCode], run_id: str, night: int) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"videos": [], "quarantine": []}
    for key, code in failures.items():
        content = "first" if night == 0 else "second"
        failure = {"error_code": str(code), "error_message": CODES[code].meaning}
        video = video_row(key, run_id, Status.QUARANTINED, at=NIGHTS[night], content=content, **failure)
        rows["videos"].append(video)
        shared = {name: video[name] for name in ("video_id", "key", "run_id", "uri", "fingerprint", "attempts")}
        times = {"first_failed_at": NIGHTS[night], "last_failed_at": NIGHTS[night]}
        rows["quarantine"].append(shared | failure | times | {"stage": "probe", "will_retry": CODES[code].transient})
    return rows


def _add(rows: dict[str, list[dict[str, Any]]], more: Mapping[str, list[dict[str, Any]]]) -> None:
    for name, added in more.items():
        rows[name] += added


def _publish(root: Path, rows: dict[str, list[dict[str, Any]]], night: int, *, unchanged: int) -> None:
    states = [row["status"] for row in rows.get("videos", [])]
    counts = {str(status): states.count(str(status)) for status in Status} | {"unchanged": unchanged}
    errors = [row["error_code"] for row in rows.get("quarantine", [])]
    run = {
        "run_id": RUN_IDS[night],
        "started_at": NIGHTS[night],
        "ended_at": NIGHTS[night] + timedelta(minutes=40),
        "status": "over_budget" if night == 3 else "ok",
        "listed": sum(counts.values()) - counts["gone"],
        **counts,
        "ignored": 3,
        "decoded_s": 9000.0,
        "wall_s": 2400.0,
        "realtime_factor": 3.75,
        "error_counts": [{"error_code": code, "count": errors.count(code)} for code in sorted(set(errors))],
        "feature_set": "fs-2d1c9e",
        "model_version": MODELS[night],
        "taxonomy_version": "tx-77b0f4",
        "config": "{}",
        "code_version": "0.1.0",
    }
    ordered = {name: sorted(found, key=itemgetter(*TABLES[name].sort_by)) for name, found in rows.items()}
    write_run(
        root,
        RUN_IDS[night],
        {**ordered, "runs": [run]},
        created_at=NIGHTS[night] + timedelta(minutes=41),
        counts=counts,
        model_version=MODELS[night],
    )
