"""Instances and ground truth from masks written as lists."""

from __future__ import annotations

import numpy as np

from irn_pipeline.structures import GroundTruth, Instances


def instances(masks, class_ids, scores=None) -> Instances:
    """Of these masks and classes; scores are 1 where none are given."""
    masks = np.array(masks, np.bool_)
    scores = np.ones(len(class_ids)) if scores is None else scores
    return Instances(np.array(scores, np.float32), masks, np.array(class_ids, np.int64))


def ground_truth(true: Instances, ignore=None) -> GroundTruth:
    """Without a semantic label; every pixel counts where none is given to be ignored."""
    ignore = np.zeros(true.size, np.bool_) if ignore is None else np.array(ignore, np.bool_)
    return GroundTruth(label=np.zeros(true.size, np.uint8), instances=true, ignore=ignore)
