"""Who works on what, and whether more may be begun. Nothing here knows Ray.

Workers tell a `Watch` when they begin and end a piece of work. Through it the run is stopped gently (deadline, budget),
and a person learns which video holds it up.
"""

import math
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self

DEADLINE = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])?")


def next_deadline(deadline: str, now: datetime) -> datetime:
    """The first moment after `now` at which the clock says `deadline` (see `DEADLINE`; without an offset in UTC)."""
    found = DEADLINE.fullmatch(deadline)
    assert found is not None, "the configuration has checked it"
    zone = datetime.fromisoformat(f"2000-01-01T00:00{found[3] or 'Z'}").tzinfo
    moment = now.astimezone(zone).replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
    return (moment if moment > now else moment + timedelta(days=1)).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work that was begun and has not ended."""

    stage: str
    """ "read", "encode" or "tag"."""
    key: str
    segment_index: int | None
    """None: the first look at a video, or all of it."""
    worker: str
    age_s: float = 0.0

    def describe(self) -> str:
        segment = "" if self.segment_index is None else f" segment {self.segment_index}"
        return f"{self.stage} of {self.key!r}{segment} has been going on for {self.age_s / 60:.1f} min on {self.worker}"


class Told(Protocol):
    """What a worker needs of a watch: this one, or the far end of one in another process."""

    def begin(self, work: Work, may_defer: bool) -> bool: ...

    def end(self, work: Work, decoded_us: int = 0) -> None: ...


def work_here(stage: str, key: str, segment_index: int | None) -> Work:
    """A piece of work of this process."""
    return Work(stage, key, segment_index, socket.gethostname())


class Watch:
    """`begin` says whether the work may be done: what may be deferred is not begun after the deadline, and nothing is
    read once `budget_us` of video are decoded. Work of a killed worker is begun again by another one under its name.
    """

    def __init__(self, deadline: datetime | None = None, budget_us: float = math.inf) -> None:
        self._deadline, self._left_us = deadline, budget_us
        self._begun: dict[tuple[str, str, int | None], tuple[Work, float]] = {}

    def begin(self, work: Work, may_defer: bool) -> bool:
        late = self._deadline is not None and datetime.now(UTC) >= self._deadline
        if may_defer and (late or (work.stage == "read" and self._left_us <= 0)):
            return False
        self._begun[work.stage, work.key, work.segment_index] = (work, time.monotonic())
        return True

    def end(self, work: Work, decoded_us: int = 0) -> None:
        self._begun.pop((work.stage, work.key, work.segment_index), None)
        self._left_us -= decoded_us

    def oldest(self) -> Work | None:
        """What has been going on for longest."""
        if not self._begun:
            return None
        work, began = min(self._begun.values(), key=lambda entry: entry[1])
        return replace(work, age_s=time.monotonic() - began)


class Watchdog:
    """Says what holds up a run, in a thread of its own: the driver's hangs on results that do not come.

    `oldest` is asked every `every_s`; work older than `stall_s` is said once, and again whenever its age has doubled.
    """

    def __init__(
        self, oldest: Callable[[], Work | None], stall_s: float, every_s: float, say: Callable[[str], None]
    ) -> None:
        self._oldest, self._stall_s, self._every_s, self._say = oldest, stall_s, every_s, say
        self._stopped = threading.Event()
        self._said: dict[tuple[str, str, int | None], float] = {}
        self._thread = threading.Thread(target=self._watch, name="vca-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._every_s):
            work = self._oldest()
            if work is None:
                continue
            name = (work.stage, work.key, work.segment_index)
            if work.age_s >= max(self._stall_s, 2 * self._said.get(name, 0.0)):
                self._said[name] = work.age_s
                self._say(f"held up: {work.describe()}")
