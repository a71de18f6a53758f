"""Shared by all tests: no network, one thread, and the folder of real media files."""

import os

# Set before any library is imported: some read these names once, at import.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
    }
)
# Not overwritten: a person may want to see a test with more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says more of the machine than of us
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def media_dir() -> Path:
    """The folder of real media files; tests that need it carry the marker `media`."""
    named = os.environ.get("VCA_TEST_MEDIA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "media"
    if not (folder / "INDEX.tsv").is_file():
        if named:
            pytest.fail(f"VCA_TEST_MEDIA={named} holds no INDEX.tsv; point it at the folder of media files or unset it")
        pytest.skip("no real media files here: set VCA_TEST_MEDIA to their folder (the one with INDEX.tsv)")
    return folder


@pytest.fixture(scope="session")
def demo_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated archive of seed 0, made once; read only. `vca.media.demo.demo_truth()` is its truth."""
    from vca.media.demo import make_demo_archive

    folder = tmp_path_factory.mktemp("demo") / "archive"
    make_demo_archive(folder, seed=0)
    return folder


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keeps measured figures for people: they stand together at the end of the run."""

    def keep(text: str) -> None:
        request.node.user_properties.append(("figures", text))

    return keep


OWN_CLUSTER = (
    "test_make_demo.py",
    "test_ray_job.py",
    "test_readme.py",
    "test_features_import_docs.py",
    "test_ray_closed.py",  # it looks at all Ray that runs below its process
)
"""Modules whose tests start a Ray of their own, in other processes, and go with what trains."""
BESIDE_TAGGING = ("test_secrets.py", "test_confinement.py")
"""The like, but with what tags: so the two groups take the same time."""
TRAINING = ("test_training.py",)
GROUPS = ("tagging", "training")
"""The two large groups, of like length, in the order in which they are given out."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses real media is marked so, which makes `-m 'not media'` trustworthy.

    Run by several processes, tests that share a Ray cluster stay in one of them, and modules stay whole. What tags has
    one cluster; what trains has another and comes in one group with the tests that start a Ray of their own.
    """
    groups = {id(item): _group(item) for item in items}

    def place(item: pytest.Item) -> tuple[int, bool]:
        # In its group the run over real media starts first, because its memory is measured with this process and its
        # cluster, which grow later.
        group = groups[id(item)]
        rank = GROUPS.index(group) if group in GROUPS else len(GROUPS)
        return rank, "media_tagged" not in getattr(item, "fixturenames", ())

    items.sort(key=place)
    for item in items:
        if "media_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.media)
        item.add_marker(pytest.mark.xdist_group(groups[id(item)]))


def _group(item: pytest.Item) -> str:
    if item.path.name in (*OWN_CLUSTER, *TRAINING):
        return "training"
    if item.path.name in BESIDE_TAGGING or {"ray_cluster", "media_tagged"}.intersection(
        getattr(item, "fixturenames", ())
    ):
        return "tagging"
    return str(item.path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    kept = [(r.nodeid, text) for r in reports for name, text in r.user_properties if name == "figures"]
    if kept:
        terminalreporter.section("figures")
    for test, text in sorted(kept):
        terminalreporter.write_line(f"{test.rpartition('/')[2]}\n{text.strip()}\n")
