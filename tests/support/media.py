"""The folder of real media: its index, and the one run over it that several test modules look at."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import Peak
from tests.support.runs import Job

Figures = Callable[[str], None]
"""The fixture `figures`."""


@dataclass(frozen=True)
class MediaRun:
    """The job over the whole folder. Read only: a test that runs the job again does so on a copy of the output."""

    job: Job
    exit_code: int
    said: str
    """What the run said and logged, with the traceback of every logged exception."""
    wall_s: float
    peak: Peak
    """Memory of the test process and everything below it: Ray, its workers, the decoding children."""


def media_index(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of INDEX.tsv by path. Quotes in it are plain characters."""
    with (folder / "INDEX.tsv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def listed_media(folder: Path) -> dict[str, dict[str, str]]:
    """The rows whose file somebody tried to open as media, whether it opened or not."""
    return {path: row for path, row in media_index(folder).items() if row["container"] or row["decode_error"]}


def decodes_cleanly(row: dict[str, str]) -> bool:
    """What the index says: pictures or samples came out, up to its cap, without an error."""
    failed = row["decode_error"].startswith(("open:", "decode:"))
    nothing = row["frames_decoded_4s_cap"] in ("0", "0samples") or not row["duration_s"]
    return not failed and not nothing
