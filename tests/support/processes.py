"""Finding the processes of a run and striking one at a moment that is known, not guessed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

DECODER = "vca.media.child"
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError)
"""What a look at a process raises that has just ended."""

Found = TypeVar("Found")


def wait_for(look: Callable[[], Found | None], what: str, limit_s: float = 600.0, every_s: float = 0.002) -> Found:
    """Look again and again until there is something. Raises `TimeoutError` naming `what`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(every_s)
    raise TimeoutError(f"waited {limit_s:g} s for {what}")


def family(pid: int) -> list[psutil.Process]:
    """All processes below `pid`."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except GONE:
        return []


def titled(pid: int, words: str) -> list[psutil.Process]:
    """Processes below `pid` with these words in their command line; Ray workers carry the name of their stage."""
    found = []
    for process in family(pid):
        with suppress(*GONE):
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


class DecoderAtWork:
    """Holds still the decoding child that reads a file, so that what is killed next is killed in the middle of it.

    A child has the object open only while it works on a request, and closes it before it answers.
    """

    def __init__(self, root_pid: int, path: Path) -> None:
        self._root_pid = root_pid
        self._path = str(path.resolve())
        self._children: list[psutil.Process] = []
        self._next_listing = 0.0

    def caught(self) -> psutil.Process | None:
        """The stopped child, None if nobody reads the file right now."""
        now = time.monotonic()
        if now >= self._next_listing:  # listing a tree of processes is far slower than looking at one
            self._children = titled(self._root_pid, DECODER)
            self._next_listing = now + 0.2
        for child in self._children:
            with suppress(*GONE):
                if not self._reads(child):
                    continue
                child.suspend()
                wait_for(lambda child=child: child.status() == psutil.STATUS_STOPPED, "a stopped process", 60.0)
                if self._reads(child):
                    return child
                child.resume()
        return None

    def _reads(self, child: psutil.Process) -> bool:
        for entry in Path(f"/proc/{child.pid}/fd").iterdir():
            with suppress(*GONE):
                if str(entry.readlink()) == self._path:
                    return True
        return False


@contextmanager
def meanwhile(fault: Callable[[], None]) -> Iterator[None]:
    """Run `fault` beside the block; the block's end waits for it and raises what it raised."""
    errors: list[BaseException] = []

    def strike() -> None:
        try:
            fault()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors.append(error)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]
