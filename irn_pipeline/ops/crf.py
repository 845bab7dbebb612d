"""Dense CRF on hard labels, and the confident labels mined with it (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.cam import cam_index, require_one_map_per_class
from irn_pipeline.ops.crf_params import CrfParams
from irn_pipeline.ops.masks import label_from_index
from irn_pipeline.ops.reference_crf import reference_model
from irn_pipeline.structures import BACKGROUND, IGNORE, FloatArray, IntArray, LabelArray

CrfBackend: TypeAlias = Literal["lattice", "pydensecrf"]
"""Who computes the CRF: this package, several times faster, or the reference library. Their labels agree."""


_PUBLISHED = CrfParams()


def dense_crf(
    image: npt.NDArray[np.uint8],
    label: npt.NDArray[np.integer],
    num_labels: int,
    crf: CrfParams = _PUBLISHED,
    *,
    backend: CrfBackend = "lattice",
) -> npt.NDArray[np.int64]:
    """Smooth a hard label along the edges of its picture.

    Args:
        image: (H, W, 3) uint8 RGB picture.
        label: (H, W) integers 0..num_labels - 1; every value counts as a label, 0 too.
        num_labels: number of labels L.
        crf: parameters of the CRF.
        backend: who computes it.

    Returns:
        (H, W) most probable label, 0..L - 1.

    Raises:
        ShapeError: picture or label have another shape, dtype or value range.
        ConfigError: the backend is unknown or not installed, or a standard deviation too small.
    """
    return _refine(image, [label], num_labels, crf, backend)[0]


def confident_label(
    image: npt.NDArray[np.uint8],
    high_res_cam: FloatArray,
    class_ids: IntArray,
    *,
    fg_threshold: float = 0.30,
    bg_threshold: float = 0.05,
    crf: CrfParams = _PUBLISHED,
    backend: CrfBackend = "lattice",
) -> LabelArray:
    """Label of the pixels whose class the maps are sure of.

    Two labels are refined by the CRF, one with a high background score and one with a low one: pixels that
    are foreground in the first keep that class, pixels that are background in both are background, the
    others are unsure.

    Args:
        image: (H, W, 3) uint8 RGB picture.
        high_res_cam: (K, H, W) maps in [0, 1].
        class_ids: (K,) foreground class ids.
        fg_threshold: background score that confident foreground must exceed.
        bg_threshold: background score that confident background must not exceed.
        crf: parameters of the CRF.
        backend: who computes it.

    Returns:
        (H, W) uint8 label, 0 background, class_id + 1, 255 unsure.

    Raises:
        ShapeError: picture, maps and class ids do not fit together.
        ConfigError: the backend is unknown or not installed, or a standard deviation too small.
    """
    require_one_map_per_class(high_res_cam, class_ids)
    seeds = [cam_index(high_res_cam, threshold)[0] for threshold in (fg_threshold, bg_threshold)]
    foreground, background = _refine(image, seeds, len(class_ids) + 1, crf, backend)
    label = label_from_index(foreground, class_ids)
    label[(label == BACKGROUND) & (background != 0)] = IGNORE
    return label


def _refine(
    image: npt.NDArray[np.uint8],
    labels: Sequence[npt.NDArray[np.integer]],
    num_labels: int,
    crf: CrfParams,
    backend: CrfBackend,
) -> list[npt.NDArray[np.int64]]:
    """Refine several labels of one picture; the pairwise terms are built once, as only the unaries differ."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"the CRF needs an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    for label in labels:
        if label.shape != (height, width):
            raise ShapeError(f"label of a {height}x{width} image has the shape {label.shape}")
        if label.size and not 0 <= int(label.min()) <= int(label.max()) < num_labels:
            raise ShapeError(f"label must hold 0..{num_labels - 1}, got {label.min()}..{label.max()}")
    if num_labels == 1 or not height * width:
        # One label leaves nothing to decide, and its unary would divide by zero.
        return [label.astype(np.int64) for label in labels]
    if backend not in _REFINERS:
        raise ConfigError(f"unknown CRF backend '{backend}'; take one of {', '.join(_REFINERS)}")
    return _REFINERS[backend](image, labels, num_labels, crf)


def _refine_with_lattice(
    image: npt.NDArray[np.uint8],
    labels: Sequence[npt.NDArray[np.integer]],
    num_labels: int,
    crf: CrfParams,
) -> list[npt.NDArray[np.int64]]:
    # Each backend imports its own library; numba, which is behind these, takes a second.
    from irn_pipeline.ops.mean_field import mean_field, pairwise_model
    from irn_pipeline.ops.permutohedral import build_lattice

    height, width = image.shape[:2]
    appearance = np.empty((5, height * width), np.float32)
    appearance[:2] = _positions((height, width), crf.bilateral_sxy)
    np.divide(image.reshape(-1, 3).T, np.float32(crf.bilateral_srgb), out=appearance[2:])
    model = pairwise_model(
        build_lattice(appearance),
        build_lattice(_positions((height, width), crf.gaussian_sxy)),
        appearance_compat=crf.bilateral_compat,
        smoothness_compat=crf.gaussian_compat,
    )
    seeds = np.stack([label.ravel() for label in labels])
    refined = mean_field(model, seeds, num_labels, confidence=crf.confidence, iterations=crf.iterations)
    return list(refined.astype(np.int64).reshape(-1, height, width))


def _positions(size: tuple[int, int], deviation: float) -> FloatArray:
    """(2, H * W) float32: x, then y of every pixel, in standard deviations."""
    y, x = (np.arange(side, dtype=np.float32) / np.float32(deviation) for side in size)
    return np.stack([np.tile(x, size[0]), np.repeat(y, size[1])])


def _refine_with_pydensecrf(
    image: npt.NDArray[np.uint8],
    labels: Sequence[npt.NDArray[np.integer]],
    num_labels: int,
    crf: CrfParams,
) -> list[npt.NDArray[np.int64]]:
    height, width = image.shape[:2]
    model = reference_model(image, num_labels, crf)
    from pydensecrf.utils import unary_from_labels  # where there is a model, there is the library

    refined = []
    for label in labels:
        model.setUnaryEnergy(unary_from_labels(label, num_labels, gt_prob=crf.confidence, zero_unsure=False))
        probabilities = np.array(model.inference(crf.iterations))
        refined.append(probabilities.argmax(axis=0).reshape(height, width))
    return refined


_REFINERS: Mapping[CrfBackend, Callable[..., list[npt.NDArray[np.int64]]]] = MappingProxyType(
    {"lattice": _refine_with_lattice, "pydensecrf": _refine_with_pydensecrf}
)
