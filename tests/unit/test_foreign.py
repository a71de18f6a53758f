"""Features of elsewhere come into the store as they are, or are refused by the name of file and array."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.errors import ConfigError
from vca.core.identity import video_id
from vca.core.records import VideoFeatures
from vca.core.schemas import FEATURES
from vca.core.storage import StorageConfig
from vca.core.timeline import resample_mean
from vca.media.output import Output, OutputConfig
from vca.media.storage import LISTING, ArchiveConfig
from vca.pipelines.features import Dims, FeatureStore, FeatureWriter, join_segments
from vca.pipelines.foreign import ImportConfig, ImportedSet, import_features, run_import, segment_us
from vca.pipelines.plan import Action, Versions, make_plan
from vca.pipelines.predict import complete_videos
from vca.pipelines.stored_archive import StoredArchive
from vca.tables.manifest import open_output

RNG = np.random.default_rng(7)


def vectors(n: int, width: int) -> npt.NDArray[np.float32]:
    """Random values that float16 holds exactly."""
    return RNG.integers(-512, 512, (n, width)).astype(np.float32) / 64


class World:
    """A folder of files and an output."""

    def __init__(self, root: Path) -> None:
        self.files = root / "files"
        self.files.mkdir()
        self.output = Output(OutputConfig(uri=str(root / "out")))

    def npz(self, name: str = "a.npz", **arrays: Any) -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return path

    def parquet(self, columns: Any, name: str = "a.parquet", **options: Any) -> Path:
        pq.write_table(pa.table(columns), self.files / name, **options)
        return self.files / name

    def load(self, *sources: Path, **options: Any) -> ImportedSet:
        config = ImportConfig(**{"name": "test", **options})
        return import_features(self.output, [str(s) for s in sources or (self.files,)], config)

    def problem(self, *sources: Path, **options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(*sources, **options)
        text = str(caught.value)
        assert "\n" not in text
        assert not (Path(self.output.root) / "features").exists(), "nothing is written for a refusal"
        return text

    def videos(self, found: ImportedSet) -> dict[str, VideoFeatures]:
        store = FeatureStore(self.output, found.feature_set)
        complete = complete_videos(store.contents())
        rows = {name: store.read(video.parts, [name]) for name, video in complete.items()}
        return {video.key: video for video in (join_segments(table) for table in rows.values())}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_videos_of_different_shape_become_one_set(world: World) -> None:
    """Any width, any length, any subset of modalities, masks, a key of its own, text inside and beside the file."""
    picture, sound = vectors(300, 5), vectors(300, 3)
    mask = np.ones(300, np.bool_)
    mask[[0, 7, 299]] = False
    picture[0] = np.nan  # under the mask, so it does not matter
    text = [{"start_s": 70.5, "end_s": 71, "text": "later"}, {"start_s": 1, "end_s": 2, "source": "speech"}]
    world.npz("x/long.npz", vision=picture, vision_mask=mask, audio=sound, step_s=0.25, text=json.dumps(text))
    (world.files / "x/long.jsonl").write_text(
        '{"start_s": 0, "end_s": 1, "text": "hé", "source": "asr", "language": "fr"}\n'
    )
    world.npz("short.npz", audio=vectors(1, 3).astype(np.float64), step_s=0.25, key="other/name.mp4")
    world.npz("ints.npz", vision=np.arange(20, dtype=np.int16).reshape(4, 5), step_s=np.array([0.25]))
    (world.files / "README").write_text("not a feature file")
    found = world.load()
    assert (found.n_videos, found.n_steps, found.dims, found.step_us) == (3, 305, Dims(5, 3), 250_000)
    videos = world.videos(found)
    assert set(videos) == {"x/long", "other/name.mp4", "ints"}
    long = videos["x/long"]
    assert long.vision is not None
    assert long.audio is not None
    np.testing.assert_array_equal(long.vision_mask, mask)
    np.testing.assert_array_equal(long.vision[mask], picture[mask])
    np.testing.assert_array_equal(long.audio, sound)
    assert long.duration_us == 75_000_000
    assert long.steps[:, 0].tolist() == [250_000 * n for n in range(300)]
    assert [(p.start_us, p.source, p.text, p.language) for p in long.text] == [
        (0, "asr", "hé", "fr"),
        (1_000_000, "speech", None, None),
        (70_500_000, "sidecar", "later", None),
    ]
    assert videos["other/name.mp4"].vision is None
    assert videos["other/name.mp4"].video_id == video_id("other/name.mp4")
    store = FeatureStore(world.output, found.feature_set)
    assert store.dims() == Dims(5, 3)
    rows = store.read(store.parts(), [long.video_id])
    assert rows.schema.equals(FEATURES)
    assert rows.column("n_segments").to_pylist() == [2, 2]
    media = rows.column("media").to_pylist()[0]
    assert (media["container"], media["has_video"], media["has_audio"]) == ("imported", True, True)
    assert (media["duration_us"], media["width"], media["n_frames"]) == (75_000_000, None, None)
    definition = store.definition()
    assert definition["step_us"] == 250_000
    assert definition["imported"]["name"] == "test"


def test_importing_twice_changes_nothing(world: World) -> None:
    """Same content, same id, whatever files it comes in; other content, name or step is another set."""
    values = vectors(4, 2)
    world.npz("a.npz", vision=values, step_s=0.5)
    first = world.load()
    assert first.fresh
    root = Path(world.output.root)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
    again = world.load()
    assert not again.fresh
    table = {"key": ["a"] * 4, "start_s": [0, 0.5, 1, 1.5], "end_s": [0.5, 1, 1.5, 2], "vision": values.tolist()}
    other_file = world.parquet(table)
    assert world.load(other_file).feature_set == first.feature_set == again.feature_set
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()} == before
    others = [world.load(world.files / "a.npz", **more) for more in ({"name": "b"}, {"step_ms": 1000})]
    values[0, 0] += 1
    world.npz("a.npz", vision=values, step_s=0.5)
    others.append(world.load(world.files / "a.npz"))
    assert len({first.feature_set, *(o.feature_set for o in others)}) == 4


def test_a_killed_import_is_finished_by_the_next(world: World) -> None:
    """Without a description the set is not there, and parts that were written do not disturb."""
    world.npz("a.npz", vision=vectors(4, 2), step_s=0.5)
    world.npz("b.npz", vision=vectors(4, 2), step_s=0.5)
    first = world.load()
    folder = Path(world.output.root) / "features" / first.feature_set
    (folder / "feature_set.json").unlink()
    assert world.load().fresh
    (part,) = folder.glob("*.parquet")
    part.unlink()
    assert world.load().fresh, "a set that lost a part is made again"
    assert len(world.videos(first)) == 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    gaps=st.lists(st.integers(-800, 800), min_size=12, max_size=12),
    step_ms=st.integers(7, 900),
)
def test_irregular_times_are_brought_onto_the_grid(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], gaps: list[int], step_ms: int
) -> None:
    """Overlap-weighted means, also over the border of two segments, as one call over the whole video gives them."""
    world = World(tmp_path_factory.mktemp("w"))
    starts, at = [], 0
    for length, gap in zip(lengths, gaps, strict=False):
        starts.append(max(0, at + gap))
        at = starts[-1] + length
    times = np.array([[s, s + n] for s, n in zip(starts, lengths, strict=True)]) / 1000
    order = np.argsort(RNG.random(len(times)))
    values = vectors(len(times), 3)
    world.npz(vision=values[order], times=times[order])
    found = world.load(step_ms=step_ms)
    (video,) = world.videos(found).values()
    expected, mask = resample_mean(values, np.rint(times * 1e6).astype(np.int64), video.steps)
    assert video.duration_us == int(np.rint(times.max() * 1e6))
    np.testing.assert_array_equal(video.vision_mask, mask)
    assert video.vision is not None
    np.testing.assert_allclose(video.vision, expected, atol=0.01)


def test_a_third_of_a_second_is_a_step(world: World) -> None:
    """Steps that are no whole number of microseconds keep their vectors as they are, in both formats."""
    values = vectors(601, 2)
    edges = np.arange(602) / 3
    edges[-1] -= 0.1  # the last step is shorter
    world.npz("a.npz", vision=values, step_s=1 / 3)
    columns = {"key": ["b"] * 601, "start_s": edges[:-1], "end_s": edges[1:], "vision": list(values)}
    world.parquet(columns)
    found = world.load()
    assert found.step_us == 333_333
    videos = world.videos(found)
    for video in videos.values():
        np.testing.assert_array_equal(video.vision, values)
    assert videos["a"].duration_us - videos["b"].duration_us == pytest.approx(100_000, abs=3)


def test_modalities_may_have_steps_of_their_own(world: World) -> None:
    """Sound twice a second and pictures once in two, on one grid."""
    world.npz(vision=vectors(3, 2), vision_step_s=2.0, audio=vectors(10, 4), audio_step_s=0.5)
    assert "steps of 0.5 s, but 2 s" in world.problem()
    found = world.load(step_ms=500)
    (video,) = world.videos(found).values()
    assert video.vision is not None
    assert len(video.steps) == 12
    assert (video.vision[0] == video.vision[3]).all()
    assert video.audio_mask is not None
    assert video.audio_mask.sum() == 10


def test_parquet_rows(world: World) -> None:
    """A row per step: null vectors are gaps, text goes with its row, files are read in batches."""
    n = 1500  # more than one batch
    rows = [
        {
            "key": key,
            "start_s": i * 1.0,
            "end_s": i + 1.0,
            "vision": None if i % 3 == 0 else [float(i % 7), 1.0],
            "audio": [0.5] if key == "v/a.mp4" else None,
            "text": "hello" if i == 4 else None,
            "source": "ocr",
        }
        for key in ("v/a.mp4", "v/b.mp4")
        for i in range(n)
    ]
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("vision", pa.list_(pa.float32())),
            ("audio", pa.large_list(pa.float64())),
            ("text", pa.string()),
            ("source", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), world.files / "a.parquet", row_group_size=700)
    found = world.load()
    assert (found.n_videos, found.dims, found.step_us) == (2, Dims(2, 1), 1_000_000)
    videos = world.videos(found)
    assert videos["v/b.mp4"].audio is None
    mask = np.arange(n) % 3 != 0
    for video in videos.values():
        np.testing.assert_array_equal(video.vision_mask, mask)
        assert video.vision is not None
        np.testing.assert_array_equal(video.vision[mask][:, 0], (np.arange(n) % 7)[mask])
        assert [(p.start_us, p.source, p.text) for p in video.text] == [(4_000_000, "ocr", "hello")]


@pytest.mark.parametrize("inner", [pa.float16(), pa.float32(), pa.float64(), pa.int8()])
@pytest.mark.parametrize("outer", [pa.list_, pa.large_list, lambda inner: pa.list_(inner, 2)])
def test_parquet_lists_of_any_kind(world: World, inner: pa.DataType, outer: Any) -> None:
    """Lists as pandas, polars and pyarrow write them, of any numbers."""
    values = np.array([[1, 2], [3, 4]], inner.to_pandas_dtype())
    world.parquet(table(vision=pa.array(list(values), outer(inner))))
    (video,) = world.videos(world.load()).values()
    np.testing.assert_array_equal(video.vision, values)


GOOD: dict[str, Any] = {"vision": np.ones((3, 2)), "step_s": 0.5}
BAD_NPZ: list[tuple[dict[str, Any], str]] = [
    ({"step_s": 0.5}, "a.npz: neither vision nor audio has a vector"),
    ({"features": np.ones((2, 2))}, "a.npz: unknown array 'features'; known: audio"),
    (GOOD | {"vision": np.ones(3)}, "a.npz: vision is float64 [3]; it must be numbers [steps, width]"),
    (GOOD | {"vision": np.ones((3, 2), np.complex64)}, "vision is an array of complex64"),
    (GOOD | {"vision": np.array([["a"]])}, "vision is <U1 [1, 1]"),
    (GOOD | {"vision": np.array([[1, "a", None]], object)}, "vision is an array of object; arrays of objects are ref"),
    (GOOD | {"vision": np.ones((0, 2))}, "vision is [0, 2]: no steps or no width"),
    (GOOD | {"vision": np.ones((2, 0))}, "vision is [2, 0]: no steps or no width"),
    (GOOD | {"vision": np.ones((1, 70_000), np.float16)}, "vision is 70000 wide; the limit is 65536"),
    (GOOD | {"vision": np.array([[1.0, np.nan]])}, "vision holds NaN or infinity"),
    (GOOD | {"vision": np.array([[1.0, -np.inf]])}, "vision holds NaN or infinity"),
    (GOOD | {"vision": np.array([[1.0, -1e30]])}, "vision holds 1e+30, beyond 65504 of float16"),
    (GOOD | {"vision_mask": np.ones(2, np.bool_)}, "vision_mask is bool [2]; it must be bool [3]"),
    (GOOD | {"vision_mask": np.ones(3)}, "vision_mask is float64 [3]"),
    (GOOD | {"vision_mask": np.zeros(3, np.bool_)}, "neither vision nor audio has a vector"),
    (GOOD | {"audio_mask": np.ones(3, np.bool_)}, "audio_mask without audio"),
    ({"vision": np.ones((3, 2))}, "vision: give step_s or times, and not both"),
    (GOOD | {"times": np.ones((3, 2))}, "vision: give step_s or times, and not both"),
    (GOOD | {"step_s": 0.0}, "step_s = 0; it must lie between"),
    (GOOD | {"step_s": np.nan}, "step_s = nan; it must lie between"),
    (GOOD | {"step_s": np.ones(2)}, "step_s is float64 [2]; it must be one number"),
    ({"vision": np.ones((2, 2)), "times": np.ones(2)}, "its times are float64 [2]; they must be [2, 2] seconds"),
    ({"vision": np.ones((2, 2)), "times": [[0, 1], [2, 2]]}, "vision: times 1 = [2, 2]"),
    ({"vision": np.ones((2, 2)), "times": [[-1, 1], [2, 3]]}, "vision: times 0 = [-1, 1]"),
    ({"vision": np.ones((2, 2)), "times": [[0, 1], [2, np.inf]]}, "vision: times 1 = [2, inf]"),
    ({"vision": np.ones((2, 2)), "times": [[0, 1], [np.nan, 3]]}, "vision: times 1 = [nan, 3]"),
    ({"vision": np.ones((2, 2)), "times": [[0, 1], [5, 9.5]]}, "vision has no regular step; set step_ms"),
    (GOOD | {"key": 5}, "key is int64 []; it must be one text"),
    (GOOD | {"key": ""}, "key '' is empty"),
    (GOOD | {"key": "a\nb"}, r"key 'a\nb' is empty, too long or not printable"),
    (GOOD | {"text": 5}, "text is int64 []; it must be JSON strings"),
    (GOOD | {"text": "["}, "text: not valid JSON"),
    (GOOD | {"text": "{}"}, "text is a JSON dict; it must be a list"),
    (GOOD | {"text": '[{"start_s": 0, "end_s": 1, "text": "a", "x": 1}]'}, "text 1: must be an object with start_s"),
    (GOOD | {"text": '[{"start_s": 1, "end_s": 1, "text": "a"}]'}, "text 1: ends at 1 s, not after its start"),
    (GOOD | {"text": '[{"start_s": -1, "end_s": 1, "text": "a"}]'}, "text 1: start_s and end_s must be seconds"),
    (GOOD | {"text": '[{"end_s": 1, "text": "a"}]'}, "text 1: start_s and end_s must be seconds"),
    (GOOD | {"text": '[{"start_s": 0, "end_s": 1, "text": 4}]'}, "text 1: text must be text"),
    (GOOD | {"text": '[{"start_s": 0, "end_s": 1, "text": "\\ud800"}]'}, "text 1: text must be text"),
    (GOOD | {"text": '[{"start_s": 0, "end_s": 1}]'}, "text 1: only pieces of source speech are without text"),
    (GOOD | {"text": '[{"start_s": 0, "end_s": 1, "source": "tv"}]'}, "text 1: source 'tv' is unknown"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_NPZ)
def test_bad_npz_is_refused_by_file_and_array(world: World, arrays: dict[str, Any], message: str) -> None:
    """One line, and nothing in the store."""
    world.npz(**arrays)
    assert message in world.problem()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vision": np.ones((3, 4)), "step_s": 0.5}, "b.npz: vision is 4 wide, but 2 in"),
        ({"vision": np.ones((3, 2)), "step_s": 1.0}, "b.npz: steps of 1 s, but 0.5 s in"),
        ({"vision": np.ones((1, 2)), "times": [[0, 3]]}, "b.npz: its only step is longer"),
        (GOOD | {"key": "a"}, "b.npz: key 'a' was read from"),
    ],
)
def test_files_that_do_not_fit_together(world: World, arrays: dict[str, Any], message: str) -> None:
    """The second file is named, and the first where it helps."""
    world.npz(**GOOD)
    world.npz("b.npz", **arrays)
    assert message in world.problem()


def test_a_single_short_step_fits_any_grid(world: World) -> None:
    """A clip shorter than a step has only its last step."""
    world.npz(**GOOD)
    world.npz("b.npz", vision=np.ones((1, 2)), times=[[0, 0.3]])
    assert world.load().step_us == 500_000


def member(header: str, data: bytes = b"") -> bytes:
    text = (header + " " * (63 - (10 + len(header)) % 64) + "\n").encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable .npz file"),
        (b"PK\x03\x04 not really", "not a readable .npz file"),
        (zipped(vision=b"not an array"), "not a readable .npz file"),
        (zipped(vision=member("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 10**9)}")), "not a readable"),
        (
            zipped(vision=member("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 2)}")),
            "vision says [1000000000000, 2] float32, but has 0 bytes",
        ),
        (zipped(vision=member("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", b"1234")), "vision says"),
        (zipped(vision=member("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 1)}")), "is an array of"),
        (zipped(vision=member("__import__('os').system('true')")), "not a readable .npz file"),
        (zipped(vision=member("(" * 9000)), "not a readable .npz file"),
        (zipped(vision=b"\0" * (3 << 20)), "unpacks to over 1 MB"),
        (zipped(**{"../../evil": b""}), "unknown array '../../evil'"),
    ],
    # A zip file holds the time: as ids its bytes would differ between the processes that share out the tests.
    ids=[
        "empty",
        "no zip",
        "no array",
        "huge",
        "promises more",
        "negative",
        "records",
        "code",
        "nested",
        "bomb",
        "path",
    ],
)
def test_hostile_npz_files(world: World, data: bytes, message: str) -> None:
    """No claim of a header takes memory, nothing is unpacked beyond the limit, no pickle and no code is run."""
    (world.files / "a.npz").write_bytes(data)
    assert message in world.problem(max_file_mb=1)


def test_damage_inside_is_found(world: World) -> None:
    """The checksum of the zip file is looked at."""
    path = world.npz(vision=np.zeros((50, 50)), step_s=0.5)
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF
    path.write_bytes(bytes(data))
    assert "a.npz: not a readable .npz file (Bad CRC-32" in world.problem()


def table(**changes: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {"key": ["a", "a"], "start_s": [0.0, 1.0], "end_s": [1.0, 2.0]}
    return columns | {"vision": [[1.0, 2.0], [3.0, 4.0]]} | changes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["a"], "start_s": [0.0], "vision": [[1.0]]}, "a.parquet: no column 'end_s'"),
        (table(picture=[1, 2]), "a.parquet: unknown column 'picture'"),
        (table(vision=[1.0, 2.0]), "a.parquet: vision is double; it must be lists of numbers"),
        (table(vision=[["1"], ["2"]]), "a.parquet: vision is list<"),
        (table(vision=[[1.0], [1.0, 2.0]]), "a.parquet key 'a': vision has vectors of widths [1, 2]"),
        (table(vision=pa.array([[], []], pa.list_(pa.float32()))), "vision has vectors of widths [0]"),
        (table(vision=[[1.0, None], [1.0, 2.0]]), "vision holds a null inside a vector"),
        (table(vision=[[1.0, float("nan")], [1.0, 2.0]]), "key 'a': vision holds NaN or infinity"),
        (table(vision=[[1e9], [2.0]]), "vision holds 1e+09, beyond 65504"),
        (table(vision=pa.array([None, None], pa.list_(pa.float32()))), "neither vision nor audio has a vector"),
        (table(key=["a", None]), "a key is None"),
        (table(key=[1, 1]), "a key is 1; every row needs one"),
        (table(start_s=["0", "x"]), "start_s and end_s must be numbers"),
        (table(start_s=[0.0, None]), "a row without start_s or end_s"),
        (table(end_s=[1.0, 1.0]), "key 'a': vision: times 1 = [1, 1]"),
        (table(text=["a", "b"], source=["asr", "tv"]), "key 'a' at 1 s: source 'tv' is unknown"),
        (
            {"key": ["a", "b", "a"], "start_s": [0, 0, 1], "end_s": [1, 1, 2], "vision": [[1.0]] * 3},
            "key 'a' was read from",
        ),
    ],
)
def test_bad_parquet_is_refused_by_file_and_column(world: World, columns: dict[str, Any], message: str) -> None:
    """One line with the video and the column."""
    world.parquet(columns)
    assert message in world.problem()


def test_absurd_lengths_and_sources(world: World) -> None:
    """A year of empty steps, windows over everything, nothing at all, a file that is none."""
    assert "no .npz or .parquet file with a video" in world.problem()
    assert "no such folder or file" in world.problem(world.files / "missing")
    assert "no such file" in world.problem(world.files / "missing.npz")
    world.npz(vision=np.ones((2, 2)), times=[[0, 1], [40_000_000, 40_000_001]])
    assert "are more than 2000000 steps" in world.problem(step_ms=1)
    (world.files / "a.npz").unlink()
    (world.files / "a.parquet").write_bytes(b"PAR1 no")
    assert "a.parquet: not a readable Parquet file" in world.problem()


def test_a_file_that_changes_under_the_import_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is what the id was made of."""
    world.npz(**GOOD)
    describe = FeatureStore.described

    def change(store: FeatureStore) -> bool:
        world.npz(vision=np.zeros((3, 2)), step_s=0.5)
        return describe(store)

    monkeypatch.setattr(FeatureStore, "described", change)
    with pytest.raises(ConfigError, match=r"a\.npz: changed while it was imported"):
        world.load()


@given(st.integers(1000, 3_600_000_000))
def test_segments_are_whole_steps(step_us: int) -> None:
    """A segment has 1 to 600 steps and, if there is more than one, lasts at most a minute."""
    length = segment_us(step_us)
    assert length % step_us == 0
    assert 1 <= length // step_us <= 600
    assert length <= max(60_000_000, step_us)


def test_the_door_reports_and_refuses(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 with the id, 2 with one line."""
    world.npz(**GOOD)
    arguments = ("no-config.yaml", (), world.output.root)
    assert run_import(*arguments, [str(world.files)], {"name": "x"}) == 0
    said = capsys.readouterr().out
    assert "imported\n1 videos, 3 steps of 0.5 s, vision 2 wide, audio 0 wide" in said
    assert run_import(*arguments, [str(world.files)], {"name": "x y"}) == 2
    assert capsys.readouterr().err.startswith("vca: features import: name = 'x y'")


# ------------------------------------------------------------------------------------------------ the set as an archive


def test_an_imported_set_stands_for_an_archive(world: World) -> None:
    """Its videos are the listing, in the schema of a listing, with the fingerprint as version."""
    world.npz("a.npz", **GOOD)
    world.npz("b.npz", **GOOD)
    found = world.load()
    archive = StoredArchive(ArchiveConfig(uri=f"features://{found.feature_set}"), world.output)
    archive.check()
    (batch,) = archive.list_batches()
    assert batch.schema.equals(LISTING)
    rows = batch.to_pylist()
    assert [(row["key"], row["kind"], row["plain"]) for row in rows] == [("a", "media", True), ("b", "media", True)]
    contents = archive.store.contents()
    assert {row["version"] for row in rows} == set(contents.column("fingerprint").to_pylist())
    assert archive.uri_of("a") == f"features://{found.feature_set}/a"


def test_the_plan_never_decodes_an_imported_set(world: World, tmp_path: Path) -> None:
    """What is new in a set is tagged from the store, under the fingerprint that the store knows it by."""
    world.npz("a.npz", **GOOD)
    world.npz("b.npz", **GOOD)
    found = world.load()
    archive = StoredArchive(ArchiveConfig(uri=f"features://{found.feature_set}"), world.output)
    published = open_output(world.output.root, StorageConfig())
    plan = make_plan(archive, published, Versions(found.feature_set, "m", "t"), 3, tmp_path)
    assert plan.counts == {("retag", "new"): 2}
    wanted = {row["video_id"]: row["fingerprint"] for row in plan.rows(Action.RETAG).to_pylist()}
    assert set(complete_videos(archive.store.index(wanted))) == set(wanted)


def test_only_imported_sets_stand_for_an_archive(world: World) -> None:
    """A set of a real archive lacks the files that failed: they would look deleted."""
    config = ArchiveConfig(uri=f"features://{'0' * 24}")
    with pytest.raises(ConfigError, match="holds no such feature set"):
        StoredArchive(config, world.output).check()
    FeatureStore(world.output, "0" * 24).describe({"step_us": 500_000}, Dims(1, 1))
    with pytest.raises(ConfigError, match="made from an archive; give the archive's location"):
        StoredArchive(config, world.output).check()
    with pytest.raises(ValueError, match="scheme 'features' is not supported"):
        ArchiveConfig(uri="features://not-an-id")


def test_an_imported_row_is_like_any_other(world: World) -> None:
    """The writer of the store takes it, so that whatever reads the store reads it."""
    world.npz(**GOOD)
    found = world.load()
    store = FeatureStore(world.output, found.feature_set)
    rows = store.read(store.parts(), [video_id("a")])
    copy = FeatureStore(world.output, "copy")
    writer = FeatureWriter(copy, "run", 1, 0.0)
    writer.add(rows)
    again = copy.read(copy.parts(), [video_id("a")])
    assert again.equals(rows)
    assert pc.all(pc.equal(again.column("coverage_us"), pc.subtract(again.column("end_us"), again.column("start_us"))))
