import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irn_pipeline.errors import DataError, ShapeError
from irn_pipeline.nn.segmenters.spatial_loss import (
    UNIT_X,
    UNIT_Y,
    count_pixels,
    lovasz_hinge,
    lovasz_weights,
    membership,
    pixel_grid,
    spatial_losses,
)
from tests.nn.targets import box, target_of


def random_fields(size, channels=2, classes=1, seed=0):
    """Embeddings near the pixels themselves, bandwidths around a radius of some pixels."""
    g = torch.Generator().manual_seed(seed)
    offset = 0.003 * torch.randn((2, *size), generator=g)
    bandwidth = 0.8 + 0.05 * torch.randn((channels, *size), generator=g)
    seeds = torch.rand((classes, *size), generator=g)
    return offset.requires_grad_(), bandwidth.requires_grad_(), seeds.requires_grad_()


def losses_of(fields, t, weight=10.0, to_center=False):
    offset, bandwidth, seed = fields
    return spatial_losses(
        pixel_grid(seed.shape[1:]) + offset,
        bandwidth,
        seed,
        t,
        foreground_weights=torch.full((len(seed),), weight),
        to_center=to_center,
    )


def values(terms):
    return [terms.instance.item(), terms.bandwidth.item(), terms.seed.item()]


# -- Lovasz hinge


def jaccard_steps(positive):
    """J_j - J_(j-1) as the paper writes them, in float64."""
    g = positive.double()
    jaccard = 1 - (g.sum() - g.cumsum(0)) / (g.sum() + (1 - g).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


mask_lists = st.lists(st.booleans(), min_size=1, max_size=40)


@given(mask_lists)
@settings(deadline=None, max_examples=40)
def test_weights_are_the_steps_of_the_jaccard_loss_and_sum_to_one(bits):
    positive = torch.tensor(bits)
    weights = lovasz_weights(positive, positive.sum())
    assert torch.allclose(weights.double(), jaccard_steps(positive), atol=1e-6)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=40)
def test_hinge_of_a_decision_is_twice_the_jaccard_loss(pairs):
    guess, truth = torch.tensor(pairs).T
    union = (guess | truth).sum()
    expected = 2 * (1 - (guess & truth).sum() / union) if union else 0.0
    assert lovasz_hinge(guess * 2.0 - 1, truth).item() == pytest.approx(float(expected), abs=1e-5)


@given(mask_lists)
@settings(deadline=None, max_examples=40)
def test_hinge_of_certainties_and_of_indecision(bits):
    truth = torch.tensor(bits)
    right = truth * 2.0 - 1
    assert lovasz_hinge(right, truth).item() == 0
    assert lovasz_hinge(-right, truth).item() == pytest.approx(2, abs=1e-5)
    assert lovasz_hinge(0 * right, truth).item() == pytest.approx(1, abs=1e-5)


@given(st.integers(0, 1000), st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_hinge_equals_the_definition_over_all_pixels(seed, count):
    g = torch.Generator().manual_seed(seed)
    scores = (torch.randn(count, generator=g) * 1.5).requires_grad_()
    truth = torch.rand(count, generator=g) < 0.3
    errors, order = (1 - scores * (truth * 2.0 - 1)).sort(descending=True)
    expected = (errors.relu() * jaccard_steps(truth[order]).float()).sum()
    found = lovasz_hinge(scores, truth)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    (slope,) = torch.autograd.grad(found, scores, retain_graph=True)
    assert torch.allclose(slope, torch.autograd.grad(expected, scores)[0], atol=1e-6)


def test_hinge_without_positives():
    nothing = torch.zeros(3, dtype=torch.bool)
    assert lovasz_hinge(torch.full((3,), -1.0), nothing).item() == 0
    assert lovasz_hinge(torch.tensor([-1.0, 0.5, 0.0]), nothing).item() == 1.5  # the worst pixel alone


def test_hinge_refuses_other_shapes():
    with pytest.raises(ShapeError, match=r"got \(3,\) and \(2,\)"):
        lovasz_hinge(torch.zeros(3), torch.zeros(2, dtype=torch.bool))


# -- coordinates and membership


def test_grid_has_the_same_units_in_any_picture():
    small, large = pixel_grid((3, 4)), pixel_grid((1500, 2500))
    assert torch.equal(small, large[:, :3, :4])
    assert large[:, 1023, 2047].tolist() == pytest.approx([2, 1])
    assert small[:, 2, 1].tolist() == pytest.approx([2 / 2047, 2 / 1023])  # x, then y


def test_the_first_margin_is_5_74_pixels():
    def prob(pixels, unit, axis):
        point = torch.zeros(2, 1)
        point[axis] = pixels * unit
        return membership(point, torch.zeros(2), torch.ones(1)).item()

    for unit, axis in ((UNIT_X, 0), (UNIT_Y, 1)):
        scale = (1 / 1023) / unit
        assert prob(5.738 * scale, unit, axis) > 0.5 > prob(5.740 * scale, unit, axis)


@pytest.mark.parametrize(("raw", "radius"), [(0.8, 15.6), (0.6, 42.4), (0.4, 115), (0.2, 313), (0.0, 852)])
def test_radius_of_a_bandwidth(raw, radius):
    point = torch.tensor([[0.0], [radius / 1023]])
    assert membership(point, torch.zeros(2), torch.tensor([raw])).item() == pytest.approx(0.5, abs=0.003)


# -- the losses of a picture


def test_losses_of_a_picture_that_can_be_worked_out_by_hand():
    # Two pixels of one instance, two of background; all embeddings at their own pixel.
    t = target_of([box((1, 4), (0, 1), (0, 2))])
    bandwidth = torch.tensor([[[1.0, 1.2, 0.3, 0.3]]])
    seed = torch.tensor([[[0.5, 0.5, 0.1, 0.2]]])
    terms = losses_of((torch.zeros(2, 1, 4), bandwidth, seed), t, weight=3.0)
    assert terms.bandwidth.item() == pytest.approx(0.01)
    sharp, half = torch.tensor(11.0).exp().item(), 0.5 * UNIT_X
    own = torch.tensor(-sharp * half**2).exp().item()
    third = torch.tensor(-sharp * (3 * half) ** 2).exp().item()
    fourth = torch.tensor(-sharp * (5 * half) ** 2).exp().item()
    assert terms.seed.item() == pytest.approx((0.1**2 + 0.2**2 + 3 * 2 * (0.5 - own) ** 2) / 4, rel=1e-4)
    # Errors 2 third > 2 fourth > 2 (1 - own); with two positives the weights are 1/3, 1/6, 1/4, 1/4.
    assert third > fourth > 1 - own
    expected = 2 * (third / 3 + fourth / 6 + (1 - own) / 2)
    assert terms.instance.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("to_center", [True, False])
def test_leaving_out_far_pixels_changes_nothing(to_center):
    size = (30, 40)
    offset, bandwidth, seed = random_fields(size)
    masks = [box(size, (2, 12), (3, 15)), box(size, (15, 28), (20, 38))]
    embedding, grid = (pixel_grid(size) + offset).flatten(1), pixel_grid(size).flatten(1)
    expected = []
    for mask in (m.flatten() for m in masks):
        mean = bandwidth.flatten(1)[:, mask].mean(1)
        centre = (grid if to_center else embedding)[:, mask].mean(1)
        expected.append(lovasz_hinge(2 * membership(embedding, centre, mean) - 1, mask))
    expected = torch.stack(expected).mean()
    found = losses_of((offset, bandwidth, seed), target_of(masks), to_center=to_center).instance
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    leaves = (offset, bandwidth)
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(a, b, atol=1e-3 * b.abs().max().item())


def test_constant_bandwidth_has_no_variance_and_its_mean_gets_no_gradient():
    size = (6, 8)
    t = target_of([box(size, (0, 3), (0, 8)), box(size, (3, 6), (0, 4))])
    offset, bandwidth, seed = random_fields(size)
    flat = torch.full_like(bandwidth, 0.7)
    assert losses_of((offset, flat, seed), t).bandwidth.item() == pytest.approx(0, abs=1e-12)
    term = losses_of((offset, bandwidth, seed), target_of([box(size, (0, 3), (0, 8))])).bandwidth
    (slope,) = torch.autograd.grad(term, bandwidth)
    own = bandwidth[:, :3].detach()
    assert torch.allclose(slope[:, :3], 2 * (own - own.mean((1, 2), keepdim=True)) / own.numel(), atol=1e-7)
    assert (slope[:, 3:] == 0).all()


def test_seed_term_teaches_the_seed_map_alone():
    size = (6, 8)
    fields = random_fields(size)
    t = target_of([box(size, (1, 4), (2, 6))])
    slopes = torch.autograd.grad(losses_of(fields, t).seed, fields, allow_unused=True)
    assert all(slope is None or (slope == 0).all() for slope in slopes[:2])
    assert slopes[2].abs().min() > 0


@pytest.mark.parametrize("to_center", [True, False])
def test_shifting_everything_changes_nothing(to_center):
    size, shift = (24, 28), (5, 9)
    masks = [box(size, (1, 7), (2, 9)), box(size, (9, 16), (4, 14))]
    # The shifted picture shows the same scene; outside it lies far away and has no seed.
    offset, bandwidth, seed = (f.detach() for f in random_fields(size))
    inside = box(size, (0, 18), (0, 18))
    offset, seed = torch.where(inside, offset, 0.5), torch.where(inside, seed, 0.0)

    def moved(x):
        return x.roll(shift, (-2, -1))

    before = losses_of((offset, bandwidth, seed), target_of(masks), to_center=to_center)
    after = losses_of(
        (moved(offset), moved(bandwidth), moved(seed)),
        target_of([moved(m) for m in masks]),
        to_center=to_center,
    )
    assert values(after) == pytest.approx(values(before), rel=1e-3)
    assert min(values(before)) > 0.001


def test_one_bandwidth_equals_two_that_agree():
    size = (12, 14)
    offset, bandwidth, seed = random_fields(size, channels=1)
    t = target_of([box(size, (1, 7), (2, 9)), box(size, (8, 11), (4, 12))])
    circular = losses_of((offset, bandwidth, seed), t)
    elliptical = losses_of((offset, bandwidth.expand(2, *size), seed), t)
    assert values(elliptical) == pytest.approx(values(circular), rel=1e-6)
    slopes = [
        torch.autograd.grad(terms.instance + terms.bandwidth, bandwidth)[0]
        for terms in (circular, elliptical)
    ]
    assert torch.allclose(*slopes, atol=1e-6)


def test_empty_picture_has_a_seed_loss_and_no_other_gradient():
    fields = random_fields((5, 6))
    terms = losses_of(fields, target_of([], size=(5, 6)))
    assert terms.instance.item() == terms.bandwidth.item() == 0
    assert terms.seed.item() == pytest.approx(fields[2].square().mean().item())
    slopes = torch.autograd.grad(terms.instance + terms.bandwidth + terms.seed, fields)
    assert (slopes[0] == 0).all()
    assert (slopes[1] == 0).all()
    assert (slopes[2] > 0).all()


def test_weights_multiply_every_term_of_their_instance():
    size = (10, 12)
    fields = random_fields(size)
    masks = [box(size, (0, 5), (0, 6)), box(size, (5, 10), (6, 12))]
    alone = [losses_of(fields, target_of([m])) for m in masks]
    both = losses_of(fields, target_of(masks, weights=[0.5, 0.25]))
    for name in ("instance", "bandwidth"):
        a, b = (getattr(terms, name).item() for terms in alone)
        assert getattr(both, name).item() == pytest.approx((0.5 * a + 0.25 * b) / 2, rel=1e-5)
    unknown = masks[0] | masks[1]
    background = losses_of(fields, target_of([], ignore=unknown, size=size)).seed.item()
    rest = [losses_of(fields, target_of([m], ignore=unknown & ~m)).seed.item() - background for m in masks]
    assert both.seed.item() == pytest.approx(background + 0.5 * rest[0] + 0.25 * rest[1], rel=1e-5)


def test_ignored_pixels_have_no_influence():
    size = (10, 12)
    t = target_of([box(size, (2, 8), (2, 8))], ignore=box(size, (0, 10), (6, 12)))
    offset, bandwidth, seed = random_fields(size)
    noise = random_fields(size, seed=1)
    changed = [torch.where(t.ignore, b, a) for a, b in zip((offset, bandwidth, seed), noise, strict=True)]
    assert values(losses_of(changed, t)) == values(losses_of((offset, bandwidth, seed), t))
    everything = target_of([box(size, (2, 8), (2, 8))], ignore=torch.ones(size, dtype=torch.bool))
    assert values(losses_of((offset, bandwidth, seed), everything)) == [0, 0, 0]


def test_classes_have_their_own_seed_maps_and_weights():
    size = (4, 6)
    offset, bandwidth, seed = random_fields(size, classes=3)
    masks = [box(size, (0, 2), (0, 6)), box(size, (2, 4), (0, 3))]
    embedding = pixel_grid(size) + offset
    terms = spatial_losses(
        embedding,
        bandwidth,
        seed,
        target_of(masks, class_ids=[2, 0]),
        foreground_weights=torch.tensor([2.0, 3.0, 5.0]),
        to_center=False,
    )
    single = [
        spatial_losses(
            embedding,
            bandwidth,
            seed[c : c + 1],
            target_of([m for m, k in zip(masks, (2, 0), strict=True) if k == c], size=size),
            foreground_weights=torch.tensor([weight]),
            to_center=False,
        ).seed
        for c, weight in enumerate((2.0, 3.0, 5.0))
    ]
    assert terms.seed.item() == pytest.approx(sum(single).item(), rel=1e-6)


def test_one_pixel_instance_is_finite():
    size = (6, 6)
    fields = random_fields(size)
    terms = losses_of(fields, target_of([box(size, (3, 4), (3, 4))]))
    slopes = torch.autograd.grad(terms.instance + terms.bandwidth + terms.seed, fields)
    assert all(torch.isfinite(s).all() for s in slopes)
    assert terms.bandwidth.item() == 0


def test_extreme_bandwidths_are_finite():
    size = (8, 8)
    t = target_of([box(size, (0, 4), (0, 8))])
    for raw in (-1.0, 1.5):
        offset, _, seed = random_fields(size)
        bandwidth = torch.full((2, *size), raw, requires_grad=True)
        terms = losses_of((offset, bandwidth, seed), t)
        slopes = torch.autograd.grad(terms.instance + terms.bandwidth, (offset, bandwidth))
        assert all(torch.isfinite(s).all() for s in slopes)


def test_pixels_of_classes_are_counted_without_the_ignored():
    size = (4, 5)
    t = target_of(
        [box(size, (0, 2), (0, 5)), box(size, (2, 3), (0, 5))],
        class_ids=[1, 1],
        ignore=box(size, (0, 4), (0, 1)),
    )
    assert count_pixels(t, 3).tolist() == [[0, 12, 0], [16, 4, 16]]


def test_targets_that_do_not_fit_are_refused():
    fields = random_fields((4, 5))
    with pytest.raises(ShapeError, match=r"4x5 image needs masks \(R, 4, 5\).*got \(1, 5, 4\)"):
        losses_of(fields, target_of([box((5, 4), (0, 1), (0, 1))]))
    with pytest.raises(DataError, match=r"class id 1, but the model knows the classes 0\.\.0"):
        losses_of(fields, target_of([box((4, 5), (0, 1), (0, 1))], class_ids=[1]))
