"""docs/features_import.md: the example is run as written, to the tags, with no video anywhere."""

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.runs import REPOSITORY, Job
from vca.cli import app
from vca.core.annotations import Split
from vca.core.taxonomy import parse_taxonomy
from vca.pipelines.annotations import AnnotationsConfig, load_annotations

pytestmark = pytest.mark.integration

PAGE = (REPOSITORY / "docs/features_import.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
    return [text for name, text in fences if name == language]


def run_python(code: str) -> None:
    exec(compile(code, "docs/features_import.md", "exec"), {})


def settings_of(line: str) -> list[str]:
    words = shlex.split(line)
    return [words[i + 1] for i, word in enumerate(words) if word == "--set"]


def test_the_example_goes_from_arrays_to_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    """Arrays, import, DuckDB, tagging, the second run that has nothing to do: what the page says, in its order."""
    monkeypatch.chdir(tmp_path)
    make, look = blocks("python")
    command, use = blocks("bash")
    shown_import, shown_rows = blocks("")[:2]
    run_python(make)

    words = shlex.split(command)
    assert words[0] == "vca"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "out" / "features").iterdir()
    feature_set = folder.name
    assert done.stdout == shown_import.replace("0123456789abcdef01234567", feature_set)

    run_python(look.replace("FEATURE_SET", feature_set))
    assert capsys.readouterr().out == shown_rows

    tag = use.replace("FEATURE_SET", feature_set).splitlines()[1]
    assert settings_of(tag) == ["output.uri=out", f"archive.uri=features://{feature_set}"]
    job = Job(f"features://{feature_set}", str(tmp_path / "out"))
    assert job.tag() == 0
    assert "2  retag   new" in job.text
    assert "2 listed = 2 tagged" in job.text
    assert "nothing decoded" in job.text
    videos = job.query("SELECT key, status, duration_s, container, uri FROM videos ORDER BY key")
    assert [(v["key"], v["status"], v["duration_s"], v["container"]) for v in videos] == [
        ("2024/match", "tagged", 90.0, "imported"),
        ("2024/talk", "tagged", 120.0, "imported"),
    ]
    assert videos[0]["uri"] == f"features://{feature_set}/2024/match"
    labels = job.query("SELECT label FROM video_categories WHERE key = '2024/match' AND task = 'content' AND rank = 1")
    assert labels == [{"label": "sports"}], "zero-shot reads the text that came with the features"
    assert job.tag() == 0
    assert "2 listed = 2 unchanged" in job.text

    assert job.tag("predict.thresholds={content: 0.9}") == 0
    assert "2  retag   tagged with another taxonomy" in job.text
    for part in folder.glob("*.parquet"):
        part.unlink()
    assert CliRunner().invoke(app, words[1:]).exit_code == 0, "made again"
    assert len(pq.read_table(next(folder.glob("*.parquet")))) == 4


def test_the_examples_of_annotations_are_the_same_facts(tmp_path: Path) -> None:
    """docs/annotations.md shows one set of facts as JSON Lines and as CSV; its ActivityNet file fits the taxonomy."""
    page = (REPOSITORY / "docs/annotations.md").read_text(encoding="utf-8")
    path = REPOSITORY / "configs/taxonomy.yaml"
    taxonomy = parse_taxonomy(path.read_text(encoding="utf-8"), "taxonomy")
    loaded = {}
    for language in ("jsonl", "csv", "json"):
        (code,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)
        file = tmp_path / f"labels.{language}"
        file.write_text(code, encoding="utf-8")
        config = AnnotationsConfig(files=(str(file),), activitynet_task="events")
        loaded[language] = load_annotations(config, taxonomy, ["2024/match.mp4", "2024/talk.mp4"])
    assert loaded["jsonl"] == loaded["csv"]
    events = {truth.key: [event.span for event in truth.events["events"]] for truth in loaded["json"]}
    assert events == {truth.key: [event.span for event in truth.events["events"]] for truth in loaded["csv"]}
    assert {truth.split for truth in loaded["json"]} == {Split.TRAIN, Split.VALIDATION}
    assert json.loads((tmp_path / "labels.json").read_text())["database"]["match"]["duration"] == 90.0
