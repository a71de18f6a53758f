"""The folder of real media in S3 gives what it gives on disk."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.media import Figures, MediaRun
from tests.support.runs import Job, stable_rows
from tests.support.s3 import s3_server
from vca.core.schemas import TABLES
from vca.pipelines import run

pytestmark = [pytest.mark.integration, pytest.mark.media, pytest.mark.slow, pytest.mark.timeout(1800)]

COMPARED = [name for name in TABLES if name != "runs"]
ONE_OF_A_KIND = """
SELECT arg_min(key, size_bytes) AS key
FROM videos LEFT JOIN quarantine USING (key)
GROUP BY videos.status, error_code, container, codecs, text_sources
"""


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["one of a kind", "whole folder"]
)
def test_real_media_in_s3_gives_the_same_tables_row_for_row(
    media_dir: Path, media_tagged: MediaRun, figures: Figures, whole: bool
) -> None:
    """Every container and codec of the folder, also the broken ones, read over HTTP."""
    local = media_tagged.job
    keys = {row["key"] for row in local.query("SELECT key FROM videos" if whole else ONE_OF_A_KIND)}
    left_out = {row["key"] for row in local.query("SELECT key FROM videos")} - keys
    with s3_server("films", "tags") as server:
        for path in sorted(path for path in media_dir.rglob("*") if path.is_file()):
            key = path.relative_to(media_dir).as_posix()
            if key not in left_out:  # subtitles and other objects come along
                server.put("films", f"real/{key}", path.read_bytes())
        endpoint = server.endpoint_url
        remote = Job(
            "s3://films/real",
            "s3://tags/vca",
            (f"archive.storage.endpoint_url={endpoint}", f"output.storage.endpoint_url={endpoint}"),
        )
        assert remote.tag() == run.EXIT_OK, remote.text
        (row,) = remote.query("FROM runs")
        figures(f"S3: {row['listed']} objects in {row['wall_s']:.0f} s; all on disk {media_tagged.wall_s:.0f} s")
        assert row["listed"] == len(keys)
        assert len(keys) > (150 if whole else 40)
        for name in COMPARED:
            there, here = stable_rows(remote.reader(), name), stable_rows(local.reader(), name)
            here = here.filter(pc.is_in(here["key"], pa.array(sorted(keys))))
            assert there.equals(here), _difference(name, there.to_pylist(), here.to_pylist())


def _difference(name: str, there: list[dict[str, object]], here: list[dict[str, object]]) -> str:
    only_there = [row for row in there if row not in here][:3]
    only_here = [row for row in here if row not in there][:3]
    return f"{name}: {len(there)} rows in S3, {len(here)} on disk; only in S3 {only_there}; only on disk {only_here}"
