"""A whole node dies in the middle of a run: the job goes on by itself on what is left, with the same tables."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import nights
from tests.support.drivers import VCA, driver_environment, run_driver, tag_arguments
from tests.support.nodes import Nodes, kill_node, several_nodes
from tests.support.outcomes import assert_mended
from tests.support.processes import DecoderAtWork, meanwhile, titled, wait_for
from tests.support.runs import Job
from tests.support.tally import TALLY
from vca.pipelines import run

pytestmark = [pytest.mark.faults]

KIND = "killed node"
TARGET = "school/lesson-07.mp4"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head that does no work, as cluster.yaml has it, and two nodes that do, each with room for the work of both."""
    with several_nodes(0, 2, 2) as running:
        yield running


@pytest.mark.parametrize(
    "stage",
    ["ReadAndEncodeStage", *(pytest.param(stage, marks=pytest.mark.long) for stage in ("ReadStage", "PredictStage"))],
)
def test_a_dead_node_costs_nothing(first: Job, nodes: Nodes, tmp_path: Path, stage: str) -> None:
    """Killed with its raylet, workers, decoders and object store, while it reads or while it tags."""
    workers = [f"resources.{who}=2" for who in ("readers", "predictors")]
    if stage == "ReadStage":  # with encoders of their own
        workers.append("resources.encoders=2")
    settings = (*nights.SETTINGS, *workers, f"ray.address={nodes.address}")
    job = Job(first.archive, str(tmp_path / "out"), settings)

    def worker() -> psutil.Process:
        if stage == "PredictStage":
            return wait_for(lambda: titled(nodes.pid, stage), f"a worker of {stage}")[0]
        at_work = DecoderAtWork(nodes.pid, Path(job.archive) / TARGET)
        reader = wait_for(at_work.caught, f"a decoder that reads {TARGET}").parent()
        assert reader is not None
        return reader

    def kill() -> None:
        raylet = nodes.node_of(worker())
        struck.append(raylet.pid)
        kill_node(raylet)

    struck: list[int] = []
    with meanwhile(kill):
        ended = run_driver([VCA, *tag_arguments(job)], tmp_path / "log", driver_environment())
    TALLY.injected[KIND] += 1
    assert struck
    assert len(nodes.raylets()) == 2
    assert ended.code == run.EXIT_OK, ended.text
    assert_mended(job, first, KIND)


@pytest.mark.long
def test_a_dead_head_ends_the_run_unpublished(first: Job, nodes: Nodes, tmp_path: Path) -> None:
    """Nothing can go on without it: exit code and last line say that nothing was published, before Ray ends the driver
    with the code that would claim the opposite.
    """
    job = Job(first.archive, str(tmp_path / "out"), (*nights.SETTINGS, f"ray.address={nodes.address}"))

    def kill() -> None:
        at_work = DecoderAtWork(nodes.pid, Path(job.archive) / TARGET)
        decoder = wait_for(at_work.caught, f"a decoder that reads {TARGET}")
        (server,) = titled(nodes.pid, "gcs_server")
        server.kill()
        decoder.resume()

    with meanwhile(kill):
        ended = run_driver([VCA, *tag_arguments(job)], tmp_path / "log", driver_environment())
    TALLY.injected[KIND] += 1
    assert ended.code == run.EXIT_NOT_PUBLISHED, ended.text
    assert "vca: the head node of the Ray cluster is gone; nothing published" in ended.text
    assert job.reader().current() is None
    again = Job(job.archive, job.output, nights.SETTINGS)
    assert again.tag() == run.EXIT_OK, again.text
    assert_mended(again, first, KIND)
