"""A feature set that somebody else computed in place of an archive: its videos are the listing, nothing is opened."""

from collections.abc import Iterator

import pyarrow as pa

from vca.core.errors import ConfigError
from vca.media.output import Output
from vca.media.storage import LISTING, ArchiveConfig
from vca.pipelines.features import FeatureStore


class StoredArchive:
    """What the plan and the books ask of an archive, answered by the feature store. Its versions are fingerprints."""

    def __init__(self, config: ArchiveConfig, output: Output) -> None:
        assert config.feature_set is not None, f"{config.uri} is no feature set"
        self.config = config
        self.unreadable: list[str] = []
        self.store = FeatureStore(output, config.feature_set)

    def check(self) -> None:
        """`ConfigError` unless the set is there and was imported.

        A set that was decoded here has an archive of its own: what is not in the set would look deleted from that.
        """
        where = f"archive.uri = {self.config.uri!r}"
        if not self.store.described():
            raise ConfigError(f"{where}: the output holds no such feature set; import it, or fix the id")
        if "imported" not in self.store.definition():
            raise ConfigError(f"{where}: this feature set was made from an archive; give the archive's location")

    def uri_of(self, key: str) -> str:
        return f"{self.config.uri}/{key}"

    def has(self, key: str) -> bool:  # noqa: ARG002  whatever is asked about was listed, and sets do not shrink
        return True

    def list_batches(self) -> Iterator[pa.RecordBatch]:
        """Every complete video once, schema `LISTING`. Features have no size of their own: 0."""
        videos = self.store.videos()
        n = len(videos)
        columns = {
            "key": videos.column("key"),
            "size_bytes": pa.array([0] * n, pa.int64()),
            "version": videos.column("fingerprint"),
            "kind": pa.array(["media"] * n, pa.string()),
            "plain": pa.array([True] * n, pa.bool_()),
        }
        yield from pa.table(columns, schema=LISTING).to_batches(max_chunksize=10_000)
