"""How media are sampled and how far a decoder may go before it is stopped."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vca.core.config import Config


class SamplingConfig(Config):
    """The shared time grid. These values shape features: changing them makes a new feature set."""

    step_ms: int = Field(500, ge=10, le=60_000)
    """Length of a grid step, milliseconds. `segment_s` must be a multiple of it."""
    segment_s: int = Field(60, ge=1, le=3600)
    """Length of the pieces in which a video is decoded; it bounds memory and is the unit of retry."""
    mode: Literal["exact", "keyframes"] = "exact"
    """`keyframes` shows the key frame at or before each sample time: 8 to 10 times cheaper, up to a GOP late."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.segment_s * 1000 % self.step_ms:
            raise ValueError(f"segment_s {self.segment_s} is not a multiple of step_ms {self.step_ms}")
        return self


class DecodeConfig(Config):
    """Limits of one decoding child. Every limit has its own error code, see `vca.core.errors`."""

    backend: Literal["pyav", "decord"] = "pyav"
    """`decord`: it takes the pictures of short files where both give the same picture for the same time, PyAV all else.

    Its pictures differ by a level or so, so the features count as others. PyAV is faster, and the FFmpeg in decord is
    an old one (decisions 0021 and 0022).
    """
    stage_limit_mb: int = Field(8, ge=0)
    """Larger remote objects are read by byte range, smaller ones copied in one request. Of a video of several segments
    the copy serves the first look only, so that its bytes are fetched twice: a low limit bounds what that costs."""
    max_pixels: int = Field(8192 * 4320, ge=1)
    """Width times height of the coded picture."""
    max_duration_h: float = Field(24.0, gt=0)
    """Length of a presentation. Every minute of it costs tasks and memory, whether or not it holds anything: a damaged
    header may declare a century."""
    max_output_mb: int = Field(512, ge=1)
    """Decoded arrays of one segment."""
    wall_limit_s: float = Field(120.0, gt=0)
    """Per probe or segment; time spent in waiting for the storage does not count."""
    cpu_limit_s: float = Field(120.0, gt=0)
    """CPU time per probe or segment, seconds."""
    memory_limit_mb: int = Field(2048, ge=64)
    """Private memory of the child. About 130 MB of it is the interpreter with its libraries."""
    isolation: Literal["auto", "required", "off"] = "auto"
    """Whether the child is cut off from network, other processes, files and privileges: `auto` as far as the system
    allows, which the run reports; `required` refuses to run with less than all of it."""
