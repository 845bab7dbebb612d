from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from irn_pipeline.errors import ShapeError
from irn_pipeline.nn.irn_losses import irn_losses, pair_labels
from irn_pipeline.ops.affinity import pair_affinity, pair_paths


def random_batch(seed, count=2, height=11, width=14):
    generator = torch.Generator().manual_seed(seed)
    boundary = torch.rand(count, height, width, generator=generator)
    displacement = 3 * torch.randn(count, 2, height, width, generator=generator)
    label = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[
        torch.randint(4, (count, height, width), generator=generator)
    ]
    return boundary, displacement, label


def brute_force_losses(boundary, displacement, label, paths):
    """The five losses pair by pair in float64; affinities are tested elsewhere."""
    affinity = pair_affinity(boundary.double(), paths)
    displacement = displacement.double()
    margin = paths.radius - 1
    width = label.shape[2] - 2 * margin
    terms: dict[str, list[torch.Tensor]] = {name: [] for name in ("bg", "fg", "neg", "disp_fg", "disp_bg")}
    for b in range(len(label)):
        for p, (dy, dx) in enumerate(paths.offsets.tolist()):
            for n in range(affinity.shape[2]):
                y, x = n // width, n % width + margin
                src, dst = int(label[b, y, x]), int(label[b, y + dy, x + dx])
                if 255 in (src, dst):
                    continue
                a = affinity[b, p, n]
                difference = displacement[b, :, y, x] - displacement[b, :, y + dy, x + dx]
                if src != dst:
                    terms["neg"].append(-torch.log(1 + 1e-5 - a))
                elif src == 0:
                    terms["bg"].append(-torch.log(a + 1e-5))
                    terms["disp_bg"].append(difference.abs().sum() / 2)
                else:
                    terms["fg"].append(-torch.log(a + 1e-5))
                    offset = torch.tensor([dy, dx])
                    terms["disp_fg"].append((difference - offset).abs().sum() / 2)
    return [torch.stack(values).mean() for values in terms.values()]


def gradients_of(value, inputs):
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def test_losses_and_gradients_match_brute_force():
    boundary, displacement, label = random_batch(1)
    boundary.requires_grad_()
    displacement.requires_grad_()
    paths = pair_paths(4)
    losses = irn_losses(boundary, displacement, label, paths)
    expected = brute_force_losses(boundary, displacement, label, paths)
    actual = [
        losses.background_positive,
        losses.foreground_positive,
        losses.negative,
        losses.foreground_displacement,
        losses.background_displacement,
    ]
    bg, fg, neg, disp_fg, disp_bg = expected
    total = (bg / 2 + fg / 2 + neg) / 2 + (disp_fg + disp_bg) / 2
    inputs = (boundary, displacement)
    for value, reference in zip([*actual, losses.total], [*expected, total], strict=True):
        assert value.dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
        for gradient, wanted in zip(
            gradients_of(value, inputs), gradients_of(reference, inputs), strict=True
        ):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_loss_of_no_displacement_is_that_of_zeros_and_has_no_gradient(seed):
    boundary, displacement, label = random_batch(seed, height=12, width=20)
    paths = pair_paths(4)
    losses = irn_losses(boundary, displacement.requires_grad_(), label, paths)
    zeros = irn_losses(boundary, torch.zeros_like(displacement), label, paths)
    assert float(losses.zero_displacement) == pytest.approx(float(zeros.foreground_displacement), rel=1e-6)
    assert float(losses.zero_displacement) > 1
    assert not losses.zero_displacement.requires_grad


def test_pair_labels_by_hand():
    # radius 2 in a 2x3 crop: the one source is (0, 1); right, down-left, down, down-right
    label = torch.tensor([[[9, 3, 3], [255, 0, 4]]], dtype=torch.uint8)
    pairs = pair_labels(label, pair_paths(2))
    assert pairs.background_positive.flatten().tolist() == [False, False, False, False]
    assert pairs.foreground_positive.flatten().tolist() == [True, False, False, False]
    assert pairs.negative.flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("value", "kind"), [(0, "background_positive"), (20, "foreground_positive"), (255, None)]
)
def test_pairs_of_a_uniform_label(value, kind):
    pairs = pair_labels(torch.full((2, 6, 10), value, dtype=torch.uint8), pair_paths(5))
    for name in ("background_positive", "foreground_positive", "negative"):
        mask = getattr(pairs, name)
        assert mask.shape == (2, 34, 4)
        assert mask.dtype == torch.bool
        assert bool(mask.all()) == (name == kind)
        assert bool(mask.any()) == (name == kind)


def test_losses_of_a_constant_boundary_by_hand():
    label = torch.zeros(1, 5, 9, dtype=torch.uint8)
    label[:, :, 4:] = 1
    losses = irn_losses(torch.full((1, 5, 9), 0.25), torch.zeros(1, 2, 5, 9), label, pair_paths(2))
    assert float(losses.background_positive) == pytest.approx(-math.log(0.75), rel=1e-4)
    assert float(losses.foreground_positive) == pytest.approx(-math.log(0.75), rel=1e-4)
    assert float(losses.negative) == pytest.approx(-math.log(0.25), rel=1e-4)


def test_displacement_that_points_to_the_centroid_costs_nothing():
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    to_centroid = torch.stack([5 - rows, 7 - columns])[None]
    boundary = torch.zeros(1, 12, 14)
    object_label = torch.ones(1, 12, 14, dtype=torch.uint8)
    paths = pair_paths(5)
    assert float(irn_losses(boundary, to_centroid, object_label, paths).foreground_displacement) == 0
    # turned around, every pair is wrong by twice its offset; the mean is over both components
    reverse = irn_losses(boundary, -to_centroid, object_label, paths)
    expected = 2 * abs(paths.offsets).mean()
    assert float(reverse.foreground_displacement) == pytest.approx(expected, rel=1e-5)
    # background pairs should have the same displacement, whatever it is
    flat = irn_losses(boundary, torch.full((1, 2, 12, 14), 3.5), 0 * object_label, paths)
    assert float(flat.background_displacement) == 0
    assert float(flat.foreground_displacement) == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_extreme_boundaries_give_finite_losses_and_gradients(value):
    _, displacement, label = random_batch(2)
    boundary = torch.full(label.shape, value, requires_grad=True)
    losses = irn_losses(boundary, displacement.requires_grad_(), label, pair_paths(5))
    gradients = gradients_of(losses.total, (boundary, displacement))
    worst = -math.log(1e-5)
    assert float(losses.negative.detach()) == pytest.approx(0.0 if value else worst, abs=0.02)
    assert float(losses.foreground_positive.detach()) == pytest.approx(worst if value else 0.0, abs=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("shape", [(3, 20), (20, 7), (1, 1)])
def test_crop_without_pairs_costs_nothing(shape):
    boundary, displacement, label = random_batch(3, 2, *shape)
    boundary.requires_grad_()
    displacement.requires_grad_()
    losses = irn_losses(boundary, displacement, label, pair_paths(5))
    gradients = gradients_of(losses.total, (boundary, displacement))
    assert [float(getattr(losses, field.name).detach()) for field in fields(losses)] == [0.0] * 6
    assert not any(gradient.any() for gradient in gradients)


def test_unsure_labels_cost_nothing():
    boundary, displacement, label = random_batch(4)
    losses = irn_losses(boundary, displacement, torch.full_like(label, 255), pair_paths(5))
    assert float(losses.total) == 0


def test_half_precision_and_autocast_are_computed_in_float32():
    boundary, displacement, label = random_batch(5)
    boundary, displacement = boundary.bfloat16(), displacement.bfloat16()
    paths = pair_paths(5)
    expected = irn_losses(boundary.float(), displacement.float(), label, paths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = irn_losses(boundary, displacement, label, paths)
    assert losses.total.dtype == torch.float32
    assert float(losses.total) == float(expected.total)


def test_maps_that_do_not_fit_are_refused():
    boundary, displacement, label = random_batch(6)
    paths = pair_paths(5)
    with pytest.raises(ShapeError, match="boundary and label"):
        irn_losses(boundary[:, None], displacement, label, paths)
    with pytest.raises(ShapeError, match="boundary and label"):
        irn_losses(boundary[:, 1:], displacement, label, paths)
    with pytest.raises(ShapeError, match="displacement"):
        irn_losses(boundary, displacement[:, :1], label, paths)


def test_the_mean_over_parts_with_common_counts_is_the_loss_of_the_whole():
    boundary, displacement, label = random_batch(5, count=4)
    label[0] = 255  # parts with very different numbers of pairs
    boundary.requires_grad_()
    displacement.requires_grad_()
    paths = pair_paths(4)
    halves = (slice(0, 2), slice(2, 4))
    common = torch.stack([pair_labels(label[half], paths).counts() for half in halves]).double().mean(0)
    assert common[1] * 2 == pair_labels(label, paths).foreground_positive.sum()
    whole = irn_losses(boundary, displacement, label, paths)
    parts = [
        irn_losses(
            boundary[half], displacement[half], label[half], paths, common_counts=lambda _: common.float()
        )
        for half in halves
    ]
    for field in fields(whole):
        mean = sum(getattr(part, field.name) for part in parts) / 2
        torch.testing.assert_close(mean, getattr(whole, field.name), rtol=1e-5, atol=1e-7)
    total = sum(part.total for part in parts) / 2
    inputs = [boundary, displacement]
    for a, b in zip(gradients_of(total, inputs), gradients_of(whole.total, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)
    uneven = sum(irn_losses(boundary[h], displacement[h], label[h], paths).total for h in halves) / 2
    assert abs(uneven - whole.total).item() > 1e-3  # without common counts it is another loss
