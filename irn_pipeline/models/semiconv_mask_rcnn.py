"""Mask R-CNN steered by semi-convolutional embeddings (Novotny et al., ECCV 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from irn_pipeline.errors import ConfigError
from irn_pipeline.models.base import BandParams, DetectorParams, Model, Recipe, detector_options

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


@dataclass(frozen=True)
class Params(DetectorParams, BandParams):
    """Parameters of this model."""

    start_from: str | None = None
    """semiconv_mask_rcnn: network.pt of a trained mask_rcnn to which the new branch is added."""
    first_epochs: int = field(default=0, metadata={"fingerprint": "unless default"})
    """semiconv_mask_rcnn: first train a plain mask_rcnn for this many epochs (with --patience, at most), at four times
    the learning rate; then add the new branch and go on for --epochs, as in the paper."""
    kernel: Literal["laplacian", "gaussian"] = field(
        default="laplacian", metadata={"fingerprint": "unless default"}
    )
    """semiconv_mask_rcnn: how similarity falls with the distance of embeddings: exp(-d / sigma) or
    exp(-(d / sigma)^2 / 2)."""

    def __post_init__(self) -> None:
        if self.first_epochs < 0 or (self.first_epochs and self.start_from is not None):
            raise ConfigError(
                f"first_epochs is {self.first_epochs}; it must be 0 or more, and 0 with --start-from, which brings a "
                "trained mask_rcnn"
            )


def build(params: Any, num_classes: int) -> Segmenter:
    """The untrained network."""
    from irn_pipeline.nn.segmenters.semiconv_mask_rcnn import SemiconvMaskRcnn

    return SemiconvMaskRcnn(
        num_classes=num_classes, kernel=params.kernel, backbone=params.backbone, **detector_options(params)
    )


MODEL = Model(
    recipe=Recipe(epochs=7, batch_size=4, lr=0.0025, optimizer="sgd", milestones=(0.5,)),
    build=build,
    params=Params,
)
