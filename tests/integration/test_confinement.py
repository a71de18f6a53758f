"""Code that took over the decoding child finds nothing to steal and nobody to talk to: tried in real children."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clips import make_clip
from tests.support.runs import LIGHT, REPOSITORY
from vca.core.errors import ErrorCode, MediaError
from vca.core.timeline import Span
from vca.media.confinement import FILES, MEASURES, NETWORK, PROCESSES, _reading
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource, RangeSource
from vca.media.read import ReadPlan

pytestmark = pytest.mark.integration

PLAN = ReadPlan(step_us=500_000, frames_per_step=1, frame_size=32, audio=True, text=True, ocr_frames_per_minute=6.0)
LANDLOCK_CREATE, UNSHARE, SECCOMP = 444, 272, 317


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return make_clip(tmp_path / "archive" / "clip.mp4", 50, tone=[(0.0, 2.0)])


@pytest.fixture
def targets(tmp_path: Path, clip: Path) -> Iterator[dict[str, str]]:
    """What an intruder would like to reach: two listening sockets, a file with a secret, a folder to write to."""
    (tmp_path / "secret").write_text("do-not-read")
    (clip.parent / "deleted").touch()
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        yield {
            "port": str(tcp.getsockname()[1]),
            "unix": str(tmp_path / "unix"),
            "secret": str(tmp_path / "secret"),
            "folder": str(clip.parent),
        }


def _take_over(clip: Path, targets: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a new child attacks the moment it opens `clip`, and dies telling how that went.

    Python looks for a `sitecustomize` on the path that the parent hands on, here ours. It waits in the child, as the
    flaw of a decoder does, until the video is opened.
    """
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import json, sys
            code = compile(open({str(REPOSITORY / "tests/support/attacks.py")!r}).read(), "attacks", "exec")
            attacks = {{"__name__": "attacks"}}
            exec(code, attacks)
            done = []

            def hook(event, arguments):
                if event == "open" and str(arguments[0]) == {str(clip)!r} and not done:
                    done.append(True)
                    found = {{"tries": attacks["tries"]({targets!r}), "status": attacks["status"]()}}
                    raise RuntimeError("FOUND " + json.dumps(found))

            sys.addaudithook(hook)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))


def _found(decoder: DecoderProcess, clip: Path) -> tuple[dict[str, str], dict[str, str]]:
    with pytest.raises(RuntimeError, match="FOUND") as caught:
        decoder.probe(LocalSource(str(clip)))
    found = json.loads(str(caught.value).rpartition("FOUND ")[2].splitlines()[0])
    return found["tries"], found["status"]


def _confined(decoder: DecoderProcess) -> DecoderProcess:
    if decoder.confinement().missing:
        pytest.skip(f"this system cannot confine a child: {decoder.confinement().text}")
    return decoder


def test_a_taken_over_child_reaches_nothing(
    clip: Path, targets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection, process, signal, secret, file to write or right to gain; the parent is out of reach."""
    _take_over(clip, targets, tmp_path, monkeypatch)
    with DecoderProcess(DecodeConfig(), [str(clip.parent)]) as decoder:
        tries, status = _found(_confined(decoder), clip)
        assert decoder.confinement().taken == MEASURES
    assert {name for name, outcome in tries.items() if outcome == "done"} == set()
    assert set(tries.values()) <= {"EPERM", "EACCES"}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapEff"], 16) & ~(1 << 2) == 0  # root keeps the reading of files, inside the list of places
    assert status["Threads"] == "1"
    assert (clip.parent / "deleted").exists()


def test_without_confinement_the_same_attacks_work(
    clip: Path, targets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: `decode.isolation: off` leaves all of it open to whoever the job runs as."""
    _take_over(clip, targets, tmp_path, monkeypatch)
    with DecoderProcess(DecodeConfig(isolation="off"), [str(clip.parent)]) as decoder:
        tries, _ = _found(decoder, clip)
        assert decoder.confinement().text == "not confined"
    worked = {name for name, outcome in tries.items() if outcome == "done"}
    assert {"connect", "connect to a unix socket", "fork", "start a program", "signal the parent"} <= worked
    assert {
        "read the parent's environment",
        "read a secret",
        "write a file",
        "change a mode",
        "delete a file",
    } <= worked


def test_only_the_archive_is_read(clip: Path, tmp_path: Path) -> None:
    """A video outside the places that the reader named cannot be opened; one inside can, and ranges need no place."""
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(clip.read_bytes())
    data = clip.read_bytes()
    with DecoderProcess(DecodeConfig(), [str(clip.parent)]) as decoder:
        _confined(decoder)
        info = decoder.probe(LocalSource(str(clip)))
        read = decoder.read(LocalSource(str(clip)), info, Span(0, info.duration_us), PLAN)
        assert read.coverage_us == 2_000_000
        with pytest.raises(MediaError) as caught:
            decoder.probe(LocalSource(str(outside)))
        assert caught.value.code is ErrorCode.ACCESS_DENIED
    with DecoderProcess(DecodeConfig(), []) as decoder:
        source = RangeSource(lambda offset, size: data[offset : offset + size], len(data), "clip.mp4")
        assert decoder.probe(source).duration_us == info.duration_us


RESTRICTED = """
    import struct, sys
    from vca.media import confinement as c
    # Like a container that forbids these calls: they fail with EPERM, here and in every process started from here.
    lines = [(0x20, 0, 0, 0)]
    for number in {forbidden}:
        lines += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50001)]
    c._no_new_privileges()
    c.install_filter([*lines, (0x06, 0, 0, 0x7FFF0000)])
"""


def _restricted(forbidden: list[int], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(RESTRICTED).format(forbidden=forbidden) + textwrap.dedent(code)
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, cwd=REPOSITORY)


DECODE = """
    from vca.core.errors import ConfigError
    from vca.media.decode_config import DecodeConfig
    from vca.media.isolation import DecoderProcess, LocalSource
    with DecoderProcess(DecodeConfig(), [sys.argv[1]]) as decoder:
        print(*decoder.confinement().taken, sep=", ")
        print(decoder.confinement().text)
        print(decoder.probe(LocalSource(sys.argv[2])).duration_us)
    try:
        DecoderProcess(DecodeConfig(isolation="required"), [sys.argv[1]]).confinement()
    except ConfigError as error:
        print(error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
@pytest.mark.parametrize(
    ("forbidden", "missing"),
    [
        ([], set()),
        ([LANDLOCK_CREATE], {FILES}),
        ([UNSHARE], set()),  # without sockets no namespace is needed
        ([SECCOMP], {PROCESSES}),
        ([UNSHARE, SECCOMP], {NETWORK, PROCESSES}),
    ],
    ids=["all", "landlock", "unshare", "seccomp", "unshare and seccomp"],
)
def test_a_system_that_allows_less_is_told(clip: Path, forbidden: list[int], missing: set[str]) -> None:
    """`auto` takes what there is, says what is missing and why, and decodes; `required` refuses in one line."""
    with DecoderProcess(DecodeConfig(), [str(clip.parent)]) as decoder:
        _confined(decoder)
    done = _restricted(forbidden, DECODE, str(clip.parent), str(clip))
    assert done.returncode == 0, done.stderr
    taken, text, duration, *refusal = done.stdout.splitlines()
    assert set(taken.split(", ")) == set(MEASURES) - missing
    assert duration == "2000000"
    if not missing:
        assert refusal == []
        return
    assert len(refusal) == 1
    assert refusal[0].startswith("decode.isolation = 'required'")
    for measure in missing:
        assert f"no {measure}: Operation not permitted" in text
        assert f"no {measure}: Operation not permitted" in refusal[0]


TAG = """
    from vca.cli import app
    app(["tag", *sys.argv[1:]])
"""


@pytest.mark.long
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
def test_a_run_says_what_it_got_and_refuses_less_than_required(clip: Path, tmp_path: Path) -> None:
    """One line for a whole run, and exit code 2 with one line where the workers cannot give what is asked for."""
    with DecoderProcess(DecodeConfig(), [str(clip.parent)]) as decoder:
        _confined(decoder)
    (clip.parent / "another.mp4").write_bytes(clip.read_bytes())
    arguments = ["--config", "configs/local.yaml"]
    for setting in (f"archive.uri={clip.parent}", f"output.uri={tmp_path / 'out'}", "tracking.enabled=false", *LIGHT):
        arguments += ["--set", setting]
    refused = _restricted([LANDLOCK_CREATE], TAG, *arguments, "--set", "decode.isolation=required")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("vca: ")]
    assert "decode.isolation = 'required'" in line
    assert "no foreign file: Operation not permitted" in line
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out" / "tables").exists()
    done = _restricted([LANDLOCK_CREATE], TAG, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("decoding ")]
    assert said == [
        "decoding   no new privileges, no network, no other process; "
        "NOT to be had here: no foreign file: Operation not permitted"
    ]


PLAIN_USER = """
    import json, os, runpy, sys
    from pathlib import Path
    from vca.media.confinement import confine
    targets = json.loads(sys.argv[1])
    attacks = runpy.run_path("tests/support/attacks.py")
    if os.getuid() == 0:
        os.chown(targets["folder"], 65534, 65534)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    confinement = confine([targets["folder"]])
    found = {"taken": confinement.taken, "tries": attacks["tries"](targets), "status": attacks["status"]()}
    found["read"] = len(Path(targets["folder"], "clip.mp4").read_bytes())
    print(json.dumps(found))
"""


def test_a_plain_user_is_confined_as_well_as_root(clip: Path, targets: dict[str, str]) -> None:
    """Workers seldom are root: all measures work without a single privilege, and leave none behind."""
    with DecoderProcess(DecodeConfig(), [str(clip.parent)]) as decoder:
        _confined(decoder)
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(clip.parent, folder / "archive")
        (folder / "secret").write_text("readable by everybody")
        mine = targets | {"secret": str(folder / "secret"), "folder": str(folder / "archive")}
        command = [sys.executable, "-c", textwrap.dedent(PLAIN_USER), json.dumps(mine)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["taken"] == list(MEASURES)
    assert "done" not in found["tries"].values()
    assert int(found["status"]["CapEff"], 16) == 0
    assert found["read"] == clip.stat().st_size


def test_what_root_keeps() -> None:
    """Root goes on reading archives of other users: by the right for that, or the wider one if files are bound."""
    read, override, everything = 1 << 2, 1 << 1, (1 << 41) - 1
    assert _reading(everything, bounded=True) == _reading(everything, bounded=False) == read
    assert _reading(override, bounded=True) == override
    assert _reading(override, bounded=False) == 0
    assert _reading(0, bounded=True) == 0
