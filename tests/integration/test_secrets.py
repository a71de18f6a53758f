"""A secret that the environment holds is found in nothing that a run leaves: planted, and searched for everywhere."""

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.clips import make_clip
from tests.support.runs import LIGHT, REPOSITORY
from tests.support.s3 import Answer, S3Server, faulty_server, s3_server

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MARK = "PLANTED"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}KEY",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/aws+secret/0123456789",
    "AWS_SESSION_TOKEN": f"{MARK}-session-token",
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": f"{MARK}-mlflow-token",
    "HF_TOKEN": f"hf_{MARK}",
    "HTTPS_PROXY": f"http://somebody:{MARK}-proxy@127.0.0.1:9",
    "SOME_API_KEY": f"{MARK}-of-another-program",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A good video with a subtitle, a broken one, and one that the storage does not hand out."""
    folder = tmp_path / "archive"
    folder.mkdir()
    make_clip(folder / "film.mp4", 25, tone=[(0.0, 1.0)])
    (folder / "film.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nGood evening, here are the headlines.\n")
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(500))
    return folder


@pytest.fixture
def session() -> Iterator[Path]:
    """Ray's own folder, for its logs. Not pytest's, whose paths are too long for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="vca-ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _vca(folder: Path, session: Path, settings: list[str], extra: Mapping[str, str] = {}) -> tuple[int, str]:
    command = [sys.executable, "-m", "vca.cli", "tag", "--config", str(REPOSITORY / "configs" / "local.yaml")]
    shared = [f"taxonomy={REPOSITORY / 'configs' / 'taxonomy.yaml'}", "run.failure_budget=1", "ray.num_cpus=1", *LIGHT]
    for setting in (*shared, *settings):
        command += ["--set", setting]
    environment = os.environ | SECRETS | {"RAY_TMPDIR": str(session)} | extra
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    return done.returncode, done.stdout + done.stderr


def _leaks(folder: Path) -> list[str]:
    """Files below `folder` that hold the mark: as bytes, and in the columns of Parquet, which are compressed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if MARK.encode() in data or (path.suffix == ".parquet" and _in_table(pq.read_table(path))):
            found.append(str(path.relative_to(folder)))
    return found


def _in_table(table: pa.Table) -> bool:
    return MARK in str(table.schema) or MARK in str(table.to_pylist())


def _download(server: S3Server, bucket: str, folder: Path) -> Path:
    for key in server.keys(bucket):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(server.client.get_object(Bucket=bucket, Key=key)["Body"].read())
    return folder


def _tracked(folder: Path) -> list[str]:
    return [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", f"tracking.artifact_uri={folder / 'artifacts'}"]


def test_a_run_leaves_no_secret(archive: Path, tmp_path: Path, session: Path) -> None:
    """Terminal, tables, features, manifests, MLflow with its artifacts, Ray's logs: none of them has any of it."""
    left = tmp_path / "left"
    left.mkdir()
    with s3_server("films", "tags") as server:
        server.upload_folder(archive, "films", "videos")
        settings = ["archive.uri=s3://films/videos", "output.uri=s3://tags/vca", *_tracked(left)]
        settings += [f"{part}.storage.endpoint_url={server.endpoint_url}" for part in ("archive", "output")]
        code, said = _vca(tmp_path, session, settings)
        assert code == 0, said
        output = _download(server, "tags", left / "output")
    assert "1 tagged + 1 quarantined" in said
    assert MARK not in said
    assert list(output.rglob("*.parquet"))
    assert list((left / "artifacts").rglob("config.json"))
    assert (left / "mlflow.db").stat().st_size > 0
    assert list(session.rglob("*.log"))
    assert _leaks(left) == []
    assert _leaks(session) == []
    planted = left / "planted.parquet"  # the search finds what is there
    pq.write_table(pa.table({"text": [SECRETS["HF_TOKEN"]]}), planted)
    assert _leaks(left) == ["planted.parquet"]


def test_a_tracking_server_that_is_down(archive: Path, tmp_path: Path, session: Path) -> None:
    """The address of the server may hold a password: the summary says what failed without it."""
    left = tmp_path / "left"
    address = {"MLFLOW_TRACKING_URI": f"http://somebody:{MARK}-in-address@127.0.0.1:9/mlflow"}
    settings = [f"archive.uri={archive}", f"output.uri={left}", "tracking.uri=null", "tracking.timeout_s=2"]
    code, said = _vca(tmp_path, session, [*settings, "predict.model=zeroshot"], address)
    assert code == 0, said
    assert "tracking   FAILED, tables are published all the same" in said
    assert MARK not in said
    assert list(left.rglob("*.parquet"))
    assert _leaks(left) == []
    assert _leaks(session) == []


def test_storage_that_refuses_and_repeats_what_it_was_sent(tmp_path: Path, session: Path) -> None:
    """Servers answer with the key and the signature they were given; our one line has the bare code only."""
    seen: list[str] = []

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        seen.append(headers.get("Authorization", ""))
        echo = (
            f"{headers.get('Authorization')} {headers.get('X-Amz-Security-Token')} {SECRETS['AWS_SECRET_ACCESS_KEY']}"
        )
        body = f"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>{echo}</Message></Error>"
        return Answer(403, body.encode(), {"Content-Type": "application/xml"})

    with faulty_server(answer) as endpoint:
        settings = ["archive.uri=s3://films/videos", f"output.uri={tmp_path / 'out'}", "tracking.enabled=false"]
        code, said = _vca(tmp_path, session, [*settings, f"archive.storage.endpoint_url={endpoint}"])
    assert any(MARK in header for header in seen), "the secret must have been on its way"
    assert code == 2, said
    assert "access denied (SignatureDoesNotMatch)" in said
    assert len(said.strip().splitlines()) == 1
    assert MARK not in said


def test_a_proxy_that_does_not_answer(tmp_path: Path, session: Path) -> None:
    """The password of a proxy stands in its address, which libraries put into their messages."""
    settings = ["archive.uri=s3://films/videos", f"output.uri={tmp_path / 'out'}", "tracking.enabled=false"]
    extra = {"NO_PROXY": "", "no_proxy": "", "https_proxy": SECRETS["HTTPS_PROXY"], "AWS_EC2_METADATA_DISABLED": "true"}
    code, said = _vca(tmp_path, session, [*settings, "archive.storage.region=eu-central-1"], extra)
    assert code == 2, said
    assert "archive.uri = 's3://films/videos'" in said
    assert MARK not in said


DEFECT = """
    import os, sys
    from vca.core.errors import PublishError
    from vca.pipelines.door import _guarded

    def work():
        address = f"http://somebody:{os.environ['MLFLOW_TRACKING_PASSWORD']}@tracking/api"
        try:
            raise OSError(f"cannot reach {address} with {os.environ['AWS_SECRET_ACCESS_KEY']}")
        except OSError as error:
            if sys.argv[1] == "defect":
                raise KeyError(os.environ["HF_TOKEN"]) from error
            raise PublishError(f"output: {error}") from error

    sys.exit(_guarded(work, "nothing published"))
"""


@pytest.mark.parametrize("kind", ["defect", "user error"])
def test_tracebacks_and_error_lines(kind: str) -> None:
    """Whatever message of whatever library reaches the last line of defence: what the environment holds is masked."""
    command = [sys.executable, "-c", textwrap.dedent(DEFECT), kind]
    environment: dict[str, Any] = os.environ | SECRETS
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3
    assert "cannot reach http://***@tracking/api with ***" in done.stderr
    assert ("Traceback" in done.stderr) == (kind == "defect")
    assert MARK not in done.stdout + done.stderr
