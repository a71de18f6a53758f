"""Notices that the head node of a Ray cluster is gone, before Ray ends the driver for it.

Without its head Ray waits for a minute (`gcs_rpc_server_reconnect_timeout_s`) and then ends every process of the
cluster from C++, the driver too: with exit code 1, without a word, and no Python code gets to run. For `vca tag` code 1
would claim that the tables are published.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 5.0
PATIENCE_S = 40.0
"""A head that was started again comes back sooner, and Ray itself has not given up by then."""


@contextmanager
def head_watched(
    address: str, lost: Callable[[], None], every_s: float = EVERY_S, patience_s: float = PATIENCE_S
) -> Iterator[None]:
    """Call `lost` from another thread, once, if nothing at `host:port` has taken a connection for `patience_s`."""
    host, _, port = address.rpartition(":")
    ended = threading.Event()

    def watch() -> None:
        last_s = time.monotonic()
        while not ended.wait(every_s):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=every_s).close()
                last_s = time.monotonic()
            except OSError:
                if time.monotonic() - last_s > patience_s and not ended.is_set():
                    lost()
                    return

    threading.Thread(target=watch, daemon=True, name="head watch").start()
    try:
        yield
    finally:
        ended.set()
