"""Regions and maps of whole classes, parted into objects by the displacement field alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from irn_pipeline.ops.instance_map import instance_map
from irn_pipeline.ops.label_params import SynthesisParams, WalkParams
from irn_pipeline.ops.labels import instance_cams
from irn_pipeline.ops.masks import instances_from_index
from irn_pipeline.structures import (
    BACKGROUND,
    CAM_STRIDE,
    IGNORE,
    Cam,
    FloatArray,
    Instances,
    IntArray,
    LabelArray,
)


def parted_maps(
    maps: Tensor, class_ids: IntArray, displacement: FloatArray, params: WalkParams
) -> tuple[Tensor, IntArray]:
    """Maps of whole classes cut into those of instances, as before the walk, but without one.

    Args:
        maps: (K, h, w) float32 maps of the classes, not negative.
        class_ids: (K,) their ids.
        displacement: (2, h, w) float32, dy then dx in cells.
        params: of the instance map.

    Returns:
        (M, h, w) maps on the device of `maps`, and the class ids (M,) they are of.
    """
    groups = _groups(displacement, params)
    cut, owners = instance_cams((maps.clamp(min=0) ** params.cam_power).cpu().numpy(), groups)
    return torch.from_numpy(cut).to(maps.device), class_ids[owners]


def parted_label(label: LabelArray, cam: Cam, displacement: FloatArray, params: SynthesisParams) -> Instances:
    """Instances of a semantic label: of each class the connected parts that point to one centre.

    Args:
        label: (H, W) uint8, 0 background, class_id + 1, 255 unknown.
        cam: maps of the picture, whose values are the scores.
        displacement: (2, h, w) float32 at stride 4, dy then dx in cells.
        params: of the instance map, what is a fragment and what the score is.
    """
    groups = _groups(displacement, params)
    fine = groups.repeat(CAM_STRIDE, 0).repeat(CAM_STRIDE, 1)[: label.shape[0], : label.shape[1]]
    foreground = (label != BACKGROUND) & (label != IGNORE)
    pairs, positions = np.unique(
        np.stack([label[foreground].astype(np.int64), fine[foreground].astype(np.int64)]),
        axis=1,
        return_inverse=True,
    )
    index, score = np.zeros(label.shape, np.int32), np.zeros(label.shape, np.float32)
    index[foreground] = positions.reshape(-1) + 1
    for class_id, values in zip(cam.class_ids.tolist(), cam.high_res_cam, strict=True):
        np.copyto(score, values, where=label == class_id + 1)
    return instances_from_index(
        index,
        score,
        pairs[0] - 1,
        min_area=params.min_area,
        keep_small=params.keep_fragments,
        instance_score=params.instance_score,
    )


def _groups(displacement: FloatArray, params: WalkParams) -> IntArray:
    return instance_map(
        displacement, threshold=params.center_threshold, iterations=params.centroid_iterations
    )
