"""The tagging job: pre-flight, plan, read and encode, predict, publish, account (design sections 1 and 7)."""

import json
import logging
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vca import __version__
from vca.core import identity
from vca.core.errors import CODES, ErrorCode, PublishError
from vca.core.schemas import FEATURES, TABLES, Status
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import segment_spans, us_to_seconds
from vca.media.output import Output
from vca.media.read import ReadPlan
from vca.media.storage import Archive
from vca.models.encode import feature_definition
from vca.models.ocr import OcrConfig
from vca.models.vision import vision_needs
from vca.pipelines import cluster
from vca.pipelines.config import TagConfig, read_taxonomy
from vca.pipelines.features import Dims, FeatureStore, FeatureWriter
from vca.pipelines.plan import Action, Plan, Versions, make_plan
from vca.pipelines.predict import (
    PredictSettings,
    RowContext,
    child_tables,
    complete_videos,
    conform,
    group_by_part,
    media_columns,
    model_version,
    video_row,
)
from vca.pipelines.progress import Progress, hours
from vca.pipelines.publish import Spool, publish, recover, stage_tables
from vca.pipelines.stages import TASKS, ReadSettings
from vca.pipelines.tracking import Tracker
from vca.tables.manifest import OutputReader, open_output

log = logging.getLogger(__name__)

EXIT_OK, EXIT_OVER_BUDGET, EXIT_CONFIG, EXIT_NOT_PUBLISHED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Job:
    """A checked job: everything that can be refused has been looked at, nothing has been written."""

    config: TagConfig
    taxonomy: Taxonomy
    definition: dict[str, Any]
    versions: Versions
    archive: Archive
    output: Output
    published: OutputReader

    @property
    def read_settings(self) -> ReadSettings:
        return ReadSettings(self.config.archive, self.config.sampling, self.config.decode, read_plan(self.config))

    @property
    def predict_settings(self) -> PredictSettings:
        return PredictSettings(
            output=self.config.output,
            feature_set=self.versions.feature_set,
            taxonomy=self.taxonomy,
            text_model=self.config.predict.text_model,
            vision=self.config.encoders.vision,
            zeroshot=self.config.predict.zeroshot,
        )


def prepare(config: TagConfig) -> Job:
    """Check configuration, taxonomy, models, archive and output. Raises `ConfigError`; writes nothing."""
    taxonomy = read_taxonomy(config)
    definition = feature_definition(config.encoders, config.step_us, config.segment_us, config.sampling.mode)
    versions = Versions(
        feature_set=identity.feature_set_id(definition),
        model_version=model_version(
            config.predict.zeroshot, config.predict.text_model, config.encoders.vision, config.step_us
        ),
        taxonomy_version=taxonomy.version,
    )
    archive, output = Archive(config.archive), Output(config.output)
    archive.check()
    output.check_writable()
    return Job(
        config, taxonomy, definition, versions, archive, output, open_output(config.output.uri, config.output.storage)
    )


def read_plan(config: TagConfig) -> ReadPlan:
    """What the decoding child must deliver for these encoders."""
    needs = vision_needs(config.encoders.vision, config.step_us)
    ocr: OcrConfig = config.encoders.ocr
    return ReadPlan(
        step_us=config.step_us,
        frames_per_step=needs.frames_per_step if needs else 0,
        frame_size=needs.frame_size if needs else 0,
        audio=config.encoders.audio.kind != "none" or config.encoders.speech.vad != "none",
        text=True,
        ocr_frames_per_minute=ocr.frames_per_minute if ocr.kind != "none" else 0.0,
        ocr_height=ocr.height,
        mode=config.sampling.mode,
    )


def plan_only(config: TagConfig) -> str:
    """What a run would do, as text. Writes nothing and starts no cluster."""
    job = prepare(config)
    with tempfile.TemporaryDirectory(prefix="vca-plan-") as folder:
        plan = make_plan(job.archive, job.published, job.versions, config.run.max_attempts, Path(folder))
        return plan.describe()


def tag(config: TagConfig, say: Callable[[str], None] = print) -> int:
    """Run the job. Returns the exit code of design section 7; raises `VcaError` for codes 2 and 3."""
    started = time.monotonic()
    started_at = datetime.now(UTC)
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    job = prepare(config)
    with tempfile.TemporaryDirectory(prefix="vca-run-") as folder:
        work_dir = Path(folder)
        plan = make_plan(job.archive, job.published, job.versions, config.run.max_attempts, work_dir)
        to_do = sum(plan.count(a) for a in (Action.DECODE, Action.RETAG))
        with _cluster(job, to_do > 0) as slots:
            finished = recover(job.output, job.published)
            if finished is not None:
                say(f"finished publishing run {finished}, which was stopped before its last step")
                plan = make_plan(job.archive, job.published, job.versions, config.run.max_attempts, work_dir)
            say(f"run {run_id}\n{plan.describe()}")
            tracker = Tracker(config.tracking, run_id)
            tracker.parameters(config.model_dump(mode="json"))
            run = _Run(job, plan, slots, run_id, started_at, work_dir, tracker, say)
            try:
                run.read_and_encode()
                run.predict()
                return run.publish(started)
            except BaseException as error:
                tracker.fail(type(error).__name__)
                raise


@contextmanager
def _cluster(job: Job, needed: bool) -> Iterator[cluster.Slots | None]:
    if not needed:
        yield None
        return
    started_here = cluster.connect(job.config.ray)
    try:
        yield cluster.work_out_slots(job.config.resources)
    finally:
        cluster.disconnect(started_here)


class _Run:
    """State of one run on the driver: what is stored, what failed, what each object's state is."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        slots: cluster.Slots | None,
        run_id: str,
        started_at: datetime,
        work_dir: Path,
        tracker: Tracker,
        say: Callable[[str], None],
    ) -> None:
        self.job, self.plan, self.slots = job, plan, slots
        self.run_id, self.started_at, self.tracker, self.say = run_id, started_at, tracker, say
        self.context = RowContext(run_id, started_at, **_versions(job))
        self.store = FeatureStore(job.output, job.versions.feature_set)
        self.spool = Spool(work_dir)
        self.work_dir = work_dir
        self.states: Counter[Status] = Counter()
        self.error_counts: Counter[str] = Counter()
        self.failures: dict[str, dict[str, Any]] = {}  # video_id -> ENCODED row of a failed or vanished video
        self.decode = {row["video_id"]: row for row in plan.rows(Action.DECODE).to_pylist()}
        self.retag = {row["video_id"]: row for row in plan.rows(Action.RETAG).to_pylist()}
        self.ready: dict[tuple[str, str], list[str]] = {}  # complete videos -> parts of the store
        self.decoded_us = 0

    def read_and_encode(self) -> None:
        """Decode what the store does not hold yet, in waves, and store the features as they come."""
        if not self.decode and not self.retag:
            return
        run = self.job.config.run
        wanted = {(v, row["fingerprint"]) for v, row in (*self.decode.items(), *self.retag.items())}
        index = self.store.index()
        stored = {(r["video_id"], r["fingerprint"], r["segment_index"], r["n_segments"]) for r in index.to_pylist()}
        self.ready = {video: parts for video, parts in complete_videos(index).items() if video in wanted}
        for video_id, row in self.retag.items():
            # Tags without features: somebody deleted the store. Decode again.
            if (video_id, row["fingerprint"]) not in self.ready:
                self.decode[video_id] = row
        tasks = [row for v, row in self.decode.items() if (v, row["fingerprint"]) not in self.ready]
        if not tasks:
            return
        assert self.slots is not None
        writer = FeatureWriter(self.store, self.run_id, run.part_mb << 20, run.flush_s)
        progress = Progress("read", len(tasks), sum(r["size_bytes"] for r in tasks), run.progress_s, self._show)
        for first in range(0, len(tasks), run.wave_videos):
            wave = [row | {"media": None, "segment_index": None} for row in tasks[first : first + run.wave_videos]]
            while wave:
                wave = self._read_wave(wave, writer, progress, stored)
            writer.flush()
        progress.close()
        index = pa.concat_tables([index, *writer.written])
        self.ready = {video: parts for video, parts in complete_videos(index).items() if video in wanted}

    def _read_wave(
        self, wave: list[dict[str, Any]], writer: FeatureWriter, progress: Progress, stored: set[tuple[Any, ...]]
    ) -> list[dict[str, Any]]:
        """Run one wave of tasks; returns the segments of long videos that it found out about."""
        assert self.slots is not None
        segments: list[dict[str, Any]] = []
        left: Counter[str] = Counter(task["video_id"] for task in wave)
        by_id = {task["video_id"]: task for task in wave}
        table = pa.Table.from_pylist([{n: t[n] for n in TASKS.names} for t in wave], schema=TASKS)
        for rows in cluster.read_and_encode(table, self.job.read_settings, self.job.config.encoders, self.slots):
            good = rows.filter(pc.equal(rows.column("outcome"), "read"))
            if len(good):
                if not writer.written:
                    first = good.slice(0, 1).to_pylist()[0]
                    self.store.describe(self.job.definition, Dims(first["vision_dim"], first["audio_dim"]))
                writer.add(good.select(FEATURES.names))
            for row in rows.drop_columns(["vision", "audio", "text", "shots"]).to_pylist():
                task = by_id[row["video_id"]]
                left[row["video_id"]] -= 1
                if row["outcome"] == "probed":
                    spans = segment_spans(row["media"]["duration_us"], self.job.config.segment_us)
                    found = [
                        task | {"media": row["media"], "segment_index": i}
                        for i in range(len(spans))
                        if (row["video_id"], row["fingerprint"], i, len(spans)) not in stored
                    ]
                    segments += found
                    continue
                if row["outcome"] == "failed":
                    self.failures.setdefault(row["video_id"], row)
                else:
                    self.decoded_us += row["coverage_us"]
                share = task["size_bytes"] / max(1, row["n_segments"] or 1)
                progress.add(
                    videos=int(left[row["video_id"]] == 0),
                    size_bytes=int(share),
                    media_us=row["coverage_us"] or 0,
                    failed=int(row["outcome"] == "failed"),
                )
        return segments

    def predict(self) -> None:
        """Tag every complete video of this run from the feature store and spool the rows."""
        wanted = self.decode | self.retag
        videos = {video: parts for video, parts in self.ready.items() if video[0] not in self.failures}
        if videos:
            assert self.slots is not None
            progress = Progress("tag", len(videos), 0, self.job.config.run.progress_s, self._show)
            for predictions in cluster.predict(group_by_part(videos), self.job.predict_settings, self.slots):
                self._take(predictions, wanted)
                progress.add(videos=len(predictions))
            progress.close()
        for video_id, row in self.failures.items():
            self._take_failure(wanted[video_id], row["stage"], row["error_code"], row["error_message"], row["media"])
        for plan_row in self.plan.rows(Action.REFUSE).to_pylist():
            code = ErrorCode.BAD_KEY
            self._take_failure(plan_row, "list", str(code), CODES[code].meaning, None)
        for plan_row in self.plan.rows(Action.GONE).to_pylist():
            self._add_video(plan_row, Status.GONE, {})
        self.states[Status.UNCHANGED] += self.plan.count(Action.SKIP)

    def _take(self, predictions: pa.Table, wanted: dict[str, dict[str, Any]]) -> None:
        keep = []
        for row in predictions.select(
            ["video_id", "media", "coverage_us", "error_code", "error_message", "text"]
        ).to_pylist():
            plan_row = wanted[row["video_id"]]
            keep.append(row["coverage_us"] > 0)
            if row["coverage_us"] == 0:
                code = row["error_code"] or str(ErrorCode.NO_FRAMES)
                message = row["error_message"] or CODES[ErrorCode(code)].meaning
                self._take_failure(plan_row, "read", code, message, row["media"])
                continue
            missing_us = row["media"]["duration_us"] - row["coverage_us"]
            damaged = row["error_code"] is not None or missing_us >= self.job.config.step_us
            status = Status.PARTIAL if damaged else Status.TAGGED
            sources = [piece["source"] for piece in row["text"]]
            columns = media_columns(row["media"], row["coverage_us"], sources)
            columns |= {"error_code": row["error_code"], "error_message": row["error_message"]}
            self._add_video(plan_row | {"attempts": plan_row["attempts"] + 1}, status, columns)
        for name, rows in child_tables(predictions.filter(pa.array(keep)), self.run_id).items():
            self.spool.add(name, rows)

    def _take_failure(
        self, plan_row: dict[str, Any], stage: str, code: str, message: str, media: dict[str, Any] | None
    ) -> None:
        """A row in `videos` and one in `quarantine`; an object deleted since the listing is gone instead."""
        if code == ErrorCode.OBJECT_MISSING:
            self._add_video(plan_row, Status.GONE, {})
            return
        plan_row = plan_row | {"attempts": plan_row["attempts"] + 1}
        columns = media_columns(media, 0, []) if media is not None else {}
        self._add_video(plan_row, Status.QUARANTINED, columns | {"error_code": code, "error_message": message})
        retry = CODES[ErrorCode(code)].transient and plan_row["attempts"] < self.job.config.run.max_attempts
        quarantine = {name: plan_row.get(name) for name in TABLES["quarantine"].schema.names} | {
            "run_id": self.run_id,
            "uri": self.job.archive.uri_of(plan_row["key"]),
            "stage": stage,
            "error_code": code,
            "error_message": message,
            "first_failed_at": plan_row["first_failed_at"] or self.started_at,
            "last_failed_at": self.started_at,
            "will_retry": retry,
        }
        self.spool.add("quarantine", pa.Table.from_pylist([quarantine], schema=TABLES["quarantine"].schema))
        self.error_counts[code] += 1

    def _add_video(self, plan_row: dict[str, Any], status: Status, columns: dict[str, Any]) -> None:
        row = video_row(plan_row, self.job.archive.uri_of(plan_row["key"]), status, self.context) | columns
        self.spool.add("videos", pa.Table.from_pylist([row], schema=TABLES["videos"].schema))
        self.states[status] += 1

    def publish(self, started: float) -> int:
        """Check the balance, publish, report. Returns the exit code."""
        counts = {str(status): self.states[status] for status in Status}
        known = self.plan.listed + self.plan.count(Action.GONE)
        if sum(counts.values()) != known:
            raise PublishError(f"the run does not balance: {known} objects but {counts}; nothing published")
        attempted = len(self.decode) + self.plan.count(Action.REFUSE)
        over = counts["quarantined"] > self.job.config.run.failure_budget * attempted
        wall_s = time.monotonic() - started
        self._add_run_row(counts, "over_budget" if over else "ok", wall_s)
        staged = stage_tables(self.spool, self.job.output, self.run_id, self.work_dir)
        manifest = publish(
            self.job.output,
            self.job.published,
            staged,
            self.run_id,
            self.started_at,
            _versions(self.job),
            counts,
        )
        summary = self._summary(counts, over, time.monotonic() - started)
        metrics = {f"videos_{name}": float(n) for name, n in counts.items()} | {
            "listed": float(self.plan.listed),
            "decoded_hours": us_to_seconds(self.decoded_us) / 3600,
            "wall_s": wall_s,
            "realtime_factor": us_to_seconds(self.decoded_us) / wall_s,
            **{f"error_{code}": float(n) for code, n in self.error_counts.items()},
        }
        self.tracker.finish(
            metrics,
            {"vca.run_id": self.run_id, "vca.code_version": code_version(), "vca.over_budget": str(over)}
            | {f"vca.{name}": value for name, value in _versions(self.job).items()},
            {
                "config.json": self.job.config.model_dump_json(indent=2),
                "manifest.json": manifest.to_json(),
                "summary.txt": summary,
            },
            {name: self.job.output.uri_of(f"tables/{name}") for name in TABLES},
        )
        self.say(summary + f"\ntracking   {self.tracker.state}")
        return EXIT_OVER_BUDGET if over else EXIT_OK

    def _add_run_row(self, counts: dict[str, int], status: str, wall_s: float) -> None:
        decoded_s = us_to_seconds(self.decoded_us)
        row = {
            "run_id": self.run_id,
            "started_at": self.started_at,
            "ended_at": datetime.now(UTC),
            "status": status,
            "listed": self.plan.listed,
            **counts,
            "ignored": self.plan.ignored,
            "decoded_s": decoded_s,
            "wall_s": wall_s,
            "realtime_factor": decoded_s / wall_s,
            "error_counts": [{"error_code": code, "count": n} for code, n in sorted(self.error_counts.items())],
            **_versions(self.job),
            "config": self.job.config.model_dump_json(),
            "code_version": code_version(),
            "mlflow_run_id": self.tracker.run_id,
        }
        self.spool.add("runs", conform(pa.Table.from_pylist([row], schema=TABLES["runs"].schema), "runs"))

    def _summary(self, counts: dict[str, int], over: bool, wall_s: float) -> str:
        waiting = self.plan.counts.get((str(Action.SKIP), "in quarantine until the file changes"), 0)
        gone = self.plan.count(Action.GONE)
        states = " + ".join(f"{n} {name}" for name, n in counts.items() if n) or "0"
        decoded_s = us_to_seconds(self.decoded_us)
        lines = [
            "",
            f"run        {self.run_id} published" + (" - OVER THE FAILURE BUDGET" if over else ""),
            f"balance    {self.plan.listed} listed" + (f" + {gone} no longer listed" if gone else "") + f" = {states}",
        ]
        if waiting:
            lines.append(f"           {waiting} of the unchanged wait in quarantine for a new version of the file")
        lines.append(
            f"media      {hours(decoded_s)} decoded in {wall_s:.0f} s ({decoded_s / wall_s:.1f} x real time)"
            if self.decoded_us
            else f"media      nothing decoded, {wall_s:.1f} s"
        )
        for code, n in self.error_counts.most_common(8):
            lines.append(f"failed     {n:>5}  {code}: {CODES[ErrorCode(code)].meaning}")
        rows = ", ".join(f"{name} {n}" for name, n in self.spool.rows.items() if n)
        lines.append(f"rows       {rows}")
        output = self.job.output.uri_of("")
        lines.append(f"output     {output}")
        lines.append(f"look at    vca status --output {shlex.quote(output)}")
        lines.append(f'           vca query --output {shlex.quote(output)} "FROM video_categories WHERE selected"')
        return "\n".join(lines)

    def _show(self, line: str, metrics: dict[str, float], step: int) -> None:
        self.say(line)
        self.tracker.progress(metrics, step)


def _versions(job: Job) -> dict[str, str]:
    return {
        "feature_set": job.versions.feature_set,
        "model_version": job.versions.model_version,
        "taxonomy_version": job.versions.taxonomy_version,
    }


def code_version() -> str:
    """Version of the package, with the git commit when run from a checkout."""
    folder = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return __version__
    command = [git, "-C", str(folder), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  no user input in it
    return f"{__version__}+{done.stdout.strip()}" if done.returncode == 0 else __version__


def dry_run(config: TagConfig) -> str:
    """The resolved configuration and the plan, as text."""
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n" + plan_only(config)
