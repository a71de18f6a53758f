"""Looking after an output: back to an older run, and away with what no run needs any more.

Both change what runs build on, so both hold the lock of the output.
"""

import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vca.core.errors import ConfigError
from vca.media.output import DELETE_BATCH, TEMPORARY, Entry, Output, OutputConfig
from vca.media.output_lock import OutputLock, output_lock
from vca.pipelines.config import RetentionConfig
from vca.pipelines.features import FeatureStore
from vca.pipelines.publish import RUN_ID, point_to, recover, storage_failures_end_the_work
from vca.tables.manifest import CURRENT, Manifest, OutputReader, open_output
from vca.tables.query import query

log = logging.getLogger(__name__)

Say = Callable[[str], None]

# ------------------------------------------------------------------------------------------------------------- rollback


def rollback(config: OutputConfig, run_id: str, say: Say) -> int:
    """Put a published run into force, an older one or, after a rollback, a newer one. Returns the exit code.

    Nothing is deleted: the run that was in force can be put back. Raises `ConfigError` for a run that is not there or
    not whole, `PublishError` if the storage fails.
    """
    output, published = Output(config), open_output(config.uri, config.storage)
    with storage_failures_end_the_work(output):
        published.manifest(run_id)  # an unknown run is refused before anything is touched
        output.check_writable()
        with output_lock(output, f"rollback to {run_id}") as lock:
            # First, or the next run would publish what a killed one left, on top of the run that is chosen here.
            # With a lost pointer it cannot be told what that was planned on, and this puts the pointer back.
            finished = recover(output, published) if published.current() is not None else None
            if finished is not None:
                say(f"finished publishing run {finished}, which was stopped before its last step")
            before = output.version(CURRENT)
            current, target = published.current(), published.manifest(run_id)
            if current is not None and current.run_id == run_id:
                say(f"run {run_id} is in force already")
                return 0
            _refuse_incomplete(output, target)
            states = _states(published.at(run_id))
            lines = [] if current is None else _changes(published, current, target, states)
            lock.check()
            point_to(output, run_id, before)
    say(f"run {run_id} is in force" + (f", before it was {current.run_id}" if current is not None else ""))
    for line in lines:
        say(line)
    if current is not None:
        say(f"back with  vca rollback {current.run_id} --output {shlex.quote(output.uri_of(''))}")
    return 0


def _refuse_incomplete(output: Output, manifest: Manifest) -> None:
    sizes = {entry.path: entry.size_bytes for entry in output.entries("tables")}
    for table in manifest.tables.values():
        for file in table.files:
            size = sizes.get(file.path)
            if size != file.size_bytes:
                what = "is missing" if size is None else f"has {size} bytes in place of {file.size_bytes}"
                raise ConfigError(f"run {manifest.run_id}: {file.path} {what}; restore the file or choose another run")


def _changes(published: OutputReader, current: Manifest, target: Manifest, states: str) -> list[str]:
    try:
        states_before = _states(published)
    except ConfigError as error:  # a damaged run is a reason to go back, not one to stay
        states_before = f"unknown: {error}"
    rows = []
    for name in sorted(current.tables | target.tables):
        was, now = (m.tables[name].rows if name in m.tables else 0 for m in (current, target))
        if was != now:
            rows.append(f"{name} {was} -> {now}")
    return [f"videos     {states} (before: {states_before})", f"rows       {', '.join(rows) or 'as many as before'}"]


def _states(published: OutputReader) -> str:
    rows = query(published, "SELECT status, count(*) AS n FROM videos GROUP BY ALL ORDER BY n DESC, status").to_pylist()
    return ", ".join(f"{row['n']} {row['status']}" for row in rows) or "none"


# ---------------------------------------------------------------------------------------------------------------- prune

FOLDERS = ("annotations", "features", "manifests", "models", "reports", "staging", "tables", "training")
"""Where vca writes. Nothing else in the output is looked at."""

# Only names in the form in which this program writes them are ever deleted: an output may hold other things.
_MANIFEST = re.compile(rf"manifests/(?P<run>{RUN_ID.pattern})\.json")
_TABLE_FILE = re.compile(rf"tables/[a-z][a-z0-9_]*/run_id={RUN_ID.pattern}/part-\d{{5}}\.parquet")
_STAGING = re.compile(rf"staging/(?P<run>{RUN_ID.pattern})/.*")
_FEATURES = re.compile(
    rf"features/(?P<set>[0-9a-f]{{24}})/(?:part-(?P<run>{RUN_ID.pattern})-\d{{5}}\.parquet|feature_set\.json)"
)
_UNFINISHED_TRAINING = (
    (re.compile(r"(training/windows/[0-9a-f]{24})/block-\d{5}\.parquet"), "windows.json"),
    (re.compile(r"(training/[^/]+/checkpoint-\d{8})/(?:state|best)\.safetensors"), "checkpoint.json"),
)
"""Files of a folder that counts only once its index is there, which is written last."""
_NAMES_FEATURES = re.compile(r"(models/[^/]+/model|training/[^/]+/model/model|training/windows/[^/]+/windows)\.json")
_TEMPORARY = re.compile(rf"(?:.*/)?{re.escape(TEMPORARY)}[0-9a-f]{{32}}")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is deleted, in the order in which it goes, and what is said of it."""

    groups: tuple[tuple[str, tuple[Entry, ...]], ...]
    kept: tuple[str, ...]
    """Runs that stay."""

    def describe(self) -> list[str]:
        lines = [f"keeps      {len(self.kept)} runs, {self.kept[0]} to {self.kept[-1]}"]
        for what, entries in self.groups:
            size_mb = sum(entry.size_bytes for entry in entries) / 1e6
            lines.append(f"  {len(entries):>7} files {size_mb:>12.1f} MB  {what}")
        return lines

    def carry_out(self, output: Output, lock: OutputLock) -> None:
        """Delete. Wherever it stops, no manifest names a file that is gone, and a later sweep does the rest."""
        for _, entries in self.groups:
            for first in range(0, len(entries), DELETE_BATCH):
                lock.check()
                output.delete_files(entry.path for entry in entries[first : first + DELETE_BATCH])


def prune(config: OutputConfig, retention: RetentionConfig, dry_run: bool, say: Say) -> int:
    """Delete what no kept run needs. Returns the exit code; raises `ConfigError` and `PublishError`."""
    output, published = Output(config), open_output(config.uri, config.storage)
    with storage_failures_end_the_work(output):
        if dry_run:
            for line in make_sweep(output, published, retention, datetime.now(UTC)).describe():
                say(line)
            say("nothing deleted: --dry-run")
            return 0
        if published.current() is None:
            raise _nothing_in_force(published)
        output.check_writable()
        with output_lock(output, "prune") as lock:
            sweep = make_sweep(output, published, retention, datetime.now(UTC))
            for line in sweep.describe():
                say(line)
            sweep.carry_out(output, lock)
    say(f"deleted {sum(len(entries) for _, entries in sweep.groups)} files")
    return 0


def make_sweep(output: Output, published: OutputReader, retention: RetentionConfig, now: datetime) -> Sweep:
    """What may go at this moment. Writes nothing.

    Raises `ConfigError` where it cannot be told what is needed: nothing in force, a damaged manifest, a damaged model.
    """
    current = published.current()
    if current is None:
        raise _nothing_in_force(published)
    found = {folder: sorted(output.entries(folder), key=lambda entry: entry.path) for folder in FOLDERS}
    keeping = _Keeping(output, published, found, now - timedelta(hours=retention.min_age_h))
    keeping.runs(current.run_id, retention.runs)
    groups = [
        ("manifests of older runs", keeping.manifests()),
        ("table files that no kept run names", keeping.table_files()),
        ("staging of runs that were killed", keeping.staging()),
        *((f"feature set {name}, which no kept run or model names", old) for name, old in keeping.feature_sets()),
        ("training folders that were not finished", keeping.training()),
        ("temporary files of writers that were killed", keeping.temporary()),
    ]
    return Sweep(tuple((what, tuple(entries)) for what, entries in groups if entries), tuple(keeping.kept))


def _nothing_in_force(published: OutputReader) -> ConfigError:
    known = published.runs()
    if known:
        return ConfigError(f"{published.uri}: {CURRENT} is missing; put a run into force: vca rollback {known[-1]}")
    return ConfigError(f"{published.uri}: no run has been published here; check the location or run `vca tag` first")


class _Keeping:
    """What must stay, gathered first, and then what may go beside it."""

    def __init__(
        self, output: Output, published: OutputReader, found: Mapping[str, Sequence[Entry]], before: datetime
    ) -> None:
        self._output, self._published, self._found, self._before = output, published, found, before
        self.kept: list[str] = []
        self._newest = ""
        self._paths: set[str] = set()
        self._sets: set[str] = set()
        self._staged: set[str] = set()

    def _old(self, entries: Sequence[Entry]) -> bool:
        return all(entry.modified_at <= self._before for entry in entries)

    def _matching(self, folder: str, form: "re.Pattern[str]") -> Iterator[tuple[Entry, "re.Match[str]"]]:
        for entry in self._found[folder]:
            match = form.fullmatch(entry.path)
            if match is not None:
                yield entry, match

    def runs(self, in_force: str, n_newest: int) -> None:
        """Decide which runs stay, and collect what they name."""
        entries = {match["run"]: entry for entry, match in self._matching("manifests", _MANIFEST)}
        runs = sorted(entries)
        self._newest = runs[-1] if runs else in_force
        stay = {in_force, *runs[-n_newest:], *(run for run in runs if not self._old([entries[run]]))}
        self.kept = sorted(stay)
        for run in self.kept:
            self._name(self._published.manifest(run))
        for name in set(self._published.runs()) - set(runs):
            try:
                self._name(self._published.manifest(name))
            except ConfigError as error:  # not our form of name: somebody's copy of a manifest, or no manifest at all
                log.warning("left alone: %s", error)
        for entry, match in self._matching("staging", _STAGING):
            if entry.path == f"staging/{match['run']}/manifest.json":
                # A complete run, which the next `vca tag` publishes: some of its files may lie in their places already.
                self._staged.add(match["run"])
                self._name(Manifest.from_json(self._output.read_bytes(entry.path), entry.path))

    def _name(self, manifest: Manifest) -> None:
        self._paths |= {file.path for table in manifest.tables.values() for file in table.files}
        self._sets.add(manifest.feature_set)

    def manifests(self) -> list[Entry]:
        return [e for e, match in self._matching("manifests", _MANIFEST) if match["run"] not in self.kept]

    def table_files(self) -> list[Entry]:
        ours = (entry for entry, _ in self._matching("tables", _TABLE_FILE))
        return [entry for entry in ours if entry.path not in self._paths and self._old([entry])]

    def staging(self) -> list[Entry]:
        folders: dict[str, list[Entry]] = {}
        for entry, match in self._matching("staging", _STAGING):
            folders.setdefault(match["run"], []).append(entry)
        dead = [entries for run, entries in folders.items() if run not in self._staged and self._old(entries)]
        return [entry for entries in dead for entry in entries]

    def feature_sets(self) -> Iterator[tuple[str, list[Entry]]]:
        """Sets that may go, the description last: a set without one could not be told from an unfinished import."""
        named = self._sets | self._named_by_models()
        sets: dict[str, list[Entry]] = {}
        newest_part: dict[str, str] = {}
        for entry, match in self._matching("features", _FEATURES):
            sets.setdefault(match["set"], []).append(entry)
            newest_part[match["set"]] = max(newest_part.get(match["set"], ""), match["run"] or "")
        for name, entries in sets.items():
            # A run later than all that are published was killed, and the next one goes on with its features.
            if name in named or not self._old(entries) or newest_part[name] > self._newest:
                continue
            try:
                imported = "imported" in FeatureStore(self._output, name).definition()
            except ConfigError as error:
                log.warning("left alone, as it may be an import: %s", error)
                continue
            if not imported:
                yield name, sorted(entries, key=lambda entry: entry.path.endswith(".json"))

    def _named_by_models(self) -> set[str]:
        """Feature sets that models were trained on, or are being trained on."""
        named = set()
        for folder in ("models", "training"):
            for entry, _ in self._matching(folder, _NAMES_FEATURES):
                try:
                    named.add(str(json.loads(self._output.read_bytes(entry.path))["spec"]["feature_set"]))
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise ConfigError(
                        f"output: {entry.path} is damaged ({type(error).__name__}), so nobody knows which features it "
                        "needs; restore it or delete its folder"
                    ) from error
        return named

    def training(self) -> list[Entry]:
        """A finished window set or checkpoint has its index; without one it is never read and would be made again."""
        there = {entry.path for entry in self._found["training"]}
        folders: dict[str, list[Entry]] = {}
        for form, index in _UNFINISHED_TRAINING:
            for entry, match in self._matching("training", form):
                if f"{match[1]}/{index}" not in there:
                    folders.setdefault(match[1], []).append(entry)
        return [entry for entries in folders.values() if self._old(entries) for entry in entries]

    def temporary(self) -> list[Entry]:
        # Those in staging go with their folder.
        folders = [entries for name, entries in self._found.items() if name != "staging"]
        left = (entry for entries in folders for entry in entries if _TEMPORARY.fullmatch(entry.path))
        return [entry for entry in left if self._old([entry])]
