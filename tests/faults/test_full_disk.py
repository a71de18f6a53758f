"""The disk of the output is full or turns read-only: one line, code 3 (2 before anything began), nothing is lost.

Real file systems: small ones in memory, which only root may mount.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import nights
from tests.support.disks import LARGE_BYTES, PAGE_BYTES, remount, small_disk
from tests.support.outcomes import assert_mended
from tests.support.runs import Job
from tests.support.tally import TALLY
from vca.pipelines import run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

FULL, READ_ONLY = "full disk", "read-only disk"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def used_bytes(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE_BYTES) * PAGE_BYTES for path in folder.rglob("*") if path.is_file())


@pytest.mark.long
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_the_disk_fills_up_in_the_first_night(first: Job, disk: Path, share: float) -> None:
    """Room for a share of what the night writes."""
    job = Job(first.archive, str(disk / "out"), nights.SETTINGS)
    assert remount(disk, f"size={int(used_bytes(Path(first.output)) * share)}")
    code, text = job.attempt()
    assert_nothing_published_for_want_of_space(code, text)
    assert job.reader().current() is None
    assert remount(disk, f"size={LARGE_BYTES}")
    assert job.tag() == run.EXIT_OK, job.text
    assert_mended(job, first, FULL)


@pytest.mark.long
@pytest.mark.parametrize("pages", [2, 8, 14, 18])
def test_the_disk_fills_up_while_a_night_is_published(second: Job, stored: Path, disk: Path, pages: int) -> None:
    """Room for some pages more than what is stored: enough for a part of the staging, or for all but the manifests."""
    shutil.copytree(stored, disk / "out")
    job = Job(second.archive, str(disk / "out"), nights.SETTINGS)
    assert remount(disk, f"size={used_bytes(disk) + pages * PAGE_BYTES}")
    before = job.reader().current()
    code, text = job.attempt()
    assert_nothing_published_for_want_of_space(code, text)
    assert job.reader().current() == before
    assert remount(disk, f"size={LARGE_BYTES}")
    assert job.tag() == run.EXIT_OK, job.text
    assert_mended(job, second, FULL)


def assert_nothing_published_for_want_of_space(code: int, text: str) -> None:
    TALLY.injected[FULL] += 1
    assert code == run.EXIT_NOT_PUBLISHED, text
    assert "output.uri" in text.splitlines()[-1]
    assert "No space left" in text or "no space left" in text, text


@pytest.mark.long
def test_the_drivers_own_disk_is_full(first: Job, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a run wait in a temporary folder until they are published: the line names that folder."""
    job = Job(first.archive, str(tmp_path / "out"), nights.SETTINGS)
    assert remount(disk, f"size={6 * PAGE_BYTES}")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(disk))
        code, text = job.attempt()
    TALLY.injected[FULL] += 1
    assert code == run.EXIT_NOT_PUBLISHED, text
    assert str(disk) in text.splitlines()[-1], text
    assert job.reader().current() is None
    assert job.tag() == run.EXIT_OK, job.text
    assert_mended(job, first, FULL)


def test_a_read_only_output_is_refused(first: Job, disk: Path) -> None:
    """Before anything is decoded."""
    job = Job(first.archive, str(disk / "out"), nights.SETTINGS)
    assert remount(disk, "ro")
    code, text = job.attempt()
    TALLY.injected[READ_ONLY] += 1
    assert code == run.EXIT_CONFIG, text
    assert "output.uri" in text
    assert list(disk.iterdir()) == []
