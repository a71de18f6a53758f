"""What must hold of an output whatever happened while it was made."""

from collections.abc import Iterator

import pyarrow as pa

from tests.support.runs import Job, stable_rows
from tests.support.tally import TALLY
from vca.core.schemas import TABLES
from vca.media.output import TEMPORARY, Output


def assert_same_tables(job: Job, undisturbed: Job, apart_from: tuple[str, ...] = ()) -> None:
    """The newest rows equal those of a run that nothing disturbed, to the last score, apart from some columns."""
    for table in TABLES:
        if table != "runs":
            found, expected = (_without(stable_rows(j.reader(), table), apart_from) for j in (job, undisturbed))
            lost, doubled, differing = TALLY.compare(
                *([(_identity(table, row), repr(row)) for row in rows.to_pylist()] for rows in (expected, found))
            )
            assert found.equals(expected), f"{table}: rows lost {lost}, doubled {doubled}, differing {differing}"


def _without(rows: pa.Table, columns: tuple[str, ...]) -> pa.Table:
    return rows.select([name for name in rows.column_names if name not in columns])


def _identity(table: str, row: dict[str, object]) -> str:
    return repr([table, *(row[name] for name in TABLES[table].sort_by)])


def assert_nothing_doubled(job: Job) -> None:
    """No version of a video was published twice with the same outcome, and no row of a table twice by one run.

    Many nights may defer a video.
    """
    doubled = job.query(
        "SELECT key, status, fingerprint, attempts, feature_set, model_version, taxonomy_version, count(*) AS n "
        "FROM all_videos WHERE status <> 'deferred' GROUP BY ALL HAVING n > 1"
    )
    TALLY.doubled += len(doubled)
    assert doubled == []
    for table in TABLES:
        total, different = (
            job.query(f"SELECT count(*) AS n FROM {source}")[0]["n"]
            for source in (f"all_{table}", f"(SELECT DISTINCT * FROM all_{table})")
        )
        TALLY.doubled += total - different
        assert total == different, f"{table}: {total - different} doubled rows"


def assert_nothing_left_over(job: Job) -> None:
    """No staging, no unfinished file, and every file under `tables` is in the manifest."""
    files = set(all_files(Output(job.config().output)))
    assert {name for name in files if name.startswith("staging/")} == set()
    assert {name for name in files if name.rpartition("/")[2].startswith(TEMPORARY)} == set()
    manifest = job.reader().current()
    assert manifest is not None
    published = {file.path for table in manifest.tables.values() for file in table.files}
    assert {name for name in files if name.startswith("tables/")} == published


def all_files(output: Output) -> Iterator[str]:
    """Every file below an output, those that `Output.list` leaves out too."""
    for path in output.filesystem.find(output.root):
        yield path[len(output.root.rstrip("/")) + 1 :]


def assert_balanced(job: Job) -> None:
    """Every run put each listed object into exactly one state; what is gone was listed or not."""
    states = "tagged + partial + unchanged + quarantined + deferred"
    assert job.query(f"SELECT run_id FROM all_runs WHERE listed NOT BETWEEN {states} AND {states} + gone") == []


def assert_mended(job: Job, undisturbed: Job, kind: str, apart_from: tuple[str, ...] = ()) -> None:
    """The run after a fault of this kind has published what a run without it would have."""
    assert_same_tables(job, undisturbed, apart_from)
    assert_nothing_doubled(job)
    assert_nothing_left_over(job)
    assert_balanced(job)
    TALLY.resumed[kind] += 1
