from __future__ import annotations

import numpy as np
import pytest

from irn_pipeline.errors import ShapeError
from irn_pipeline.export.overlay import overlay_instances
from irn_pipeline.structures import Instances

GREY = np.full((7, 8, 3), 100, np.uint8)
WHITE, RED_TINT, GREEN_TINT = [255] * 3, [114, 50, 50], [50, 114, 50]


def instances(masks, class_ids, scores):
    return Instances(np.array(scores, np.float32), np.array(masks, np.bool_), np.array(class_ids, np.int64))


def box(top, left, bottom, right):
    mask = np.zeros((7, 8), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def test_tint_outline_and_untouched_pixels():
    image = GREY.copy()
    drawn = overlay_instances(image, instances([box(1, 1, 5, 6)], [0], [1]))
    assert drawn.dtype == np.uint8
    inside, whole = box(2, 2, 4, 5), box(1, 1, 5, 6)
    assert (drawn[inside] == RED_TINT).all()
    assert (drawn[whole & ~inside] == WHITE).all()
    assert (drawn[~whole] == 100).all()
    np.testing.assert_array_equal(image, GREY)


@pytest.mark.parametrize(("opacity", "value"), [(0.0, [100] * 3), (1.0, [128, 0, 0]), (0.25, [107, 75, 75])])
def test_opacity(opacity, value):
    drawn = overlay_instances(GREY, instances([box(0, 0, 7, 8)], [0], [1]), opacity=opacity)
    assert drawn[3, 3].tolist() == value


def test_the_best_is_on_top_and_hides_what_is_below():
    masks = [box(0, 0, 7, 6), box(0, 2, 7, 8)]
    first_best = overlay_instances(GREY, instances(masks, [0, 1], [0.9, 0.3]))
    second_best = overlay_instances(GREY, instances(masks, [0, 1], [0.3, 0.9]))
    assert first_best[3, 3].tolist() == first_best[3, 4].tolist() == RED_TINT
    assert second_best[3, 3].tolist() == second_best[3, 4].tolist() == GREEN_TINT
    assert first_best[3, 6].tolist() == GREEN_TINT
    assert second_best[3, 1].tolist() == RED_TINT


def test_nothing_to_draw():
    for nothing in (Instances.empty((7, 8)), Instances.empty((0, 0)), instances([box(0, 0, 0, 0)], [0], [1])):
        drawn = overlay_instances(GREY, nothing)
        np.testing.assert_array_equal(drawn, GREY)
        assert drawn is not GREY


def test_one_pixel():
    drawn = overlay_instances(GREY, instances([box(6, 7, 7, 8)], [300], [1]))
    assert drawn[6, 7].tolist() == WHITE
    assert (drawn != 100).any(2).sum() == 1


@pytest.mark.parametrize("image", [GREY[..., 0], GREY.astype(np.float32), GREY[..., :2]])
def test_what_is_no_picture(image):
    with pytest.raises(ShapeError, match=r"\(H, W, 3\) uint8"):
        overlay_instances(image, Instances.empty((7, 8)))


def test_masks_of_another_size():
    with pytest.raises(ShapeError, match=r"\(8, 7\)"):
        overlay_instances(GREY, instances([box(0, 0, 7, 8).T], [0], [1]))
