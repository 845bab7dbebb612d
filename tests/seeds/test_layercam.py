"""LayerCAM's maps behind a linear head and behind layers of any kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.seeds.layercam_maths import fuse_stages, layercam, min_max_map


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network() -> tuple[list[Tensor], Tensor, Tensor]:
    """Two stages of two pictures, the head and the logits."""
    low = conv2d(some(2, 3, 8, 10), some(5, 3, 3, 3, seed=1).requires_grad_(), padding=1).relu()
    high = conv2d(low, some(6, 5, 3, 3, seed=2), stride=2, padding=1).relu()
    head = some(4, 6, seed=3)
    return [low, high], head, high.mean((2, 3)) @ head.T


def test_behind_pooling_and_a_linear_head_the_negative_weights_are_left_out(network):
    stages, head, logits = network
    maps = layercam(logits, stages, [0, 3])[1]
    high = stages[1]
    cells = high.shape[2] * high.shape[3]
    expected = torch.einsum("kd,bdhw->bkhw", head[[0, 3]].relu(), high) / cells
    torch.testing.assert_close(maps.layercam, expected)
    sums = head[[0, 3]].relu().sum(1) / cells
    torch.testing.assert_close(maps.information, sums[None, :, None, None].expand_as(maps.information))


def test_maps_of_rectified_features_are_not_negative(network):
    stages, _, logits = network
    for maps in layercam(logits, stages, [0, 1, 2, 3]):
        assert (maps.layercam >= 0).all()
        assert (maps.information >= 0).all()
        assert maps.layercam.max() > 0


def test_a_shallow_map_is_features_times_the_slope_of_the_logit(network):
    """The gradient of one feature by finite differences."""
    stages, head, logits = network
    low = stages[0].detach().double()

    def logit(features: Tensor) -> Tensor:
        high = conv2d(features, some(6, 5, 3, 3, seed=2).double(), stride=2, padding=1).relu()
        return high.mean((2, 3)) @ head[1].double()

    maps = layercam(logits, stages, [1])[0]
    row, column = 4, 6
    expected = slopes = 0.0
    for channel in range(5):
        moved = low.clone()
        moved[0, channel, row, column] += 1e-6
        slope = max(float((logit(moved) - logit(low))[0]) / 1e-6, 0)
        slopes += slope
        expected += slope * float(low[0, channel, row, column])
    assert float(maps.layercam[0, 0, row, column]) == pytest.approx(expected, abs=1e-5)
    assert float(maps.information[0, 0, row, column]) == pytest.approx(slopes, abs=1e-5)


def test_other_classes_do_not_matter(network):
    stages, head, _ = network
    changed = head.clone()
    changed[[0, 2, 3]] *= -5
    pooled = stages[1].mean((2, 3))
    for weights in (head, changed):
        found = layercam(pooled @ weights.T, stages, [1])
        expected = layercam(pooled @ head[[1]].T, stages, [0])
        for maps, alone in zip(found, expected, strict=True):
            torch.testing.assert_close(maps.layercam, alone.layercam)


def test_pictures_of_a_batch_are_apart(network):
    stages, _, logits = network
    kernel = some(5, 3, 3, 3, seed=1).requires_grad_()
    low = conv2d(some(2, 3, 8, 10)[1:], kernel, padding=1).relu()
    high = conv2d(low, some(6, 5, 3, 3, seed=2), stride=2, padding=1).relu()
    alone = layercam(high.mean((2, 3)) @ some(4, 6, seed=3).T, [low, high], [2])
    for maps, expected in zip(layercam(logits, stages, [2]), alone, strict=True):
        torch.testing.assert_close(maps.layercam[1], expected.layercam[0])


def test_shown_maps_run_from_nought_to_one():
    found = min_max_map(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]), (1, 2))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]]))


def test_stages_are_fused_by_their_maximum():
    low, high = torch.tensor([[[0.0, 2.0, 1.0, 0.0]]]), torch.tensor([[[8.0, 0.0, 2.0, 0.0]]])
    found = fuse_stages([low, high], (1, 4))
    raised = torch.tensor([2.0, 1.0]).tanh()
    torch.testing.assert_close(found, torch.tensor([[[1, raised[0], raised[1], 0]]]))
    assert fuse_stages([torch.zeros(1, 2, 2), torch.zeros(1, 1, 1)], (2, 2)).abs().max() == 0
    assert fuse_stages([torch.zeros(0, 2, 2)], (4, 4)).shape == (0, 4, 4)


def test_no_class_gives_no_map(network):
    stages, _, logits = network
    assert layercam(logits, stages, [])[1].layercam.shape == (2, 0, 4, 5)


def test_what_gradients_cannot_reach_is_refused(network):
    stages, _, logits = network
    with pytest.raises(ConfigError, match=r"stages \[0\]"):
        layercam(logits, [stages[0].detach(), stages[1]], [0])
    with pytest.raises(ConfigError, match="the logits"):
        layercam(logits.detach(), stages, [0])
    with pytest.raises(ConfigError, match="do not depend on map 1"):
        layercam(logits, [stages[1], 2 * stages[1]], [0])
    with pytest.raises(ShapeError, match="stages"):
        layercam(logits, [stages[0][0]], [0])
    with pytest.raises(ShapeError, match="fuse"):
        fuse_stages([], (2, 2))
