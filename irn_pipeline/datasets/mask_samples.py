"""Training samples of the models that learn masks: random scale, flip and crop, seeded by (seed, epoch, index)."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from irn_pipeline.datasets.samples import Samples, require_size
from irn_pipeline.datasets.transforms import (
    Crop,
    nearest_places,
    random_crop,
    resize_image,
    scaled_size,
    unit,
)
from irn_pipeline.ops.cutouts import Cutouts, CutTruth
from irn_pipeline.structures import IGNORE, ImageRecord, IntArray

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
        read_target: Callable[[str], CutTruth],
        scales: tuple[float, float],
        crop: int = 0,
        object_centred: float = 0.5,
        seed: int,
    ) -> None:
        super().__init__(records, seed)
        self.read_target, self.scales = read_target, scales
        self.crop, self.object_centred = crop, object_centred

    def with_crop(self, crop: int, *, object_centred: float) -> MaskSamples:
        """The same pictures in other crops."""
        return MaskSamples(
            self.records,
            read_target=self.read_target,
            scales=self.scales,
            crop=crop,
            object_centred=object_centred,
            seed=self.seed,
        )

    def _sample(
        self, record: ImageRecord, image: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, SegmentationTarget]:
        truth = self.read_target(record.image_id)
        require_size(record, image, truth.objects.size, "its masks are")
        height, width = image.shape[-2:]
        size = scaled_size((height, width), float(rng.uniform(*self.scales)))
        image = resize_image(image, size)
        # Masks are scaled, mirrored and cropped at once, by the rows and columns of the picture that they come from.
        rows, columns = nearest_places(height, size[0]), nearest_places(width, size[1])
        if rng.random() < 0.5:
            image, columns = image.flip(-1), columns[::-1]
        if not self.crop:
            return unit(image), _target(truth, rows, columns, Crop(0, (0, 0), (0, 0), size), record.image_id)
        window = self._window(truth.objects, rows, columns, rng)
        pixels = window.pad(unit(window.cut(image)), _MEAN_COLOUR)
        return pixels, _target(truth, rows, columns, window, record.image_id)

    def _window(self, objects: Cutouts, rows: IntArray, columns: IntArray, rng: np.random.Generator) -> Crop:
        size = (len(rows), len(columns))
        centred = rng.random() < self.object_centred
        window = random_crop(size, self.crop, rng)
        if not centred:
            return window
        scaled = [objects.window(position, rows, columns) for position in range(len(objects))]
        present = [place for place in scaled if place[2].any()]
        if not present:
            return window
        top, left, mask = present[int(rng.choice(len(present)))]
        middle = [
            int((torch.from_numpy(found) + first).float().mean())
            for found, first in zip(mask.nonzero(), (top, left), strict=True)
        ]
        # Where the picture is larger than the crop, the window is moved onto the object.
        source = tuple(
            min(max(centre - self.crop // 2, 0), length - self.crop) if length > self.crop else 0
            for centre, length in zip(middle, size, strict=True)
        )
        return Crop(self.crop, (source[0], source[1]), window.target, window.size)


def _target(
    truth: CutTruth, rows: IntArray, columns: IntArray, window: Crop, image_id: str
) -> SegmentationTarget:
    """The target of a window of a scaled and mirrored picture.

    Args:
        truth: of the picture.
        rows: rows of the picture that those of the scaled one come from.
        columns: likewise.
        window: of the scaled picture.
        image_id: of the picture.
    """
    (top, left), (height, width) = window.source, window.size
    rows, columns = rows[top : top + height], columns[left : left + width]
    square = (window.side, window.side) if window.side else window.size
    (first_row, first_column), kept, masks = window.target, [], []
    lost = torch.zeros(square, dtype=torch.bool)
    for position in range(len(truth.objects)):
        down, along, found = truth.objects.window(position, rows, columns)
        pixels = np.count_nonzero(found)
        if not pixels:
            continue
        place = np.s_[
            first_row + down : first_row + down + found.shape[0],
            first_column + along : first_column + along + found.shape[1],
        ]
        if pixels < _LEAST_PIXELS:
            # What is left of an object at the rim of a crop is no example of it, and no background either.
            lost[place] |= torch.from_numpy(found)
            continue
        mask = torch.zeros(square, dtype=torch.bool)
        mask[place] = torch.from_numpy(found)
        kept.append(position)
        masks.append(mask)

    def plane(values: npt.NDArray[Any], fill: float) -> Tensor:
        return window.pad(torch.from_numpy(values[rows][:, columns]), fill)

    ignore = plane(truth.ignore, True) | lost
    label = torch.where(ignore, IGNORE, plane(truth.label, IGNORE))
    return SegmentationTarget(
        torch.stack(masks) if masks else lost.new_zeros((0, *square)),
        torch.from_numpy(truth.objects.class_ids[kept]),
        torch.from_numpy(truth.objects.scores[kept]),
        ignore,
        label,
        image_id,
    )


class PhasedSamples(Dataset[tuple[Tensor, SegmentationTarget]]):
    """Samples of the same pictures that change from phase to phase of a training.

    Args:
        parts: of each phase.
        epochs: length of each phase.
    """

    def __init__(self, parts: Sequence[MaskSamples], epochs: Sequence[int]) -> None:
        self.parts, self.ends = tuple(parts), tuple(itertools.accumulate(epochs))

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, SegmentationTarget]:
        return self.parts[bisect_right(self.ends, key[0])][key]


def collate_lists(
    samples: list[tuple[Tensor, SegmentationTarget]],
) -> tuple[list[Tensor], list[SegmentationTarget]]:
    """Pictures of different sizes stay in lists."""
    return [image for image, _ in samples], [target for _, target in samples]
