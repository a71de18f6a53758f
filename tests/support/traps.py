"""Traps for code that opens what it should not: a file that notices each opening, a port that notices each caller."""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN = 0x20


class Canary:
    """A file that nobody may open. inotify, because times of access are not kept on every mount."""

    def __init__(self, path: Path) -> None:
        self.path = path
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN) >= 0

    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._fd)


class Port:
    """A listening port of 127.0.0.1 that nobody may call."""

    def __init__(self) -> None:
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._tcp.setblocking(False)
        self.number: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.number))
        self._udp.setblocking(False)

    def was_called(self) -> bool:
        """Also over UDP under the same number."""
        for look in (lambda: self._tcp.accept()[0].close(), lambda: self._udp.recv(1)):
            try:
                look()
            except BlockingIOError:
                continue
            return True
        return False

    def close(self) -> None:
        self._tcp.close()
        self._udp.close()


@contextmanager
def traps(path: Path) -> Iterator[tuple[Canary, Port]]:
    canary, port = Canary(path), Port()
    try:
        yield canary, port
    finally:
        canary.close()
        port.close()
