"""LayerCAM (Jiang et al., TIP 2021): finer maps, of several stages of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.base import Picture, Seed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerCamParams:
    """Parameters of LayerCAM."""

    layercam_stages: tuple[int, ...] = field(default=(2, 3, 4), metadata={"fingerprint": "unless default"})
    """--seeds layercam: backbone stages to combine, 0 to 4 (of a ResNet: conv1 to layer4)."""

    def __post_init__(self) -> None:
        if not self.layercam_stages or not set(self.layercam_stages) <= set(range(5)):
            raise ConfigError(f"layercam_stages are {list(self.layercam_stages)}; each must be from 0 to 4")


def maps(picture: Picture, params: LayerCamParams, prepared: None) -> list[Tensor]:
    """At each scale the largest value over the stages, on the grid of the finest one."""
    import torch

    from irn_pipeline.seeds.layercam_maths import fuse_stages, layercam

    network, found = picture.network, []
    chosen = sorted(set(params.layercam_stages))
    for scaled in picture.scaled:
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.stack([scaled, scaled.flip(-1)]).requires_grad_()
            features = network.backbone(images)
            logits = network.classifier(features[-1].mean((2, 3), keepdim=True)).flatten(1)
            stages = [features[index] for index in chosen] if len(features) > 1 else features
            pairs = [stage.layercam.float() for stage in layercam(logits, stages, picture.class_ids)]
        # Where features have both signs, as behind a linear layer, so have the maps.
        both = [(pair[0] + pair[1].flip(-1)).clamp(min=0) for pair in pairs]
        found.append(fuse_stages(both, (both[0].shape[1], both[0].shape[2])))
    return found


SEED = Seed(maps, LayerCamParams)
