"""Training samples of the models that learn masks: random scale, flip and crop, seeded by (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irn_pipeline.datasets.samples import Samples, require_size
from irn_pipeline.datasets.transforms import Crop, random_crop, resize_image, resize_label, scaled_size, unit
from irn_pipeline.structures import IGNORE, GroundTruth, ImageRecord

_MEAN_COLOUR = 0.45
_LEAST_PIXELS = 16


@dataclass(frozen=True)
class SegmentationTarget:
    """What a segmenter learns from one picture.

    Attributes:
        masks: (R, H, W) bool, disjoint.
        class_ids: (R,) int64 in 0..C-1.
        weights: (R,) float32, how far each instance is to be trusted.
        ignore: (H, W) bool, pixels of which nothing is known.
        label: (H, W) uint8, 0 background, class_id + 1, 255 ignore.
        image_id: of the picture, for messages.
    """

    masks: Tensor
    class_ids: Tensor
    weights: Tensor
    ignore: Tensor
    label: Tensor
    image_id: str = ""

    def to(self, device: torch.device) -> SegmentationTarget:
        """The same on another device."""
        return SegmentationTarget(
            self.masks.to(device), self.class_ids.to(device), self.weights.to(device),
            self.ignore.to(device), self.label.to(device), self.image_id,
        )  # fmt: skip


class MaskSamples(Samples[tuple[Tensor, SegmentationTarget]]):
    """(picture (3, H, W) float32 in [0, 1], its target).

    Args:
        records: pictures.
        read_target: image id -> masks with scores, semantic label and ignored pixels, all at the picture's size.
        scales: smallest and largest random scale.
        crop: side of the square crop, pixels; 0 leaves pictures whole, at their own sizes.
        object_centred: share of the crops that are centred on a random instance.
        seed: of all random choices.
    """

    def __init__(
        self,
        records: tuple[ImageRecord, ...],
        *,
        read_target: Callable[[str], GroundTruth],
        scales: tuple[float, float],
        crop: int = 0,
        object_centred: float = 0.5,
        seed: int,
    ) -> None:
        super().__init__(records, seed)
        self.read_target, self.scales = read_target, scales
        self.crop, self.object_centred = crop, object_centred

    def _sample(
        self, record: ImageRecord, image: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, SegmentationTarget]:
        truth = self.read_target(record.image_id)
        require_size(record, image, truth.instances.size, "its masks are")
        masks = torch.from_numpy(truth.instances.masks).to(torch.uint8)
        # One stack, so that every plane goes through the same changes.
        planes = torch.cat(
            [torch.from_numpy(truth.label)[None], torch.from_numpy(truth.ignore).to(torch.uint8)[None], masks]
        )
        size = scaled_size((image.shape[-2], image.shape[-1]), float(rng.uniform(*self.scales)))
        image, planes = resize_image(image, size), resize_label(planes, size)
        if rng.random() < 0.5:
            image, planes = image.flip(-1), planes.flip(-1)
        pixels = unit(image)
        if self.crop:
            window = self._window(planes[2:], rng)
            pixels = window.apply(pixels, _MEAN_COLOUR)
            planes = torch.cat(
                [window.apply(planes[:1], IGNORE), window.apply(planes[1:2], 1), window.apply(planes[2:], 0)]
            )
        return pixels, _target(planes, truth, record.image_id)

    def _window(self, masks: Tensor, rng: np.random.Generator) -> Crop:
        size = (int(masks.shape[-2]), int(masks.shape[-1]))
        centred = rng.random() < self.object_centred
        window = random_crop(size, self.crop, rng)
        present = [int(i) for i in torch.nonzero(masks.flatten(1).any(1))[:, 0]]
        if not (centred and present):
            return window
        rows, columns = torch.nonzero(masks[int(rng.choice(present))], as_tuple=True)
        middle = (int(rows.float().mean()), int(columns.float().mean()))
        # Where the picture is larger than the crop, the window is moved onto the object.
        source = tuple(
            min(max(centre - self.crop // 2, 0), length - self.crop) if length > self.crop else 0
            for centre, length in zip(middle, size, strict=True)
        )
        return Crop(self.crop, (source[0], source[1]), window.target, window.size)


def _target(planes: Tensor, truth: GroundTruth, image_id: str) -> SegmentationTarget:
    label, ignore, masks = planes[0], planes[1].bool(), planes[2:].bool()
    keep = masks.flatten(1).sum(1) >= _LEAST_PIXELS
    lost = masks[~keep].any(0) if bool((~keep).any()) else torch.zeros_like(ignore)
    # What is left of an object at the rim of a crop is no example of it, and no background either.
    ignore = ignore | lost
    label = torch.where(ignore, torch.full_like(label, IGNORE), label)
    return SegmentationTarget(
        masks[keep],
        torch.from_numpy(truth.instances.class_ids)[keep],
        torch.from_numpy(truth.instances.scores)[keep],
        ignore,
        label,
        image_id,
    )


def collate_lists(
    samples: list[tuple[Tensor, SegmentationTarget]],
) -> tuple[list[Tensor], list[SegmentationTarget]]:
    """Pictures of different sizes stay in lists."""
    return [image for image, _ in samples], [target for _, target in samples]
