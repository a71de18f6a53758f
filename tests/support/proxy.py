"""An HTTP proxy in front of an S3 server that does harm on the way: refuses, stalls, cuts bodies short, resets."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from s3fs import S3FileSystem

from tests.support.s3 import Answer, error_answer


class Harm(StrEnum):
    """What the client sees."""

    SLOW_DOWN = "503 SlowDown"
    STALL = "no answer"
    CUT = "a body that ends early"
    RESET = "a reset connection"
    LOST_ANSWER = "a reset connection, though the server did what was asked"
    EXPIRED = "403 ExpiredToken"


@dataclass(frozen=True)
class Request:
    """One request. `key` is the path below the bucket; of a copy, `copied` is the source's."""

    method: str
    bucket: str
    key: str
    query: str
    copied: str | None

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE")


@dataclass
class Proxy:
    """Handle of a running proxy. `harm` decides about each request, one at a time; None lets all pass."""

    url: str
    harm: Callable[[Request], Harm | None] | None = None
    done: list[tuple[Request, Harm]] = field(default_factory=list)
    """The harm that was done, in order."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint_url: str, stall_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(endpoint_url)
        self.stall_s = stall_s
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_address[1]}")

    def decide(self, request: Request) -> Harm | None:
        with self.lock:
            harm = self.proxy.harm(request) if self.proxy.harm is not None else None
            if harm is not None:
                self.proxy.done.append((request, harm))
            return harm


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def respond(self) -> None:
        body = self._body()
        path = urlsplit(self.path)
        bucket, _, key = unquote(path.path).removeprefix("/").partition("/")
        request = Request(self.command, bucket, key, path.query, self.headers.get("x-amz-copy-source"))
        harm = self.server.decide(request)
        if harm is Harm.SLOW_DOWN:
            self._send(error_answer(503, "SlowDown", "Please reduce your request rate."))
        elif harm is Harm.EXPIRED:
            self._send(error_answer(403, "ExpiredToken", "The provided token has expired."))
        elif harm is Harm.RESET:
            self._reset()
        elif harm is Harm.STALL:
            self.server.stopped.wait(self.server.stall_s)
            self._reset()
        else:
            answer = self._forwarded(body)
            if harm is Harm.LOST_ANSWER:
                self._reset()
            else:
                cut = len(answer.body) // 2 if harm is Harm.CUT else None
                self._send(Answer(answer.status, answer.body, answer.headers, cut))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond  # noqa: N815 (names of http.server)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forwarded(self, body: bytes) -> Answer:
        target = self.server.target
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        try:
            connection.request(self.command, self.path, body, _end_to_end(self.headers.items()) | _length(body))
            response = connection.getresponse()
            headers = _end_to_end(response.getheaders())
            if self.command == "HEAD":  # the length of a body that is not sent
                headers["Content-Length"] = response.getheader("Content-Length") or "0"
            return Answer(response.status, response.read(), headers)
        finally:
            connection.close()

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in (_length(answer.body) | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut_at])
        self.close_connection = self.close_connection or answer.cut_at is not None

    def _reset(self) -> None:
        # Closing with a linger of 0 s sends RST in place of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def handle(self) -> None:
        with suppress(OSError):  # the client left
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):  # after a reset nothing can be flushed
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


def _end_to_end(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {n: v for n, v in headers if n.lower() not in ("transfer-encoding", "connection", "content-length")}


def _length(body: bytes) -> dict[str, str]:
    return {"Content-Length": str(len(body))}


@contextmanager
def harmful_proxy(endpoint_url: str, stall_s: float = 3.0) -> Iterator[Proxy]:
    """A proxy on a free port of 127.0.0.1 for the server at `endpoint_url`."""
    server = _Server(endpoint_url, stall_s)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.proxy
    finally:
        S3FileSystem.clear_instance_cache()  # fsspec would hand out clients of the closed port
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
