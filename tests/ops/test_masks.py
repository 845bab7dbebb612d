"""Masks: IoU, label images and components, with answers that can be counted on the fingers."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.masks import encode_mask, instances_from_index, label_from_index, mask_boxes, mask_iou


def test_iou_of_squares():
    a = np.array([[[1, 1], [0, 0]], [[1, 1], [1, 0]]], bool)
    b = np.array([[[1, 1], [0, 0]], [[0, 1], [1, 1]], [[0, 0], [0, 1]]], bool)
    np.testing.assert_allclose(mask_iou(a, b), [[1, 1 / 4, 0], [2 / 3, 2 / 4, 0]], rtol=1e-6)
    assert mask_iou(a, b).dtype == np.float32


def test_iou_of_empty_masks_is_zero():
    empty = np.zeros((2, 3, 3), bool)
    assert (mask_iou(empty, empty) == 0).all()
    assert mask_iou(empty[:0], empty).shape == (0, 2)
    assert mask_iou(empty, empty[:0]).shape == (2, 0)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3), (1, 4, 3)])
def test_iou_refuses_other_sizes(shape):
    with pytest.raises(ShapeError, match="one image"):
        mask_iou(np.zeros((2, 3, 3), bool), np.zeros(shape, bool))


@settings(deadline=None)
@given(arrays(bool, (3, 4, 5)), arrays(bool, (2, 4, 5)))
def test_iou_equals_counting(masks_a, masks_b):
    counted = [[(a & b).sum() / max((a | b).sum(), 1) for b in masks_b] for a in masks_a]
    np.testing.assert_array_equal(mask_iou(masks_a, masks_b), np.array(counted, np.float32))


@settings(deadline=None)
@given(arrays(bool, (2, 4, 5)))
def test_boxes_are_the_smallest_that_hold_the_masks(masks):
    for mask, (top, left, bottom, right) in zip(masks, mask_boxes(masks).tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        expected = (
            (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) if len(rows) else (0, 0, 0, 0)
        )
        assert (top, left, bottom, right) == expected


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 5))))
@example(np.zeros((2, 3), bool))
@example(np.ones((2, 3), bool))
def test_run_lengths_are_those_of_coco(mask):
    assert encode_mask(mask) == rle.encode(np.asfortranarray(mask, dtype=np.uint8))


def test_label_from_index():
    label = label_from_index(np.array([[0, 1], [2, 2]]), np.array([14, 3]))
    assert label.tolist() == [[0, 15], [4, 4]] and label.dtype == np.uint8


@pytest.mark.parametrize("class_id", [-1, 254])
def test_label_refuses_classes_that_do_not_fit(class_id):
    with pytest.raises(ShapeError, match="class ids"):
        label_from_index(np.zeros((1, 1), int), np.array([class_id]))


def test_components_split_at_diagonals_and_small_ones_score_zero():
    index = np.array([[1, 1, 0, 2], [1, 0, 1, 2], [0, 0, 0, 0]])
    score = np.array([[0.4, 0.5, 0.0, 0.9], [0.6, 0.0, 0.8, 0.7], [0.0, 0.0, 0.0, 0.0]], np.float32)
    instances = instances_from_index(index, score, np.array([7, 3]), min_area=2 / 12)
    assert instances.class_ids.tolist() == [7, 7, 3]
    np.testing.assert_allclose(instances.scores, [0.6, 0, 0.9])
    assert [np.argwhere(mask).tolist() for mask in instances.masks] == [
        [[0, 0], [0, 1], [1, 0]],
        [[1, 2]],
        [[0, 3], [1, 3]],
    ]
    mean = instances_from_index(index, score, np.array([7, 3]), min_area=2 / 12, instance_score="mean")
    np.testing.assert_allclose(mean.scores, [0.5, 0, 0.8])
    assert (mean.masks == instances.masks).all()
    kept = instances_from_index(index, score, np.array([7, 3]), min_area=2 / 12, keep_small=False)
    assert kept.class_ids.tolist() == [7, 3] and (kept.masks == instances.masks[[0, 2]]).all()


def test_an_enclosed_component_is_not_part_of_its_surrounding():
    index = np.ones((5, 5), int)
    index[1:4, 1:4] = 0
    index[2, 2] = 1
    instances = instances_from_index(index, np.ones((5, 5), np.float32), np.array([0]), min_area=0)
    assert [int(mask.sum()) for mask in instances.masks] == [16, 1]
    assert instances.masks[1, 2, 2]


@settings(deadline=None)
@given(arrays(np.int64, (5, 6), elements=st.integers(0, 3)))
def test_components_partition_the_foreground(index):
    instances = instances_from_index(index, index.astype(np.float32), np.array([0, 1, 2]))
    assert (instances.masks.sum(0) == (index > 0)).all()
    for mask, class_id in zip(instances.masks, instances.class_ids, strict=True):
        assert set(index[mask]) == {class_id + 1}


def test_no_foreground_gives_no_instances():
    instances = instances_from_index(np.zeros((2, 3), int), np.zeros((2, 3), np.float32), np.array([5]))
    assert len(instances) == 0 and instances.size == (2, 3)


def test_components_refuse_wrong_input():
    with pytest.raises(ShapeError, match="one image"):
        instances_from_index(np.zeros((2, 3), int), np.zeros((3, 2), np.float32), np.array([0]))
    with pytest.raises(ShapeError, match="map 2"):
        instances_from_index(np.full((2, 2), 2), np.zeros((2, 2), np.float32), np.array([0]))
