"""What the decoding child gives up before it sees the first byte of a video. Linux only; each step is best effort.

A decoder that was taken over by a file runs code of a stranger. It should then find nothing to steal and nobody to talk
to: no network, no other process or program, no file but the videos and the libraries, no privileges. All steps bind the
calling thread and what it starts later, so `confine` runs when everything is imported and before any thread exists.

Why these and not others is in docs/decisions/0016-isolation-of-decoding.md.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PRIVILEGES, NETWORK, PROCESSES, FILES = "new privileges", "network", "other process", "foreign file"
MEASURES = (PRIVILEGES, NETWORK, PROCESSES, FILES)
"""What a confined child is without."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """Which measures took effect, and why the others did not."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    """`<measure>: <reason>` for each of the others."""

    @property
    def text(self) -> str:
        """One line for a log."""
        parts = [f"no {', no '.join(self.taken)}"] if self.taken else []
        if self.missing:
            parts.append(f"NOT to be had here: {', '.join(f'no {reason}' for reason in self.missing)}")
        return "; ".join(parts) or "not confined"


_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_THREAD = 0x1000_0000, 0x4000_0000, 0x0001_0000
_CAPABILITY_VERSION = 0x2008_0522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SYS_ADMIN = 1, 2, 21


def confine(places: Sequence[str] | None) -> Confinement:
    """Take every measure that this system offers. Only files below `places` may still be read; None: all files.

    There is no way back: the kernel has no call that undoes any of it.
    """
    if sys.platform != "linux":
        return Confinement((), tuple(f"{measure}: needs Linux" for measure in MEASURES))
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        reason = f"{threads} threads run already"
        return Confinement((), tuple(f"{measure}: {reason}" for measure in MEASURES))
    before = _capabilities()[1]
    refused: dict[str, str] = {}
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        (PRIVILEGES, _no_new_privileges),
        (FILES, lambda: _allow_files(places)),
        (NETWORK, _leave_network),
        (PRIVILEGES, lambda: _keep_capabilities(_reading(before, bounded=FILES not in refused))),
        (PROCESSES, _filter_system_calls),
    )
    for measure, step in steps:
        try:
            step()
        except OSError as error:
            refused.setdefault(measure, error.strerror or str(error))
    if PROCESSES not in refused:
        refused.pop(NETWORK, None)  # no socket can be made, in whatever network namespace
    taken = tuple(measure for measure in MEASURES if measure not in refused)
    return Confinement(taken, tuple(f"{measure}: {refused[measure]}" for measure in MEASURES if measure in refused))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _no_new_privileges() -> None:
    """No set-user-id program and no file capability helps any more; also what lets a plain user take the next steps."""
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _leave_network() -> None:
    """Into a network of one's own without any way out. Only root may do so without a user namespace.

    Root stays out of one: there it could no longer read the files of other users, which archives on a mount often are.
    """
    if _capabilities()[0] & 1 << _CAP_SYS_ADMIN:
        _check(_libc().unshare(_CLONE_NEWNET))
    elif os.geteuid() != 0:
        _check(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
    else:
        raise OSError(errno.EPERM, "root without CAP_SYS_ADMIN")


def _capabilities() -> tuple[int, int]:
    """The effective and the permitted set."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(24)
    _check(_libc().capget(header, data))
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", data.raw[:24])
    return effective | effective_high << 32, permitted | permitted_high << 32


def _reading(permitted: int, bounded: bool) -> int:
    """What lets root read the files of other users: the capability for just that, else the one that containers have.

    That one is for writing too, so it is kept only where the list of files forbids that.
    """
    read = permitted & 1 << _CAP_DAC_READ_SEARCH
    return read or (permitted & 1 << _CAP_DAC_OVERRIDE if bounded else 0)


def _keep_capabilities(kept: int) -> None:
    """All others, which a new user namespace has given too, open more of the kernel than a plain user reaches."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0))
    _check(_libc().capset(header, data))


# --- files: Landlock -------------------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every architecture
_LANDLOCK_VERSION_FLAG, _LANDLOCK_PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_SYSTEM_PLACES = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/proc/cpuinfo", "/proc/meminfo",
    "/sys/devices/system/cpu", "/dev/null", "/dev/zero", "/dev/urandom",
)  # fmt: skip


def _allow_files(places: Sequence[str] | None) -> None:
    """Landlock: from now on nothing can be opened but files below `places` and the interpreter's own, to be read.

    Newer kernels also forbid TCP, and signals and abstract sockets to processes outside.
    """
    if places is None:
        raise OSError(0, "nobody said which files are needed")
    libc = _libc()
    version = _check(libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION_FLAG)))
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    handled = [(1 << rights) - 1, 0b11, 0b11][: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(handled)}Q", *handled))
    size = ctypes.c_size_t(8 * len(handled))
    ruleset = _check(libc.syscall(_LANDLOCK_CREATE, attributes, size, ctypes.c_uint32(0)))
    try:
        for place in dict.fromkeys([*places, *_interpreter_places(), *_SYSTEM_PLACES]):
            _allow(libc, ruleset, place)
        _check(libc.syscall(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, place: str) -> None:
    try:
        folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there cannot be read either
    try:
        right = _READ_FILE | _READ_DIR if os.path.isdir(place) else _READ_FILE  # noqa: PTH112 - surrogates, no checks
        rule = ctypes.create_string_buffer(struct.pack("=Qi", right, folder))
        flags = ctypes.c_uint32(0)
        _check(libc.syscall(_LANDLOCK_ADD, ctypes.c_int(ruleset), _LANDLOCK_PATH_BENEATH, rule, flags))
    finally:
        os.close(folder)


def _interpreter_places() -> list[str]:
    """Where libraries load parts of themselves late: codecs of Python, files of packages.

    Not the folders on `sys.path`, which may be a home or a checkout, but those of the packages that are loaded.
    """
    packages = [
        os.path.dirname(file)  # noqa: PTH120 - as the import system spells it
        for name, module in list(sys.modules.items())
        if "." not in name and (file := getattr(module, "__file__", None)) and file.endswith("/__init__.py")
    ]
    return [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), *packages]  # noqa: PTH120


# --- system calls: seccomp -------------------------------------------------------------------------------------------

_X86_64 = 0xC000_003E
_REFUSED_X86_64 = (
    # sockets to anybody
    41, 42, 43, 49, 50, 53, 288,  # socket, connect, accept, bind, listen, socketpair, accept4
    # processes and programs; threads are let through below
    57, 58, 59, 322,  # fork, vfork, execve, execveat
    62, 200, 129, 297, 424,  # kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal
    101, 310, 311, 312, 434, 438, 440,  # ptrace, process_vm_readv, _writev, kcmp, pidfd_open, _getfd, process_madvise
    141, 142, 144, 203, 251, 314,  # priorities, schedulers and CPUs, which may be those of others
    29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 220, 240,  # shared memory, semaphores and queues of System V and POSIX
    # what Landlock does not see: modes, owners, times and attributes of files
    90, 91, 268, 452, 92, 93, 94, 260,  # chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat
    132, 235, 261, 280, 76,  # utime, utimes, futimesat, utimensat, truncate
    188, 189, 190, 197, 198, 199, 463, 466, 469,  # setxattr, lsetxattr, fsetxattr, remove..., ...at, file_setattr
    # ways into the kernel, and out of what is given up here
    155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442,  # mounts, roots, namespaces
    175, 313, 246, 320, 321, 298, 323, 425, 426, 427,  # modules, kexec, bpf, perf_event_open, userfaultfd, io_uring
    248, 249, 250, 303, 304,  # keys, files by handle
)  # fmt: skip
"""A list of what is refused, not of what is allowed: that would have to follow every new version of the C library."""
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = 56, 435, 234, 302
_SECCOMP, _SET_MODE_FILTER, _SPECULATION_AS_BEFORE = 317, 1, 4  # older kernels would slow the decoder down

_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def _filter_system_calls() -> None:
    """No socket, no process, no program; `abort` and threads work. Only for x86-64, the one decord is built for."""
    if os.uname().machine != "x86_64" or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no list of system calls for {os.uname().machine}")
    install_filter(refusing_program(_REFUSED_X86_64))


def refusing_program(numbers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """A seccomp program as (code, jump if true, jump if false, operand): these calls fail with EPERM, on x86-64."""
    refuse, allow = (_RETURN, 0, 0, _REFUSE | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),  # numbers of another architecture mean other calls
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x4000_0000),  # the same calls once more under other numbers (x32)
        refuse,
    ]
    for number in numbers:
        program += [(_EQUAL, 0, 1, number), refuse]
    # glibc asks clone3 first, whose flags a filter cannot see, and takes clone when there is none.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    for number, code, operand in (
        (_CLONE, _HAS_BIT, _CLONE_THREAD),  # a thread, not a process
        (_TGKILL, _EQUAL, os.getpid()),  # `abort` signals oneself
        (_PRLIMIT, _EQUAL, 0),  # one's own limits
    ):
        program += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _FIRST_ARGUMENT), (code, 0, 1, operand), allow, refuse]
    return [*program, allow]


def install_filter(program: Sequence[tuple[int, int, int, int]]) -> None:
    """Put a seccomp program in force for this thread and those it starts. Needs no_new_privs. Raises `OSError`."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    _check(_libc().syscall(_SECCOMP, _SET_MODE_FILTER, _SPECULATION_AS_BEFORE, filter_))
