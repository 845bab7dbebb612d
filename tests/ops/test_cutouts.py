"""Objects cut out along their boxes are the same objects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.cutouts import Cutouts
from irn_pipeline.structures import Instances


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))))
def test_whole_masks_come_back(masks):
    whole = Instances(np.arange(len(masks), dtype=np.float32), masks, np.arange(len(masks))[::-1].copy())
    back = Cutouts.of_instances(whole).instances()
    assert np.array_equal(back.masks, masks)
    assert back.scores.tolist() == whole.scores.tolist()
    assert back.class_ids.tolist() == whole.class_ids.tolist()


def test_a_map_of_objects_is_cut_along_their_boxes():
    index = np.array([[0, 2, 2], [1, 0, 2]])
    cut = Cutouts.of_index(index, np.array([7, 5]))
    assert cut.boxes.tolist() == [[1, 0, 2, 1], [0, 1, 2, 3]]
    assert [mask.tolist() for mask in cut.masks] == [[[True]], [[True, True], [False, True]]]
    assert (cut.class_ids.tolist(), cut.scores.tolist()) == ([7, 5], [1.0, 1.0])
    assert len(Cutouts.of_index(np.zeros((2, 3), int), np.zeros(0, np.int64))) == 0


@settings(deadline=None)
@given(
    arrays(bool, (1, 4, 5)),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_window_is_the_mask_at_these_rows_and_columns(masks, rows, columns, mirrored):
    rows, columns = np.sort(rows), np.sort(columns)
    columns = columns[::-1] if mirrored else columns
    whole = Instances(np.ones(1, np.float32), masks, np.zeros(1, np.int64))
    down, along, found = Cutouts.of_instances(whole).window(0, rows, columns)
    placed = np.zeros((len(rows), len(columns)), bool)
    placed[down : down + found.shape[0], along : along + found.shape[1]] = found
    assert np.array_equal(placed, masks[0][rows][:, columns])


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="as many boxes"):
        Cutouts((2, 2), np.zeros((1, 4), np.int64), (), np.zeros(1, np.int64), np.ones(1, np.float32))
