"""One writer at a time: who changes an output holds its lock, a file `vca-lock.json` that says who and since when.

In a folder it is a kernel lock (flock) on that file, which the kernel lets go when the process dies. In a bucket, which
has no such thing, it is an object made by a conditional PUT and renewed while its holder lives; not renewed for
`Lease.stale_s`, it may be taken over.
"""

import errno
import fcntl
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from pydantic import AwareDatetime, Field, ValidationError

from vca.core.config import Config
from vca.core.errors import ConfigError, PublishError, one_line
from vca.media.output import Output
from vca.media.s3 import ConditionsUnknownError, S3Location, Stored, storage_error, storage_exceptions

log = logging.getLogger(__name__)

LOCK = "vca-lock.json"
MAX_BYTES = 4096
"""Far more than a `Holder`; a larger file is none."""
TRIES = 10
"""Rounds of reading and writing an object that others want, too."""


@dataclass(frozen=True, slots=True)
class Lease:
    """How a lock in a bucket ages, seconds. Renewed every `renew_s`, free for others after `stale_s` without."""

    renew_s: float = 30.0
    stale_s: float = 180.0


class Holder(Config):
    """What the lock file says. For people, apart from `token`."""

    format: Literal[1] = 1
    work: str = Field(max_length=200)
    """What is going on, for example "run 20260301T020000Z-a1b2c3"."""
    host: str = Field(max_length=200)
    pid: int
    since: AwareDatetime
    token: str = Field(max_length=64)
    """Tells two holders apart."""
    renewals: int = 0
    """Counts up, so that every renewal is another content: an object's etag comes from its content."""

    def describe(self) -> str:
        return one_line(f"{self.work} on {self.host} (process {self.pid}) since {self.since.astimezone(UTC):%F %T} UTC")


class OutputLock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Make sure that it is still held, right before a step that nobody else may come between.

        Raises `PublishError` if it is not, and OSError if the storage does not say.
        """


@contextmanager
def output_lock(output: Output, work: str, lease: Lease | None = None) -> Iterator[OutputLock]:
    """Hold the lock of an output while the block runs. `work` is what others are told.

    Does not wait: `ConfigError` with one line about the holder if there is one. A lock whose holder died is taken over.
    Where the storage cannot lock, that is logged and the block runs without. Raises OSError as `Output` does.
    """
    me = Holder(
        work=work,
        host=socket.gethostname()[:200] or "unknown",
        pid=os.getpid(),
        since=datetime.now(UTC).replace(microsecond=0),
        token=secrets.token_hex(16),
    )
    lock = _FolderLock(output, me) if output.s3 is None else _BucketLock(output, output.s3, me, lease or Lease())
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def _holder(data: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(data, strict=True) if len(data) <= MAX_BYTES else None
    except ValidationError:
        return None


def _in_use(output: Output, holder: Holder | None, more: str = "") -> ConfigError:
    who = holder.describe() if holder is not None else f"somebody who does not say so in {LOCK}"
    return ConfigError(f"output.uri = {output.config.uri!r}: in use by {who}; wait until that has ended{more}")


def _took_over(holder: Holder | None) -> None:
    who = holder.describe() if holder is not None else f"a holder that cannot be read from {LOCK}"
    log.warning("the lock was left by %s, which has died; taken over", who)


def _without(output: Output, why: str) -> None:
    log.warning(
        "output.uri = %r: %s, so nothing keeps two runs apart; start only one at a time", output.config.uri, why
    )


def _lost(output: Output, why: str) -> PublishError:
    return PublishError(f"output.uri = {output.config.uri!r}: {why} while this worked; nothing published, run again")


# -------------------------------------------------------------------------------------------------------------- folders


class _FolderLock:
    def __init__(self, output: Output, me: Holder) -> None:
        self._output, self._me = output, me
        self._path = Path(output.path(LOCK))
        self._made: list[Path] = []
        self._fd: int | None = None

    def acquire(self) -> None:
        with self._output.errors(LOCK):
            while True:
                fd = self._open()
                try:
                    if not self._lock(fd):
                        self._path.unlink(missing_ok=True)
                        os.close(fd)
                        return
                    if self._is_in_place(fd):
                        break
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)  # its last holder removed it between our two steps
            self._fd = fd
            try:
                left = os.pread(fd, MAX_BYTES + 1, 0)
                if left:
                    _took_over(_holder(left))
                os.ftruncate(fd, 0)
                os.pwrite(fd, self._me.model_dump_json(indent=1).encode(), 0)
            except BaseException:
                self.release()
                raise

    def _open(self) -> int:
        while True:
            for folder in [self._path.parent, *self._path.parent.parents]:
                if folder.exists():
                    break
                self._made.append(folder)
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:  # found there and not found to be a folder: its last holder removed it in between
                with suppress(FileNotFoundError):
                    if not stat.S_ISDIR(os.lstat(self._path.parent).st_mode):
                        raise
                continue
            with suppress(FileNotFoundError):  # the last holder removed the folder that it had made
                # Not inherited: a child that lives on, such as a process of Ray, would hold the lock of a dead run.
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def _lock(self, fd: int) -> bool:
        """Whether it is locked now; False where the file system cannot."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(self._output, _read_patiently(fd)) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise
            _without(self._output, f"the file system cannot lock ({os.strerror(error.errno)})")
            return False
        return True

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.lstat())
        except FileNotFoundError:
            return False

    def check(self) -> None:
        if self._fd is not None and not self._is_in_place(self._fd):
            raise _lost(self._output, f"the lock file {LOCK} was removed")

    def release(self) -> None:
        if self._fd is None:
            return
        try:
            if self._is_in_place(self._fd):
                self._path.unlink()  # while it is locked: whoever opened it before finds it out of place
        finally:
            os.close(self._fd)
        with suppress(OSError):  # something lies in there by now
            for folder in self._made:
                folder.rmdir()


def _read_patiently(fd: int) -> Holder | None:
    """Who holds the lock. Between locking and writing the holder needs a moment."""
    for _ in range(20):
        found = _holder(os.pread(fd, MAX_BYTES + 1, 0))
        if found is not None:
            return found
        time.sleep(0.05)
    return None


# -------------------------------------------------------------------------------------------------------------- buckets


class _BucketLock:
    def __init__(self, output: Output, s3: S3Location, me: Holder, lease: Lease) -> None:
        self._output, self._s3, self._me, self._lease = output, s3, me, lease
        self._etag: str | None = None
        """Of our own object; None: not held."""
        self._lost: str | None = None
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        with self._output.errors(LOCK):
            try:
                self._etag = self._take()
            except ConditionsUnknownError as error:
                _without(self._output, f"the storage has no conditional writes ({one_line(str(error))})")
                return
        self._thread = threading.Thread(target=self._keep, name="vca-output-lock", daemon=True)
        self._thread.start()

    def _take(self) -> str:
        for _ in range(TRIES):
            there = self._s3.stored(LOCK, MAX_BYTES + 1)
            if there is not None and self._is_ours(there):
                self._refuse_blind_server()
                return there.etag
            if there is not None and there.age_s < self._lease.stale_s:
                raise self._in_use(there)
            if self._s3.put_if(LOCK, self._content(), there.etag if there else None) is not None and there is not None:
                _took_over(_holder(there.data))
            # Read again: the next round sees who was quickest.
        raise OSError(errno.EBUSY, "several runs want the lock at the same moment")

    def _refuse_blind_server(self) -> None:
        """A server that passes over the condition would let everybody in, and none of them would know."""
        if self._s3.put_if(LOCK, self._content(), None) is not None:
            self._s3.call("delete_object", Key=self._s3.prefix + LOCK)
            raise ConditionsUnknownError("it ignores their condition")

    def _in_use(self, there: Stored) -> ConfigError:
        stale_s = self._lease.stale_s
        more = f"; a dead holder's lock is free {stale_s:g} s after its last renewal, {max(there.age_s, 0.0):.0f} s ago"
        return _in_use(self._output, _holder(there.data), more)

    def _is_ours(self, there: Stored) -> bool:
        holder = _holder(there.data)
        return holder is not None and holder.token == self._me.token

    def _content(self) -> bytes:
        return self._me.model_dump_json(indent=1).encode()

    def _keep(self) -> None:
        while not self._stop.wait(self._lease.renew_s):
            try:
                self._renew()
            except storage_exceptions() as error:
                log.warning("the lock could not be renewed: %s", storage_error(error, LOCK).message)
            if self._lost is not None:
                log.error("%s took the lock over: nothing of this run will be published", self._lost)
                return

    def _renew(self) -> None:
        with self._guard:
            if self._etag is None or self._lost is not None:
                return
            self._me = self._me.model_copy(update={"renewals": self._me.renewals + 1})
            etag = self._s3.put_if(LOCK, self._content(), self._etag)
            if etag is None:
                there = self._s3.stored(LOCK, MAX_BYTES + 1)
                if there is None:
                    self._lost = "somebody"
                elif self._is_ours(there):  # an earlier try of this request, whose answer got lost
                    etag = there.etag
                else:
                    holder = _holder(there.data)
                    self._lost = holder.describe() if holder is not None else "somebody"
            self._etag = etag

    def check(self) -> None:
        with self._output.errors(LOCK):
            self._renew()  # nobody may take it for `stale_s` from now on
        if self._lost is not None:
            raise _lost(self._output, f"the lock was not renewed in time and {self._lost} took it")

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._renew()  # or a server that does not know conditional deletes would delete the lock of another
            if self._etag is not None:
                self._delete(self._etag)
        except storage_exceptions() as error:
            text = "the lock could not be given back, it is free after %g s: %s"
            log.warning(text, self._lease.stale_s, storage_error(error, LOCK).message)

    def _delete(self, etag: str) -> None:
        try:
            self._s3.delete_if(LOCK, etag)
        except ConditionsUnknownError:
            self._s3.call("delete_object", Key=self._s3.prefix + LOCK)
