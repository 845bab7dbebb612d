"""AdvCAM's climbing: against Grad-CAM by autograd, and what must hold of every climb."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from irn_pipeline.errors import ShapeError
from irn_pipeline.seeds.advcam_maths import advcam_maps, climb, objective, pair_map, steps_at


class Network(nn.Module):
    """A convolution and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator) * 0.4)
        self.head = nn.Parameter(torch.randn(4, 6, generator=generator))

    def features(self, pair: Tensor) -> Tensor:
        return conv2d(pair, self.kernel, padding=1).relu()

    def forward(self, pair: Tensor) -> Tensor:
        return torch.einsum("kd,bdhw->bkhw", self.head, self.features(pair))


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(4))


def positive(network: Network, class_id: int) -> int:
    return int((network.head[class_id] > 0).sum())


@pytest.mark.parametrize("class_id", range(4))
def test_map_is_grad_cam_of_the_pair(network, image, class_id):
    """The original's way: the gradient of the rectified logits with respect to the features."""
    features = network.features(torch.stack([image, image.flip(-1)])).detach().requires_grad_()
    logits = torch.einsum("kd,bdhw->bkhw", network.head, features)[:, class_id]
    (gradient,) = torch.autograd.grad(logits.relu().sum(), features)
    weights = gradient.sum((2, 3), keepdim=True) / (gradient > 0).sum()
    maps = (weights * features).sum(1).relu()
    found = pair_map(logits, positive(network, class_id))
    torch.testing.assert_close(found, maps[0] + maps[1].flip(-1))


def test_one_step_gives_the_plain_map_weighed_by_its_cells(network, image):
    logits = network(torch.stack([image, image.flip(-1)]))
    for class_id in range(4):
        plain = logits[:, class_id].relu()
        cells = (plain > 0).sum((1, 2)).float()
        shares = cells / cells.sum() / positive(network, class_id)
        expected = shares[0] * plain[0] + shares[1] * plain[1].flip(-1)
        found = advcam_maps(network, image, [class_id], network.head, steps=1)[0]
        torch.testing.assert_close(found, expected)


def test_a_class_without_a_logit_above_zero_has_an_empty_map():
    assert pair_map(-torch.ones(2, 3, 4), 5).tolist() == torch.zeros(3, 4).tolist()
    assert pair_map(-torch.ones(2, 3, 4), 0).isfinite().all()


def test_objective_is_that_of_a_loop():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(8))
    current, first = (torch.rand(4, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    expected = 0.0
    for picture in logits:
        for k, activation in enumerate(picture):
            expected += (1 if k == 1 else -1) * float(activation.clamp(min=0).mean())
    for now, then in zip(current.flatten().tolist(), first.flatten().tolist(), strict=True):
        expected -= 7 * abs(now - then) * (now / float(current.max()) > 0.5)
    assert float(objective(logits, 1, current, first)) == pytest.approx(expected, rel=1e-5)


def test_a_map_of_zeros_adds_nothing_to_the_objective():
    logits = torch.randn(2, 3, 4, 5)
    zeros = torch.zeros(4, 5)
    with_map = objective(logits, 0, zeros, zeros)
    torch.testing.assert_close(with_map, objective(logits, 0, zeros, zeros, keep_weight=0))


@pytest.mark.parametrize("class_id", range(4))
def test_a_small_first_step_climbs(network, image, class_id):
    count = positive(network, class_id)
    states = list(islice(climb(network, image, class_id, count, step_size=1e-3), 2))

    @torch.no_grad()
    def scores(state) -> float:
        """Without the term for the map's change: its gradient is 0 at the first step, but it falls to all sides."""
        return float(objective(network(state.pair), class_id, state.map, states[0].map, keep_weight=0))

    assert scores(states[1]) > scores(states[0])


def test_pictures_stay_in_the_range_of_the_untouched_one(network, image):
    lowest, highest = float(image.min()), float(image.max())
    for state in islice(climb(network, image, 1, positive(network, 1), step_size=0.5), 12):
        assert lowest <= float(state.pair.min()) <= float(state.pair.max()) <= highest
        lowest, highest = float(state.pair.min()), float(state.pair.max())


def test_a_step_moves_no_pixel_further_than_the_step_size(network, image):
    first, second = islice(climb(network, image, 1, positive(network, 1)), 2)
    assert float((second.pair - first.pair).abs().max()) == pytest.approx(0.08, abs=1e-5)
    torch.testing.assert_close(first.pair, torch.stack([image, image.flip(-1)]))


def test_order_of_the_classes_does_not_matter(network, image):
    forwards = advcam_maps(network, image, [0, 2, 3], network.head, steps=5)
    backwards = advcam_maps(network, image, [3, 2, 0], network.head, steps=5)
    torch.testing.assert_close(forwards, backwards.flip(0), atol=0, rtol=0)


def test_neither_network_nor_picture_are_changed(network, image):
    before, kernel = image.clone(), network.kernel.detach().clone()
    advcam_maps(network, image, [1], network.head, steps=4)
    assert torch.equal(image, before)
    assert torch.equal(network.kernel, kernel)
    assert network.kernel.grad is None
    assert network.head.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_climbs_where_gradients_are_off(network, image, mode):
    expected = advcam_maps(network, image, [1], network.head, steps=3)
    with mode():
        found = advcam_maps(network, image.clone(), [1], network.head, steps=3)
        assert torch.is_grad_enabled() is False
    torch.testing.assert_close(found, expected)
    assert not expected.requires_grad


def test_steps_are_halved_on_smaller_pictures():
    assert [steps_at(scale) for scale in (1, 0.5, 1.5, 2)] == [27, 13, 27, 27]
    assert steps_at(0.5, 1) == 1


def test_no_class_gives_no_map(network, image):
    assert advcam_maps(network, image, [], network.head).shape == (0, 7, 9)


def test_what_does_not_fit_is_refused(network, image):
    with pytest.raises(ShapeError, match="image"):
        next(climb(network, image[None], 0, 1))
    with pytest.raises(ShapeError, match="logits"):
        next(climb(lambda pair: pair.mean((2, 3)), image, 0, 1))
