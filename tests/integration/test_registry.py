"""Registering, promoting and fetching models, on a real MLflow with SQLite, with a stub for the tagger."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.tiny_models import save_tiny
from vca.core.errors import ConfigError
from vca.core.records import CategoryScore, Event, Evidence, Prediction, VideoFeatures
from vca.core.schemas import FEATURES
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import Span
from vca.media.output import Output, OutputConfig
from vca.models.calibration import uncalibrated
from vca.models.evaluation import Interval
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.learning import build_learner, trainable_state
from vca.models.saved_model import save_model
from vca.models.weights import sha256_file
from vca.pipelines import registry, served
from vca.pipelines.config import TrackingConfig
from vca.pipelines.promotion import GateConfig, JudgedOn, RegisteredVersion, Trial, Verdict, weigh
from vca.pipelines.registry import (
    CANDIDATE,
    CHAMPION,
    ModelFacts,
    check_registry,
    facts_of,
    fetch_model,
    find_version,
    log_and_register,
    promote,
    resolve_champion,
)
from vca.pipelines.training_tracking import DatasetVersion, TrainingTracker

pytestmark = pytest.mark.integration

NAME = "vca-fusion"
SPLIT = JudgedOn(annotation_version="a1", split="s1", feature_set="f1", n_videos=40)
STEP_US = 500_000


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: making the tables takes seconds."""
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    _initialize_tables(create_engine(f"sqlite:///{path}"))
    return path


@pytest.fixture
def tracking(database: Path, tmp_path: Path) -> Iterator[TrackingConfig]:
    import mlflow

    shutil.copy(database, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    yield TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_uri=str(tmp_path / "artifacts"))
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


def client(tracking: TrackingConfig) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=tracking.uri)


def unreachable() -> TrackingConfig:
    """A server on a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return TrackingConfig(uri=f"http://127.0.0.1:{port}", timeout_s=1)


def model_folder(folder: Path, bias: float = 0.25) -> tuple[Path, ModelFacts]:
    """A folder with the files of a model, whose one weight is the score that the stub tagger gives."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"bias": np.array([bias], np.float32)}, folder / "weights.safetensors")
    checksum = sha256_file(folder / "weights.safetensors")
    version = f"stub-{checksum[:8]}"
    (folder / "taxonomy.yaml").write_text("name: stub\n")
    (folder / "calibration.json").write_text('{"tasks": {}}')
    (folder / "model.json").write_text(json.dumps({"model_version": version, "weights_sha256": checksum}))
    facts = ModelFacts(
        model_version=version,
        taxonomy_version="t1",
        feature_set="f1",
        preprocessing="p1",
        weights_sha256=checksum,
        step_us=STEP_US,
        dims=(3, 2),
        thresholds={"content.news": 0.4},
    )
    return folder, facts


def stub_tagger(folder: Path) -> served.Tagger:
    bias = float(load_file(folder / "weights.safetensors")["bias"][0])

    def tag(video: VideoFeatures) -> Prediction:
        n_vision = 0 if video.vision_mask is None else int(video.vision_mask.sum())
        first = CategoryScore("content", "news", bias, 0.4, bias >= 0.4, 1, Evidence(vision=1.0))
        second = replace(first, label="sports", score=n_vision / 100, selected=False, rank=2)
        event = Event("events", "applause", Span(0, video.duration_us), 0.75)
        return Prediction((first, second), (event,))

    return tag


def register(tracking: TrackingConfig, tmp_path: Path, bias: float, **options: Any) -> RegisteredVersion:
    folder, facts = model_folder(tmp_path / f"model-{bias}", bias)
    return log_and_register(folder, facts, NAME, tracking, **options)


def trial(champion: RegisteredVersion | None = None, low: float = 0.0, **changes: Any) -> Trial:
    if champion is None:
        return Trial(SPLIT, Interval(0.8, 0.7, 0.9), **changes)
    difference = Interval(low + 0.02, low, low + 0.04)
    return replace(Trial(SPLIT, Interval(0.8, 0.7, 0.9), champion, SPLIT, difference), **changes)


def segment_rows(video: str, n_segments: int = 2) -> pa.Table:
    """Rows of the feature store: two steps a segment, no sound, no picture in the first step."""
    rows = []
    for index in range(n_segments):
        start = index * 2 * STEP_US
        rows.append(
            {
                "video_id": video,
                "key": f"{video}.mp4",
                "fingerprint": "x",
                "segment_index": index,
                "n_segments": n_segments,
                "start_us": start,
                "end_us": start + 2 * STEP_US,
                "step_us": STEP_US,
                "coverage_us": 2 * STEP_US,
                "media": None,
                "vision": [None, np.array([1, 2, 3], np.float16)],
                "audio": None,
                "text": [{"start_us": start, "end_us": start + 1, "source": "subtitle", "text": "hello"}],
                "shots": [{"start_us": start, "end_us": start + 2 * STEP_US}],
            }
        )
    nullable = pa.schema([field.with_nullable(True) for field in FEATURES])
    return pa.Table.from_pylist(rows, nullable)


# --- the model in MLflow ---------------------------------------------------------------------------------------------


def test_a_registered_model_is_complete(tracking: TrackingConfig, tmp_path: Path) -> None:
    """Version, alias, tags, signature, example, metadata, checksums, and nothing in it that is code or a pickle."""
    import mlflow

    tracker = TrainingTracker(tracking, "train")
    made = register(tracking, tmp_path, 0.5, run_id=tracker.run_id)
    tracker.finish({}, {}, {}, {})
    assert tracker.error is None
    found = find_version(NAME, CANDIDATE, tracking)
    assert found == made
    assert made.run_id == tracker.run_id
    assert find_version(NAME, CHAMPION, tracking) is None

    local = Path(mlflow.artifacts.download_artifacts(artifact_uri=made.uri, dst_path=str(tmp_path / "down")))
    model = mlflow.models.Model.load(str(local))
    assert model.signature.inputs.input_names() == list(served.INPUT)
    assert model.signature.outputs.input_names() == list(served.OUTPUT)
    assert model.flavors["python_function"]["loader_module"] == "vca.pipelines.served"
    assert model.flavors["python_function"]["code"] is None
    assert model.metadata["vca.feature_set"] == "f1"
    assert model.metadata["vca.preprocessing"] == "p1"
    assert model.metadata["vca.taxonomy_version"] == "t1"
    assert model.metadata["vca.thresholds"] == {"content.news": 0.4}
    assert model.metadata["vca.weights_sha256"] == made.files["weights.safetensors"]
    assert model.load_input_example(str(local)) is not None
    names = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    assert {f"data/model/{name}" for name in made.files} <= names
    assert not [name for name in names if name.endswith((".py", ".pkl", ".pickle", ".bin", ".pt"))]
    assert "vca==" in (local / "requirements.txt").read_text()
    logged = client(tracking).get_run(made.run_id).outputs.model_outputs
    assert len(logged) == 1


def test_the_pyfunc_model_tags(tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded through MLflow, it tags the example, rows of the feature store, and plain JSON alike."""
    import mlflow

    made = register(tracking, tmp_path, 0.5)
    monkeypatch.setattr(served, "load_tagger", stub_tagger)
    model = mlflow.pyfunc.load_model(made.uri)
    assert list(model.predict(model.input_example).columns) == list(served.OUTPUT)

    rows = pa.concat_tables([segment_rows("a"), segment_rows("b", 1)])
    said = model.predict(rows.to_pandas())
    assert list(said.columns) == list(served.OUTPUT)
    assert said["video_id"].tolist() == ["a"] * 3 + ["b"] * 3
    a = said[said["video_id"] == "a"].set_index("label")
    assert a.loc["news", "score"] == pytest.approx(0.5)
    assert bool(a.loc["news", "selected"])
    assert a.loc["sports", "score"] == pytest.approx(0.02)  # one step with picture in each of two segments
    assert np.isnan(a.loc["news", "start_s"])
    assert (a.loc["applause", "start_s"], a.loc["applause", "end_s"]) == (0.0, 2.0)

    plain = json.loads(json.dumps(rows.to_pylist(), default=float))
    assert model.predict(plain).equals(said)


def test_a_real_model_survives_the_round_trip(tracking: TrackingConfig, tmp_path: Path) -> None:
    """Trained weights, calibration and taxonomy: registered, fetched and loaded by MLflow, the scores are equal."""
    import mlflow

    save_tiny(tmp_path / "plm", "bert")
    labels = [{"name": name, "description": name} for name in ("a", "b")]
    tasks = [{"name": "content", "kind": "multi_label", "description": "a", "labels": labels}]
    taxonomy = Taxonomy.model_validate({"name": "t", "tasks": tasks})
    inputs = {"window_s": 8, "overlap_s": 4, "max_text_tokens": 16}
    fusion = FusionConfig.model_validate({"plm": {"model": str(tmp_path / "plm"), "lora_rank": 2}, "inputs": inputs})
    vision = FeatureStatistics(mean=(0.0,) * 3, std=(1.0,) * 3)
    spec = FusionSpec(taxonomy=taxonomy, feature_set="f1", step_us=STEP_US, vision=vision)
    folder = tmp_path / "model"
    card = save_model(
        folder, fusion, spec, trainable_state(build_learner(fusion, spec, seed=1)), uncalibrated(taxonomy), {}
    )
    facts = facts_of(folder)
    assert (facts.model_version, facts.feature_set, facts.dims) == (card.model_version, "f1", (3, 0))
    assert facts.thresholds == {"content.a": 0.5, "content.b": 0.5}
    made = log_and_register(folder, facts, NAME, tracking)

    rows = segment_rows("a")
    said = mlflow.pyfunc.load_model(made.uri).predict(rows.to_pandas())
    output = Output(OutputConfig(uri=str(tmp_path / "out")))
    fetched = Path(output.path(fetch_model(made, output, tracking)))
    plain = served.ServedTagger(served.load_tagger(fetched)).predict(rows.to_pylist())
    assert said.equals(plain)
    assert sorted(said["label"]) == ["a", "b"]
    assert said["score"].between(0.001, 0.999).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_index": 7}, r"video 'a' has segments \[1, 7\] of 2; send all of them"),
        ({"vision": "red"}, "column 'vision' is not"),
        ({"text": [{"start_us": "soon"}]}, "column 'text' is not"),
        ({"n_segments": None}, "column 'n_segments' has a null"),
    ],
)
def test_bad_rows_are_one_line(change: dict[str, Any], message: str) -> None:
    """What somebody sends to a served model is not trusted."""
    rows = segment_rows("a").to_pylist()
    rows[0] |= change
    with pytest.raises(ConfigError, match=message):
        served.ServedTagger(stub_tagger).predict(rows)  # type: ignore[arg-type]
    del rows[0]["step_us"]
    with pytest.raises(ConfigError, match="column 'step_us' is missing"):
        served.feature_rows(rows)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["set_registered_model_alias", "create_model_version", "log_model_artifacts"])
def test_a_failure_leaves_no_half_version(
    broken: str, tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step fails, the registry is as before: the old candidate, no new version, no ready model without one."""
    import mlflow

    before = register(tracking, tmp_path, 0.5)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(mlflow.MlflowClient, broken, fail)
    with pytest.raises(ConfigError, match=r"registering the model failed .OSError: disk full.; check") as caught:
        register(tracking, tmp_path, 0.75)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    mlflow_client = client(tracking)
    assert [v.version for v in mlflow_client.search_model_versions(f"name='{NAME}'")] == [int(before.version)]
    assert find_version(NAME, CANDIDATE, tracking) == before
    experiment = mlflow_client.get_experiment_by_name(tracking.experiment).experiment_id
    assert len(mlflow_client.search_logged_models([experiment])) == 1
    states = {run.info.status for run in mlflow_client.search_runs([experiment])}
    assert states == {"FINISHED", "FAILED"}
    assert (tmp_path / "model-0.75" / "model.json").is_file()


def test_a_failed_first_registration_leaves_no_name(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty entry in the registry would look like a model."""
    import mlflow

    monkeypatch.setattr(mlflow.MlflowClient, "create_model_version", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match="registering the model failed"):
        register(tracking, tmp_path, 0.5)
    assert list(client(tracking).search_registered_models()) == []


def test_server_down_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No MLflow, no registration: every door says so in one line that names the server, and quickly."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    down = unreachable()
    version = RegisteredVersion(NAME, "1", "r", "m1", "f1", "t1", {"model.json": "0"})
    output = Output(OutputConfig(uri=str(tmp_path / "out")))
    for call in (
        lambda: check_registry(registry.RegistryConfig(), down),
        lambda: register(down, tmp_path, 0.5),
        lambda: resolve_champion(NAME, down),
        lambda: fetch_model(version, output, down),
        lambda: promote(version, trial(), GateConfig(), down),
    ):
        with pytest.raises(
            ConfigError, match=rf"^tracking.uri = '{down.uri}': .* failed .*; check that this MLflow"
        ) as e:
            call()
        assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"tracking.enabled = false"):
        check_registry(registry.RegistryConfig(), TrackingConfig(enabled=False))


def test_no_champion_is_one_line(tracking: TrackingConfig, tmp_path: Path) -> None:
    """The nightly job with `model: auto` must say what to do, with and without versions in the registry."""
    check_registry(registry.RegistryConfig(), tracking)
    with pytest.raises(ConfigError, match="no champion of 'vca-fusion'; train one with `vca finetune`"):
        resolve_champion(NAME, tracking)
    register(tracking, tmp_path, 0.5)
    with pytest.raises(ConfigError, match="no champion of 'vca-fusion'"):
        resolve_champion(NAME, tracking)


# --- the gate --------------------------------------------------------------------------------------------------------


def test_only_a_better_model_becomes_champion(tracking: TrackingConfig, tmp_path: Path) -> None:
    """First, not better, better, overridden: alias and tags of the version tell the story."""
    gate = GateConfig()
    first = register(tracking, tmp_path, 0.5)
    assert promote(first, trial(), gate, tracking).promoted
    assert resolve_champion(NAME, tracking) == first

    second = register(tracking, tmp_path, 0.6)
    verdict = promote(second, trial(first, low=-0.01), gate, tracking)
    assert not verdict.promoted
    assert resolve_champion(NAME, tracking) == first
    tags = client(tracking).get_model_version(NAME, second.version).tags
    assert tags["vca.promotion"] == "not promoted"
    assert tags["vca.promotion.difference"] == "0.010000 [-0.010000, 0.030000]"
    assert tags["vca.promotion.against"] == first.version
    assert tags["vca.promotion.split"] == "s1"
    assert "vca.promotion.override" not in tags

    third = register(tracking, tmp_path, 0.7)
    assert promote(third, trial(first, low=0.001), gate, tracking).promoted
    assert resolve_champion(NAME, tracking) == third
    assert client(tracking).get_model_version(NAME, third.version).tags["vca.promotion"] == "champion"

    forced = GateConfig(override="the old one tags faces")
    assert promote(second, trial(third, low=-0.5), forced, tracking).overridden
    assert resolve_champion(NAME, tracking) == second
    tags = client(tracking).get_model_version(NAME, second.version).tags
    assert tags["vca.promotion.override"] == "the old one tags faces"
    assert "lower bound is not above 0" in tags["vca.promotion.reason"]


def test_a_champion_that_changed_meanwhile_is_kept(tracking: TrackingConfig, tmp_path: Path) -> None:
    """Better than the old champion says nothing about the new one."""
    first, second, third = (register(tracking, tmp_path, bias) for bias in (0.5, 0.6, 0.7))
    promote(first, trial(), GateConfig(), tracking)
    promote(second, trial(first, low=0.1), GateConfig(), tracking)
    with pytest.raises(ConfigError, match="champion was version 1 when version 3 was judged and is 2 now"):
        promote(third, trial(first, low=0.2), GateConfig(), tracking)
    assert resolve_champion(NAME, tracking) == second
    assert "vca.promotion" not in client(tracking).get_model_version(NAME, third.version).tags


@pytest.mark.parametrize("field", ["annotation_version", "split", "feature_set"])
def test_another_test_split_does_not_compare(field: str) -> None:
    """A gain on other videos, labels or features is no gain; an override says so in the reason."""
    champion = RegisteredVersion(NAME, "4", "r", "m", "f", "t", {"model.json": "0"})
    other = replace(SPLIT, **{field: "else"})
    verdict = weigh(trial(champion, low=0.5, champion_judged_on=other), GateConfig())
    assert verdict == Verdict(
        False, f"champion version 4 was judged on another {field} (else), so they cannot be compared"
    )
    assert not weigh(trial(champion, low=0.5, difference=None), GateConfig()).promoted
    assert not weigh(trial(champion, low=float("nan")), GateConfig()).promoted
    assert weigh(trial(champion, low=0.02), GateConfig(margin=0.01)).promoted
    assert not weigh(trial(champion, low=0.01), GateConfig(margin=0.01)).promoted
    unneeded = weigh(trial(champion, low=0.02), GateConfig(override="why not"))
    assert unneeded.promoted
    assert not unneeded.overridden


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_then_needs_no_mlflow(tracking: TrackingConfig, tmp_path: Path) -> None:
    """Workers and later nights read the output; the files are those that were registered."""
    made = register(tracking, tmp_path, 0.5)
    output = Output(OutputConfig(uri=str(tmp_path / "out")))
    place = fetch_model(made, output, tracking)
    assert place == f"models/{made.model_version}"
    assert {Path(name).name: sha256_file(Path(output.path(name))) for name in output.list(place)} == dict(made.files)
    assert fetch_model(made, output, unreachable()) == place
    (Path(output.path(place)) / "model.json").unlink()  # as if the first copy had been cut short
    assert fetch_model(made, output, tracking) == place
    Path(output.path(place), "calibration.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"{place} is not the model that models:/vca-fusion/1 registered; delete it"):
        fetch_model(made, output, tracking)


def test_changed_artifacts_are_refused(tracking: TrackingConfig, tmp_path: Path) -> None:
    """Who can write to the artifact store cannot slip in other weights or files, and a loss is named."""
    made = register(tracking, tmp_path, 0.5)
    output = Output(OutputConfig(uri=str(tmp_path / "out")))
    (weights,) = (tmp_path / "artifacts").rglob("weights.safetensors")
    save_file({"bias": np.array([0.9], np.float32)}, weights)
    with pytest.raises(ConfigError, match=r"weights.safetensors is not what was registered \(other sha256\)"):
        fetch_model(made, output, tracking)
    (weights.parent / "extra.py").write_text("raise SystemExit")
    with pytest.raises(ConfigError, match=r"extra.py is not what was registered"):
        fetch_model(made, output, tracking)
    (weights.parent / "extra.py").unlink()
    weights.unlink()
    with pytest.raises(ConfigError, match=r"weights.safetensors is missing; restore the artifact"):
        fetch_model(made, output, tracking)
    shutil.rmtree(weights.parents[2])
    with pytest.raises(ConfigError, match=r"fetching models:/vca-fusion/1 failed|hold no data/model"):
        fetch_model(made, output, tracking)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("vca.model_version", "../../etc", "its tags name '../../etc'"),
        ("vca.files", '{"../model.json": "0"}', "its tags name '..'"),
        ("vca.files", "{}", "its tags name 'no file'"),
        ("vca.files", "oops", "missing or damaged"),
    ],
)
def test_tags_are_not_trusted(tag: str, value: str, message: str, tracking: TrackingConfig, tmp_path: Path) -> None:
    """Anybody who may edit tags could otherwise name a path outside the output."""
    made = register(tracking, tmp_path, 0.5)
    client(tracking).set_model_version_tag(NAME, made.version, tag, value)
    with pytest.raises(ConfigError, match=message):
        find_version(NAME, CANDIDATE, tracking)


# --- the training's run ----------------------------------------------------------------------------------------------


def test_a_training_run_is_recorded(tracking: TrackingConfig, tmp_path: Path) -> None:
    """Parameters, curves by epoch, dataset versions, report files; started again, the same run goes on."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("<p>figures</p>")
    tracker = TrainingTracker(tracking, "train")
    tracker.parameters({"train": {"epochs": 3, "lr_plm": 2e-4}, "fusion": {"plm": {"tune": "lora"}}})
    for number in (1, 2):
        tracker.epoch(number, {"train.loss": 1 / number, "validation.score": 0.4 * number})
    assert tracker.error is None
    import mlflow

    mlflow.end_run("FAILED")  # the job was killed

    again = TrainingTracker(tracking, "train", resume=tracker.run_id)
    assert again.run_id == tracker.run_id
    again.parameters({"train": {"epochs": 5, "lr_plm": 2e-4}, "seed": 1})
    again.epoch(3, {"train.loss": 0.1})
    again.datasets([DatasetVersion("annotations", str(tmp_path / "labels.jsonl"), "a1", "training")])
    again.figures({"test.content.map_macro": 0.9})
    again.folder(tmp_path / "report", "report")
    again.finish({}, {"vca.model_version": "m"}, {"config.yaml": "train: {}\n"}, {})
    assert again.error is None
    found = client(tracking).get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {
        "train.epochs": "3", "train.lr_plm": "0.0002", "fusion.plm.tune": "lora", "seed": "1",
    }  # fmt: skip
    assert json.loads(found.data.tags["vca.changed_on_resume"]) == {"train.epochs": "5"}
    curve = client(tracking).get_metric_history(tracker.run_id, "train.loss")
    assert [(m.step, m.value) for m in sorted(curve, key=lambda m: m.step)] == [(1, 1.0), (2, 0.5), (3, 0.1)]
    assert found.data.metrics["test.content.map_macro"] == 0.9
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("annotations", "a1")
    names = {item.path for item in client(tracking).list_artifacts(tracker.run_id)}
    assert names == {"report", "config.yaml"}


def test_a_run_that_is_gone_gives_way_to_a_new_one(tracking: TrackingConfig) -> None:
    """A database that was lost must not stop a training that goes on."""
    tracker = TrainingTracker(tracking, "train", resume="0" * 32)
    assert tracker.error is None
    assert tracker.run_id not in (None, "0" * 32)
    tracker.finish({}, {}, {}, {})


def test_what_was_not_sent_is_sent_at_the_end(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is down for an hour costs no curve, and does not slow every epoch down."""
    import mlflow

    tracker = TrainingTracker(tracking, "train")
    tracker.epoch(1, {"train.loss": 3.0})
    calls = []

    def fail(*_: object, **__: object) -> None:
        calls.append(1)
        raise ConnectionError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", fail)
        tracker.epoch(2, {"train.loss": 2.0})
        tracker.epoch(3, {"train.loss": 1.0})
        assert tracker.state == "FAILED, the model is kept all the same (curves: ConnectionError: refused)"
        assert len(calls) == 1
    tracker.finish({}, {}, {}, {})
    assert tracker.error is None
    curve = client(tracking).get_metric_history(tracker.run_id, "train.loss")
    assert sorted((m.step, m.value) for m in curve) == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_dead_server_does_not_stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls return, and the state says what happened."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracker = TrainingTracker(unreachable(), "train")
    tracker.parameters({"a": 1})
    tracker.epoch(1, {"train.loss": 1.0})
    tracker.finish({}, {}, {}, {})
    assert tracker.run_id is None
    assert tracker.state.startswith("FAILED, the model is kept all the same (start: ")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
