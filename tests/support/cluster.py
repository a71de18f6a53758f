"""A local Ray cluster inside the process of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.s3 import ENVIRONMENT, REMOVED, environment


@contextmanager
def local_cluster() -> Iterator[None]:
    """Two CPUs, stopped at the end of the block."""
    from vca.pipelines import cluster
    from vca.pipelines.config import RayConfig

    with environment(ENVIRONMENT, REMOVED):  # workers inherit it: they must be able to talk to the test's S3 server
        started = cluster.connect(RayConfig(num_cpus=2, object_store_mb=400))
        assert started, "another Ray runs in this process"
        try:
            yield
        finally:
            cluster.disconnect(started)
