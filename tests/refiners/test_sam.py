"""Merging masks into labels, prompts from masks and parts of masks, with answers that can be counted."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.refiners.sam_merge import merge_masks
from irn_pipeline.refiners.sam_prompts import (
    box_prompts,
    mask_confidence,
    mask_prompts,
    octile_distance,
    point_prompts,
    split_mask,
)
from irn_pipeline.structures import IGNORE


def drawn(*rows: str) -> np.ndarray:
    """Label from digits, "." for 0 and "?" for unknown."""
    values = {".": 0, "?": IGNORE}
    return np.array(
        [[values.get(mark, 0) or int(mark.isdigit() and mark) for mark in row] for row in rows], np.uint8
    )


def merged_by_hand(label: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """The default rule, mask after mask."""
    out, free = np.zeros_like(label), list(range(len(masks)))
    for value in sorted(set(label.flat) - {0}):
        region = label == value
        rest = region.copy()
        taken = []
        for m in free:
            mask = masks[m]
            rest &= ~mask
            common = (region & mask).sum()
            if mask.any() and (2 * common > mask.sum() or 20 * common >= 17 * region.sum()):
                taken.append(m)
        out[rest] = value
        for m in taken:
            out[masks[m]] = value
            free.remove(m)
    return out


LABELS = arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, 4, 200]))
MASKS = arrays(np.bool_, st.tuples(st.integers(0, 6), st.just(5), st.just(6)))


@settings(deadline=None, max_examples=300)
@given(LABELS, MASKS)
def test_merging_is_that_of_a_loop(label, masks):
    np.testing.assert_array_equal(merge_masks(label, masks), merged_by_hand(label, masks))


@settings(deadline=None, max_examples=100)
@given(LABELS, MASKS, st.randoms())
def test_order_of_masks_does_not_matter(label, masks, random):
    shuffled = list(masks)
    random.shuffle(shuffled)
    for rule in ("max_iou", "max_iou_imp", "max_iou_imp2"):
        np.testing.assert_array_equal(
            merge_masks(label, masks, rule=rule), merge_masks(label, shuffled, rule=rule)
        )


@settings(deadline=None, max_examples=100)
@given(LABELS)
def test_no_masks_and_the_labels_own_regions_change_nothing(label):
    np.testing.assert_array_equal(merge_masks(label, []), label)
    regions = [label == value for value in np.unique(label)]
    np.testing.assert_array_equal(merge_masks(label, regions), label)


@pytest.mark.parametrize(("covered", "taken"), [(2, False), (3, True)])
def test_a_mask_is_taken_when_more_than_half_of_it_is_the_class(covered, taken):
    label = np.zeros((4, 10), np.uint8)
    label[2:], label[0, :covered] = 3, 3
    mask = np.zeros((4, 10), bool)
    mask[0, :4] = True
    expected = [[3] * 4 if taken else [0] * 4]
    assert merge_masks(label, [mask])[:1, :4].tolist() == expected


@pytest.mark.parametrize(("held", "taken"), [(16, False), (17, True)])
def test_a_mask_is_taken_when_it_holds_85_of_100_of_the_class(held, taken):
    label = np.zeros((4, 20), np.uint8)
    label[0] = 7
    mask = np.zeros((4, 20), bool)
    mask[0, :held], mask[1:] = True, True
    assert (merge_masks(label, [mask])[2] == 7).all() == taken
    assert not (merge_masks(label, [mask], rule="max_iou_imp")[2] == 7).any()


def test_unknown_pixels_stay_unless_a_taken_mask_covers_them():
    label = drawn("11??", "....")
    mask = drawn("111.", "....") > 0
    np.testing.assert_array_equal(merge_masks(label, [mask]), drawn("111?", "...."))
    np.testing.assert_array_equal(merge_masks(label, []), label)


def test_large_masks_can_be_left_out():
    label = drawn("12..", "....")
    whole = np.ones((2, 4), bool)
    np.testing.assert_array_equal(merge_masks(label, [whole]), drawn("1211", "1111"))
    np.testing.assert_array_equal(merge_masks(label, [whole], max_area=0.5), label)


def test_what_cannot_be_merged_is_refused():
    label = drawn("12..")
    with pytest.raises(ShapeError, match="label's size"):
        merge_masks(label, [np.ones((2, 4), bool)])
    with pytest.raises(ShapeError, match="uint8"):
        merge_masks(label.astype(np.int64), [])
    with pytest.raises(ConfigError, match="max_iou_imp2"):
        merge_masks(label, [], rule="best")


def distance_by_search(mask: np.ndarray) -> np.ndarray:
    """Dijkstra over the eight neighbours."""
    distance = np.where(mask, 1e10, 0.0)
    queue = [(0.0, int(y), int(x)) for y, x in np.argwhere(~mask)]
    while queue:
        length, y, x = heapq.heappop(queue)
        if length > distance[y, x]:
            continue
        for dy, dx in np.argwhere(np.ones((3, 3))) - 1:
            to = (y + dy, x + dx)
            if 0 <= to[0] < mask.shape[0] and 0 <= to[1] < mask.shape[1]:
                longer = length + np.hypot(dy, dx)
                if longer < distance[to]:
                    distance[to] = longer
                    heapq.heappush(queue, (longer, *map(int, to)))
    return distance


@settings(deadline=None, max_examples=100)
@given(
    arrays(
        np.bool_,
        st.tuples(st.integers(1, 7), st.integers(1, 7)),
        elements=st.sampled_from([True] * 6 + [False]),
    )
)
def test_distance_is_that_of_a_search(mask):
    np.testing.assert_allclose(octile_distance(mask[None])[0], distance_by_search(mask), atol=1e-5)


SOME_MASKS = arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(2, 8), st.integers(2, 8))).filter(
    lambda masks: masks.any((1, 2)).all()
)


@settings(deadline=None, max_examples=100)
@given(SOME_MASKS)
def test_points_lie_on_their_side_and_boxes_hold_the_mask(masks):
    points, labels = point_prompts(masks, drop_covered=True)
    for mask, (positive, negative), (yes, no), box in zip(
        masks, points, labels, box_prompts(masks), strict=True
    ):
        assert mask[positive[1], positive[0]]
        assert yes == 1
        left, top, right, bottom = box
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), columns.max(), rows.max()] == [left, top, right, bottom]
        if mask[top:bottom, left:right].all():
            assert no == -1
        else:
            assert no == 0
            assert not mask[negative[1], negative[0]]
            assert top <= negative[1] < bottom
            assert left <= negative[0] < right


def test_a_negative_point_without_ground_is_that_of_the_original_or_none():
    points, labels = point_prompts(np.ones((1, 3, 4), bool))
    assert points.tolist() == [[[0, 0], [0, 0]]]
    assert labels.tolist() == [[1, 0]]
    assert point_prompts(np.ones((1, 3, 4), bool), drop_covered=True)[1].tolist() == [[1, -1]]


def test_the_first_of_equally_deep_pixels_is_the_point():
    mask = np.zeros((1, 9, 14), bool)
    mask[0, 1:8, 1:13] = True
    assert point_prompts(mask)[0][0, 0].tolist() == [4, 4]


def test_confidence_is_one_in_the_middle_and_falls_with_gamma():
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 3:16, 4:25] = True
    wide, narrow = mask_confidence(mask, 1), mask_confidence(mask, 8)
    assert wide.max() == narrow.max() == 1
    assert (narrow <= wide).all()
    assert narrow.sum() < wide.sum()
    assert (wide[~mask] == 0).all()


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (17, 17), (3, 50)])
def test_prompts_have_the_sign_of_the_mask_within_the_strength(size):
    mask = np.zeros((1, *size), bool)
    mask[0, 1 : size[0] - 1, 2 : size[1] // 2] = True
    (prompt,) = mask_prompts(mask)
    assert prompt.shape == (256, 256)
    assert np.abs(prompt).max() <= 30
    scale = 256 / max(size)
    centres = [np.minimum(((np.arange(side) + 0.5) * scale).astype(int), 255) for side in size]
    assert ((prompt[np.ix_(*centres)] > 0) == mask[0]).all()
    assert (prompt[int(size[0] * scale) + 1 :] == -30).all()
    assert (prompt[:, int(size[1] * scale) + 1 :] == -30).all()


def test_prompts_of_several_masks_are_those_of_each():
    masks = np.zeros((2, 20, 24), bool)
    masks[0, 2:9, 3:11], masks[1, 5:, 12:] = True, True
    for together, mask in zip(mask_prompts(masks), masks, strict=True):
        np.testing.assert_array_equal(together, mask_prompts(mask[None])[0])


def test_no_masks_give_no_prompts():
    none = np.zeros((0, 5, 6), bool)
    assert point_prompts(none)[0].shape == (0, 2, 2)
    assert box_prompts(none).shape == (0, 4)
    assert mask_prompts(none).shape == (0, 256, 256)


def test_empty_masks_and_wrong_values_are_refused():
    masks = np.zeros((3, 5, 6), bool)
    masks[0, 1, 1] = True
    for prompts in (point_prompts, box_prompts, mask_prompts):
        with pytest.raises(ShapeError, match=r"\[1, 2\] are empty"):
            prompts(masks)
        with pytest.raises(ShapeError, match="must be"):
            prompts(masks[0])
    with pytest.raises(ConfigError, match="gamma"):
        mask_prompts(masks[:1], gamma=0)


def test_parts_far_apart_stay_apart_and_near_ones_join():
    apart = drawn(*["11................11"] * 3) > 0
    found = split_mask(apart)
    assert [part.sum() for part in found] == [6, 6]
    near = drawn("1111.11111", "1111.11111", "1111.11111") > 0
    (joined,) = split_mask(near)
    np.testing.assert_array_equal(joined, near)
    diagonal = drawn("111...", "111...", "...111", "...111") > 0
    assert len(split_mask(diagonal)) == 1


def test_small_components_are_dropped_where_there_are_several():
    assert [part.sum() for part in split_mask(drawn("111......1", "111.......") > 0)] == [6]
    assert [part.sum() for part in split_mask(drawn("1.........", "..........") > 0)] == [1]
    assert len(split_mask(drawn("1.........", ".........1") > 0)) == 0
    assert split_mask(np.zeros((3, 4), bool)).shape == (0, 3, 4)


@settings(deadline=None, max_examples=100)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_parts_are_disjoint_and_within_the_mask(mask):
    parts = split_mask(mask, min_pixels=1)
    np.testing.assert_array_equal(parts.sum(0), mask)


def test_a_mask_to_split_is_flat():
    with pytest.raises(ShapeError, match="split"):
        split_mask(np.zeros((2, 3, 4), bool))
