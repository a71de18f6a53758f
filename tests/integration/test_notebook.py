"""The notebook is run as an analyst runs it, against a published output, with an empty home folder."""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.s3 import environment
from tests.support.tables import NIGHTS, RUN_IDS, make_output, video_row, write_run
from vca.core.schemas import Status

PLOTS = ["Videos per label", "Events", "Files in quarantine", "Coverage"]


@contextmanager
def empty_home(folder: Path, output: Path) -> Iterator[None]:
    """Nothing of the user's Jupyter, IPython or matplotlib settings is read or written."""
    values = {name: str(folder / name.lower()) for name in ("HOME", "IPYTHONDIR", "MPLCONFIGDIR")}
    values |= {f"JUPYTER_{name}_DIR": str(folder / f"jupyter-{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")}
    for path in values.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # Without MPLBACKEND the kernel chooses its own, the one that shows pictures inline.
    with environment({**values, "VCA_OUTPUT": str(output), "PYTHONPATH": python_path}, ("MPLBACKEND", "JUPYTER_PATH")):
        yield


def run_notebook(repository: Path, output: Path, folder: Path) -> Any:
    notebook = nbformat.read(repository / "notebooks/01_explore_tags.ipynb", as_version=4)
    with empty_home(folder / "home", output):
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    return notebook


def pictures(notebook: Any) -> list[bytes]:
    outputs = [item for cell in notebook.cells if cell.cell_type == "code" for item in cell.outputs]
    return [base64.b64decode(item.data["image/png"]) for item in outputs if "image/png" in item.get("data", {})]


def test_no_outputs_are_stored(repository: Path) -> None:
    """A stored output would carry somebody's data and paths into the repository."""
    notebook = nbformat.read(repository / "notebooks/01_explore_tags.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.integration
def test_every_plot_is_a_picture(repository: Path, tmp_path: Path) -> None:
    """All cells run without an error or a warning, and each of the four plot cells yields one sizable PNG."""
    notebook = run_notebook(repository, make_output(tmp_path / "output"), tmp_path)
    outputs = [item for cell in notebook.cells if cell.cell_type == "code" for item in cell.outputs]
    assert [item.text for item in outputs if item.get("name") == "stderr"] == []
    images = pictures(notebook)
    assert len(images) == len(PLOTS)
    for image in images:
        assert image.startswith(b"\x89PNG")
        width, height = (int.from_bytes(image[at : at + 4]) for at in (16, 20))
        assert width > 600
        assert height > 100
        assert len(image) > 8_000  # an empty pair of axes is smaller
    printed = "".join(item.text for item in outputs if item.get("name") == "stdout")
    assert RUN_IDS[-1] in printed
    keep = os.environ.get("VCA_TEST_PICTURES")  # a folder, to look at them
    for name, image in zip(PLOTS, images, strict=True) if keep else ():
        (Path(keep or "") / f"{name.lower().replace(' ', '_')}.png").write_bytes(image)


@pytest.mark.integration
def test_a_young_output_is_no_error(repository: Path, tmp_path: Path) -> None:
    """One video without tags, no failures: the pictures say that there is nothing yet."""
    video = video_row("a.mp4", "r1", Status.DEFERRED, at=NIGHTS[0])
    write_run(tmp_path / "output", "r1", {"videos": [video]}, counts={"deferred": 1})
    notebook = run_notebook(repository, tmp_path / "output", tmp_path)
    assert len(pictures(notebook)) == len(PLOTS)
