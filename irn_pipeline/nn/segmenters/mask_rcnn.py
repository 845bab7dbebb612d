"""torchvision's Mask R-CNN with a feature pyramid on any backbone, behind the segmenters' interface."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from irn_pipeline.nn.backbone import RESNETS, Backbone, build_backbone, freeze_batch_norms
from irn_pipeline.nn.segmenters.base import Segmenter, Target
from irn_pipeline.structures import Instances, imagenet_scaling


class MaskRcnnSegmenter(Segmenter):
    """Mask R-CNN (He et al., ICCV 2017).

    Args:
        num_classes: foreground classes C.
        backbone: name of the backbone, one of five maps.
        short_side: pictures are resized to this short side, pixels.
        long_side: and at most to this long side.
        boxes_per_image: sampled boxes a picture in training.
        channels: of the feature pyramid and the heads; torchvision's own model has 256. Narrow heads are much
            faster: at 256 the mask head costs more than a ResNet-18.
        max_instances: kept a picture at inference.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet50",
        short_side: int = 512,
        long_side: int = 800,
        boxes_per_image: int = 512,
        channels: int = 256,
        max_instances: int = 100,
    ) -> None:
        super().__init__(num_classes)
        self.model = MaskRCNN(
            _pyramid(backbone, channels),
            min_size=short_side,
            max_size=long_side,
            box_head=TwoMLPHead(channels * 7 * 7, 4 * channels),
            box_predictor=FastRCNNPredictor(4 * channels, num_classes + 1),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
            box_batch_size_per_image=boxes_per_image,
            box_detections_per_img=max_instances,
        )
        # Whatever precision the layers run in, torchvision computes its losses in that of these outputs.
        for head in (
            self.model.rpn.head,
            self.model.roi_heads.box_predictor,
            self.model.roi_heads.mask_predictor,
        ):
            head.register_forward_hook(_in_float32)

    def load_backbone(self, source: Backbone) -> None:
        """Start from the weights of a backbone; its batch norms are frozen."""
        body = self.model.backbone.body
        own = body.state_dict()
        body.load_state_dict({name: value for name, value in source.state_dict().items() if name in own})

    def take_channels(self, channels: int) -> None:
        """As the base class; torchvision's own step scales the pictures."""
        super().take_channels(channels)
        self.model.transform.image_mean, self.model.transform.image_std = imagenet_scaling(channels)

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Torchvision's five losses; instances without two pixels of extent both ways have no box and are left out."""
        return self.model(list(images), [as_torchvision(target) for target in targets])

    @torch.no_grad()
    def predict(self, image: Tensor) -> Instances:
        """Instances of one picture; masks where the probability exceeds 1/2."""
        found = self.model([image])[0]
        return Instances(
            found["scores"].float().cpu().numpy().astype(np.float32),
            (found["masks"][:, 0] > 0.5).cpu().numpy(),
            (found["labels"] - 1).cpu().numpy(),
        )


class _Pyramid(nn.Module):
    """What torchvision's `BackboneWithFPN` is, on the last four maps of a backbone."""

    def __init__(self, backbone: str, channels: int) -> None:
        super().__init__()
        self.body = build_backbone(backbone, pyramid=True, last_stride=32)
        self.body.freeze_stages(1)
        self.fpn = FeaturePyramidNetwork(list(self.body.channels[1:]), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(OrderedDict(zip("0123", self.body(images)[1:], strict=True)))
        return maps

    def train(self, mode: bool = True) -> _Pyramid:
        super().train(mode)
        freeze_batch_norms(self.body)
        return self


def _pyramid(backbone: str, channels: int) -> BackboneWithFPN | _Pyramid:
    if backbone not in RESNETS:
        return _Pyramid(backbone, channels)
    # As torchvision's resnet_fpn_backbone, which has no argument for the channels.
    body = getattr(torchvision.models, backbone)(weights=None, norm_layer=FrozenBatchNorm2d)
    for parameter in body.conv1.parameters():
        parameter.requires_grad_(False)
    width = body.inplanes // 8
    stages = {f"layer{index}": str(index - 1) for index in range(1, 5)}
    return BackboneWithFPN(body, stages, [width * 2**index for index in range(4)], channels)


def _in_float32(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_in_float32(module, inputs, part) for part in outputs)


def as_torchvision(target: Target) -> dict[str, Tensor]:
    """Torchvision's target; "weights", which it does not read, stay beside their instances."""
    masks = target.masks
    wide = (masks.any(1).sum(1) > 1) & (masks.any(2).sum(1) > 1)
    masks = masks[wide]
    if len(masks) == 0:
        boxes = masks.new_zeros((0, 4), dtype=torch.float32)
    else:
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # the far edge of the last pixel
    return {
        "boxes": boxes,
        "labels": target.class_ids[wide] + 1,
        "weights": target.weights[wide],
        "masks": masks.to(torch.uint8),
    }
