"""Instance colouring: groups of known points, and the command from end to end with a few steps."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from examples import instance_coloring as example


def test_mean_shift_finds_the_number_of_groups_by_itself():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [4, 0], [0, 4], [4, 4]])
    truth = rng.integers(0, 4, 600)
    points = (centres[truth] + rng.normal(0, 0.2, (600, 2))).astype(np.float32)
    groups = example.mean_shift(points, 1.0)
    assert example.adjusted_rand_index(truth, groups) == 1 and groups.max() == 3
    # a kernel as wide as everything has one mode
    assert example.mean_shift(points, 10.0).max() == 0


def test_positions_are_what_tells_two_equal_dots_apart():
    torch.manual_seed(0)
    scene = example.dots()
    image = example.to_unit_tensor(scene.image)
    plain, semi = (example.Colouring("none", semi=semi).eval() for semi in (False, True))
    semi.load_state_dict(plain.state_dict())
    with torch.no_grad():
        difference = semi(image) - plain(image)
    # 16 pixels from dot to dot, 8 pixels a unit; the other dimensions are the same
    assert difference[0, 0, 16].item() == pytest.approx(2, abs=1e-5)
    assert difference[1, 16, 0].item() == pytest.approx(2, abs=1e-5)
    assert not difference[2:].any()


def test_groups_are_painted_on_the_foreground_only():
    scene = example.dots()
    objects = scene.masks.argmax(0)[scene.masks.any(0)]
    canvas = example.painted(scene, objects)
    assert not canvas[~scene.masks.any(0)].any()
    assert len(np.unique(canvas.reshape(-1, 3), axis=0)) == 26


def test_the_command_draws_a_row_a_picture(tmp_path, monkeypatch, caplog):
    words = [
        "--backbone-weights",
        "none",
        "--steps",
        "1",
        "--images",
        "1",
        "--shown",
        "1",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["instance_coloring.py", *words])
    caplog.set_level("INFO")
    assert example.main() == 0
    assert sum("adjusted Rand index" in line for line in caplog.messages) == 12
    page = Image.open(tmp_path / "instance_coloring.png")
    # eight panels of 96 pixels with margins of 6; rows of 80 pixels under titles of 14; everything twice as large
    assert page.size == (2 * 8 * 102, 2 * 2 * 100)


def test_weights_that_are_not_there_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--backbone-weights", "nowhere.pth"])
    with pytest.raises(SystemExit):
        example.main()
    assert "nowhere.pth: no such file" in capsys.readouterr().err
