"""`vca` in a process that kills itself at an exact point: before a change of its output, or before a line it says.

    python -m tests.support.doomed OUTPUT JOURNAL KIND NUMBER PATTERN tag --config ...

Nothing of the product is replaced. Python tells an audit hook of every file that is about to be opened for writing,
renamed or removed. Between two such changes a folder differs only in empty folders and in what an unfinished temporary
file holds, so killing before each of them covers every state that a crash can leave. The journal names the changes, one
a line, before they happen. KIND is `change` or `line` (of stdout); the process ends before the NUMBER-th (from 1) in
which the regular expression PATTERN is found.
"""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Doom:
    """Sends SIGKILL to this process at the `number`-th text with `pattern` in it; 0: never."""

    def __init__(self, number: int, pattern: str) -> None:
        self._left, self._pattern = number, re.compile(pattern)

    def meets(self, text: str) -> None:
        if self._pattern.search(text) is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Death:
    """The audit hook: counts the changes below one folder and sends SIGKILL before the chosen one."""

    def __init__(self, folder: str, journal: str, number: int, pattern: str) -> None:
        self._folder = Path(folder).absolute()
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._doom = Doom(number, pattern)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        change = self._change(event, arguments)
        if change is None:
            return
        os.write(self._journal, f"{change}\n".encode())
        self._doom.meets(change)

    def _change(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, _, flags = arguments
            return self._named("write", path, -1) if isinstance(flags, int) and flags & WRITING else None
        if event == "os.rename":
            return self._named("rename to", arguments[1], arguments[3])
        if event in ("os.remove", "os.rmdir"):
            return self._named(event.removeprefix("os."), *arguments)
        return None

    def _named(self, verb: str, path: Any, dir_fd: int) -> str | None:
        if not isinstance(path, str | os.PathLike):
            return None
        if dir_fd >= 0:  # rmtree works below open folders
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        full = Path(path).absolute()
        if not full.is_relative_to(self._folder):
            return None
        return f"{verb} {stable_name(str(full.relative_to(self._folder)))}"


def stable_name(path: str) -> str:
    """The same for every run."""
    path = re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{6}", "RUN", path)
    return re.sub(r"\.vca-tmp-[0-9a-f]{32}", ".vca-tmp", path)


class LastWords:
    """A stdout that ends the process before the chosen line."""

    def __init__(self, stdout: TextIO, number: int, pattern: str) -> None:
        self._stdout, self._doom = stdout, Doom(number, pattern)

    def write(self, line: str) -> int:
        self._doom.meets(line)
        return self._stdout.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def main(output: str, journal: str, kind: str, number: str, pattern: str, *arguments: str) -> None:
    if kind == "line":
        sys.stdout = LastWords(sys.stdout, int(number), pattern)  # type: ignore[assignment]
    sys.addaudithook(Death(output, journal, int(number) if kind == "change" else 0, pattern))
    sys.argv = ["vca", *arguments]
    from vca.cli import app

    app()


if __name__ == "__main__":
    main(*sys.argv[1:])
