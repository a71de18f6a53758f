"""The books of a run: every listed object gets exactly one state, and each state its rows (design section 7)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vca.core.errors import CODES, ErrorCode, MediaError, PublishError
from vca.core.schemas import TABLES, Status
from vca.core.timeline import us_to_seconds
from vca.media.storage import Archive
from vca.pipelines.plan import WAITING, Action, Plan, Versions
from vca.pipelines.predict import child_tables
from vca.pipelines.progress import hours
from vca.pipelines.publish import Spool
from vca.pipelines.stored_archive import StoredArchive


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What every row of a run shares."""

    run_id: str
    started_at: datetime
    versions: Versions
    step_us: int
    max_attempts: int


class Account:
    """Collects the outcome of each object and spools its rows. `counts` and `summary` are valid once all are in."""

    def __init__(self, facts: RunFacts, plan: Plan, archive: Archive | StoredArchive, spool: Spool) -> None:
        self.facts, self.plan, self.spool = facts, plan, spool
        self._archive = archive
        self._states: Counter[Status] = Counter()
        self.error_counts: Counter[str] = Counter()
        self.damage_counts: Counter[str] = Counter()
        self.not_reached = 0

    # ------------------------------------------------------------------------------------------------- outcomes

    def predicted(self, predictions: pa.Table, plan_rows: Mapping[str, dict[str, Any]]) -> None:
        """Rows of `predict.PREDICTIONS`: tagged, partial, deferred, or nothing decodable after all."""
        keep = []
        narrow = ["video_id", "deferred", "media", "coverage_us", "error_code", "error_message"]
        rows = predictions.select(narrow).to_pylist()
        for row, text_sources in zip(rows, _text_sources(predictions), strict=True):
            plan_row = plan_rows[row["video_id"]]
            if row["deferred"]:
                keep.append(False)
                self.deferred(plan_row)
                continue
            keep.append(row["coverage_us"] > 0)
            if row["coverage_us"] == 0:
                code = row["error_code"] or str(ErrorCode.NO_FRAMES)
                message = row["error_message"] or CODES[ErrorCode(code)].meaning
                self.failed(plan_row, "read", code, message, row["media"])
                continue
            missing_us = row["media"]["duration_us"] - row["coverage_us"]
            damaged = row["error_code"] is not None or missing_us >= self.facts.step_us
            if damaged:
                self.damage_counts[row["error_code"] or str(ErrorCode.TRUNCATED)] += 1
            columns = _media_columns(row["media"], row["coverage_us"]) | {
                "text_sources": text_sources,
                "error_code": row["error_code"],
                "error_message": row["error_message"],
                "attempts": plan_row["attempts"] + 1,
            }
            self._add_video(plan_row, Status.PARTIAL if damaged else Status.TAGGED, columns)
        for name, rows in child_tables(predictions.filter(pa.array(keep, pa.bool_())), self.facts.run_id).items():
            self.spool.add(name, rows)

    def failed(
        self, plan_row: dict[str, Any], stage: str, code: str, message: str, media: dict[str, Any] | None
    ) -> None:
        """An expected failure: quarantined, with two exceptions.

        An object that is really no longer there is gone. One whose unchanged content was tagged before is deferred if
        the failure may pass: a storage that is down for a night must leave the older tags in force.
        """
        attempts = plan_row["attempts"] + 1
        transient = CODES[ErrorCode(code)].transient
        columns = _media_columns(media, 0) if media is not None else {}
        columns |= {"error_code": code, "error_message": message, "attempts": attempts}
        if code == ErrorCode.OBJECT_MISSING and self._is_gone(plan_row["key"]):
            self._add_video(plan_row, Status.GONE, {})
            return
        self.error_counts[code] += 1
        if transient and plan_row["has_tags"]:
            self._add_video(plan_row, Status.DEFERRED, columns)
            return
        self._add_video(plan_row, Status.QUARANTINED, columns)
        row = {name: plan_row.get(name) for name in TABLES["quarantine"].schema.names} | {
            "run_id": self.facts.run_id,
            "uri": self._archive.uri_of(plan_row["key"]),
            "stage": stage,
            "error_code": code,
            "error_message": message,
            "attempts": attempts,
            "first_failed_at": plan_row["first_failed_at"] or self.facts.started_at,
            "last_failed_at": self.facts.started_at,
            "will_retry": transient and attempts < self.facts.max_attempts,
        }
        self.spool.add_row("quarantine", row)

    def deferred(self, plan_row: dict[str, Any]) -> None:
        """The run did not get to it. That is no attempt: a video may wait for as many nights as it takes."""
        self._add_video(plan_row, Status.DEFERRED, {})
        self.not_reached += 1

    def _is_gone(self, key: str) -> bool:
        try:
            return not self._archive.has(key)
        except MediaError:  # the storage does not say: not known to be gone, so it stays a failure
            return False

    def planned_states(self) -> None:
        """The objects whose state follows from the plan alone: refused keys, deleted and unchanged ones."""
        for plan_row in self.plan.rows(Action.REFUSE).to_pylist():
            code = ErrorCode.BAD_KEY
            self.failed(plan_row, "list", str(code), CODES[code].meaning, None)
        for batch in self.plan.rows(Action.GONE).to_batches():  # half an archive may be gone
            for plan_row in batch.to_pylist():
                self._add_video(plan_row, Status.GONE, {})
        self._states[Status.UNCHANGED] += self.plan.count(Action.SKIP)

    def _add_video(self, plan_row: dict[str, Any], status: Status, columns: dict[str, Any]) -> None:
        row: dict[str, Any] = dict.fromkeys(TABLES["videos"].schema.names)
        row |= {name: plan_row[name] for name in ("video_id", "key", "fingerprint", "attempts", "size_bytes")}
        row |= {
            "run_id": self.facts.run_id,
            "uri": self._archive.uri_of(plan_row["key"]),
            "status": str(status),
            "feature_set": self.facts.versions.feature_set,
            "model_version": self.facts.versions.model_version,
            "taxonomy_version": self.facts.versions.taxonomy_version,
            "tagged_at": self.facts.started_at,
        }
        self.spool.add_row("videos", row | columns)
        self._states[status] += 1

    # ------------------------------------------------------------------------------------------------- the balance

    def counts(self) -> dict[str, int]:
        """Objects by state. Raises `PublishError` if not every object has exactly one."""
        counts = {str(status): self._states[status] for status in Status}
        known = self.plan.listed + self.plan.count(Action.GONE)
        if sum(counts.values()) != known:
            raise PublishError(f"the run does not balance: {known} objects but {counts}; nothing published")
        return counts

    def add_run_row(
        self, counts: dict[str, int], over: bool, decoded_us: int, wall_s: float, config: str, more: dict[str, Any]
    ) -> None:
        """The run's own row."""
        decoded_s = us_to_seconds(decoded_us)
        row = {
            "run_id": self.facts.run_id,
            "started_at": self.facts.started_at,
            "ended_at": datetime.now(UTC),
            "status": "over_budget" if over else "ok",
            "listed": self.plan.listed,
            **counts,
            "ignored": self.plan.ignored,
            "decoded_s": decoded_s,
            "wall_s": wall_s,
            "realtime_factor": decoded_s / wall_s,
            "error_counts": [{"error_code": code, "count": n} for code, n in sorted(self.error_counts.items())],
            **self.facts.versions.as_dict(),
            "config": config,
            **more,
        }
        self.spool.add_row("runs", row)

    def summary(self, counts: dict[str, int], over: bool, decoded_us: int, wall_s: float) -> list[str]:
        """The night on one screen."""
        waiting = sum(
            n for (action, reason), n in self.plan.counts.items() if action == Action.SKIP and WAITING in reason
        )
        gone = self.plan.count(Action.GONE)
        states = " + ".join(f"{n} {name}" for name, n in counts.items() if n) or "0"
        decoded_s = us_to_seconds(decoded_us)
        lines = [
            f"run        {self.facts.run_id} published" + (" - OVER THE FAILURE BUDGET" if over else ""),
            f"balance    {self.plan.listed} listed" + (f" + {gone} no longer listed" if gone else "") + f" = {states}",
        ]
        if waiting:
            lines.append(f"           {waiting} of the unchanged wait in quarantine for a new version of the file")
        if self.not_reached:
            lines.append(f"           {self.not_reached} deferred by deadline or budget; the next run starts with them")
        if self.plan.unreadable_folders:
            lines.append(f"           {self.plan.unreadable_folders} folders could not be read and were left out")
        lines.append(
            f"media      {hours(decoded_s)} decoded in {wall_s:.0f} s ({decoded_s / wall_s:.1f} x real time)"
            if decoded_us
            else f"media      nothing decoded, {wall_s:.1f} s"
        )
        for what, found in (("failed", self.error_counts), ("damaged", self.damage_counts)):
            for code, n in found.most_common(8):
                lines.append(f"{what:<10} {n:>5}  {code}: {CODES[ErrorCode(code)].meaning}")
        rows = ", ".join(f"{name} {n}" for name, n in self.spool.rows.items() if n)
        lines.append(f"rows       {rows}")
        return lines


def _text_sources(predictions: pa.Table) -> list[list[str]]:
    """The kinds of text of each video. In Arrow: a long video has thousands of pieces."""
    pieces = predictions.column("text").combine_chunks()
    parents, sources = pc.list_parent_indices(pieces), pc.struct_field(pc.list_flatten(pieces), "source")
    found: list[list[str]] = [[] for _ in range(len(predictions))]
    kinds = pa.table({"parent": parents, "source": sources}).group_by(["parent", "source"]).aggregate([])
    for kind in kinds.sort_by([("parent", "ascending"), ("source", "ascending")]).to_pylist():
        found[kind["parent"]].append(kind["source"])
    return found


def _media_columns(media: dict[str, Any], coverage_us: int) -> dict[str, Any]:
    """Columns of `videos` that come from the probe and the reading."""
    codecs = [c for c in (media["video_codec"], media["audio_codec"]) if c]
    return {
        "duration_s": us_to_seconds(media["duration_us"]),
        "coverage_s": us_to_seconds(coverage_us),
        "width": media["width"],
        "height": media["height"],
        "fps": media["fps"],
        "n_frames": media["n_frames"],
        "container": media["container"],
        "codecs": "+".join(codecs) or None,
        "has_video": media["has_video"],
        "has_audio": media["has_audio"],
    }
