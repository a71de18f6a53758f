"""Peak memory of a process and everything it started, while a block runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Peak:
    """Proportional set size: shared pages (Ray's object store) count once over the whole tree."""

    bytes: int = 0
    by_name: dict[str, int] | None = None


@contextmanager
def peak_memory(pid: int, every_s: float = 0.5) -> Iterator[Peak]:
    """Sample the tree below `pid` until the block ends."""
    peak = Peak()
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(every_s):
            sizes = _tree(pid)
            if sum(sizes.values()) > peak.bytes:
                peak.bytes, peak.by_name = sum(sizes.values()), sizes

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def _tree(pid: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return sizes
    for process in processes:
        try:
            title = " ".join(process.cmdline())[:60] or process.name()
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended between the listing and the look
        pss_kib = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
        sizes[title] = sizes.get(title, 0) + pss_kib * 1024
    return sizes


def own_peak_bytes() -> int:
    """Peak resident memory of this process since it began. What `getrusage` says may be that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
