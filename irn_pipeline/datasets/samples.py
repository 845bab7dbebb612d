"""Training samples of the pipeline's networks: random scale, flip and crop, seeded by (seed, epoch, index)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.datasets.transforms import (
    normalise,
    random_crop,
    resize_image,
    resize_label,
    scaled_size,
    stride4_label,
    to_tensor,
)
from irn_pipeline.errors import DataError
from irn_pipeline.structures import IGNORE, ImageRecord, ImageSet, LabelArray

S = TypeVar("S")


class Samples(Dataset[S]):
    """One sample a picture; a key is (epoch, index), and with `seed` it decides all random choices."""

    def __init__(self, records: tuple[ImageRecord, ...], seed: int) -> None:
        self.records, self.seed = records, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> S:
        epoch, index = key
        record = self.records[index]
        image = to_tensor(read_pixels(record))
        return self._sample(record, image, np.random.default_rng((self.seed, epoch, index)))

    @abstractmethod
    def _sample(self, record: ImageRecord, image: Tensor, rng: np.random.Generator) -> S:
        """The sample of a picture, (3, H, W) uint8."""


def require_size(record: ImageRecord, image: Tensor, size: tuple[int, ...], what: str) -> None:
    """Raise DataError unless a label is as large as its picture, (3, H, W)."""
    height, width = image.shape[-2:]
    if size != (height, width):
        raise DataError(
            f"{record.path}: is {height}x{width} pixels, {what} for {size[0]}x{size[1]}; make the labels again from "
            "these images"
        )


class ClassificationSamples(Samples[tuple[Tensor, Tensor]]):
    """(picture (3, side, side) float32, classes (C,) float32 0 or 1).

    Args:
        images: pictures and their classes; one without a class is a negative, whose target is 0 for every class.
        long_side: smallest and largest random length of a picture's long side, pixels.
        crop: side of the crop, pixels.
        seed: of all random choices.
    """

    def __init__(self, images: ImageSet, *, long_side: tuple[int, int], crop: int, seed: int) -> None:
        super().__init__(images.records, seed)
        self.num_classes, self.long_side, self.crop = images.num_classes, long_side, crop

    def _sample(self, record: ImageRecord, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        target = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
        image = resize_image(image, scaled_size((height, width), target / max(height, width)))
        if rng.random() < 0.5:
            image = image.flip(-1)
        window = random_crop((image.shape[-2], image.shape[-1]), self.crop, rng)
        classes = torch.zeros(self.num_classes)
        classes[list(record.class_ids)] = 1
        return window.apply(normalise(image), 0.0), classes


class RelationSamples(Samples[tuple[Tensor, Tensor]]):
    """(picture (3, side, side) float32, confident label (side/4, side/4) uint8).

    Args:
        records: pictures.
        read_label: image id -> confident label (H, W) uint8; not asked for pictures without a class, which are all
            background.
        scales: smallest and largest random scale.
        crop: side of the crop, pixels; a multiple of 4.
        seed: of all random choices.
    """

    def __init__(
        self,
        records: tuple[ImageRecord, ...],
        *,
        read_label: Callable[[str], LabelArray],
        scales: tuple[float, float],
        crop: int,
        seed: int,
    ) -> None:
        super().__init__(records, seed)
        self.read_label, self.scales, self.crop = read_label, scales, crop

    def _sample(self, record: ImageRecord, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        label = torch.zeros_like(image[:1])
        if record.class_ids:
            label = torch.from_numpy(self.read_label(record.image_id))[None]
        require_size(record, image, tuple(label.shape[-2:]), "its confident label is")
        size = scaled_size((image.shape[-2], image.shape[-1]), float(rng.uniform(*self.scales)))
        image, label = resize_image(image, size), resize_label(label, size)
        if rng.random() < 0.5:
            image, label = image.flip(-1), label.flip(-1)
        window = random_crop(size, self.crop, rng)
        return window.apply(normalise(image), 0.0), stride4_label(window.apply(label, IGNORE))[0]
