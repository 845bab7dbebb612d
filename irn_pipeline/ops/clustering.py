"""Class-agnostic instance map: cells whose displacement leads to the same place (paper, section 5.1)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from irn_pipeline.ops.displacement import find_centroids
from irn_pipeline.structures import FloatArray, IntArray


def instance_map(displacement: FloatArray, *, threshold: float = 2.5, iterations: int = 300) -> IntArray:
    """Group the cells of a displacement field by where they lead.

    Cells with a displacement shorter than `threshold` form 4-connected components, the instances' centres.
    Every cell belongs to the component at its centroid; cells that reach none share one id as well.

    Args:
        displacement: (2, h, w) float32, dy then dx in cells.
        threshold: length in cells below which a displacement counts as a centre.
        iterations: steps of the search for centroids.

    Returns:
        (h, w) int64 ids 0..I - 1, all of them in use; cells that reach no component, if any, have the id 0.

    Raises:
        ShapeError: the field is not (2, h, w).
        IrnError: the field holds NaN or infinite values.
    """
    centroids = find_centroids(displacement, iterations)
    length = np.sqrt(displacement[0] ** 2 + displacement[1] ** 2)
    components, _ = ndimage.label(length < threshold)
    reached = components[centroids[0], centroids[1]]
    ids = np.unique(reached, return_inverse=True)[1]
    return ids.reshape(reached.shape).astype(np.int64)
