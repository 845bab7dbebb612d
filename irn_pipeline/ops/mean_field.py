"""Mean-field inference of a dense CRF with two Gaussian terms, for several hard labels of one picture at once.

Krähenbühl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials" (2011). One
pass over the pixels does an iteration: it gathers both blurred lattices, takes the softmax, and splats the
new belief, while the belief itself is never stored. With the lattices' making it takes about 220 bytes a pixel at
the peak for 3 labels (measured at 0.32 corners a pixel): 2.6 GB for a picture of 4000x3000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.lattice_loops import SPARE_ROWS
from irn_pipeline.ops.mean_field_loops import CORNERS, LANES, blur_lanes, iterate
from irn_pipeline.ops.permutohedral import Lattice, filter_values
from irn_pipeline.structures import FloatArray

_MAX_LABELS = int(np.iinfo(np.int16).max)


@dataclass(frozen=True)
class PairwiseModel:
    """The pairwise terms of one picture, whatever its labels.

    Attributes:
        lattices: the appearance lattice (5 dimensions) and the smoothness lattice (2) of N pixels.
        corners: (N, 9) uint32 rows in a field that holds both lattices' corners, SPARE_ROWS after each.
        weights: (N, 9) float32, with each term's normalisation and weight in them: splat, blur and gather give
            compat * n K n, with K the lattice's filter and n = (K 1 + 1e-20)^-1/2.
        total: (N,) float32, what the terms make of the constant 1: the messages of all labels together.
    """

    lattices: tuple[Lattice, Lattice]
    corners: npt.NDArray[np.uint32]
    weights: FloatArray
    total: FloatArray


def pairwise_model(
    appearance: Lattice, smoothness: Lattice, *, appearance_compat: float, smoothness_compat: float
) -> PairwiseModel:
    """Pairwise terms with Potts compatibilities and symmetric normalisation.

    Args:
        appearance: lattice of the N pixels' positions and colours.
        smoothness: lattice of their positions.
        appearance_compat: weight of the appearance term, 0 or more.
        smoothness_compat: weight of the smoothness term, 0 or more.

    Raises:
        ShapeError: the lattices are not of 5 and 2 dimensions, or of different numbers of pixels.
        ConfigError: a weight is negative.
    """
    lattices = (appearance, smoothness)
    pixels = len(appearance.corners)
    if [lattice.corners.shape for lattice in lattices] != [(pixels, 6), (pixels, 3)]:
        raise ShapeError(
            f"the CRF needs corners (N, 6) of appearance and (N, 3) of smoothness, "
            f"got {appearance.corners.shape} and {smoothness.corners.shape}"
        )
    if not min(appearance_compat, smoothness_compat) >= 0:
        raise ConfigError(
            f"the CRF's weights must be 0 or more, got bilateral_compat {appearance_compat} and "
            f"gaussian_compat {smoothness_compat}"
        )
    corners = np.concatenate(
        [appearance.corners, smoothness.corners + np.uint32(appearance.num_corners + SPARE_ROWS)], axis=1
    )
    weights = np.empty((pixels, CORNERS), np.float32)
    total = np.zeros(pixels, np.float32)
    for lattice, compat, columns in zip(
        lattices, (appearance_compat, smoothness_compat), (slice(0, 6), slice(6, 9)), strict=True
    ):
        norm = 1 / np.sqrt(filter_values(lattice, np.ones(pixels, np.float32)) + np.float32(1e-20))
        total += np.float32(compat) * norm * filter_values(lattice, norm)
        factor = norm * np.sqrt(np.float32(compat) * lattice.gain)
        np.multiply(lattice.weights, factor[:, None], out=weights[:, columns])
    return PairwiseModel(lattices, corners, weights, total)


def mean_field(
    model: PairwiseModel,
    labels: npt.NDArray[np.integer],
    num_labels: int,
    *,
    confidence: float,
    iterations: int,
) -> npt.NDArray[np.int16]:
    """Most probable labels of S runs that differ only in the hard label that each starts from.

    The belief of a run sums to 1 at every pixel and the filter is linear, which leaves L - 1 channels a run to
    filter: what label 0 gets is the rest.

    Args:
        model: the pairwise terms of N pixels.
        labels: (S, N) integers 0..L - 1.
        num_labels: number of labels L, 2 or more.
        confidence: probability that a given label is right, above 0 and below 1.
        iterations: number of iterations; 0 gives the most probable labels of the unary terms.

    Returns:
        (S, N) int16 labels; the lowest of equally probable ones.

    Raises:
        ShapeError: model and labels are of different numbers of pixels, or labels are out of range.
        ConfigError: confidence or iterations are out of range.
    """
    if labels.ndim != 2 or labels.shape[1] != len(model.corners):
        raise ShapeError(f"labels of {len(model.corners)} pixels must be (S, N), got {labels.shape}")
    if not 2 <= num_labels <= _MAX_LABELS:
        raise ShapeError(f"mean field needs 2 to {_MAX_LABELS} labels, got {num_labels}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise ShapeError(f"labels must hold 0..{num_labels - 1}, got {labels.min()}..{labels.max()}")
    if not 0 < confidence < 1 or iterations < 0:
        raise ConfigError(
            f"the CRF needs 0 < confidence < 1 and iterations >= 0, got {confidence} and {iterations}"
        )
    seeds = labels.astype(np.int16)
    refined = np.empty_like(seeds)
    # Of all labels the given one stands out by this much, and the others are alike.
    evidence = np.float32(np.log(confidence)) - np.float32(np.log((1 - confidence) / (num_labels - 1)))
    groups = -(-len(labels) * (num_labels - 1) // LANES)
    border = model.lattices[0].num_corners + SPARE_ROWS
    rows = border + model.lattices[1].num_corners + SPARE_ROWS
    blurred, splatted = (np.zeros((groups, rows, LANES), np.float32) for _ in range(2))
    for iteration in range(iterations + 1):
        first, last = iteration == 0, iteration == iterations
        iterate(
            model.corners, model.weights, model.total, blurred, splatted,
            seeds, num_labels, evidence, refined, first, last,
        )  # fmt: skip
        if last:
            break
        for group in splatted:
            for lattice, field in zip(model.lattices, (group[:border], group[border:]), strict=True):
                blur_lanes(lattice.chains, lattice.starts, field)
        blurred, splatted = splatted, blurred
        splatted.fill(0)
    return refined
