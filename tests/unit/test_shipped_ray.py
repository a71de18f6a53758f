"""Everything shipped that starts Ray asks for the token and keeps the dashboard on loopback."""

import re
from pathlib import Path

import pytest
import yaml

from vca.pipelines.config import RayConfig

TEXTS = ("README.md", "Makefile", "cluster.yaml", "CONTRIBUTING.md")
FOLDERS = ("configs", "docs", "jobs", "notebooks", "vca", "benchmarks", ".ci")


@pytest.fixture(scope="module")
def shipped(repository: Path) -> dict[str, str]:
    paths = [repository / name for name in TEXTS]
    paths += [path for folder in FOLDERS for path in (repository / folder).rglob("*") if path.is_file()]
    kinds = {".md", ".yaml", ".py", ".ipynb", ".sh", ""}
    kept = [path for path in paths if path.suffix in kinds and "__pycache__" not in path.parts]
    return {path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8") for path in kept}


def test_every_start_of_ray_asks_for_the_token(shipped: dict[str, str]) -> None:
    """A command that somebody copies must not open a cluster to everybody: the mode stands with it or just before."""
    starts = 0
    for name, text in shipped.items():
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if re.search(r"\bray start\b", line) and not re.search(r"\bfor `ray start`", line):
                starts += 1
                near = "\n".join(lines[max(0, number - 3) : number + 1])
                assert "RAY_AUTH_MODE=token" in near, f"{name}:{number + 1}: {line.strip()}"
    assert starts >= 4, "README, cluster.yaml (twice) and the hint of vca/pipelines/cluster.py"


def test_nothing_listens_for_everybody(shipped: dict[str, str]) -> None:
    """No dashboard beyond loopback, no server of ours on all addresses, no way around the token."""
    for name, text in shipped.items():
        for host in re.findall(r"dashboard[-_]host[=: ]+[\"']?([\w.:]+)", text):
            assert host == "127.0.0.1", f"{name}: dashboard on {host}"
        assert not re.search(r"RAY_AUTH_MODE[=: \"']+disabled", text), name
        assert not re.search(r"include_dashboard\s*=\s*True", text), name
        if name != "docs/security.md":  # which says where Ray itself does
            assert "0.0.0.0" not in text, name
        for start in re.findall(r"mlflow (?:ui|server)[^\n`]*--host[= ]+(\S+)", text):
            assert start == "127.0.0.1", name


@pytest.mark.parametrize("name", ["aws", "demo", "demo_finetune", "finetune", "local", "nightly"])
def test_configurations_leave_ray_to_its_environment(repository: Path, name: str) -> None:
    """No shipped configuration names a cluster's address: a job joins its own, or starts one."""
    values = yaml.safe_load((repository / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert "address" not in values.get("ray", {})
    assert RayConfig.model_validate(values.get("ray", {})).address is None
