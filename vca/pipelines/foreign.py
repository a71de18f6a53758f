"""Features that somebody else computed, brought into the feature store as a feature set of their own.

`foreign_files` reads the files; here videos go onto one grid and into parts. Files are read three times: to find what
fits together, to make the id of the set from what would be stored, and to store it. That is the price; the gain is that
one video is held at a time, nothing is written under a wrong name, and the same content finds itself again whatever
files it comes in.
Shape letters: N vectors, S grid steps, D features.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vca.core import identity
from vca.core.config import Config, build_config
from vca.core.errors import ConfigError, VcaError, one_line
from vca.core.identity import canonical_json, digest
from vca.core.schemas import FEATURES
from vca.core.storage import StorageConfig
from vca.core.timeline import Span, resample_mean, segment_spans, step_spans, us_to_seconds
from vca.media.output import Output
from vca.media.s3 import storage_exceptions
from vca.pipelines.config import read_output_config
from vca.pipelines.door import masked
from vca.pipelines.features import Dims, FeatureStore, FeatureWriter, encode_steps
from vca.pipelines.foreign_files import MODALITIES, Limits, read_videos
from vca.pipelines.foreign_video import ForeignVideo, Track
from vca.pipelines.predict import complete_videos

SEGMENT_US = 60_000_000
SEGMENT_STEPS = 600
"""Most steps of a segment: with a short step, segments are shorter than a minute, so that rows stay small."""
MAX_STEPS = 2_000_000
"""Longest video, grid steps: eleven days at half a second."""
MAX_OVERLAP = 50_000_000
"""Most pairs of a vector and a step in one segment; more is windows that all cover everything."""
PART_BYTES = 64 << 20
EXIT_STORAGE = 3


class ImportConfig(Config):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """What made the features, for people: the encoder's name, for example. Another name is another feature set."""
    description: str = Field("", max_length=2000)
    """More about their origin; part of the feature set's definition."""
    step_ms: int | None = Field(None, ge=1, le=3_600_000)
    """Length of a grid step, milliseconds. None is the step of the files, if all have the same."""
    max_file_mb: int = Field(1024, ge=1)
    """Largest .npz file, unpacked, and largest video of a Parquet file, MB."""
    storage: StorageConfig = StorageConfig()
    """How to reach the bucket of the sources; no meaning for local files."""


@dataclass(frozen=True, slots=True)
class ImportedSet:
    """What an import made, or found."""

    feature_set: str
    n_videos: int
    n_steps: int
    dims: Dims
    step_us: int
    fresh: bool
    """False: the very same set was there already, and nothing was written."""

    def describe(self) -> str:
        """A few lines for a person."""
        what = "imported" if self.fresh else "was there already"
        return (
            f"feature set {self.feature_set} {what}\n"
            f"{self.n_videos} videos, {self.n_steps} steps of {us_to_seconds(self.step_us):g} s, "
            f"vision {self.dims.vision} wide, audio {self.dims.audio} wide"
        )


def import_features(output: Output, sources: Sequence[str], settings: ImportConfig) -> ImportedSet:
    """Bring files or folders of `.npz` and `.parquet` (docs/features_import.md) into the output as a feature set.

    The same content under the same settings is the same set, and importing it again changes nothing. Raises
    `ConfigError` with one line naming file and array; then the set is not there.
    """
    limits = Limits(settings.max_file_mb << 20, settings.storage)
    step_us, dims = _survey(sources, limits, settings)
    prints: dict[str, str] = {}
    n_steps = 0
    for video in read_videos(sources, limits):
        prints[video.key] = _Converted(video, step_us, dims).fingerprint
        n_steps += -(-video.end_us(step_us) // step_us)
    content = digest("imported", *(part for pair in sorted(prints.items()) for part in pair))
    origin = {"name": settings.name, "description": settings.description, "content": content}
    definition = {"imported": origin, "step_us": step_us, "segment_us": segment_us(step_us)}
    store = FeatureStore(output, identity.feature_set_id(definition))
    there = store.described() and len(complete_videos(store.contents())) == len(prints)
    if not there:
        writer = FeatureWriter(store, "import", PART_BYTES, flush_s=float("inf"))
        for video in read_videos(sources, limits):
            converted = _Converted(video, step_us, dims)
            if prints.get(video.key) != converted.fingerprint:
                raise ConfigError(f"{video.where}: changed while it was imported; import again")
            for row in converted.rows():
                writer.add(row)
        writer.flush()
        store.describe(definition, dims)  # last: a set with a description is whole
    return ImportedSet(store.feature_set, len(prints), n_steps, dims, step_us, fresh=not there)


def segment_us(step_us: int) -> int:
    """Length of a segment: a whole number of steps, about a minute."""
    return step_us * max(1, min(SEGMENT_STEPS, SEGMENT_US // step_us))


def _survey(sources: Sequence[str], limits: Limits, settings: ImportConfig) -> tuple[int, Dims]:
    """Step of the grid and widths, after a look at every file; what does not fit together is refused."""
    widths: dict[str, tuple[int, str]] = {}
    steps: dict[int, str] = {}
    singles: dict[int, str] = {}
    odd: str | None = None
    seen: dict[str, str] = {}
    for video in read_videos(sources, limits):
        if video.key in seen:
            raise ConfigError(
                f"{video.where}: key {video.key!r} was read from {seen[video.key]} already; a video has one .npz file, "
                "and its rows of a Parquet file stand together"
            )
        seen[video.key] = video.where
        for modality, track in video.tracks.items():
            width, where = widths.setdefault(modality, (track.width, video.where))
            if width != track.width:
                raise ConfigError(
                    f"{video.where}: {modality} is {track.width} wide, but {width} in {where}; "
                    "import features of different encoders apart"
                )
            kind, length_us = track.own_step()
            if kind == "regular":
                steps.setdefault(length_us, video.where)
            elif kind == "single":
                singles.setdefault(length_us, video.where)
            else:
                odd = odd or f"{video.where}: {modality} has no regular step"
    if not seen:
        raise ConfigError(f"sources = {', '.join(sources)}: no .npz or .parquet file with a video; check the folder")
    step_us = settings.step_ms * 1000 if settings.step_ms is not None else _common_step(steps, singles, odd)
    return step_us, Dims(**{m: widths[m][0] if m in widths else 0 for m in MODALITIES})


def _common_step(steps: dict[int, str], singles: dict[int, str], odd: str | None) -> int:
    if odd is not None:
        raise ConfigError(f"{odd}; set step_ms, for example 500, to bring all onto one grid")
    found = steps or singles
    if len(found) > 1:
        (a, here), (b, there) = list(found.items())[:2]
        raise ConfigError(
            f"{there}: steps of {us_to_seconds(b):g} s, but {us_to_seconds(a):g} s in {here}; set step_ms, for example "
            "500, to bring all onto one grid"
        )
    (step_us,) = found
    long = next((where for length_us, where in singles.items() if length_us > step_us), None)
    if long is not None:
        raise ConfigError(f"{long}: its only step is longer than the step of the others; set step_ms, for example 500")
    return step_us


class _Converted:
    """One video on the grid: its fingerprint, and its rows of the schema `FEATURES`."""

    def __init__(self, video: ForeignVideo, step_us: int, dims: Dims) -> None:
        self._video, self._step_us = video, step_us
        self._end_us = video.end_us(step_us)
        if self._end_us > MAX_STEPS * step_us:
            raise ConfigError(
                f"{video.where}: {us_to_seconds(self._end_us):g} s are more than {MAX_STEPS} steps; check the times, "
                "or set a longer step_ms"
            )
        self._spans = segment_spans(self._end_us, segment_us(step_us))
        hasher = hashlib.sha256(canonical_json([video.key, step_us, self._end_us, dims.vision, dims.audio]).encode())
        self._cells: dict[str, list[pa.Array]] = {}
        for modality in MODALITIES:
            track = video.tracks.get(modality)
            self._cells[modality] = []
            for span in self._spans:
                on_grid = None if track is None else _on_grid(track, span, step_us, f"{video.where}: {modality}")
                if on_grid is None:
                    self._cells[modality].append(encode_steps(None, None))
                    hasher.update(b"-")
                    continue
                values, mask = on_grid
                hasher.update(mask.tobytes())
                hasher.update(values[mask].tobytes())
                self._cells[modality].append(encode_steps(values, mask))
        text = [piece.to_row() for piece in video.text]
        hasher.update(canonical_json(text).encode())
        self.fingerprint = hasher.hexdigest()[: identity.ID_HEX]

    def rows(self) -> Iterator[pa.Table]:
        """A row for each segment. `media` says what there is: no container was ever opened."""
        video = self._video
        has = {modality: modality in video.tracks for modality in MODALITIES}
        media = {
            "duration_us": self._end_us,
            "container": "imported",
            "has_video": has["vision"],
            "has_audio": has["audio"],
            "n_video_streams": int(has["vision"]),
            "n_audio_streams": int(has["audio"]),
            "n_subtitle_streams": 0,
        }
        for number, span in enumerate(self._spans):
            last = number == len(self._spans) - 1
            text = [
                piece.to_row()
                for piece in video.text
                if span.start_us <= piece.start_us and (piece.start_us < span.end_us or last)
            ]
            row = {
                "video_id": identity.video_id(video.key),
                "key": video.key,
                "fingerprint": self.fingerprint,
                "segment_index": number,
                "n_segments": len(self._spans),
                "start_us": span.start_us,
                "end_us": span.end_us,
                "step_us": self._step_us,
                "coverage_us": span.duration_us,
                "media": media,
                "text": text,
                "shots": [],
            }
            table = pa.Table.from_pylist([row], schema=FEATURES)
            for modality in MODALITIES:
                index = FEATURES.get_field_index(modality)
                table = table.set_column(index, FEATURES.field(modality), self._cells[modality][number])
            yield table


def _on_grid(
    track: Track, span: Span, step_us: int, where: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]] | None:
    """Vectors of a segment [S, D] and their mask [S]; None where there are none."""
    spans = track.spans(step_us)
    touching = np.flatnonzero((spans[:, 0] < span.end_us) & (spans[:, 1] > span.start_us))
    if len(touching) == 0:
        return None
    grid = step_spans(span, step_us)
    if len(touching) * len(grid) > MAX_OVERLAP:
        raise ConfigError(f"{where}: {len(touching)} vectors lie over one minute; thin them out")
    vectors, lying = track.values[touching], spans[touching]
    positions = (lying[:, 0] - span.start_us) // step_us
    if (positions >= 0).all() and (np.diff(positions) > 0).all() and (grid[positions] == lying).all():
        # Already on the grid, the usual case: the means would be the vectors, at ten times the price.
        mask = np.zeros(len(grid), np.bool_)
        mask[positions] = True
        placed = np.zeros((len(grid), track.width), np.float16)
        placed[positions] = vectors
        return placed, mask
    values, mask = resample_mean(vectors, lying, grid)
    return values.astype(np.float16), mask


# -------------------------------------------------------------------------------------------------------------- door


def run_import(
    config_path: str,
    overrides: Sequence[str],
    output_uri: str | None,
    sources: Sequence[str],
    settings: dict[str, object],
) -> int:
    """`vca features import`: the output is that of `--output` or of the configuration. Returns the exit code."""
    try:
        output = Output(read_output_config(config_path, overrides, output_uri))
        output.check_writable()
        # Buckets of the sources are reached like that of the output, unless the settings say otherwise.
        given = {"storage": output.config.storage.model_dump(mode="json")} | settings
        found = import_features(output, sources, build_config(ImportConfig, given, "features import"))
    except VcaError as error:
        sys.stderr.write(f"vca: {masked(str(error))}\n")
        return error.exit_code
    except storage_exceptions() as error:
        reason = one_line(masked(str(error)))
        sys.stderr.write(f"vca: {reason}; the feature set is not there, import again when it works\n")
        return EXIT_STORAGE
    sys.stdout.write(found.describe() + "\n")
    return 0
