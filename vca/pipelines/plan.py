"""What a run has to do: the listing compared with what is published, as relations in DuckDB.

Nothing here opens a media file. The archive never lies in Python objects: the listing is paged into Parquet files in
the run's work folder, and the joins run out of core.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vca.core import identity
from vca.core.errors import ConfigError, ErrorCode
from vca.core.schemas import Status
from vca.media.sidecars import media_stem, sidecar_stems
from vca.media.storage import Archive
from vca.pipelines.stored_archive import StoredArchive
from vca.tables.manifest import OutputReader
from vca.tables.query import create_views, one_line_errors, query


class Action(StrEnum):
    """What the run does with an object."""

    DECODE = "decode"
    RETAG = "retag"
    SKIP = "skip"
    GONE = "gone"
    REFUSE = "refuse"
    """The key itself cannot be used; goes to quarantine without being opened."""


BATCH_ROWS = 50_000

SIDECAR = pa.struct(
    [pa.field("key", pa.string()), pa.field("version", pa.string()), pa.field("size_bytes", pa.int64())]
)

PLAN = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string()),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("sidecars", pa.list_(SIDECAR)),
        pa.field("action", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("first_failed_at", pa.timestamp("us", tz="UTC")),
        pa.field("has_tags", pa.bool_(), nullable=False),  # this very content was tagged by an earlier run
    ]
)
"""One row per media object of the archive, and per published video that is no longer there."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What the tags of this run will be made of. Work is skipped only where all three agree."""

    feature_set: str
    model_version: str
    taxonomy_version: str

    def as_dict(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("feature_set", "model_version", "taxonomy_version")}


class PlannedVideos(Mapping[str, dict[str, Any]]):
    """Rows of a plan by video id. They stay columns until they are asked for.

    A million dicts take 1.6 GB, columns and ids 0.3.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows.combine_chunks()
        self._places = {video_id: i for i, video_id in enumerate(rows.column("video_id").to_pylist())}

    def __getitem__(self, video_id: str) -> dict[str, Any]:
        row: dict[str, Any] = self._rows.slice(self._places[video_id], 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def of(self, video_ids: Sequence[str]) -> pa.Table:
        """The rows of some videos, schema `PLAN`, in that order."""
        return self._rows.take(pa.array([self._places[video_id] for video_id in video_ids], pa.int64()))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each video."""
        return dict(zip(self._places, self._rows.column("fingerprint").to_pylist(), strict=True))


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan file and its counts by (action, reason)."""

    path: Path
    listed: int
    ignored: int
    unreadable_folders: int
    counts: dict[tuple[str, str], int]

    def count(self, action: Action) -> int:
        return sum(n for (a, _), n in self.counts.items() if a == action)

    def rows(self, action: Action) -> pa.Table:
        return pq.read_table(self.path, filters=[("action", "=", str(action))], schema=PLAN)

    def describe(self) -> str:
        """A few lines for `vca plan` and `--dry-run`."""
        lines = [f"{self.listed} media objects listed, {self.ignored} other objects ignored"]
        if self.unreadable_folders:
            lines.append(f"{self.unreadable_folders} folders could not be read and were left out")
        for (action, reason), n in sorted(self.counts.items()):
            lines.append(f"  {n:>9}  {action:<7} {reason}")
        if not any(self.count(a) for a in (Action.DECODE, Action.RETAG, Action.GONE, Action.REFUSE)):
            lines.append("nothing to do: all unchanged")
        return "\n".join(lines)


def make_plan(
    archive: Archive | StoredArchive,
    published: OutputReader,
    versions: Versions,
    max_attempts: int,
    work_dir: Path,
    retry: Sequence[ErrorCode] = (),
) -> Plan:
    """List the archive and decide what to do with every object. Failures with a code in `retry` are tried again.

    Raises `ConfigError` for an archive without a single media object: an unmounted disk or a wrong prefix must not
    mark a whole archive as gone.
    """
    listing = work_dir / "listing.parquet"
    listed, ignored = _write_listing(archive, listing)
    if listed == 0:
        raise ConfigError(
            f"archive.uri = {archive.config.uri!r}: no media objects found ({ignored} other objects); "
            "check the location and archive.include"
        )
    target = work_dir / "plan.parquet"
    database = duckdb.connect(config={"temp_directory": str(work_dir / "duckdb"), "threads": 2})
    with closing(database) as connection, one_line_errors(published.uri):
        connection.execute("SET TimeZone = 'UTC'")
        _register_published(connection, published)
        connection.from_parquet(str(listing)).create_view("listing")
        connection.execute(_JOIN_SIDECARS)
        stored = isinstance(archive, StoredArchive)
        listed = _write_current(connection, work_dir / "current.parquet", stored=stored)
        connection.execute("CREATE TABLE unreadable (prefix VARCHAR)")
        connection.executemany("INSERT INTO unreadable VALUES (?)", [[p] for p in archive.unreadable or [""]])
        connection.from_parquet(str(work_dir / "current.parquet")).create_view("current")
        more = {"max_attempts": max_attempts, "stored": stored, "retry": [str(code) for code in retry]}
        decided = connection.sql(_DECIDE, params=versions.as_dict() | more)
        with pq.ParquetWriter(target, PLAN) as writer:
            for batch in decided.to_arrow_reader(BATCH_ROWS):
                writer.write_table(pa.Table.from_batches([batch]).cast(PLAN))
        counted = connection.from_parquet(str(target)).aggregate("action, reason, count(*) AS n").fetchall()
    counts = {(str(action), str(reason)): int(n) for action, reason, n in counted}
    _refuse_other_archive(archive, published, counts)
    return Plan(target, listed, ignored, len(archive.unreadable), counts)


def _refuse_other_archive(
    archive: Archive | StoredArchive, published: OutputReader, counts: dict[tuple[str, str], int]
) -> None:
    """An output belongs to one archive. Tagging another into it would mark every video of the first as gone.

    An archive that only moved keeps its keys and passes.
    """
    known = sum(n for (action, reason), n in counts.items() if (action, reason) not in _NOT_KNOWN_BEFORE)
    n_gone = sum(n for (action, _), n in counts.items() if action == Action.GONE)
    if n_gone == 0 or known > n_gone:
        return
    configs = query(published, "SELECT config FROM runs ORDER BY run_id DESC LIMIT 1").column("config").to_pylist()
    before = json.loads(configs[0])["archive"]["uri"] if configs else archive.config.uri
    if before != archive.config.uri:
        raise ConfigError(
            f"archive.uri = {archive.config.uri!r}: the output holds the tags of {before!r}, and no object is in both; "
            "choose another output.uri"
        )


def _write_listing(archive: Archive | StoredArchive, path: Path) -> tuple[int, int]:
    """Page the listing into a Parquet file, with what the joins need. Returns media and ignored counts."""
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("size_bytes", pa.int64()),
            ("version", pa.string()),
            ("kind", pa.string()),
            ("plain", pa.bool_()),
            ("video_id", pa.string()),
            ("stems", pa.list_(pa.string())),
        ]
    )
    listed = ignored = 0
    with pq.ParquetWriter(path, schema) as writer:
        for batch in archive.list_batches():
            kinds = batch.column("kind").to_pylist()
            keys = batch.column("key").to_pylist()
            listed += kinds.count("media")
            ignored += kinds.count("ignored")
            plain = batch.column("plain").to_pylist()
            ids = [
                _video_id(key, is_plain) if kind == "media" else None
                for key, kind, is_plain in zip(keys, kinds, plain, strict=True)
            ]
            stems = [_stems(k, kind) for k, kind in zip(keys, kinds, strict=True)]
            table = pa.Table.from_batches([batch]).select(["key", "size_bytes", "version", "kind", "plain"])
            table = table.append_column("video_id", pa.array(ids, pa.string()))
            table = table.append_column("stems", pa.array(stems, pa.list_(pa.string())))
            keep = pc.not_equal(table.column("kind"), "ignored")
            writer.write_table(table.filter(keep).cast(schema))
    return listed, ignored


def _video_id(key: str, plain: bool) -> str:
    # An escaped key may read like the plain key of another object; the two must not become one video.
    return identity.video_id(key if plain else f"\0{key}")


def _stems(key: str, kind: str) -> Sequence[str]:
    if kind == "sidecar":
        return sidecar_stems(key)
    return [media_stem(key)]


_JOIN_SIDECARS = """
CREATE TABLE sidecars AS
WITH candidates AS (
    SELECT key, version, size_bytes, unnest(stems) AS stem, generate_subscripts(stems, 1) AS position
    FROM listing WHERE kind = 'sidecar' AND plain
), matches AS (
    SELECT c.*, m.video_id FROM candidates c
    JOIN (SELECT video_id, stems[1] AS stem FROM listing WHERE kind = 'media' AND plain) m USING (stem)
), nearest AS (
    SELECT * FROM matches QUALIFY position = min(position) OVER (PARTITION BY key)
)
SELECT video_id, list({'key': key, 'version': version, 'size_bytes': size_bytes} ORDER BY key) AS sidecars
FROM nearest GROUP BY video_id
"""
"""A sidecar belongs to the videos that share the longest of its candidate stems (`film.en.srt` to `film.mp4`)."""


def _write_current(connection: duckdb.DuckDBPyConnection, path: Path, *, stored: bool) -> int:
    """The listed media objects with their fingerprints (of stored features: their versions). Returns how many."""
    listed = connection.sql(
        """
        SELECT video_id, l.key, l.size_bytes, l.version, l.plain, coalesce(s.sidecars, []) AS sidecars
        FROM listing l LEFT JOIN sidecars s USING (video_id) WHERE kind = 'media'
        QUALIFY row_number() OVER (PARTITION BY video_id) = 1  -- two hostile keys may look the same when escaped
        """
    )
    schema = pa.schema([f for f in PLAN if f.name in ("video_id", "key", "size_bytes", "version", "sidecars")])
    schema = schema.append(pa.field("plain", pa.bool_())).append(pa.field("fingerprint", pa.string()))
    n_rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for batch in listed.to_arrow_reader(BATCH_ROWS):
            n_rows += len(batch)
            table = pa.Table.from_batches([batch])
            prints = [
                version if stored else identity.fingerprint(version, [(s["key"], s["version"]) for s in sidecars])
                for version, sidecars in zip(
                    table.column("version").to_pylist(), table.column("sidecars").to_pylist(), strict=True
                )
            ]
            writer.write_table(
                table.append_column("fingerprint", pa.array(prints, pa.string())).select(schema.names).cast(schema)
            )
    return n_rows


def _register_published(connection: duckdb.DuckDBPyConnection, published: OutputReader) -> None:
    """Create `prior`: the newest published row of every video, with its quarantine row where it has one."""
    create_views(connection, published)
    connection.execute(
        """
        CREATE VIEW prior AS
        WITH tagged AS (
            SELECT video_id, max(run_id) AS run_id FROM all_videos
            WHERE status IN ('tagged', 'partial') GROUP BY video_id
        ), failures AS (  -- since it was last tagged: a night that deferred it does not end a row of failures
            SELECT q.video_id, q.fingerprint, min(q.first_failed_at) AS first_failed_at
            FROM all_quarantine q LEFT JOIN tagged t USING (video_id)
            WHERE t.run_id IS NULL OR q.run_id > t.run_id GROUP BY ALL
        )
        SELECT v.video_id, v.key, v.fingerprint, v.status, v.error_code, v.attempts, v.feature_set, v.model_version,
               v.taxonomy_version, v.size_bytes, q.will_retry, f.first_failed_at,
               EXISTS (SELECT 1 FROM videos t WHERE t.video_id = v.video_id AND t.fingerprint = v.fingerprint
                       AND t.status IN ('tagged', 'partial')) AS has_tags
        FROM (SELECT * FROM all_videos QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY run_id DESC) = 1) v
        LEFT JOIN all_quarantine q ON q.video_id = v.video_id AND q.run_id = v.run_id
        LEFT JOIN failures f ON f.video_id = v.video_id AND f.fingerprint = v.fingerprint
        """
    )


_REFUSED = str(ErrorCode.BAD_KEY)
WAITING = "in quarantine until the file changes"
DEFERRED = "deferred by an earlier run"
RETRY_ASKED = "retry asked for"
_NOT_KNOWN_BEFORE = {(str(Action.DECODE), "new"), (str(Action.REFUSE), _REFUSED)}
_DECIDE = f"""
WITH decided AS (
    SELECT
        coalesce(c.video_id, p.video_id) AS video_id,
        coalesce(c.key, p.key) AS key,
        coalesce(c.size_bytes, p.size_bytes) AS size_bytes,
        c.version,
        coalesce(c.fingerprint, p.fingerprint) AS fingerprint,
        coalesce(c.sidecars, []) AS sidecars,
        CASE
            WHEN c.video_id IS NULL THEN ['{Action.GONE}', 'deleted from the archive']
            WHEN p.video_id IS NULL OR p.status = '{Status.GONE}' THEN
                CASE WHEN c.plain THEN ['{Action.DECODE}', 'new'] ELSE ['{Action.REFUSE}', '{_REFUSED}'] END
            WHEN p.fingerprint <> c.fingerprint THEN
                CASE WHEN c.plain THEN ['{Action.DECODE}', 'changed'] ELSE ['{Action.REFUSE}', '{_REFUSED}'] END
            WHEN p.status IN ('{Status.QUARANTINED}', '{Status.DEFERRED}', '{Status.PARTIAL}') AND c.plain
                 AND list_contains($retry, p.error_code) THEN ['{Action.DECODE}', '{RETRY_ASKED}']
            WHEN p.status = '{Status.QUARANTINED}' THEN
                CASE WHEN p.will_retry AND p.attempts < $max_attempts THEN ['{Action.DECODE}', 'retry after a failure']
                     ELSE ['{Action.SKIP}', '{WAITING}'] END
            WHEN p.status = '{Status.DEFERRED}' THEN
                CASE WHEN p.attempts < $max_attempts THEN ['{Action.DECODE}', '{DEFERRED}']
                     ELSE ['{Action.SKIP}', 'keeps its older tags: {WAITING}'] END
            WHEN p.feature_set <> $feature_set THEN ['{Action.DECODE}', 'other features wanted']
            WHEN p.model_version <> $model_version THEN ['{Action.RETAG}', 'tagged by another model']
            WHEN p.taxonomy_version <> $taxonomy_version THEN ['{Action.RETAG}', 'tagged with another taxonomy']
            ELSE ['{Action.SKIP}', 'unchanged']
        END AS decision,
        CASE WHEN p.fingerprint = c.fingerprint AND p.status IN ('{Status.QUARANTINED}', '{Status.DEFERRED}')
             THEN p.attempts ELSE 0 END AS attempts,
        CASE WHEN p.fingerprint = c.fingerprint AND p.status IN ('{Status.QUARANTINED}', '{Status.DEFERRED}')
             THEN p.first_failed_at END AS first_failed_at,
        coalesce(p.fingerprint = c.fingerprint AND p.has_tags, false) AS has_tags
    FROM current c FULL OUTER JOIN prior p ON c.video_id = p.video_id
    WHERE c.video_id IS NOT NULL OR (p.status <> '{Status.GONE}' AND NOT EXISTS (
        SELECT 1 FROM unreadable u WHERE u.prefix <> '' AND starts_with(p.key, u.prefix)
    ))
)
SELECT video_id, key, size_bytes, version, fingerprint, sidecars,
       CASE WHEN $stored AND decision[1] = '{Action.DECODE}' THEN '{Action.RETAG}' ELSE decision[1] END AS action,
       decision[2] AS reason,
       CAST(attempts AS INTEGER) AS attempts, first_failed_at, has_tags
FROM decided ORDER BY reason = '{DEFERRED}' DESC, size_bytes DESC, key
"""  # noqa: S608  only constants of this program are pasted in
"""What an earlier run left first, or a short night would never come to it. Then the largest: the longest work starts
earliest, so no straggler holds up the end of a run."""
