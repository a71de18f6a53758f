"""What cannot work is refused before anything is written: one clear line, exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY
from tests.support.s3 import error_answer, faulty_server, s3_server

pytestmark = pytest.mark.integration


def vca(folder: Path, *settings: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`vca tag` in its own process, as a user runs it."""
    arguments = [
        "tag",
        "--config",
        str(config or REPOSITORY / "configs" / "local.yaml"),
        "--set",
        f"taxonomy={REPOSITORY / 'configs' / 'taxonomy.yaml'}",
    ]
    for setting in (f"output.uri={folder / 'out'}", "tracking.enabled=false", *settings):
        arguments += ["--set", setting]
    return subprocess.run(
        [sys.executable, "-m", "vca.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"not really a video")
    return folder


def refused(done: subprocess.CompletedProcess[str], folder: Path, *parts: str) -> None:
    """One line on stderr that names the field and the way out, exit code 2, nothing written."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("vca: ")
    for part in parts:
        assert part in lines[0], lines[0]
    assert not (folder / "out").exists()
    assert not list(folder.glob("*.db"))


def test_unknown_key(tmp_path: Path, archive: Path) -> None:
    """A mistyped key names the right one."""
    done = vca(tmp_path, f"archive.uri={archive}", "sampling.step_mss=100")
    refused(done, tmp_path, "sampling.step_mss", "did you mean 'step_ms'")


def test_unreadable_value(tmp_path: Path, archive: Path) -> None:
    """A value of the wrong kind is named with what was given."""
    refused(vca(tmp_path, f"archive.uri={archive}", "run.max_attempts=many"), tmp_path, "run.max_attempts", "many")


def test_missing_config_file(tmp_path: Path) -> None:
    """A wrong path to the configuration."""
    done = vca(tmp_path, config=tmp_path / "nowhere.yaml")
    refused(done, tmp_path, "--config", "no such file")


def test_unknown_label(tmp_path: Path, archive: Path) -> None:
    """A threshold for a label that the taxonomy does not have."""
    done = vca(tmp_path, f"archive.uri={archive}", "predict.thresholds={content.sprots: 0.5}")
    refused(done, tmp_path, "predict.thresholds.content.sprots", "unknown label", "sports")


def test_missing_archive(tmp_path: Path) -> None:
    """A folder that is not there."""
    refused(vca(tmp_path, f"archive.uri={tmp_path / 'nowhere'}"), tmp_path, "archive.uri", "nowhere")


def test_empty_archive(tmp_path: Path) -> None:
    """A folder without media is more likely a mistake than an empty archive."""
    (tmp_path / "empty").mkdir()
    refused(vca(tmp_path, f"archive.uri={tmp_path / 'empty'}"), tmp_path, "archive.uri", "no media objects", "include")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(tmp_path: Path, archive: Path) -> None:
    """A folder that this user may not read."""
    archive.chmod(0o000)
    try:
        refused(vca(tmp_path, f"archive.uri={archive}"), tmp_path, "archive.uri", "permission")
    finally:
        archive.chmod(0o755)


def test_no_permission_on_a_bucket(tmp_path: Path) -> None:
    """A bucket that refuses these credentials."""
    with faulty_server(lambda *_: error_answer(403, "AccessDenied")) as endpoint:
        done = vca(tmp_path, "archive.uri=s3://films/videos", f"archive.storage.endpoint_url={endpoint}")
    refused(done, tmp_path, "archive", "s3://films/videos", "denied")


def test_output_in_the_way_of_a_file(tmp_path: Path, archive: Path) -> None:
    """An output below a file can never be made."""
    (tmp_path / "file").touch()
    done = vca(tmp_path, f"archive.uri={archive}", f"output.uri={tmp_path / 'file' / 'out'}")
    refused(done, tmp_path, "output.uri")


def test_a_gpu_that_is_not_there(tmp_path: Path, archive: Path) -> None:
    """Asking for a GPU on a machine without one names the field and the way out."""
    done = vca(tmp_path, f"archive.uri={archive}", "resources.encoder_gpus=64", "ray.object_store_mb=100")
    refused(done, tmp_path, "resources.encoder_gpus", "the cluster has", "set it to 0")


def test_missing_bucket_and_dead_server(tmp_path: Path) -> None:
    """A bucket that does not exist, and a server that does not answer."""
    with s3_server("films") as server:
        endpoint = f"archive.storage.endpoint_url={server.endpoint_url}"
        done = vca(tmp_path, "archive.uri=s3://nowhere/videos", endpoint)
        refused(done, tmp_path, "archive", "nowhere", "bucket")
        output = f"output.storage.endpoint_url={server.endpoint_url}"
        server.put("films", "a.mp4", b"video")
        done = vca(tmp_path, "archive.uri=s3://films", endpoint, "output.uri=s3://nowhere/out", output)
        refused(done, tmp_path, "output", "nowhere", "bucket")
        dead = "archive.storage.endpoint_url=http://127.0.0.1:9"
        done = vca(tmp_path, "archive.uri=s3://films", dead, "archive.storage.connect_timeout_s=1")
        refused(done, tmp_path, "archive", "127.0.0.1:9")
