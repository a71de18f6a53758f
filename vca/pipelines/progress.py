"""Progress lines that a person can follow in a log: done, rate, time left, failures."""

import time
from collections.abc import Callable


def hours(seconds: float) -> str:
    """Media time for people: `1.25 h` or `4.2 min`."""
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:d}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Counts work and says a line every `every_s` seconds.

    The time left follows the bytes where sizes are known, else the number of videos.
    """

    def __init__(
        self,
        stage: str,
        videos: int,
        size_bytes: int,
        every_s: float,
        show: Callable[[str, dict[str, float], int], None],
    ) -> None:
        self._stage, self._videos, self._bytes = stage, videos, size_bytes
        self._every_s, self._show = every_s, show
        self._started = self._last = time.monotonic()
        self._n_shown = 0
        self._unsaid = False
        self._done_videos = self._done_bytes = self._media_us = self._failed = 0

    def add(self, videos: int, size_bytes: int = 0, media_us: int = 0, failed: int = 0) -> None:
        self._done_videos += videos
        self._done_bytes += size_bytes
        self._media_us += media_us
        self._failed += failed
        self._unsaid = True
        if time.monotonic() - self._last >= self._every_s:
            self._say()

    def close(self) -> None:
        """Say the last line, if something happened since the one before."""
        if self._unsaid:
            self._say()

    def _say(self) -> None:
        self._last = time.monotonic()
        self._unsaid = False
        elapsed = self._last - self._started
        share = self._done_bytes / self._bytes if self._bytes else self._done_videos / max(1, self._videos)
        parts = [f"[{clock(elapsed)}] {self._stage} {self._done_videos}/{self._videos} videos"]
        if self._media_us:
            media_s = self._media_us / 1e6
            parts.append(f"{hours(media_s)} of media")
            parts.append(f"{media_s / max(elapsed, 1e-9):.1f} x real time")
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._done_videos < self._videos and share > 0:
            parts.append(f"about {clock(elapsed * (1 - share) / share)} left")
        metrics = {
            f"{self._stage}_videos": float(self._done_videos),
            f"{self._stage}_media_s": self._media_us / 1e6,
            f"{self._stage}_failed": float(self._failed),
        }
        self._show(", ".join(parts), metrics, self._n_shown)
        self._n_shown += 1
