"""Stable error codes and the few exception types of the project.

Expected media and storage failures are values (`Failure`), never exceptions that reach the engine.
Exceptions are for users (`ConfigError`, `PublishError`) and for the inside of one room (`MediaError`).
"""

from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a file could not be tagged. The strings are a public contract: they appear in tables and never change."""

    # the bytes are wrong
    EMPTY_FILE = "empty_file"
    NOT_MEDIA = "not_media"
    HEADER_DAMAGED = "header_damaged"
    NO_STREAM = "no_stream"
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"
    ENCRYPTED = "encrypted"
    UNSUPPORTED_CODEC = "unsupported_codec"
    DECODE_ERROR = "decode_error"
    # the limits of the decoding child
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_LONG = "too_long"
    OUTPUT_LIMIT = "output_limit"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_CPU_LIMIT = "decode_cpu_limit"
    DECODE_MEMORY = "decode_memory"
    DECODE_CRASH = "decode_crash"
    # the storage
    BAD_KEY = "bad_key"
    OBJECT_MISSING = "object_missing"
    OBJECT_CHANGED = "object_changed"
    ACCESS_DENIED = "access_denied"
    STORAGE_TIMEOUT = "storage_timeout"
    STORAGE_ERROR = "storage_error"


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What a code means and whether another attempt on the same bytes can help."""

    meaning: str
    transient: bool


CODES: dict[ErrorCode, CodeInfo] = {
    ErrorCode.EMPTY_FILE: CodeInfo("the object has no bytes", False),
    ErrorCode.NOT_MEDIA: CodeInfo("no known media container: the content is not audio or video", False),
    ErrorCode.HEADER_DAMAGED: CodeInfo("a media container whose header or index is missing or damaged", False),
    ErrorCode.NO_STREAM: CodeInfo("a valid container without an audio or video stream", False),
    ErrorCode.NO_FRAMES: CodeInfo("streams are declared but hold no frames (for example an init segment)", False),
    ErrorCode.TRUNCATED: CodeInfo("the data end before the declared end; tagged up to there", False),
    ErrorCode.ENCRYPTED: CodeInfo("the streams are encrypted (DRM) and no key is available", False),
    ErrorCode.UNSUPPORTED_CODEC: CodeInfo("no decoder for the codec", False),
    ErrorCode.DECODE_ERROR: CodeInfo("the decoder rejected every packet", False),
    ErrorCode.TOO_MANY_PIXELS: CodeInfo("the picture is larger than decode.max_pixels", False),
    ErrorCode.TOO_LONG: CodeInfo("the presentation is longer than decode.max_duration_h", False),
    ErrorCode.OUTPUT_LIMIT: CodeInfo("the decoded segment is larger than decode.max_output_mb", False),
    ErrorCode.DECODE_TIMEOUT: CodeInfo("decoding took longer than decode.wall_limit_s", True),
    ErrorCode.DECODE_CPU_LIMIT: CodeInfo("decoding used more CPU time than decode.cpu_limit_s", True),
    ErrorCode.DECODE_MEMORY: CodeInfo("decoding needed more memory than decode.memory_limit_mb", True),
    ErrorCode.DECODE_CRASH: CodeInfo("the native decoder crashed", True),
    ErrorCode.BAD_KEY: CodeInfo("the object key is not valid UTF-8 or holds control characters", False),
    ErrorCode.OBJECT_MISSING: CodeInfo("the object was deleted between listing and reading", True),
    ErrorCode.OBJECT_CHANGED: CodeInfo("the object was replaced between listing and reading", True),
    ErrorCode.ACCESS_DENIED: CodeInfo("the storage refused to hand out the object", True),
    ErrorCode.STORAGE_TIMEOUT: CodeInfo("the storage did not answer in time", True),
    ErrorCode.STORAGE_ERROR: CodeInfo("the storage answered with an error", True),
}
assert set(CODES) == set(ErrorCode)


@dataclass(frozen=True, slots=True)
class Failure:
    """One expected failure, as it goes into a row. `message` is one line without paths of this machine."""

    code: ErrorCode
    stage: str  # "list" | "probe" | "read"
    message: str

    @property
    def transient(self) -> bool:
        return CODES[self.code].transient


MESSAGE_LIMIT = 300


def one_line(text: str) -> str:
    """Squeeze foreign text (decoder and storage messages) into one bounded, printable line."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= MESSAGE_LIMIT else flat[: MESSAGE_LIMIT - 3] + "..."


class VcaError(Exception):
    """Base of the errors a user can mend. Printed as one line; `exit_code` follows design section 7."""

    exit_code = 2


class ConfigError(VcaError):
    """The configuration or the environment it names cannot work. Raised before anything is written."""


class PublishError(VcaError):
    """The run is complete but could not be published; the tables are as before."""

    exit_code = 3


class MediaError(Exception):
    """Carries an expected media or storage failure up to the row boundary, where it becomes a `Failure`."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = one_line(message)

    def failure(self, stage: str) -> Failure:
        return Failure(self.code, stage, self.message)
