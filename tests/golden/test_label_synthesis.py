"""Synthesized labels equal those of the original implementation."""

import numpy as np
import pytest
import torch

from irn_pipeline.ops.instance_map import instance_map
from irn_pipeline.ops.labels import SynthesisParams, class_maps_from_instance_maps, instance_cams, synthesize
from irn_pipeline.ops.random_walk import random_walk


@pytest.fixture
def data(golden):
    return golden("label_synthesis")


@pytest.fixture
def labels(data):
    threshold = float(data["bg_threshold"])
    return synthesize(
        data["cam"],
        data["keys"],
        data["boundary"],
        data["displacement"],
        (int(data["image_size"][0]), int(data["image_size"][1])),
        SynthesisParams(semantic_bg_threshold=threshold, instance_bg_threshold=threshold),
    )


def test_semantic_label(data, labels):
    assert (labels[0] == data["semantic"]).mean() >= 0.999


def test_instances_of_positive_score(data, labels):
    instances = labels[1].select(labels[1].scores > 0)
    expected = np.flatnonzero(data["score"] > 0)
    assert instances.class_ids.tolist() == data["class_id"][expected].tolist()
    np.testing.assert_allclose(instances.scores, data["score"][expected], atol=1e-3)
    for mask, number in zip(instances.masks, expected, strict=True):
        assert (mask == (data["mask_id"] == number + 1)).mean() >= 0.999


def test_all_components_including_fragments(data, labels):
    instances = labels[1]
    assert len(instances) == len(data["score"])
    owner = np.zeros(instances.size, int)
    for class_id, mask in zip(instances.class_ids, instances.masks, strict=True):
        owner[mask] = class_id + 1
    expected = np.concatenate([[0], data["class_id"] + 1])[data["mask_id"]]
    assert (owner == expected).mean() >= 0.999
    areas = sorted(instances.masks.sum((1, 2)).tolist())
    np.testing.assert_allclose(areas, sorted(data["mask_area"].tolist()), atol=0.001 * owner.size)


def test_one_walk_serves_both_labels(data):
    maps, owners = instance_cams(data["cam"], instance_map(data["displacement"]))
    boundary = torch.from_numpy(data["boundary"])
    summed = class_maps_from_instance_maps(random_walk(torch.from_numpy(maps), boundary), owners, 2)
    walked = random_walk(torch.from_numpy(data["cam"]), boundary)
    assert float((summed - walked).abs().max()) < 1e-4 * float(walked.max())
