"""Instances from spatial embeddings: the surest pixel claims what points near it, again and again.

Neven et al., CVPR 2019, section 3.3; one pass for each class's seed map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from irn_pipeline.errors import IrnError, ShapeError
from irn_pipeline.structures import BoolArray, FloatArray, Instances, IntArray

UNIT_X, UNIT_Y = 2 / 2047, 1 / 1023
"""Coordinate units per pixel, those of the authors' 1024 x 2048 grid."""
_LN2 = math.log(2)


@dataclass(frozen=True)
class PixelCluster:
    """One proposal.

    Attributes:
        pixels: (N,) int64 flat indices into the picture, in no particular order.
        seed_prob: seed probability of the pixel that claimed them.
        mean_prob: mean seed probability of the pixels.
    """

    pixels: IntArray
    seed_prob: float
    mean_prob: float

    @property
    def score(self) -> float:
        """The seed's probability times the mean one: the seed alone ranks proposals badly."""
        return self.seed_prob * self.mean_prob


def cluster_instances(
    embedding: FloatArray,
    bandwidth: FloatArray,
    seeds: FloatArray,
    *,
    min_pixels: int,
    seed_threshold: float = 0.5,
    foreground_threshold: float = 0.5,
    max_instances: int = 100,
) -> Instances:
    """Cluster the pixels of every class on its own.

    Args:
        embedding: (2, H, W) float32 coordinates that the pixels point to.
        bandwidth: (D, H, W) float32 raw bandwidth b, 1 / (2 sigma^2) = exp(10 b); D is 1, or 2 in the order of
            `embedding`.
        seeds: (C, H, W) float32 seed probability of each class.
        min_pixels: instances need more pixels than this.
        seed_threshold: smallest probability of a pixel that starts an instance.
        foreground_threshold: only pixels of a larger probability are clustered.
        max_instances: of all classes together; the best are kept.

    Returns:
        Instances, best first; masks may overlap.

    Raises:
        ShapeError: the three maps do not fit.
        IrnError: the maps hold NaN or infinite values.
    """
    if seeds.ndim != 3:
        raise ShapeError(f"seeds must be (C, H, W), got {seeds.shape}")
    found = [
        (cluster, class_id)
        for class_id, seed in enumerate(seeds)
        for cluster in cluster_pixels(
            embedding,
            bandwidth,
            seed,
            min_pixels=min_pixels,
            seed_threshold=seed_threshold,
            foreground_threshold=foreground_threshold,
        )
    ]
    found.sort(key=lambda item: -item[0].score)
    found = found[:max_instances]
    masks = np.zeros((len(found), *seeds.shape[1:]), np.bool_)
    for mask, (cluster, _) in zip(masks, found, strict=True):
        mask.reshape(-1)[cluster.pixels] = True
    scores = np.array([cluster.score for cluster, _ in found], np.float32)
    return Instances(scores, masks, np.array([class_id for _, class_id in found], np.int64))


def instances_at(
    embedding: FloatArray,
    bandwidth: FloatArray,
    seeds: FloatArray,
    truth: Instances,
    *,
    to_center: bool,
    foreground_threshold: float = 0.5,
) -> Instances:
    """The masks around the centres of true instances: what the clustering would find with perfect seeds.

    A centre and its bandwidth are those that the loss takes: means over the true mask.

    Args:
        embedding: as for `cluster_instances`.
        bandwidth: likewise.
        seeds: likewise.
        truth: true instances of the picture.
        to_center: the centre is the mean coordinate of the mask, as the grid of `embedding` has it; else the mean
            embedding.
        foreground_threshold: as for `cluster_instances`.

    Returns:
        An instance for each true one with pixels, in their order; the score is the mean seed probability in its mask.

    Raises:
        ShapeError: the maps are not of one picture.
    """
    size = seeds.shape[1:]
    if embedding.shape != (2, *size) or bandwidth.shape[1:] != size or truth.size != size:
        raise ShapeError(
            f"maps and true masks must be of one picture, got {embedding.shape} and {truth.size}"
        )
    points, sharpness = embedding.reshape(2, -1), bandwidth.reshape(len(bandwidth), -1)
    kept = [position for position in range(len(truth)) if truth.masks[position].any()]
    masks = np.zeros((len(kept), *size), np.bool_)
    scores = np.zeros(len(kept), np.float32)
    for place, position in enumerate(kept):
        true = truth.masks[position].reshape(-1)
        seed = seeds[truth.class_ids[position]].reshape(-1)
        centre = _mean_place(truth.masks[position]) if to_center else points[:, true].mean(1)
        own = _sharpness(sharpness[:, true].mean(1, keepdims=True))[:, 0]
        near = own @ np.square(points - centre[:, None]) < _LN2
        found = near & (seed > foreground_threshold)
        masks[place] = found.reshape(size)
        scores[place] = seed[found].mean() if found.any() else 0
    return Instances(scores, masks, truth.class_ids[kept])


def _mean_place(mask: BoolArray) -> FloatArray:
    """(2,) mean coordinate of a mask, x then y, in the units of the embedding."""
    rows, columns = mask.nonzero()
    return np.array([columns.mean() * UNIT_X, rows.mean() * UNIT_Y], np.float32)


def cluster_pixels(
    embedding: FloatArray,
    bandwidth: FloatArray,
    seed: FloatArray,
    *,
    min_pixels: int,
    seed_threshold: float = 0.5,
    foreground_threshold: float = 0.5,
) -> list[PixelCluster]:
    """Sequential clustering of one seed map.

    While more than `min_pixels` pixels are unclaimed, the unclaimed pixel of the largest probability proposes all
    foreground pixels, claimed ones too, that its own bandwidth makes more likely than 1/2. The proposal is an
    instance if it has more than `min_pixels` pixels and more than half of them were unclaimed. Its pixels are
    claimed in any case, so this ends after at most as many steps as there are foreground pixels.

    Args:
        embedding: (2, H, W) float32.
        bandwidth: (D, H, W) float32 raw, D is 1 or 2.
        seed: (H, W) float32 probabilities.
        min_pixels: as for `cluster_instances`.
        seed_threshold: likewise.
        foreground_threshold: likewise.

    Returns:
        Clusters in the order in which they were found, seeds in decreasing order.

    Raises:
        ShapeError: the maps do not fit.
        IrnError: the maps hold NaN or infinite values.
    """
    if seed.ndim != 2 or embedding.shape != (2, *seed.shape) or bandwidth.shape[1:] != seed.shape:
        raise ShapeError(
            f"embedding (2, H, W), bandwidth (D, H, W) and seed (H, W) must be of one image, "
            f"got {embedding.shape}, {bandwidth.shape} and {seed.shape}"
        )
    if len(bandwidth) not in (1, 2):
        raise ShapeError(f"bandwidth must have one or two channels, got {len(bandwidth)}")
    foreground = _surest_first(seed, foreground_threshold)
    if len(foreground) <= min_pixels:
        return []
    prob = seed.reshape(-1)[foreground]
    points = embedding.reshape(2, -1)[:, foreground]
    sharpness = _sharpness(bandwidth.reshape(len(bandwidth), -1)[:, foreground])
    if not (np.isfinite(points).all() and np.isfinite(sharpness).all()):
        raise IrnError("the embedding or the bandwidth holds NaN or infinite values; train the network again")
    neighbours = _Neighbours(points)
    unclaimed, left, rank = np.ones(len(foreground), np.bool_), len(foreground), 0
    clusters: list[PixelCluster] = []
    while left > min_pixels:
        rank += int(unclaimed[rank:].argmax())
        if prob[rank] < seed_threshold:
            break
        unclaimed[rank] = False
        proposal = neighbours.of(rank, sharpness[:, rank])
        fresh = int(np.count_nonzero(unclaimed[proposal]))
        if len(proposal) > min_pixels and 2 * fresh > len(proposal):
            mean_prob = float(prob[proposal].mean())
            clusters.append(PixelCluster(foreground[proposal], float(prob[rank]), mean_prob))
        unclaimed[proposal] = False
        left -= fresh + 1
    return clusters


class _Neighbours:
    """Pixels whose point lies in an axis-parallel ellipse around that of a given one.

    The points are sorted by their second coordinate, so that only a band of them is looked at: with a network
    that has not learned yet, thousands of small proposals would else each cost a pass over the picture.
    """

    def __init__(self, points: FloatArray) -> None:
        self.points = points
        self.order = np.argsort(points[1])
        self.sorted_points = points[:, self.order]

    def of(self, index: int, sharpness: FloatArray) -> IntArray:
        """Indices of the points at a scaled squared distance below ln 2, the given one among them."""
        centre = self.points[:, index]
        # A little more than the radius: the exact comparison follows.
        reach = 1.001 * math.sqrt(_LN2 / float(sharpness[1])) + 1e-6
        ends = self.sorted_points[1].searchsorted(
            np.array([centre[1] - reach, centre[1] + reach], np.float32)
        )
        band = slice(int(ends[0]), int(ends[1]))
        delta = self.sorted_points[:, band] - centre[:, None]
        inside = sharpness @ np.square(delta) < _LN2
        return self.order[band][inside]


def _surest_first(seed: FloatArray, threshold: float) -> IntArray:
    flat = seed.reshape(-1)
    foreground = np.flatnonzero(flat > threshold)
    return foreground[np.argsort(-flat[foreground], kind="stable")]


def _sharpness(bandwidth: FloatArray) -> FloatArray:
    """(D, N) raw bandwidths -> (2, N) values of 1 / (2 sigma^2)."""
    sharpness = np.exp(np.float32(10) * bandwidth)
    return np.broadcast_to(sharpness, (2, sharpness.shape[1]))
