"""One local Ray cluster for all integration tests; one demo archive; MLflow in SQLite."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of two CPUs, started once and stopped at the end of the session."""
    from tests.support.s3 import ENVIRONMENT, REMOVED, environment
    from vca.pipelines import cluster
    from vca.pipelines.config import RayConfig

    with environment(ENVIRONMENT, REMOVED):  # workers inherit it: they must be able to talk to the test's S3 server
        started = cluster.connect(RayConfig(num_cpus=2, object_store_mb=400))
        assert started, "another Ray runs in this process"
        try:
            yield
        finally:
            cluster.disconnect(started)


@pytest.fixture(scope="session")
def demo_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated archive; read-only for tests, copy it to change it."""
    from vca.media.demo import make_demo_archive

    folder = tmp_path_factory.mktemp("demo") / "archive"
    make_demo_archive(folder, seed=0)
    return folder
