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

from pathlib import Path

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses real media is marked so, which makes `-m 'not media'` trustworthy."""
    for item in items:
        if "media_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.media)
