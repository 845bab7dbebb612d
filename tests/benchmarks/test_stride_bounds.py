"""Bounds of a stride: a label that fits the grid is reached, a finer one only at the finer stride."""

import json

import numpy as np
from scipy import ndimage

from benchmarks.stride_bounds import best_probabilities, main, two_discs
from irn_pipeline.datasets.synthetic import generate_demo


def fitted(label, stride, balance):
    found = best_probabilities(label, 2, stride=stride, balance=balance, steps=60)
    assert found.shape == (2, *label.shape)
    return found.argmax(0)


def test_a_gap_of_five_pixels_needs_stride_8_and_every_pixel_counted_alike():
    label = np.zeros((64, 96), np.uint8)
    label[16:48, 8:45] = label[16:48, 50:88] = 1
    parts = {
        (stride, balance): ndimage.label(fitted(label, stride, balance))[1]
        for stride in (16, 8)
        for balance in (True, False)
    }
    assert parts[8, False] == 2
    assert parts[16, True] == 1


def test_a_half_picture_is_reached_at_every_stride():
    label = np.zeros((32, 64), np.uint8)
    label[:, 32:] = 1
    for stride in (16, 8):
        assert (fitted(label, stride, True) == label).all()


def test_every_stride_and_loss_is_measured(tmp_path, capsys):
    generate_demo(tmp_path / "voc", num_images=1, num_heldout=0, min_size=(64, 64), max_size=(64, 64))
    main(["--voc-root", str(tmp_path / "voc"), "--steps", "40"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["output_stride"], line["balance_classes"]) for line in lines] == [
        (16, True), (16, False), (8, True), (8, False),
    ]  # fmt: skip
    assert all(0 < line["miou"] <= 1 and line["pictures"] == 1 for line in lines)
    assert lines[3]["miou"] > lines[1]["miou"]
    assert lines[3]["discs"] == 2
    assert all(0.9 < line["discs_area"] < 1.2 for line in lines)


def test_the_gap_between_the_discs_is_as_wide_as_told():
    for gap in (1, 5):
        row = two_discs(gap)[48]
        assert (np.diff(np.flatnonzero(row)).max() - 1, ndimage.label(row)[1]) == (gap, 2)
