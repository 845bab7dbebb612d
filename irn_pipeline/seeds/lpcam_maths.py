"""LPCAM: activation maps from prototypes of a class, clustered over the data set, instead of the classifier's weights.

Chen & Sun, "Extracting Class Activation Maps from Non-Discriminative Features as Well", CVPR 2023; repository
zhaozhengChen/LPCAM (step/make_lpcam.py). Its k-means never ends when a cluster empties; this one fills it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.cam import HIGH_RES_STRIDE, sum_over_scales
from irn_pipeline.structures import IntArray, strided_size


class Prototypes(NamedTuple):
    """What a class looks like and what lies around it, as raw features."""

    prototypes: Tensor
    """(P, D); without any, the class has no map but the classifier's."""
    context: Tensor
    """(C, D); may be empty."""


class Clusters(NamedTuple):
    """Result of `kmeans`."""

    centres: Tensor
    """(K, D) means of the cells of each cluster, not normalised."""
    assigned: Tensor
    """(N,) int64, the cluster of each cell in the last round."""


def select_cells(features: Tensor, high_res_cam: Tensor, threshold: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cells of a picture that lie inside and outside a class's region; cells at the threshold are in neither.

    Args:
        features: (D, h, w) features of the last stage, of the picture at its own size.
        high_res_cam: (H, W) map of the class in [0, 1]; cell (i, j) takes the value at (i H // h, j W // w).
        threshold: published values are 0.1 for VOC and 0.25 for COCO.

    Returns:
        (n, D) cells above and (m, D) cells below the threshold, row by row.

    Raises:
        ShapeError: features or map have another number of dimensions.
    """
    if features.ndim != 3 or high_res_cam.ndim != 2:
        raise ShapeError(
            f"features must be (D, h, w) and the map (H, W), got {tuple(features.shape)} "
            f"and {tuple(high_res_cam.shape)}"
        )
    (height, width), size = features.shape[1:], high_res_cam.shape
    rows = torch.arange(height, device=high_res_cam.device) * size[0] // height
    columns = torch.arange(width, device=high_res_cam.device) * size[1] // width
    values = high_res_cam[rows][:, columns].flatten()
    cells = features.flatten(1).T
    return cells[values > threshold], cells[values < threshold]


def kmeans(
    cells: Tensor,
    count: int,
    rng: np.random.Generator,
    *,
    first: IntArray | None = None,
    tolerance: float = 5.0,
    max_rounds: int = 300,
) -> Clusters:
    """k-means by cosine: each cell goes to the centre of the largest cosine, centres are plain means of raw features.

    It stops when (sum over clusters of the distance that a centre moved)^2 < tolerance. An empty cluster starts again
    from a random cell. Memory beside the cells is N * K numbers.

    Args:
        cells: (N, D) features.
        count: clusters K; with fewer cells, every cell is a cluster. Published values are 12 (VOC) and 20 (COCO).
        rng: for the start and for empty clusters.
        first: (K,) rows to start from; without it, random distinct rows.
        tolerance: in squared units of the features.
        max_rounds: it stops after so many in any case; at least 1.

    Returns:
        Centres and the cluster of each cell.

    Raises:
        ShapeError: cells are not (N, D).
    """
    if cells.ndim != 2:
        raise ShapeError(f"cells to cluster must be (N, D), got {tuple(cells.shape)}")
    count = min(count, len(cells))
    if count == 0:
        return Clusters(cells[:0], torch.zeros(len(cells), dtype=torch.int64, device=cells.device))
    if first is None:
        first = rng.choice(len(cells), count, replace=False)
    centres = cells[torch.as_tensor(first, device=cells.device)]
    for _ in range(max_rounds):
        # The length of a cell does not change which centre is nearest.
        assigned = (cells @ normalize(centres, dim=1).T).argmax(1)
        sizes = assigned.bincount(minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, assigned, cells)
        moved = sums / sizes.clamp(min=1)[:, None]
        empty = sizes == 0
        if empty.any():
            drawn = rng.choice(len(cells), int(empty.sum()), replace=False)
            moved[empty] = cells[torch.as_tensor(drawn, device=cells.device)]
        shift = (moved - centres).norm(dim=1).sum()
        centres = moved
        if shift**2 < tolerance:
            break
    return Clusters(centres, assigned)


def select_prototypes(
    foreground: Tensor,
    background: Tensor,
    classifier: Tensor,
    class_id: int,
    *,
    prototype_above: float = 0.9,
    context_between: tuple[float, float] = (0.05, 0.9),
) -> Prototypes:
    """Keep centres that the classifier gives to the class, and background centres that it half mistakes for it.

    P(centre) is the class's share in the softmax over all classes of W . centre.

    Args:
        foreground: (A, D) centres of the cells above the threshold.
        background: (B, D) centres of the cells below it.
        classifier: (K, D) weights W.
        class_id: the class, 0..K-1.
        prototype_above: foreground centres with P above it are prototypes.
        context_between: background centres with P strictly between are context; (0, 0.5) for COCO.

    Returns:
        Prototypes and context of the class.
    """
    likely = (foreground @ classifier.T).softmax(1)[:, class_id]
    mistaken = (background @ classifier.T).softmax(1)[:, class_id]
    low, high = context_between
    return Prototypes(foreground[likely > prototype_above], background[(mistaken > low) & (mistaken < high)])


def similarity_map(features: Tensor, prototypes: Tensor, context: Tensor) -> Tensor:
    """Mean cosine to the prototypes, less the mean cosine to the context, rectified.

    Args:
        features: (D, h, w) features.
        prototypes: (P, D), at least one.
        context: (C, D); without any nothing is taken off, and the ground is far above 0.

    Returns:
        (h, w) map in [0, 1].

    Raises:
        ShapeError: there is no prototype, or the widths D differ.
    """
    if (
        features.ndim != 3
        or not len(prototypes)
        or {len(features)} != {prototypes.shape[1], context.shape[1]}
    ):
        raise ShapeError(
            f"features (D, h, w) need prototypes (P, D) and context (C, D) with P > 0, got "
            f"{tuple(features.shape)}, {tuple(prototypes.shape)} and {tuple(context.shape)}"
        )
    # The mean of cosines is one product with the mean of the unit vectors.
    direction = normalize(prototypes, dim=1).mean(0)
    if len(context):
        direction = direction - normalize(context, dim=1).mean(0)
    return relu(torch.einsum("d,dhw->hw", direction, normalize(features, dim=0)))


def lpcam_maps(pair: Tensor, classes: Sequence[Prototypes], classifier: Tensor) -> Tensor:
    """Maps of one scale; a class without prototypes gets the plain activation map.

    Args:
        pair: (2, D, h, w) features of a picture and of its mirror, summed before the similarity is taken.
        classes: what `select_prototypes` gave for each of the K classes of the picture.
        classifier: (K, D) weights of these classes, for the plain map ReLU(W . f), picture plus mirror.

    Returns:
        (K, h, w) maps >= 0.

    Raises:
        ShapeError: the tensors do not fit together.
    """
    if pair.ndim != 4 or len(pair) != 2 or classifier.shape != (len(classes), pair.shape[1]):
        raise ShapeError(
            f"a pair of features (2, D, h, w) and {len(classes)} classes need a classifier (K, D), got "
            f"{tuple(pair.shape)} and {tuple(classifier.shape)}"
        )
    aligned = torch.stack([pair[0], pair[1].flip(-1)])
    maps = pair.new_zeros((len(classes), *pair.shape[2:]))
    for number, (prototypes, context) in enumerate(classes):
        if len(prototypes):
            maps[number] = similarity_map(aligned.sum(0), prototypes, context)
        else:
            maps[number] = relu(torch.einsum("d,bdhw->bhw", classifier[number], aligned)).sum(0)
    return maps


def merge_lpcam(maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Average the maps of all scales, at stride 4 and at full size; each class is divided by its own maximum.

    Unlike `ops.cam.merge_scales`, which has the same sizes, nothing is added to the maximum.

    Args:
        maps: one (K, h_s, w_s) tensor of values >= 0 per scale.
        size: (H, W) of the picture in pixels.

    Returns:
        cam (K, h, w) at stride 4 and high_res_cam (K, H, W), both in [0, 1].

    Raises:
        ShapeError: there is no scale.
    """
    if not maps:
        raise ShapeError("there is no scale to merge")
    height, width = (cells * HIGH_RES_STRIDE for cells in strided_size(size, HIGH_RES_STRIDE))
    high_res = sum_over_scales(maps, (height, width))[:, : size[0], : size[1]]
    return _divided_by_maximum(sum_over_scales(maps, strided_size(size))), _divided_by_maximum(high_res)


def _divided_by_maximum(maps: Tensor) -> Tensor:
    if not maps.numel():
        return maps
    largest = maps.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest, 0)
