"""One S3 location (bucket and prefix), and how storage failures become error codes and one-line messages.

Keys go to the API as they are (`Bucket=`, `Key=`), never through path functions: `?`, `#`, `%`, `..` and `//` are
ordinary characters of a key, and a path function would read them as something else.
"""

import asyncio
import errno
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from vca.core.errors import ConfigError, ErrorCode, MediaError
from vca.core.identity import display_key, object_version
from vca.core.storage import StorageConfig

MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404"})
CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_DENIED = """
    AccessDenied AccountProblem AllAccessDisabled ExpiredToken Forbidden InvalidAccessKeyId InvalidObjectState
    InvalidPayer InvalidSecurity InvalidToken RequestTimeTooSkewed SignatureDoesNotMatch TokenRefreshRequired
    UnauthorizedAccess 401 403
"""
DENIED = frozenset(_DENIED.split())
TIMEOUT = frozenset({"RequestTimeout", "RequestTimeoutException", "GatewayTimeout", "408", "504"})
REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"})

UNMET = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"})
"""Answers to a conditional write whose condition does not hold, or to the slower of two at the same moment."""

SERVER_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def storage_exceptions() -> tuple[type[BaseException], ...]:
    """Everything that a storage can be expected to raise. The S3 libraries cost 0.3 s, hence the late import."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return (OSError, asyncio.TimeoutError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


def storage_error(error: BaseException, key: str) -> MediaError:
    """Classify a failure of `storage_exceptions`.

    The message is made of our words, an errno text or a bare S3 code: what servers and libraries write may hold
    signed addresses, account names and paths of this machine.
    """
    if isinstance(error, MediaError):
        return error
    code, reason = _classify(error)
    return MediaError(code, f"{reason}: {display_key(key)}")


def _classify(error: BaseException) -> tuple[ErrorCode, str]:
    server_code = _server_code(error)
    if server_code is not None:
        return _classify_server_code(server_code)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ErrorCode.OBJECT_MISSING, "the object is not there any more"
    if isinstance(error, PermissionError):
        return ErrorCode.ACCESS_DENIED, "access denied"
    if isinstance(error, TimeoutError):  # also asyncio's and fsspec's
        return ErrorCode.STORAGE_TIMEOUT, "the storage did not answer in time"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOSPC:
            return ErrorCode.STORAGE_ERROR, "no space left on the disk"
        return ErrorCode.STORAGE_ERROR, f"storage error ({os.strerror(error.errno)})"
    return _classify_client_error(error)


def _classify_server_code(code: str) -> tuple[ErrorCode, str]:
    if code in MISSING:
        return ErrorCode.OBJECT_MISSING, f"the object is not there any more ({code})"
    if code in CHANGED:
        return ErrorCode.OBJECT_CHANGED, f"the object was replaced after it was listed ({code})"
    if code == "InvalidObjectState":
        return ErrorCode.ACCESS_DENIED, "the object lies in an archive storage class and must be restored first"
    if code in DENIED:
        return ErrorCode.ACCESS_DENIED, f"access denied ({code})"
    if code in TIMEOUT:
        return ErrorCode.STORAGE_TIMEOUT, f"the storage did not answer in time ({code})"
    return ErrorCode.STORAGE_ERROR, f"the storage answered with an error ({code})"


def _classify_client_error(error: BaseException) -> tuple[ErrorCode, str]:
    from botocore import exceptions as boto

    if isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError):
        return ErrorCode.STORAGE_TIMEOUT, "the storage did not answer in time"
    if lacks_credentials(error):
        return ErrorCode.ACCESS_DENIED, f"no usable credentials ({type(error).__name__})"
    if isinstance(error, boto.ConnectionError):
        return ErrorCode.STORAGE_ERROR, f"cannot connect to the storage ({type(error).__name__})"
    if isinstance(error, boto.HTTPClientError):
        return ErrorCode.STORAGE_ERROR, f"the connection to the storage broke ({type(error).__name__})"
    return ErrorCode.STORAGE_ERROR, f"storage error ({type(error).__name__})"


def lacks_credentials(error: BaseException) -> bool:
    """Whether this process found none that it could use; no server has been asked."""
    from botocore import exceptions as boto

    kinds = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.NoAuthTokenError,
        boto.TokenRetrievalError,
        boto.SSOError,
    )
    return isinstance(error, kinds)


def _server_code(error: BaseException) -> str | None:
    """The S3 code behind an error; s3fs keeps the original one as the cause of its OSError."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, Mapping):
            code = str(response.get("Error", {}).get("Code", ""))
            if not SERVER_CODE.fullmatch(code):
                code = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "unknown"))
            return code
    return None


def _http_status(error: BaseException) -> int | None:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, Mapping):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return None


@contextmanager
def storage_errors(key: str) -> Iterator[None]:
    """Turn expected storage failures inside the block into `MediaError`; everything else passes."""
    try:
        yield
    except MediaError:
        raise
    except storage_exceptions() as error:
        raise storage_error(error, key) from error


def preflight_error(error: BaseException, section: str, uri: str, storage: StorageConfig) -> ConfigError:
    """One line that names the setting and the way out. `section` is "archive" or "output"."""
    from botocore import exceptions as boto

    where = f"{section}.uri = {uri!r}"
    settings = f"{section}.storage"
    server_code = _server_code(error)
    code, reason = _classify(error)
    if isinstance(error, boto.ProfileNotFound):
        text = f"{settings}.profile = {storage.profile!r}: no such profile in the AWS configuration files; "
        return ConfigError(text + "fix the name or unset it")
    if lacks_credentials(error):
        way_out = f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or {settings}.profile"
        if section == "archive":
            way_out += f", or {settings}.anonymous=true for a public bucket"
        return ConfigError(f"{where}: no usable credentials ({type(error).__name__}); {way_out}")
    if isinstance(error, boto.ParamValidationError):
        return ConfigError(f"{where}: not a valid bucket name; use s3://bucket/prefix")
    if server_code in REGION:
        return ConfigError(f"{where}: the bucket lives in another region ({server_code}); set {settings}.region")
    if code == ErrorCode.OBJECT_MISSING:
        return ConfigError(f"{where}: the bucket does not exist; create it or fix the name")
    if code == ErrorCode.ACCESS_DENIED:
        return ConfigError(f"{where}: {reason}; give these credentials the permission or use others")
    server = storage.endpoint_url or "AWS S3"
    if server_code is None:
        return ConfigError(f"{where}: {reason} at {server}; check {settings}.endpoint_url and the network")
    return ConfigError(f"{where}: {reason} from {server}; check the server and {settings}.endpoint_url")


class ConditionsUnknownError(OSError):
    """The server has no conditional writes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A small object as it was read."""

    data: bytes
    etag: str
    age_s: float
    """Since it was written. Both times are the server's: clocks of two machines need not agree."""


class S3Location:
    """`s3://bucket/prefix` with a client that is made on first use, anew in every process.

    Only settings are pickled: the client owns a thread and sockets, which survive neither pickling nor fork.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        bucket, _, prefix = uri.split("://", 1)[1].partition("/")
        self.bucket = bucket
        self.prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self.storage = storage
        self._reset()

    def _reset(self) -> None:
        self._filesystem: Any = None
        self._pid = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "prefix": self.prefix, "storage": self.storage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def root(self) -> str:
        """`bucket/prefix` without a slash at the end, the form of fsspec paths."""
        return f"{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def filesystem(self) -> Any:
        """The `s3fs.S3FileSystem` of this process."""
        if self._filesystem is not None and self._pid == os.getpid():
            return self._filesystem
        with self._lock:
            if self._filesystem is None or self._pid != os.getpid():
                from fsspec.core import url_to_fs

                # The bucket alone: fsspec gives `::` and `?versionId=` in a longer address a meaning.
                filesystem, _ = url_to_fs(f"s3://{self.bucket}", **self.storage.options("s3://"))
                # botocore repeats requests already: the five rounds of s3fs on top would multiply. One more round stays
                # for bodies that break off, which botocore does not see.
                filesystem.retries = min(2, self.storage.max_attempts)
                self._filesystem, self._pid = filesystem, os.getpid()
        return self._filesystem

    def preflight(self) -> "S3Location":
        """The same place with little patience, so that a wrong address is reported in seconds."""
        changes = {
            "max_attempts": 1,
            "connect_timeout_s": min(self.storage.connect_timeout_s, 5.0),
            "read_timeout_s": min(self.storage.read_timeout_s, 10.0),
        }
        twin = S3Location.__new__(S3Location)
        twin.__setstate__({**self.__getstate__(), "storage": self.storage.model_copy(update=changes)})
        return twin

    def call(self, method: str, **arguments: Any) -> Any:
        """One request about the bucket. Raises `storage_exceptions`."""
        return self.filesystem.call_s3(method, Bucket=self.bucket, **arguments)

    def pages(self, under: str = "") -> Iterator[list[dict[str, Any]]]:
        """Objects whose key starts with prefix + `under`, in pages of at most 1000, in key order."""
        token: dict[str, str] = {}
        while True:
            page = self.call("list_objects_v2", Prefix=self.prefix + under, **token)
            yield page.get("Contents", [])
            following = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if following is None:
                return
            if following == token.get("ContinuationToken"):
                raise OSError(errno.EPROTO, "the listing repeats the same page")
            token = {"ContinuationToken": following}

    def version(self, entry: Mapping[str, Any], size_bytes: int) -> str:
        """`object_version` from a listing entry or a HEAD answer."""
        etag = str(entry.get("ETag") or "").strip('"')
        # HEAD gives whole seconds, a listing milliseconds: only the seconds agree.
        modified_us = int(entry["LastModified"].timestamp()) * 1_000_000 if entry.get("LastModified") else None
        return object_version(size_bytes, etag or None, modified_us)

    def stored(self, key: str, length: int) -> Stored | None:
        """At most `length` bytes of an object and what they were read from; None if there is none."""
        try:
            answer = self.call("get_object", Key=self.prefix + key)
        except FileNotFoundError:
            return None
        data = self._body(answer["Body"], length)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(said) if said else datetime.now(UTC)
        return Stored(data, str(answer["ETag"]), (now - answer["LastModified"]).total_seconds())

    def etag(self, key: str) -> str | None:
        """What `put_if` compares; None if there is no such object."""
        try:
            return str(self.call("head_object", Key=self.prefix + key)["ETag"])
        except FileNotFoundError:
            return None

    def put_if(self, key: str, data: bytes, etag: str | None) -> str | None:
        """Write an object if it still is the one with this etag (None: if there is none).

        Returns the new etag; None if the condition does not hold, which may be the work of this very call, repeated
        after its answer was lost. Raises `ConditionsUnknownError`.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        answer = self._conditional("put_object", Key=self.prefix + key, Body=data, **condition)
        return None if answer is None else str(answer["ETag"])

    def delete_if(self, key: str, etag: str) -> bool:
        """Delete an object if it still is the one with this etag. Raises `ConditionsUnknownError`."""
        return self._conditional("delete_object", Key=self.prefix + key, IfMatch=etag) is not None

    def _conditional(self, method: str, **arguments: Any) -> Any:
        try:
            return self.call(method, **arguments)
        except storage_exceptions() as error:
            code, status = _server_code(error), _http_status(error)
            if code in UNMET:
                return None
            # Servers that do not know the header answer 501, some 400; 400 is also said of tokens and time-outs.
            if status == 501 or (status == 400 and code not in DENIED | TIMEOUT | REGION):
                raise ConditionsUnknownError(code) from error
            raise

    def exists(self, key: str) -> bool:
        """Whether there is such an object at this moment. Raises `MediaError` where the storage does not say."""
        try:
            with storage_errors(key):
                self.call("head_object", Key=self.prefix + key)
        except MediaError as error:
            if error.code == ErrorCode.OBJECT_MISSING:
                return False
            raise
        return True

    def check_version(self, key: str, version: str) -> None:
        """`MediaError` unless the object is there and is the one that was listed."""
        with storage_errors(key):
            head = self.call("head_object", Key=self.prefix + key)
        if self.version(head, int(head["ContentLength"])) != version:
            raise MediaError(ErrorCode.OBJECT_CHANGED, f"the object was replaced after it was listed: {key}")

    def read(self, key: str, offset: int, length: int, version: str | None = None) -> bytes:
        """Bytes `[offset, offset + length)`, fewer only at the end of the object. Raises `MediaError`.

        With a version that holds an etag, another object under the same key is OBJECT_CHANGED.
        """
        assert offset >= 0
        assert length > 0
        return self._get(key, length, offset, Range=f"bytes={offset}-{offset + length - 1}", **_only(version))

    def read_start(self, key: str, length: int, version: str | None = None) -> bytes:
        """The first `length` bytes or the whole object; unlike a range this also works for an empty object.

        With a version, another object under the same key is OBJECT_CHANGED.
        """
        only = _only(version)
        if version is not None and not only:
            self.check_version(key, version)
        return self._get(key, length, 0, **only)

    def _get(self, key: str, length: int, offset: int, **arguments: str) -> bytes:
        with storage_errors(key):
            # botocore repeats requests, but it has let go of them when the body breaks off: that is repeated here.
            for attempt in range(1, self.storage.max_attempts + 1):
                response = self.call("get_object", Key=self.prefix + key, **arguments)
                if offset and response["ResponseMetadata"]["HTTPStatusCode"] != 206:
                    raise OSError(errno.EPROTO, "the server ignores byte ranges")
                try:
                    return self._body(response["Body"], length)
                except storage_exceptions():
                    if attempt == self.storage.max_attempts:
                        raise
                    time.sleep(min(0.1 * 2**attempt, 5.0))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _body(self, body: Any, length: int) -> bytes:
        """At most `length` bytes: a server that ignores the range must not fill the memory."""
        from fsspec.asyn import sync

        async def read() -> bytes:
            parts: list[bytes] = []
            missing = length
            async with body:
                while missing > 0:
                    part = await body.read(missing)
                    if not part:
                        break
                    parts.append(part)
                    missing -= len(part)
            return b"".join(parts)

        result: bytes = sync(self.filesystem.loop, read)
        return result


def _only(version: str | None) -> dict[str, str]:
    """The condition of a request for this version of an object; nothing where the version holds no etag."""
    etag = version.partition("/")[2] if version else ""
    return {"IfMatch": f'"{etag}"'} if etag else {}
