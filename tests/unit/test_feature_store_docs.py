"""docs/feature_store.md: the example is run as written, on a store made by the writer."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vca.core.schemas import FEATURES
from vca.media.output import Output, OutputConfig
from vca.pipelines.features import Dims, FeatureStore, FeatureWriter, encode_steps, join_segments

MEDIA = {
    "duration_us": 1_250_000,
    "container": "mp4",
    "has_video": True,
    "has_audio": False,
    "n_video_streams": 1,
    "n_audio_streams": 0,
    "n_subtitle_streams": 0,
}
DIM = 3


def segment(index: int, start_us: int, end_us: int, seed: int, *, fingerprint: str = "new", count: int = 2) -> pa.Table:
    """One row with random vectors, the second of its steps without one."""
    n_steps = -(-(end_us - start_us) // 500_000)
    row = {
        "video_id": "v",
        "key": "v.mp4",
        "fingerprint": fingerprint,
        "segment_index": index,
        "n_segments": count,
        "start_us": start_us,
        "end_us": end_us,
        "step_us": 500_000,
        "coverage_us": end_us - start_us,
        "media": MEDIA,
        "text": [
            {"start_us": start_us, "end_us": end_us, "source": "subtitle", "text": f"{fingerprint} {index}"},
            {"start_us": start_us, "end_us": end_us, "source": "speech", "text": None},
        ],
        "shots": [{"start_us": start_us, "end_us": end_us}],
    }
    table = pa.Table.from_pylist([row], schema=FEATURES)
    values = np.random.default_rng(seed).normal(size=(n_steps, DIM)).astype(np.float16)
    cell = encode_steps(values, np.arange(n_steps) != 1)
    return table.set_column(FEATURES.get_field_index("vision"), FEATURES.field("vision"), cell)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Three parts of one feature set: old content, a repeated segment, segments in the wrong order."""
    store = FeatureStore(Output(OutputConfig(uri=str(tmp_path / "out"))), "0123456789abcdef01234567")
    store.describe({"step_us": 500_000}, Dims(vision=DIM, audio=2))
    for run_id, rows in {
        "20261101": [segment(0, 0, 500_000, 1, fingerprint="old", count=1)],
        "20261102": [segment(1, 1_000_000, 1_250_000, 2), segment(0, 0, 1_000_000, 3)],
        "20261103": [segment(0, 0, 1_000_000, 4)],
    }.items():
        writer = FeatureWriter(store, run_id, 1 << 30, 1e9)
        for row in rows:
            writer.add(row)
        writer.flush()
    return store


def run_example(repository: Path, store: FeatureStore, fingerprint: str) -> dict[str, Any]:
    page = (repository / "docs/feature_store.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    for name, value in {
        '"out"': repr(store.output.root),
        "FEATURE_SET": store.feature_set,
        "VIDEO_ID": "v",
        "FINGERPRINT": fingerprint,
    }.items():
        assert code.count(name) == 1, name
        code = code.replace(name, value)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/feature_store.md", "exec"), found)
    return found


def test_the_example_reads_what_was_written(repository: Path, store: FeatureStore) -> None:
    """A reader written by the page alone gets the same arrays as our own: copies, nulls, the short last step."""
    found = run_example(repository, store, "new")
    rows = store.read(store.parts(), ["v"])
    video = join_segments(rows.filter(pa.compute.equal(rows.column("fingerprint"), "new")))
    assert video.vision is not None
    np.testing.assert_array_equal(found["vision"], video.vision)
    np.testing.assert_array_equal(found["has_vision"], [True, False, True])
    np.testing.assert_array_equal(found["has_vision"], video.vision_mask)
    np.testing.assert_array_equal(found["start_us"], video.steps[:, 0])
    assert found["audio"].shape == (3, 2)
    assert not found["has_audio"].any()
    assert found["words"] == [(0, "new 0"), (1_000_000, "new 1")]


def test_the_example_refuses_an_incomplete_video(repository: Path, store: FeatureStore) -> None:
    """Half a video must not pass for a whole one."""
    assert run_example(repository, store, "old")["vision"].shape == (1, DIM)
    writer = FeatureWriter(store, "20261104", 1 << 30, 1e9)
    writer.add(segment(1, 1_000_000, 1_250_000, 5, fingerprint="half"))
    writer.flush()
    for fingerprint in ("half", "unknown"):
        with pytest.raises(SystemExit, match="not complete"):
            run_example(repository, store, fingerprint)


def test_the_page_names_every_kind_of_column(repository: Path) -> None:
    """A new column of the store wants a word on this page."""
    page = (repository / "docs/feature_store.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", page)) >= set(FEATURES.names)
