"""Mask R-CNN steered by semi-convolutional embeddings (Novotny et al., ECCV 2018, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.segmenters.base import Target, check_target
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter, as_torchvision
from irn_pipeline.nn.segmenters.semiconv_roi_heads import SemiconvRoiHeads
from irn_pipeline.nn.semiconv import KernelName

_SHOWN = 3
"""Names of wrong weights that an error lists."""


class SemiconvMaskRcnn(MaskRcnnSegmenter):
    """Mask R-CNN that tells the object of a box from its neighbours by where its cells point to.

    The authors train a Mask R-CNN until it no longer improves and go on from its weights (`load_trained`); training
    from the backbone's weights works too.

    Args:
        kernel: laplacian or gaussian: how a mask falls with the distance of embeddings.
        detector: as for `MaskRcnnSegmenter`.
    """

    starts_from = "mask_rcnn"

    def __init__(self, *, kernel: KernelName = "laplacian", **detector: Any) -> None:
        super().__init__(**detector)
        channels = self.model.backbone.out_channels
        self.model.roi_heads = SemiconvRoiHeads(self.model.roi_heads, channels, kernel)

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Start from a trained `MaskRcnnSegmenter`; the embedding keeps its random weights.

        Args:
            state: the other model's state dict.

        Raises:
            CheckpointError: it is not the state of a Mask R-CNN of this backbone and number of classes.
        """
        own = self.state_dict()
        expected = {name: value for name, value in own.items() if not _is_new(name)}
        problems = [f"{name} is missing" for name in expected if name not in state]
        problems += [f"{name} is unknown" for name in state if name not in expected]
        problems += [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ]
        if problems:
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise CheckpointError(
                f"not the weights of a mask_rcnn with this backbone and {self.num_classes} classes: "
                f"{'; '.join(problems[:_SHOWN])}{more}; give the checkpoint of a mask_rcnn trained with the same "
                f"--backbone and class list"
            )
        self.load_state_dict({**own, **state})

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Torchvision's five losses, the masks' on the steered logits, `loss_kernel` and `loss_embedding`.

        An instance's weight multiplies its terms of the three losses about masks; what is ignored counts in none.
        Instances without two pixels of extent both ways have no box and are left out.

        Raises:
            ShapeError: a target is not of its picture's size, or its parts do not fit.
            DataError: an instance is of a class that the model does not have.
        """
        for image, target in zip(images, targets, strict=True):
            check_target(target, self.num_classes, (image.shape[-2], image.shape[-1]))
        converted = [_with_trust(target) for target in targets]
        losses: dict[str, Tensor] = self.model(list(images), converted)
        return losses

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Everything that learns; no weight decay on log sigma, which would draw sigma to 1."""
        learning = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        sigma = [p for name, p in learning if name.endswith("log_sigma")]
        others = [p for name, p in learning if not name.endswith("log_sigma")]
        return [{"params": others, "lr": lr}, {"params": sigma, "lr": lr, "weight_decay": 0.0}]


def _is_new(name: str) -> bool:
    return name.startswith(("model.roi_heads.embedding.", "model.roi_heads.log_sigma"))


def _with_trust(target: Target) -> dict[str, Tensor]:
    """The dictionary that `SemiconvRoiHeads` learns from."""
    converted = as_torchvision(target)
    # As the last mask, the ignored region is resized by torchvision exactly as the others are.
    ignore = target.ignore[None].to(torch.uint8)
    return {**converted, "masks": torch.cat([converted["masks"], ignore])}
