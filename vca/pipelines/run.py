"""The tagging job: pre-flight, recovery, plan, read and encode, predict, publish (design sections 1 and 7)."""

import json
import logging
import math
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vca import __version__
from vca.core import identity
from vca.core.errors import ConfigError, ErrorCode
from vca.core.schemas import FEATURES, TABLES
from vca.core.storage import is_s3
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import us_to_seconds
from vca.media.output import Output
from vca.media.output_lock import OutputLock, output_lock
from vca.media.read import ReadPlan
from vca.media.storage import Archive
from vca.models.encode import feature_definition
from vca.models.vision import VisionConfig, vision_needs
from vca.pipelines import cluster
from vca.pipelines.account import Account, RunFacts
from vca.pipelines.chosen_model import ChosenModel, choose_model, place_model
from vca.pipelines.config import TagConfig, read_taxonomy
from vca.pipelines.features import Dims, FeatureStore, FeatureWriter
from vca.pipelines.head_watch import head_watched
from vca.pipelines.plan import RETRY_ASKED, Action, Plan, PlannedVideos, Versions, make_plan
from vca.pipelines.predict import PredictSettings, StoredVideo, complete_videos, group_by_part, model_version
from vca.pipelines.progress import Progress, hours
from vca.pipelines.publish import Spool, publish, recover, stage_tables, storage_failures_end_the_work
from vca.pipelines.read_queue import ReadQueue
from vca.pipelines.stages import ReadSettings
from vca.pipelines.stored_archive import StoredArchive
from vca.pipelines.tracking import Tracker
from vca.pipelines.watch import Watchdog, next_deadline
from vca.tables.manifest import OutputReader, open_output

log = logging.getLogger(__name__)

EXIT_OK, EXIT_OVER_BUDGET, EXIT_CONFIG, EXIT_NOT_PUBLISHED = 0, 1, 2, 3

LOW_BYTES_PER_S = 64_000  # 0.5 Mbit/s

READER_VERSION = 3
"""Raised when the reading of media changes what features are made of, so that archives are read again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A checked job: everything that can be refused without a cluster has been looked at, nothing has been written."""

    config: TagConfig
    taxonomy: Taxonomy
    definition: dict[str, Any]
    versions: Versions
    archive: Archive | StoredArchive
    output: Output
    published: OutputReader
    chosen: ChosenModel
    model_place: str | None = None
    """Where the trained model lies in the output, once it is there."""

    @property
    def read_settings(self) -> ReadSettings:
        config = self.config
        assert isinstance(self.archive, Archive), "stored features are never decoded"
        return ReadSettings(self.archive, config.sampling, config.decode, read_plan(config), config.run.max_attempts)

    @property
    def predict_settings(self) -> PredictSettings:
        return PredictSettings(
            output=self.output,
            feature_set=self.versions.feature_set,
            taxonomy=self.taxonomy,
            text_model=self.config.predict.text_model,
            # The text side of the vision model runs where the predictors do, which may have no GPU.
            vision=self.config.encoders.vision.model_copy(update={"device": "auto"}),
            zeroshot=self.config.predict.zeroshot,
            gpus=self.config.resources.predictor_gpus,
            model=self.model_place,
            thresholds=self.config.predict.thresholds,
        )

    def plan(self, work_dir: Path) -> Plan:
        run = self.config.run
        return make_plan(self.archive, self.published, self.versions, run.max_attempts, work_dir, run.retry)


def prepare(config: TagConfig) -> Job:
    """Check configuration, taxonomy, models and archive. Raises `ConfigError`; writes nothing."""
    taxonomy = read_taxonomy(config)
    output = Output(config.output)
    archive: Archive | StoredArchive
    if config.archive.feature_set is not None:
        archive = StoredArchive(config.archive, output)
        archive.check()
        # Whatever encoder made these features, it is not ours: frames cannot be compared with its text tower.
        encoders = config.encoders.model_copy(update={"vision": VisionConfig(kind="none")})
        config = config.model_copy(update={"encoders": encoders})
        feature_set, definition = archive.store.feature_set, archive.store.definition()
    else:
        archive = Archive(config.archive)
        _refuse_overlap(config)
        archive.check()
        definition = feature_definition(config.encoders, config.step_us, config.segment_us, config.sampling.mode)
        definition["reader"] = READER_VERSION
        if config.decode.backend != "pyav":
            definition["backend"] = config.decode.backend  # its pictures are scaled in another way
        feature_set = identity.feature_set_id(definition)
    zeroshot = model_version(config.predict.zeroshot, config.predict.text_model, config.encoders.vision, config.step_us)
    published = open_output(config.output.uri, config.output.storage)
    chosen = choose_model(config, output, published, feature_set, zeroshot)
    versions = Versions(feature_set, chosen.model_version, taxonomy.version)
    return Job(config, taxonomy, definition, versions, archive, output, published, chosen)


def _refuse_overlap(config: TagConfig) -> None:
    """The job cleans up in its output: an archive must not lie in there."""
    uris = [config.archive.uri, config.output.uri]
    archive, output = (u.rstrip("/") if is_s3(u) else str(Path(u).expanduser().absolute()) for u in uris)
    if f"{archive}/".startswith(f"{output}/"):
        raise ConfigError(
            f"output.uri = {config.output.uri!r}: the archive {config.archive.uri!r} lies in it; choose another place"
        )


def read_plan(config: TagConfig) -> ReadPlan:
    """What the decoding child must deliver for these encoders."""
    needs = vision_needs(config.encoders.vision, config.step_us)
    ocr = config.encoders.ocr
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
        return f"model {job.chosen.note}\n{job.plan(Path(folder)).describe()}"


def dry_run(config: TagConfig) -> str:
    """The resolved configuration and the plan, as text."""
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n" + plan_only(config)


def tag(config: TagConfig, say: Callable[[str], None] = print) -> int:
    """Run the job. Returns exit code 0 or 1 of design section 7; raises `ConfigError` for 2, `PublishError` for 3."""
    started = time.monotonic()
    started_at = datetime.now(UTC)
    # Ids sort by time, within a second too: the first half of the suffix is its fraction, the second chance.
    fraction = started_at.microsecond * 4096 // 1_000_000
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{fraction:03x}{secrets.randbelow(4096):03x}"
    job = prepare(config)
    job.output.check_writable()
    with (
        tempfile.TemporaryDirectory(prefix="vca-run-") as folder,
        storage_failures_end_the_work(job.output),
        output_lock(job.output, f"run {run_id}") as lock,
    ):
        job = replace(job, model_place=place_model(job.chosen, job.output, job.taxonomy, config.tracking))
        work_dir = Path(folder)
        finished = recover(job.output, job.published, f"features/{job.versions.feature_set}")
        plan = job.plan(work_dir)
        with _cluster(job, plan) as slots:
            if finished is not None:
                say(f"finished publishing run {finished}, which was stopped before its last step")
            current = job.published.current()
            if current is not None and run_id <= current.run_id:
                raise ConfigError(f"the clock says {started_at:%F %T} UTC, before run {current.run_id}; set the clock")
            say(f"run {run_id}\nmodel {job.chosen.note}\n{plan.describe()}")
            deadline = None
            if config.run.deadline is not None:
                deadline = next_deadline(config.run.deadline, started_at)
                say(f"deadline {deadline:%F %R} UTC, in {hours((deadline - started_at).total_seconds())}")
            tracker = Tracker(config.tracking, run_id)
            tracker.parameters(config.model_dump(mode="json"))
            facts = RunFacts(run_id, started_at, job.versions, config.step_us, config.run.max_attempts)
            account = Account(facts, plan, job.archive, Spool(work_dir))
            run = _Run(job, slots, account, tracker, say, parent=current.run_id if current else None)
            with tracker.failing(), run.watched(deadline):
                run.read_and_encode()
                run.predict()
        # The cluster is left by now: if it falls apart from here on, nothing is lost.
        with tracker.failing():
            return run.publish(work_dir, started, lock)


@contextmanager
def _cluster(job: Job, plan: Plan) -> Iterator[cluster.Slots | None]:
    """The Ray cluster, if there is work for one."""
    if plan.count(Action.DECODE) + plan.count(Action.RETAG) == 0:
        yield None
        return
    connected = cluster.connect(job.config.ray)
    try:
        with head_watched(cluster.head_address(), _end_without_head):
            yield cluster.work_out_slots(job.config.resources)
    finally:
        cluster.disconnect(connected)


def _end_without_head() -> None:
    """The main thread waits inside Ray and would not come back."""
    sys.stderr.write(
        "vca: the head node of the Ray cluster is gone; nothing published, the features stored so far are kept. "
        "Start the cluster and the run again\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_NOT_PUBLISHED)


class _Run:
    """One run on the driver: what is stored, what is left to do."""

    def __init__(
        self,
        job: Job,
        slots: cluster.Slots | None,
        account: Account,
        tracker: Tracker,
        say: Callable[[str], None],
        parent: str | None,
    ) -> None:
        self.job, self.slots, self.account, self.tracker, self.say = job, slots, account, tracker, say
        self.parent = parent
        self.store = FeatureStore(job.output, job.versions.feature_set)
        decode, retag = account.plan.rows(Action.DECODE), account.plan.rows(Action.RETAG)
        self.planned = PlannedVideos(pa.concat_tables([decode, retag]))
        self.decode: list[str] = decode.column("video_id").to_pylist()
        self.retag: set[str] = set(retag.column("video_id").to_pylist())
        self.ready: dict[str, StoredVideo] = {}
        self.failures: dict[str, dict[str, Any]] = {}  # video_id -> ENCODED row of its first failure
        self.deferred: set[str] = set()  # videos of which at least a segment was not read
        self.watch: cluster.RemoteWatch | None = None
        self.decoded_us = 0
        self.worker_s = {"read": 0.0, "encode": 0.0}
        self.confinements: set[str] = set()

    @contextmanager
    def watched(self, deadline: datetime | None) -> Iterator[None]:
        """Have the workers watched, and what holds them up named, for the length of the block."""
        if self.slots is None:
            yield
            return
        run = self.job.config.run
        budget_us = math.inf if run.max_video_hours is None else run.max_video_hours * 3600e6
        self.watch = watch = cluster.RemoteWatch(deadline, budget_us)
        every_s = min(run.progress_s, run.stall_s)
        try:
            with Watchdog(watch.oldest, run.stall_s, every_s, lambda line: log.warning("%s", line)):
                yield
        finally:
            watch.close()

    def read_and_encode(self) -> None:
        """Decode what the store does not hold yet, in waves, and store the features as they come."""
        if not self.planned:
            return
        run = self.job.config.run
        index = self._without_retried(self.store.index(self.planned.fingerprints))
        self.ready = complete_videos(index)
        if isinstance(self.job.archive, StoredArchive):
            return
        # A video to tag again whose features somebody deleted is decoded again.
        lost = [v for v in self.planned if v in self.retag and v not in self.ready]
        self.decode += lost
        self.retag.difference_update(lost)
        tasks = [v for v in self.decode if v not in self.ready]
        if not tasks:
            return
        stored = {
            (row["video_id"], row["segment_index"], row["n_segments"])
            for row in index.filter(pc.is_in(index.column("video_id"), pa.array(tasks, pa.string()))).to_pylist()
        }
        size_bytes = pc.sum(self.planned.of(tasks).column("size_bytes")).as_py()
        writer = FeatureWriter(self.store, self.account.facts.run_id, run.part_mb << 20, run.flush_s)
        progress = Progress("read", len(tasks), size_bytes, run.progress_s, self._show)
        try:
            for first in range(0, len(tasks), run.wave_videos):
                wave = self.planned.of(tasks[first : first + run.wave_videos]).to_pylist()
                self._read_wave(wave, writer, progress, stored)
                if self.deferred:  # late, or the budget is spent: no use in asking a worker about each of the rest
                    self.deferred.update(tasks[first + run.wave_videos :])
                    break
        finally:
            writer.flush()  # whatever ends the run, what is decoded stays decoded
        progress.close()
        self.ready = complete_videos(pa.concat_tables([index, *writer.written]))

    def _read_wave(
        self, wave: list[dict[str, Any]], writer: FeatureWriter, progress: Progress, stored: set[tuple[str, int, int]]
    ) -> None:
        """Read and encode the videos of one wave: those of one segment as they are opened, of others the segments that
        are not stored.
        """
        assert self.slots is not None, "tasks without a cluster"
        assert self.watch is not None, "tasks outside `watched`"
        left = Counter(task["video_id"] for task in wave)
        by_id = {task["video_id"]: task for task in wave}
        n_tasks = _at_most(wave, self.job.config.sampling.segment_s)
        slots = replace(
            self.slots, readers=min(self.slots.readers, n_tasks), encoders=min(self.slots.encoders, n_tasks)
        )
        queue = ReadQueue(wave, slots.readers, slots.encoders)
        settings, encoders = self.job.read_settings, self.job.config.encoders
        for rows in cluster.read_and_encode(queue, settings, encoders, slots, self.watch):
            self._store(rows, writer)
            for row in rows.drop_columns(["vision", "audio", "text", "shots"]).to_pylist():
                video_id, task = row["video_id"], by_id[row["video_id"]]
                if row["confinement"] not in self.confinements:  # one line, unless nodes differ
                    self.confinements.add(row["confinement"])
                    self.say(f"decoding   {row['confinement']}")
                for stage in ("read", "encode"):
                    self.worker_s[stage] += row[f"{stage}_s"] or 0.0
                n_segments = row["n_segments"] or 1
                if row["outcome"] == "probed":
                    todo = [i for i in range(n_segments) if (video_id, i, n_segments) not in stored]
                    left[video_id] += len(todo) - 1
                    queue.heard(video_id, [task | {"media": row["media"], "segment_index": i} for i in todo])
                    progress.add(videos=0, size_bytes=task["size_bytes"] * (n_segments - len(todo)) // n_segments)
                    continue
                queue.heard(video_id)
                left[video_id] -= 1
                if row["outcome"] == "deferred":
                    self.deferred.add(video_id)
                    self.deferred |= {waiting["video_id"] for waiting in queue.clear()}
                    continue
                first_failure = row["outcome"] == "failed" and video_id not in self.failures
                if first_failure:
                    self.failures[video_id] = row
                self.decoded_us += row["coverage_us"] or 0
                progress.add(
                    videos=int(left[video_id] == 0),
                    size_bytes=task["size_bytes"] // n_segments,
                    media_us=row["coverage_us"] or 0,
                    failed=int(first_failure),
                )

    def _without_retried(self, index: pa.Table) -> pa.Table:
        """What is stored of a video that somebody wants read again is what the failure left."""
        planned = self.planned.of(self.decode)
        retried = planned.filter(pc.equal(planned.column("reason"), RETRY_ASKED)).column("video_id")
        return index.filter(pc.invert(pc.is_in(index.column("video_id"), retried.combine_chunks())))

    def _store(self, rows: pa.Table, writer: FeatureWriter) -> None:
        good = rows.filter(pc.equal(rows.column("outcome"), "read"))
        if len(good) == 0:
            return
        if not writer.written:
            dims = Dims(good.column("vision_dim")[0].as_py(), good.column("audio_dim")[0].as_py())
            self.store.describe(self.job.definition, dims)
        writer.add(good.select(FEATURES.names))

    def predict(self) -> None:
        """Tag every complete video of this run from the feature store and put every object into the books."""
        videos = {v: s for v, s in self.ready.items() if v not in self.failures and v not in self.deferred}
        # What was decoded is tagged even when it is late: that is short, and finishes what was begun.
        finish = {v: stored for v, stored in videos.items() if v not in self.retag}
        again = {v: stored for v, stored in videos.items() if v in self.retag}
        progress = Progress("tag", len(videos), 0, self.job.config.run.progress_s, self._show)
        for stored_videos, may_defer in ((finish, False), (again, True)):
            if not stored_videos:
                continue
            assert self.slots is not None, "videos to tag without a cluster"
            assert self.watch is not None, "videos to tag outside `watched`"
            groups, settings = group_by_part(stored_videos), self.job.predict_settings
            for predictions in cluster.predict(groups, settings, self.slots, self.watch, may_defer):
                self.account.predicted(predictions, self.planned)
                progress.add(videos=len(predictions))
        progress.close()
        for video_id in self.planned:
            if video_id in videos:
                continue
            plan_row = self.planned[video_id]
            if video_id in self.failures:
                row = self.failures[video_id]
                self.account.failed(plan_row, row["stage"], row["error_code"], row["error_message"], row["media"])
            elif video_id in self.deferred:
                self.account.deferred(plan_row)
            else:
                message = "the feature store does not hold all segments of this video"
                self.account.failed(plan_row, "read", str(ErrorCode.STORAGE_ERROR), message, None)
        self.account.planned_states()

    def publish(self, work_dir: Path, started: float, lock: OutputLock) -> int:
        """Check the balance, publish, report. Returns the exit code."""
        account, output = self.account, self.job.output
        facts, versions = account.facts, account.facts.versions.as_dict()
        counts = account.counts()
        attempted = len(self.decode) + account.plan.count(Action.REFUSE) - len(self.deferred)
        over = counts["quarantined"] > self.job.config.run.failure_budget * attempted
        wall_s = time.monotonic() - started
        more = {"code_version": code_version(), "mlflow_run_id": self.tracker.run_id}
        account.add_run_row(counts, over, self.decoded_us, wall_s, self.job.config.model_dump_json(), more)
        staged = stage_tables(account.spool, output, facts.run_id, work_dir)
        manifest = publish(
            output,
            self.job.published,
            self.parent,
            staged,
            facts.run_id,
            facts.started_at,
            versions,
            counts,
            lock.check,
        )
        where = output.uri_of("")
        summary = [
            *account.summary(counts, over, self.decoded_us, time.monotonic() - started),
            f"output     {where}",
            f"look at    vca status --output {shlex.quote(where)}",
            f'           vca query --output {shlex.quote(where)} "FROM video_categories WHERE selected"',
        ]
        metrics = {f"videos_{name}": float(n) for name, n in counts.items()} | {
            "listed": float(account.plan.listed),
            "decoded_hours": us_to_seconds(self.decoded_us) / 3600,
            "wall_s": wall_s,
            "realtime_factor": us_to_seconds(self.decoded_us) / wall_s,
            **{f"{stage}_worker_s": seconds for stage, seconds in self.worker_s.items()},
            **{f"error_{code}": float(n) for code, n in account.error_counts.items()},
        }
        tags = {"run_id": facts.run_id, "code_version": more["code_version"], "over_budget": str(over), **versions}
        artifacts = {
            "config.json": self.job.config.model_dump_json(indent=2),
            "manifest.json": manifest.to_json(),
            "summary.txt": "\n".join(summary),
        }
        tables = {name: output.uri_of(f"tables/{name}") for name in TABLES}
        self.tracker.finish(metrics, {f"vca.{name}": str(v) for name, v in tags.items()}, artifacts, tables)
        self.say("\n".join(["", *summary, f"tracking   {self.tracker.state}"]))
        return EXIT_OVER_BUDGET if over else EXIT_OK

    def _show(self, line: str, metrics: dict[str, float], step: int) -> None:
        self.say(line)
        self.tracker.progress(metrics, step)


def _at_most(videos: list[dict[str, Any]], segment_s: int) -> int:
    """Pieces of work that these videos may turn out to be. Only their sizes are known: this counts those of a low bit
    rate. Workers that it starts in vain cost their start.
    """
    return sum(max(1, row["size_bytes"] // (LOW_BYTES_PER_S * segment_s)) for row in videos)


def code_version() -> str:
    """Version of the package, with the git commit when run from a checkout."""
    folder = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return __version__
    command = [git, "-C", str(folder), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  no user input in it
    return f"{__version__}+{done.stdout.strip()}" if done.returncode == 0 else __version__
