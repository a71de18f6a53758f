"""The storage fails in the middle of a night: exit code and rows say so, and the next run publishes what is missing.

The servers are real: moto behind `tests.support.proxy`, which does the harm over HTTP.
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import nights
from tests.support.outcomes import assert_balanced, assert_mended
from tests.support.processes import titled
from tests.support.proxy import Harm, Proxy, Request, harmful_proxy
from tests.support.runs import Job
from tests.support.s3 import S3Server, s3_server
from tests.support.tally import TALLY
from vca.core.errors import CODES, ErrorCode
from vca.media.output_lock import LOCK
from vca.pipelines import run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

SEED = 23
TALLY.seeds["storage"] = SEED
READING, WRITING = "storage, reading", "storage, writing"
FILMS, TAGS = "films", "tags"
PATIENCE = {"max_attempts": "3", "read_timeout_s": "2", "connect_timeout_s": "2"}
"""Short, so that what fails for ever is reported in seconds."""
LESSON = "school/lesson-07.mp4"


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server(FILMS, TAGS) as running:
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    with harmful_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture
def reading(server: S3Server, proxy: Proxy, first: Job, tmp_path: Path) -> Job:
    """The first night with its archive behind the proxy."""
    server.upload_folder(Path(first.archive), FILMS)
    return Job(f"s3://{FILMS}", str(tmp_path / "out"), (*nights.SETTINGS, *patience("archive", proxy)))


@pytest.fixture
def writing(server: S3Server, proxy: Proxy, second: Job, stored: Path) -> Job:
    """The second night with its output behind the proxy; everything is decoded, nothing tagged."""
    server.upload_folder(stored, TAGS)
    server.client.delete_object(Bucket=TAGS, Key=LOCK)  # the dead driver's: fresh again, as it was only now put there
    return Job(second.archive, f"s3://{TAGS}", (*nights.SETTINGS, *patience("output", proxy)))


def patience(section: str, proxy: Proxy) -> list[str]:
    values = PATIENCE | {"endpoint_url": proxy.url}
    return [f"{section}.storage.{name}={value}" for name, value in values.items()]


def of_objects(request: Request) -> bool:
    """Reads one object, in place of the bucket."""
    return request.method in ("GET", "HEAD") and bool(request.key)


def from_the(n: int, which: Callable[[Request], bool], harm: Harm) -> Callable[[Request], Harm | None]:
    """This harm to the n-th such request (from 1) and to all that come later."""
    left = n

    def decide(request: Request) -> Harm | None:
        nonlocal left
        left -= which(request)
        return harm if left <= 0 else None

    return decide


def now_and_then(which: Callable[[Request], bool], harms: tuple[Harm, ...], share: float, seed: int):  # type: ignore[no-untyped-def]
    """One of these to a share of such requests."""
    chance = random.Random(seed)
    return lambda request: chance.choice(harms) if which(request) and chance.random() < share else None


def assert_only_transient_losses(job: Job, undisturbed: Job) -> None:
    """Whoever is not tagged as ever waits for the next run, with a code that says that the storage did it."""
    balanced = {row["key"]: row for row in job.query("FROM videos")}
    for row in undisturbed.query("FROM videos"):
        found = balanced[row["key"]]
        if found["status"] != row["status"]:
            assert found["status"] in ("quarantined", "deferred")
            assert CODES[ErrorCode(found["error_code"])].transient, found
    assert_balanced(job)


@pytest.mark.long
def test_reading_through_a_storm(reading: Job, proxy: Proxy, first: Job) -> None:
    """Refusals, resets, bodies that end early and silence, for more than half of the requests."""
    harms = (Harm.SLOW_DOWN, Harm.RESET, Harm.CUT, Harm.STALL)
    proxy.harm = now_and_then(of_objects, harms, 0.6, SEED)
    assert reading.tag() == run.EXIT_OK, reading.text
    assert len(proxy.done) >= 3
    TALLY.injected[READING] += len(proxy.done)
    assert_only_transient_losses(reading, first)
    proxy.harm = None
    assert reading.tag() == run.EXIT_OK, reading.text
    assert_mended(reading, first, READING, apart_from=("attempts",))


@pytest.mark.long
@pytest.mark.parametrize(
    ("n", "harm", "codes"),
    [
        (3, Harm.SLOW_DOWN, {"storage_error"}),
        (4, Harm.EXPIRED, {"access_denied"}),
        (3, Harm.STALL, {"storage_timeout", "storage_error"}),
        (1, Harm.RESET, {"storage_error"}),
        (2, Harm.CUT, {"storage_error"}),
    ],
)
def test_the_archive_fails_for_good_in_mid_run(
    reading: Job, proxy: Proxy, first: Job, n: int, harm: Harm, codes: set[str]
) -> None:
    """What was read before is published, the rest is quarantined and read by the next run; the exit code says it."""
    proxy.harm = from_the(n, of_objects, harm)
    assert reading.tag("run.failure_budget=0.05") == run.EXIT_OVER_BUDGET, reading.text
    TALLY.injected[READING] += 1
    failed = reading.query("SELECT error_code, will_retry FROM quarantine WHERE key <> 'damaged/notes.mp4'")
    assert failed
    assert {row["error_code"] for row in failed} <= codes
    assert all(row["will_retry"] for row in failed)
    assert_only_transient_losses(reading, first)
    proxy.harm = None
    assert reading.tag() == run.EXIT_OK, reading.text
    assert_mended(reading, first, READING, apart_from=("attempts",))


@pytest.mark.long
def test_the_listing_fails(reading: Job, proxy: Proxy, first: Job) -> None:
    """A run that does not know the archive touches nothing: a short list would mark videos as gone."""
    assert reading.tag() == run.EXIT_OK, reading.text
    before = reading.reader().current()
    for skipped in (0, 1):  # the look before the run, and the listing itself
        proxy.harm = from_the(1 + skipped, lambda request: not request.key, Harm.SLOW_DOWN)
        code, text = reading.attempt()
        TALLY.injected[READING] += 1
        assert code in (run.EXIT_CONFIG, run.EXIT_NOT_PUBLISHED)
        assert "archive.uri" in text.splitlines()[-1]
        assert reading.reader().current() == before
    proxy.harm = None
    assert reading.tag() == run.EXIT_OK, reading.text
    assert "nothing to do: all unchanged" in reading.text
    assert_mended(reading, first, READING)


@pytest.mark.long
def test_an_object_is_replaced_between_listing_and_reading(
    reading: Job, server: S3Server, proxy: Proxy, first: Job, demo_archive: Path
) -> None:
    """Its tags would be of one content and its fingerprint of another: it waits a night."""
    other = (demo_archive / "tech/phone-review.webm").read_bytes()
    original = (demo_archive / LESSON).read_bytes()

    def replace(request: Request) -> None:
        if of_objects(request) and request.key == LESSON:
            server.put(FILMS, LESSON, other)

    proxy.harm = replace
    assert reading.tag() == run.EXIT_OK, reading.text
    TALLY.injected[READING] += 1
    changed = reading.query("SELECT key, error_code, will_retry FROM quarantine WHERE error_code = 'object_changed'")
    assert changed == [{"key": LESSON, "error_code": "object_changed", "will_retry": True}]
    proxy.harm = None
    server.put(FILMS, LESSON, original)
    assert reading.tag() == run.EXIT_OK, reading.text
    assert_mended(reading, first, READING, apart_from=("attempts",))


@pytest.mark.long
def test_an_object_is_deleted_between_listing_and_reading(
    reading: Job, server: S3Server, proxy: Proxy, first: Job, demo_archive: Path
) -> None:
    """It is gone, which is no failure; when it comes back it is new."""
    original = (demo_archive / LESSON).read_bytes()

    def delete(request: Request) -> None:
        if of_objects(request) and request.key == LESSON:
            server.client.delete_object(Bucket=FILMS, Key=LESSON)

    proxy.harm = delete
    assert reading.tag() == run.EXIT_OK, reading.text
    TALLY.injected[READING] += 1
    assert reading.query(f"SELECT status FROM all_videos WHERE key = '{LESSON}'") == [{"status": "gone"}]
    proxy.harm = None
    server.put(FILMS, LESSON, original)
    assert reading.tag() == run.EXIT_OK, reading.text
    assert_mended(reading, first, READING)


SIDECAR = "school/lesson-07.en.srt"


@pytest.mark.long
def test_a_sidecar_is_replaced_between_listing_and_reading(
    reading: Job, server: S3Server, proxy: Proxy, first: Job, demo_archive: Path
) -> None:
    """Like its video: words of the new file are never published under the fingerprint of the old one."""
    original = (demo_archive / SIDECAR).read_bytes()

    def replace(request: Request) -> None:
        if of_objects(request) and request.key == SIDECAR:
            server.put(FILMS, SIDECAR, b"1\n00:00:01,000 --> 00:00:02,000\nnot the words that were listed\n")

    proxy.harm = replace
    assert reading.tag() == run.EXIT_OK, reading.text
    TALLY.injected[READING] += 1
    assert reading.query("FROM transcripts WHERE text LIKE 'not the words%'") == []
    changed = reading.query("SELECT key, will_retry FROM quarantine WHERE error_code = 'object_changed'")
    assert changed == [{"key": LESSON, "will_retry": True}]
    proxy.harm = None
    server.put(FILMS, SIDECAR, original)
    assert reading.tag() == run.EXIT_OK, reading.text
    assert_mended(reading, first, READING, apart_from=("attempts",))


@pytest.mark.long
@pytest.mark.parametrize("harm", [Harm.SLOW_DOWN, Harm.CUT])
def test_the_features_cannot_be_read_by_a_worker(writing: Job, proxy: Proxy, second: Job, harm: Harm) -> None:
    """The driver is told by Ray: it is a storage that failed, not a defect, and features are not made again."""
    before = writing.reader().current()
    features = re.compile(r"features/.+/part-.+\.parquet")
    pid = os.getpid()

    def decide(request: Request) -> Harm | None:
        # The driver's own look at the narrow columns comes first and passes.
        read_by_worker = request.method == "GET" and features.fullmatch(request.key) and titled(pid, "PredictStage")
        return harm if read_by_worker else None

    proxy.harm = decide
    code, text = writing.attempt()
    TALLY.injected[WRITING] += 1
    assert proxy.done
    assert code == run.EXIT_NOT_PUBLISHED, text
    assert "output: " in text.splitlines()[-1]
    assert writing.reader().current() == before
    proxy.harm = None
    assert writing.tag() == run.EXIT_OK, writing.text
    assert_mended(writing, second, WRITING)


def writes(request: Request) -> bool:
    return request.writes


N_WRITES = 34
"""Of the second night, from the probe of the pre-flight to the removal of the staging."""
_CHANCE = random.Random(SEED)
OUTAGES = [
    (n, _CHANCE.choice((Harm.SLOW_DOWN, Harm.RESET, Harm.EXPIRED, Harm.LOST_ANSWER)))
    for n in sorted(_CHANCE.sample(range(3, N_WRITES), 16))
]


@pytest.mark.parametrize(
    ("n", "harm"),
    [pytest.param(*outage, marks=() if i == 10 else pytest.mark.long) for i, outage in enumerate(OUTAGES)],
)
def test_the_output_fails_for_good_in_mid_run(
    writing: Job, server: S3Server, proxy: Proxy, second: Job, n: int, harm: Harm
) -> None:
    """Readers see the old night or the new one; one line and code 3; the next run ends it."""
    proxy.harm = from_the(n, writes, harm)
    code, text = writing.attempt()
    TALLY.injected[WRITING] += 1
    assert proxy.done
    proxy.harm = None
    # A storage that refuses everything also refuses to delete the lock: instead of the three minutes of its lease.
    server.client.delete_object(Bucket=TAGS, Key=LOCK)
    gone = writing.query("SELECT count(*) AS n FROM all_videos WHERE status = 'gone'")[0]["n"]
    assert code == (run.EXIT_OK if gone else run.EXIT_NOT_PUBLISHED) or harm is Harm.LOST_ANSWER, text
    if code != run.EXIT_OK:
        assert "output.uri" in text.splitlines()[-1]
    assert writing.tag() == run.EXIT_OK, writing.text
    assert_mended(writing, second, WRITING)


@pytest.mark.long
def test_writing_through_a_storm(writing: Job, proxy: Proxy, second: Job) -> None:
    """A fifth of all requests fails, some after the server has done them: what is repeated is not done twice."""
    harms = (Harm.SLOW_DOWN, Harm.RESET, Harm.LOST_ANSWER)
    proxy.harm = now_and_then(lambda request: bool(request.key), harms, 0.2, SEED + 1)
    for _ in range(5):  # three tries of a request are not always enough
        code, text = writing.attempt()
        if code == run.EXIT_OK:
            break
        assert code in (run.EXIT_NOT_PUBLISHED, run.EXIT_CONFIG), text
        assert "output" in text.splitlines()[-1]
    TALLY.injected[WRITING] += len(proxy.done)
    proxy.harm = None
    assert writing.tag() == run.EXIT_OK, writing.text
    assert_mended(writing, second, WRITING)
