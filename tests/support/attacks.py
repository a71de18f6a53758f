"""What code that took over the decoding child would try. It runs inside that child: standard library only.

`tries` names each attempt and says how it ended: "done", or the errno. Nothing that is tried does harm if it works.
"""

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

CLONE_NEWUSER, PTRACE_ATTACH, PTRACE_DETACH = 0x10000000, 16, 17


def tries(targets: Mapping[str, str]) -> dict[str, str]:
    """`targets`: the test's `port` on 127.0.0.1, its `unix` socket, a `secret` file, and a `folder` to write to."""
    parent = os.getppid()
    attempts: dict[str, Callable[[], object]] = {
        "connect": lambda: socket.socket(socket.AF_INET).connect((b"127.0.0.1", int(targets["port"]))),
        "connect to a unix socket": lambda: socket.socket(socket.AF_UNIX).connect(targets["unix"]),
        "send a datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
        "fork": _fork,
        "start a program": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "signal the parent": lambda: os.kill(parent, 0),
        "trace the parent": lambda: _trace(parent),
        "read the parent's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "read the parent's memory": lambda: Path(f"/proc/{parent}/mem").open("rb").close(),
        "read a secret": lambda: Path(targets["secret"]).read_bytes(),
        "list a folder": lambda: list(Path("/root" if os.getuid() == 0 else "/home").iterdir()),
        "write a file": lambda: Path(targets["folder"], "written").write_text("x"),
        "change a mode": lambda: Path(targets["folder"], "deleted").chmod(0o777),
        "change times": lambda: os.utime(Path(targets["folder"], "deleted"), (0, 0)),
        "set an attribute": lambda: os.setxattr(Path(targets["folder"], "deleted"), "user.x", b"1"),
        "slow the parent down": lambda: os.setpriority(
            os.PRIO_PROCESS, parent, os.getpriority(os.PRIO_PROCESS, parent)
        ),
        "delete a file": lambda: Path(targets["folder"], "deleted").unlink(),
        "gain capabilities": lambda: _check(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER)),
    }
    return {name: _outcome(attempt) for name, attempt in attempts.items()}


def status() -> dict[str, str]:
    """What the kernel says about this process."""
    lines = Path("/proc/self/status").read_bytes().decode().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _trace(process: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.ptrace(PTRACE_ATTACH, process, None, None))
    os.waitpid(process, 0)
    _check(libc.ptrace(PTRACE_DETACH, process, None, None))
