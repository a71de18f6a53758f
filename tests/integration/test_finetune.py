"""From labels to tags by the fine-tuned champion, on a small labelled archive: the whole way, once."""

import json
from pathlib import Path

import pytest

from tests.support.runs import LIGHT, Job
from tests.support.tiny_models import save_tiny
from vca.core.errors import ConfigError
from vca.media.demo_labelled import labelled_clips, make_labelled_archive, write_annotations
from vca.media.output import Output
from vca.pipelines.finetune import dry_run, evaluate_model, finetune
from vca.pipelines.finetune_config import FinetuneConfig, read_finetune_config
from vca.pipelines.registry import CHAMPION, find_version

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

N_CLIPS = 24


class Place:
    """One archive with labels, tagged zero-shot, and one output."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self.repository = repository
        self.tracking = f"sqlite:///{folder}/mlflow.db"
        self.labels = folder / "labels.jsonl"
        make_labelled_archive(folder / "archive", N_CLIPS)
        write_annotations(self.labels, labelled_clips(N_CLIPS))
        save_tiny(folder / "plm", "bert")
        tracked = (
            "tracking.enabled=true",
            f"tracking.uri={self.tracking}",
            f"tracking.artifact_uri={folder}/artifacts",
        )
        self.job = Job(str(folder / "archive"), str(folder / "out"), (*LIGHT, *tracked))

    def config(self, *settings: str) -> FinetuneConfig:
        return read_finetune_config(
            str(self.repository / "configs" / "demo_finetune.yaml"),
            [
                f"output.uri={self.folder}/out",
                f"taxonomy={self.repository}/configs/taxonomy.yaml",
                f"annotations.files=['{self.labels}']",
                f"fusion.plm={{model: '{self.folder}/plm', lora_rank: 4}}",
                "fusion.inputs={window_s: 10, overlap_s: 2, max_text_tokens: 32}",
                "registry.name=vca-fusion",
                "min_positives=1",
                "train.epochs=2",
                "baselines=[zeroshot, probe]",
                "evaluation.bootstrap_samples=20",
                f"tracking.uri={self.tracking}",
                f"tracking.artifact_uri={self.folder}/artifacts",
                *settings,
            ],
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, repository: Path, ray_cluster: None) -> Place:
    found = Place(tmp_path_factory.mktemp("finetune"), repository)
    assert found.job.tag() == 0, found.job.text
    return found


def test_labels_to_tags(place: Place) -> None:
    """Train, compare, register, tag with the champion, find everything again."""
    said: list[str] = []
    assert "no champion" in place.job.text
    assert finetune(place.config(), said.append) == 0
    text = "\n".join(said)
    for system in ("fusion", "linear probe", "zero-shot", "fusion vision+audio", "fusion text"):
        assert system in text
    assert "champion, there was no champion" in text
    assert "Traceback" not in text

    champion = find_version("vca-fusion", CHAMPION, place.config().tracking)
    assert champion is not None
    output = Output(place.job.config().output)
    report = json.loads(output.read_bytes(f"reports/{champion.model_version}/comparison.json"))
    assert set(report["systems"]) >= {"fusion", "zero-shot", "linear probe", "uncalibrated"}
    assert report["evidence"]["n_pairs"] >= 0
    assert output.exists(f"reports/{champion.model_version}/report.html")

    # The champion tags from the stored features: nothing is decoded.
    assert place.job.tag() == 0, place.job.text
    assert "tagged by another model" in place.job.text
    (run, *_) = place.job.query("FROM runs ORDER BY run_id DESC")
    assert run["model_version"].startswith(f"{champion.model_version}+zeroshot-")
    assert run["decoded_s"] == 0
    labels = {(r["task"], r["label"]) for r in place.job.query("SELECT DISTINCT task, label FROM video_categories")}
    assert ("content", "comedy") in labels, "labels that were not trained keep their zero-shot scores"
    shares = place.job.query(
        "SELECT evidence.vision + evidence.audio + evidence.text AS total FROM video_categories "
        "WHERE task = 'sentiment' AND video_id IN (SELECT video_id FROM videos WHERE has_video)"
    )
    assert all(row["total"] == pytest.approx(1, abs=1e-3) for row in shares)

    # The same again: training is found, the model is the champion already, tagging finds all unchanged.
    said.clear()
    assert finetune(place.config(), said.append) == 0
    assert "is this model already" in "\n".join(said)
    assert place.job.tag() == 0
    assert "nothing to do: all unchanged" in place.job.text

    said.clear()
    assert evaluate_model(place.config(), said.append) == 0
    assert "linear probe" in "\n".join(said)


def test_a_champion_of_other_features_is_one_line(place: Place) -> None:
    """Exit code 2 before anything is touched, with the way out."""
    with pytest.raises(ConfigError, match=r"trained on feature set \w+, this configuration makes \w+; restore"):
        place.job.tag("sampling.step_ms=1000")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"key": "a.mp4", "task": "content", "label": "musik"}', r"line 1: label 'musik' is not in task content"),
        ('{"key": "a.mp4", "task": "content", "label": "music"}', r"none of the 1 annotated videos has features"),
    ],
)
def test_bad_labels(place: Place, tmp_path: Path, row: str, message: str) -> None:
    """A label outside the taxonomy, and labels of videos that nobody tagged."""
    file = tmp_path / "labels.jsonl"
    file.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        finetune(place.config(f"annotations.files=['{file}']"), lambda _: None)


def test_an_empty_split(place: Place, tmp_path: Path) -> None:
    """Without a test split nothing can be reported, so nothing is trained."""
    rows = [line for line in place.labels.read_text("utf-8").splitlines() if json.loads(line)["split"] != "test"]
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no video of split 'test' has features; annotate some"):
        finetune(place.config(f"annotations.files=['{file}']"), lambda _: None)


def test_a_registry_that_is_down(place: Place) -> None:
    """Known before the training begins: one line, and nothing written."""
    with pytest.raises(ConfigError, match=r"tracking.uri = 'http://127.0.0.1:9': .* failed"):
        finetune(place.config("tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=2"), lambda _: None)


def test_dry_run(place: Place) -> None:
    """Says what there is to learn from."""
    assert f"{N_CLIPS} annotated videos" in dry_run(place.config())
