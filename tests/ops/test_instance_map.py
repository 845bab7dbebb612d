"""Instance map on fields with known centres."""

import numpy as np
import pytest

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.instance_map import instance_map


def columns_to(targets, height=6):
    """Field in which every cell of a row moves to the given column."""
    field = np.zeros((2, height, len(targets)), np.float32)
    field[1] = np.array(targets) - np.arange(len(targets))
    return field


def test_two_centres_share_the_picture():
    ids = instance_map(columns_to([3] * 10 + [16] * 10), threshold=2.5)
    assert ids.dtype == np.int64
    assert len(np.unique(ids[:, :10])) == 1 and len(np.unique(ids[:, 10:])) == 1
    assert ids[0, 0] != ids[0, -1]


def test_ids_are_compact_and_start_at_zero_even_without_background():
    ids = instance_map(columns_to([3] * 10 + [16] * 10))
    assert np.unique(ids).tolist() == [0, 1]


def test_cells_that_reach_no_centre_share_the_lowest_id():
    # Cells 12..19 jump to and fro between columns 12 and 19; no displacement there is short.
    targets = [3] * 8 + [8, 9, 10, 11] + [19] * 4 + [12] * 4
    ids = instance_map(columns_to(targets), iterations=301)
    assert (ids[:, 12:] == 0).all() and (ids[:, :12] > 0).all()


def test_threshold_joins_or_separates_centres():
    # The column between two still regions moves slowly to the left; below the threshold, it joins them.
    field = np.zeros((2, 4, 9), np.float32)
    field[1, :, 4] = -1
    assert np.unique(instance_map(field, threshold=2.5)).tolist() == [0]
    assert instance_map(field, threshold=0.5)[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_centres_that_touch_at_a_corner_are_two():
    field = np.full((2, 2, 2), 9.0, np.float32)
    field[:, 0, 0] = field[:, 1, 1] = 0
    ids = instance_map(field, iterations=0)
    assert ids.tolist() == [[1, 0], [0, 2]]


def test_threshold_is_a_length_in_both_directions():
    field = np.zeros((2, 1, 3), np.float32)
    field[:, 0, 1] = 2  # length sqrt(8), although each part is below 2.5
    assert instance_map(field, iterations=0, threshold=2.5).tolist() == [[1, 0, 2]]
    assert instance_map(field, iterations=0, threshold=2.9).tolist() == [[0, 0, 0]]


def test_wrong_shape_is_refused():
    with pytest.raises(ShapeError, match="displacement"):
        instance_map(np.zeros((5, 5), np.float32))
