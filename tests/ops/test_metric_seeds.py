"""Seeds and masks in an embedding space, with answers that can be counted and brute-force twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.ops.metric_seeds import (
    best_instances,
    distance_limits,
    pick_seeds,
    seed_components,
    squared_distances,
    suppress_masks,
    threshold_masks,
)

THRESHOLDS = (0.25, 0.5, 0.75, 0.9)


def bits(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def test_limits_are_where_the_similarity_equals_the_threshold():
    limits = np.array(distance_limits(THRESHOLDS))
    np.testing.assert_allclose(limits, [1.946, 1.099, 0.511, 0.201], atol=5e-4)
    np.testing.assert_allclose(2 / (1 + np.exp(limits)), THRESHOLDS)


@pytest.mark.parametrize("thresholds", [(), (0.0,), (0.5, 1.0), (-0.1,), (float("nan"),)])
def test_limits_refuse_what_is_no_similarity(thresholds):
    with pytest.raises(ConfigError, match="similarities"):
        distance_limits(thresholds)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_distances_equal_explicit_differences_also_far_from_the_origin(offset):
    embeddings = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + offset
    points = embeddings[[3, 3, 40]]
    explicit = (points.double()[:, None] - embeddings.double()).square().sum(2)
    found = squared_distances(points, embeddings)
    np.testing.assert_allclose(found, explicit, atol=1e-4)
    assert (found >= 0).all()
    assert squared_distances(points[:0], embeddings).shape == (0, 50)
    assert squared_distances(points[:0], embeddings[:0]).shape == (0, 0)


def test_distances_refuse_other_dimensions():
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(5, 4\)"):
        squared_distances(torch.zeros(2, 3), torch.zeros(5, 4))


def test_masks_of_a_line():
    distances = squared_distances(torch.tensor([[0.0]]), torch.tensor([[0.0], [0.5], [1.0], [1.2], [2.0]]))
    # squares 0, 0.25, 1, 1.44, 4 against 1.946, 1.099, 0.511, 0.201
    expected = bits("11110", "11100", "11000", "10000")
    assert torch.equal(threshold_masks(distances, distance_limits(THRESHOLDS))[0], expected)


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, (12, 3), elements=st.floats(-3, 3, width=32)))
def test_masks_of_lower_thresholds_hold_those_of_higher_ones(values):
    embeddings = torch.from_numpy(values)
    masks = threshold_masks(squared_distances(embeddings, embeddings), distance_limits(THRESHOLDS))
    assert masks.shape == (12, 4, 12)
    assert (masks[:, 1:] <= masks[:, :-1]).all()
    assert masks[:, 3].diagonal().all()


def test_best_instance_must_overlap_by_more_than_half():
    truth = bits("111000", "000110")
    masks = bits("111000", "110000", "111111", "000111", "000011", "000001", "000000")
    # IoU: 1, 2/3, 1/2 (not more than half), 2/3, 1/3, 0, 0
    assert best_instances(masks, truth).tolist() == [0, 0, -1, 1, -1, -1, -1]
    assert best_instances(masks, truth, min_iou=0.3).tolist() == [0, 0, 0, 1, 1, -1, -1]
    assert best_instances(masks[:, None], truth).shape == (7, 1)
    assert best_instances(masks, truth[:0]).tolist() == [-1] * 7


def test_seeds_without_diversity_are_the_top_scores():
    scores = torch.tensor([0.1, 0.7, 0.0, 0.9, 0.7])
    embeddings = torch.zeros(5, 2)
    assert pick_seeds(embeddings, scores, 3, diversity=0).tolist() == [3, 1, 4]
    assert pick_seeds(embeddings, scores, 100, diversity=0).tolist() == [3, 1, 4, 0]


def test_seeds_with_great_diversity_are_the_farthest_points():
    embeddings = torch.tensor([[0.0], [1.0], [2.5], [10.0], [6.0]])
    scores = torch.tensor([0.5, 0.9, 0.5, 0.6, 0.5])
    # from 1: 10 is farthest; then 6 (4 from 10); then 2.5 (1.5 from 1); then 0
    assert pick_seeds(embeddings, scores, 9, diversity=1e4).tolist() == [1, 3, 4, 2, 0]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 2.0, 100.0])
def test_seeds_equal_the_formula(diversity):
    random = np.random.default_rng(1)
    embeddings, scores = random.normal(size=(30, 4)), random.uniform(size=30)
    expected = [int(scores.argmax())]
    for _ in range(11):
        distance = ((embeddings[:, None] - embeddings[expected]) ** 2).sum(2).min(1)
        with np.errstate(divide="ignore"):
            rank = np.log(scores) + (diversity * np.log(distance) if diversity else 0)
        rank[expected] = -np.inf
        expected.append(int(rank.argmax()))
    found = pick_seeds(torch.from_numpy(embeddings), torch.from_numpy(scores), 12, diversity=diversity)
    assert found.tolist() == expected


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, (9, 2), elements=st.sampled_from([0.0, 1.0, 2.0])), st.sampled_from([0.1, 1.0, 50.0])
)
def test_no_embedding_is_a_seed_twice(values, diversity):
    seeds = pick_seeds(torch.from_numpy(values), torch.linspace(0.1, 0.9, 9), 9, diversity=diversity)
    assert len({tuple(value) for value in values[seeds.numpy()].tolist()}) == len(seeds)
    assert len(seeds) == len(np.unique(values, axis=0))


def test_cells_without_score_are_no_seeds():
    assert pick_seeds(torch.eye(4), torch.zeros(4), 3, diversity=0.3).tolist() == []
    assert pick_seeds(torch.eye(4), torch.tensor([0, 0.2, 0, 0]), 3, diversity=0.3).tolist() == [1]
    assert pick_seeds(torch.eye(4), torch.ones(4), 0, diversity=0.3).tolist() == []


def test_seeds_refuse_bad_input():
    with pytest.raises(ShapeError, match="scores"):
        pick_seeds(torch.zeros(4, 2), torch.zeros(3), 1, diversity=0.3)
    with pytest.raises(ConfigError, match="diversity"):
        pick_seeds(torch.zeros(4, 2), torch.zeros(4), 1, diversity=-1.0)
    with pytest.raises(ConfigError, match="count"):
        pick_seeds(torch.zeros(4, 2), torch.zeros(4), -1, diversity=0.0)


def test_components_are_those_of_the_seeds():
    mask = bits("1101", "0010", "1011").numpy()
    found = seed_components(np.stack([mask, mask, mask]), [0, 3, 11])
    assert found[0].tolist() == bits("1100", "0000", "0000").tolist()
    assert found[1].tolist() == bits("0001", "0000", "0000").tolist()
    assert found[2].tolist() == bits("0000", "0010", "0011").tolist()
    assert seed_components(np.zeros((0, 3, 4), bool), []).shape == (0, 3, 4)


def test_duplicates_of_a_class_go_and_other_classes_stay():
    masks = bits("1110", "1111", "0011", "1110")
    scores, classes = torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 0, 1])
    # 0 overlaps 1 by 3/4; 2 overlaps 1 by exactly 1/2, and 3 is of another class
    assert suppress_masks(masks, scores, classes).tolist() == [1, 2, 3]
    assert suppress_masks(masks, scores, classes, max_iou=0.4).tolist() == [1, 3]
    assert suppress_masks(masks[:0], scores[:0], classes[:0]).tolist() == []


def test_a_suppressed_mask_suppresses_nobody():
    masks = bits("111100", "011110", "001111")  # neighbours overlap by 3/5, the ends by 1/3
    found = suppress_masks(masks, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64))
    assert found.tolist() == [0, 2]


@settings(deadline=None, max_examples=50)
@given(
    arrays(bool, (7, 2, 4)),
    arrays(np.float32, 7, elements=st.floats(0, 1, width=32)),
    arrays(np.int64, 7, elements=st.integers(0, 1)),
)
def test_suppression_equals_the_greedy_loop(masks, scores, classes):
    iou = mask_iou(masks, masks)
    expected: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(classes[other] != classes[index] or iou[index, other] <= 0.5 for other in expected):
            expected.append(int(index))
    found = suppress_masks(
        torch.from_numpy(masks).flatten(1), torch.from_numpy(scores), torch.from_numpy(classes)
    )
    assert found.tolist() == expected


def test_suppression_refuses_other_counts():
    with pytest.raises(ShapeError, match="suppression"):
        suppress_masks(torch.zeros(2, 4, dtype=torch.bool), torch.zeros(3), torch.zeros(2, dtype=torch.int64))
