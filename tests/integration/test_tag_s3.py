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


@pytest.fixture(scope="module")
def archive(demo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some clips of each kind: test_media_s3.py compares a whole folder."""
    folder = tmp_path_factory.mktemp("some") / "archive"
    for clip in [c for c in demo_truth(seed=0) if c.key.startswith(("damaged/", "kitchen/", "radio/", "traffic/"))]:
        for name in (clip.key, clip.sidecar):
            if name is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(demo_archive / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def local(archive: Path, ray_cluster: None) -> Job:
    job = Job(str(archive), str(archive.parent / "out"), LIGHT)
    assert job.tag() == run.EXIT_OK, job.text
    return job


def test_s3_gives_the_same_tables_row_for_row(archive: Path, local: Job) -> None:
    """Where the bytes lie changes nothing."""
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


@pytest.mark.long  # in short, test_storage_s3.py reads by byte range
def test_byte_ranges_give_the_same_tags(archive: Path, local: Job, tmp_path: Path) -> None:
    """In place of staged copies: the pictures are the same, so the tags are."""
    with s3_server("films") as server:
        server.upload_folder(archive, "films", "videos")
        settings = (f"archive.storage.endpoint_url={server.endpoint_url}", "decode.stage_limit_mb=0", *LIGHT)
        ranged = Job("s3://films/videos", str(tmp_path / "ranged"), settings)
        assert ranged.tag() == run.EXIT_OK, ranged.text
        same = "SELECT key, task, label, score, selected FROM video_categories ORDER BY ALL"
        assert ranged.query(same) == local.query(same)
