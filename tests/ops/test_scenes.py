"""Tiles put together again are the whole, objects across seams are one, and large grids are walked coarsely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from irn_pipeline.ops import scenes
from irn_pipeline.ops.label_params import SynthesisParams
from irn_pipeline.ops.labels import labels_from_scores, synthesize, walk_scores
from irn_pipeline.ops.scenes import coarse_grid, tile_side, tiled, walk_factor
from irn_pipeline.ops.upsampled_argmax import argmax_upsampled


def cells(picture: Tensor) -> list[Tensor]:
    """A network that is the same everywhere: means of the cells at the strides 4 and 16."""
    return [
        avg_pool2d(picture[None], stride, ceil_mode=True, count_include_pad=False)[0] for stride in (4, 16)
    ]


@pytest.mark.parametrize("size", [(700, 300), (257, 1000), (513, 530), (64, 2000)])
def test_tiles_of_a_network_that_is_the_same_everywhere_are_the_whole(size: tuple[int, int]) -> None:
    picture = torch.rand(2, *size)
    seen: list[tuple[int, int]] = []

    def see(part: Tensor) -> list[Tensor]:
        seen.append((part.shape[-2], part.shape[-1]))
        return cells(part)

    found = tiled(see, picture, 256)
    assert len(seen) > 1 and max(max(one) for one in seen) <= 256
    for tiles, whole in zip(found, cells(picture), strict=True):
        assert tiles.shape == whole.shape
        torch.testing.assert_close(tiles, whole, rtol=1e-6, atol=1e-6)


def test_tiles_that_are_not_smaller_than_the_picture_change_nothing() -> None:
    picture = torch.rand(3, 250, 256)
    for side in (0, 256, 512):
        assert all(
            torch.equal(a, b) for a, b in zip(tiled(cells, picture, side), cells(picture), strict=True)
        )


def test_one_tile_fades_into_the_next() -> None:
    """Tiles whose maps are their number: 0 where only the first sees, 1 where only the second, between in between."""
    numbers = iter(range(2))

    def see(part: Tensor) -> list[Tensor]:
        return [torch.full((1, 16, -(-part.shape[-1] // 16)), float(next(numbers)))]

    (found,) = tiled(see, torch.zeros(3, 256, 480), 256)
    row = found[0, 0]
    assert row.shape == (30,)
    assert torch.equal(row[:14], torch.zeros(14)) and torch.equal(row[16:], torch.ones(14))
    torch.testing.assert_close(row[14:16], torch.tensor([0.25, 0.75]))
    assert torch.equal(found[0], row.expand(16, 30))


def test_who_is_cut() -> None:
    assert [tile_side(size, None) for size in ((3999, 3999), (4000, 10))] == [0, 2048]
    assert [tile_side((600, 800), tile) for tile in (0, 512, 800, 517)] == [0, 512, 0, 512]
    for wrong in (-1, 100):
        with pytest.raises(ValueError, match="256 pixels at least"):
            scenes.require_tile(wrong)


def blob(grid: tuple[int, int], middle: tuple[int, int], radius: int) -> tuple[np.ndarray, ...]:
    """Map, boundary and displacement of one round object, whose cells point to its middle."""
    rows, columns = np.indices(grid)
    towards = np.stack([middle[0] - rows, middle[1] - columns]).astype(np.float32)
    inside = (towards**2).sum(0) < radius**2
    edge = np.abs(np.sqrt((towards**2).sum(0)) - radius) < 1.5
    return inside.astype(np.float32), edge.astype(np.float32), towards * inside


def test_an_object_across_a_seam_is_one_instance() -> None:
    """A picture that holds what the network would say of it, so that tiles are cut through the object's middle."""
    size, grid = (512, 1024), (128, 256)
    inside, edge, towards = blob(grid, (64, 128), 30)
    picture = (
        torch.from_numpy(np.stack([inside, edge, *towards])).repeat_interleave(4, 1).repeat_interleave(4, 2)
    )

    def see(part: Tensor) -> list[Tensor]:
        at_4 = avg_pool2d(part[None], 4, ceil_mode=True)[0]
        return [at_4[:1], at_4[1:2], at_4[2:]]

    cam, boundary, displacement = tiled(see, picture, 512)
    assert len(scenes._spans(1024, 512)) == 3 and scenes._spans(1024, 512)[1] == (256, 768)
    params = SynthesisParams(exp_times=3, center_threshold=2.5)
    for side in (512, 1024):
        cam, boundary, displacement = tiled(see, picture, side)
        label, instances = synthesize(
            cam.numpy(), np.array([0]), boundary[0].numpy(), displacement.numpy(), size, params
        )
        (mask,) = instances.without_fragments().masks
        truth = inside.repeat(4, 0).repeat(4, 1) > 0
        assert (mask & truth).sum() / (mask | truth).sum() > 0.85
        assert ((label == 1) == mask).mean() > 0.99


def test_the_largest_grids_are_walked_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    size, grid = (256, 320), (64, 80)
    inside, edge, displacement = blob(grid, (32, 40), 20)
    args = (inside[None], np.array([2]), edge, displacement, size)
    params = SynthesisParams(exp_times=6)
    fine = walk_scores(*args, params)
    monkeypatch.setattr(scenes, "_MOST_CELLS", 64 * 80 // 2)
    coarse = walk_scores(*args, params)
    assert fine[0].shape[1:] == grid and coarse[0].shape[1:] == (32, 40)
    labels = [labels_from_scores(*walked, size, params)[0] for walked in (fine, coarse)]
    assert set(np.unique(labels[1])) == {0, 3}
    assert (labels[0] == labels[1]).mean() > 0.93


def test_many_maps_count_as_a_large_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(64).reshape(8, 8)
    cam = np.ones((1, 8, 8), np.float32)
    assert walk_factor(cam, groups) == 1
    monkeypatch.setattr(scenes, "_MOST_VALUES", 64 * 64 // 5)
    assert walk_factor(cam, groups) == 4, (
        "5 times too many: a half a side leaves a quarter, which is not enough"
    )
    assert walk_factor(np.zeros((1, 8, 8), np.float32), groups) == 1, "no map"


def test_what_becomes_of_cells_that_are_joined() -> None:
    cam = np.array([[[0, 1, 4], [1, 2, 6]]], np.float32)
    boundary = np.array([[0, 0.9, 0.1], [0.2, 0, 0.3]], np.float32)
    maps, walls, ids = coarse_grid(cam, boundary, np.arange(6).reshape(2, 3), 2)
    assert maps.tolist() == [[[1.0, 5.0]]]
    np.testing.assert_allclose(walls, [[0.9, 0.3]])
    assert ids.tolist() == [[0, 2]]


def test_coarse_maps_give_the_argmax_of_the_picture() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[0, :, :2], maps[1, :, 2:] = 1.0, 0.8
    index, score = argmax_upsampled(maps, (32, 32), 0.3)
    assert index.shape == (32, 32) and set(index[:, :14].ravel()) == {1} and set(index[:, 18:].ravel()) == {2}
    assert score.max() == 1
