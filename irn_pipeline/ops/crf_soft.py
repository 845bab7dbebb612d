"""Dense CRF on a network's probabilities (DeepLab v2, section 3.3): unlike a hard label they say how sure it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.crf_params import DEEPLAB_CRF, CrfParams
from irn_pipeline.ops.reference_crf import reference_model
from irn_pipeline.structures import FloatArray


def dense_crf_probabilities(
    image: npt.NDArray[np.uint8], probabilities: FloatArray, crf: CrfParams = DEEPLAB_CRF
) -> FloatArray:
    """Smooth label probabilities along the edges of their picture.

    Args:
        image: (H, W, 3) uint8 RGB picture.
        probabilities: (L, H, W) floats in [0, 1], one map per label, background included; values below 1e-5
            count as 1e-5.
        crf: parameters of the CRF; its confidence is not used.

    Returns:
        (L, H, W) float32 probabilities of the labels after the last mean-field iteration; they sum to 1.

    Raises:
        ShapeError: picture or probabilities have another shape, dtype or value range.
        ConfigError: pydensecrf is not installed.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"the CRF needs an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if probabilities.ndim != 3 or probabilities.shape[1:] != (height, width) or not len(probabilities):
        raise ShapeError(
            f"probabilities of a {height}x{width} image must be (L, {height}, {width}) with L >= 1, "
            f"got {probabilities.shape}"
        )
    # Written so that a value that is no number is refused too.
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-4):
        raise ShapeError(
            f"probabilities must be in 0..1, got {probabilities.min()}..{probabilities.max()}; "
            "give the softmax of the network's scores"
        )
    if len(probabilities) == 1:
        return np.ones(probabilities.shape, np.float32)
    model = reference_model(image, len(probabilities), crf)
    from pydensecrf.utils import unary_from_softmax  # where there is a model, there is the library

    # The extension takes only contiguous, writable memory.
    model.setUnaryEnergy(np.array(unary_from_softmax(probabilities), np.float32, order="C"))
    return np.array(model.inference(crf.iterations), np.float32).reshape(probabilities.shape)
