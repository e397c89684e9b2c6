"""The quickstart notebook runs from top to bottom; here with a model and a dataset that take seconds."""

import copy
import json
from pathlib import Path

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient")
NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory, tiny_overrides, tiny_shapes):
    """The notebook after it ran in a folder of its own, with the cell of the settings changed."""
    folder = tmp_path_factory.mktemp("quickstart")
    notebook = copy.deepcopy(nbformat.read(NOTEBOOK, as_version=4))
    (settings,) = (cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", []))
    directory = Path(tiny_shapes.val_images).parent  # drawn with the settings below, so it is used as it is
    tiny = [
        *tiny_overrides,
        "train.epochs=1",
        "train.drops=[]",
        "train.pictures=0",
        "train.sanity_images=0",
        "model.score_threshold=0.0",
    ]
    tiny += ["data.shapes.train_images=12", "data.shapes.val_images=6", f"data.shapes.directory={directory}"]
    settings.source = f"from pathlib import Path\nsettings = {tiny!r}\nrun = Path('runs/quickstart')"
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return folder, notebook


def outputs_of(notebook, word):
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and word in cell.source)
    return cell.outputs


def test_the_notebook_trains_detects_and_draws(executed):
    folder, notebook = executed
    assert (folder / "runs" / "quickstart" / "best.weights.h5").is_file()
    metrics = "".join(output.get("text", "") for output in outputs_of(notebook, "DictReader"))
    assert "'epoch': '1'" in metrics
    assert "'AP'" in metrics
    (picture,) = outputs_of(notebook, "draw_detections")
    assert "image/png" in picture["data"]
    assert "'box'" in outputs_of(notebook, "as_dicts")[0]["data"]["text/plain"] or "[]" in str(
        outputs_of(notebook, "as_dicts")
    )


def test_the_stored_notebook_shows_a_real_run():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any("image/jpeg" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 200_000
