"""The page of all models: pictures of worms, a whole small run, and the table's cells."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from benchmarks import models
from benchmarks.worms import worm_picture, write_worms
from irn_pipeline.datasets.source import Source, load_source

ROW = models.Row(
    "mask_rcnn", "truth", 0, 0.5, 0.25, 0.3, 0.75, 0.8, 1.5, 10.0, 12_500_000, 400, 300, True, 60.0
)


def test_worms_are_thin_and_where_they_cross_nobody_is_told_apart() -> None:
    pictures = [worm_picture(np.random.default_rng(index)) for index in range(20)]
    crossings = 0
    for objects in pictures:
        ids = sorted({*objects.ravel().tolist()} - {0, 255})
        assert ids == list(range(1, len(ids) + 1)) and 3 <= len(ids) <= 8
        crossings += ndimage.label(objects == 255)[1]
        for index in ids:
            depth = ndimage.distance_transform_edt((objects == index) | (objects == 255)).max()
            assert depth < 8 and (objects == index).sum() >= 0.6 * 150
    assert crossings > 10
    assert (worm_picture(np.random.default_rng(3)) == pictures[3]).all()


def test_worms_are_read_as_a_data_set(tmp_path: Path) -> None:
    write_worms(tmp_path, train=2, validate=1, test=1)
    data = load_source(Source(voc_root=str(tmp_path), image_list="train"))
    assert data.images.class_names == ("worm",) and len(data.items) == 2
    truth = data.ground_truth("train_0000")
    assert truth is not None and truth.has_instances
    # [seed, split, number] of the picture
    objects = worm_picture(np.random.default_rng([0, 0, 0]))
    assert len(truth.instances) == len({*objects.ravel().tolist()} - {0, 255})
    assert (truth.ignore == (objects == 255)).all()


def test_a_row_is_a_mean_over_seeds_with_its_deviation() -> None:
    other = replace(ROW, seed=1, ap50=0.7, converged=False)
    text = models.table([ROW, other, replace(ROW, model="deeplabv3", sbd=None)])
    lines = text.splitlines()
    assert len(lines) == 4 and len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    # the deviation of 50 and 70 with one degree of freedom less
    assert lines[2].startswith("| `mask_rcnn` | truth | 2 | 60.0 ± 14.1 | 25.0 ± 0.0 |")
    assert "| 12.5 M | 400 ± 0 | 60 ± 0 | 1 of 2 |" in lines[2]
    assert "| 75.0 | - | 1.50 |" in lines[3] and lines[3].endswith("| 1 of 1 |")


def test_a_small_run_is_measured_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"short_side": 64, "long_side": 64, "boxes_per_image": 8, "channels": 16, "lr": 1e-3}
    monkeypatch.setitem(models.RECIPES, "semiconv_mask_rcnn", tiny)
    monkeypatch.setattr(
        models, "write_worms", lambda root, train: write_worms(root, train=train, validate=2, test=2)
    )
    words = ["--data", "worms", "--models", "semiconv_mask_rcnn", "--epochs", "2", "--validate-every", "1"]
    monkeypatch.setattr(sys, "argv", ["models", "--out", str(tmp_path), "--images", "4", *words])
    models.main()
    (row,) = models.read_rows(tmp_path / "rows.jsonl")
    # one step an epoch, two epochs of the plain Mask R-CNN and two of its semi-convolutional form
    assert (row.model, row.labels, row.seed) == ("semiconv_mask_rcnn", "truth", 0)
    assert row.best_step <= row.steps <= 4 and row.seconds > 0 and row.images_per_second > 0
    assert row.ap50 is not None and 0 <= row.ap50 <= 1
    assert (tmp_path / "seed_0" / "report" / "report.html").is_file()
    written = (tmp_path / "rows.jsonl").read_text()
    monkeypatch.setattr(models, "train", lambda *_: pytest.fail("trained again"))
    models.main()
    assert (tmp_path / "rows.jsonl").read_text() == written == json.dumps(asdict(row)) + "\n"
    assert capsys.readouterr().out.count("| `semiconv_mask_rcnn` | truth | 1 |") == 2
