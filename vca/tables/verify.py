"""Reading an output again, from the pointer to the last row, to see whether it is whole.

Every file that a manifest names is read once, batch by batch, however many manifests name it. What rows of a run say of
each other is found by walking two sorted tables side by side, so that memory does not grow with the archive. Of feature
sets, only keys are read: the vectors are most of an output.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vca.core import identity
from vca.core.errors import ConfigError, one_line
from vca.core.schemas import FEATURES, TABLES, Status, Table
from vca.core.storage import is_s3
from vca.tables.manifest import CURRENT, Manifest, ManifestFile, OutputReader, config_errors, manifest_path

BATCH_ROWS = 65_536
ONE_ROW_A_VIDEO = ("videos", "video_embeddings", "quarantine")
SPANS = ("event_spans", "transcripts", "shots")
SLACK_S = 1e-6
"""Times are integer microseconds divided by a million: two of them may differ in the last bit."""
FEATURE_KEYS = ("video_id", "key", "fingerprint", "segment_index", "n_segments", "start_us", "end_us", "step_us")

Say = Callable[[str], None]


def verify(reader: OutputReader, say: Say) -> bool:
    """Say one line for every finding and a last one of what was checked. Returns whether there was no error.

    Warnings are things that take space but no truth: files that nothing names, staging. Raises `ConfigError` where
    nothing was published and where the storage fails: that says nothing about the output.
    """
    return _Verifier(reader, say).run()


class _Verifier:
    def __init__(self, reader: OutputReader, say: Say) -> None:
        self._reader, self._say = reader, say
        self._counts: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._opened: set[str] = set()
        self._unsound: set[str] = set()
        """Files that cannot be read to the end or are not sorted: what rests on them is not looked at."""

    def _error(self, where: str, what: str) -> None:
        self._counts["errors"] += 1
        self._say(f"error    {where}: {one_line(what)}")

    def _warning(self, where: str, what: str) -> None:
        self._counts["warnings"] += 1
        self._say(f"warning  {where}: {one_line(what)}")

    def run(self) -> bool:
        names = self._reader.runs()
        if not names and not self._exists(CURRENT):
            raise ConfigError(f"{self._reader.uri}: no run has been published here; check the location")
        for folder in ("manifests", "tables", "staging", "features"):
            self._sizes |= self._listing(folder)
        self._pointer(names)
        manifests = self._manifests(names)
        runs: dict[str, dict[str, list[ManifestFile]]] = {}
        for file, table in self._files(manifests):
            runs.setdefault(file.run_id, {}).setdefault(table, []).append(file)
        for run_id in sorted(runs):
            self._run(run_id, runs[run_id], manifests.get(run_id))
        self._orphans(names, {file.path for tables in runs.values() for files in tables.values() for file in files})
        self._feature_sets({manifest.feature_set for manifest in manifests.values()})
        n = self._counts
        self._say(
            f"checked  {len(names)} runs, {n['files']} files with {n['rows']} rows, {n['sets']} feature sets with "
            f"{n['segments']} segments: {n['errors']} errors, {n['warnings']} warnings"
        )
        return n["errors"] == 0

    # --------------------------------------------------------------------------------------------------- the manifests

    def _exists(self, path: str) -> bool:
        with config_errors(self._reader.uri):
            return bool(self._reader.fs.exists(f"{self._reader.root}/{path}"))

    def _listing(self, folder: str) -> dict[str, int]:
        """Sizes of all files below a folder by path. A folder that cannot be read is an error, not a short list."""
        start = f"{self._reader.root}/{folder}"
        options = {} if is_s3(self._reader.uri) else {"on_error": "raise"}  # a bucket always raises
        with config_errors(f"{self._reader.uri}/{folder}"):
            try:
                found = self._reader.fs.find(start, detail=True, **options)
            except FileNotFoundError:
                return {}
        return {name[len(self._reader.root) + 1 :]: int(info["size"]) for name, info in found.items()}

    def _pointer(self, names: Sequence[str]) -> None:
        try:
            if self._reader.current() is None:
                self._error(CURRENT, f"missing, but there are runs; put one into force: vca rollback {names[-1]}")
        except ConfigError as error:
            self._error(CURRENT, str(error))

    def _manifests(self, names: Sequence[str]) -> dict[str, Manifest]:
        manifests: dict[str, Manifest] = {}
        for name in names:
            try:
                manifests[name] = self._reader.manifest(name)
            except ConfigError as error:
                self._error(manifest_path(name), str(error))
        for name, manifest in manifests.items():
            parent = manifests.get(manifest.parent or "")
            inherited = {path for path, file in _by_path(manifest).items() if file.run_id != name}
            if manifest.parent is None and inherited:
                self._error(manifest_path(name), f"is the first run, but names {min(inherited)}")
            elif parent is not None and inherited != set(_by_path(parent)):  # a parent that was pruned tells nothing
                differing = min(inherited ^ set(_by_path(parent)))
                self._error(manifest_path(name), f"does not go on from its parent {parent.run_id}: {differing}")
            for table in manifest.tables.keys() - TABLES.keys():
                self._warning(manifest_path(name), f"table {table} is of another version and was not checked")
        return manifests

    def _files(self, manifests: Mapping[str, Manifest]) -> Iterator[tuple[ManifestFile, str]]:
        """Every file once, with its table."""
        seen: dict[str, ManifestFile] = {}
        for name, manifest in manifests.items():
            for table in manifest.tables:
                for file in manifest.files(table):
                    known = seen.setdefault(file.path, file)
                    if known != file:
                        self._error(manifest_path(name), f"contradicts another manifest about {file.path}")
                    if known is file and table in TABLES:
                        yield file, table

    # ------------------------------------------------------------------------------------------------------ one run

    def _run(self, run_id: str, tables: Mapping[str, list[ManifestFile]], manifest: Manifest | None) -> None:
        states: Counter[str] = Counter()
        n_rows = {name: self._table(run_id, table, tables.get(name, ()), states) for name, table in TABLES.items()}
        if self._sound(tables, "videos"):
            for name in TABLES:
                if name not in ("videos", "runs") and self._sound(tables, name):
                    self._beside_videos(run_id, name, tables.get("videos", ()), tables.get(name, ()))
            if self._sound(tables, "quarantine") and n_rows["quarantine"] != states[Status.QUARANTINED]:
                text = f"{states[Status.QUARANTINED]} videos are quarantined, but there are {n_rows['quarantine']} rows"
                self._error(f"run {run_id}, quarantine", text)
        if self._sound(tables, "runs"):
            self._balance(run_id, tables.get("runs", ()), states if self._sound(tables, "videos") else None, manifest)

    def _sound(self, tables: Mapping[str, list[ManifestFile]], name: str) -> bool:
        return not any(file.path in self._unsound for file in tables.get(name, ()))

    def _table(self, run_id: str, table: Table, files: Sequence[ManifestFile], states: Counter[str]) -> int:
        """Read all columns of a run's files of one table. Returns how many rows; counts the states of videos."""
        last: pa.Table | None = None
        n_rows = 0
        for file in files:
            self._counts["files"] += 1
            size = self._sizes.get(file.path)
            if size is None:
                self._error(file.path, "missing")
                self._unsound.add(file.path)
                continue
            if size != file.size_bytes:
                self._error(file.path, f"has {size} bytes, the manifest says {file.size_bytes}")
            rows, wrong = 0, _FirstOfEach()
            for batch in self._batches(file.path, table.schema):
                rows += len(batch)
                self._rows_alone(run_id, table, batch, wrong)
                ordered = pa.concat_tables([last, batch]) if last is not None else batch
                if not _is_sorted(ordered, table.sort_by):
                    wrong.note(f"rows are not sorted by {', '.join(table.sort_by)}")
                    self._unsound.add(file.path)
                if table.name in ONE_ROW_A_VIDEO:
                    _note_doubles(ordered, wrong)
                if table.name == "videos":
                    states.update(batch.column("status").to_pylist())
                last = ordered.slice(max(len(ordered) - 2, 0))  # two: escaped keys of two videos may read alike
            if rows != file.rows and file.path not in self._unsound:
                wrong.note(f"holds {rows} rows, the manifest says {file.rows}")
            for text in wrong.texts():
                self._error(file.path, text)
            n_rows += rows
            self._counts["rows"] += rows
        return n_rows

    def _batches(self, path: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a file with columns of `schema`; says what is wrong with it, and ends where it cannot go on."""
        wanted = _plain(schema, columns)
        source = f"{self._reader.uri}/{path}"
        try:
            with _damage(source), self._reader.fs.open(f"{self._reader.root}/{path}", "rb") as opened:
                file = pq.ParquetFile(opened)
                if path not in self._opened and not self._schema_fits(path, schema, file.schema_arrow):
                    self._unsound.add(path)
                    return
                self._opened.add(path)
                read = [name for name in wanted.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=read):
                    batch.validate(full=True)  # text that is no UTF-8, lists that point nowhere
                    found = [batch.column(f.name) if f.name in read else pa.nulls(len(batch), f.type) for f in wanted]
                    yield pa.Table.from_arrays(found, schema=wanted)
        except FileNotFoundError:
            self._error(path, "missing")
            self._unsound.add(path)
        except _DamageError as error:
            self._error(path, f"cannot be read: {error}")
            self._unsound.add(path)

    def _schema_fits(self, path: str, expected: pa.Schema, there: pa.Schema) -> bool:
        """Columns that an older version did not write may be missing if they can be null."""
        fits = True
        for field in expected:
            if field.name not in there.names:
                if not field.nullable:
                    fits = False
                    self._error(path, f"column {field.name} is missing")
            elif not there.field(field.name).type.equals(field.type):
                fits = False
                self._error(path, f"column {field.name} is {there.field(field.name).type}, not {field.type}")
        for name in there.names:
            if name not in expected.names:
                self._warning(path, f"column {name} is of another version and was not checked")
        return fits

    def _rows_alone(self, run_id: str, table: Table, batch: pa.Table, wrong: "_FirstOfEach") -> None:
        for field in table.schema:
            if not field.nullable and batch.column(field.name).null_count:
                wrong.note(f"column {field.name} has nulls")
        if not pc.all(pc.equal(batch.column("run_id"), run_id), min_count=0).as_py():
            wrong.note(f"holds rows of another run than {run_id}")
        if table.name in ("videos", "quarantine"):
            for video_id, key in zip(*(batch.column(n).to_pylist() for n in ("video_id", "key")), strict=True):
                # A key that had to be escaped is told apart from one that reads like it.
                if key is not None and video_id not in (identity.video_id(key), identity.video_id(f"\0{key}")):
                    wrong.note(f"video_id {video_id} is not that of its key {identity.display_key(key)!r}")
        if table.name == "videos":
            unknown = set(batch.column("status").to_pylist()) - (set(map(str, Status)) - {str(Status.UNCHANGED)})
            if unknown:
                wrong.note(f"status {sorted(map(str, unknown))[0]!r} is none")
            limit = pc.add(batch.column("duration_s"), SLACK_S)
            wrong.where(batch, pc.greater(batch.column("coverage_s"), limit), "is covered beyond its end")
        if table.name in SPANS:
            starts, ends = batch.column("start_s"), batch.column("end_s")
            wrong.where(batch, pc.or_(pc.less(starts, 0.0), pc.less(ends, starts)), "has a span before its start")

    # ----------------------------------------------------------------------------------------------- rows of two tables

    def _beside_videos(
        self, run_id: str, name: str, videos: Sequence[ManifestFile], files: Sequence[ManifestFile]
    ) -> None:
        """Rows of a table belong to videos of the same run, of the right status, and lie inside their duration."""
        statuses = [Status.QUARANTINED] if name == "quarantine" else [Status.TAGGED, Status.PARTIAL]
        wanted = pa.array(list(map(str, statuses)), pa.string())
        times = [column for column in ("start_s", "end_s") if column in TABLES[name].schema.names]
        wrong, odd = _FirstOfEach(), _FirstOfEach()
        needed = ["video_id", "key", "status", "duration_s"]
        left = self._stream(videos, TABLES["videos"].schema, needed)
        right = self._stream(files, TABLES[name].schema, ["video_id", "key", *times])
        nothing = _plain(TABLES["videos"].schema, needed).empty_table()
        for all_rows, their_videos in _side_by_side(left, right, nothing):
            place = pc.index_in(all_rows.column("video_id"), value_set=their_videos.column("video_id").combine_chunks())
            wrong.where(all_rows, pc.is_null(place), "has no row in videos")
            found = pc.is_valid(place)
            rows, place = all_rows.filter(found), place.filter(found)
            fitting = pc.is_in(their_videos.column("status").take(place), wanted)
            wrong.where(rows, pc.invert(fitting), f"is not {' or '.join(statuses)} in videos")
            if times:
                limit = pc.add(their_videos.column("duration_s").take(place), SLACK_S)
                # Text that came with imported features is as long as it was given.
                late = odd if name == "transcripts" else wrong
                late.where(rows, pc.greater(rows.column(times[-1]), limit), "has a time beyond its end")
        for text in wrong.texts():
            self._error(f"run {run_id}, {name}", text)
        for text in odd.texts():
            self._warning(f"run {run_id}, {name}", text)

    def _stream(self, files: Sequence[ManifestFile], schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.Table]:
        for file in files:
            yield from self._batches(file.path, schema, columns)

    def _balance(
        self, run_id: str, files: Sequence[ManifestFile], states: Mapping[str, int] | None, manifest: Manifest | None
    ) -> None:
        where = f"run {run_id}"
        schema = TABLES["runs"].schema
        rows = [row for batch in self._stream(files, schema, schema.names) for row in batch.to_pylist()]
        if len(rows) != 1:
            self._error(where, f"has {len(rows)} rows in runs")
            return
        counts = {str(status): int(rows[0][status]) for status in Status}
        total, listed = sum(counts.values()), rows[0]["listed"]
        # Objects that are gone were listed, if they went while the run worked, or not.
        if not total - counts[Status.GONE] <= listed <= total:
            self._error(where, f"does not balance: {listed} listed, but its states sum up to {total}")
        for status, n in counts.items():
            if states is not None and status != Status.UNCHANGED and states.get(status, 0) != n:
                self._error(where, f"says {n} {status}, but videos has {states.get(status, 0)}")
            if manifest is not None and manifest.counts.get(status, 0) != n:
                self._error(manifest_path(run_id), f"says {manifest.counts.get(status, 0)} {status}, but runs says {n}")

    # ------------------------------------------------------------------------------------------------------- the rest

    def _orphans(self, names: Sequence[str], named: set[str]) -> None:
        manifests = {CURRENT, *map(manifest_path, names)}
        for path in sorted(self._sizes):
            folder = path.partition("/")[0]
            if folder == "tables" and path not in named:
                self._warning(path, "no manifest names it; `vca prune` deletes what a killed run left")
            elif folder == "manifests" and path not in manifests:
                self._warning(path, "is no manifest")
        for run_id in sorted({path.split("/")[1] for path in self._sizes if path.startswith("staging/")}):
            text = "left by a run that was killed, unless one is at work; the next one cleans up"
            self._warning(f"staging/{run_id}", text)

    def _feature_sets(self, named: set[str]) -> None:
        sets: dict[str, list[str]] = {}
        for path in sorted(self._sizes):
            parts = re.fullmatch(r"features/([0-9a-f]{24})/(.+)", path)
            if parts is not None:
                sets.setdefault(parts[1], []).append(path)
        for name, paths in sets.items():
            self._counts["sets"] += 1
            self._description(name, paths)
            for path in (p for p in paths if p.endswith(".parquet")):
                wrong = _FirstOfEach()
                for batch in self._batches(path, FEATURES, FEATURE_KEYS):
                    self._counts["segments"] += len(batch)
                    _note_segments(batch, wrong)
                for text in wrong.texts():
                    self._error(path, text)
        for name in sorted(named - sets.keys()):
            self._warning(f"features/{name}", "is not there; a run that needs it decodes again")

    def _description(self, name: str, paths: Sequence[str]) -> None:
        path = f"features/{name}/feature_set.json"
        if path not in paths:
            self._error(path, f"missing; restore it, or delete features/{name} to make the features again")
            return
        with config_errors(f"{self._reader.uri}/{path}"):
            text = self._reader.fs.cat_file(f"{self._reader.root}/{path}")
        try:
            content = json.loads(text)
            widths = [int(content["dims"][modality]) for modality in ("vision", "audio")]
            made_of = identity.feature_set_id(content["definition"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._error(path, f"damaged ({type(error).__name__})")
            return
        if content.get("feature_set") != name or made_of != name or min(widths) < 0:
            self._error(path, f"does not describe feature set {name}")


class _FirstOfEach:
    """Findings of one file, each kind once: a damage of a million rows is one line."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def note(self, text: str) -> None:
        self._found.setdefault(text, text)

    def where(self, rows: pa.Table, wrong: pa.ChunkedArray | pa.Array, text: str) -> None:
        """Note the first row for which `wrong` is true, by its key."""
        first = pc.index(wrong, True).as_py()
        if first >= 0:
            self._found.setdefault(text, f"{identity.display_key(rows.column('key')[first].as_py() or '')!r} {text}")

    def texts(self) -> list[str]:
        return list(self._found.values())


class _DamageError(Exception):
    """A file that is not what Parquet says it should be."""


@contextmanager
def _damage(source: str) -> Iterator[None]:
    """A damaged file is a finding (`_DamageError`), a storage that fails is none (`ConfigError`)."""
    with config_errors(source):
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter: names in the footer
            raise _DamageError(one_line(str(error))) from error
        except OSError as error:
            # pyarrow makes OSErrors of its own for what is wrong inside a file; they have no number.
            if error.errno is not None or error.__cause__ is not None:
                raise
            raise _DamageError(one_line(str(error))) from error


def _plain(schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Schema:
    """Some columns of a schema, each allowed to be null: in a damaged file, any can be."""
    return pa.schema([pa.field(f.name, f.type) for f in schema if columns is None or f.name in columns])


def _by_path(manifest: Manifest) -> dict[str, ManifestFile]:
    return {file.path: file for table in manifest.tables.values() for file in table.files}


def _is_sorted(rows: pa.Table, columns: Sequence[str]) -> bool:
    """Whether no row is less than the one before it."""
    in_order: pa.ChunkedArray | None = None
    for name in reversed(columns):
        here, following = rows.column(name).slice(0, len(rows) - 1), rows.column(name).slice(1)
        less, equal = pc.less(here, following), pc.equal(here, following)
        in_order = pc.or_(less, equal) if in_order is None else pc.or_(less, pc.and_(equal, in_order))
    return in_order is None or pc.all(in_order, min_count=0).as_py()  # nulls are another finding


def _note_doubles(rows: pa.Table, wrong: _FirstOfEach) -> None:
    counts = rows.group_by("video_id").aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts.column("count_all"), 1)).column("video_id")
    if len(doubled):
        wrong.where(rows, pc.is_in(rows.column("video_id"), doubled.combine_chunks()), "has two rows")


def _note_segments(rows: pa.Table, wrong: _FirstOfEach) -> None:
    """Rows of a part: keyed, inside their video, on a grid."""
    for name in FEATURE_KEYS:
        if rows.column(name).null_count:
            wrong.note(f"column {name} has nulls")
    index, n_segments = rows.column("segment_index"), rows.column("n_segments")
    wrong.where(
        rows, pc.or_(pc.less(index, 0), pc.greater_equal(index, n_segments)), "has a segment outside its number"
    )
    shortest = pc.min_element_wise(pc.subtract(rows.column("end_us"), rows.column("start_us")), rows.column("step_us"))
    wrong.where(rows, pc.less_equal(shortest, 0), "has an empty segment")
    for video_id, key in {tuple(row.values()) for row in rows.select(["video_id", "key"]).to_pylist()}:
        if key is not None and video_id != identity.video_id(key):
            wrong.note(f"video_id {video_id} is not that of its key {identity.display_key(key)!r}")


def _side_by_side(
    left: Iterator[pa.Table], right: Iterator[pa.Table], nothing: pa.Table
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Walk two streams sorted by `key`: rows of the right one, each with all rows of the left one that have its key.

    Holds one batch of each. `nothing` stands for a left one without rows.
    """
    waiting = next(right, None)
    upcoming: pa.Table | None = next(left, nothing)
    carried = nothing
    while upcoming is not None and waiting is not None:
        window = pa.concat_tables([carried, upcoming])
        upcoming = next(left, None)
        while waiting is not None:
            # Rows with the last key of a batch wait for the next one, which may have that key, too.
            n = len(waiting)
            if upcoming is not None:
                n = pc.sum(pc.less(waiting.column("key"), window.column("key")[-1]), min_count=0).as_py()
            if n:
                yield waiting.slice(0, n), window
            if n < len(waiting):
                waiting = waiting.slice(n)
                break
            waiting = next(right, None)
        if upcoming is not None:
            carried = window.filter(pc.equal(window.column("key"), window.column("key")[-1]))
