"""Semantic and instance labels from activation maps, boundary and displacement (paper, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.cam import require_one_map_per_class
from irn_pipeline.ops.instance_map import instance_map
from irn_pipeline.ops.label_params import LabelParams, SynthesisParams, WalkParams
from irn_pipeline.ops.masks import instances_from_index, label_from_index
from irn_pipeline.ops.random_walk import random_walk
from irn_pipeline.ops.scenes import coarse_grid, walk_factor
from irn_pipeline.ops.upsampled_argmax import argmax_upsampled
from irn_pipeline.structures import FloatArray, Instances, IntArray, LabelArray, strided_size

_PUBLISHED = SynthesisParams()


def synthesize(
    cam: FloatArray,
    class_ids: IntArray,
    boundary: FloatArray,
    displacement: FloatArray,
    size: tuple[int, int],
    params: SynthesisParams = _PUBLISHED,
    *,
    device: torch.device | str = "cpu",
) -> tuple[LabelArray, Instances]:
    """Semantic and instance label of one picture, from one random walk.

    `walk_scores` and `labels_from_scores` one after the other.

    Args:
        cam: (K, h, w) float32 activation maps at stride 4.
        class_ids: (K,) foreground class ids.
        boundary: (h, w) float32 class boundary probability.
        displacement: (2, h, w) float32, dy then dx in cells.
        size: (H, W) of the picture in pixels.
        params: thresholds and parameters of the walk.
        device: where the walk runs.

    Returns:
        (H, W) uint8 label, 0 for background, else class_id + 1; and the instances.

    Raises:
        ShapeError: the arrays do not belong to one picture.
        ConfigError: a parameter of the walk is out of range, or `bg_search` is set: it needs features.
        IrnError: the displacement holds NaN or infinite values.
    """
    walked, owners = walk_scores(cam, class_ids, boundary, displacement, size, params, device=device)
    return labels_from_scores(walked, owners, size, params)


def walk_scores(
    cam: FloatArray,
    class_ids: IntArray,
    boundary: FloatArray,
    displacement: FloatArray,
    size: tuple[int, int],
    params: WalkParams = _PUBLISHED,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, IntArray]:
    """Walked activation map of every instance of a picture.

    Args:
        cam: (K, h, w) float32 activation maps at stride 4.
        class_ids: (K,) foreground class ids.
        boundary: (h, w) float32 class boundary probability.
        displacement: (2, h, w) float32, dy then dx in cells.
        size: (H, W) of the picture in pixels.
        params: of the walk and the instance map.
        device: where the walk runs.

    Returns:
        walked (M, h, w) float32 maps on the device, not normalised; and the class ids (M,) they are of, in the
        order of `class_ids`. The grid of the largest pictures is coarser (`scenes.walk_factor`).

    Raises:
        ShapeError: the arrays do not belong to one picture.
        ConfigError: a parameter of the walk is out of range.
        IrnError: the displacement holds NaN or infinite values.
    """
    require_one_map_per_class(cam, class_ids)
    grid = strided_size(size)
    if cam.shape[1:] != grid or boundary.shape != grid or displacement.shape != (2, *grid):
        raise ShapeError(
            f"a {size[0]}x{size[1]} image needs cam (K, h, w), boundary (h, w) and displacement (2, h, w) "
            f"with (h, w) = {grid}, got {cam.shape}, {boundary.shape} and {displacement.shape}"
        )
    groups = instance_map(
        displacement, threshold=params.center_threshold, iterations=params.centroid_iterations
    )
    cam = cam**params.cam_power
    factor = walk_factor(cam, groups)
    if factor > 1:
        cam, boundary, groups = coarse_grid(cam, boundary, groups, factor)
    maps, owners = instance_cams(cam, groups)
    if not len(maps):
        return torch.zeros((0, *groups.shape), device=device), np.zeros(0, np.int64)
    walked = random_walk(
        torch.from_numpy(maps).to(device),
        torch.from_numpy(np.ascontiguousarray(boundary)).to(device),
        radius=params.radius,
        beta=params.beta,
        # Cells that are twice as long are crossed in a quarter of the steps.
        exp_times=max(params.exp_times - 2 * (factor.bit_length() - 1), 0),
    )
    return walked, class_ids[owners]


def labels_from_scores(
    walked: Tensor,
    class_ids: IntArray,
    size: tuple[int, int],
    params: LabelParams = _PUBLISHED,
    evidence: FloatArray | None = None,
) -> tuple[LabelArray, Instances]:
    """Semantic and instance label from the walked maps of a picture's instances; their scale does not matter.

    The walk is linear: a class's walked map is the sum of its instances' walked maps.

    Args:
        walked: (M, h, w) walked maps, not negative.
        class_ids: (M,) class of each map.
        size: (H, W) of the picture in pixels.
        params: thresholds and what is a fragment.
        evidence: `background_evidence` of these maps, for a background score of the picture's own.

    Returns:
        (H, W) uint8 label, 0 for background, else class_id + 1; and the instances.

    Raises:
        ShapeError: maps, class ids and size do not fit together.
        ConfigError: `bg_search` is set and there is no evidence.
    """
    params = params.of_picture(evidence)
    if not len(walked):
        return np.zeros(size, np.uint8), Instances.empty(size)
    by_class, present = class_maps(walked, class_ids)
    label = semantic_label(by_class, present, size, bg_threshold=params.semantic_bg_threshold)
    instances = instance_label(walked, class_ids, size, params)
    return label, instances


def labels_over_thresholds(
    walked: Tensor,
    class_ids: IntArray,
    size: tuple[int, int],
    thresholds: Sequence[float],
    params: LabelParams = _PUBLISHED,
) -> Iterator[tuple[LabelArray, Instances]]:
    """The labels of `labels_from_scores` for several background scores, with one upsampling for all of them.

    Args:
        walked: (M, h, w) walked maps, not negative.
        class_ids: (M,) class of each map.
        size: (H, W) of the picture in pixels.
        thresholds: each is the score of the background in both labels.
        params: what is a fragment; its own thresholds are not used.

    Yields:
        Both labels, for one threshold after the other.

    Raises:
        ShapeError: maps, class ids and size do not fit together.
    """
    by_class, present = class_maps(walked, class_ids)
    lowest = min(thresholds)
    label_index, label_score = argmax_upsampled(by_class, size, lowest)
    index, score = argmax_upsampled(walked, size, lowest)
    for threshold in thresholds:
        label = label_from_index(np.where(label_score > threshold, label_index, 0), present)
        chosen = np.where(score > threshold, index, 0)
        yield label, _instances(chosen, score, class_ids, params)


def instance_cams(cam: FloatArray, instance_ids: IntArray) -> tuple[FloatArray, IntArray]:
    """Activation maps cut to one instance each; maps that would be zero everywhere are left out.

    Args:
        cam: (K, h, w) activation maps.
        instance_ids: (h, w) instance map; every id counts, the lowest too.

    Returns:
        maps (M, h, w) float32, M <= K * I, ordered by class, then instance; and owners (M,), the position
        0..K-1 of each map's class.

    Raises:
        ShapeError: maps and instance map differ in size.
    """
    if cam.ndim != 3 or cam.shape[1:] != instance_ids.shape:
        raise ShapeError(f"cam {cam.shape} and instance map {instance_ids.shape} differ in size")
    present = [np.unique(instance_ids[class_map > 0]) for class_map in cam]
    owners = np.repeat(np.arange(len(cam)), [len(ids) for ids in present])
    maps = np.zeros((len(owners), *instance_ids.shape), np.float32)
    chosen = (instance_id for ids in present for instance_id in ids)
    for target, owner, instance_id in zip(maps, owners, chosen, strict=True):
        np.copyto(target, cam[owner], where=instance_ids == instance_id)
    return maps, owners


def class_maps(walked: Tensor, class_ids: IntArray) -> tuple[Tensor, IntArray]:
    """Sums of the maps of each class, and the classes in the order in which they appear.

    Args:
        walked: (M, h, w) walked maps of the instances.
        class_ids: (M,) class of each map.

    Returns:
        (K, h, w) maps and (K,) class ids.
    """
    present = np.array(list(dict.fromkeys(class_ids.tolist())), np.int64)
    owners = (class_ids[:, None] == present).argmax(1) if len(present) else np.zeros(0, np.int64)
    return class_maps_from_instance_maps(walked, owners, len(present)), present


def class_maps_from_instance_maps(walked: Tensor, owners: IntArray, num_classes: int) -> Tensor:
    """Walked maps of whole classes.

    Args:
        walked: (M, h, w) walked instance maps, not normalised.
        owners: (M,) position 0..K-1 of each map's class.
        num_classes: number K of the picture's classes.

    Returns:
        (K, h, w) sums of the maps of each class, on the same device.
    """
    total = walked.new_zeros((num_classes, *walked.shape[1:]))
    return total.index_add_(0, torch.from_numpy(owners).to(walked.device), walked)


def semantic_label(
    walked: Tensor, class_ids: IntArray, size: tuple[int, int], *, bg_threshold: float = 0.25
) -> LabelArray:
    """Largest of [bg_threshold, *maps] at each pixel.

    Args:
        walked: (K, h, w) walked maps of the classes.
        class_ids: (K,) foreground class ids.
        size: (H, W) of the picture in pixels.
        bg_threshold: score of the background, relative to the largest value of all maps.

    Returns:
        (H, W) uint8 label, 0 for background, else class_id + 1.

    Raises:
        ShapeError: maps, class ids and size do not fit together.
    """
    return label_from_index(argmax_upsampled(walked, size, bg_threshold)[0], class_ids)


def instance_label(
    walked: Tensor,
    class_ids: IntArray,
    size: tuple[int, int],
    params: LabelParams = _PUBLISHED,
) -> Instances:
    """Connected components of the regions where one instance's map is the largest.

    Args:
        walked: (M, h, w) walked maps of the instances.
        class_ids: (M,) class of each map.
        size: (H, W) of the picture in pixels.
        params: the background score, what is a fragment and what the score is.

    Returns:
        Instances; the score is in (0, 1], or 0.

    Raises:
        ShapeError: maps, class ids and size do not fit together.
    """
    index, score = argmax_upsampled(walked, size, params.instance_bg_threshold)
    return _instances(index, score, class_ids, params)


def _instances(
    index: npt.NDArray[np.int32], score: FloatArray, class_ids: IntArray, params: LabelParams
) -> Instances:
    return instances_from_index(
        index,
        score,
        class_ids,
        min_area=params.min_area,
        keep_small=params.keep_fragments,
        instance_score=params.instance_score,
    )
