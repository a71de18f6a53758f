"""Names that mean the same tomorrow: videos, their content, feature sets, runs.

All are truncated SHA-256 over canonical text, so that a rerun gives the same rows.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

ID_HEX = 24  # 96 bits: a collision among a billion videos has odds of about 1 in 10^11


def digest(*parts: str) -> str:
    """Hash of a tuple of strings; the separator cannot be forged because each part is length-prefixed."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        hasher.update(f"{len(raw)}:".encode())
        hasher.update(raw)
    return hasher.hexdigest()[:ID_HEX]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def video_id(key: str) -> str:
    """Stable id of an archive-relative key (design section 3)."""
    return digest("video", key)


def object_version(size_bytes: int, etag: str | None, mtime_us: int | None) -> str:
    """What storage says about an object's content: the etag where there is one, else the time of change."""
    return f"{size_bytes}/{etag}" if etag else f"{size_bytes}@{mtime_us}"


def fingerprint(version: str, sidecar_versions: Iterable[tuple[str, str]] = ()) -> str:
    """Content identity of a video: its own version and those of its sidecar subtitles `(key, version)`."""
    return digest("content", version, *(part for pair in sorted(sidecar_versions) for part in pair))


def feature_set_id(definition: dict[str, Any]) -> str:
    """Hash of everything that shapes features: sampling, encoders, weights revisions."""
    return digest("features", canonical_json(definition))


def event_id(video: str, task: str, label: str, start_us: int, end_us: int) -> str:
    """Same event, same id, in every rerun."""
    return digest("event", video, task, label, str(start_us), str(end_us))


def display_key(key: str) -> str:
    """A key as it may be shown in tables and logs: undecodable bytes and control characters escaped."""
    if key.isprintable():  # nearly all; character by character it would be the dearest step of a large listing
        return key
    clean = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def is_plain_key(key: str) -> bool:
    """True for keys that survive a round trip through tables, logs and URLs unchanged."""
    return display_key(key) == key
