"""A real Ray cluster of several raylets on this machine, in a process of its own.

    python -m tests.support.nodes CPUS_OF_EACH_NODE ...

prints the address of the cluster and runs it until stdin ends. A test's own Ray lives in the test's process, and
`Cluster` would share its state.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.support.drivers import driver_environment
from tests.support.processes import GONE, family, titled
from tests.support.runs import REPOSITORY

RAYLET = "raylet/raylet"


@dataclass(frozen=True)
class Nodes:
    """Handle of a running cluster."""

    address: str
    pid: int

    def raylets(self) -> list[psutil.Process]:
        return titled(self.pid, RAYLET)

    def node_of(self, worker: psutil.Process) -> psutil.Process:
        """The raylet that started a worker."""
        return next(parent for parent in worker.parents() if parent in self.raylets())


def kill_node(raylet: psutil.Process) -> None:
    """SIGKILL for a raylet and all below it at once, as when a machine loses its power."""
    for process in (raylet, *raylet.children(recursive=True)):
        with suppress(*GONE):
            process.kill()


@contextmanager
def several_nodes(*cpus: int) -> Iterator[Nodes]:
    """The first node is the head."""
    command = [sys.executable, "-m", "tests.support.nodes", *map(str, cpus)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=driver_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    below: list[psutil.Process] = []
    try:
        address = next((line.split()[1] for line in process.stdout if line.startswith("address ")), None)
        assert address is not None, "the cluster did not start"
        yield Nodes(address, process.pid)
    finally:
        below = family(process.pid)
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        for child in below:
            with suppress(*GONE):
                child.kill()


def main(cpus: Sequence[int]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for number in cpus:
        cluster.add_node(num_cpus=number, object_store_memory=200 << 20, include_dashboard=False)
    cluster.wait_for_nodes()
    print("address", cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
