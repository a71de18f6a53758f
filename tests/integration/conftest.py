"""One local Ray cluster for all integration tests."""

from collections.abc import Iterator

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
