import numpy as np
import pytest

from irn_pipeline.ops.orientation import as_orientation, inverse, turned, turned_size

STORED = np.array([[1, 2, 3], [4, 5, 6]])
# EXIF 2.32, tag 274: where the first row and the first column of the stored pixels are shown.
SHOWN = {
    1: [[1, 2, 3], [4, 5, 6]],  # top, left
    2: [[3, 2, 1], [6, 5, 4]],  # top, right
    3: [[6, 5, 4], [3, 2, 1]],  # bottom, right
    4: [[4, 5, 6], [1, 2, 3]],  # bottom, left
    5: [[1, 4], [2, 5], [3, 6]],  # left, top
    6: [[4, 1], [5, 2], [6, 3]],  # right, top
    7: [[6, 3], [5, 2], [4, 1]],  # right, bottom
    8: [[3, 6], [2, 5], [1, 4]],  # left, bottom
}


@pytest.mark.parametrize("orientation", SHOWN)
def test_each_orientation_and_its_inverse(orientation):
    shown = turned(STORED, orientation)
    assert shown.tolist() == SHOWN[orientation]
    assert turned_size((2, 3), orientation) == shown.shape
    np.testing.assert_array_equal(turned(shown, inverse(orientation)), STORED)
    masks = turned(STORED[None, ..., None].repeat(2, 0), orientation, rows=1)
    np.testing.assert_array_equal(masks, shown[None, ..., None].repeat(2, 0))


@pytest.mark.parametrize("value", [0, 9, -1, None, "6", 6.0, (6,), b"\6"])
def test_other_values_are_no_orientation(value):
    assert as_orientation(value) == 1
