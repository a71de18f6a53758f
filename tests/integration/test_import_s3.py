"""Features and annotations in a bucket come in as those of a folder do."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.s3 import s3_server
from vca.core.errors import ConfigError
from vca.core.storage import StorageConfig
from vca.core.taxonomy import parse_taxonomy
from vca.media.output import Output, OutputConfig
from vca.pipelines.annotations import AnnotationsConfig, load_annotations, read_truths, write_truths
from vca.pipelines.features import FeatureStore
from vca.pipelines.foreign import ImportConfig, import_features

pytestmark = pytest.mark.integration

TAXONOMY = "{name: t, tasks: [{name: c, kind: multi_label, description: d, labels: [{name: x, description: d}]}]}"


def test_sources_and_outputs_in_a_bucket(tmp_path: Path) -> None:
    """Same id and same rows from a folder, a prefix and single objects; missing objects are one line."""
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    np.savez(folder / "deep" / "a.npz", vision=np.ones((3, 2)), step_s=0.5)
    (folder / "deep" / "a.jsonl").write_text('{"start_s": 0, "end_s": 1, "text": "words"}\n')
    table = {"key": ["b"], "start_s": [0.0], "end_s": [0.5], "vision": [[1.0, 2.0]]}
    pq.write_table(pa.table(table), folder / "b.parquet")
    (folder / "labels.jsonl").write_text('{"key": "b", "task": "c", "label": "x"}\n')
    taxonomy = parse_taxonomy(TAXONOMY, "taxonomy")
    local = Output(OutputConfig(uri=str(tmp_path / "out")))
    here = import_features(local, [str(folder)], ImportConfig(name="n"))
    with s3_server("films", "tags") as server:
        server.upload_folder(folder, "films", "x")
        storage = StorageConfig(endpoint_url=server.endpoint_url)
        remote = Output(OutputConfig(uri="s3://tags/vca", storage=storage))
        settings = ImportConfig(name="n", storage=storage)
        there = import_features(remote, ["s3://films/x/"], settings)
        assert there == here
        assert not import_features(remote, ["s3://films/x"], settings).fresh
        stores = [FeatureStore(output, here.feature_set) for output in (local, remote)]
        assert stores[0].contents().equals(stores[1].contents())
        assert stores[0].videos().equals(stores[1].videos())
        ids = stores[0].videos().column("video_id").to_pylist()
        assert stores[0].read(stores[0].parts(), ids).equals(stores[1].read(stores[1].parts(), ids))
        single = import_features(remote, ["s3://films/x/deep/a.npz"], settings)
        rows = FeatureStore(remote, single.feature_set)
        assert rows.videos().column("key").to_pylist() == ["a"]
        texts = rows.read(rows.parts(), rows.videos().column("video_id").to_pylist()).column("text").to_pylist()
        assert texts[0][0]["text"] == "words", "the text beside a single object is found"

        config = AnnotationsConfig(files=("s3://films/x/labels.jsonl",), storage=storage)
        truths = load_annotations(config, taxonomy)
        assert truths == load_annotations(AnnotationsConfig(files=(str(folder / "labels.jsonl"),)), taxonomy)
        assert read_truths(remote, write_truths(remote, truths)) == truths

        for call in (
            lambda: load_annotations(config.model_copy(update={"files": ("s3://films/no.csv",)}), taxonomy),
            lambda: import_features(remote, ["s3://films/no.npz"], settings),
            lambda: import_features(remote, ["s3://films/no.parquet"], settings),
            lambda: import_features(remote, ["s3://no-such-bucket/x"], settings),
        ):
            with pytest.raises(ConfigError, match=r"= 's3://.*no.*': no such file") as caught:
                call()
            assert "\n" not in str(caught.value)
