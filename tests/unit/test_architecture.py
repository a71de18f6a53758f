"""Holds the room table of docs/architecture.md, with the standard library's `ast` and nothing else.

The table in the document is the rule: it is parsed here, so that page and test cannot drift apart.
Each rule is also shown a planted fault, because a rule that cannot fail protects nothing.
"""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EVERYWHERE = frozenset({"numpy", "pyarrow", "pydantic"})  # arrays, rows and settings cross every room
MAX_LINES = 500
MAX_DOOR_LINES = 45  # jobs/*.py: about 30 lines of code and a docstring
# Modules that may be longer, each with its reason. An entry that is no longer needed fails a test.
LONGER: dict[str, str] = {}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}

# What a pure room may not import: the outside world, clocks and chance.
IMPURE_MODULES = {
    "asyncio", "concurrent", "ctypes", "getpass", "glob", "http", "io", "logging", "mmap", "multiprocessing", "os",
    "platform", "random", "resource", "secrets", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess",
    "sys", "tempfile", "threading", "time", "urllib.request", "uuid", "warnings",
    "pyarrow.csv", "pyarrow.dataset", "pyarrow.feather", "pyarrow.flight", "pyarrow.fs", "pyarrow.json", "pyarrow.orc",
    "pyarrow.parquet",
}  # fmt: skip
PURE_PATHS = {"PurePath", "PurePosixPath", "PureWindowsPath"}
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "compile", "__import__"}
IMPURE_METHODS = {
    "now", "utcnow", "today", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "iterdir",
    "getenv", "memory_map", "OSFile", "fromfile", "tofile", "loadtxt", "savez",
}  # fmt: skip
# Calls that would make importing a module slow, or make it depend on the machine.
IMPORT_TIME_CALLS = {
    "open", "print", "exec", "eval", "__import__", "read_text", "read_bytes", "write_text", "write_bytes", "getenv",
    "import_module", "run", "Popen", "connect", "from_pretrained", "load", "load_file", "load_model", "init", "now",
    "time", "urlopen", "set_num_threads", "basicConfig", "mkdir", "filterwarnings", "simplefilter",
}  # fmt: skip


@dataclass(frozen=True)
class Room:
    """One row of the table."""

    own: frozenset[str]
    third_party: frozenset[str]


@dataclass(frozen=True)
class Import:
    """One imported module, spelled absolutely; `name` is what is taken from it, if anything."""

    line: int
    module: str
    name: str | None
    type_checking: bool


def parse_rooms(text: str) -> dict[str, Room]:
    """The room table. Every room may import itself; `all above` means the rows before."""
    rooms: dict[str, Room] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        found = re.fullmatch(r"`(?:vca/)?(\w+)(?:/|\.py)?`", cells[0]) if len(cells) == 4 else None
        if found is None:
            continue
        own = _names(cells[2])
        if own == {"all above"}:
            own = set(rooms) | {found[1]}
        third = {name.replace("-", "_") for name in _names(cells[3])}
        rooms[found[1]] = Room(frozenset(own | {found[1]}), frozenset(third) | EVERYWHERE)
    return rooms


def _names(cell: str) -> set[str]:
    return {name.strip(" `") for name in re.sub(r"\([^)]*\)", "", cell).split(",") if name.strip()}


def room_of(path: str) -> str:
    """The room of a repository path: `vca/core/x.py` is in core, `vca/cli.py` is cli, `jobs/tag.py` is jobs."""
    parts = PurePosixPath(path).parts
    return parts[0] if parts[0] != "vca" else PurePosixPath(parts[1]).stem


def imports_of(tree: ast.AST) -> Iterator[Import]:
    """Every import of a module, at any depth; `importlib.import_module("x")` counts."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and _is_type_checking(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        quiet = id(node) in guarded
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, None, quiet)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(node.lineno, "." * node.level + (node.module or ""), alias.name, quiet)
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            target = node.args[0]
            known = isinstance(target, ast.Constant) and isinstance(target.value, str)
            yield Import(node.lineno, target.value if known else "?", None, quiet)  # type: ignore[attr-defined]


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _called(node: ast.Call) -> str:
    """The last name of what is called: `a.b.c()` is c."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def check_imports(path: str, tree: ast.Module, rooms: Mapping[str, Room]) -> Iterator[str]:
    """Own code only in the direction of the table, third-party packages only where the table names them."""
    room = rooms.get(room_of(path))
    if path == "vca/__init__.py":
        room = Room(frozenset(), frozenset())
    if room is None:
        yield f"{path}: not in a room of docs/architecture.md"
        return
    for item in imports_of(tree):
        where = f"{path}:{item.line}"
        top = item.module.split(".")[0]
        if item.name == "*":
            yield f"{where}: star import from {item.module}"
        if item.module.startswith("."):
            yield f"{where}: relative import {item.module}; spell it out"
        elif item.module == "?":
            yield f"{where}: import of a computed name"
        elif top == "vca":
            parts = item.module.split(".") + ([item.name] if item.module == "vca" and item.name else [])
            if parts not in (["vca"], ["vca", "__version__"]) and (len(parts) < 2 or parts[1] not in room.own):
                yield f"{where}: {room_of(path)} may not import {'.'.join(parts)}"
        elif top in ("jobs", "tests", "notebooks"):
            yield f"{where}: nothing imports {top}"
        elif top not in sys.stdlib_module_names and top not in room.third_party:
            yield f"{where}: {room_of(path)} may not import the package {top}"


def check_pure(path: str, tree: ast.Module) -> Iterator[str]:
    """Core has no I/O, no clock, no environment and no unseeded chance."""
    for item in imports_of(tree):
        full = f"{item.module}.{item.name}" if item.name else item.module
        parents = {full, item.module, item.module.split(".")[0]}
        if parents & IMPURE_MODULES:
            yield f"{path}:{item.line}: pure code imports {full}"
        if item.module == "pathlib" and item.name not in PURE_PATHS:
            yield f"{path}:{item.line}: pure code imports {full}; PurePosixPath does no I/O"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name, dotted = _called(node), ast.unparse(node.func)
            bare = isinstance(node.func, ast.Name)
            if (bare and name in IMPURE_CALLS) or (not bare and name in IMPURE_METHODS):
                yield f"{path}:{node.lineno}: pure code calls {dotted}()"
            unseeded = name == "default_rng" and not node.args and not node.keywords
            shared_state = re.fullmatch(r"(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|PCG64)\w+", dotted)
            if unseeded or shared_state:
                yield f"{path}:{node.lineno}: pure code draws unseeded numbers by {dotted}()"


def check_import_time(path: str, tree: ast.Module) -> Iterator[str]:
    """Importing a module defines things; it does not do things."""

    def check(body: list[ast.stmt], in_class: bool) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Import | ast.ImportFrom):
                continue
            if isinstance(node, ast.ClassDef):
                yield from check(node.body, in_class=True)
            elif isinstance(node, ast.If) and not in_class:
                main = ast.unparse(node.test) == "__name__ == '__main__'"
                if not main and not _is_type_checking(node.test):
                    yield f"{path}:{node.lineno}: a branch runs at import time"
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Assert):
                for inner in _eager(node):
                    if isinstance(inner, ast.Call) and _called(inner) in IMPORT_TIME_CALLS:
                        yield f"{path}:{inner.lineno}: {ast.unparse(inner.func)}() runs at import time"
                    if isinstance(inner, ast.Attribute) and inner.attr == "environ":
                        yield f"{path}:{inner.lineno}: the environment is read at import time"
            elif path == "vca/cli.py" and ast.unparse(node).startswith("app.add_typer("):
                continue  # how typer declares a group of commands
            elif not (in_class and isinstance(node, ast.Pass)) and not (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            ):
                yield f"{path}:{node.lineno}: {type(node).__name__} runs at import time"

    yield from check(tree.body, in_class=False)


def _eager(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated with the statement: bodies of lambdas wait for a call."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda):
            yield from _eager(child)


def check_form(path: str, source: str) -> Iterator[str]:
    """Size and name of a module."""
    lines = len(source.splitlines())
    limit = MAX_DOOR_LINES if path.startswith("jobs/") else MAX_LINES
    if lines > limit and path not in LONGER:
        yield f"{path}: {lines} lines, the limit is {limit}; split it or give a reason in LONGER"
    if VAGUE_NAMES & {PurePosixPath(part).stem for part in PurePosixPath(path).parts}:
        yield f"{path}: the name says nothing about the content"


def check_module(path: str, source: str, rooms: Mapping[str, Room]) -> list[str]:
    """All rules for one module."""
    tree = ast.parse(source, filename=path)
    found = [*check_imports(path, tree, rooms), *check_import_time(path, tree), *check_form(path, source)]
    if room_of(path) == "core":
        found += check_pure(path, tree)
    return found


def find_cycles(sources: Mapping[str, str]) -> list[str]:
    """Import circles between modules, imports inside functions included; one line per circle."""
    names = {_module_name(path): path for path in sources}
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        seen = set()
        for item in imports_of(ast.parse(sources[path])):
            if not item.type_checking:
                full = f"{item.module}.{item.name}"
                seen.add(full if full in names else item.module)
        edges[name] = (seen & set(names)) - {name}
    circles: list[str] = []
    state: dict[str, str] = {}

    def visit(name: str, trail: list[str]) -> None:
        state[name] = "open"
        for target in sorted(edges[name]):
            if state.get(target) == "open":
                circles.append(" -> ".join([*trail[trail.index(target) :], target]))
            elif target not in state:
                visit(target, [*trail, target])
        state[name] = "done"

    for name in sorted(edges):
        if name not in state:
            visit(name, [name])
    return circles


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def notebook_code(text: str) -> str:
    """The code cells of a notebook as one module; lines of IPython magic are left out."""
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in [*"".join(cell["source"]).splitlines(), ""]]
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def project_sources() -> dict[str, str]:
    """Repository path to text of every module of vca and jobs."""
    files = sorted([*REPOSITORY.glob("vca/**/*.py"), *REPOSITORY.glob("jobs/**/*.py")])
    return {file.relative_to(REPOSITORY).as_posix(): file.read_text(encoding="utf-8") for file in files}


ROOMS = parse_rooms((REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8"))
SOURCES = project_sources()


def test_table_is_understood() -> None:
    """A change of the document's form must not switch the rules off."""
    assert list(ROOMS) == ["core", "media", "models", "tables", "pipelines", "jobs", "cli", "notebooks"]
    assert ROOMS["core"].own == {"core"}
    assert ROOMS["models"].own == {"core", "models"}
    assert ROOMS["pipelines"].own == {"core", "media", "models", "tables", "pipelines"}
    assert {"ray", "mlflow", "deepspeed"} <= ROOMS["pipelines"].third_party
    for name, room in ROOMS.items():
        # A notebook may ask MLflow for runs: it is read by people and imported by nothing.
        allowed = {"pipelines": {"ray", "mlflow", "deepspeed"}, "notebooks": {"mlflow"}}.get(name, set())
        assert not room.third_party & {"ray", "mlflow", "deepspeed"} - allowed, f"engines leak into {name}"


def test_there_is_something_to_check() -> None:
    """A moved folder must not make every rule pass on nothing."""
    assert {"vca/core/timeline.py", "vca/core/errors.py"} <= set(SOURCES)
    assert len(SOURCES) > 10


@pytest.mark.parametrize("path", SOURCES)
def test_module_keeps_the_rules(path: str) -> None:
    """Import directions, packages, purity of core, import time, size and name."""
    assert check_module(path, SOURCES[path], ROOMS) == []


def test_no_cycles() -> None:
    """Modules can be understood, tested and moved one by one."""
    assert find_cycles(SOURCES) == []


def test_every_imported_package_is_declared() -> None:
    """A package that is there only because another one needs it may be gone after the next update."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in project["dependencies"]}
    owners = packages_distributions()
    missing = set()
    for path, source in SOURCES.items():
        for item in imports_of(ast.parse(source)):
            top = item.module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in ("vca", "jobs"):
                names = {name.lower().replace("_", "-") for name in owners.get(top, [top])}
                if not names & declared:
                    missing.add(f"{path}: {top} ({', '.join(sorted(names))})")
    assert sorted(missing) == []


def test_exceptions_are_still_needed() -> None:
    """A module that became short loses its exception."""
    for path, reason in LONGER.items():
        assert len(reason) > 20, f"{path}: give a real reason"
        assert len(SOURCES[path].splitlines()) > MAX_LINES, f"{path} is short enough: remove it from LONGER"


@pytest.mark.parametrize(
    "path", sorted(p.relative_to(REPOSITORY).as_posix() for p in REPOSITORY.glob("notebooks/*.ipynb"))
)
def test_notebooks_import_only_what_analysts_have(path: str) -> None:
    """Notebooks show the product's face: tables and core."""
    code = notebook_code((REPOSITORY / path).read_text(encoding="utf-8"))
    assert [*check_imports(path, ast.parse(code), ROOMS)] == []


def test_engines_stay_out_of_the_fast_path() -> None:
    """`vca --help` must not wait for Ray, MLflow or torch: the command line imports them when a command needs them."""
    if "vca/cli.py" not in SOURCES:
        pytest.skip("no command line yet")
    heavy = {"ray", "mlflow", "deepspeed", "torch", "transformers", "pandas", "rapidocr", "scenedetect"}
    names = {_module_name(path): path for path in SOURCES}
    reached, waiting = set(), ["vca.cli"]
    found = []
    while waiting:
        name = waiting.pop()
        if name in reached or name not in names:
            continue
        reached.add(name)
        for item in imports_of(_top_level(SOURCES[names[name]])):
            waiting += [item.module, f"{item.module}.{item.name}"]
            if not item.type_checking and item.module.split(".")[0] in heavy:
                found.append(f"{names[name]}:{item.line}: {item.module}")
    assert found == []


def _top_level(source: str) -> ast.Module:
    """A module without the bodies of its functions: what runs when it is imported."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree


FAULTS = [
    ("vca/core/x.py", "from vca.media.storage import Archive", "core may not import vca.media.storage"),
    ("vca/core/x.py", "def f():\n    import vca.tables.query", "core may not import vca.tables.query"),
    ("vca/models/x.py", "from vca.media import read", "models may not import vca.media"),
    ("vca/models/x.py", "from vca import media", "models may not import vca.media"),
    ("vca/media/x.py", "from vca.pipelines.plan import plan", "media may not import vca.pipelines.plan"),
    ("vca/tables/x.py", "from vca.models.encode import f", "tables may not import vca.models.encode"),
    ("jobs/x.py", "from vca.models.encode import f", "jobs may not import vca.models.encode"),
    ("vca/pipelines/x.py", "from jobs.tag import main", "nothing imports jobs"),
    ("vca/pipelines/x.py", "import vca.cli", "pipelines may not import vca.cli"),
    ("vca/media/x.py", "import ray", "media may not import the package ray"),
    ("vca/models/x.py", "def f():\n    import mlflow.pyfunc", "may not import the package mlflow"),
    ("vca/tables/x.py", "import importlib\nimportlib.import_module('torch')", "may not import the package torch"),
    ("vca/tables/x.py", "import importlib\ndef f(n):\n    importlib.import_module(n)", "computed name"),
    ("vca/core/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "the package torch"),
    ("vca/core/x.py", "from vca.core.timeline import *", "star import"),
    ("vca/core/x.py", "from .timeline import Span", "relative import"),
    ("vca/media/x.py", "from ..core import timeline", "relative import"),
    ("vca/elsewhere/x.py", "X = 1", "not in a room"),
    ("vca/core/x.py", "import os", "pure code imports os"),
    ("vca/core/x.py", "from os import environ", "pure code imports os.environ"),
    ("vca/core/x.py", "import time", "pure code imports time"),
    ("vca/core/x.py", "from pathlib import Path", "pure code imports pathlib.Path"),
    ("vca/core/x.py", "import pyarrow.parquet as pq", "pure code imports pyarrow.parquet"),
    ("vca/core/x.py", "from pyarrow import parquet", "pure code imports pyarrow.parquet"),
    ("vca/core/x.py", "def f(p):\n    return open(p)", "pure code calls open()"),
    ("vca/core/x.py", "def f(p):\n    return p.read_text()", "calls p.read_text()"),
    ("vca/core/x.py", "import datetime\ndef f():\n    return datetime.datetime.now()", "datetime.datetime.now()"),
    ("vca/core/x.py", "import numpy as np\ndef f():\n    return np.random.default_rng()", "unseeded"),
    ("vca/core/x.py", "import numpy as np\ndef f():\n    return np.random.rand(3)", "unseeded"),
    ("vca/media/x.py", "print('hello')", "Expr runs at import time"),
    ("vca/media/x.py", "for i in range(3):\n    X = i", "For runs at import time"),
    ("vca/media/x.py", "try:\n    import av\nexcept ImportError:\n    av = None", "Try runs at import time"),
    ("vca/media/x.py", "import sys\nif sys.platform == 'linux':\n    X = 1", "a branch runs at import time"),
    ("vca/media/x.py", "X = open('f').read()", "open() runs at import time"),
    ("vca/media/x.py", "import os\nHOME = os.environ['HOME']", "environment is read at import time"),
    ("vca/media/x.py", "class A:\n    import os\n    X = os.getenv('HOME')", "os.getenv() runs at import time"),
    ("vca/media/x.py", "class A:\n    print('hello')", "Expr runs at import time"),
    ("vca/media/x.py", "\n" * 501, "501 lines"),
    ("jobs/x.py", "\n" * 61, "61 lines"),
    ("vca/media/utils.py", "X = 1", "says nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "source", "message"), FAULTS)
def test_planted_fault_is_found(path: str, source: str, message: str) -> None:
    """Every rule can fail."""
    found = check_module(path, source, ROOMS)
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vca/core/x.py", '"""Doc."""\nfrom urllib.parse import urlsplit\nimport numpy as np\nX: int = 1\nassert X\n'),
        ("vca/core/x.py", "import numpy as np\ndef f(s):\n    return np.random.default_rng(s).random()"),
        ("vca/core/x.py", "from pathlib import PurePosixPath\nfrom datetime import datetime"),
        ("vca/pipelines/x.py", "import ray\nfrom vca.models.encode import f\nX = {'a': lambda: open('f')}"),
        ("vca/media/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vca.core import timeline"),
        ("vca/__init__.py", '__version__ = "1"'),
        ("jobs/x.py", "from vca import __version__\nif __name__ == '__main__':\n    raise SystemExit(0)"),
    ],
)
def test_good_code_passes(path: str, source: str) -> None:
    """The rules do not forbid what the house does."""
    assert check_module(path, source, ROOMS) == []


def test_planted_cycle_is_found() -> None:
    """Circles are seen through `from package import module` and through imports inside functions."""
    sources = {
        "vca/core/a.py": "from vca.core import b",
        "vca/core/b.py": "def f():\n    from vca.core.c import g",
        "vca/core/c.py": "import vca.core.a",
        "vca/core/d.py": "import vca.core.a",
    }
    assert find_cycles(sources) == ["vca.core.a -> vca.core.b -> vca.core.c -> vca.core.a"]
    quiet = sources | {"vca/core/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vca.core.a"}
    assert find_cycles(quiet) == []
