"""Training samples of the pipeline's networks: random scale, flip and crop, seeded by (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from irn_pipeline.datasets.images import read_image
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


class ClassificationSamples(Dataset[tuple[Tensor, Tensor]]):
    """(picture (3, side, side) float32, classes (C,) float32 0 or 1).

    Args:
        images: pictures and their classes.
        long_side: smallest and largest random length of a picture's long side, pixels.
        crop: side of the crop, pixels.
        seed: of all random choices.
    """

    def __init__(self, images: ImageSet, *, long_side: tuple[int, int], crop: int, seed: int) -> None:
        self.images, self.long_side, self.crop, self.seed = images, long_side, crop, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        record = self.images.records[index]
        image = to_tensor(read_image(record.path, record.orientation))
        height, width = image.shape[-2:]
        target = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
        image = resize_image(image, scaled_size((height, width), target / max(height, width)))
        if rng.random() < 0.5:
            image = image.flip(-1)
        window = random_crop((image.shape[-2], image.shape[-1]), self.crop, rng)
        classes = torch.zeros(self.images.num_classes)
        classes[list(record.class_ids)] = 1
        return window.apply(normalise(image), 0.0), classes


class RelationSamples(Dataset[tuple[Tensor, Tensor]]):
    """(picture (3, side, side) float32, confident label (side/4, side/4) uint8).

    Args:
        records: pictures.
        read_label: image id -> confident label (H, W) uint8.
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
        self.records, self.read_label = records, read_label
        self.scales, self.crop, self.seed = scales, crop, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        record = self.records[index]
        image = to_tensor(read_image(record.path, record.orientation))
        label = torch.from_numpy(self.read_label(record.image_id))[None]
        if label.shape[-2:] != image.shape[-2:]:
            raise DataError(
                f"{record.path}: is {image.shape[-2]}x{image.shape[-1]} pixels, its confident label is for "
                f"{label.shape[-2]}x{label.shape[-1]}; make the labels again from these pictures"
            )
        size = scaled_size((image.shape[-2], image.shape[-1]), float(rng.uniform(*self.scales)))
        image, label = resize_image(image, size), resize_label(label, size)
        if rng.random() < 0.5:
            image, label = image.flip(-1), label.flip(-1)
        window = random_crop(size, self.crop, rng)
        return window.apply(normalise(image), 0.0), stride4_label(window.apply(label, IGNORE))[0]
