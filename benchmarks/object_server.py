"""A read-only S3 server for one folder, which counts the bytes that it hands out. In a process of its own, so that its
memory and its time are not those of the job.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "videos"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
}


@dataclass(frozen=True, slots=True)
class ObjectServer:
    """Handle of a running server."""

    endpoint_url: str
    _sent: Any

    @property
    def sent_bytes(self) -> int:
        """Of the bodies of all objects so far."""
        return int(self._sent.value)


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    """Serve the files of `folder` as the bucket `BUCKET`; the environment has credentials for it meanwhile."""
    context = multiprocessing.get_context("spawn")
    sent, port = context.Value("q", 0), context.Queue()
    server = context.Process(target=_serve, args=(str(folder), sent, port), daemon=True)
    server.start()
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield ObjectServer(f"http://127.0.0.1:{port.get(timeout=60)}", sent)
    finally:
        server.terminate()
        server.join()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _serve(folder: str, sent: Any, port: Any) -> None:
    root = Path(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            if bucket != BUCKET:
                self._answer(404, {})
            elif not key:
                self._list()
            else:
                self._object(root / key)

        do_HEAD = do_GET  # noqa: N815

        def _list(self) -> None:
            entries = "".join(
                f"<Contents><Key>{escape(path.name)}</Key><LastModified>{_modified(path):%FT%TZ}</LastModified>"
                f"<ETag>&quot;{_etag(path)}&quot;</ETag><Size>{path.stat().st_size}</Size></Contents>"
                for path in sorted(root.iterdir())
            )
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
            self._answer(200, {"Content-Type": "application/xml", "Content-Length": str(len(body))})
            self.wfile.write(body)

        def _object(self, path: Path) -> None:
            if not path.is_file():
                self._answer(404, {"Content-Length": "0"})
                return
            size = path.stat().st_size
            first, last, status = 0, size - 1, 200
            if wanted := self.headers.get("Range"):
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last, status = int(start), min(int(end or size), size - 1), 206
            self._answer(
                status,
                {
                    "Content-Length": str(last - first + 1),
                    "Content-Range": f"bytes {first}-{last}/{size}",
                    "ETag": f'"{_etag(path)}"',
                    "Last-Modified": format_datetime(_modified(path), usegmt=True),
                    "Accept-Ranges": "bytes",
                },
            )
            if self.command == "HEAD":
                return
            self.wfile.flush()
            done, wanted_bytes = 0, last - first + 1
            try:
                with path.open("rb") as file:
                    while done < wanted_bytes:
                        done += os.sendfile(self.connection.fileno(), file.fileno(), first + done, wanted_bytes - done)
            finally:  # a client that leaves in the middle has had what it got
                with sent.get_lock():
                    sent.value += done

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def handle(self) -> None:
            with suppress(OSError):  # the client left
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port.put(server.server_address[1])
    server.serve_forever()


def _etag(path: Path) -> str:
    info = path.stat()
    return hashlib.md5(f"{path.name} {info.st_size} {info.st_mtime_ns}".encode(), usedforsecurity=False).hexdigest()


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
