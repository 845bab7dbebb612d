"""A few kills of made-up stages; and that the comparison sees what differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.reliability.kill_harness import Figures, compare

ROOT = Path(__file__).parents[2]


def test_killed_runs_end_like_an_undisturbed_one() -> None:
    # A process of its own: forks of one that has computed already are not safe.
    command = [
        sys.executable,
        "-m",
        "tests.reliability.kill_harness",
        "--made-up",
        "--kills",
        "5",
        "--seed",
        "1",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["problems"] == []
    assert found["kills"] == sum(found["killed_in"].values()) == 5
    assert found["rounds"] >= 1
    assert found["files"] >= 14 * found["rounds"]
    assert found["max_loss_difference"] <= 1e-5


def _run(folder: Path, loss: float = 0.5, text: str = "a", part: bool = False) -> Path:
    folder.mkdir()
    (folder / "losses.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "time": 1.0, "fit": loss}) + "\n")
    (folder / "stage.json").write_text(json.dumps({"complete": True, "fingerprint": "f"}))
    (folder / "label.png").write_text(text)
    if part:
        (folder / ".part-x.png").write_text("half")
    return folder


def test_the_comparison_sees_every_difference(tmp_path: Path) -> None:
    expected = _run(tmp_path / "expected")
    for name, difference in (
        ("equal", {}),
        ("close", {"loss": 0.500001}),
        ("loss", {"loss": 0.6}),
        ("text", {"text": "b"}),
        ("part", {"part": True}),
    ):
        found = Figures(0)
        compare(expected, _run(tmp_path / name, **difference), found)  # type: ignore[arg-type]
        assert bool(found.problems) == (name not in ("equal", "close")), name
