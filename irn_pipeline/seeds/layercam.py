"""LayerCAM (Jiang et al., TIP 2021): finer maps, of several stages of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    from torch.nn.functional import pad

    from irn_pipeline.seeds.layercam_maths import fuse_stages, layercam

    network, found = picture.network, []
    chosen = sorted(set(params.layercam_stages))
    for scaled in picture.scaled:
        size = (scaled.shape[-2], scaled.shape[-1])
        with torch.inference_mode(False), torch.enable_grad():
            # Networks of timm pad pictures to multiples and cut their maps, and no gradient reaches cut maps.
            right, below = (-side % _multiple_of(network.backbone) for side in size[::-1])
            images = pad(torch.stack([scaled, scaled.flip(-1)]), (0, right, 0, below)).requires_grad_()
            features = network.backbone(images)
            last = _without_padding(features[-1], images, size)
            logits = network.classifier(last.mean((2, 3), keepdim=True)).flatten(1)
            stages = [features[index] for index in chosen] if len(features) > 1 else features
            pairs = [
                _without_padding(stage.layercam.float(), images, size)
                for stage in layercam(logits, stages, picture.class_ids)
            ]
        # Where features have both signs, as behind a linear layer, so have the maps.
        both = [(pair[0] + pair[1].flip(-1)).clamp(min=0) for pair in pairs]
        found.append(fuse_stages(both, (both[0].shape[1], both[0].shape[2])))
    return found


def _multiple_of(backbone: Any) -> int:
    plan = getattr(backbone, "plan", None)
    return 1 if plan is None or len(backbone.channels) == 1 else int(plan.multiple)


def _without_padding(maps: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., h, w) of padded images (..., H, W), without the cells of what was padded."""
    if tuple(images.shape[-2:]) == size:
        return maps
    height, width = (
        -(-side * cells // padded)
        for side, cells, padded in zip(size, maps.shape[-2:], images.shape[-2:], strict=True)
    )
    return maps[..., :height, :width]


SEED = Seed(maps, LayerCamParams)
