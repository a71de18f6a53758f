"""Two runs on one bucket: the lock is an object made by a conditional PUT, renewed, and free when its holder died."""

import json
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.locks import start_holder
from tests.support.processes import wait_for
from tests.support.s3 import Answer, S3Server, error_answer, faulty_server, s3_server
from vca.core.errors import ConfigError, PublishError
from vca.core.storage import StorageConfig
from vca.media.output import Output, OutputConfig
from vca.media.output_lock import LOCK, Lease, output_lock
from vca.pipelines.publish import point_to
from vca.tables.manifest import CURRENT, open_output

pytestmark = pytest.mark.integration

SHORT = Lease(renew_s=0.3, stale_s=3.0)
ASLEEP = Lease(renew_s=60.0, stale_s=1.0)
"""A holder that does not come to renew: stopped, swapped out, cut off."""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server("tags") as running:
        yield running


@pytest.fixture
def output(server: S3Server, request: pytest.FixtureRequest) -> Output:
    """A prefix for each test."""
    return Output(OutputConfig(uri=f"s3://tags/{request.node.name}", storage=server.storage()))


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_the_second_is_told_about_the_first(output: Output) -> None:
    """One line with who, where, since when and when the lock of a dead one is free; afterwards no object is left."""
    with output_lock(output, "run one") as lock:
        before = output.read_bytes(LOCK)
        with pytest.raises(ConfigError) as caught, output_lock(output, "run two"):
            raise AssertionError("two holders")
        assert output.read_bytes(LOCK) == before
        lock.check()
    message = str(caught.value)
    assert message.startswith(f"output.uri = {output.config.uri!r}: in use by run one on ")
    assert "a dead holder's lock is free 180 s after its last renewal, 0 s ago" in message or " 1 s ago" in message
    assert "\n" not in message
    assert output.list() == []


def test_a_holder_that_lives_keeps_the_lock(output: Output) -> None:
    """Longer than a lock lasts: renewing keeps everybody else out."""
    with output_lock(output, "run one", SHORT) as lock:
        end = time.monotonic() + 2 * SHORT.stale_s
        while time.monotonic() < end:
            with pytest.raises(ConfigError, match="in use by run one"), output_lock(output, "run two", SHORT):
                raise AssertionError("two holders")
            time.sleep(0.2)
        assert json.loads(output.read_bytes(LOCK))["renewals"] > 5
        lock.check()


def test_of_processes_started_together_one_wins(
    output: Output, tmp_path: Path, holders: list[subprocess.Popen[bytes]]
) -> None:
    """The race is decided by the storage, and every loser names the winner."""
    names = [f"run-{n}" for n in range(4)]
    holders += [start_holder(output.config, name, tmp_path) for name in names]
    wait_for(lambda: len(list(tmp_path.glob("*.ready"))) == len(names), "all at the start")
    (tmp_path / "go").touch()
    wait_for(lambda: len(list(tmp_path.glob("*.refused"))) == len(names) - 1, "all but one refused")
    wait_for(lambda: list(tmp_path.glob("*.holds")), "the winner")
    (winner,) = (path.stem for path in tmp_path.glob("*.holds"))
    assert all(f"in use by {winner} on " in path.read_text() for path in tmp_path.glob("*.refused"))
    (tmp_path / f"{winner}.end").touch()
    assert [process.wait() for process in holders] == [0] * len(names)
    assert output.list() == []


def test_the_lock_of_a_killed_process_is_taken_over(
    output: Output, tmp_path: Path, holders: list[subprocess.Popen[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    """Not before it is stale; then with a line that says whose it was."""
    (tmp_path / "go").touch()
    holders.append(start_holder(output.config, "run dead", tmp_path, SHORT.renew_s, SHORT.stale_s))
    wait_for((tmp_path / "run dead.holds").exists, "a holder")
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    killed = time.monotonic()
    with pytest.raises(ConfigError, match="in use by run dead on"), output_lock(output, "run two", SHORT):
        pass

    def take() -> bool:
        try:
            with output_lock(output, "run two", SHORT) as lock:
                lock.check()
        except ConfigError:
            return False
        return True

    with caplog.at_level(logging.WARNING):
        wait_for(take, "the lock of a dead process", every_s=0.1)
    assert time.monotonic() - killed > SHORT.stale_s - 1.5, "the server's clock counts whole seconds"
    assert "left by run dead on" in caplog.text
    assert "taken over" in caplog.text


def test_a_lost_lock_is_noticed_before_publishing(output: Output) -> None:
    """A holder that was stopped for too long ends without publishing, and leaves the lock to who took it."""
    with output_lock(output, "run one", ASLEEP) as first:
        time.sleep(2.1)
        with output_lock(output, "run two", ASLEEP) as second:
            with pytest.raises(PublishError, match=r"run two on .* took it while this worked; nothing published"):
                first.check()
            second.check()
    assert output.list() == [], "the second has deleted its own"


def test_the_first_leaves_the_lock_of_the_second(output: Output) -> None:
    """Giving back a lock that somebody else has taken deletes nothing."""
    first = output_lock(output, "run one", ASLEEP)
    first.__enter__()
    time.sleep(2.1)
    with output_lock(output, "run two", ASLEEP) as second:
        first.__exit__(None, None, None)
        second.check()
        assert json.loads(output.read_bytes(LOCK))["work"] == "run two"


def test_an_object_that_says_nothing(output: Output) -> None:
    """Whatever lies there counts while it is young: it may be the lock of a newer version."""
    output.write_bytes(LOCK, b"\xff" * 100_000)
    with pytest.raises(ConfigError, match="in use by somebody who does not say so"), output_lock(output, "run", ASLEEP):
        pass
    time.sleep(2.1)
    with output_lock(output, "run", ASLEEP):
        assert json.loads(output.read_bytes(LOCK))["work"] == "run"


def _not_implemented(status: int, code: str) -> object:
    def answer(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        if method in ("GET", "HEAD"):
            return error_answer(404, "NoSuchKey")
        if "If-None-Match" in headers or "If-Match" in headers:
            return error_answer(status, code)
        return Answer(200, headers={"ETag": '"e"'})

    return answer


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")], ids=["501", "400"])
def test_a_storage_without_conditional_writes_does_not_stop_a_run(
    status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned once that nothing keeps two runs apart, and the pointer is written all the same."""
    with faulty_server(_not_implemented(status, code)) as address:  # type: ignore[arg-type]
        storage = StorageConfig(endpoint_url=address, max_attempts=1)
        output = Output(OutputConfig(uri="s3://tags/out", storage=storage))
        with output_lock(output, "run one") as lock:
            lock.check()
            point_to(output, "r1", None)
    assert caplog.text.count("start only one at a time") == 1


@pytest.mark.parametrize(
    ("code", "said"), [("ExpiredToken", "access denied"), ("RequestTimeout", "did not answer in time")]
)
def test_other_refusals_are_no_missing_feature(code: str, said: str) -> None:
    """Servers say 400 of tokens and time-outs, too: to go on without a lock would be wrong."""
    with faulty_server(_not_implemented(400, code)) as address:  # type: ignore[arg-type]
        storage = StorageConfig(endpoint_url=address, max_attempts=1)
        output = Output(OutputConfig(uri="s3://tags/out", storage=storage))
        with pytest.raises(OSError, match=said), output_lock(output, "run one"):
            pass


class Relay:
    """A server in front of another one that tampers with requests or answers."""

    def __init__(self, target: str) -> None:
        relay = self
        self.dropped_headers: tuple[str, ...] = ()
        self.lost_answers = 0
        """PUT requests that are carried out but answered with an error."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {n: v for n, v in self.headers.items() if n.lower() not in relay.dropped_headers}
                connection = HTTPConnection(urlsplit(target).netloc)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
                if self.command == "PUT" and relay.lost_answers:
                    relay.lost_answers -= 1
                    status, content = 500, b""
                self.send_response_only(status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond  # noqa: N815 (names of http.server)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def relay(server: S3Server) -> Iterator[Relay]:
    running = Relay(server.endpoint_url)
    yield running
    running.close()


def test_a_storage_that_ignores_conditions_is_found_out(
    output: Output, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    """It would let everybody in: better to say so than to trust a lock that is none."""
    relay.dropped_headers = ("if-none-match", "if-match")
    blind = Output(OutputConfig(uri=output.config.uri, storage=StorageConfig(endpoint_url=relay.address)))
    with output_lock(blind, "run one") as lock:
        lock.check()
        assert output.list() == []
    assert "it ignores their condition" in caplog.text


def test_an_answer_that_gets_lost_is_no_lost_race(output: Output, relay: Relay) -> None:
    """The library repeats the request, and the repeated one meets what the first has written."""
    storage = StorageConfig(endpoint_url=relay.address, max_attempts=3)
    shaky = Output(OutputConfig(uri=output.config.uri, storage=storage))
    relay.lost_answers = 1
    with output_lock(shaky, "run one") as lock:
        relay.lost_answers = 1
        lock.check()
        with pytest.raises(ConfigError, match="in use by run one"), output_lock(output, "run two"):
            pass
        relay.lost_answers = 1
        assert shaky.write_bytes_if(CURRENT, b"one", None)
        relay.lost_answers = 1
    assert output.list() == [CURRENT]
    assert relay.lost_answers == 0


def test_the_pointer_is_swapped_only_if_it_is_the_one_that_was_read(output: Output) -> None:
    """The last guard, should two runs get past all others: the slower one publishes nothing."""
    seen = output.version(CURRENT)
    point_to(output, "r1", seen)
    with pytest.raises(PublishError, match="another run was published"):
        point_to(output, "r2", seen)
    read = output.version(CURRENT)
    point_to(output, "r2", read)
    with pytest.raises(PublishError, match="another run was published"):
        point_to(output, "r3", read)
    config = output.config
    assert b'"r2"' in output.read_bytes(CURRENT)
    assert open_output(config.uri, config.storage).runs() == []
