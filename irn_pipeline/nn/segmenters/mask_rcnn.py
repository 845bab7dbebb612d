"""torchvision's Mask R-CNN with a ResNet-FPN of any depth, behind the segmenters' interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import masks_to_boxes

from irn_pipeline.nn.backbone import Backbone, BackboneName
from irn_pipeline.nn.segmenters.base import Target
from irn_pipeline.structures import Instances


class MaskRcnnSegmenter(nn.Module):
    """Mask R-CNN (He et al., ICCV 2017).

    Args:
        num_classes: foreground classes C.
        backbone: which ResNet.
        short_side: pictures are resized to this short side, pixels.
        long_side: and at most to this long side.
        boxes_per_image: sampled boxes a picture in training.
        max_instances: kept a picture at inference.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: BackboneName = "resnet50",
        short_side: int = 512,
        long_side: int = 800,
        boxes_per_image: int = 512,
        max_instances: int = 100,
    ) -> None:
        super().__init__()
        fpn = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=4)
        self.model = MaskRCNN(
            fpn,
            num_classes=num_classes + 1,
            min_size=short_side,
            max_size=long_side,
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
        """Start from a ResNet's weights; its batch norms become torchvision's frozen ones."""
        body = self.model.backbone.body
        own = body.state_dict()
        body.load_state_dict({name: value for name, value in source.state_dict().items() if name in own})

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Torchvision's five losses."""
        return self.model(list(images), [_as_torchvision(target) for target in targets])

    @torch.no_grad()
    def predict(self, image: Tensor) -> Instances:
        """Instances of one picture; masks where the probability exceeds 1/2."""
        found = self.model([image])[0]
        return Instances(
            found["scores"].float().cpu().numpy().astype(np.float32),
            (found["masks"][:, 0] > 0.5).cpu().numpy(),
            (found["labels"] - 1).cpu().numpy(),
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group with everything that learns."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]


def _in_float32(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_in_float32(module, inputs, part) for part in outputs)


def _as_torchvision(target: Target) -> dict[str, Tensor]:
    masks = target.masks
    if len(masks) == 0:
        boxes = masks.new_zeros((0, 4), dtype=torch.float32)
    else:
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # the far edge of the last pixel
    return {"boxes": boxes, "labels": target.class_ids + 1, "masks": masks.to(torch.uint8)}
