"""Semi-convolutional operators: answers by hand, slow twins, and the properties that the paper relies on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from irn_pipeline.errors import ShapeError
from irn_pipeline.nn.semiconv import (
    SemiconvEmbedding,
    attraction_loss,
    coordinate_map,
    hard_seed,
    kernel_cross_entropy,
    scale_gradient,
    segment_attraction,
    semi_convolution,
    soft_seed,
    steered_log_kernel,
)


def random(*shape: int, seed: int = 0, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def embedding_of(last_layer: float = 1.0, **options) -> SemiconvEmbedding:
    """A small embedding network with fixed weights, the last layer's multiplied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SemiconvEmbedding(6, **options)
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.mul_(last_layer)
    return network


def grad_of(values: torch.Tensor) -> torch.Tensor:
    assert values.grad is not None
    return values.grad


def test_coordinates_are_x_then_y_in_pixels():
    x, y = coordinate_map((2, 3), stride=4)
    assert x.tolist() == [[0, 4, 8], [0, 4, 8]]
    assert y.tolist() == [[0, 0, 0], [4, 4, 4]]


def test_position_is_added_to_the_first_two_channels_only():
    embeddings = semi_convolution(torch.ones(2, 3, 2, 2), stride=8, unit=4)
    assert embeddings.shape == (2, 3, 2, 2)
    for x, y, appearance in embeddings:
        assert x.tolist() == [[1, 3], [1, 3]]
        assert y.tolist() == [[1, 1], [3, 3]]
        assert appearance.tolist() == [[1, 1], [1, 1]]


def test_position_keeps_its_precision_beside_half_precision_features():
    far = semi_convolution(torch.zeros(2, 1, 1000, dtype=torch.bfloat16))
    assert far.dtype == torch.float32
    assert far[0, 0].tolist() == list(range(1000))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 1, 4, 4), (4, 4)])
def test_features_without_room_for_a_position_are_refused(shape):
    with pytest.raises(ShapeError, match="D >= 2"):
        semi_convolution(torch.zeros(shape))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 1000))
def test_shifted_picture_shifts_the_convolution_and_moves_the_embedding(down, right, seed):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"),
    ).double()
    picture = random(1, 1, 12, 10, seed=seed, dtype=torch.float64)
    shift, dims = (down, right), (-2, -1)
    with torch.no_grad():
        before, after = network(picture), network(picture.roll(shift, dims))
    torch.testing.assert_close(after, before.roll(shift, dims))
    moved = semi_convolution(before).roll(shift, dims)[..., down:, right:]
    expected = moved + torch.tensor([right, down, 0, 0, 0])[:, None, None]
    torch.testing.assert_close(semi_convolution(after)[..., down:, right:], expected)


def test_attraction_by_hand():
    # Three cells at 0, 3 and 6 along x are 3, 0 and 3 from their mean; two at (0, 0) and (3, 4) are 2.5 from theirs.
    embeddings = torch.tensor([[[0.0, 3, 6, 0, 3]], [[0.0, 0, 0, 0, 4]]])
    masks = torch.tensor([[[1, 1, 1, 0, 0]], [[0, 0, 0, 1, 1]], [[0, 0, 0, 0, 0]]]).bool()
    assert segment_attraction(embeddings, masks).tolist() == pytest.approx([2, 2.5, 0], abs=1e-5)
    assert attraction_loss(embeddings, masks[:2]).item() == pytest.approx(2.25, abs=1e-5)
    assert attraction_loss(embeddings, masks[:0]).item() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
def test_attraction_equals_a_loop_over_overlapping_segments(seed, count, dim):
    embeddings = random(dim, 5, 6, seed=seed, dtype=torch.float64)
    masks = random(count, 5, 6, seed=seed + 1) > 0.7
    expected = []
    for mask in masks:
        points = [embeddings[:, i, j].tolist() for i, j in mask.nonzero().tolist()]
        mean = [sum(values) / len(points) for values in zip(*points, strict=True)]
        expected.append(sum(math.dist(p, mean) for p in points) / max(len(points), 1))
    assert segment_attraction(embeddings, masks).tolist() == pytest.approx(expected, abs=1e-6)


def test_attraction_does_not_depend_on_where_a_segment_is():
    embeddings, masks = random(3, 6, 6), random(2, 6, 6, seed=1) > 0
    moved = embeddings + torch.tensor([40.0, -7, 2])[:, None, None]
    torch.testing.assert_close(segment_attraction(moved, masks), segment_attraction(embeddings, masks))


def test_gradient_of_attraction_flows_through_the_mean():
    embeddings = random(3, 3, 3, dtype=torch.float64).requires_grad_()
    masks = random(2, 3, 3, seed=1) > -0.5
    assert torch.autograd.gradcheck(lambda e: attraction_loss(e, masks), embeddings)
    # Moving a whole segment changes nothing, so its gradients cancel: they would not if the mean were held fixed.
    (grad,) = torch.autograd.grad(attraction_loss(embeddings, masks[:1]), embeddings)
    assert grad.sum((1, 2)).abs().max() < 1e-12
    assert grad.abs().max() > 0.01


def test_gradient_of_attraction_is_finite_where_all_embeddings_agree():
    embeddings = torch.zeros(3, 4, 4, requires_grad=True)
    attraction_loss(embeddings, torch.ones(1, 4, 4, dtype=torch.bool)).backward()
    assert torch.isfinite(grad_of(embeddings)).all()


def test_attraction_of_other_sizes_is_refused():
    with pytest.raises(ShapeError, match="one size"):
        attraction_loss(torch.zeros(3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.bool))


def test_laplacian_kernel_by_hand():
    embeddings = torch.tensor([[[[0.0, 3]], [[0.0, 4]]]])
    log_kernel = steered_log_kernel(embeddings, torch.zeros(1, 2), 2.0)
    assert log_kernel.flatten().tolist() == [0, -2.5]
    gaussian = steered_log_kernel(embeddings, torch.zeros(1, 2), 2.0, "gaussian")
    assert gaussian.flatten().tolist() == [0, -3.125]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 30))
def test_the_kernel_is_1_for_the_cell_itself_and_between_0_and_1(seed, sigma):
    embeddings = random(2, 4, 5, 5, seed=seed)
    seeds = embeddings[:, :, 2, 3]
    kernel = steered_log_kernel(embeddings, seeds, sigma).exp()
    assert kernel[:, 2, 3].tolist() == [1, 1]
    assert (kernel > 0).all()
    assert (kernel <= 1).all()
    assert (kernel < 1).sum() == 48


def test_steered_logits_never_rise_and_stay_at_the_hard_seed():
    scores, embeddings = random(6, 8, 8), random(6, 4, 8, 8, seed=1)
    steered = scores + steered_log_kernel(embeddings, hard_seed(scores, embeddings), 0.7)
    best = scores.flatten(1).argmax(1)
    rows = torch.arange(6)
    assert (steered <= scores).all()
    assert torch.equal(steered.flatten(1)[rows, best], scores.flatten(1)[rows, best])
    assert (steered < scores).sum() == 6 * 63


def test_infinite_sigma_leaves_the_logits_alone():
    scores, embeddings = random(2, 4, 4), 100 * random(2, 4, 4, 4, seed=1)
    log_kernel = steered_log_kernel(embeddings, soft_seed(scores, embeddings), math.inf)
    assert torch.equal(scores + log_kernel, scores)


def test_gradient_of_the_kernel_is_finite_at_the_seed():
    embeddings = random(1, 3, 4, 4).requires_grad_()
    seeds = embeddings[:, :, 1, 1].detach()
    steered_log_kernel(embeddings, seeds, 1.0).sum().backward()
    assert torch.isfinite(grad_of(embeddings)).all()
    assert grad_of(embeddings)[0, :, 1, 1].tolist() == [0, 0, 0]


def test_kernel_cross_entropy_is_that_of_the_probability():
    log_kernel = -torch.linspace(0.01, 20, 200, dtype=torch.float64)
    target = torch.linspace(0, 1, 200, dtype=torch.float64)
    expected = nn.functional.binary_cross_entropy(log_kernel.exp(), target, reduction="none")
    torch.testing.assert_close(kernel_cross_entropy(log_kernel, target), expected)


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-4, 1e-2, 1.0, 90.0, 1e5])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_kernel_cross_entropy_is_finite_and_gently_sloped_everywhere(distance, target):
    log_kernel = torch.tensor(-distance, requires_grad=True)
    cost = kernel_cross_entropy(log_kernel, torch.tensor(target))
    cost.backward()
    assert torch.isfinite(cost)
    assert abs(grad_of(log_kernel).item()) <= 101


def test_soft_seed_of_equal_scores_is_the_mean():
    embeddings = random(3, 4, 5, 5)
    torch.testing.assert_close(soft_seed(torch.full((3, 5, 5), 7.0), embeddings), embeddings.mean((2, 3)))


def test_soft_seed_of_peaked_scores_is_the_hard_seed():
    scores, embeddings = random(3, 5, 5), random(3, 4, 5, 5, seed=1)
    distances = [
        (soft_seed(scores * sharpness, embeddings) - hard_seed(scores, embeddings)).abs().max().item()
        for sharpness in (1, 10, 1000)
    ]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-5


def test_hard_seed_by_hand():
    scores = torch.tensor([[[0.0, 5], [1, 2]], [[3, 0], [0, 3]]])
    embeddings = torch.arange(16.0).reshape(2, 2, 2, 2)
    assert hard_seed(scores, embeddings).tolist() == [[1, 5], [8, 12]]  # the first of equals


def test_no_box_has_no_seed():
    scores, embeddings = torch.zeros(0, 28, 28), torch.zeros(0, 8, 28, 28)
    assert soft_seed(scores, embeddings).shape == hard_seed(scores, embeddings).shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_gradient_keeps_the_values_bit_for_bit(dtype):
    values = (random(10_000) * torch.logspace(-30, 30, 10_000)).to(dtype).requires_grad_()
    scaled = scale_gradient(values, 0.1)
    assert torch.equal(scaled, values)
    scaled.sum().backward()
    assert torch.equal(grad_of(values), torch.full_like(values, 0.1))


def test_embedding_losses_reach_the_features_at_a_tenth_and_the_network_whole():
    masks = random(2, 9, 9, seed=2) > 0
    scores = random(1, 9, 9, seed=3)
    found = []
    for gradient in (1.0, 0.1):
        network = embedding_of(gradient=gradient)
        features = random(1, 6, 9, 9, seed=1).requires_grad_()
        embeddings = network(features, 4)
        log_kernel = steered_log_kernel(embeddings, soft_seed(scores, embeddings), 2.0)
        loss = (
            attraction_loss(embeddings[0], masks) + kernel_cross_entropy(log_kernel, masks[:1].float()).mean()
        )
        loss.backward()
        found.append((embeddings, grad_of(features), [grad_of(p) for p in network.parameters()]))
    (whole, whole_grad, whole_own), (tenth, tenth_grad, tenth_own) = found
    assert torch.equal(whole, tenth)
    assert whole_grad.abs().max() > 1e-4
    torch.testing.assert_close(tenth_grad, 0.1 * whole_grad, rtol=1e-5, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(whole_own, tenth_own, strict=True))


def test_embedding_network_starts_with_a_displacement_of_its_own():
    features = random(1, 6, 9, 9)
    offsets = embedding_of()(features, 4) - embedding_of(last_layer=0)(features, 4)
    assert offsets.shape == (1, 8, 9, 9)
    assert offsets[:, :2].std() > 0.01


def test_roi_align_of_coordinates_gives_the_sampling_coordinates_on_every_level():
    unit, side = 32.0, 28
    network = embedding_of(last_layer=0, dim=3, unit=unit)
    strides = {"0": 4, "1": 8, "2": 16, "3": 32}
    pyramid = {n: network(torch.zeros(1, 6, 1024 // s, 1024 // s), s) for n, s in strides.items()}
    boxes = torch.tensor(
        [[40.0, 60, 77, 99], [300, 100, 455, 279.5], [64, 200, 400, 500], [33, 17, 900, 910]]
    )
    pool = MultiScaleRoIAlign(list(strides), side, sampling_ratio=2)
    pooled = pool(pyramid, [boxes], [(1024, 1024)])
    assert pool.map_levels([boxes]).tolist() == [0, 1, 2, 3]
    centres = (torch.arange(side) + 0.5) / side
    for (left, top, right, bottom), (x, y, appearance) in zip(boxes, pooled, strict=True):
        torch.testing.assert_close(x * unit, (left + centres * (right - left)).expand(side, side))
        torch.testing.assert_close(y * unit, (top + centres * (bottom - top))[:, None].expand(side, side))
        assert not appearance.any()
