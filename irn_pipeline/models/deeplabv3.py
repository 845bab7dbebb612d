"""DeepLab v3 (Chen et al., 2017): semantic labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from irn_pipeline.errors import ConfigError
from irn_pipeline.models.base import CropParams, Model, Recipe

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


@dataclass(frozen=True)
class Params(CropParams):
    """Parameters of this model."""

    output_stride: int = field(default=16, metadata={"fingerprint": "unless default"})
    """deeplabv3: pixels per cell of its features, 16 or 8; 8 follows outlines more closely and takes longer."""
    balance_classes: bool = field(default=True, metadata={"fingerprint": "unless default"})
    """deeplabv3: give background and foreground of an image the same weight in the loss; false: every pixel."""

    def __post_init__(self) -> None:
        if self.output_stride not in (8, 16):
            raise ConfigError(f"output_stride is {self.output_stride}; it must be 16 or 8")


@dataclass(frozen=True)
class Asked:
    """How the trained model is asked for labels."""

    crf: bool = False
    """deeplabv3: refine the labels with the dense CRF, which takes seconds per image."""
    test_scales: tuple[float, ...] = ()
    """deeplabv3: average the probabilities over these relative image sizes, such as 0.5 1.0 1.5."""

    def __post_init__(self) -> None:
        if not all(0 < scale < float("inf") for scale in self.test_scales):
            raise ConfigError(f"test_scales are {list(self.test_scales)}; they must be numbers above 0")


def build(
    params: Any, num_classes: int, *, crf: bool = False, test_scales: tuple[float, ...] = ()
) -> Segmenter:
    """The untrained network."""
    from irn_pipeline.nn.segmenters.deeplab import DeepLabV3

    scales = test_scales or (1.0,)
    return DeepLabV3(
        num_classes=num_classes,
        backbone=params.backbone,
        output_stride=params.output_stride,
        balance_classes=params.balance_classes,
        crf=crf,
        test_scales=scales,
    )


# 30,000 iterations of 10 pictures on VOC's 10,582.
MODEL = Model(
    recipe=Recipe(epochs=28, batch_size=10, lr=2.5e-4, optimizer="sgd", crop=321, rescale=(0.5, 2.0)),
    build=build,
    params=Params,
    asked=Asked,
)
