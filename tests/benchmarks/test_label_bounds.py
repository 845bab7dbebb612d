"""Bounds of instance labels, on regions that can be drawn by hand."""

import numpy as np

from benchmarks.label_bounds import as_true_instances_are, as_walked_maps_are
from irn_pipeline.structures import GroundTruth, Instances
from irn_pipeline.walked_scores import WalkedScores


def two_bars():
    """Two true bars of class 3, left and right, with a gap of four columns between."""
    masks = np.zeros((2, 8, 16), bool)
    masks[0, :, :6] = masks[1, :, 10:] = True
    label = np.where(masks.any(0), 4, 0).astype(np.uint8)
    instances = Instances(np.ones(2, np.float32), masks, np.array([3, 3]))
    return GroundTruth(label, instances, np.zeros((8, 16), bool))


def test_a_region_is_parted_at_equal_distance_from_the_true_instances():
    truth = two_bars()
    found = as_true_instances_are(np.full((8, 16), 4, np.uint8), truth)
    assert found.class_ids.tolist() == [3, 3]
    assert (found.masks[0] == (np.arange(16) < 8)).all() and (found.masks[1] == (np.arange(16) >= 8)).all()
    assert len(as_true_instances_are(np.full((8, 16), 9, np.uint8), truth)) == 0
    assert (as_true_instances_are(truth.label, truth).masks == truth.instances.masks).all()


def test_a_true_region_is_parted_by_the_stronger_map():
    truth = two_bars()
    maps = np.zeros((3, 2, 4), np.float16)
    maps[0, :, :2], maps[1, :, 2:] = 1, 0.5
    maps[2] = 1  # of a class that is not there
    found = as_walked_maps_are(WalkedScores(np.array([3, 3, 5]), maps, (8, 16)), truth)
    assert found.class_ids.tolist() == [3, 3]
    assert (found.masks == truth.instances.masks).all()
    assert found.scores[0] > found.scores[1] > 0
