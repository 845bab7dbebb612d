"""Signs that a stage has learned or made nothing, on values whose answer a person can check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.held_out import split
from irn_pipeline.notices import (
    average_precision,
    covered,
    far_walk,
    flat_loss,
    flat_losses,
    no_boundaries,
    odd_maps,
    read_losses,
    untold_classes,
)
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import ImageRecord, ImageSet


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.9, 0.8, 0.1], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.1], [0, 0, 1], 1 / 3),
        ([0.9, 0.8, 0.1], [1, 0, 1], (1 + 2 / 3) / 2),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1 / 4),  # no order, no credit
        ([0.5, 0.1], [0, 0], None),
    ],
)
def test_average_precision(scores: list[float], positive: list[int], expected: float | None) -> None:
    assert average_precision(np.float32(scores), np.array(positive, bool)) == pytest.approx(expected)


def test_a_loss_that_has_not_fallen_is_told() -> None:
    assert flat_loss("x", np.linspace(1, 0.5, 100).tolist()) is None
    assert flat_loss("x", [1.0] * 19) is None  # too few steps to say
    line = flat_loss("x", [2.0] * 50 + [1.95] * 50)
    assert line is not None
    assert line.startswith(
        "x has not fallen: it was 2.000 at the start and is 1.950 after 100 steps; train for more"
    )
    assert flat_loss("x", [2.0] * 50 + [1.85] * 50) is None


def test_losses_are_read_from_the_file_of_a_training(tmp_path: Path) -> None:
    assert read_losses(tmp_path) == {}
    lines = [
        {"step": n, "epoch": 0, "time": 1.0, "down": 1 / n, "flat": 3.0, "background_displacement": n / 9}
        for n in range(1, 31)
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "losses.jsonl").write_text(f'{text}\n{{"step": 31, "do')
    assert len(read_losses(tmp_path)["down"]) == 30
    (line,) = flat_losses(tmp_path)
    assert line.startswith("the flat loss has not fallen")


def test_classes_that_are_not_told_from_the_others() -> None:
    shares = {"cat": 0.5, "dog": 0.1, "rare": 0.0}
    assert untold_classes({"cat": 0.9, "dog": 0.5, "rare": None}, shares) is None
    line = untold_classes({"cat": 0.54, "dog": 0.5, "rare": None}, shares)  # 0.5 by guessing
    assert line is not None
    assert line.startswith("cat: not recognised better than by guessing")
    line = untold_classes({"cat": 0.5, "dog": 0.1, "rare": None}, shares)
    assert line is not None
    assert line.startswith("no class is recognised better than by guessing")
    assert untold_classes({"rare": None}, shares) is None


@pytest.mark.parametrize(
    ("shares", "part"),
    [
        ([0.2, 0.5, 0.9], None),
        ([1.0, 0.5, 0.9], None),  # one of three is not more than a third
        ([1.0, 0.96, 0.3], "2 of 3 images cover everything"),
        ([0.0, 0.001, 0.3], "2 of 3 images cover nothing"),
        ([], None),
    ],
)
def test_maps_that_cover_everything_or_nothing(shares: list[float], part: str | None) -> None:
    line = odd_maps(shares)
    assert (line is None) if part is None else (line is not None and part in line)


def test_boundaries_that_never_formed() -> None:
    assert no_boundaries([0.9, 0.8, 0.3]) is None
    assert no_boundaries([]) is None
    line = no_boundaries([0.9, 0.2, 0.3])
    assert line is not None
    assert "in 2 of 3 images" in line


def test_a_walk_across_the_whole_grid() -> None:
    assert far_walk([(0.3, 0.5), (0.4, 0.99), (0.2, 0.3)]) is None
    assert far_walk([(0.99, 0.99), (0.98, 1.0)]) is None  # the maps' fault
    assert far_walk([]) is None
    line = far_walk([(0.3, 1.0), (0.4, 0.99), (0.2, 0.3)])
    assert line is not None
    assert "in 2 of 3 images the walk spread over the whole image" in line


def test_what_maps_cover() -> None:
    maps = np.zeros((2, 2, 2), np.float32)
    maps[0, 0, 0], maps[1, 1, 1], maps[1, 0, 1] = 1.0, 0.3, 0.2
    assert covered(maps) == 0.5
    assert covered(maps[:0]) == 0.0


def test_a_fifth_is_kept_out_but_no_picture_of_a_rare_class() -> None:
    records = tuple(ImageRecord(f"{n}", Path(), (1,) if n < 9 else (0,)) for n in range(100))
    images = ImageSet(("common", "rare"), records)
    learned, kept_out = split(images, 0.2, seed=1)
    assert (len(learned), len(kept_out)) == (80, 20)
    assert not any(1 in record.class_ids for record in kept_out)
    assert sorted((*learned.records, *kept_out), key=lambda r: int(r.image_id)) == list(records)
    assert split(images, 0.2, seed=1)[1] == kept_out
    assert split(images, 0.2, seed=2)[1] != kept_out
    assert split(images, 0.0, seed=1) == (images, ())
    assert len(split(images, 0.5, seed=1)[0].records[:9]) == 9


def flags(folder: Path) -> list[str]:
    words = f"--voc-root {folder}/voc --run-dir {folder}/run --plan published --device cpu --workers 1"
    words += " --backbone resnet18 --backbone-weights none --frozen-stages 0 --lr 0 --epochs 3 --batch-size 4"
    words += " --crop 32 --long-side 32 32"
    return [*words.split(), "--optimizer", "adamw", "--held-out", "0.25"]


def test_a_classifier_that_learns_nothing_says_so_here_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_demo(tmp_path / "voc", num_images=48, num_heldout=1, min_size=(64, 64), max_size=(64, 64))
    assert stage_main("train_cam", flags(tmp_path)) == 0
    shown = capsys.readouterr().err
    assert "average precision on " in shown
    assert "train_cam: the classification loss has not fallen" in shown
    found = json.loads((tmp_path / "run" / "train_cam" / "held_out.json").read_text())
    assert 0 < found["pictures"] <= 12
    assert all(value is None or 0 < value <= 1 for value in found["ap_per_class"].values())
    assert stage_main("report", ["--run-dir", f"{tmp_path}/run", "--quiet"]) == 0
    assert "tags of images held out of train_cam" in (tmp_path / "run" / "report" / "report.html").read_text()


def test_a_share_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_main("train_cam", [*flags(tmp_path)[:-1], "0.7"]) == 1
    assert "held_out is 0.7; it must be a fraction from 0 to 0.5" in capsys.readouterr().err
