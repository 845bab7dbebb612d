import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irn_pipeline.errors import IrnError, ShapeError
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.ops.spatial_clustering import (
    UNIT_X,
    UNIT_Y,
    cluster_instances,
    cluster_pixels,
    instances_at,
)
from irn_pipeline.structures import Instances

UNIT = 1 / 1023


def grid(size):
    """(2, H, W) with the same unit both ways, so that discs have one radius."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return np.stack([x, y]) * np.float32(UNIT)


def disc(size, centre, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def oracle(masks, q=1.0, channels=1):
    """Fields of a network that knows the masks: every pixel points to the centroid, r = sqrt(area / pi)."""
    size = masks.shape[1:]
    embedding, coordinates = grid(size), grid(size)
    bandwidth, seed = np.zeros((channels, *size), np.float32), np.zeros(size, np.float32)
    for mask in masks:
        embedding[:, mask] = coordinates[:, mask].mean(1)[:, None]
        radius = math.sqrt(mask.sum() / math.pi) * UNIT
        bandwidth[:, mask] = math.log(math.log(2) / radius**2) / 10
        seed[mask] = q
    return embedding, bandwidth, seed


def sequential_twin(embedding, bandwidth, seed, min_pixels, seed_threshold, foreground_threshold):
    """The specification, a line for a line, over the whole picture in every step."""
    foreground = seed > foreground_threshold
    open_pixels, found = foreground.copy(), []
    sharpness = np.broadcast_to(np.exp(np.float32(10) * bandwidth), embedding.shape)
    steps = 0
    while open_pixels.sum() > min_pixels:
        at = np.unravel_index(np.where(open_pixels, seed, -1).argmax(), seed.shape)
        if seed[at] < seed_threshold:
            break
        steps += 1
        open_pixels[at] = False
        centre, sharp = embedding[(slice(None), *at)], sharpness[(slice(None), *at)]
        distance = (sharp[:, None, None] * (embedding - centre[:, None, None]) ** 2).sum(0)
        proposal = foreground & (np.exp(-distance.astype(np.float64)) > 0.5)
        if proposal.sum() > min_pixels and open_pixels[proposal].sum() / proposal.sum() > 0.5:
            found.append((proposal, seed[at]))
        open_pixels[proposal] = False
    return found, steps


@pytest.fixture
def discs():
    size = (60, 90)
    return np.stack([disc(size, (20, 20), 12), disc(size, (35, 52), 15), disc(size, (20, 78), 9)])


@pytest.mark.parametrize("channels", [1, 2])
def test_oracle_fields_give_the_discs_back(discs, channels):
    embedding, bandwidth, seed = oracle(discs, channels=channels)
    found = cluster_instances(embedding, bandwidth, seed[None], min_pixels=128, seed_threshold=0.9)
    assert len(found) == 3
    assert np.sort(mask_iou(found.masks, discs).max(0)).tolist() == [1.0, 1.0, 1.0]
    assert found.scores.tolist() == [1.0, 1.0, 1.0]


def test_seeds_below_the_threshold_start_nothing(discs):
    embedding, bandwidth, seed = oracle(discs, q=0.89)
    assert len(cluster_pixels(embedding, bandwidth, seed, min_pixels=128, seed_threshold=0.9)) == 0
    assert len(cluster_pixels(embedding, bandwidth, seed, min_pixels=128, seed_threshold=0.88)) == 3


def test_score_is_the_seed_times_the_mean():
    embedding = np.zeros((2, 2, 2), np.float32)
    seed = np.array([[0.9, 0.6], [0.8, 0.1]], np.float32)
    (cluster,) = cluster_pixels(embedding, np.ones((1, 2, 2), np.float32), seed, min_pixels=0)
    assert sorted(cluster.pixels.tolist()) == [0, 1, 2]
    assert cluster.score == pytest.approx(0.9 * (0.9 + 0.6 + 0.8) / 3)


def test_a_mask_needs_more_than_the_minimum():
    mask = np.ones((1, 4, 4), bool)
    fields = oracle(mask)
    embedding = np.zeros_like(fields[0])
    assert len(cluster_pixels(embedding, *fields[1:], min_pixels=15)) == 1
    assert cluster_pixels(embedding, *fields[1:], min_pixels=16) == []


def test_a_proposal_that_is_mostly_claimed_is_dropped_and_a_fresh_one_keeps_claimed_pixels():
    # Ten pixels on a line; the surest claims the first `reach`, the next one all ten.
    def run(reach):
        embedding = np.zeros((2, 1, 10), np.float32)
        embedding[0, 0, reach:] = 1.0
        bandwidth = np.full((1, 1, 10), 1.0, np.float32)
        bandwidth[0, 0, reach:] = -1.0
        seed = np.full((1, 10), 0.7, np.float32)
        seed[0, 0], seed[0, -1] = 0.9, 0.8
        return cluster_pixels(embedding, bandwidth, seed, min_pixels=2)

    assert [len(c.pixels) for c in run(3)] == [3, 10]  # beside the seed, 6 of 10 are fresh
    assert [len(c.pixels) for c in run(4)] == [4]  # 5 of 10 are not more than half


def test_bandwidths_follow_the_order_of_the_coordinates():
    # Wide in x, narrow in y: a row is claimed, a column is not.
    embedding = grid((21, 21))
    radius = np.array([30, 0.5]) * UNIT
    bandwidth = np.log(np.log(2) / radius**2)[:, None, None] / 10 * np.ones((2, 21, 21))
    seed = np.full((21, 21), 0.6, np.float32)
    seed[10, 10] = 0.9
    (first, *_) = cluster_pixels(embedding, bandwidth.astype(np.float32), seed, min_pixels=10)
    assert sorted(first.pixels.tolist()) == list(range(210, 231))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2]), st.integers(0, 30), st.floats(0.3, 0.95))
def test_equals_the_specification_read_literally(seed_of_rng, channels, min_pixels, seed_threshold):
    rng = np.random.default_rng(seed_of_rng)
    size = (int(rng.integers(1, 25)), int(rng.integers(1, 25)))
    embedding = grid(size) + rng.normal(0, 4 * UNIT, (2, *size)).astype(np.float32)
    bandwidth = rng.uniform(0.6, 1.2, (channels, *size)).astype(np.float32)
    seed = rng.random(size, np.float32)
    thresholds = {"seed_threshold": seed_threshold, "foreground_threshold": 0.4}
    expected, _ = sequential_twin(embedding, bandwidth, seed, min_pixels, **thresholds)
    found = cluster_pixels(embedding, bandwidth, seed, min_pixels=min_pixels, **thresholds)
    assert [sorted(c.pixels.tolist()) for c in found] == [np.flatnonzero(m).tolist() for m, _ in expected]
    assert [c.seed_prob for c in found] == [float(q) for _, q in expected]


def test_ends_within_as_many_steps_as_pixels_when_every_pixel_stands_alone():
    size = (20, 20)
    bandwidth = np.full((1, *size), 1.5, np.float32)
    seed = np.full(size, 0.95, np.float32)
    _, steps = sequential_twin(grid(size), bandwidth, seed, 0, 0.5, 0.5)
    assert steps == seed.size
    found = cluster_pixels(grid(size), bandwidth, seed, min_pixels=0)
    assert found == []  # a proposal of the seed alone holds no unclaimed pixel


def test_classes_are_clustered_apart_and_the_best_are_kept(discs):
    embedding, bandwidth, _ = oracle(discs)
    seeds = np.zeros((3, *discs.shape[1:]), np.float32)
    seeds[2][discs[0]], seeds[0][discs[1]], seeds[0][discs[2]] = 0.9, 0.8, 0.7
    found = cluster_instances(embedding, bandwidth, seeds, min_pixels=50)
    assert found.class_ids.tolist() == [2, 0, 0]
    assert np.allclose(found.scores, [0.81, 0.64, 0.49])
    assert (found.masks == discs).all()
    best = cluster_instances(embedding, bandwidth, seeds, min_pixels=50, max_instances=2)
    assert best.class_ids.tolist() == [2, 0]


def test_no_foreground_gives_no_instance():
    found = cluster_instances(
        grid((7, 9)), np.ones((2, 7, 9), np.float32), np.zeros((4, 7, 9), np.float32), min_pixels=0
    )
    assert len(found) == 0
    assert found.size == (7, 9)


def test_bad_maps_are_refused():
    good = grid((4, 5)), np.ones((1, 4, 5), np.float32), np.full((4, 5), 0.9, np.float32)
    with pytest.raises(ShapeError, match=r"got \(2, 4, 5\), \(1, 4, 5\) and \(5, 4\)"):
        cluster_pixels(good[0], good[1], good[2].T, min_pixels=0)
    with pytest.raises(ShapeError, match="one or two channels, got 3"):
        cluster_pixels(good[0], np.ones((3, 4, 5), np.float32), good[2], min_pixels=0)
    with pytest.raises(ShapeError, match=r"\(C, H, W\)"):
        cluster_instances(*good, min_pixels=0)
    with pytest.raises(IrnError, match="NaN"):
        cluster_pixels(good[0] * np.nan, *good[1:], min_pixels=0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("to_center", [True, False])
def test_centres_sampled_at_true_objects_need_no_seeds(discs, channels, to_center):
    embedding, bandwidth, seed = oracle(discs, q=0.6, channels=channels)
    embedding *= np.array([UNIT_X, UNIT_Y], np.float32)[:, None, None] / np.float32(UNIT)
    seeds = np.stack([np.zeros_like(seed), seed])
    truth = Instances(np.ones(3, np.float32), discs, np.array([1, 1, 0]))
    found = instances_at(embedding, bandwidth, seeds, truth, to_center=to_center)
    assert len(cluster_instances(embedding, bandwidth, seeds, min_pixels=0, seed_threshold=0.9)) == 0
    assert np.array_equal(found.masks[:2], discs[:2])
    assert not found.masks[2].any()  # the seed map of its class is empty
    assert found.class_ids.tolist() == [1, 1, 0]
    assert found.scores.tolist() == pytest.approx([0.6, 0.6, 0])


def test_sampled_centres_differ_where_pixels_agree_on_another_point_than_the_centroid(discs):
    embedding, bandwidth, seed = oracle(discs[:1])
    embedding[:, discs[0]] += 0.1  # 102 pixels away
    truth = Instances(np.ones(1, np.float32), discs[:1], np.zeros(1, np.int64))
    at_agreed, at_centroid = (
        instances_at(embedding, bandwidth, seed[None], truth, to_center=to_center)
        for to_center in (False, True)
    )
    assert np.array_equal(at_agreed.masks, discs[:1])
    assert not at_centroid.masks.any()


def test_true_masks_without_pixels_have_no_centre_and_others_sizes_are_refused(discs):
    embedding, bandwidth, seed = oracle(discs)
    nothing = Instances(np.ones(1, np.float32), np.zeros((1, *seed.shape), bool), np.zeros(1, np.int64))
    assert len(instances_at(embedding, bandwidth, seed[None], nothing, to_center=False)) == 0
    with pytest.raises(ShapeError, match="of one picture"):
        instances_at(embedding, bandwidth, seed[None], Instances.empty((2, 2)), to_center=False)
