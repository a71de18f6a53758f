"""The shipped configuration files: each one loads, resolves and says what it must."""

import json
from pathlib import Path

import pytest
import yaml

from vca.core.errors import ConfigError
from vca.core.schemas import Status
from vca.core.taxonomy import parse_taxonomy
from vca.media.demo import demo_truth
from vca.pipelines.config import TagConfig, read_config, read_taxonomy
from vca.pipelines.finetune_config import FinetuneConfig, read_finetune_config

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
TAXONOMIES = [path for path in FILES if "tasks" in yaml.safe_load(path.read_text(encoding="utf-8"))]
FINETUNING = [path for path in FILES if "finetune" in path.stem]
JOBS = [path for path in FILES if path not in TAXONOMIES and path not in FINETUNING]


@pytest.fixture(autouse=True)
def _in_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in configuration files are relative to the working directory: the repository."""
    monkeypatch.chdir(repository)


def test_the_shipped_files_are_there() -> None:
    """README, Makefile and the cluster file call these by name."""
    assert {"nightly", "local", "demo"} <= {path.stem for path in JOBS}
    assert {"finetune", "demo_finetune"} == {path.stem for path in FINETUNING}
    assert "taxonomy" in {path.stem for path in TAXONOMIES}


@pytest.mark.parametrize("path", TAXONOMIES, ids=lambda p: p.stem)
def test_taxonomy_loads(path: Path) -> None:
    """A starter label space that does not load is a dead first evening."""
    taxonomy = parse_taxonomy(path.read_text(encoding="utf-8"), path.name)
    assert {"content", "events"} <= {task.name for task in taxonomy.tasks}


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_job_loads_and_survives_storage(path: Path) -> None:
    """The resolved configuration goes into every run's row as JSON and must come back as the same configuration."""
    config = read_config(str(path))
    assert read_taxonomy(config).tasks
    assert TagConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("path", FINETUNING, ids=lambda p: p.stem)
def test_fine_tuning_loads(path: Path) -> None:
    """A shipped file for fine-tuning is accepted, survives storage, and refuses a typo."""
    config = read_finetune_config(str(path))
    assert FinetuneConfig.model_validate(json.loads(config.model_dump_json())) == config
    with pytest.raises(ConfigError, match=r"unknown key 'train\.epoch'; did you mean 'epochs'"):
        read_finetune_config(str(path), ["train.epoch=5"])


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_a_misspelled_key_is_refused_in_one_line(path: Path) -> None:
    """A typo must not run a night with a default."""
    with pytest.raises(
        ConfigError, match=r"unknown key 'run\.failure_bugdet'; did you mean 'failure_budget'"
    ) as caught:
        read_config(str(path), ["run.failure_bugdet=0.5"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_secrets(path: Path) -> None:
    """Credentials come from the environment or a profile, never from a file in the repository."""
    text = path.read_text(encoding="utf-8").lower()
    assert not [word for word in ("password", "secret", "access_key", "token:") if word in text]


def test_the_demo_archive_is_within_the_demo_budget() -> None:
    """`make demo` shows failures and still ends with exit code 0."""
    config = read_config("configs/demo.yaml")
    truth = demo_truth()
    share = sum(clip.status is Status.QUARANTINED for clip in truth) / len(truth)
    assert 0 < share <= config.run.failure_budget
    assert config.archive.uri == "demo/archive"
    assert config.output.uri.startswith("demo/")


def test_the_makefile_can_point_the_demo_elsewhere() -> None:
    """`make demo ARCHIVE=...` hands over folders with blanks and colons, quoted for YAML."""
    overrides = ["archive.uri='/media/My videos: 2026'", "output.uri=demo/output-own"]
    config = read_config("configs/demo.yaml", overrides)
    assert config.archive.uri == "/media/My videos: 2026"
