"""The folder of real media in S3 gives what it gives on disk."""

from pathlib import Path

import pytest

from tests.support.media import Figures, MediaRun
from tests.support.runs import Job, stable_rows
from tests.support.s3 import s3_server
from vca.core.schemas import TABLES
from vca.pipelines import run

pytestmark = [pytest.mark.integration, pytest.mark.media, pytest.mark.long, pytest.mark.timeout(1800)]

COMPARED = [name for name in TABLES if name != "runs"]


def test_real_media_in_s3_gives_the_same_tables_row_for_row(
    media_dir: Path, media_tagged: MediaRun, figures: Figures
) -> None:
    """Every container and codec of the folder, also the broken ones, over HTTP. `test_tag_s3.py` is the short form."""
    local = media_tagged.job
    with s3_server("films", "tags") as server:
        server.upload_folder(media_dir, "films", "real")
        endpoint = server.endpoint_url
        remote = Job(
            "s3://films/real",
            "s3://tags/vca",
            (f"archive.storage.endpoint_url={endpoint}", f"output.storage.endpoint_url={endpoint}"),
        )
        assert remote.tag() == run.EXIT_OK, remote.text
        (row,) = remote.query("FROM runs")
        figures(f"S3: {row['listed']} objects in {row['wall_s']:.0f} s; on disk {media_tagged.wall_s:.0f} s")
        assert row["listed"] > 150
        for name in COMPARED:
            there, here = stable_rows(remote.reader(), name), stable_rows(local.reader(), name)
            assert there.equals(here), _difference(name, there.to_pylist(), here.to_pylist())


def _difference(name: str, there: list[dict[str, object]], here: list[dict[str, object]]) -> str:
    only_there = [row for row in there if row not in here][:3]
    only_here = [row for row in here if row not in there][:3]
    return f"{name}: {len(there)} rows in S3, {len(here)} on disk; only in S3 {only_there}; only on disk {only_here}"
