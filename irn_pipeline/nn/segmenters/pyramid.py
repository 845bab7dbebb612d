"""Dense features for models that decide pixel by pixel: fused stages of a backbone, or its last one dilated."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.transforms.v2 import functional as TF

from irn_pipeline.errors import ConfigError
from irn_pipeline.nn.backbone import RESNETS, build_backbone, freeze_batch_norms
from irn_pipeline.structures import imagenet_scaling

_FIRST_STAGE = {4: 1, 8: 2}


class PyramidFeatures(nn.Module):
    """A backbone and torchvision's feature pyramid; the finest level is the output.

    The batch norms of the backbone stay as they were loaded: batches here are too small to measure them.

    Args:
        backbone: name of the backbone, one of five maps.
        channels: of the output.
        stride: pixels per cell of the output, 4 or 8.
    """

    def __init__(self, *, backbone: str = "resnet50", channels: int = 128, stride: int = 4) -> None:
        super().__init__()
        if stride not in _FIRST_STAGE:
            raise ConfigError(f"the feature pyramid has cells of 4 or 8 pixels, got {stride}")
        self.backbone = build_backbone(backbone, pyramid=True)
        self.first = _FIRST_STAGE[stride]
        self.pyramid = FeaturePyramidNetwork(list(self.backbone.channels[self.first :]), channels)
        # Only the finest level is read: what smooths the others would wait for a gradient that never comes.
        for block in list(self.pyramid.layer_blocks)[1:]:
            block.requires_grad_(False)
        self.channels, self.stride = channels, stride

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pictures in [0, 1] -> (B, channels, ceil(H / stride), ceil(W / stride))."""
        stages = self.backbone(TF.normalize(images, *imagenet_scaling(images.shape[1])))[self.first :]
        fused = self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(stages)))
        finest: Tensor = fused["0"]
        return finest

    def train(self, mode: bool = True) -> PyramidFeatures:
        """Training mode, but for the backbone's batch norms."""
        super().train(mode)
        freeze_batch_norms(self.backbone)
        return self


class DilatedFeatures(nn.Module):
    """DeepLab's features: a ResNet whose last two stages keep stride 8 and look as far by dilation.

    Weights of the plain ResNet fit. The batch norms stay as they were loaded.

    Args:
        backbone: resnet18, resnet34, resnet50 or resnet101 (the paper's).
    """

    stride = 8

    def __init__(self, *, backbone: str = "resnet101") -> None:
        super().__init__()
        if backbone not in RESNETS:
            raise ConfigError(
                f"--features dilated needs one of {', '.join(RESNETS)} as --backbone, got {backbone}; use --features "
                "pyramid"
            )
        self.backbone = build_backbone(backbone, last_stride=self.stride)
        self.channels = self.backbone.channels[-1]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [0, 1] -> (B, channels, ceil(H / 8), ceil(W / 8))."""
        found: Tensor = self.backbone(TF.normalize(images, *imagenet_scaling(images.shape[1])))[-1]
        return found

    def train(self, mode: bool = True) -> DilatedFeatures:
        """Training mode, but for the backbone's batch norms."""
        super().train(mode)
        freeze_batch_norms(self.backbone)
        return self
