"""Semantic and instance labels from activation maps, boundary and displacement (paper, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.cam import require_one_map_per_class
from irn_pipeline.ops.clustering import instance_map
from irn_pipeline.ops.masks import instances_from_index, label_from_index
from irn_pipeline.ops.random_walk import random_walk
from irn_pipeline.structures import (
    CAM_STRIDE,
    FloatArray,
    Instances,
    IntArray,
    LabelArray,
    strided_size,
)

_PEAK_KEPT = 0.375
"""Upsampling keeps more than this share of a map's largest cell: the weight of the cell nearest to a pixel is
at least 5/8 along each axis, and 25/64 > 0.375."""


@dataclass(frozen=True)
class SynthesisParams:
    """Parameters of label synthesis; the defaults are the published ones."""

    beta: float = 10.0
    """Exponent of the affinity in the random walk; larger values close weak boundaries."""
    exp_times: int = 8
    """The random walk takes 2^exp_times steps."""
    radius: int = 5
    """The random walk joins cells closer than this, in cells of 4 pixels."""
    cam_power: float = 1.0
    """Exponent of the activation maps before the walk; above 1 they are trusted less where they are weak."""
    semantic_bg_threshold: float = 0.25
    """Score of the background in the semantic label."""
    instance_bg_threshold: float = 0.25
    """Score of the background in the instance label."""
    min_area: float = 0.01
    """Share of the picture below which a component is a fragment."""
    keep_fragments: bool = True
    """Keep fragments, with the score 0, in the instance label."""
    center_threshold: float = 2.5
    """Displacement, in cells of 4 pixels, below which a cell is the centre of an instance."""
    centroid_iterations: int = 300
    """Steps for which the displacement is followed."""


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

    The walk is linear: a class's walked map is the sum of its instances' walked maps.

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
        ConfigError: a parameter of the walk is out of range.
        IrnError: the displacement holds NaN or infinite values.
    """
    require_one_map_per_class(cam, class_ids)
    grid = strided_size(size)
    if cam.shape[1:] != grid or boundary.shape != grid or displacement.shape != (2, *grid):
        raise ShapeError(
            f"a {size[0]}x{size[1]} picture needs cam (K, h, w), boundary (h, w) and displacement (2, h, w) "
            f"with (h, w) = {grid}, got {cam.shape}, {boundary.shape} and {displacement.shape}"
        )
    groups = instance_map(
        displacement, threshold=params.center_threshold, iterations=params.centroid_iterations
    )
    maps, owners = instance_cams(cam**params.cam_power, groups)
    if not len(maps):
        return np.zeros(size, np.uint8), Instances.empty(size)
    walked = random_walk(
        torch.from_numpy(maps).to(device),
        torch.from_numpy(np.ascontiguousarray(boundary)).to(device),
        radius=params.radius,
        beta=params.beta,
        exp_times=params.exp_times,
    )
    label = semantic_label(
        class_maps_from_instance_maps(walked, owners, len(class_ids)),
        class_ids,
        size,
        bg_threshold=params.semantic_bg_threshold,
    )
    instances = instance_label(
        walked,
        class_ids[owners],
        size,
        bg_threshold=params.instance_bg_threshold,
        min_area=params.min_area,
        keep_fragments=params.keep_fragments,
    )
    return label, instances


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
    *,
    bg_threshold: float = 0.25,
    min_area: float = 0.01,
    keep_fragments: bool = True,
) -> Instances:
    """Connected components of the regions where one instance's map is the largest.

    Args:
        walked: (M, h, w) walked maps of the instances.
        class_ids: (M,) class of each map.
        size: (H, W) of the picture in pixels.
        bg_threshold: score of the background, relative to the largest value of all maps.
        min_area: share of the picture below which a component is a fragment.
        keep_fragments: keep fragments, with the score 0; False leaves them out.

    Returns:
        Instances; the score is the largest value of the instance's map inside it, in (0, 1], or 0.

    Raises:
        ShapeError: maps, class ids and size do not fit together.
    """
    index, score = argmax_upsampled(walked, size, bg_threshold)
    return instances_from_index(index, score, class_ids, min_area=min_area, keep_small=keep_fragments)


def argmax_upsampled(
    maps: Tensor, size: tuple[int, int], bg_threshold: float
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Position of the largest of [bg_threshold, *maps] after upsampling the maps to the picture's size.

    The maps are upsampled bilinearly by 4, cropped, and divided by the largest value of them all. One map is
    upsampled at a time, and only where it can exceed the background, so that memory does not grow with M.

    Args:
        maps: (M, h, w) float32 maps at stride 4, not negative.
        size: (H, W) of the picture in pixels.
        bg_threshold: score of the background, in [0, 1].

    Returns:
        index (H, W) int32, 0 for background and m + 1 for map m; and score (H, W) float32 in [0, 1], the
        value of that map, 0 at background.

    Raises:
        ShapeError: the maps are not (M, h, w) with the grid of `size`.
    """
    if maps.ndim != 3 or tuple(maps.shape[1:]) != strided_size(size):
        raise ShapeError(f"maps of a picture {size} must be (M, *{strided_size(size)}), got {maps.shape}")
    index = torch.zeros(size, dtype=torch.int32, device=maps.device)
    score = maps.new_zeros(size)
    # Pixels that depend on cells up to this value only stay below the background, whatever the final scale.
    negligible = bg_threshold * _PEAK_KEPT * float(maps.max()) if maps.numel() else 0.0
    for number, cells in enumerate(maps, start=1):
        strong = cells > negligible
        if not strong.any():
            continue
        rows, columns = _extent(strong.any(1)), _extent(strong.any(0))
        patch = interpolate(cells[None, None, rows, columns], scale_factor=CAM_STRIDE, mode="bilinear")[0, 0]
        window = score[_pixels(rows), _pixels(columns)]
        patch = patch[: window.shape[0], : window.shape[1]]
        index[_pixels(rows), _pixels(columns)].masked_fill_(patch > window, number)
        torch.maximum(window, patch, out=window)
    largest = float(score.max())
    if largest > 0:
        score /= largest
    background = score <= bg_threshold
    return index.masked_fill_(background, 0).cpu().numpy(), score.masked_fill_(background, 0).cpu().numpy()


def _extent(marked: Tensor) -> slice:
    """From the first to the last marked cell, and one cell beyond, to which upsampling spreads them."""
    cells = marked.nonzero()[:, 0]
    return slice(max(int(cells[0]) - 1, 0), int(cells[-1]) + 2)


def _pixels(cells: slice) -> slice:
    return slice(cells.start * CAM_STRIDE, cells.stop * CAM_STRIDE)
