"""TensorBoard events beside the JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from irn_pipeline.engine.training_log import TrainingLog
from irn_pipeline.errors import ConfigError


def test_lines_of_later_steps_are_dropped(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, done=0)
    for step in (1, 2, 3):
        log.add("losses", step, 0, {"fit": step / 2})
    TrainingLog(tmp_path, done=2).add("losses", 3, 1, {"fit": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["fit"]) for line in lines] == [
        (1, 0, 0.5),
        (2, 0, 1.0),
        (3, 1, 9.0),
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install"):
        TrainingLog(tmp_path, done=0, tensorboard=True)


def test_events_hold_the_same_values(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TrainingLog(tmp_path, done=0, tensorboard=True)
    log.add("losses", 1, 0, {"fit": 0.5})
    log.add("losses", 2, 0, {"fit": 0.25})
    log.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("losses/fit")] == [(1, 0.5), (2, 0.25)]
