"""`make demo`, from generated clips to tags by the fine-tuned champion, smaller than as shipped: all steps the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import local_reader, run_command
from vca.core.errors import ConfigError
from vca.pipelines import run as tag_run
from vca.pipelines.config import read_config
from vca.pipelines.finetune import dry_run, finetune
from vca.pipelines.finetune_config import FinetuneConfig, read_finetune_config
from vca.pipelines.registry import CHAMPION, find_version
from vca.tables.query import query

pytestmark = [pytest.mark.integration, pytest.mark.slow]

N_CLIPS = 20
SMALL = ("train.epochs=1", "min_positives=1", "baselines=[zeroshot,probe]", "evaluation.bootstrap_samples=20")
SMALL_FLAGS = " ".join(f"--set {setting}" for setting in SMALL)


class Demo:
    """A checkout in which `make demo` ran; `said` is what it printed."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.folder = checkout / "demo"
        self.said = self.run(f"make demo CLIPS={N_CLIPS} 'FINETUNE={SMALL_FLAGS}'")

    def run(self, command: str) -> str:
        done = run_command(command, self.checkout)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-6000:]
        assert "Traceback" not in said
        return said

    def places(self) -> list[str]:
        """The settings of configs/demo*.yaml that are relative to the checkout."""
        return [
            f"output.uri={self.folder}/output",
            f"taxonomy={self.checkout}/configs/taxonomy.yaml",
            f"tracking.uri=sqlite:///{self.folder}/mlflow.db",
            f"tracking.artifact_uri={self.folder}/mlartifacts",
        ]

    def config(self, *settings: str) -> FinetuneConfig:
        annotations = f"annotations.files=['{self.folder}/annotations.jsonl']"
        return read_finetune_config(
            str(self.checkout / "configs" / "demo_finetune.yaml"), [*self.places(), annotations, *SMALL, *settings]
        )

    def tag(self, *settings: str) -> int:
        archive = f"archive.uri={self.folder}/archive"
        config = read_config(str(self.checkout / "configs" / "demo.yaml"), [*self.places(), archive, *settings])
        return tag_run.tag(config, say=lambda _: None)

    def query(self, sql: str) -> list[dict[str, Any]]:
        return query(local_reader(self.folder / "output"), sql).to_pylist()


@pytest.fixture(scope="module")
def demo(checkout: Path) -> Demo:
    return Demo(checkout)


def test_what_it_prints(demo: Demo) -> None:
    """Both runs balance; every system is compared; the model is registered, and the second run tags with it."""
    assert len(re.findall(rf"balance +{N_CLIPS + 16} listed = ", demo.said)) == 2, demo.said
    assert re.search(r"^fusion .*\n.*^linear probe ", demo.said, re.M | re.S), demo.said
    for system in ("zero-shot", "fusion vision+audio", "fusion text"):
        assert system in demo.said
    assert re.search(r"^registry +models:/vca-demo/\d+: .*there was no champion", demo.said, re.M), demo.said
    assert re.search(r"^model fusion-\w+, the champion", demo.said, re.M), demo.said
    assert "output     " in demo.said
    assert "tracking   run " in demo.said


def test_the_model_is_found_again(demo: Demo) -> None:
    """In the registry, in its reports, and in the tables that it made without decoding."""
    champion = find_version("vca-demo", CHAMPION, demo.config().tracking)
    assert champion is not None
    reports = demo.folder / "output" / "reports" / champion.model_version
    report = json.loads((reports / "comparison.json").read_bytes())
    assert set(report["systems"]) >= {"fusion", "zero-shot", "linear probe", "uncalibrated"}
    assert report["evidence"]["n_pairs"] > 0
    assert "<html" in (reports / "report.html").read_text("utf-8")

    (run, *_) = demo.query("FROM runs ORDER BY run_id DESC")
    assert run["model_version"].startswith(f"{champion.model_version}+zeroshot-")
    assert run["decoded_s"] == 0
    labels = {(r["task"], r["label"]) for r in demo.query("SELECT DISTINCT task, label FROM video_categories")}
    assert ("content", "comedy") in labels, "labels that were not trained keep their zero-shot scores"
    shares = demo.query(
        "SELECT evidence.vision + evidence.audio + evidence.text AS total FROM video_categories "
        "WHERE task = 'sentiment' AND video_id IN (SELECT video_id FROM videos WHERE has_video)"
    )
    assert len(shares) >= N_CLIPS
    assert all(row["total"] == pytest.approx(1, abs=1e-3) for row in shares)


def test_the_same_again(demo: Demo) -> None:
    """Training is found finished, the model is the champion already, tagging finds all unchanged; and it is judged."""
    again = demo.run(f".venv/bin/vca finetune --config configs/demo_finetune.yaml {SMALL_FLAGS}")
    assert "is this model already" in again
    assert "epoch 1/1" in again, "the epochs of the first time are told"
    assert "nothing to do: all unchanged" in demo.run(".venv/bin/vca tag --config configs/demo.yaml")
    judged = demo.run(f".venv/bin/vca evaluate --config configs/demo_finetune.yaml {SMALL_FLAGS}")
    assert "linear probe" in judged


def test_a_champion_of_other_features_is_one_line(demo: Demo) -> None:
    """Exit code 2 before anything is touched, with the way out."""
    with pytest.raises(ConfigError, match=r"trained on feature set \w+, this configuration makes \w+; restore"):
        demo.tag("sampling.step_ms=1000")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"key": "a.mp4", "task": "content", "label": "musik"}', r"line 1: label 'musik' is not in task content"),
        ('{"key": "a.mp4", "task": "content", "label": "music"}', r"none of the 1 annotated videos has features"),
    ],
)
def test_bad_labels(demo: Demo, tmp_path: Path, row: str, message: str) -> None:
    """A label outside the taxonomy, and labels of videos that nobody tagged."""
    file = tmp_path / "labels.jsonl"
    file.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        finetune(demo.config(f"annotations.files=['{file}']"), lambda _: None)


def test_an_empty_split(demo: Demo, tmp_path: Path) -> None:
    """Without a test split nothing can be reported, so nothing is trained."""
    rows = (demo.folder / "annotations.jsonl").read_text("utf-8").splitlines()
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(row for row in rows if json.loads(row)["split"] != "test"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no video of split 'test' has features; annotate some"):
        finetune(demo.config(f"annotations.files=['{file}']"), lambda _: None)


def test_a_registry_that_is_down(demo: Demo) -> None:
    """Known before the training begins: one line, and nothing written."""
    with pytest.raises(ConfigError, match=r"tracking.uri = 'http://127.0.0.1:9': .* failed"):
        finetune(demo.config("tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=2"), lambda _: None)


def test_dry_run(demo: Demo) -> None:
    """Says what there is to learn from."""
    assert f"{N_CLIPS} annotated videos" in dry_run(demo.config())
