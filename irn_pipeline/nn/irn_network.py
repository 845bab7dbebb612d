"""IRNet: the boundary and displacement branches on a frozen backbone (paper, section 4; Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irn_pipeline.nn.backbone import build_backbone, memory_batches
from irn_pipeline.structures import strided_size


def pad_image(image: Tensor, side: int) -> Tensor:
    """Zeros right of and below a picture that is smaller than `side`, as around the crops of the training.

    Group norms compute their statistics over the whole picture, so the branches see the share of zeros too. The
    original pads to 512 pixels at inference. A side that is longer already stays as it is (the original cuts it).

    Args:
        image: (..., H, W) normalised pictures.
        side: pixels.

    Returns:
        (..., max(H, side), max(W, side)).
    """
    height, width = image.shape[-2:]
    return F.pad(image, (0, max(side - width, 0), 0, max(side - height, 0)))


def side_as_trained(
    size: tuple[int, int], crop: int, rescale: tuple[float, float], cached: Sequence[float] = ()
) -> int:
    """The `side` for `pad_image` that gives a picture the share of zeros that its training crops had on average.

    Args:
        size: (H, W) of the picture in pixels.
        crop: side of the training crops, pixels.
        rescale: smallest and largest scale of the pictures in training.
        cached: scales of a training on cached features, in place of `rescale`.
    """
    height, width = size
    scales = np.array(cached) if len(cached) else np.linspace(*rescale, 1001)
    # Share of the crop that the picture covers at each scale.
    covered = np.minimum(scales * height / crop, 1) * np.minimum(scales * width / crop, 1)
    area = height * width / float(covered.mean())
    # A square; or, where the picture is wider than that, a strip of its width.
    longest = max(size)
    return round(area**0.5 if area**0.5 >= longest else area / longest)


class MeanShift(nn.Module):
    """Subtracts the stored mean of the displacement field in evaluation mode; identity in training mode."""

    running_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same, centred in evaluation mode."""
        return x if self.training else x - self.running_mean.view(1, -1, 1, 1)


class _Branch(nn.Module):
    """1x1 convolution, group norm, optional context, optional upsampling, ReLU.

    The context adds to each cell what a depthwise 3x3 convolution of dilation 2 sees around it.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, groups: int, scale: int = 1, context: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm = nn.GroupNorm(groups, channels_out)
        self.scale = scale
        self.context = (
            nn.Conv2d(channels_out, channels_out, 3, padding=2, dilation=2, groups=channels_out)
            if context
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if self.context is not None:
            x = x + self.context(F.relu(x))
        if self.scale > 1:
            x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return F.relu(x)


class IrnNetwork(nn.Module):
    """Class boundary and displacement field of a picture.

    The backbone never learns and keeps no graph; only the two branches do.

    Args:
        backbone: name of the backbone, one of five maps.
        displacement_context: let the displacement branch look around each cell of its maps at stride 16; the published
            network, whose branches are 1x1 convolutions, does not.
    """

    def __init__(self, *, backbone: str = "resnet50", displacement_context: bool = False) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, pyramid=True)
        self.backbone.requires_grad_(False)
        channels = self.backbone.channels
        self.boundary = nn.ModuleList(
            _Branch(c, 32, groups=4, scale=s) for c, s in zip(channels, (1, 1, 2, 4, 4), strict=True)
        )
        self.boundary_head = nn.Conv2d(160, 1, 1)
        widths, groups, scales = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16), (1, 1, 1, 2, 2)
        self.displacement = nn.ModuleList(
            _Branch(c, w, groups=g, scale=s, context=displacement_context and s > 1)
            for c, w, g, s in zip(channels, widths, groups, scales, strict=True)
        )
        self.displacement_merge = _Branch(768, 256, groups=16, scale=2)
        self.displacement_top = _Branch(448, 256, groups=16)
        self.displacement_head = nn.Conv2d(256, 2, 1, bias=False)
        self.mean_shift = MeanShift(2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boundary logits and displacement.

        Args:
            images: (B, 3, H, W) normalised pictures.

        Returns:
            logits: (B, h, w) class boundary logits at stride 4.
            displacement: (B, 2, h, w), dy then dx, in stride-4 pixels.
        """
        return self.from_features(self._features(images))

    def from_features(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What `forward` gives, from the backbone's five maps."""
        return self._boundary_logits(features), self._displacement(features)

    def displacement_field(self, images: Tensor) -> Tensor:
        """The displacement alone, as `forward` gives it, without the boundary branch's work."""
        return self._displacement(self._features(images))

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[Tensor]:
        return self.backbone(images)

    def _boundary_logits(self, features: Sequence[Tensor]) -> Tensor:
        h, w = features[0].shape[-2:]
        edges = [branch(f)[..., :h, :w] for branch, f in zip(self.boundary, features, strict=True)]
        return self.boundary_head(torch.cat(edges, dim=1))[:, 0]

    def _displacement(self, features: Sequence[Tensor]) -> Tensor:
        h, w = features[0].shape[-2:]
        low1, low2, mid, *high = [branch(f) for branch, f in zip(self.displacement, features, strict=True)]
        mid_h, mid_w = mid.shape[-2:]
        merged = self.displacement_merge(torch.cat([mid, *(x[..., :mid_h, :mid_w] for x in high)], dim=1))
        top = self.displacement_top(torch.cat([low1, low2, merged[..., :h, :w]], dim=1))
        return self.mean_shift(self.displacement_head(top))

    @staticmethod
    def has_context(state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is that of a network with `displacement_context`."""
        return any(".context." in name for name in state if name.startswith("displacement."))

    @torch.no_grad()
    def predict(self, image: Tensor, *, pad_to: int = 0) -> tuple[Tensor, Tensor]:
        """Boundary and displacement of one picture, the boundary averaged with the mirror's.

        Args:
            image: (3, H, W) normalised picture of any size.
            pad_to: pad picture and mirror with zeros, right and below, to this side (`pad_image`); 0 for no padding.

        Returns:
            boundary: (h, w) float32 in [0, 1], sigmoid of the mean of both logits.
            displacement: (2, h, w) float32 from the un-mirrored picture.
        """
        boundary, displacement, _ = self.predict_with_features(image, pad_to=pad_to)
        return boundary, displacement

    def predict_with_features(self, image: Tensor, *, pad_to: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """What `predict` gives, and the last stage's features of the un-mirrored picture, (D, h', w')."""
        return self.predict_many(image[None], pad_to=pad_to)[0]

    @torch.no_grad()
    def predict_many(self, images: Tensor, *, pad_to: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`predict_with_features` of (B, 3, H, W) pictures, which pass through the backbone together unless large."""
        count, size = len(images), (images.shape[-2], images.shape[-1])
        (h, w), (last_h, last_w) = strided_size(size), strided_size(size, 16)
        # The mirrors first: of them only the boundary is wanted, and of a large picture the features of its mirror are
        # gone before its own are made.
        parts = memory_batches(pad_image(torch.cat([images.flip(-1), images]), pad_to))
        if len(parts) > 2:
            return [self.predict_with_features(image, pad_to=pad_to) for image in images]
        logits: list[Tensor] = []
        for part in parts:
            features: list[Tensor] = []  # frees the mirror's
            features = self._features(part)
            logits.extend(self._boundary_logits(features)[:, :h, :w].float())
        own = [stage[-count:] for stage in features]
        boundaries = [
            torch.sigmoid((mirrored.flip(-1) + plain) / 2)
            for mirrored, plain in zip(logits[:count], logits[count:], strict=True)
        ]
        displacements, last = self._displacement(own)[..., :h, :w].float(), own[-1][..., :last_h, :last_w]
        return list(zip(boundaries, displacements, last, strict=True))

    def train(self, mode: bool = True) -> IrnNetwork:
        """Training mode of the branches; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def param_groups(self, lr: float, displacement_factor: float) -> list[dict[str, object]]:
        """Optimiser groups: boundary branch at `lr`, displacement branch at `lr * displacement_factor`."""
        boundary = [*self.boundary.parameters(), *self.boundary_head.parameters()]
        displacement = [
            *self.displacement.parameters(),
            *self.displacement_merge.parameters(),
            *self.displacement_top.parameters(),
            *self.displacement_head.parameters(),
        ]
        return [
            {"params": boundary, "lr": lr},
            {"params": displacement, "lr": lr * displacement_factor},
        ]
