"""The same archive in S3 over real HTTP gives the same tables, and the bucket holds the output."""

import shutil
from pathlib import Path

import pytest

from tests.support.runs import LIGHT, Job, stable_rows
from tests.support.s3 import s3_server
from vca.core.schemas import TABLES
from vca.media.demo import demo_truth
from vca.pipelines import run

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

COMPARED = [name for name in TABLES if name != "runs"]


def test_s3_gives_the_same_tables_row_for_row(demo_archive: Path, tmp_path: Path) -> None:
    """Where the bytes lie changes nothing."""
    archive = tmp_path / "archive"
    archive.mkdir()
    # Some of each kind: test_media_s3.py compares a whole folder.
    for clip in [c for c in demo_truth(seed=0) if c.key.startswith(("damaged/", "kitchen/", "radio/", "traffic/"))]:
        for name in (clip.key, clip.sidecar):
            if name is not None:
                (archive / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(demo_archive / name, archive / name)
    local = Job(str(archive), str(tmp_path / "out"), LIGHT)
    assert local.tag() == run.EXIT_OK, local.text
    with s3_server("films", "tags") as server:
        server.upload_folder(archive, "films", "videos")
        endpoint = server.endpoint_url
        remote = Job(
            "s3://films/videos",
            "s3://tags/vca",
            (f"archive.storage.endpoint_url={endpoint}", f"output.storage.endpoint_url={endpoint}", *LIGHT),
        )
        assert remote.tag() == run.EXIT_OK, remote.text
        for name in COMPARED:
            assert stable_rows(remote.reader(), name).equals(stable_rows(local.reader(), name)), name
        assert not [key for key in server.keys("tags") if "/staging/" in key]
        assert remote.tag() == run.EXIT_OK
        assert "nothing to do: all unchanged" in remote.text

