"""The feature store keeps what the encoders made, and knows which videos are complete."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vca.core.errors import ConfigError, PublishError
from vca.core.schemas import FEATURES
from vca.media.output import Output, OutputConfig
from vca.pipelines.features import (
    INDEX,
    Dims,
    FeatureStore,
    FeatureWriter,
    decode_steps,
    encode_steps,
    join_segments,
)
from vca.pipelines.predict import complete_videos, group_by_part

MEDIA = {
    "duration_us": 1_500_000,
    "declared_duration_us": 1_500_000,
    "container": "mp4",
    "has_video": True,
    "has_audio": False,
    "n_video_streams": 1,
    "n_audio_streams": 0,
    "n_subtitle_streams": 0,
}


def segment(video: str, index: int, count: int, start_us: int, end_us: int, value: float = 1.0) -> pa.Table:
    n_steps = -(-(end_us - start_us) // 500_000)
    row = {
        "video_id": video,
        "key": f"{video}.mp4",
        "fingerprint": "f",
        "segment_index": index,
        "n_segments": count,
        "start_us": start_us,
        "end_us": end_us,
        "step_us": 500_000,
        "coverage_us": end_us - start_us,
        "media": MEDIA,
        "text": [{"start_us": start_us, "end_us": end_us, "source": "subtitle", "text": f"part {index}"}],
        "shots": [{"start_us": start_us, "end_us": end_us}],
    }
    table = pa.Table.from_pylist([row], schema=FEATURES)
    cell = encode_steps(np.full((n_steps, 3), value, np.float16), np.ones(n_steps, np.bool_))
    return table.set_column(FEATURES.get_field_index("vision"), FEATURES.field("vision"), cell)


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float16, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-8, 8, width=16)),
    seed=st.integers(0, 1000),
)
def test_step_features_survive_storage(values: np.ndarray, seed: int) -> None:
    """Features and mask come back exactly; masked steps are nulls, not zeros that look like data."""
    mask = np.random.default_rng(seed).random(len(values)) < 0.6
    cell = encode_steps(values, mask)
    decoded = decode_steps(pa.chunked_array([cell])[0])
    if not mask.any():
        assert decoded is None
        return
    assert decoded is not None
    back, back_mask = decoded
    np.testing.assert_array_equal(back_mask, mask)
    np.testing.assert_array_equal(back[mask], values[mask].astype(np.float32))
    assert not back[~mask].any()


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(Output(OutputConfig(uri=str(tmp_path / "out"))), "set")


def test_a_video_is_complete_only_with_all_its_segments(store: FeatureStore) -> None:
    """The fan-out trap of other systems: two of three segments are not a video."""
    writer = FeatureWriter(store, "run", 1 << 30, 1e9)
    writer.add(segment("whole", 0, 2, 0, 1_000_000))
    writer.add(segment("half", 1, 2, 1_000_000, 1_500_000))
    writer.flush()
    writer.add(segment("whole", 1, 2, 1_000_000, 1_500_000))
    writer.flush()
    index = store.index({"whole": "f", "half": "f"})
    written = pa.concat_tables(writer.written)
    order = [(name, "ascending") for name in index.column_names]
    assert index.sort_by(order).equals(written.sort_by(order))
    complete = complete_videos(index)
    assert set(complete) == {"whole"}
    assert len(complete["whole"].parts) == 2, "its two parts are named"
    groups = group_by_part(complete).to_pylist()
    assert [video["video_id"] for group in groups for video in group["videos"]] == ["whole"]


def test_duplicates_from_retries_are_harmless(store: FeatureStore) -> None:
    """A segment written twice is read once."""
    writer = FeatureWriter(store, "run", 1 << 30, 1e9)
    for value in (1.0, 2.0):
        writer.add(segment("v", 0, 2, 0, 1_000_000, value))
    writer.add(segment("v", 1, 2, 1_000_000, 1_500_000))
    writer.flush()
    video = join_segments(store.read(store.parts(), ["v"]))
    assert video.vision is not None
    assert video.vision.shape == (3, 3)
    assert video.vision[0, 0] == 2.0, "the later row counts"
    assert [piece.text for piece in video.text] == ["part 0", "part 1"]
    assert video.duration_us == 1_500_000
    np.testing.assert_array_equal(video.steps[:, 0], [0, 500_000, 1_000_000])
    assert video.audio is None


def test_two_cuts_of_one_content_do_not_mix(store: FeatureStore) -> None:
    """Another probe may find another length: the cut that is complete counts, not a mixture of both."""
    writer = FeatureWriter(store, "run", 1 << 30, 1e9)
    for index in (0, 1, 3):
        writer.add(segment("v", index, 4, index * 500_000, (index + 1) * 500_000, 4.0))
    for index in (0, 1, 2):
        writer.add(segment("v", index, 3, index * 500_000, (index + 1) * 500_000, 3.0))
    writer.add(segment("other", 0, 1, 0, 500_000))
    writer.flush()
    complete = complete_videos(store.index({"v": "f", "other": "another content"}))
    assert set(complete) == {"v"}
    assert complete["v"].n_segments == 3


def test_contents_are_what_was_completed_last(store: FeatureStore) -> None:
    """Training takes the newest whole content of every video: never a half one, a mixture or an older one."""
    kept = {"new": [], "late": [], "old": []}
    for number, (video, content, index, count) in enumerate(
        [
            ("new", "1", 0, 1),
            ("late", "1", 0, 2),
            ("old", "1", 0, 1),
            ("late", "2", 0, 1),
            ("new", "2", 0, 2),
            ("late", "1", 1, 2),  # completes the older content, after the newer one was stored
            ("new", "2", 1, 2),
            ("old", "2", 0, 2),  # the other half never came
            ("new", "2", 0, 2),  # a retry
            ("half", "1", 1, 2),
        ]
    ):
        writer = FeatureWriter(store, f"run{number}", 1, 0.0)
        row = segment(video, index, count, index * 500_000, (index + 1) * 500_000)
        fingerprint = pa.array([content], pa.string())
        writer.add(row.set_column(FEATURES.get_field_index("fingerprint"), FEATURES.field("fingerprint"), fingerprint))
        if (video, content) in {("new", "2"), ("late", "1"), ("old", "1")}:
            kept[video].append(f"{store.folder}/part-run{number}-00000.parquet")
    contents = store.contents()
    assert contents.schema.equals(INDEX)
    parts = [part for found in kept.values() for part in found]
    assert contents.column("part").to_pylist() == sorted(parts), "oldest part first, and no row of another content"
    complete = complete_videos(contents)
    assert {name: video.fingerprint for name, video in complete.items()} == {"new": "2", "late": "1", "old": "1"}
    assert complete == complete_videos(store.index({"new": "2", "late": "1", "old": "1"}))
    assert store.videos().to_pylist() == [
        {"video_id": name, "key": f"{name}.mp4", "fingerprint": complete[name].fingerprint} for name in sorted(complete)
    ]


def test_contents_of_nothing(store: FeatureStore) -> None:
    """A set without parts has no videos."""
    assert store.contents().equals(INDEX.empty_table())
    assert len(store.videos()) == 0


def test_contents_read_no_vectors(store: FeatureStore) -> None:
    """The index of an archive is made from narrow columns: vectors that are overwritten do not even disturb."""
    writer = FeatureWriter(store, "run", 1, 0.0)
    writer.add(segment("v", 0, 1, 0, 500_000))
    (part,) = store.parts()
    path = Path(store.output.path(part))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    (vision,) = (column for column in columns if column.path_in_schema.startswith("vision"))
    data = bytearray(path.read_bytes())
    start = min(filter(None, (vision.dictionary_page_offset, vision.data_page_offset)))
    data[start : start + vision.total_compressed_size] = b"\xff" * vision.total_compressed_size
    path.write_bytes(bytes(data))
    assert store.contents().num_rows == 1
    with pytest.raises((PublishError, OSError)):
        store.read([part], ["v"])


def test_the_description_tells_what_is_stored(store: FeatureStore) -> None:
    """Step, origin and widths come back; without the file there is one line."""
    with pytest.raises(ConfigError, match=r"feature_set\.json is missing or damaged \(FileNotFoundError\)"):
        store.definition()
    assert not store.described()
    store.describe({"step_us": 250_000, "imported": {"name": "x"}}, Dims(3, 0))
    assert store.described()
    assert store.definition() == {"step_us": 250_000, "imported": {"name": "x"}}
    assert store.dims() == Dims(3, 0)
    store.output.write_bytes(f"{store.folder}/feature_set.json", b'{"definition": []}')
    with pytest.raises(ConfigError, match="damaged"):
        store.definition()


def test_a_damaged_part_is_named(store: FeatureStore) -> None:
    """The way out of a damaged store is in the message."""
    store.output.write_bytes(f"{store.folder}/part-x.parquet", b"PAR1 not really")
    with pytest.raises(PublishError, match=r"part-x\.parquet is damaged.*delete it"):
        store.index({"v": "f"})


def test_parts_are_written_by_size(store: FeatureStore) -> None:
    """Memory of the driver is bounded by part_mb, not by the archive."""
    writer = FeatureWriter(store, "run", 1, 1e9)
    writer.add(segment("a", 0, 1, 0, 500_000))
    writer.add(segment("b", 0, 1, 0, 500_000))
    assert len(store.parts()) == 2
