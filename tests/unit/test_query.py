import contextlib
import csv
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tables import (
    BROKEN,
    DEFERRED,
    GONE,
    KEYS,
    LATE,
    NEW_KEYS,
    NIGHTS,
    RUN_IDS,
    SPOILED,
    WAITING,
    make_output,
    video_row,
    write_run,
)
from vca.core.errors import ConfigError
from vca.core.schemas import FEATURES, TABLES, Status
from vca.core.storage import StorageConfig
from vca.tables import query as query_module
from vca.tables.manifest import OutputReader, Pointer, open_output
from vca.tables.query import connect, create_views, format_table, one_line_errors, query, status


def reader_of(root: Path) -> OutputReader:
    return open_output(str(root), StorageConfig())


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> OutputReader:
    return reader_of(make_output(tmp_path_factory.mktemp("output")))


def column(reader: OutputReader, sql: str) -> list[Any]:
    return list(query(reader, sql).column(0).to_pylist())


def test_newest_rows(reader: OutputReader) -> None:
    """`videos` holds one row per video, of the run that touched it last; gone ones are left out."""
    rows = {row["key"]: row for row in query(reader, "FROM videos").to_pylist()}
    assert set(rows) == {*KEYS, *NEW_KEYS, *BROKEN, *LATE, WAITING} - {GONE}
    assert rows[KEYS[0]]["run_id"] == RUN_IDS[2]
    assert rows[SPOILED]["status"] == "quarantined"
    assert rows[WAITING]["status"] == "deferred"
    assert column(reader, "SELECT count(*) FROM all_videos") == [24 + 2 + 4 + 1 + 1 + 2 + 25 + 1]


def test_children_belong_to_the_newest_row(reader: OutputReader) -> None:
    """Every child row is of its video's newest run: no mixture of two models, nothing of spoiled or gone videos."""
    for name in ("video_categories", "event_spans", "transcripts", "shots", "step_scores", "video_embeddings"):
        strangers = f"SELECT count(*) FROM {name} t ANTI JOIN videos v USING (video_id, run_id)"
        assert column(reader, strangers) == [0], name
        videos = set(column(reader, f"SELECT DISTINCT key FROM {name}"))
        assert videos == {*KEYS, *NEW_KEYS} - {GONE, SPOILED}, name
        old = column(reader, f"SELECT DISTINCT run_id FROM all_{name} WHERE key IN ('{GONE}', '{SPOILED}')")
        assert old == [RUN_IDS[0]], name


def test_deferred_does_not_hide_the_tags(reader: OutputReader) -> None:
    """A run that did not get to a changed video leaves the tags of its older content in place."""
    assert column(reader, f"SELECT status FROM videos WHERE key = '{DEFERRED}'") == ["tagged"]
    assert column(reader, f"SELECT DISTINCT run_id FROM video_categories WHERE key = '{DEFERRED}'") == [RUN_IDS[0]]
    assert column(reader, f"SELECT count(*) FROM all_videos WHERE key = '{DEFERRED}'") == [2]


def test_quarantine_shows_who_is_in_it_now(tmp_path: Path) -> None:
    """A file that was mended leaves the quarantine; its old row stays in `all_quarantine`."""
    failed = video_row("a.mp4", "r1", Status.QUARANTINED, error_code="empty_file", error_message="m")
    names = TABLES["quarantine"].schema.names
    times = {"first_failed_at": NIGHTS[0], "last_failed_at": NIGHTS[0], "stage": "probe", "will_retry": False}
    row = {name: value for name, value in (failed | times).items() if name in names}
    write_run(tmp_path, "r1", {"videos": [failed], "quarantine": [row]})
    assert column(reader_of(tmp_path), "SELECT key FROM quarantine") == ["a.mp4"]
    write_run(tmp_path, "r2", {"videos": [video_row("a.mp4", "r2", Status.TAGGED)]})
    assert column(reader_of(tmp_path), "SELECT key FROM quarantine") == []
    assert column(reader_of(tmp_path), "SELECT key FROM all_quarantine") == ["a.mp4"]


def test_a_video_that_came_back(tmp_path: Path) -> None:
    """Gone and put back: the newest row counts, whatever came before."""
    for run, state in (("r1", Status.TAGGED), ("r2", Status.GONE), ("r3", Status.TAGGED)):
        write_run(tmp_path, run, {"videos": [video_row("a.mp4", run, state)]})
        expected = [] if state is Status.GONE else [run]
        assert column(reader_of(tmp_path), "SELECT run_id FROM videos") == expected


def test_orphans_are_not_read(tmp_path: Path) -> None:
    """A file that looks published but is in no manifest (a killed run's, a rolled back run's) is not there."""
    root = make_output(tmp_path)
    before = column(reader_of(root), "SELECT count(*) FROM all_videos")
    published = root / f"tables/videos/run_id={RUN_IDS[0]}/part-00000.parquet"
    for orphan in (published.with_name("part-00001.parquet"), root / "tables/videos/run_id=zzz/part-00000.parquet"):
        orphan.parent.mkdir(exist_ok=True)
        shutil.copy(published, orphan)
    assert column(reader_of(root), "SELECT count(*) FROM all_videos") == before
    (root / "manifests/current.json").write_text(Pointer.to(RUN_IDS[0]).to_json())
    assert column(reader_of(root), "SELECT DISTINCT run_id FROM all_videos") == [RUN_IDS[0]]
    assert column(reader_of(root), "SELECT run_id FROM runs") == [RUN_IDS[0]]


def test_empty_tables_have_their_columns(tmp_path: Path) -> None:
    """Before the first row of a table, its views exist with the same columns and types as later."""
    with connect(reader_of(tmp_path / "nothing")) as empty, connect(reader_of(make_output(tmp_path / "out"))) as full:
        for name, table in TABLES.items():
            for view in (name, f"all_{name}"):
                described = [c.execute(f"DESCRIBE {view}").fetchall() for c in (empty, full)]
                assert described[0] == described[1], view
                assert [row[0] for row in described[0]] == table.schema.names
                assert empty.execute(f"SELECT count(*) FROM {view}").fetchall() == [(0,)]


@pytest.mark.parametrize("night", [0, 1, 2])
def test_files_of_other_versions(tmp_path: Path, night: int) -> None:
    """A column that came or went between two versions of vca: the views have the columns of this one, null where a file
    has none, whichever night wrote which files. DuckDB would else go by the first file and refuse the others.
    """
    root, untouched = make_output(tmp_path / "out"), reader_of(make_output(tmp_path / "untouched"))
    reader = reader_of(root)
    manifest = json.loads((root / f"manifests/{RUN_IDS[3]}.json").read_text())
    for file in manifest["tables"]["videos"]["files"]:
        if file["run_id"] != RUN_IDS[night]:
            rows = pq.read_table(root / file["path"], partitioning=None).drop_columns(["n_frames"])
            pq.write_table(rows.add_column(0, "of_another_version", pa.array(["x"] * len(rows))), root / file["path"])
            file["size_bytes"] = (root / file["path"]).stat().st_size
    (root / f"manifests/{RUN_IDS[3]}.json").write_text(json.dumps(manifest))
    replaced = f"SELECT * REPLACE (CASE WHEN run_id = '{RUN_IDS[night]}' THEN n_frames END AS n_frames)"
    for view in ("all_videos", "videos"):
        found = query(reader, f"FROM {view} ORDER BY ALL")
        assert found == query(untouched, f"{replaced} FROM {view} ORDER BY ALL")
        assert query(reader, f"SELECT count(n_frames) FROM {view}") == query(
            untouched, f"SELECT count(n_frames) FROM ({replaced} FROM {view})"
        )
    assert query(reader, "FROM event_spans ORDER BY ALL") == query(untouched, "FROM event_spans ORDER BY ALL")


def test_structs_stay_as_they_are() -> None:
    """DuckDB finds the fields of a struct by their place in the files, and a struct of another version gives wrong
    values without a word. What is new gets a column of its own.
    """
    kinds = {f"{name}.{f.name}": str(f.type) for name, table in TABLES.items() for f in table.schema}
    assert {column: kind for column, kind in kinds.items() if "struct" in kind} == {
        "video_categories.evidence": "struct<vision: float not null, audio: float not null, text: float not null>",
        "event_spans.participants": "list<element: struct<label: string, score: float>>",
        "event_spans.evidence": "struct<vision: float not null, audio: float not null, text: float not null>",
        "runs.error_counts": "list<element: struct<error_code: string, count: int64>>",
    }


def test_no_file_is_read_before_it_is_needed(reader: OutputReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """On object storage every file costs a request, and after a year a table has hundreds."""
    opened = []
    open_file = query_module._PublishedFiles.open

    def counted(self: Any, path: str, *args: Any, **more: Any) -> Any:
        opened.append(path.split("/")[3])
        return open_file(self, path, *args, **more)

    monkeypatch.setattr(query_module._PublishedFiles, "open", counted)
    with connect(reader) as connection:
        assert opened == []
        connection.execute("SELECT count(*) FROM shots").fetchall()
    assert set(opened) == {"shots", "videos"}


def test_query_needs_a_published_run(tmp_path: Path) -> None:
    """A mistyped location is an error, not an empty archive."""
    with pytest.raises(ConfigError, match="no run has been published here"):
        query(reader_of(tmp_path), "FROM videos")
    with pytest.raises(ConfigError, match="no run has been published here"):
        status(reader_of(tmp_path))


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT scor FROM video_categories", 'Candidate bindings: "score"'),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("FROM video", "Did you mean"),
        ("", "0 statements; give one"),
        ("SELECT 1; SELECT 2", "2 statements; give one"),
        ("SELECT 1 / 'x'", "Conversion Error"),
    ],
)
def test_wrong_sql_is_one_line(reader: OutputReader, sql: str, says: str) -> None:
    """DuckDB's message and hint, without its copy of the query and without a traceback."""
    with pytest.raises(ConfigError, match="query: ") as caught:
        query(reader, sql)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "LINE 1" not in str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{folder}/x.csv'",
        "COPY (SELECT 1 AS a) TO 'published://{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1 AS a) TO 'published://{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/x.csv'",
        "EXPORT DATABASE '{folder}/x'",
        "ATTACH '{folder}/x.db'",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW videos",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 64",
        "SET enable_external_access = true",
        "CALL enable_logging(storage = 'file', storage_path = '{folder}/x')",
        "FROM enable_logging(storage = 'file', storage_path = '{folder}/x')",
        "FROM read_text('{secret}')",
        "FROM read_csv('{secret}')",
        "FROM '{root}/{file}'",
        "FROM glob('{folder}/*')",
        "FROM glob('published://tables/*')",
        "FROM read_parquet('published://tables/videos/*/*.parquet')",
        "FROM read_text('published://manifests/current.json')",
        "FROM read_text('published://../../secret.txt')",
        "FROM local_variable",
    ],
)
def test_sql_can_only_read_the_tables(tmp_path: Path, sql: str) -> None:
    """SQL of a stranger writes nothing, reads no other file and changes no setting: by `query` and by `connect`."""
    root = make_output(tmp_path / "out")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    file = f"tables/runs/run_id={RUN_IDS[0]}/part-00000.parquet"
    before = (root / file).read_bytes()
    local_variable = pd.DataFrame({"secret": [1]})
    statement = sql.format(folder=tmp_path, root=root, file=file, secret=secret)
    with contextlib.suppress(ConfigError):
        assert query(reader_of(root), statement).num_rows == 0
    with connect(reader_of(root)) as connection:
        try:
            connection.execute(statement)
        except (duckdb.Error, OSError):
            pass  # refused, as it should be
        else:
            assert statement.startswith(("CREATE TABLE", "DROP VIEW")) or not connection.fetchall()
    assert len(local_variable) == 1
    assert (root / file).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "secret.txt"]


@pytest.mark.parametrize(
    "name", ["it's", "a'); DROP VIEW videos; --", 'q"uote', "br[1]ck*t?", "spa ce", "片头", "a{b}$c"]
)
def test_any_location_works(tmp_path: Path, name: str) -> None:
    """Quotes, patterns and spaces in the path of the output are plain characters."""
    root = make_output(tmp_path / name)
    decoy = tmp_path / "br1ck_t_"
    decoy.mkdir()
    assert column(reader_of(root), "SELECT count(DISTINCT key) FROM video_categories") == [26]


def test_lost_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    """A file that the manifest names but that is gone or cut short stops the query; it does not shrink the answer."""
    root = make_output(tmp_path)
    file = root / f"tables/videos/run_id={RUN_IDS[1]}/part-00000.parquet"
    whole = file.read_bytes()
    for damaged in (whole[:-100], b"x" * len(whole), b""):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError) as caught:
            query(reader_of(root), "FROM all_videos")
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match=r"part-00000\.parquet"):
        query(reader_of(root), "FROM all_videos")


@pytest.mark.parametrize("run", RUN_IDS[:2])
@pytest.mark.parametrize("damage", ["cut short", "noise", "metadata", "lost"])
def test_own_connections_get_one_line_too(tmp_path: Path, run: str, damage: str) -> None:
    """A plan reads the views in its own connection, batch by batch: damage is one line there, in whatever step."""
    root = make_output(tmp_path)
    file = root / f"tables/videos/run_id={run}/part-00000.parquet"
    whole = file.read_bytes()
    third = len(whole) // 3
    broken = {"cut short": whole[:-100], "noise": b"x" * len(whole)}
    broken["metadata"] = whole[:third] + b"\xff" * third + whole[2 * third :]
    file.write_bytes(broken.get(damage, b""))
    if damage == "lost":
        file.unlink()
    reader = reader_of(root)

    def count_rows() -> None:
        with duckdb.connect() as connection:
            create_views(connection, reader)
            with one_line_errors(reader.uri):
                connection.execute("CREATE VIEW prior AS FROM all_videos")
                for _ in connection.sql("FROM prior").to_arrow_reader(3):
                    pass

    with pytest.raises(ConfigError, match=r"a published file is .*; restore the file or roll back") as caught:
        count_rows()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_views_on_a_connection_of_ones_own(reader: OutputReader, tmp_path: Path) -> None:
    """`create_views` adds the tables to a connection that may also read and write other files."""
    with duckdb.connect() as connection:
        create_views(connection, reader)
        target = tmp_path / "labels.csv"
        connection.execute(f"COPY (SELECT DISTINCT label FROM video_categories) TO '{target}' (HEADER)")
        assert target.read_text().startswith("label\n")


def test_every_type_reads_everywhere(reader: OutputReader, tmp_path: Path) -> None:
    """DuckDB, pandas and polars read every column of every table, and the feature store's float16, as written."""
    files = {name: reader.files(name) for name in TABLES}
    features = tmp_path / "features.parquet"
    row: dict[str, Any] = {field.name: None for field in FEATURES}
    media = {field.name: None for field in FEATURES.field("media").type}
    media |= {"duration_us": 1, "container": "mp4", "has_video": True, "has_audio": False}
    media |= {"n_video_streams": 1, "n_audio_streams": 0, "n_subtitle_streams": 0}
    row |= {"video_id": "v", "key": "k", "fingerprint": "f", "segment_index": 0, "n_segments": 1, "start_us": 0}
    row |= {"end_us": 1, "step_us": 1, "coverage_us": 1, "media": media, "shots": [{"start_us": 0, "end_us": 1}]}
    row |= {"text": [], "vision": [[np.float16(0.5), np.float16(1.5)], None]}
    pq.write_table(pa.Table.from_pylist([row], schema=FEATURES), features)
    files["features"] = [str(features)]
    for name, paths in files.items():
        schema = FEATURES if name == "features" else TABLES[name].schema
        expected = pq.read_table(paths[0], partitioning=None)
        assert expected.schema.equals(schema)
        assert expected.num_rows > 0
        seen = [column for column in schema.names if expected[column].null_count < expected.num_rows]
        assert set(seen) >= {field.name for field in schema if not field.nullable}

        frame = pd.read_parquet(paths[0], partitioning=None)
        assert list(frame.columns) == schema.names
        polars = pl.read_parquet(paths[0], hive_partitioning=False)
        assert polars.columns == schema.names
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            read = f"FROM read_parquet('{paths[0]}', hive_partitioning = false)"
            duck = connection.sql(read).to_arrow_table()
        for other in (polars.to_arrow(), duck):
            assert other.select(seen).to_pylist() == expected.select(seen).to_pylist(), name
        for field in schema:
            if pa.types.is_timestamp(field.type):
                assert list(frame[field.name]) == expected[field.name].to_pylist()
            elif pa.types.is_list(field.type) and name != "features":
                assert [list(v) for v in frame[field.name] if v is not None] == [
                    v for v in expected[field.name].to_pylist() if v is not None
                ]
    assert pd.read_parquet(features)["vision"][0][0].dtype == np.float16


def test_csv_and_json(reader: OutputReader) -> None:
    """Machine-readable output: whole, nested values kept, times in ISO 8601 UTC, nulls told from text."""
    sql = """
        SELECT key, participants, place, tagged_at FROM event_spans JOIN videos USING (video_id, run_id, key)
        ORDER BY key, event_id
    """
    table = query(reader, sql)
    lines = [json.loads(line) for line in format_table(table, None, "json").splitlines()]
    assert len(lines) == table.num_rows > 50
    assert lines[0]["participants"][0]["label"] == table["participants"][0].as_py()[0]["label"]
    assert lines[0]["tagged_at"] == "2026-11-03T01:30:00Z"
    rows = list(csv.DictReader(io.StringIO(format_table(table, 5, "csv"))))
    assert len(rows) == 5
    assert json.loads(rows[0]["participants"]) == lines[0]["participants"]
    assert {row["place"] for row in csv.DictReader(io.StringIO(format_table(table, None, "csv")))} >= {"", "studio"}


def test_odd_values_as_json(reader: OutputReader) -> None:
    """Values that JSON does not know become null or text, and two columns of one name both stay."""
    sql = """
        SELECT 'nan'::FLOAT AS a, 1 AS b, 2 AS b, DATE '2026-01-02' AS d, 'é\n"' AS t, 1.5::DECIMAL(5,1) AS n,
               MAP {'k': 1} AS m, INTERVAL 1 HOUR AS i, '\\xFF'::BLOB AS x, TIMESTAMP '2026-01-02 03:04:05' AS s
    """
    row = json.loads(format_table(query(reader, sql), None, "json"))
    assert row["a"] is None
    assert (row["b"], row["b_2"], row["d"], row["t"], row["n"]) == (1, 2, "2026-01-02", 'é\n"', "1.5")
    assert row["s"] == "2026-01-02T03:04:05"
    assert format_table(query(reader, sql), None, "csv").startswith("a,b,b,d,t,n,m,i,x,s\n")


def test_text_is_safe_for_a_terminal(reader: OutputReader) -> None:
    """On-screen text and messages come from strangers' files: escape sequences must not reach the terminal."""
    text = format_table(query(reader, "SELECT chr(27) || '[31mred' || chr(155) || chr(7) || chr(8238) AS t"))
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e" for c in text)
    assert "[31mred" in text


HOSTILE = "chr(27) || '[31mred' || chr(155) || 'K' || chr(7) || chr(8238) || chr(127)"


def test_json_is_safe_for_a_terminal_and_the_same_value(reader: OutputReader) -> None:
    """Escapes of JSON itself: whoever parses it gets the very text, whoever looks at it no control character."""
    text = format_table(query(reader, f"SELECT {HOSTILE} AS t"), None, "json")
    assert text.isprintable()
    assert json.loads(text) == {"t": "\x1b[31mred\x9bK\x07\u202e\x7f"}


def test_csv_is_raw_for_programs_and_safe_for_a_terminal(reader: OutputReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets the bytes of the table, a person at a terminal no escape sequence."""
    rows = query(reader, f"SELECT {HOSTILE} AS t")
    assert "\x1b[31mred\x9b" in format_table(rows, None, "csv")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert all(line.isprintable() for line in format_table(rows, None, "csv").splitlines())


def test_csv_runs_no_formula(reader: OutputReader) -> None:
    """Subtitles and file names are strangers' text: a spreadsheet must show `=...` and not run it. Numbers stay so."""
    sql = """
        SELECT '=HYPERLINK("http://x","y")' AS a, '+1+cmd' AS b, '-cmd' AS c, '@SUM(1)' AS d, chr(9) || '=1' AS e,
               -1.5 AS f, 'a=b' AS g, ['=1'] AS h, NULL AS i
    """
    (row,) = csv.DictReader(io.StringIO(format_table(query(reader, sql), None, "csv")))
    assert all(row[name].startswith("'") for name in "abcde")
    assert (row["a"][1:], row["f"], row["g"], row["h"], row["i"]) == (
        '=HYPERLINK("http://x","y")', "-1.5", "a=b", '["=1"]', ""
    )  # fmt: skip
    assert json.loads(format_table(query(reader, sql), None, "json"))["b"] == "+1+cmd"


def test_text_says_what_it_leaves_out(reader: OutputReader) -> None:
    """A cut result looks cut: rows left out are counted. A pipe, as here, gets every column."""
    text = format_table(query(reader, "FROM videos"), 3)
    assert "3 of 31 rows shown" in text
    assert all(name in text for name in TABLES["videos"].schema.names)
    assert "rows shown" not in format_table(query(reader, "FROM videos LIMIT 3"), 3)
    assert "0 rows" in format_table(query(reader, "FROM videos WHERE false"))
    assert "Read Parquet" in format_table(query(reader, "EXPLAIN SELECT key FROM all_videos")).replace("_", " ").title()


def test_status_is_one_screen(reader: OutputReader) -> None:
    """The numbers of the screen are those of the tables."""
    screen = status(reader)
    assert len(screen.splitlines()) < 25
    assert max(map(len, screen.splitlines())) <= 120
    assert f"last run       {RUN_IDS[3]}, published 2026-11-04 02:11 UTC" in screen
    assert "  counts       30 unchanged, 1 quarantined" in screen
    words = [line.split() for line in screen.splitlines()]
    assert ["videos", "31"] in words
    assert ["quarantine", "4"] in words
    assert any(line[:2] == ["tagged", "25"] for line in words)
    assert any(line[:2] == ["header_damaged", "1"] for line in words)
    assert "decode.wall_limit_s; 1 will be tried again" in screen
    assert "2 deferred, 1 gone" in screen


def test_threads_do_not_share_a_file_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB reads one handle from many threads; slow storage between seek and read must not mix the bytes up."""
    monkeypatch.setattr(query_module, "WHOLE_FILE_BYTES", 0)
    rows = 60_000
    values = _table("shots", rows, shot_index=pa.array(range(rows), pa.int32()))
    write_run(tmp_path, "r1", {"shots": values})
    file = tmp_path / "tables/shots/run_id=r1/part-00000.parquet"
    pq.write_table(values, file, row_group_size=2_000)
    manifest = json.loads((tmp_path / "manifests/r1.json").read_text())
    manifest["tables"]["shots"]["files"][0]["size_bytes"] = file.stat().st_size
    (tmp_path / "manifests/r1.json").write_text(json.dumps(manifest))
    reader = reader_of(tmp_path)
    seek = query_module._PublishedFile.seek

    def slow(self: Any, *args: Any) -> int:
        position = seek(self, *args)
        time.sleep(0.0005)  # lets another thread seek before this one reads
        return position

    monkeypatch.setattr(query_module._PublishedFile, "seek", slow)
    assert column(reader, "SELECT sum(shot_index) FROM all_shots") == [rows * (rows - 1) // 2]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutputReader]:
    """200,000 videos in a first run, half of them again in a second, four categories each."""
    root = tmp_path_factory.mktemp("large")
    for run, first, last in (("r1", 0, 200_000), ("r2", 100_000, 200_000)):
        numbers = range(first, last)
        ids = pa.array([f"{n:024x}" for n in numbers])
        keys = pa.array([f"{n % 100}/{n}.mp4" for n in numbers])
        videos = _table("videos", len(numbers), video_id=ids, key=keys, run_id=run, status="tagged")
        four = pa.array(np.repeat(np.arange(len(numbers)), 4))
        labels = pa.array(np.tile(["news", "sports", "music", "food"], len(numbers)))
        categories = _table(
            "video_categories", len(four), video_id=ids.take(four), key=keys.take(four), run_id=run, label=labels
        )
        write_run(root, run, {"videos": videos, "video_categories": categories})
    yield reader_of(root)
    shutil.rmtree(root)


def _table(name: str, rows: int, **columns: Any) -> pa.Table:
    arrays = []
    for field in TABLES[name].schema:
        value = columns.get(field.name)
        if isinstance(value, pa.Array):
            arrays.append(value)
        elif value is not None:
            arrays.append(pa.repeat(pa.scalar(value, field.type), rows))
        elif field.nullable:
            arrays.append(pa.nulls(rows, field.type))
        else:
            zero = pa.scalar({f.name: 0.5 for f in field.type} if pa.types.is_struct(field.type) else _zero(field.type))
            arrays.append(pa.repeat(zero.cast(field.type), rows))
    return pa.Table.from_arrays(arrays, schema=TABLES[name].schema)


def _zero(kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return NIGHTS[0]
    return "" if pa.types.is_string(kind) else pa.scalar(0).cast(kind).as_py()


def test_speed_on_200_000_videos(large: OutputReader) -> None:
    """The newest-row rule over 300,000 video and 1.2 million category rows stays interactive."""
    started = time.monotonic()
    rows = query(
        large,
        """
        SELECT label, count(*) AS n, count(DISTINCT run_id) AS runs FROM video_categories
        WHERE selected IS NOT NULL GROUP BY label ORDER BY label
        """,
    ).to_pylist()
    assert rows == [{"label": label, "n": 200_000, "runs": 2} for label in ("food", "music", "news", "sports")]
    assert time.monotonic() - started < 15  # about 1 s on two free cores
