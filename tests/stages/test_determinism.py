"""Same seed, same machine, same result: the whole pipeline twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from irn_pipeline.stages.catalogue import main
from tests.stages.conftest import TinyRun

TIMED = ("stage.json", "losses.jsonl", "validation.jsonl", "report.html")
"""Hold times, seconds or the run folder's path beside what must be equal."""


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMED
    }


def untimed(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def test_two_runs_are_equal_to_the_last_bit(whole_run: TinyRun, tmp_path: Path) -> None:
    again = TinyRun(whole_run.voc_root, whole_run.config, tmp_path / "again")
    assert main(again.flags()) == 0
    first, second = hashes(whole_run.run_dir), hashes(again.run_dir)
    assert len(first) >= 4 * 10 + 3 + 1  # four files a picture, three networks, figures
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()
    for losses in whole_run.run_dir.rglob("losses.jsonl"):
        assert untimed(losses) == untimed(again.run_dir / losses.relative_to(whole_run.run_dir)), losses


def test_another_seed_gives_another_result(whole_run: TinyRun, tmp_path: Path) -> None:
    other = TinyRun(whole_run.voc_root, whole_run.config, tmp_path / "other")
    assert main(["train_cam", *other.flags(), "--seed", "1"]) == 0
    path = Path("train_cam") / "network.pt"
    assert hashes(other.run_dir)[str(path)] != hashes(whole_run.run_dir)[str(path)]
