"""Class activation maps: merging scales, and the labels and instances that maps give without refinement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.masks import instances_from_index, label_from_index
from irn_pipeline.structures import Cam, FloatArray, Instances, IntArray, LabelArray, strided_size

if TYPE_CHECKING:  # imported when it is used: stages without a network need the rest of this module
    from torch import Tensor

HIGH_RES_STRIDE = 16
"""Pixels per cell of the network's maps at scale 1; full-size maps are upsampled to a multiple of it."""
_EPSILON = 1e-5


def merge_scales(maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sum one picture's maps over scales, at stride 4 and at full size.

    Args:
        maps: one (K, h_s, w_s) float tensor of non-negative values per scale.
        size: (H, W) of the picture in pixels.

    Returns:
        cam (K, h, w) at stride 4 and high_res_cam (K, H, W), both in [0, 1].

    Raises:
        ShapeError: no scale, or scales with different numbers of classes.
    """
    return strided_cam(maps, size), full_size_cam(maps, size)


def strided_cam(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """One picture's maps summed over scales at stride 4.

    Each class is divided by its own maximum + 1e-5 (paper, section 3; the original implementation's details).

    Args:
        maps: one (K, h_s, w_s) float tensor of non-negative values per scale.
        size: (H, W) of the picture in pixels.

    Returns:
        (K, h, w) maps in [0, 1].

    Raises:
        ShapeError: no scale, or scales with different numbers of classes.
    """
    _require_scales(maps)
    return _normalised(sum_over_scales(maps, strided_size(size)))


def full_size_cam(maps: Sequence[Tensor], size: tuple[int, int], *, whole: bool = False) -> Tensor:
    """One picture's maps summed over scales at its own size, divided as in `strided_cam`.

    Args:
        maps: one (K, h_s, w_s) float tensor of non-negative values per scale.
        size: (H, W) of the picture in pixels.
        whole: the maps end where the picture does, and not at the next multiple of 16 pixels.

    Returns:
        (K, H, W) maps in [0, 1].

    Raises:
        ShapeError: no scale, or scales with different numbers of classes.
    """
    _require_scales(maps)
    height, width = size
    padded = size if whole else tuple(-(-side // HIGH_RES_STRIDE) * HIGH_RES_STRIDE for side in size)
    return _normalised(sum_over_scales(maps, (padded[0], padded[1]))[:, :height, :width])


def _require_scales(maps: Sequence[Tensor]) -> None:
    shapes = [tuple(scale.shape) for scale in maps]
    if not shapes or any(len(shape) != 3 or shape[0] != shapes[0][0] for shape in shapes):
        raise ShapeError(f"the maps of all scales must be (K, h, w) with one K, got {shapes}")


def sum_over_scales(maps: Sequence[Tensor], size: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """One picture's maps, each resized to one size (bilinear), added up.

    Args:
        maps: one (K, h_s, w_s) float tensor per scale, at least one.
        size: (h, w) of the sum.
        antialias: average over what a cell covers, for maps finer than the sum.

    Returns:
        (K, h, w) maps.
    """
    from torch.nn.functional import interpolate

    total = maps[0].new_zeros((maps[0].shape[0], *size))
    if not total.numel():  # torch refuses to resize a stack of no maps
        return total
    for scale in maps:
        total += interpolate(scale[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]
    return total


def merge_cams(cams: Sequence[Cam]) -> Cam:
    """Geometric mean of the maps that different networks have of one picture: high where all of them are.

    Each class is divided by its own maximum + 1e-5, as in `merge_scales`.

    Args:
        cams: maps of the same classes, in any order, of a picture of one size.

    Returns:
        The merged maps, with the classes in the order of the first.

    Raises:
        ShapeError: there are none, or they are of different classes or sizes.
    """
    import torch

    if not cams or any(sorted(cam.class_ids) != sorted(cams[0].class_ids) for cam in cams):
        found = " and ".join(str(cam.class_ids.tolist()) for cam in cams)
        raise ShapeError(f"maps to merge must be of the same classes, got {found or 'none'}")
    if any(cam.size != cams[0].size for cam in cams):
        raise ShapeError(f"maps to merge must be of one size, got {[cam.size for cam in cams]}")
    class_ids = cams[0].class_ids
    orders = [[cam.class_ids.tolist().index(class_id) for class_id in class_ids] for cam in cams]

    def merged(stacks: Sequence[FloatArray]) -> FloatArray:
        ordered = [torch.from_numpy(maps[order]) for maps, order in zip(stacks, orders, strict=True)]
        mean = torch.stack(ordered).pow(1 / len(cams)).prod(dim=0)
        result: FloatArray = _normalised(mean).numpy()
        return result

    return Cam(class_ids, merged([cam.cam for cam in cams]), merged([cam.high_res_cam for cam in cams]))


def cam_index(high_res_cam: FloatArray, bg_threshold: float) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Position of the largest of [bg_threshold, *maps] at each pixel.

    Args:
        high_res_cam: (K, H, W) maps.
        bg_threshold: score of the background.

    Returns:
        index (H, W), 0 for background and k + 1 for map k, and the largest map's value (H, W).

    Raises:
        ShapeError: the maps are not three-dimensional.
    """
    if high_res_cam.ndim != 3:
        raise ShapeError(f"high_res_cam must be (K, H, W), got {high_res_cam.shape}")
    if len(high_res_cam) == 0:
        size = high_res_cam.shape[1:]
        return np.zeros(size, np.int64), np.zeros(size, np.float32)
    best = high_res_cam.max(axis=0)
    return np.where(best > bg_threshold, high_res_cam.argmax(axis=0) + 1, 0), best


def cam_label(high_res_cam: FloatArray, class_ids: IntArray, bg_threshold: float) -> LabelArray:
    """Semantic label of the maps alone: the baseline that refinement is measured against.

    Args:
        high_res_cam: (K, H, W) maps in [0, 1].
        class_ids: (K,) foreground class ids.
        bg_threshold: score of the background; published figures use 0.15.

    Returns:
        (H, W) uint8 label, 0 for background, else class_id + 1.

    Raises:
        ShapeError: maps and class ids do not fit together.
    """
    require_one_map_per_class(high_res_cam, class_ids)
    return label_from_index(cam_index(high_res_cam, bg_threshold)[0], class_ids)


def cam_components(
    high_res_cam: FloatArray, class_ids: IntArray, bg_threshold: float, *, min_area: float = 0.01
) -> Instances:
    """Instances of the maps alone: the 4-connected components of each class's region.

    Args:
        high_res_cam: (K, H, W) maps in [0, 1].
        class_ids: (K,) foreground class ids.
        bg_threshold: score of the background.
        min_area: share of the picture below which a component is left out.

    Returns:
        Instances whose score is the largest value of their class's map inside them.

    Raises:
        ShapeError: maps and class ids do not fit together.
    """
    require_one_map_per_class(high_res_cam, class_ids)
    index, best = cam_index(high_res_cam, bg_threshold)
    return instances_from_index(index, best, class_ids, min_area=min_area, keep_small=False)


def require_one_map_per_class(maps: FloatArray, class_ids: IntArray) -> None:
    """Refuse maps that are not (K, height, width) for K class ids.

    Raises:
        ShapeError: their numbers differ.
    """
    if maps.ndim != 3 or len(maps) != len(class_ids):
        raise ShapeError(f"{len(class_ids)} classes need as many maps (K, *, *), got {maps.shape}")


def _normalised(maps: Tensor) -> Tensor:
    if not maps.numel():
        return maps
    return maps / (maps.amax(dim=(1, 2), keepdim=True) + _EPSILON)
