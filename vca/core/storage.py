"""How to reach a storage. Pure settings; the rooms that do I/O hand `options` to fsspec.

Credentials are never settings: they come from the environment or from a named profile.
"""

from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from vca.core.config import Config


class StorageConfig(Config):
    endpoint_url: str | None = None
    """S3-compatible server, for example http://minio:9000; None is AWS."""
    region: str | None = None
    """Region of the bucket; None is that of the environment or the profile."""
    profile: str | None = None
    """Named profile of the AWS configuration files."""
    anonymous: bool = False
    """Public buckets, unsigned requests."""
    connect_timeout_s: float = Field(10.0, gt=0)
    """Longest wait for a connection, seconds."""
    read_timeout_s: float = Field(60.0, gt=0)
    """Longest wait for the next bytes of an answer, seconds."""
    max_attempts: int = Field(5, ge=1, le=20)
    """Tries of one request inside a run, with back-off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.endpoint_url is not None:
            parts = urlsplit(self.endpoint_url)
            if parts.username or parts.password:
                raise ValueError("endpoint_url holds credentials; put them into the environment or a profile")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"endpoint_url {self.endpoint_url!r} is not an http(s) address")
        return self

    def options(self, uri: str) -> dict[str, Any]:
        """Keyword arguments for `fsspec.core.url_to_fs(uri, **options)`; empty for local paths."""
        if not is_s3(uri):
            return {}
        client: dict[str, Any] = {}
        if self.region:
            client["region_name"] = self.region
        return {
            "anon": self.anonymous,
            "profile": self.profile,
            "endpoint_url": self.endpoint_url,
            "client_kwargs": client,
            "config_kwargs": {
                "connect_timeout": self.connect_timeout_s,
                "read_timeout": self.read_timeout_s,
                "retries": {"max_attempts": self.max_attempts, "mode": "standard"},
            },
            "use_listings_cache": False,
            "skip_instance_cache": False,
        }


def is_s3(uri: str) -> bool:
    return uri.startswith(("s3://", "s3a://"))


def check_uri(uri: str) -> str:
    """Validate an archive or output location: a local path or s3://bucket/prefix, without credentials."""
    if not uri:
        raise ValueError("the location is empty; give a folder or s3://bucket/prefix")
    if "://" not in uri:
        return uri
    scheme = uri.split("://", 1)[0]
    if scheme not in ("s3", "s3a", "file"):
        raise ValueError(f"scheme {scheme!r} is not supported; use a local path or s3://bucket/prefix")
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ValueError("the location holds credentials; put them into the environment or a profile")
    if is_s3(uri) and not parts.netloc:
        raise ValueError(f"{uri!r} names no bucket; use s3://bucket/prefix")
    return uri
