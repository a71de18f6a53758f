"""A run ends gently when its time or its budget is up, and says what holds it up."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.pipelines.watch import DEADLINE, Watch, Watchdog, Work, next_deadline

READ = Work("read", "a.mp4", None, "host")
TAG = Work("tag", "a.mp4", None, "host")
NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("06:00", datetime(2026, 3, 29, 6, 0, tzinfo=UTC)),
        ("06:00Z", datetime(2026, 3, 29, 6, 0, tzinfo=UTC)),
        ("01:30", datetime(2026, 3, 30, 1, 30, tzinfo=UTC)),  # not this very moment
        ("06:00+02:00", datetime(2026, 3, 29, 4, 0, tzinfo=UTC)),
        ("01:00+02:00", datetime(2026, 3, 29, 23, 0, tzinfo=UTC)),
        ("23:00-05:30", datetime(2026, 3, 29, 4, 30, tzinfo=UTC)),  # still the evening before, over there
    ],
)
def test_next_deadline(text: str, moment: datetime) -> None:
    """The next time the clock shows it, in the zone that was written."""
    assert next_deadline(text, NOW) == moment


@given(st.from_regex(DEADLINE, fullmatch=True), st.timedeltas(timedelta(0), timedelta(days=36500)).map(NOW.__add__))
def test_a_deadline_is_within_a_day(text: str, now: datetime) -> None:
    """Whatever the offset: never in the past, never later than tomorrow."""
    assert timedelta(0) < next_deadline(text, now) - now <= timedelta(days=1)


def test_nothing_that_can_wait_is_begun_after_the_deadline() -> None:
    """What was decoded is still tagged: `may_defer` is false for it."""
    watch = Watch(datetime.now(UTC) - timedelta(seconds=1))
    assert not watch.begin(READ, may_defer=True)
    assert not watch.begin(TAG, may_defer=True)
    assert watch.begin(TAG, may_defer=False)
    assert Watch(datetime.now(UTC) + timedelta(hours=1)).begin(READ, may_defer=True)


def test_a_spent_budget_stops_reading_only() -> None:
    """Tagging stored videos again decodes nothing."""
    watch = Watch(budget_us=1000)
    assert watch.begin(READ, may_defer=True)
    watch.end(READ, decoded_us=999)
    assert watch.begin(READ, may_defer=True)
    watch.end(READ, decoded_us=1)
    assert not watch.begin(READ, may_defer=True)
    assert watch.begin(TAG, may_defer=True)


def test_the_oldest_work_is_named() -> None:
    """Work that ended, or that another worker began anew, is not."""
    watch = Watch()
    assert watch.oldest() is None
    watch.begin(READ, may_defer=True)
    watch.begin(TAG, may_defer=True)
    watch.begin(Work("read", "a.mp4", None, "other"), may_defer=True)
    oldest = watch.oldest()
    assert oldest is not None
    assert oldest.stage == "tag"
    watch.end(TAG)
    oldest = watch.oldest()
    assert oldest is not None
    assert (oldest.stage, oldest.worker) == ("read", "other")


def test_the_watchdog_says_a_stall_once_and_again_when_its_age_doubled() -> None:
    """A log of one line a second would bury the name of the video."""
    ages = iter([1.0, 10.0, 12.0, 19.0, 21.0, 30.0])
    done = threading.Event()
    said: list[str] = []

    def oldest() -> Work | None:
        age_s = next(ages, None)
        if age_s is None:
            done.set()
            return None
        return Work("encode", "slow\n.mp4", 3, "host", age_s)

    with Watchdog(oldest, stall_s=5.0, every_s=0.001, say=said.append):
        assert done.wait(10.0)
    assert len(said) == 2
    assert said[0] == "held up: encode of 'slow\\n.mp4' segment 3 has been going on for 0.2 min on host"
