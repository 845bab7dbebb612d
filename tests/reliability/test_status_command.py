"""`python -m stages.status` on a run folder of which one stage is half done."""

from __future__ import annotations

from pathlib import Path

import pytest

from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.stages.catalogue import main


def _record(stage: str, fingerprint: str, reads: dict[str, str], **more: object) -> StageRecord:
    record = {"params": {}, "complete": True, "counts": {"images": 3}, "seconds": 2.0, "versions": {}, **more}
    return StageRecord(stage=stage, fingerprint=fingerprint, reads=reads, **record)  # type: ignore[arg-type]


def test_one_line_a_stage_and_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_record(_record("train_cam", "a", {}))
    (run.root / "train_cam" / "network.pt").write_bytes(b"x")
    run.write_record(_record("make_cam", "b", {"train_cam": "a"}, complete=False, counts={"total": 3}))
    (run.root / "make_cam" / "cam").mkdir()
    (run.root / "make_cam" / "cam" / "one.npy").write_bytes(b"x")
    run.write_record(_record("mine_relations", "c", {"make_cam": "before"}))
    before = sorted(run.root.rglob("*"))
    assert main(["status", "--run-dir", str(run.root), "--quiet"]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[:-1]}
    assert list(told) == [
        *("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels", "train_segmenter"),
        *("evaluate", "report"),
    ]
    assert told["train_cam"] == "done     3 images, 2.0 s"
    assert told["make_cam"] == "partial  1 of 3 images"
    assert told["mine_relations"].startswith("stale")
    assert told["report"] == "missing"
    assert lines[-1].startswith(f"next: python -m stages.make_cam --run-dir {run.root}")
    assert sorted(run.root.rglob("*")) == before


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run-dir", str(tmp_path / "absent")]) == 1
    assert "no such run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
