"""The multi-label classifier whose last feature map gives class activation maps (paper, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irn_pipeline.nn.backbone import build_backbone, freeze_batch_norm_statistics, memory_batches


def paired(maps_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Sum of what a function finds in pictures and in their mirrors, the latter flipped back.

    Args:
        maps_of: (B, 3, H, W) -> (B, C, h, w).
        images: (3, H, W), or (B, 3, H, W).

    Returns:
        (C, h, w), or (B, C, h, w).
    """
    batch = images if images.ndim == 4 else images[None]
    pairs = memory_batches(torch.cat([batch, batch.flip(-1)]))
    plain, mirrored = torch.cat([maps_of(some) for some in pairs]).chunk(2)
    summed = plain + mirrored.flip(-1)
    return summed if images.ndim == 4 else summed[0]


class CamNetwork(nn.Module):
    """Backbone, global average pool and a bias-free linear classifier.

    Args:
        num_classes: foreground classes C.
        backbone: name of the backbone.
        frozen_stages: so many of the five stages do not learn (3 = conv1, layer1, layer2).
        centred_if_one_map: take off what the maps are at the mean feature (`map_offset`) where the backbone has a
            single map: a vision transformer's features have no common zero, and a linear probe leaves them so.
        frozen_batch_norm: keep the running statistics of every batch norm. As in the original, scale and shift of
            the learning stages learn all the same.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet50",
        frozen_stages: int = 3,
        frozen_batch_norm: bool = True,
        centred_if_one_map: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.backbone.freeze_stages(frozen_stages)
        self.classifier = nn.Conv2d(self.backbone.channels[-1], num_classes, 1, bias=False)
        centred = centred_if_one_map and len(self.backbone.channels) == 1
        self.map_offset: Tensor | None
        self.register_buffer("map_offset", torch.zeros(num_classes) if centred else None)
        self.frozen_stages = frozen_stages
        self.frozen_batch_norm = frozen_batch_norm

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, C) of normalised pictures (B, 3, H, W)."""
        features = self.backbone(images)[-1]
        pooled = features.mean(dim=(2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1)

    def activation_maps(self, images: Tensor) -> Tensor:
        """ReLU(classifier applied to every cell): (B, C, ceil(H / 16), ceil(W / 16))."""
        return F.relu(self.logit_maps(self.backbone(images)[-1]))

    def logit_maps(self, features: Tensor) -> Tensor:
        """The classifier applied to every cell of the last map: (B, D, h, w) -> (B, C, h, w)."""
        maps = self.classifier(features)
        return maps if self.map_offset is None else maps - self.map_offset[:, None, None]

    def paired_activation_maps(self, images: Tensor) -> Tensor:
        """Sum of the maps of pictures and of their mirrors flipped back.

        Args:
            images: (3, H, W) normalised picture, or (B, 3, H, W).

        Returns:
            (C, ceil(H / 16), ceil(W / 16)) maps >= 0, or (B, C, ...).
        """
        return paired(self.activation_maps, images)

    def train(self, mode: bool = True) -> CamNetwork:
        """Training mode, with the statistics of the batch norms kept when asked for."""
        super().train(mode)
        if self.frozen_batch_norm:
            freeze_batch_norm_statistics(self)
        return self

    def param_groups(self, lr: float, head_factor: float) -> list[dict[str, object]]:
        """Optimiser groups: the learning stages of the backbone at `lr`, the classifier at `lr * head_factor`."""
        return [
            {"params": self.backbone.stage_parameters(self.frozen_stages), "lr": lr},
            {"params": list(self.classifier.parameters()), "lr": lr * head_factor},
        ]


class ReCamNetwork(nn.Module):
    """A trained classifier and a second head on its features (`seeds.recam`).

    Args:
        network: the classifier; it learns on.
    """

    def __init__(self, network: CamNetwork) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Conv2d(network.classifier.in_channels, network.classifier.out_channels, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D, h, w) of the last map of normalised pictures."""
        return self.network.backbone(images)[-1]
