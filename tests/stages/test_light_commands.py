"""A wrong flag is refused before torch is imported: every command's modules import it only where they work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = (
    *("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels", "train_segmenter"),
    *(
        "evaluate",
        "report",
        "predict",
        "export_labels",
        "export_model",
        "sweep",
        "status",
        "plan",
        "__main__",
    ),
)
COMMAND = """
import runpy, sys
sys.argv = ["{0}", "{1}", "x"]
try:
    runpy.run_module("stages.{0}", run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize("name", LIGHT)
def test_a_wrong_flag_is_refused_without_torch(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(name, "--voc-rot")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "unknown flag --voc-rot; did you mean 'voc_root'?" in done.stderr
    assert done.stdout == "1 False\n"


def test_a_value_that_is_no_choice_is_refused_without_torch_and_the_choices_are_shown() -> None:
    code = COMMAND.format("evaluate", "--protocol")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "argument --protocol: invalid choice: 'x' (choose from" in done.stderr
    assert all(choice in done.stderr for choice in ("original", "voc", "coco"))
    assert done.stdout == "1 False\n"
