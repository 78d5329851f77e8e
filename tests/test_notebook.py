"""The quickstart's notebook runs from its first cell to its last, with shorter settings in the cell that has them."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
SHORTER = {
    "optim.num_steps": 2,
    "optim.global_batch_size": 8,
    "eval.every_steps": 2,
    "eval.num_rows": 8,
    "run.name": "notebook",
    "runtime.num_workers": 1,
    "runtime.micro_batch_size": 8,
    "runtime.precision": "fp32",
}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"settings = {json.dumps(SHORTER)}"

    NotebookClient(notebook, timeout=450, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in notebook.cells]
    assert "started Ray on this machine" in "".join(printed)
    assert "eval/mlm_loss" in printed[-3]
    assert printed[-1].count("returns a new ") == 5
    assert (tmp_path / "runs" / "notebook" / "export" / "model.safetensors").exists()


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
