"""S3 servers over real HTTP for tests, in this process; other processes reach them by their address.

`s3_server` is moto, which behaves. `faulty_server` answers what the test wants, for what moto cannot do: refuse, stall,
break off.
"""

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vca.core.storage import StorageConfig

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-access-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
REMOVED = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)


@contextmanager
def environment(values: Mapping[str, str], removed: tuple[str, ...] = ()) -> Iterator[None]:
    """Set and remove environment variables for the length of the block. Child processes inherit them."""
    before = {name: os.environ.get(name) for name in (*values, *removed)}
    try:
        for name in removed:
            os.environ.pop(name, None)
        os.environ.update(values)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class S3Server:
    """Handle of a running server. `client` is a boto3 client, for what the code under test must not do itself."""

    def __init__(self, endpoint_url: str) -> None:
        import boto3

        self.endpoint_url = endpoint_url
        self.client: Any = boto3.session.Session().client("s3", endpoint_url=endpoint_url)

    def storage(self, **changes: Any) -> StorageConfig:
        """Settings that lead to this server."""
        return StorageConfig(**{"endpoint_url": self.endpoint_url, "max_attempts": 2, **changes})

    def create_bucket(self, bucket: str) -> None:
        self.client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def upload_folder(self, folder: Path, bucket: str, prefix: str = "") -> list[str]:
        """Upload every file below `folder`; returns the keys relative to `prefix`, sorted."""
        keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        start = prefix.strip("/") + "/" if prefix.strip("/") else ""
        for key in keys:
            self.put(bucket, start + key, (folder / key).read_bytes())
        return keys


@contextmanager
def s3_server(*buckets: str) -> Iterator[S3Server]:
    """A moto server on a free port of 127.0.0.1 with these (empty) buckets; `AWS_*` variables are dummies meanwhile."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    with environment(ENVIRONMENT, REMOVED):
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        try:
            host, port = moto.get_host_and_port()
            endpoint_url = f"http://{host}:{port}"
            # moto keeps its objects in module globals: an earlier server of this process has left its own.
            reset = urllib.request.Request(f"{endpoint_url}/moto-api/reset", method="POST")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(reset, timeout=10).close()
            server = S3Server(endpoint_url)
            for bucket in buckets:
                server.create_bucket(bucket)
            yield server
        finally:
            S3FileSystem.clear_instance_cache()  # fsspec would hand out clients of the dead server
            moto.stop()


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; `cut_at` closes the connection after so many bytes of the body, `wait_s` delays the answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    wait_s: float = 0.0


def error_answer(status: int, code: str, message: str = "no") -> Answer:
    """An S3 error document."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


@contextmanager
def faulty_server(answer: Callable[[str, str, Mapping[str, str]], Answer]) -> Iterator[str]:
    """Serve `answer(method, path with query, headers)`; yields the address."""
    from s3fs import S3FileSystem

    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = answer(self.command, self.path, self.headers)
            stopped.wait(reply.wait_s)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut_at])
            self.close_connection = self.close_connection or reply.cut_at is not None

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond  # noqa: N815 (names of http.server)

        def log_message(self, *_: object) -> None:
            pass

    with environment(ENVIRONMENT, REMOVED):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            S3FileSystem.clear_instance_cache()
            stopped.set()
            server.shutdown()
            server.server_close()
            thread.join()
