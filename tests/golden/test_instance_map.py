"""Centroids and instance map equal those of the original implementation."""

import numpy as np

from irn_pipeline.ops.instance_map import find_centroids, instance_map


def test_centroids(golden):
    data = golden("instance_map")
    assert (find_centroids(data["displacement"]) == data["centroids"]).all()


def test_instance_map_up_to_renaming(golden):
    data = golden("instance_map")
    ids = instance_map(data["displacement"])
    pairs = np.unique(np.stack([ids.ravel(), data["instance_id"].ravel()]), axis=1)
    assert len(np.unique(ids)) == int(data["n_instances"])
    assert pairs.shape[1] == int(data["n_instances"])
