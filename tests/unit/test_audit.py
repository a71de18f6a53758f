"""`make audit` asks about every package that is installed, by hand only. What the answer is, the network knows."""

import os
import re
import subprocess
from pathlib import Path


def dry_run(repository: Path, *arguments: str) -> str:
    """What make would do. The tests may run below a make of their own, which hands on its flags."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_audit_covers_all_pins(repository: Path) -> None:
    """The command line that make would run: all of constraints.txt, strict, and nothing is resolved or installed."""
    said = dry_run(repository, "audit")
    command = said.strip().splitlines()[-1]
    assert command.startswith(".venv-audit/bin/pip-audit ")
    assert {"--strict", "--no-deps", "--disable-pip", "--requirement", "constraints.txt"} <= set(command.split())
    assert re.search(r"pip install --quiet pip-audit==\d", said)


def test_every_package_has_one_version(repository: Path) -> None:
    """pip-audit looks up exact versions: a range would be skipped."""
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").split()
    assert len(lines) > 150
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line) for line in lines)


def test_nothing_else_asks_the_network(repository: Path) -> None:
    """Lint and tests work offline: no other target leads to the audit."""
    for target in ("lint", "test", "unit", "integration", "faults", "demo"):
        assert "audit" not in dry_run(repository, "-o", ".venv/.installed", target), target
