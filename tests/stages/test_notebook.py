"""The notebook's cells run, one after the other, on a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.stages.conftest import TinyRun

NOTEBOOK = Path(__file__).parents[2] / "examples" / "finished_run.ipynb"


def test_every_cell_runs_and_shows_the_labels(whole_run: TinyRun, capsys: Any) -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert not cell["outputs"]
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names |= {"run_dir": str(whole_run.run_dir), "voc_root": str(whole_run.voc_root)}
    assert len(cells) > 5
    assert names["label"].shape == names["picture"].shape[:2]
    assert names["instances"].masks.shape[1:] == names["label"].shape
    assert len(names["data"]) > 0
    assert names["target"]["masks"].shape[0] == len(names["target"]["boxes"]) > 0
    assert all(loss.isfinite() for loss in names["losses"].values())
    shown = names["overlay"](names["picture"], names["instances"].masks)
    assert shown.size == (names["label"].shape[1], names["label"].shape[0])
    assert all(name in capsys.readouterr().out for name in names["names"][:1])
