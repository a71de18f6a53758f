"""`vca verify` streams: its memory follows the size of a batch, not that of a table."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.runs import REPOSITORY, local_reader
from vca.core import identity
from vca.core.schemas import TABLES
from vca.media.output import Output, OutputConfig
from vca.pipelines.publish import Spool, publish, stage_tables

pytestmark = pytest.mark.integration

RUN_ID = "20260301T020000Z-0000a1"
N_VIDEOS, N_SHOTS = 150_000, 10
LIMIT_MB = 100
"""Of Arrow's memory, about a third of the table of shots; it was 62 MB for 2.6 and for 5.5 million rows."""

VERIFY = """
import sys
from pathlib import Path
import pyarrow as pa
from tests.support.runs import local_reader
from vca.tables.verify import verify

verify(local_reader(Path(sys.argv[1])), print)
print(pa.default_memory_pool().max_memory())
"""


def test_memory_does_not_follow_the_rows(tmp_path: Path) -> None:
    """One and a half million shots, each held against its video."""
    rows = _publish(tmp_path)
    assert rows["shots"] > 1.3 * (LIMIT_MB << 20), "the table itself would not fit"
    command = [sys.executable, "-c", VERIFY, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=900)
    *said, peak = done.stdout.splitlines()
    assert f"3 files with {N_VIDEOS * (N_SHOTS + 1) + 1} rows" in said[-1]
    assert [line for line in said if line.startswith("error")] == []
    assert int(peak) < LIMIT_MB << 20


def _publish(folder: Path) -> dict[str, int]:
    """Publish the run as the job does; returns the bytes of its tables in memory."""
    keys = sorted(f"2026/{number:07d}.mp4" for number in range(N_VIDEOS))
    now = datetime(2026, 3, 1, 2, tzinfo=UTC)
    shared = {"video_id": pa.array(map(identity.video_id, keys)), "key": pa.array(keys)}
    plain = {"run_id": RUN_ID, "uri": "u", "fingerprint": "f", "status": "tagged", "attempts": 1, "size_bytes": 1}
    videos = _table("videos", N_VIDEOS, shared, plain | {"duration_s": float(N_SHOTS), "tagged_at": now})
    place = pa.array(np.repeat(np.arange(N_VIDEOS), N_SHOTS))
    starts = np.tile(np.arange(N_SHOTS, dtype=np.float64), N_VIDEOS)
    of_shots = {name: column.take(place) for name, column in shared.items()}
    of_shots |= {
        "shot_index": pa.array(starts.astype(np.int32)),
        "start_s": pa.array(starts),
        "end_s": pa.array(starts + 1),
    }
    shots = _table("shots", N_VIDEOS * N_SHOTS, of_shots, {"run_id": RUN_ID})
    counts = dict.fromkeys(("partial", "unchanged", "quarantined", "deferred", "gone"), 0) | {"tagged": N_VIDEOS}
    versions = {"feature_set": "f", "model_version": "m", "taxonomy_version": "t"}
    row = {"run_id": RUN_ID, "started_at": now, "ended_at": now, "status": "ok", "listed": N_VIDEOS, "ignored": 0}
    row |= {**counts, **versions, "decoded_s": 1.0, "wall_s": 1.0, "realtime_factor": 1.0, "error_counts": []}
    work = folder / "work"
    work.mkdir()
    spool = Spool(work)
    spool.add("videos", videos)
    spool.add("shots", shots)
    spool.add_row("runs", row | {"config": "{}", "code_version": "0", "mlflow_run_id": None})
    output = Output(OutputConfig(uri=str(folder / "out")))
    staged = stage_tables(spool, output, RUN_ID, work)
    publish(output, local_reader(folder / "out"), None, staged, RUN_ID, now, versions, counts)
    return {"videos": videos.nbytes, "shots": shots.nbytes}


def _table(name: str, n_rows: int, columns: dict[str, pa.Array], plain: dict[str, object]) -> pa.Table:
    """Columns, values that are the same in every row, and nulls."""
    schema = TABLES[name].schema
    arrays = [
        columns[f.name] if f.name in columns else pa.repeat(pa.scalar(plain.get(f.name), f.type), n_rows)
        for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
