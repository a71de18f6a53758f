"""Models in the output: `<output>/models/<model_version>/`, so that workers need nothing but the output.

A folder is whole as soon as its `model.json` is there, which is written last. Files never change.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vca.core.errors import ConfigError
from vca.core.storage import is_s3
from vca.media.output import Output
from vca.models.saved_model import FILES, MODEL


def model_place(model_version: str) -> str:
    """Folder of a model, relative to the output."""
    return f"models/{model_version}"


def store_model(output: Output, folder: Path, model_version: str) -> str:
    """Copy a model folder into the output, unless it is there. Returns its place."""
    return store_folder(output, folder, model_place(model_version))


def store_folder(output: Output, folder: Path, place: str) -> str:
    """Copy a model folder to a place in the output, unless it is there."""
    if not output.exists(f"{place}/{MODEL}"):
        for name in [*(n for n in FILES if n != MODEL), MODEL]:
            output.write_bytes(f"{place}/{name}", (folder / name).read_bytes())
    return place


@contextmanager
def local_folder(output: Output, place: str) -> Iterator[Path]:
    """A model's files as a local folder: where they lie, or a copy for as long as the block runs."""
    if not output.exists(f"{place}/{MODEL}"):
        raise ConfigError(
            f"model {output.uri_of(place)!r}: there is no finished model; name one that `vca finetune` wrote"
        )
    if not is_s3(output.config.uri):
        yield Path(output.path(place))
        return
    with tempfile.TemporaryDirectory(prefix="vca-model-") as folder:
        for name in FILES:
            Path(folder, name).write_bytes(output.read_bytes(f"{place}/{name}"))
        yield Path(folder)
