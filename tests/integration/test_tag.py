"""The main job on the generated archive: real files, real Ray, real tables."""

import shutil
from pathlib import Path

import pytest

from tests.support import nights
from tests.support.nights import make_archive
from tests.support.runs import LIGHT, Job, stable_rows
from vca.core.schemas import TABLES
from vca.media.demo import demo_truth
from vca.pipelines import cluster, run
from vca.tables.query import query

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def tagged(demo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The archive after its first night, MLflow included."""
    folder = tmp_path_factory.mktemp("tagged")
    archive = folder / "archive"
    shutil.copytree(demo_archive, archive)
    job = Job(
        str(archive),
        str(folder / "out"),
        (
            "tracking.enabled=true",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
            f"tracking.artifact_uri={folder / 'artifacts'}",
            "sampling.segment_s=30",
        ),
    )
    assert job.tag() == run.EXIT_OK, job.text
    return job


def test_every_file_ends_in_the_state_the_truth_says(tagged: Job) -> None:
    """Tagged, partial or quarantined with the right code; the run balances."""
    truth = {clip.key: (str(clip.status), clip.error_code and str(clip.error_code)) for clip in demo_truth(seed=0)}
    found = {row["key"]: (row["status"], row["error_code"]) for row in tagged.query("FROM videos")}
    assert {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in truth.items()}
    assert {k: v[1] for k, v in found.items() if truth[k][0] == "quarantined"} == {
        k: v[1] for k, v in truth.items() if v[0] == "quarantined"
    }
    (row,) = tagged.query("FROM runs")
    states = ("tagged", "partial", "unchanged", "quarantined", "deferred", "gone")
    assert row["listed"] == len(truth) == sum(row[state] for state in states)


def test_durations_and_text_are_the_truth(tagged: Job) -> None:
    """Lengths to 0.1 s; every subtitle with its words and its times to 0.1 s."""
    lengths = {row["key"]: row["duration_s"] for row in tagged.query("FROM videos WHERE status = 'tagged'")}
    pieces = tagged.query("FROM transcripts WHERE source IN ('subtitle', 'sidecar')")
    n_checked = 0
    for clip in demo_truth(seed=0):
        if clip.key not in lengths:
            continue
        assert lengths[clip.key] == pytest.approx(clip.duration_us / 1e6, abs=0.15), clip.key
        found = [(p["text"], p["start_s"], p["end_s"]) for p in pieces if p["key"] == clip.key]
        for piece in clip.texts:
            if str(piece.source) not in ("subtitle", "sidecar"):
                continue
            matches = [f for f in found if f[0] == piece.text]
            assert any(
                start == pytest.approx(piece.start_us / 1e6, abs=0.1)
                and end == pytest.approx(piece.end_us / 1e6, abs=0.1)
                for _, start, end in matches
            ), (clip.key, piece, found)
            n_checked += 1
    assert n_checked > 20


def test_burned_in_titles_are_read(tagged: Job) -> None:
    """OCR finds most words of most titles."""
    read = {
        row["key"]: row["words"].lower()
        for row in tagged.query(
            "SELECT key, string_agg(text, ' ') AS words FROM transcripts WHERE source = 'ocr' GROUP BY key"
        )
    }
    titles = {
        clip.key: [p.text for p in clip.texts if str(p.source) == "ocr" and p.text]
        for clip in demo_truth(seed=0)
        if str(clip.status) == "tagged"
    }
    words = [(key, word) for key, texts in titles.items() for text in texts for word in text.lower().split()]
    assert words
    hits = sum(word in read.get(key, "") for key, word in words)
    assert hits / len(words) > 0.8, f"{hits} of {len(words)} words"


def test_a_long_video_is_cut_into_segments_that_join(tagged: Job) -> None:
    """Shots cover each video without hole or overlap, across the seams of its segments."""
    rows = tagged.query(
        """
        SELECT v.key, v.duration_s, min(s.start_s) AS first, max(s.end_s) AS last, sum(s.end_s - s.start_s) AS total
        FROM videos v JOIN shots s USING (video_id) WHERE v.status = 'tagged' AND v.has_video
        GROUP BY ALL
        """
    )
    assert any(row["duration_s"] > 60 for row in rows), "the demo has a video of several segments"
    for row in rows:
        assert row["first"] == 0.0
        assert row["total"] == pytest.approx(row["last"], abs=1e-6), row


def test_encoders_of_their_own_find_the_same(demo_archive: Path, tmp_path: Path) -> None:
    """As where GPUs encode: pictures go from worker to worker, and the tables are those of readers that encode."""
    archive = make_archive(demo_archive, tmp_path / "archive", nights.SECOND)
    jobs = [
        Job(str(archive), str(tmp_path / name), (*LIGHT, "sampling.segment_s=10", *more))
        for name, more in (("together", ()), ("apart", ("resources.encoders=1",)))
    ]
    for job in jobs:
        assert job.tag() == run.EXIT_OK, job.text
    for table in set(TABLES) - {"runs"}:
        together, apart = (stable_rows(job.reader(), table) for job in jobs)
        assert apart.equals(together), table
    assert jobs[0].query("SELECT count(*) AS n FROM step_scores")[0]["n"] > 0


def test_second_run_decodes_nothing(tagged: Job) -> None:
    """Unchanged means no decoding, no tagging, no Ray work, and saying so."""
    before = tagged.query("SELECT count(*) AS n FROM all_videos")
    assert tagged.tag() == run.EXIT_OK
    assert "nothing to do: all unchanged" in tagged.text
    assert "nothing decoded" in tagged.text
    assert tagged.query("SELECT count(*) AS n FROM all_videos") == before
    newest = tagged.query("FROM runs ORDER BY run_id DESC LIMIT 1")[0]
    assert newest["unchanged"] == newest["listed"]
    assert newest["decoded_s"] == 0


def test_a_new_taxonomy_needs_no_decoding(tagged: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags are remade from the feature store; the reader is not even started."""

    def refuse(*_: object) -> None:
        raise AssertionError("a new taxonomy must not decode")

    monkeypatch.setattr(cluster, "read_and_encode", refuse)
    copy = tmp_path / "out"
    shutil.copytree(Path(tagged.output), copy)
    taxonomy = tmp_path / "taxonomy.yaml"
    taxonomy.write_text(
        """
        name: one task
        tasks:
          - name: topic
            kind: multi_label
            description: what it is about
            labels:
              - {name: cooking, description: Cooking food in a kitchen, prompts: ["Chop the onions and fry them"]}
              - {name: weather, description: A weather forecast, prompts: ["Rain and wind are expected tomorrow"]}
        """
    )
    job = Job(tagged.archive, str(copy), ("sampling.segment_s=30",))
    assert job.tag(f"taxonomy={taxonomy}") == run.EXIT_OK, job.text
    tasks = job.query("SELECT DISTINCT task FROM video_categories")
    assert tasks == [{"task": "topic"}]
    assert job.query("SELECT count(*) AS n FROM transcripts") == tagged.query("SELECT count(*) AS n FROM transcripts")


def test_changed_new_and_deleted_files(tagged: Job, tmp_path: Path) -> None:
    """Each change redoes its own video; a deleted one leaves the tables."""
    archive, out = tmp_path / "archive", tmp_path / "out"
    shutil.copytree(tagged.archive, archive, copy_function=shutil.copy2)
    shutil.copytree(Path(tagged.output), out)
    good = [
        clip.key for clip in demo_truth(seed=0) if str(clip.status) == "tagged" and clip.has_video and not clip.sidecar
    ]
    replaced, deleted, source = good[:3]
    (archive / replaced).write_bytes((archive / source).read_bytes())
    (archive / deleted).unlink()
    (archive / f"new{Path(source).suffix}").write_bytes((archive / source).read_bytes())
    job = Job(str(archive), str(out), ("sampling.segment_s=30",))
    assert job.tag() == run.EXIT_OK, job.text
    newest = job.query("FROM runs ORDER BY run_id DESC LIMIT 1")[0]
    assert (newest["tagged"], newest["gone"]) == (2, 1), newest
    keys = {row["key"] for row in job.query("SELECT key FROM videos")}
    assert deleted not in keys
    assert f"new{Path(source).suffix}" in keys
    same = (
        job.query(f"SELECT task, label, score FROM video_categories WHERE key = '{replaced}' ORDER BY ALL"),
        job.query(f"SELECT task, label, score FROM video_categories WHERE key = '{source}' ORDER BY ALL"),
    )
    assert same[0] == same[1], "equal content gives equal tags"


def test_a_run_stopped_before_tagging_keeps_its_features(
    demo_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decoded before a crash is not decoded again."""
    archive = tmp_path / "archive"
    archive.mkdir()
    clips = [c for c in demo_truth(seed=0) if str(c.status) == "tagged" and c.duration_us < 20_000_000][:3]
    for clip in clips:
        (archive / Path(clip.key).name).write_bytes((demo_archive / clip.key).read_bytes())
    job = Job(str(archive), str(tmp_path / "out"), LIGHT)

    def crash(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "predict", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            job.tag()
    assert job.reader().current() is None, "nothing is published"
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "read_and_encode", crash)
        assert job.tag() == run.EXIT_OK, job.text
    assert job.query("SELECT count(*) AS n FROM videos WHERE status = 'tagged'") == [{"n": 3}]


def test_mlflow_has_one_run_per_job(tagged: Job) -> None:
    """Configuration, versions, counts, throughput, manifest and tables are in MLflow, under the id in `runs`."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tagged.config().tracking.uri)
    first = tagged.query("FROM runs ORDER BY run_id LIMIT 1")[0]
    tracked = client.get_run(first["mlflow_run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["sampling.step_ms"] == "500"
    assert tracked.data.metrics["listed"] == first["listed"]
    assert tracked.data.metrics["videos_quarantined"] == first["quarantined"]
    assert tracked.data.metrics["realtime_factor"] > 0
    assert tracked.data.tags["vca.run_id"] == first["run_id"]
    names = {item.path for item in client.list_artifacts(first["mlflow_run_id"])}
    assert {"manifest.json", "config.json", "summary.txt"} <= names
    datasets = {item.dataset.name for item in tracked.inputs.dataset_inputs}
    assert {"videos", "video_categories", "event_spans"} <= datasets


@pytest.mark.long
def test_broken_tracking_never_loses_a_night(demo_archive: Path, tmp_path: Path) -> None:
    """The tables are published and the summary says that tracking failed."""
    archive = tmp_path / "archive"
    archive.mkdir()
    clip = next(c for c in demo_truth(seed=0) if str(c.status) == "tagged" and c.duration_us < 20_000_000)
    (archive / Path(clip.key).name).write_bytes((demo_archive / clip.key).read_bytes())
    job = Job(str(archive), str(tmp_path / "out"), LIGHT)
    assert job.tag("tracking.enabled=true", "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=2") == run.EXIT_OK
    assert "tracking   FAILED" in job.text
    assert job.query("SELECT mlflow_run_id FROM runs") == [{"mlflow_run_id": None}]
    assert len(query(job.reader(), "FROM videos")) == 1


def test_over_budget_is_exit_code_1_and_still_published(tmp_path: Path) -> None:
    """More failures than the budget: the tables are there, the exit code says look."""
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "empty.mp4").touch()
    job = Job(str(archive), str(tmp_path / "out"), LIGHT)
    assert job.tag("run.failure_budget=0.5") == run.EXIT_OVER_BUDGET
    assert "OVER THE FAILURE BUDGET" in job.text
    assert job.query("SELECT status, error_code FROM videos") == [{"status": "quarantined", "error_code": "empty_file"}]
    assert job.query("SELECT stage, will_retry, attempts FROM quarantine") == [
        {"stage": "probe", "will_retry": False, "attempts": 1}
    ]
