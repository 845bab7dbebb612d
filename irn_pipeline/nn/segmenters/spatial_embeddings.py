"""SpatialEmbeddings (Neven et al., CVPR 2019): every pixel points to its instance's centre.

Each instance has its own bandwidth, each class a seed map; objects are found by clustering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.nn.segmenters.base import Segmenter, Target, check_target, stack_padded
from irn_pipeline.nn.segmenters.erfnet import ERFNET_STRIDE, Decoder, ErfNetDecoder, ErfNetEncoder
from irn_pipeline.nn.segmenters.pyramid import PyramidFeatures
from irn_pipeline.nn.segmenters.spatial_loss import (
    SpatialLosses,
    count_pixels,
    pixel_grid,
    spatial_losses,
)
from irn_pipeline.ops.spatial_clustering import cluster_instances, instances_at
from irn_pipeline.structures import FloatArray, Instances

Bandwidth = Literal["circular", "elliptical"]

_BANDWIDTH_CHANNELS = {"circular": 1, "elliptical": 2}
_BANDWIDTH_RANGE = (-1.0, 1.5)
"""Of the raw bandwidth: exp(15) and its gradients stay finite, radii lie between half a pixel and 10^5."""
_BANDWIDTH_LOSS_WEIGHT = 10.0
_ONE_CLASS_FOREGROUND_WEIGHT = 10.0
_FOREGROUND_WEIGHT_RANGE = (1.0, 50.0)
_MAX_INSTANCES = 100
_MULTIPLE, _SMALLEST = ERFNET_STRIDE, 2 * ERFNET_STRIDE
"""Pictures are padded to multiples of the first; a batch norm in training needs more than one cell."""


@dataclass(frozen=True)
class SpatialFields:
    """What the network says of a batch.

    Attributes:
        offset: (B, 2, H, W) x then y, before tanh.
        bandwidth: (B, D, H, W) raw, D is 1 (circular) or 2 (elliptical).
        seed: (B, C, H, W) logits.
    """

    offset: Tensor
    bandwidth: Tensor
    seed: Tensor


class SpatialEmbeddings(Segmenter):
    """One network, two decoders: offsets with bandwidths, and a seed map for each class.

    Args:
        num_classes: foreground classes C.
        backbone: "erfnet" (the authors', learns from scratch), or the name of a backbone, which gets a feature pyramid.
        bandwidth: one bandwidth for both axes, or one for each.
        to_center: pixels learn to point to the mean pixel of their mask; else to a point that they agree on, which
            forgives masks that hold only a part of an object.
        foreground_weight: weight of a class's own pixels in its seed map. By default 10 for one class; for several
            the ratio of other to own pixels in the labels seen so far, within 1 and 50.
        min_pixels: instances need more pixels than this; 128 in the authors' code, for pictures of 1024 x 2048.
        seed_threshold: smallest seed probability of an instance's first pixel; 0.9 in the authors' code, after 200
            epochs.
        foreground_threshold: only pixels of a larger seed probability are clustered.

    Raises:
        ConfigError: a value is out of its range.
    """

    pixel_counts: Tensor
    """(2, C) int64: own and other pixels of each class in the labels seen in training."""

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "erfnet",
        bandwidth: Bandwidth = "elliptical",
        to_center: bool = False,
        foreground_weight: float | None = None,
        min_pixels: int = 128,
        seed_threshold: float = 0.5,
        foreground_threshold: float = 0.5,
    ) -> None:
        super().__init__(num_classes)
        if num_classes < 1:
            raise ConfigError(f"num_classes must be 1 or more, got {num_classes}")
        if bandwidth not in _BANDWIDTH_CHANNELS:
            raise ConfigError(f"bandwidth must be 'circular' or 'elliptical', got '{bandwidth}'")
        for name, value in (
            ("seed_threshold", seed_threshold),
            ("foreground_threshold", foreground_threshold),
        ):
            if not 0 <= value < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {value}")
        if min_pixels < 0:
            raise ConfigError(f"min_pixels must be 0 or more, got {min_pixels}")
        if foreground_weight is not None and not 0 < foreground_weight < float("inf"):
            raise ConfigError(f"foreground_weight must be a number above 0, got {foreground_weight}")
        self.to_center, self.foreground_weight = to_center, foreground_weight
        self.min_pixels = min_pixels
        self.seed_threshold, self.foreground_threshold = seed_threshold, foreground_threshold
        self.features, pointing, seed = _build(backbone, 2 + _BANDWIDTH_CHANNELS[bandwidth], num_classes)
        _start_at_own_pixel(pointing.output_conv)
        self.decoders = nn.ModuleList([pointing, seed])
        self.register_buffer("pixel_counts", torch.zeros(2, num_classes, dtype=torch.int64))

    def forward(self, images: Tensor) -> SpatialFields:
        """Fields of (B, 3, H, W) pictures in [0, 1] of any size, in float32."""
        height, width = images.shape[-2:]
        features = self.features(F.pad(images, (0, _padding(width), 0, _padding(height))))
        pointing, seed = (decoder(features)[..., :height, :width].float() for decoder in self.decoders)
        return SpatialFields(pointing[:, :2], pointing[:, 2:].clamp(*_BANDWIDTH_RANGE), seed)

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """`instance_loss` (Lovasz hinge), `bandwidth_loss` (variance, times 10) and `seed_loss`; see the base class.

        Raises:
            ShapeError: a picture and its target differ in size.
            DataError: an instance is of a class that the model does not have.
        """
        for image, target in zip(images, targets, strict=True):
            check_target(target, self.num_classes, (image.shape[-2], image.shape[-1]))
        if self.training:
            self.pixel_counts += sum(count_pixels(target, self.num_classes) for target in targets)
        fields = self(stack_padded(images))
        with torch.autocast(fields.seed.device.type, enabled=False):
            weights = self.foreground_weights()
            terms = [
                self._picture_losses(fields, index, (image.shape[-2], image.shape[-1]), target, weights)
                for index, (image, target) in enumerate(zip(images, targets, strict=True))
            ]
            return {
                "instance_loss": torch.stack([t.instance for t in terms]).mean(),
                "bandwidth_loss": _BANDWIDTH_LOSS_WEIGHT * torch.stack([t.bandwidth for t in terms]).mean(),
                "seed_loss": torch.stack([t.seed for t in terms]).mean(),
            }

    def predict(self, image: Tensor) -> Instances:
        """Clusters of one (C, H, W) picture; the score is the seed's probability times the mask's mean one.

        Raises:
            ShapeError: the picture is not (C, H, W).
        """
        return cluster_instances(
            *self._maps(image),
            min_pixels=self.min_pixels,
            seed_threshold=self.seed_threshold,
            foreground_threshold=self.foreground_threshold,
            max_instances=_MAX_INSTANCES,
        )

    def predict_at(self, image: Tensor, truth: Instances) -> Instances:
        """Masks around the centres of true instances (see `instances_at`): the paper's bound for perfect seeds.

        Raises:
            ShapeError: the picture is not (3, H, W), or the true masks are of another size.
        """
        return instances_at(
            *self._maps(image),
            truth,
            to_center=self.to_center,
            foreground_threshold=self.foreground_threshold,
        )

    @torch.no_grad()
    def _maps(self, image: Tensor) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Embedding, raw bandwidth and seed probabilities of one picture."""
        channels = next(layer for layer in self.modules() if isinstance(layer, nn.Conv2d)).in_channels
        if image.ndim != 3 or len(image) != channels:
            raise ShapeError(f"an image must be ({channels}, H, W), got {tuple(image.shape)}")
        fields = self(image[None])
        embedding = pixel_grid((image.shape[-2], image.shape[-1]), image.device) + fields.offset[0].tanh()
        return (
            embedding.cpu().numpy(),
            fields.bandwidth[0].cpu().numpy(),
            fields.seed[0].sigmoid().cpu().numpy(),
        )

    def foreground_weights(self) -> Tensor:
        """(C,) float32 weight of each class's own pixels in its seed map."""
        fixed = self.foreground_weight
        if fixed is None and self.num_classes == 1:
            fixed = _ONE_CLASS_FOREGROUND_WEIGHT
        if fixed is not None:
            return torch.full((self.num_classes,), fixed, device=self.pixel_counts.device)
        own, other = self.pixel_counts.float()
        return (other / own.clamp(min=1)).clamp(*_FOREGROUND_WEIGHT_RANGE)

    def _picture_losses(
        self, fields: SpatialFields, index: int, size: tuple[int, int], target: Target, weights: Tensor
    ) -> SpatialLosses:
        height, width = size
        offset, bandwidth, seed = (
            part[index, :, :height, :width] for part in (fields.offset, fields.bandwidth, fields.seed)
        )
        return spatial_losses(
            pixel_grid(size, offset.device) + offset.tanh(),
            bandwidth,
            seed.sigmoid(),
            target,
            foreground_weights=weights,
            to_center=self.to_center,
        )


class PyramidDecoder(Decoder):
    """(B, in_channels, h, w) features -> (B, out_channels, 4 h, 4 w).

    Group norms, because pictures of a batch are few and large.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1, bias=False),
            nn.GroupNorm(8, 64),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, 16, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.GroupNorm(4, 16),
            nn.ReLU(inplace=True),
        )
        super().__init__(layers, out_channels)


def _build(
    backbone: str, pointing_channels: int, num_classes: int
) -> tuple[ErfNetEncoder | PyramidFeatures, Decoder, Decoder]:
    if backbone == "erfnet":
        return ErfNetEncoder(), ErfNetDecoder(pointing_channels), ErfNetDecoder(num_classes)
    features = PyramidFeatures(backbone=backbone, stride=4)
    width = features.channels
    return features, PyramidDecoder(width, pointing_channels), PyramidDecoder(width, num_classes)


def _start_at_own_pixel(output: nn.ConvTranspose2d) -> None:
    """Offsets start at 0 and raw bandwidths at 1: every pixel claims those within 5.7 pixels of it."""
    nn.init.zeros_(output.weight)
    if output.bias is not None:
        with torch.no_grad():
            output.bias[:2] = 0
            output.bias[2:] = 1


def _padding(length: int) -> int:
    return max(_SMALLEST, -(-length // _MULTIPLE) * _MULTIPLE) - length
