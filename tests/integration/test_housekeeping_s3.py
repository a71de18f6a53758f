"""Rollback, prune and verify on a bucket: the same as in a folder, and the lock is gone afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3 import S3Server, s3_server
from tests.support.tables import RUN_IDS, make_output
from vca.core.errors import ConfigError
from vca.media.output import Output, OutputConfig
from vca.media.output_lock import output_lock
from vca.pipelines.config import RetentionConfig
from vca.pipelines.housekeeping import prune, rollback
from vca.tables.manifest import open_output
from vca.tables.query import query
from vca.tables.verify import verify

pytestmark = pytest.mark.integration

FIRST, SECOND, THIRD, FOURTH = RUN_IDS
ORPHAN = "vca/tables/shots/run_id=20200101T000000Z-000000/part-00000.parquet"
NOT_OURS = "vca/tables/notes.txt"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server("tags") as running:
        yield running


@pytest.fixture
def config(server: S3Server, tmp_path: Path) -> OutputConfig:
    """Four published nights under `s3://tags/vca`."""
    for key in server.keys("tags"):
        server.client.delete_object(Bucket="tags", Key=key)
    server.upload_folder(make_output(tmp_path / "out"), "tags", "vca")
    return OutputConfig(uri="s3://tags/vca", storage=server.storage())


def findings(config: OutputConfig) -> tuple[bool, str]:
    said: list[str] = []
    whole = verify(open_output(config.uri, config.storage), said.append)
    return whole, "\n".join(said)


def test_back_forward_and_away_with_the_rest(server: S3Server, config: OutputConfig) -> None:
    """Rolling back changes the pointer alone; prune deletes what is not needed and leaves what is not ours."""
    reader = open_output(config.uri, config.storage)
    answers = query(reader, "FROM videos ORDER BY ALL")
    before = server.keys("tags")
    said: list[str] = []
    assert rollback(config, SECOND, said.append) == 0
    assert query(reader, "SELECT DISTINCT run_id FROM videos ORDER BY ALL").column(0).to_pylist() == [FIRST, SECOND]
    assert findings(config)[0], findings(config)[1]
    assert rollback(config, FOURTH, said.append) == 0
    assert query(reader, "FROM videos ORDER BY ALL").equals(answers)
    assert server.keys("tags") == before, "no lock is left"

    for key in (NOT_OURS, ORPHAN):
        server.put("tags", key, b"x")
    assert "no manifest names it" in findings(config)[1]
    young = RetentionConfig(runs=1)
    assert prune(config, young, False, said.append) == 0
    assert server.keys("tags") == sorted([*before, NOT_OURS, ORPHAN]), "all is younger than a day"
    assert prune(config, RetentionConfig(runs=1, min_age_h=0), True, said.append) == 0
    assert server.keys("tags") == sorted([*before, NOT_OURS, ORPHAN]), "--dry-run"
    assert prune(config, RetentionConfig(runs=1, min_age_h=0), False, said.append) == 0
    gone = {f"vca/manifests/{run_id}.json" for run_id in (FIRST, SECOND, THIRD)}
    assert server.keys("tags") == sorted(set(before) - gone | {NOT_OURS})
    assert query(reader, "FROM videos ORDER BY ALL").equals(answers)
    assert findings(config)[0], findings(config)[1]


def test_a_run_at_work_keeps_both_out(server: S3Server, config: OutputConfig) -> None:
    """Nothing but the lock is in the bucket beside what was there."""
    with output_lock(Output(config), "run x"):
        before = server.keys("tags")
        with pytest.raises(ConfigError, match="in use by run x"):
            rollback(config, SECOND, print)
        with pytest.raises(ConfigError, match="in use by run x"):
            prune(config, RetentionConfig(runs=1, min_age_h=0), False, print)
        assert server.keys("tags") == before


def test_damage_in_a_bucket_is_found(server: S3Server, config: OutputConfig) -> None:
    """A lost and a cut object are errors of the output; a server that does not answer is none."""
    lost, cut = (f"vca/tables/{name}/run_id={FIRST}/part-00000.parquet" for name in ("shots", "transcripts"))
    server.client.delete_object(Bucket="tags", Key=lost)
    server.put("tags", cut, b"PAR1")
    whole, text = findings(config)
    assert not whole
    assert "error    tables/shots/run_id=20261101T013000Z-0000a1/part-00000.parquet: missing" in text
    assert "part-00000.parquet: has 4 bytes, the manifest says" in text
    with pytest.raises(ConfigError, match="restore the file or choose another run"):
        rollback(config, SECOND, print)
    dead = OutputConfig(uri=config.uri, storage=server.storage(endpoint_url="http://127.0.0.1:9", max_attempts=1))
    with pytest.raises(ConfigError, match="check the address"):
        findings(dead)
