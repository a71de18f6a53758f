"""The books: every object one state, and no failure takes away tags that still hold."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vca.core.errors import PublishError
from vca.core.schemas import MEDIA_INFO, TABLES
from vca.media.storage import Archive, ArchiveConfig
from vca.pipelines.account import Account, RunFacts
from vca.pipelines.plan import PLAN, Plan, Versions
from vca.pipelines.predict import PREDICTIONS
from vca.pipelines.publish import Spool

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FACTS = RunFacts("20260102T030405Z-abcdef", NOW, Versions("f", "m", "t"), 500_000, 3)


def plan_row(key: str, attempts: int = 0, *, has_tags: bool = False) -> dict[str, Any]:
    return {
        "video_id": f"id-{key}",
        "key": key,
        "size_bytes": 10,
        "fingerprint": "f",
        "attempts": attempts,
        "first_failed_at": None,
        "has_tags": has_tags,
    }


def make_account(tmp_path: Path, listed: int) -> Account:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "there.mp4").write_bytes(b"video")
    pq.write_table(PLAN.empty_table(), tmp_path / "plan.parquet")
    plan = Plan(tmp_path / "plan.parquet", listed, 0, 0, {})
    archive = Archive(ArchiveConfig(uri=str(tmp_path / "archive")))
    return Account(FACTS, plan, archive, Spool(tmp_path))


def rows(account: Account, table: str) -> list[dict[str, Any]]:
    files = account.spool.files(table)
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist() if files else []


@pytest.mark.parametrize(
    ("key", "code", "has_tags", "status", "retried"),
    [
        ("missing.mp4", "object_missing", True, "gone", None),
        ("there.mp4", "object_missing", False, "quarantined", True),  # a worker without the mount saw nothing
        ("there.mp4", "storage_timeout", False, "quarantined", True),
        ("there.mp4", "storage_timeout", True, "deferred", None),  # older tags stay in force
        ("there.mp4", "header_damaged", False, "quarantined", False),
        ("there.mp4", "decode_error", True, "quarantined", False),
    ],
)
def test_state_of_a_failure(
    tmp_path: Path, key: str, code: str, has_tags: bool, status: str, retried: bool | None
) -> None:
    """What a failure makes of a video depends on whether it can pass and on what is known of the video."""
    account = make_account(tmp_path, 1)
    account.failed(plan_row(key, has_tags=has_tags), "read", code, "why", None)
    assert account.counts()[status] == 1
    (video,) = rows(account, "videos")
    assert video["status"] == status
    quarantine = rows(account, "quarantine")
    assert [row["will_retry"] for row in quarantine] == ([] if retried is None else [retried])


def test_the_last_attempt_is_not_repeated(tmp_path: Path) -> None:
    """max_attempts counts the runs that tried."""
    account = make_account(tmp_path, 2)
    account.failed(plan_row("there.mp4", attempts=1), "read", "decode_timeout", "slow", None)
    account.failed(plan_row("there2.mp4", attempts=2), "read", "decode_timeout", "slow", None)
    found = {row["key"]: (row["attempts"], row["will_retry"]) for row in rows(account, "quarantine")}
    assert found == {"there.mp4": (2, True), "there2.mp4": (3, False)}


def test_what_the_run_did_not_get_to_is_no_failure(tmp_path: Path) -> None:
    """Deferred, without a code, an attempt or a quarantine row."""
    account = make_account(tmp_path, 1)
    account.deferred(plan_row("there.mp4", attempts=2))
    assert account.counts()["deferred"] == 1
    (video,) = rows(account, "videos")
    assert (video["status"], video["error_code"], video["attempts"]) == ("deferred", None, 2)
    assert rows(account, "quarantine") == []
    assert account.error_counts == {}


def test_books_that_do_not_balance_publish_nothing(tmp_path: Path) -> None:
    """An object without a state stops the run."""
    account = make_account(tmp_path, 2)
    account.failed(plan_row("there.mp4"), "read", "decode_error", "why", None)
    with pytest.raises(PublishError, match="does not balance: 2 objects"):
        account.counts()


def test_rows_of_failures_have_the_schema(tmp_path: Path) -> None:
    """What is spooled is what is published."""
    account = make_account(tmp_path, 1)
    account.failed(plan_row("there.mp4"), "probe", "empty_file", "no bytes", None)
    (file,) = account.spool.files("videos")
    assert pq.read_table(file).schema.equals(TABLES["videos"].schema)


def test_kinds_of_text_of_each_video(tmp_path: Path) -> None:
    """Each video has its own, each kind once and in order, also where one video of a batch has no text at all."""
    account = make_account(tmp_path, 4)
    piece = {"start_us": 0, "end_us": 1, "text": "word"}
    texts = {
        "a": [piece | {"source": source} for source in ("subtitle", "ocr", "subtitle")],
        "b": [],
        "c": [piece | {"source": "asr"}],
    }
    media = dict.fromkeys(field.name for field in MEDIA_INFO) | {"duration_us": 9_000_000, "container": "mp4"}
    media |= {"has_video": True, "has_audio": False, "n_video_streams": 1, "n_audio_streams": 0}
    told = {"deferred": False, "coverage_us": 9_000_000, "media": media | {"n_subtitle_streams": 0}}
    lists = {name: [] for name in ("categories", "events", "shots", "step_scores")}
    plan_rows = {f"id-{key}": plan_row(key) for key in (*texts, "late")}
    found = [told | lists | {"video_id": f"id-{key}", "key": key, "text": text} for key, text in texts.items()]
    found.insert(1, {"video_id": "id-late", "key": "late", "deferred": True})
    predictions = pa.Table.from_pylist([{}, *found], schema=PREDICTIONS).slice(1)
    account.predicted(predictions, plan_rows)
    sources = {row["key"]: row["text_sources"] for row in rows(account, "videos")}
    assert sources == {"a": ["ocr", "subtitle"], "late": None, "b": [], "c": ["asr"]}
