"""The README's commands are run as written; only the names of archive and output are replaced."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.runs import run_command
from tests.support.s3 import s3_server
from tests.support.tables import make_output
from vca.media.demo import demo_truth

pytestmark = pytest.mark.integration


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(repository: Path) -> list[str]:
    return [line for block in blocks(repository, "sh") for line in block.splitlines() if line.strip()]


def test_every_command_is_covered(repository: Path) -> None:
    """A command added to the README must be run by a test: here, in test_make_demo.py or test_ray_job.py, or by CI."""
    known = ("make demo", "make demo ARCHIVE=/some/folder", "make test", "make lint", "export RAY_AUTH_MODE=token")
    known += ("ray start --head", "ray job submit --working-dir . -- python -m jobs.tag --config configs/nightly.yaml")
    for command in commands(repository):
        assert command in known or command.startswith(".venv/bin/vca "), command
    ci = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert "make lint test" in ci


def test_commands_on_an_archive_of_ones_own(checkout: Path, demo_archive: Path, tmp_path: Path) -> None:
    """`make demo ARCHIVE=`, then plan, tag, status and query as the README shows them."""
    archive = tmp_path / "own videos"
    archive.mkdir()
    good = [demo_archive / clip.key for clip in demo_truth(seed=0) if str(clip.status) == "tagged"]
    for path in sorted(good, key=lambda path: path.stat().st_size)[:3]:
        (archive / path.name).write_bytes(path.read_bytes())
    done = run_command(f"make demo 'ARCHIVE={archive}'", checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "balance    3 listed = 3 tagged" in done.stdout

    out = tmp_path / "out"
    for command in commands(checkout):
        if not command.startswith(".venv/bin/vca ") or " finetune " in command:
            continue  # fine-tuning is what test_make_demo.py does
        own = command.replace("/videos", shlex.quote(str(archive))).replace("output.uri=out", f"output.uri={out}")
        own = own.replace("--output out", f"--output {out}")
        own += f" --set tracking.uri=sqlite:///{tmp_path}/mlflow.db" if " tag " in own else ""
        done = run_command(own, checkout)
        assert done.returncode == 0, (own, done.stdout, done.stderr)
        assert done.stdout.strip(), own


def test_python_on_the_parquet_paths(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lines read a folder and a bucket."""
    make_output(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(repository, "python")
    with s3_server("my-bucket") as server:
        server.upload_folder(tmp_path / "out", "my-bucket", "vca")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        for output in ("out", "s3://my-bucket/vca"):
            names: dict[str, object] = {}
            exec(compile(code.replace('output = "out"', f'output = "{output}"'), "README.md", "exec"), names)
            n_rows = {len(names["in_pandas"]), len(names["in_polars"]), int(names["by_status"]["videos"].sum())}  # type: ignore[arg-type,index]
            assert len(n_rows) == 1
            assert n_rows.pop() > 0
