"""The benchmark of a GPU goes through on the CPU in small form."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import AGREEMENT, STAGES, Plan, measure


def test_all_parts_but_those_of_several_gpus_are_measured(tmp_path: Path) -> None:
    figures = measure(Plan.small(4), tmp_path, "cpu", minutes=10)
    assert tuple(figures.stages) == STAGES
    assert all(one.images == 4 and one.images_per_second > 0 for one in figures.stages.values())
    assert figures.pixels_that_agree is not None
    assert figures.pixels_that_agree >= AGREEMENT
    assert figures.largest_cam_difference == 0
    assert figures.left_out == ["torchrun with NCCL: fewer than two GPUs"]


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    figures = measure(Plan.small(2), tmp_path, "cpu", minutes=0)
    assert figures.pixels_that_agree is None
    assert "comparison with the CPU: no time left" in figures.left_out
