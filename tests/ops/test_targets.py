import numpy as np
import pytest

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.targets import edge_band, instance_ids, training_target
from irn_pipeline.structures import Instances


def strip(*spans: tuple[int, int], scores: tuple[float, ...], length: int = 12) -> Instances:
    """Instances in a picture of one row."""
    masks = np.zeros((len(spans), 1, length), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return Instances(np.array(scores, np.float32), masks, np.arange(len(spans)))


def test_the_better_score_owns_the_overlap():
    found = instance_ids(strip((0, 6), (4, 9), scores=(0.9, 0.5)))
    assert found.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0]]


def test_masks_become_disjoint_and_keep_their_order():
    target = training_target(strip((0, 6), (4, 9), scores=(0.5, 0.9)), np.zeros((1, 12), np.uint8), band=0)
    assert target.instances.masks.sum(axis=(1, 2)).tolist() == [4, 5]
    assert target.instances.scores.tolist() == pytest.approx([0.5, 0.9])
    assert not target.ignore.any()


def test_fragments_are_ignored_and_no_examples():
    label = np.array([[1, 1, 1, 0, 0, 0, 2, 2, 0, 0, 0, 0]], np.uint8)
    target = training_target(strip((0, 3), (6, 8), scores=(0.7, 0.0)), label, band=0)
    assert target.instances.class_ids.tolist() == [0]
    assert np.flatnonzero(target.ignore).tolist() == [6, 7]
    assert target.label.tolist() == [[1, 1, 1, 0, 0, 0, 255, 255, 0, 0, 0, 0]]


def test_unsure_pixels_of_the_label_are_ignored():
    label = np.array([[1, 1, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0]], np.uint8)
    assert np.flatnonzero(training_target(strip((0, 2), scores=(1.0,)), label, band=0).ignore).tolist() == [2]


@pytest.mark.parametrize(("width", "expected"), [(0, []), (1, []), (3, [3, 4]), (5, [2, 3, 4, 5])])
def test_the_band_lies_along_both_sides_of_an_edge(width, expected):
    ids = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0]], np.int32)
    assert np.flatnonzero(edge_band(ids, width)).tolist() == expected


def test_touching_instances_of_one_class_have_a_band_between_them():
    target = training_target(strip((0, 6), (6, 12), scores=(1, 1)), np.ones((1, 12), np.uint8), band=3)
    assert np.flatnonzero(target.ignore).tolist() == [5, 6]


def test_no_instance_is_no_trouble():
    target = training_target(Instances.empty((4, 5)), np.zeros((4, 5), np.uint8))
    assert len(target.instances) == 0
    assert not target.ignore.any()


def test_more_than_255_instances():
    many = strip(*((i, i + 1) for i in range(300)), scores=(1.0,) * 300, length=300)
    assert instance_ids(many).tolist() == [list(range(1, 301))]


def test_sizes_must_agree():
    with pytest.raises(ShapeError, match="of size"):
        training_target(strip((0, 2), scores=(1.0,)), np.zeros((2, 12), np.uint8))
