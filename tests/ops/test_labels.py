"""Label synthesis: streaming against the whole stack, linearity of the walk, small and empty cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.labels import (
    SynthesisParams,
    argmax_upsampled,
    class_maps_from_instance_maps,
    instance_cams,
    instance_label,
    labels_from_scores,
    labels_over_thresholds,
    semantic_label,
    synthesize,
    walk_scores,
)
from irn_pipeline.ops.random_walk import random_walk


def whole_stack(maps, size, bg_threshold):
    """The definition: all maps at full size, one maximum, one argmax with a background layer."""
    full = interpolate(maps[None], scale_factor=4, mode="bilinear", align_corners=False)
    full = full[0, :, : size[0], : size[1]]
    full = full / full.max()
    layers = torch.cat([torch.full((1, *size), bg_threshold), full])
    index = layers.argmax(0)
    return index.numpy(), layers.gather(0, index[None])[0].masked_fill(index == 0, 0).numpy()


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    count=st.integers(1, 6),
    bg_threshold=st.sampled_from([0.0, 0.1, 0.25, 0.6]),
)
def test_streaming_equals_the_whole_stack(seed, height, width, count, bg_threshold):
    rng = np.random.default_rng(seed)
    grid = (-(-height // 4), -(-width // 4))
    maps = rng.random((count, *grid)) ** rng.integers(1, 12, (count, 1, 1)) * (
        rng.random((count, *grid)) < 0.7
    )
    maps[0, 0, 0] = 0.5
    maps = torch.from_numpy(maps.astype(np.float32))
    index, score = argmax_upsampled(maps, (height, width), bg_threshold)
    expected_index, expected_score = whole_stack(maps, (height, width), bg_threshold)
    assert (index == expected_index).all()
    np.testing.assert_allclose(score, expected_score, atol=1e-6)


def test_score_is_relative_to_the_largest_upsampled_value():
    # One cell of 4 x 4 pixels upsamples to a constant, so that 1/4 of the maximum is exactly background.
    maps = torch.tensor([[[2.0]], [[8.0]]])
    index, score = argmax_upsampled(maps, (3, 4), 0.25)
    assert (index == 2).all() and (score == 1).all()
    assert index.shape == (3, 4) and index.dtype == np.int32 and score.dtype == np.float32


@pytest.mark.parametrize("count", [0, 3])
def test_empty_maps_are_background(count):
    index, score = argmax_upsampled(torch.zeros(count, 2, 3), (8, 9), 0.25)
    assert not index.any() and not score.any()


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 3), (1, 3, 2)])
def test_maps_of_another_grid_are_refused(shape):
    with pytest.raises(ShapeError, match="maps of an image"):
        argmax_upsampled(torch.zeros(shape), (8, 9), 0.25)


def test_instance_cams_cut_the_maps_and_skip_empty_ones():
    cam = np.array([[[0.5, 0.6, 0.0]], [[0.0, 0.0, 0.7]], [[0.0, 0.0, 0.0]]], np.float32)
    maps, owners = instance_cams(cam, np.array([[0, 1, 1]]))
    np.testing.assert_allclose(maps, [[[0.5, 0, 0]], [[0, 0.6, 0]], [[0, 0, 0.7]]])
    assert owners.tolist() == [0, 0, 1]
    whole = class_maps_from_instance_maps(torch.from_numpy(maps), owners, 3)
    assert (whole.numpy() == cam).all()


def test_instance_cams_equal_the_product_with_one_hot_ids():
    rng = np.random.default_rng(0)
    cam = rng.random((3, 6, 7), np.float32)
    ids = rng.integers(0, 4, (6, 7))
    maps, owners = instance_cams(cam, ids)
    one_hot = ids == np.arange(4)[:, None, None]
    assert (maps == (cam[:, None] * one_hot[None]).reshape(12, 6, 7)).all()
    assert owners.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(ShapeError, match="differ in size"):
        instance_cams(cam, ids[:3])


def test_walk_of_the_sum_is_the_sum_of_the_walks():
    rng = np.random.default_rng(4)
    cam = rng.random((2, 12, 13), np.float32)
    maps, owners = instance_cams(cam, rng.integers(0, 3, (12, 13)))
    boundary = torch.from_numpy(rng.random((12, 13), np.float32) * 0.3)
    parts = class_maps_from_instance_maps(random_walk(torch.from_numpy(maps), boundary), owners, 2)
    whole = random_walk(torch.from_numpy(cam), boundary)
    assert float((parts - whole).abs().max()) < 1e-4 * float(whole.max())


@pytest.fixture
def two_objects():
    """Two squares of one class, side by side, parted by a boundary; 48 x 96 pixels."""
    size = (48, 96)
    cam = np.zeros((1, 12, 24), np.float32)
    cam[0, 3:9, 2:10] = cam[0, 3:9, 14:22] = 1
    boundary = np.zeros((12, 24), np.float32)
    boundary[:, 11:13] = 0.98
    displacement = np.zeros((2, 12, 24), np.float32)
    rows, columns = np.indices((12, 24))
    displacement[0] = 5 - rows
    displacement[1] = np.where(columns < 12, 5, 18) - columns
    return cam, boundary, displacement, size


def test_two_objects_of_one_class_become_two_instances(two_objects):
    cam, boundary, displacement, size = two_objects
    label, instances = synthesize(cam, np.array([6]), boundary, displacement, size)
    assert set(np.unique(label)) <= {0, 7} and label[24, 24] == label[24, 72] == 7
    large = instances.select(instances.scores > 0)
    assert large.class_ids.tolist() == [6, 6] and large.scores.max() == 1
    assert sorted((bool(mask[24, 24]), bool(mask[24, 72])) for mask in large.masks) == [
        (False, True),
        (True, False),
    ]
    assert ((instances.masks.sum(0) > 0) == (label > 0)).mean() > 0.95


def test_parameters_reach_their_place(two_objects):
    cam, boundary, displacement, size = two_objects
    cam = cam * np.where(np.arange(24) < 12, 1.0, 0.5).astype(np.float32)
    arguments = (cam, np.array([6]), boundary, displacement, size)
    label, instances = synthesize(*arguments, SynthesisParams(cam_power=8))
    assert label[24, 24] == 7 and label[24, 72] == 0  # 0.5^8 is far below the background's score
    assert len(instances.select(instances.scores > 0)) == 1
    assert synthesize(*arguments)[0][24, 72] == 7
    label, instances = synthesize(*arguments, SynthesisParams(semantic_bg_threshold=1.0))
    assert not label.any() and len(instances) > 0
    _, none = synthesize(*arguments, SynthesisParams(min_area=1.0))
    assert len(none) > 0 and not none.scores.any()
    _, dropped = synthesize(*arguments, SynthesisParams(min_area=1.0, keep_fragments=False))
    assert len(dropped) == 0
    by_maximum, by_mean = (
        synthesize(*arguments, SynthesisParams(instance_score=kind))[1] for kind in ("max", "mean")
    )
    assert (by_maximum.masks == by_mean.masks).all() and by_maximum.scores.max() == 1
    counted = by_maximum.scores > 0
    assert (by_mean.scores[counted] < by_maximum.scores[counted]).all() and by_mean.scores[counted].min() > 0


@pytest.mark.parametrize("classes", [0, 2])
def test_no_activation_gives_an_empty_label(classes):
    label, instances = synthesize(
        np.zeros((classes, 2, 3), np.float32),
        np.arange(classes),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 2, 3), np.float32),
        (8, 10),
    )
    assert label.shape == (8, 10) and not label.any()
    assert len(instances) == 0 and instances.size == (8, 10)


def test_one_pixel_picture():
    one = np.ones((1, 1, 1), np.float32)
    label, instances = synthesize(one, np.array([2]), 0 * one[0], np.zeros((2, 1, 1), np.float32), (1, 1))
    assert label.tolist() == [[3]] and instances.masks.tolist() == [[[True]]]
    np.testing.assert_allclose(instances.scores, [1])


def test_both_label_kinds_from_the_same_maps():
    maps = torch.tensor([[[1.0]], [[0.5]]])
    assert (semantic_label(maps, np.array([4, 9]), (4, 4)) == 5).all()
    instances = instance_label(maps, np.array([4, 9]), (4, 4))
    assert instances.class_ids.tolist() == [4] and instances.masks.all()


def test_arrays_of_different_pictures_are_refused(two_objects):
    cam, boundary, displacement, size = two_objects
    with pytest.raises(ShapeError, match="49x101 image"):
        synthesize(cam, np.array([6]), boundary, displacement, (49, 101))
    with pytest.raises(ShapeError, match="2 classes"):
        synthesize(cam, np.array([6, 7]), boundary, displacement, size)
    with pytest.raises(ShapeError, match="boundary"):
        synthesize(cam, np.array([6]), boundary[1:], displacement, size)


def random_picture(seed):
    rng = np.random.default_rng(seed)
    size = (37, 46)
    grid = (10, 12)
    y, x = np.indices(grid)
    centres = rng.uniform(2, 8, (3, 2, 1, 1))
    cam = np.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 8).astype(np.float32)
    boundary = rng.random(grid, np.float32) * 0.5
    displacement = rng.normal(0, 2, (2, *grid)).astype(np.float32)
    return cam, np.array([7, 2, 4]), boundary, displacement, size


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_synthesis_is_walk_then_labels(seed):
    picture = random_picture(seed)
    params = SynthesisParams(
        exp_times=3, semantic_bg_threshold=0.3, instance_bg_threshold=0.2, min_area=0.005
    )
    label, instances = synthesize(*picture, params)
    walked, owners = walk_scores(*picture, params)
    # The plain way to the semantic label: walk the maps of whole classes.
    whole = random_walk(torch.from_numpy(picture[0]), torch.from_numpy(picture[2]), exp_times=3)
    assert (semantic_label(whole, picture[1], picture[4], bg_threshold=0.3) == label).mean() >= 0.999
    assert len(walked) == len(owners) > 3 and list(dict.fromkeys(owners.tolist())) == [7, 2, 4]
    again, parts = labels_from_scores(walked, owners, picture[4], params)
    assert (again == label).all() and (parts.masks == instances.masks).all()


@pytest.mark.parametrize(("seed", "kind"), [(0, "max"), (1, "mean")])
def test_several_thresholds_equal_one_after_the_other(seed, kind):
    picture = random_picture(seed)
    walked, owners = walk_scores(*picture, SynthesisParams(exp_times=3))
    thresholds = (0.3, 0.0, 0.1, 0.7, 1.0)
    found = list(
        labels_over_thresholds(
            walked,
            owners,
            picture[4],
            thresholds,
            SynthesisParams(min_area=0.005, instance_score=kind),
        )
    )
    for threshold, (label, instances) in zip(thresholds, found, strict=True):
        params = SynthesisParams(
            semantic_bg_threshold=threshold,
            instance_bg_threshold=threshold,
            min_area=0.005,
            instance_score=kind,
        )
        expected, parts = labels_from_scores(walked, owners, picture[4], params)
        assert (label == expected).all()
        assert (instances.masks == parts.masks).all() and (instances.scores == parts.scores).all()
        assert (instances.class_ids == parts.class_ids).all()
    areas = [int((label > 0).sum()) for label, _ in found]
    assert areas[1] >= areas[2] > areas[0] > areas[3] > areas[4] == 0


def test_no_map_gives_empty_labels_for_every_threshold():
    found = list(labels_over_thresholds(torch.zeros(0, 2, 3), np.zeros(0, np.int64), (8, 10), (0.1, 0.5)))
    assert len(found) == 2
    assert all(not label.any() and len(parts) == 0 and parts.size == (8, 10) for label, parts in found)
