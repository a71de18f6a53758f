"""Publishing on a disk that is full after so many pages: every step fails once, and the next run ends what it left."""

from pathlib import Path

import pytest

from tests.support.disks import LARGE_BYTES, PAGE_BYTES, remount, small_disk
from tests.support.runs import local_reader
from tests.support.tally import TALLY
from tests.unit.test_publish import RUN_1, RUN_2, visible
from tests.unit.test_publish import run as publish_run
from vca.core.errors import PublishError
from vca.media.output import TEMPORARY, Output, OutputConfig
from vca.pipelines.publish import recover

pytestmark = pytest.mark.faults


def test_every_step_of_publishing_fails_for_want_of_space(tmp_path: Path) -> None:
    """Two table files, three manifests: nothing is visible until the last fits, and nothing half-written stays."""
    failed = 0
    for pages in range(1, 20):
        work = tmp_path / str(pages)
        work.mkdir()
        with small_disk(work / "disk") as disk:
            output, reader = Output(OutputConfig(uri=str(disk / "out"))), local_reader(disk / "out")
            assert remount(disk, f"size={pages * PAGE_BYTES}")
            try:
                publish_run(output, reader, RUN_1, ["a", "b"], work / "spool")
                break
            except (OSError, PublishError) as error:
                said = str(error)
            assert "no space left on the disk" in said
            failed += 1
            TALLY.injected["full disk"] += 1
            assert visible(reader) == []
            assert not [path for path in disk.rglob(f"{TEMPORARY}*") if path.is_file()]
            assert remount(disk, f"size={LARGE_BYTES}")
            if recover(output, reader) is None:
                publish_run(output, reader, RUN_2, ["a", "b"], work / "again")
            assert [video for video, _ in visible(reader)] == ["a", "b"]
            assert output.list("staging") == []
            TALLY.resumed["full disk"] += 1
    assert failed >= 5
