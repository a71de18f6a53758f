"""File systems in memory that can be full or read-only. Only root may mount them; for others the tests are skipped."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE_BYTES = 4096
"""A file takes whole pages; names and folders take none."""
LARGE_BYTES = 64 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own at a new folder, large at first."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={LARGE_BYTES}", "vca-faults", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this user may not mount a file system here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> bool:
    """Whether it worked: a file system with a file open for writing does not turn read-only."""
    command = ["mount", "-o", f"remount,{options}", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
