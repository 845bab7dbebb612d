"""Losses of metric embeddings: stable logarithms, weights, targets; each property is one of the method."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.errors import ShapeError
from irn_pipeline.nn.segmenters.metric_loss import (
    BACKGROUND_GROUP,
    CellTarget,
    Points,
    cell_target,
    class_loss,
    class_loss_weight,
    class_targets,
    embedding_loss,
    log_dissimilarity,
    log_similarity,
    pair_weights,
    sample_points,
)
from irn_pipeline.ops.metric_seeds import distance_limits
from tests.nn.targets import MaskTarget

LIMITS = distance_limits((0.25, 0.5, 0.75, 0.9))


def picture_target(masks: Tensor, ignore: Tensor | None = None, weights: Tensor | None = None) -> MaskTarget:
    count, size = len(masks), masks.shape[1:]
    return MaskTarget(
        masks,
        torch.arange(count) % 2,
        torch.ones(count) if weights is None else weights,
        torch.zeros(size, dtype=torch.bool) if ignore is None else ignore,
    )


def points_of(groups: list[int], sizes: list[float], weights: list[float] | None = None) -> Points:
    return Points(
        torch.arange(len(groups)),
        torch.tensor(groups),
        torch.tensor(sizes),
        torch.ones(len(groups)) if weights is None else torch.tensor(weights),
    )


def naive_loss(embeddings: Tensor, points: Points, *, background_attracts: bool = True) -> float:
    """The formula, pair by pair in float64."""
    values, total, weight_sum = embeddings.double().numpy(), 0.0, 0.0
    ends = list(
        zip(values, *(x.tolist() for x in (points.groups, points.sizes, points.weights)), strict=True)
    )
    for embedding_p, group_p, size_p, trust_p in ends:
        for embedding_q, group_q, size_q, trust_q in ends:
            if group_p == group_q == BACKGROUND_GROUP and not background_attracts:
                continue
            similarity = 2 / (1 + np.exp(((embedding_p - embedding_q) ** 2).sum()))
            weight = 1 / (size_p + size_q)
            weight_sum += weight
            total -= (
                weight * min(trust_p, trust_q) * np.log(similarity if group_p == group_q else 1 - similarity)
            )
    return total / weight_sum


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def test_logarithms_equal_the_plain_form_where_that_works():
    x = torch.linspace(0.01, 15, 200, dtype=torch.float64)
    similarity = 2 / (1 + x.exp())
    np.testing.assert_allclose(log_similarity(x), similarity.log(), rtol=1e-12)
    np.testing.assert_allclose(log_dissimilarity(x), (1 - similarity).log(), rtol=1e-8)
    np.testing.assert_allclose(log_dissimilarity(x).exp(), (x / 2).tanh())
    assert (log_similarity(x).diff() < 0).all() and (log_dissimilarity(x).diff() > 0).all()


def test_a_point_is_fully_similar_to_itself():
    assert log_similarity(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)


def test_loss_is_symmetric_in_a_pair(random):
    embeddings = torch.randn(2, 5, generator=random)
    points = points_of([0, 1], [3.0, 8.0])
    swapped = points_of([1, 0], [8.0, 3.0])
    assert embedding_loss(embeddings, points).item() == pytest.approx(
        embedding_loss(embeddings.flip(0), swapped).item()
    )


@pytest.mark.parametrize(
    ("distance", "groups"), [(0.0, [0, 1]), (100.0, [0, 0]), (100.0, [0, 1]), (1e10, [0, 0])]
)
def test_coincident_and_distant_points_keep_loss_and_gradient_finite(distance, groups):
    # 100 is a squared distance of 1e4, where the plain logarithm is -inf
    embeddings = torch.tensor([[0.0, 0.0], [distance, 0.0]], requires_grad=True)
    loss = embedding_loss(embeddings, points_of(groups, [1.0, 1.0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(embeddings.grad).all()


def test_nearly_coincident_instances_are_pushed_apart():
    embeddings = torch.tensor([[0.0, 0.0], [0.01, 0.0]], requires_grad=True)
    embedding_loss(embeddings, points_of([0, 1], [1.0, 1.0])).backward()
    assert embeddings.grad[0, 0] > 0 > embeddings.grad[1, 0]


def test_pair_weights_of_two_sizes():
    # 1/2, 1/4, 1/4, 1/6 of their sum 7/6
    np.testing.assert_allclose(
        pair_weights(points_of([0, 1], [1.0, 3.0])), [[3 / 7, 3 / 14], [3 / 14, 1 / 7]], rtol=1e-6
    )


def test_background_that_only_repels_has_no_weight_with_itself():
    points = points_of([0, BACKGROUND_GROUP, BACKGROUND_GROUP], [1.0, 3.0, 3.0])
    # 1/2 and four times 1/4: their sum is 3/2
    expected = [[1 / 3, 1 / 6, 1 / 6], [1 / 6, 0, 0], [1 / 6, 0, 0]]
    np.testing.assert_allclose(pair_weights(points, background_attracts=False), expected, rtol=1e-6)
    nothing = points_of([BACKGROUND_GROUP] * 2, [3.0, 3.0])
    assert pair_weights(nothing, background_attracts=False).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("attracts", [True, False])
def test_pair_weights_sum_to_one(random, attracts):
    sizes = torch.randint(1, 5000, (37,), generator=random).tolist()
    points = points_of([0] * 20 + [BACKGROUND_GROUP] * 17, sizes)
    assert pair_weights(points, background_attracts=attracts).sum().item() == pytest.approx(1, abs=1e-5)


def test_a_larger_instance_with_the_same_points_changes_only_its_weights(random):
    embeddings = torch.randn(4, 3, generator=random)
    small, large = (
        points_of([0, 0, 1, 1], [4.0, 4.0, 6.0, 6.0]),
        points_of([0, 0, 1, 1], [8.0, 8.0, 6.0, 6.0]),
    )
    distances = (embeddings[:, None] - embeddings).square().sum(2)
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    cost = -torch.where(same, log_similarity(distances), log_dissimilarity(distances))
    for points in (small, large):
        expected = (pair_weights(points) * cost)[~torch.eye(4, dtype=torch.bool)].sum()
        assert embedding_loss(embeddings, points).item() == pytest.approx(expected.item(), rel=1e-5)
    ratio = pair_weights(large) / pair_weights(small)
    ratio = ratio / ratio[2, 2]
    np.testing.assert_allclose(ratio[2:, 2:], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[:2, :2], 4 / 8, rtol=1e-6)
    np.testing.assert_allclose(ratio[:2, 2:], 10 / 14, rtol=1e-6)


@pytest.mark.parametrize("attracts", [True, False])
def test_loss_equals_the_formula(random, attracts):
    embeddings = torch.randn(7, 4, generator=random)
    points = points_of(
        [0, 0, 1, 1, 1, BACKGROUND_GROUP, BACKGROUND_GROUP],
        [5.0, 5.0, 9.0, 9.0, 9.0, 90.0, 90.0],
        [0.5, 0.5, 0.25, 0.25, 0.25, 1.0, 1.0],
    )
    # the terms of a point with itself are log 1, which the naive form makes 0 too
    expected = naive_loss(embeddings, points, background_attracts=attracts)
    assert embedding_loss(embeddings, points, background_attracts=attracts).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_loss_of_two_points_by_hand():
    # squared distance ln 3: similarity 2 / (1 + 3) = 1/2; both pairs of unlike points weigh 1/4 beside 1/2 + 1/2
    embeddings = torch.tensor([[0.0], [math.sqrt(math.log(3))]])
    apart = embedding_loss(embeddings, points_of([0, BACKGROUND_GROUP], [1.0, 1.0]))
    assert apart.item() == pytest.approx(math.log(2) / 2, rel=1e-5)
    # without the pair of the background with itself a third is left of each
    repelled = embedding_loss(
        embeddings, points_of([0, BACKGROUND_GROUP], [1.0, 1.0]), background_attracts=False
    )
    assert repelled.item() == pytest.approx(math.log(2) * 2 / 3, rel=1e-5)


def test_loss_does_not_see_rotations_and_translations(random):
    embeddings = torch.randn(9, 6, generator=random)
    points = points_of([0, 0, 0, 1, 1, 1, 2, 2, 2], [3.0] * 9)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=random))[0]
    expected = embedding_loss(embeddings, points).item()
    assert embedding_loss(embeddings @ rotation, points).item() == pytest.approx(expected, rel=1e-4)
    assert embedding_loss(embeddings + 5, points).item() == pytest.approx(expected, rel=1e-4)
    assert embedding_loss(embeddings * 2, points).item() != pytest.approx(expected, rel=1e-2)


def test_trust_scales_the_loss(random):
    embeddings = torch.randn(4, 3, generator=random)
    full = embedding_loss(embeddings, points_of([0, 0, 1, 1], [2.0] * 4))
    half = embedding_loss(embeddings, points_of([0, 0, 1, 1], [2.0] * 4, [0.5] * 4))
    assert half.item() == pytest.approx(full.item() / 2)


def test_no_point_gives_zero_with_a_graph():
    embeddings = torch.zeros(0, 3, requires_grad=True)
    loss = embedding_loss(embeddings, points_of([], []))
    loss.backward()
    assert loss.item() == 0 and embeddings.grad.shape == (0, 3)


def test_embeddings_must_be_those_of_the_points():
    with pytest.raises(ShapeError, match=r"\(2, D\)"):
        embedding_loss(torch.zeros(3, 4), points_of([0, 1], [1.0, 1.0]))


def test_cells_are_read_at_their_middle():
    masks = torch.zeros(2, 9, 20, dtype=torch.bool)
    masks[0, 4, 4] = True  # the middle of cell (0, 0)
    masks[1, 8, 12:20] = True  # the last row stands for the second row of cells
    ignore = torch.zeros(9, 20, dtype=torch.bool)
    ignore[8, 19] = True
    weights = torch.tensor([0.25, 0.5])
    found = cell_target(picture_target(masks, ignore, weights), stride=8)
    # columns 4, 12, 19 (20 would be outside); rows 4, 8
    assert found.masks.tolist() == [[True, False, False, False, False, False], [False] * 4 + [True, False]]
    assert found.known.tolist() == [True] * 5 + [False]
    assert found.background.tolist() == [False, True, True, True, False, False]
    assert found.class_ids.tolist() == [0, 1] and found.weights.tolist() == [0.25, 0.5]


def test_an_instance_between_the_middles_has_the_cell_that_holds_most_of_it():
    masks = torch.zeros(2, 16, 24, dtype=torch.bool)
    masks[0, :, 8:] = True  # four cells
    masks[1, 5:8, 5:11] = True  # 9 pixels in the first cell, 9 in the second
    masks[1, 7, 11] = True  # one more in the second
    masks[0] &= ~masks[1]
    found = cell_target(picture_target(masks), stride=8)
    assert found.masks.tolist() == [
        [False, False, True, False, True, True],
        [False, True, False, False, False, False],
    ]
    assert found.background.tolist() == [True, False, False, True, False, False]


def test_a_lost_instance_takes_a_cell_that_is_known_by_its_own_pixels_only():
    masks, ignore = torch.zeros(1, 8, 16, dtype=torch.bool), torch.zeros(8, 16, dtype=torch.bool)
    masks[0, 0, 6:11] = True  # two pixels in the first cell, three in the second
    ignore[:, 8:] = True
    found = cell_target(picture_target(masks, ignore), stride=8)
    assert found.masks.tolist() == [[True, False]] and found.known.tolist() == [True, False]
    ignore[0, 6:8] = True
    assert len(cell_target(picture_target(masks, ignore), stride=8).masks) == 0


def test_a_lost_instance_takes_no_last_cell():
    masks = torch.zeros(3, 8, 16, dtype=torch.bool)
    masks[0, 4, 4] = True  # the only cell that it meets
    masks[1, 0, :8] = True
    masks[2, 1, 6:9] = True  # two pixels in the first cell, one in the second
    found = cell_target(picture_target(masks), stride=8)
    # the second has no cell but the first's, the third has another
    assert found.masks.tolist() == [[True, False], [False, True]]
    assert found.class_ids.tolist() == [0, 0]


def test_a_picture_of_one_pixel_has_one_cell():
    found = cell_target(picture_target(torch.ones(1, 1, 1, dtype=torch.bool)), stride=8)
    assert found.masks.tolist() == [[True]]


@pytest.fixture
def cells():
    masks = torch.zeros(2, 12, dtype=torch.bool)
    masks[0, :3] = masks[1, 5:6] = True
    known = torch.ones(12, dtype=torch.bool)
    known[9:] = False
    return CellTarget(masks, torch.tensor([1, 0]), torch.tensor([0.5, 1.0]), known)


def test_points_are_drawn_inside_their_instance(cells, random):
    points = sample_points(cells, 40, random, background_count=60)
    assert points.groups.tolist() == [0] * 40 + [1] * 40 + [BACKGROUND_GROUP] * 60
    drawn = [set(part.tolist()) for part in points.cells.split([40, 40, 60])]
    assert drawn == [{0, 1, 2}, {5}, {3, 4, 6, 7, 8}]
    assert points.sizes[::40].tolist() == [3, 1, 5, 5]
    assert points.weights[::40].tolist() == [0.5, 1, 1, 1]
    free = sample_points(cells, 40, random)
    assert free.groups.tolist() == [0] * 40 + [1] * 40


def test_background_points_can_weigh_as_a_mean_instance(cells, random):
    points = sample_points(cells, 2, random, background_count=1, background_size="mean")
    assert points.sizes.tolist() == [3, 3, 1, 1, 2]


def test_nothing_is_drawn_from_nothing(random):
    known = torch.zeros(4, dtype=torch.bool)
    empty = CellTarget(
        torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0), known
    )
    points = sample_points(empty, 10, random, background_count=10)
    assert len(points.cells) == len(points.groups) == len(points.sizes) == len(points.weights) == 0


def test_the_generator_decides_the_points(cells):
    first, again, other = (
        sample_points(cells, 20, torch.Generator().manual_seed(seed), background_count=20).cells
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_ideal_embeddings_have_the_true_classes_at_every_threshold(cells):
    embeddings = torch.zeros(12, 3)
    embeddings[:3, 0] = 3.0
    embeddings[5, 1] = 3.0
    embeddings[9:] = embeddings[0]  # unknown cells that look like the first instance count for nothing
    labels, trust = class_targets(embeddings, torch.tensor([0, 2, 5, 4, 8]), cells, LIMITS)
    assert labels.tolist() == [[2] * 4, [2] * 4, [1] * 4, [0] * 4, [0] * 4]
    assert trust.tolist() == [[0.5] * 4, [0.5] * 4, [1.0] * 4, [1.0] * 4, [1.0] * 4]


def test_thresholds_of_too_small_and_too_large_masks_are_background(cells):
    # Distances from cell 0 within its instance: 0, 0.3 (inside 0.511) and 1.0 (inside 1.099); 1.5 for the others.
    embeddings = torch.tensor([0, 0.3, 1.0, *[1.5] * 6, 9, 9, 9]).sqrt()[:, None]
    labels, trust = class_targets(embeddings, torch.tensor([0]), cells, LIMITS)
    # IoU 3/9, 1, 2/3, 1/3
    assert labels.tolist() == [[0, 2, 2, 0]]
    assert trust.tolist() == [[0.5] * 4]


def test_targets_of_a_picture_without_instances():
    known = torch.ones(4, dtype=torch.bool)
    empty = CellTarget(
        torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0), known
    )
    labels, trust = class_targets(torch.zeros(4, 2, requires_grad=True), torch.tensor([1, 2]), empty, LIMITS)
    assert labels.tolist() == [[0] * 4] * 2 and trust.tolist() == [[1.0] * 4] * 2
    assert not trust.requires_grad


def test_class_loss_by_hand():
    # probabilities of the right class: 1/2, 1/2, 3/4, 1/4
    logits = torch.tensor(
        [[[0.0, 0.0], [0.0, 0.0]], [[np.log(3), 0.0], [np.log(3), 0.0]]], dtype=torch.float32
    )
    labels, weights = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    expected = (np.log(2) + 0.5 * np.log(2) + np.log(4 / 3)) / 4
    assert class_loss(logits, labels, weights).item() == pytest.approx(expected)


def test_class_loss_of_no_point_is_zero_with_a_graph():
    logits = torch.zeros(0, 4, 3, requires_grad=True)
    loss = class_loss(logits, torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("progress", "weight"), [(0, 0), (0.2, 0), (0.3, 0.05), (0.4, 0.1), (0.6, 0.2), (0.99, 0.2)]
)
def test_class_loss_weight_rises_between_a_fifth_and_three_fifths(progress, weight):
    assert class_loss_weight(progress) == pytest.approx(weight)
