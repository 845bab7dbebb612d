"""Sections of a stage's time: what is counted, what is told, what stage.json keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irn_pipeline.engine.runner import run_stage, shares_of_time
from irn_pipeline.engine.stage import Clock, Produced
from irn_pipeline.engine.store import RunFolder
from tests.engine.samples import CountParams, Stages, UpperParams, Word, job


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day of `Clock`: its only element, moved on by hand."""
    now = [0.0]
    monkeypatch.setattr("irn_pipeline.engine.stage.time.perf_counter", lambda: now[0])
    return now


def test_sections_add_up_and_errors_are_counted(ticks: list[float]) -> None:
    clock = Clock()
    for spent in (1.0, 2.0):
        with clock.section("walk"):
            ticks[0] += spent
        ticks[0] += 10
    with pytest.raises(ValueError, match="bad"), clock.section("read"):
        ticks[0] += 0.5
        raise ValueError("bad")
    clock.add("walk", 4.0)
    assert clock.seconds == {"walk": 7.0, "read": 0.5}


def test_only_the_wait_for_items_is_counted(ticks: list[float]) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            ticks[0] += 2
            yield number
        ticks[0] += 1

    clock, found = Clock(), []
    for number in clock.waiting("read", slow()):
        found.append(number)
        ticks[0] += 100
    assert found == [0, 1, 2]
    assert clock.seconds == {"read": 7.0}


def test_shares_are_told_in_order_with_the_rest() -> None:
    assert shares_of_time({"network": 6.0, "walk": 3.0}, 10.0) == "network 60 %, walk 30 %, other 10 %"
    assert shares_of_time({"network": 9.99, "write": 0.01}, 10.0) == "network 100 %"
    assert shares_of_time({"a": 3.0}, 2.0) == "a 150 %"  # sections measured elsewhere may overlap
    assert shares_of_time({}, 10.0) == shares_of_time({"a": 1.0}, 0.0) == ""


def test_a_stage_tells_and_keeps_where_its_time_went(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = Stages()

    def work(this: Any, pending: Sequence[Word]) -> Iterator[Produced]:
        for word in pending:
            with this.clock.section("think"):
                time.sleep(0.002)
            time.sleep(0.02)
            yield Produced(word.image_id, ("A",), seconds={"elsewhere": 3.0, "there": 1.0})

    upper = replace(made.upper, run=work)
    run_stage(made.count, job(tmp_path, CountParams()))
    caplog.clear()
    first = run_stage(upper, job(tmp_path, UpperParams(), "a b", workers=2))
    assert list(first.sections) == ["think", "elsewhere", "there", "write"]
    # Worker processes that are busy at once count for as long as they were waited for.
    assert 0.044 <= first.sections["elsewhere"] + first.sections["there"] <= first.seconds
    assert first.sections["elsewhere"] == pytest.approx(3 * first.sections["there"], abs=1e-5)
    assert first.sections["think"] >= 0.004
    assert any("elsewhere" in e.getMessage() and "images in" in e.getMessage() for e in caplog.records)
    more = run_stage(upper, job(tmp_path, UpperParams(), "a b c", workers=1))
    assert more.sections["there"] > first.sections["there"] + 0.005
    kept = RunFolder(tmp_path).record("upper")
    assert kept is not None
    assert kept.sections == more.sections


def test_records_without_sections_load(tmp_path: Path) -> None:
    made = Stages()
    run_stage(made.count, job(tmp_path, CountParams()))
    path = tmp_path / "count" / "stage.json"
    content = json.loads(path.read_text())
    del content["sections"]
    path.write_text(json.dumps(content))
    record = RunFolder(tmp_path).record("count")
    assert record is not None
    assert record.sections == {}
