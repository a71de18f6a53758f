"""The loader of registered models: `mlflow.pyfunc.load_model` runs this installed module and nothing else.

It can also be put behind `mlflow models serve`. A row of the input is a segment in the schema `schemas.FEATURES`; only
the columns of `INPUT` are needed, and all segments of a video come in one call.

Shape letters: S steps, D features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vca.core.errors import ConfigError, one_line
from vca.core.records import Prediction, VideoFeatures
from vca.core.schemas import FEATURES
from vca.core.timeline import us_to_seconds
from vca.pipelines.features import join_segments

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

INPUT = (
    "video_id", "key", "segment_index", "n_segments", "start_us", "end_us", "step_us",
    "vision", "audio", "text", "shots",
)  # fmt: skip
OUTPUT = ("video_id", "key", "task", "label", "score", "selected", "start_s", "end_s")
Tagger = Callable[[VideoFeatures], Prediction]


class ServedTagger:
    """What MLflow calls."""

    def __init__(self, tagger: Tagger) -> None:
        self._tagger = tagger

    def predict(self, model_input: "pd.DataFrame | Sequence[Mapping[str, Any]]") -> "pd.DataFrame":
        """One row for each label of video-level tasks (`start_s` and `end_s` are null) and for each event.

        Raises `ConfigError` for rows that are no features, or are not all segments of a video.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for segments in _videos(feature_rows(model_input)):
            video = join_segments(segments)
            rows += _rows(video, self._tagger(video))
        return pd.DataFrame(rows, columns=list(OUTPUT)).astype({"start_s": "float64", "end_s": "float64"})


def load_tagger(folder: Path) -> Tagger:
    """The tagger in a model folder. Raises `ConfigError` if the folder is damaged."""
    from vca.models.fusion_tagger import FusionTagger

    return FusionTagger(folder)


def _load_pyfunc(data_path: str) -> ServedTagger:
    """The name is MLflow's contract for a loader module."""
    return ServedTagger(load_tagger(Path(data_path)))


def feature_rows(model_input: "pd.DataFrame | Sequence[Mapping[str, Any]]") -> pa.Table:
    """Rows of features, in whatever form JSON and pandas brought them, as a table of the columns `INPUT`."""
    records = model_input if isinstance(model_input, Sequence) else model_input.to_dict("records")
    missing = [name for name in INPUT if records and name not in records[0] and not _optional(name)]
    if missing:
        raise ConfigError(f"model input: column {missing[0]!r} is missing; needed: {', '.join(INPUT)}")
    columns = []
    for name in INPUT:
        field = FEATURES.field(name)
        values = [_plain(record.get(name)) for record in records]
        if name in ("text", "shots"):
            values = [value or [] for value in values]
        try:
            # Half floats are built from float32: pyarrow takes no Python floats for them everywhere.
            wide = _STEPS if field.type == FEATURES.field("vision").type else field.type
            columns.append(pa.array(values, wide).cast(field.type))
        except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"model input: column {name!r} is not {field.type}: {one_line(str(error))}") from error
    table = pa.table(columns, schema=pa.schema([FEATURES.field(name) for name in INPUT]))
    for name in INPUT:
        if not table.schema.field(name).nullable and table.column(name).null_count:
            raise ConfigError(f"model input: column {name!r} has a null; every segment needs it")
    return table


_STEPS = pa.list_(pa.field("element", pa.list_(pa.field("element", pa.float32()))))


def _optional(name: str) -> bool:
    return name in ("vision", "audio", "text", "shots")


def _plain(value: Any) -> Any:
    """Arrays as lists, and pandas' NaN for an absent value as None. A NaN among features stays one."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, np.ndarray | list):
        return [item.tolist() if isinstance(item, np.ndarray) else item for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _videos(rows: pa.Table) -> Iterable[pa.Table]:
    """The segments of each video, in the order in which videos first appear."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(rows.column("video_id").to_pylist()):
        places.setdefault(name, []).append(place)
    for name, found in places.items():
        segments = rows.take(pa.array(found))
        wanted = segments.column("n_segments")[0].as_py()
        numbers = set(segments.column("segment_index").to_pylist())
        if numbers != set(range(wanted)):
            raise ConfigError(
                f"model input: video {name!r} has segments {sorted(numbers)} of {wanted}; send all of them in one call"
            )
        yield segments


def _rows(video: VideoFeatures, prediction: Prediction) -> list[dict[str, Any]]:
    names = {"video_id": video.video_id, "key": video.key}
    rows: list[dict[str, Any]] = [
        names | {"task": c.task, "label": c.label, "score": float(c.score), "selected": bool(c.selected)}
        for c in prediction.categories
    ]
    rows += [
        names
        | {"task": e.task, "label": e.label, "score": float(e.score), "selected": True}
        | {"start_s": us_to_seconds(e.span.start_us), "end_s": us_to_seconds(e.span.end_us)}
        for e in prediction.events
    ]
    return rows


def signature() -> "ModelSignature":
    """Input and output as MLflow describes them. Nested columns are `Any`: its types know no null inside a list."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec

    def column(name: str) -> ColSpec:
        kind = FEATURES.field(name).type
        if pa.types.is_nested(kind):
            return ColSpec(AnyType(), name, required=False)  # type: ignore[no-untyped-call]
        return ColSpec(DataType.string if pa.types.is_string(kind) else DataType.long, name)

    kinds = (*[DataType.string] * 4, DataType.double, DataType.boolean, DataType.double, DataType.double)
    inputs: list[ColSpec | TensorSpec] = [column(name) for name in INPUT]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(kind, name, required=not name.endswith("_s")) for kind, name in zip(kinds, OUTPUT, strict=True)
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def example_rows(step_us: int, vision_dim: int, audio_dim: int) -> "pd.DataFrame":
    """A made-up video of four steps. Not one of the archive: an example is copied to where others can read it."""
    import pandas as pd

    n_steps = 4

    def features(dim: int) -> list[list[float] | None] | None:
        return None if dim == 0 else [[0.0] * dim for _ in range(n_steps)]

    text = {"source": "subtitle", "stream": None, "language": "en", "text": "an example", "confidence": None}
    row = {
        "video_id": "example",
        "key": "example.mp4",
        "segment_index": 0,
        "n_segments": 1,
        "start_us": 0,
        "end_us": n_steps * step_us,
        "step_us": step_us,
        "vision": features(vision_dim),
        "audio": features(audio_dim),
        "text": [{"start_us": 0, "end_us": step_us} | text],
        "shots": [{"start_us": 0, "end_us": n_steps * step_us}],
    }
    assert tuple(row) == INPUT
    return pd.DataFrame([row])
