"""What must hold of an output whatever happened while it was made."""

from pathlib import Path

from tests.support.runs import Job, stable_rows
from vca.core.schemas import TABLES


def assert_same_tables(job: Job, undisturbed: Job, apart_from: tuple[str, ...] = ()) -> None:
    """The newest rows equal those of a run that nothing disturbed, to the last score."""
    for table in TABLES:
        if table not in ("runs", *apart_from):
            assert stable_rows(job.reader(), table).equals(stable_rows(undisturbed.reader(), table)), table


def assert_nothing_doubled(job: Job) -> None:
    """No video was published twice with the same outcome, and no row of a table twice by one run."""
    doubled = "SELECT key, status, count(*) AS n FROM all_videos GROUP BY ALL HAVING n > 1"
    assert job.query(doubled) == []
    for table in TABLES:
        total, different = (
            job.query(f"SELECT count(*) AS n FROM {source}")[0]["n"]
            for source in (f"all_{table}", f"(SELECT DISTINCT * FROM all_{table})")
        )
        assert total == different, f"{table}: {total - different} doubled rows"


def assert_nothing_left_over(job: Job) -> None:
    """No staging, and every file under `tables` is in the manifest."""
    root = Path(job.output)
    assert [path for path in (root / "staging").rglob("*") if path.is_file()] == []
    manifest = job.reader().current()
    assert manifest is not None
    published = {root / file.path for table in manifest.tables.values() for file in table.files}
    assert {path for path in (root / "tables").rglob("*") if path.is_file()} == published
