"""What publishing costs as a run grows, and how fast the published tables answer.

Made-up predictions, ten rows a video, go the way of a run: tables of 64 videos into the books, spool, sorting, staging,
publishing. Making the predictions is not in the time. Each run is a process of its own, and its memory the peak of that
process. Then the five questions of `docs/querying.md` are asked through `vca.tables.query`, each with a new connection,
as `vca query` does, after a second night that tagged one video in a hundred again.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import rows
from benchmarks.harness import Figure, Report, Settings, in_turn, timed
from benchmarks.jobs import REPOSITORY
from benchmarks.memory import own_peak_bytes
from vca.core.storage import StorageConfig
from vca.media.output import Output, OutputConfig
from vca.pipelines.account import Account, RunFacts
from vca.pipelines.plan import PLAN, Action, Plan
from vca.pipelines.publish import Spool, publish, stage_tables
from vca.tables.manifest import OutputReader, open_output
from vca.tables.query import query

SIZES = (100_000, 1_000_000)
TARGET_MEMORY, TARGET_GROWTH, TARGET_FILES, TARGET_QUERY_S = 1.3, 1.2, 20, 2.0
ONE_IN_FAILS = 1_000
ONE_IN_AGAIN = 100
WIDE = 1_000
"""Numbers of an embedding, in the run that has some: those of large encoders side by side."""


def measure(settings: Settings) -> list[Report]:
    """Growth of publishing, and the five questions on what came out."""
    few, many = (640, 1_920) if settings.small else SIZES
    with tempfile.TemporaryDirectory(dir=settings.folder("publish")) as temporary:
        folder = Path(temporary)
        published = _publish(settings, folder, few, many)
        _run_in_a_process(folder / str(many), many // ONE_IN_AGAIN, number=1)
        reader = open_output(str(folder / str(many)), StorageConfig())
        return [published, _questions(settings, reader, many)]


def _publish(settings: Settings, folder: Path, few: int, many: int) -> Report:
    found: dict[int, list[dict[str, Any]]] = {few: [], many: []}

    def once(n: int) -> float:
        shutil.rmtree(folder / str(n), ignore_errors=True)
        found[n].append(_run_in_a_process(folder / str(n), n))
        return float(found[n][-1]["wall_s"])

    took = in_turn({f"{n} videos": partial(once, n) for n in (few, many)}, settings.rounds)
    wide = _run_in_a_process(folder / "wide", few // 5, embedding=WIDE)
    shutil.rmtree(folder / "wide")
    s = {n: statistics.median(took[f"{n} videos"]) for n in (few, many)}
    peaks = {n: [run["peak_bytes"] / 1e9 for run in found[n]] for n in (few, many)}
    samples = {f"{n} videos": values for n, values in peaks.items()}
    parts = {part: statistics.median(run[f"{part}_s"] for run in found[many]) for part in ("books", "stage", "publish")}
    figures = [
        Figure(f"publishing {many} videos", s[many], "s", samples=took),
        *(Figure(f"of it {part}", value, "s") for part, value in parts.items()),
        Figure(
            f"a video of {many} over one of {few}", s[many] / many / (s[few] / few), "x", TARGET_GROWTH, note="in time"
        ),
        Figure(
            f"peak memory with {many} over that with {few}",
            statistics.median(peaks[many]) / statistics.median(peaks[few]),
            "x",
            TARGET_MEMORY,
            samples=samples,
        ),
        Figure(f"peak memory, {few // 5} videos with embeddings", wide["peak_bytes"] / 1e9, "GB", note=f"{WIDE} wide"),
        Figure("most files of a table", max(found[many][0]["files"].values()), "files", TARGET_FILES),
    ]
    conditions = {"rows": sum(found[many][0]["rows"].values()), **found[many][0]["files"]}
    return Report("publish", "Publishing a large run", figures, conditions)


def _questions(settings: Settings, reader: OutputReader, n_videos: int) -> Report:
    asked = questions()
    answers = {name: query(reader, sql).num_rows for name, sql in asked.items()}
    took = in_turn({name: partial(timed, partial(query, reader, sql)) for name, sql in asked.items()}, settings.rounds)
    figures = [
        Figure(
            name, statistics.median(took[name]), "s", TARGET_QUERY_S, "below", {"": took[name]}, f"{answers[name]} rows"
        )
        for name in asked
    ]
    return Report("query", "Five questions to the published tables", figures, {"videos": n_videos, "runs": 2})


def questions() -> dict[str, str]:
    """Heading and SQL of the questions in `docs/querying.md`."""
    page = (REPOSITORY / "docs" / "querying.md").read_text(encoding="utf-8")
    found = re.findall(r'^### ([^\n]+)\n(?:(?!^#).)*?^vca query --output \./output "\n(.*?)\n"\n```', page, re.M | re.S)
    assert len(found) == 5, [heading for heading, _ in found]
    return {heading: sql.replace('\\"', '"') for heading, sql in found}


def _run_in_a_process(output: Path, n: int, number: int = 0, embedding: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.publish", str(output), str(n), str(number), str(embedding)]
    done = subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_once(uri: str, n: int, number: int = 0, embedding: int = 0) -> dict[str, Any]:
    """One run of `n` videos in this process, from predictions to the swapped manifest."""
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    parent = reader.current()
    run_id, at = rows.night(number)
    facts = RunFacts(run_id, at, rows.VERSIONS, 500_000, 3)
    with tempfile.TemporaryDirectory(dir=Path(uri).parent) as folder:
        work = Path(folder)
        pq.write_table(PLAN.empty_table(), work / "plan.parquet")
        plan = Plan(work / "plan.parquet", n, 0, 0, {(str(Action.DECODE), "new"): n})
        account = Account(facts, plan, rows.ListedArchive(rows.Change(n)), Spool(work))
        books_s = sum(_into_the_books(account, part, embedding) for part in rows.parts(range(n), 64 * 64))
        started = time.perf_counter()
        account.planned_states()
        counts = account.counts()
        more: dict[str, Any] = {"code_version": "benchmark", "mlflow_run_id": None}
        config = json.dumps({"archive": {"uri": rows.URI}})
        account.add_run_row(counts, over=False, decoded_us=0, wall_s=books_s, config=config, more=more)
        staged = stage_tables(account.spool, output, run_id, work)
        staged_at = time.perf_counter()
        manifest = publish(
            output, reader, parent.run_id if parent else None, staged, run_id, at, rows.VERSIONS.as_dict(), counts
        )
        published_at = time.perf_counter()
    own = {name: [f for f in table.files if f.run_id == run_id] for name, table in manifest.tables.items()}
    return {
        "books_s": books_s,
        "stage_s": staged_at - started,
        "publish_s": published_at - staged_at,
        "wall_s": books_s + published_at - started,
        "peak_bytes": own_peak_bytes(),
        "files": {name: len(files) for name, files in own.items() if files},
        "rows": {name: sum(f.rows for f in files) for name, files in own.items() if files},
    }


def _into_the_books(account: Account, numbers: range, embedding: int) -> float:
    """Give the books some videos, in tables of the size that the job makes. Returns what that took."""
    predictions = rows.predictions(numbers, embedding)
    names = ("video_id", "key", "fingerprint")
    shared = {"attempts": 0, "size_bytes": 1_000_000, "has_tags": False, "first_failed_at": None}
    planned = [row | shared for row in predictions.select(names).to_pylist()]
    took_s = 0.0
    for first in range(0, len(numbers), rows.TASK_VIDEOS):
        some = planned[first : first + rows.TASK_VIDEOS]
        failing = [k for k, number in enumerate(numbers[first : first + len(some)]) if number % ONE_IN_FAILS == 0]
        table = predictions.slice(first, len(some))
        if failing:
            table = table.take([k for k in range(len(some)) if k not in failing])
        started = time.perf_counter()
        account.predicted(table, {row["video_id"]: row for row in some})
        for k in failing:
            account.failed(some[k], "read", "decode_error", "invalid data found", None)
        took_s += time.perf_counter() - started
    return took_s


if __name__ == "__main__":
    print(json.dumps(run_once(sys.argv[1], *map(int, sys.argv[2:]))))
