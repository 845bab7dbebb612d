"""pydensecrf, the reference library of the dense CRF, which not every Python can have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError
from irn_pipeline.ops.crf_params import CrfParams


def require_reference() -> None:
    """Make sure that the library is there.

    Raises:
        ConfigError: pydensecrf is not installed.
    """
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the reference CRF needs the package pydensecrf2, which is not installed; use --crf-backend lattice, "
            "or Python 3.12 or older, where it can be compiled: pip install 'irn_pipeline[reference]'"
        ) from error


def reference_model(image: npt.NDArray[np.uint8], num_labels: int, crf: CrfParams) -> Any:
    """Pydensecrf's model of a picture with both pairwise terms; the caller gives it the unary.

    Args:
        image: (H, W, 3) uint8 RGB picture.
        num_labels: number of labels.
        crf: parameters of the pairwise terms.

    Returns:
        A `DenseCRF2D`.

    Raises:
        ConfigError: pydensecrf is not installed.
    """
    require_reference()
    from pydensecrf.densecrf import DenseCRF2D

    model = DenseCRF2D(image.shape[1], image.shape[0], num_labels)
    model.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_compat)
    # The extension takes only contiguous, writable memory.
    pixels = np.array(image, order="C")
    model.addPairwiseBilateral(
        sxy=crf.bilateral_sxy, srgb=crf.bilateral_srgb, rgbim=pixels, compat=crf.bilateral_compat
    )
    return model
