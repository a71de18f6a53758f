"""A head node that is gone is noticed, one that is there or comes back is not taken for gone."""

import socket
import threading
import time

from vca.pipelines.head_watch import head_watched


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=100)


def test_a_head_that_is_gone_is_told_once() -> None:
    """After the patience, from another thread, and never after the block."""
    lost: list[float] = []
    with listener() as server:
        port = server.getsockname()[1]
        with head_watched(f"127.0.0.1:{port}", lambda: lost.append(time.monotonic()), every_s=0.05, patience_s=0.3):
            time.sleep(0.5)
            assert lost == [], "it was there all the time"
            server.close()
            gone_s = time.monotonic()
            while not lost and time.monotonic() < gone_s + 60:
                time.sleep(0.01)
            assert len(lost) == 1
            assert lost[0] - gone_s > 0.2
            time.sleep(0.1)
    assert len(lost) == 1


def test_a_head_that_comes_back_is_forgiven() -> None:
    """It was away for less than the patience; the block then ends in peace although nothing listens any more."""
    lost = threading.Event()
    server = listener()
    port = server.getsockname()[1]
    with head_watched(f"127.0.0.1:{port}", lost.set, every_s=0.1, patience_s=3.0):
        server.close()
        time.sleep(0.2)
        server = listener(port)
        time.sleep(3.5)
        server.close()
    time.sleep(0.1)
    assert not lost.is_set()
