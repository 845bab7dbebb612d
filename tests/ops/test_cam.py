"""Merging of scales, and the labels that maps give without refinement."""

import numpy as np
import pytest
import torch

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.cam import cam_components, cam_index, cam_label, merge_cams, merge_scales
from irn_pipeline.structures import Cam


def test_constant_maps_add_up_and_are_divided_by_their_sum():
    maps = [torch.full((2, 2, 2), 1.0), torch.full((2, 3, 1), 2.0)]
    maps[1][1] = 0
    cam, high_res_cam = merge_scales(maps, (17, 30))
    assert cam.shape == (2, 5, 8) and high_res_cam.shape == (2, 17, 30)
    for merged in (cam, high_res_cam):
        np.testing.assert_allclose(merged[0], 3 / (3 + 1e-5), rtol=1e-6)
        np.testing.assert_allclose(merged[1], 1 / (1 + 1e-5), rtol=1e-6)


def test_high_res_is_upsampled_to_a_multiple_of_16_and_cropped():
    ramp = torch.tensor([[[0.0, 1.0]]])
    _, high_res_cam = merge_scales([ramp], (16, 20))
    # 2 cells over 32 pixels: pixel x looks at (x + 1/2) / 16 - 1/2, so that the last of the 20 gets 23/32.
    expected = torch.clamp((torch.arange(20) + 0.5) / 16 - 0.5, 0, 1)
    np.testing.assert_allclose(high_res_cam[0, 3], expected / (23 / 32 + 1e-5), atol=1e-6)


def test_empty_map_stays_zero_and_no_class_gives_no_maps():
    cam, high_res_cam = merge_scales([torch.zeros(1, 2, 2)], (9, 9))
    assert not cam.any() and not high_res_cam.any()
    cam, high_res_cam = merge_scales([torch.zeros(0, 2, 2)], (9, 10))
    assert cam.shape == (0, 3, 3) and high_res_cam.shape == (0, 9, 10)


def test_merge_does_not_change_its_input():
    maps = [torch.ones(1, 3, 3), torch.ones(1, 3, 3)]
    merge_scales(maps, (12, 12))
    assert all((scale == 1).all() for scale in maps)


@pytest.mark.parametrize("maps", [[], [torch.zeros(1, 2, 2), torch.zeros(2, 2, 2)], [torch.zeros(2, 2)]])
def test_merge_refuses_unequal_stacks(maps):
    with pytest.raises(ShapeError, match="one K"):
        merge_scales(maps, (8, 8))


def one_cam(class_ids: list[int], *values: list[float]) -> Cam:
    high_res = np.array(values, np.float32)[:, None, :].repeat(2, 1)
    return Cam(np.array(class_ids), high_res[:, :1, ::4].copy(), high_res)


def test_merged_maps_are_geometric_means_by_class_over_their_maximum():
    first = one_cam([3, 7], [1, 0.5, 0, 0.2, 0.4], [0.9, 0.9, 0.9, 0.9, 0.9])
    second = one_cam([7, 3], [0.4, 0.4, 0.1, 0.4, 0.4], [0.25, 0.5, 1, 0, 0.1])
    merged = merge_cams([first, second])
    assert merged.class_ids.tolist() == [3, 7]
    np.testing.assert_allclose(merged.high_res_cam[0, 0], np.array([0.5, 0.5, 0, 0, 0.2]) / 0.5, atol=1e-4)
    np.testing.assert_allclose(merged.high_res_cam[1, 1], [1, 1, 0.5, 1, 1], atol=1e-4)
    np.testing.assert_allclose(merged.cam[0, 0], [1, 0.4], atol=1e-4)


def test_merging_alike_maps_changes_nothing_but_the_scale():
    cam = one_cam([3], [0.25, 0.5, 0, 0.1, 0.4])
    np.testing.assert_allclose(merge_cams([cam, cam, cam]).high_res_cam, 2 * cam.high_res_cam, atol=1e-4)


def test_merging_maps_of_no_class_gives_none():
    empty = Cam(np.zeros(0, np.int64), np.zeros((0, 1, 2), np.float32), np.zeros((0, 2, 5), np.float32))
    merged = merge_cams([empty, empty])
    assert merged.cam.shape == (0, 1, 2) and merged.high_res_cam.shape == (0, 2, 5)


def test_merging_refuses_other_classes_and_sizes():
    cam = one_cam([3], [0.25, 0.5, 0, 0.1, 0.4])
    with pytest.raises(ShapeError, match=r"same classes, got \[3\] and \[4\]"):
        merge_cams([cam, one_cam([4], [0.25, 0.5, 0, 0.1, 0.4])])
    with pytest.raises(ShapeError, match="one size"):
        merge_cams([cam, one_cam([3], [0.25, 0.5, 0, 0.1])])
    with pytest.raises(ShapeError, match="got none"):
        merge_cams([])


MAPS = np.array([[[0.1, 0.5, 0.15], [0.9, 0.2, 0.0]], [[0.0, 0.4, 0.10], [0.3, 0.8, 0.1]]], np.float32)


def test_label_is_the_largest_map_above_the_threshold():
    assert cam_label(MAPS, np.array([4, 11]), 0.15).tolist() == [[0, 5, 0], [5, 12, 0]]


def test_a_map_equal_to_the_threshold_is_background():
    index, best = cam_index(np.full((1, 1, 2), 0.5, np.float32), 0.5)
    assert index.tolist() == [[0, 0]] and best.tolist() == [[0.5, 0.5]]


def test_label_equals_argmax_with_a_background_layer():
    maps = np.random.default_rng(0).random((4, 9, 11), np.float32)
    layers = np.concatenate([np.full((1, 9, 11), 0.7, np.float32), maps])
    expected = np.array([0, 3, 1, 20, 10])[layers.argmax(0)]
    assert (cam_label(maps, np.array([2, 0, 19, 9]), 0.7) == expected).all()


def test_components_are_scored_by_their_maximum():
    instances = cam_components(MAPS, np.array([4, 11]), 0.15)
    assert instances.class_ids.tolist() == [4, 4, 11]
    np.testing.assert_allclose(instances.scores, [0.5, 0.9, 0.8])


def test_small_components_are_left_out():
    maps = np.zeros((1, 10, 30), np.float32)
    maps[0, 0, :2] = 0.9  # 2 of 300 pixels: below 1 %
    maps[0, 5, :3] = 0.6  # exactly 1 %
    instances = cam_components(maps, np.array([0]), 0.3)
    np.testing.assert_allclose(instances.scores, [0.6])


def test_picture_without_classes():
    none = np.zeros((0, 3, 4), np.float32)
    assert not cam_label(none, np.zeros(0, int), 0.2).any()
    assert len(cam_components(none, np.zeros(0, int), 0.2)) == 0


@pytest.mark.parametrize("function", [cam_label, cam_components])
def test_classes_must_match_maps(function):
    with pytest.raises(ShapeError, match="3 classes"):
        function(MAPS, np.array([1, 2, 3]), 0.2)
    with pytest.raises(ShapeError, match="high_res_cam"):
        cam_index(MAPS[0], 0.2)
