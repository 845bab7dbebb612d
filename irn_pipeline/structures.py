"""Frozen records that stages and functions hand to one another; shapes are checked when a record is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ShapeError

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
LabelArray: TypeAlias = npt.NDArray[np.uint8]

BACKGROUND = 0
"""Label of background pixels; a foreground class has the label `class_id + 1`."""
IGNORE = 255
"""Label of pixels whose class is unknown or not counted."""
FRAGMENT_SCORE = 1e-5
"""Synthesized instances below it are fragments (see `ops.labels`): kept in the files, no predictions."""
MAX_PIXELS = 178_956_970
"""Pictures and labels of more are refused before they are decoded: a file of a few kB can unpack to so many.

Pillow's own limit, so that every decoder has the same.
"""
CAM_STRIDE = 4
"""Pixels of the picture per cell of `cam`, `boundary` and `displacement`."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Red, green and blue in [0, 1], as the backbones' ImageNet weights expect pictures to be normalised."""


def background_name(class_names: Sequence[str]) -> str:
    """What the background is called beside these classes: "background", unless a class has that name.

    Example:
        >>> background_name(["cat"]), background_name(["cat", "background"])
        ('background', '_background_')
    """
    name = "background"
    while name in class_names:
        name = f"_{name}_"
    return name


def strided_size(size: tuple[int, int], stride: int = CAM_STRIDE) -> tuple[int, int]:
    """Size of the grid that has one cell every `stride` pixels.

    Args:
        size: (H, W) of the picture in pixels.
        stride: pixels per cell.

    Returns:
        (h, w) = ((H - 1) // stride + 1, (W - 1) // stride + 1).
    """
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def grid_stride(grid: tuple[int, ...], size: tuple[int, int]) -> int:
    """Pixels of a picture of `size` (H, W) a cell of a grid (h, w): 4, or 8, 16 ... where it was walked coarsely.

    Raises:
        ShapeError: no such stride gives this grid.
    """
    for power in range(6):
        if strided_size(size, CAM_STRIDE << power) == tuple(grid):
            return CAM_STRIDE << power
    raise ShapeError(f"maps of an image {size} must be (M, *{strided_size(size)}), got (M, *{tuple(grid)})")


def imagenet_scaling(channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and deviation that networks expect of pictures in [0, 1]: ImageNet's, repeated for more channels."""
    mean, std = ([values[c % 3] for c in range(channels)] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


@dataclass(frozen=True)
class PixelScale:
    """What the values of a data set's pictures are like where they are not of 8-bit RGB.

    Attributes:
        bits: of a value in the files; 8, 16, 32 or 64.
        mean: (C,) of each channel over the data set, in the values of the files.
        std: (C,) standard deviations, above 0.
        low: (C,) values that are shown as 0.
        high: (C,) values that are shown as 255; above `low`.
    """

    bits: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return len(self.mean)


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a data set and the classes its tags name."""

    image_id: str
    path: Path
    class_ids: tuple[int, ...]
    """Sorted foreground class ids, without repeats."""
    orientation: int | None = None
    """EXIF orientation that it is turned by when it is read; 1 for pixels as stored, None for what the file says."""
    channels: int = 3
    """Channels in the file, without transparency; 1 for grey."""
    bits: int = 8
    """Bits of a value in the file."""
    scale: PixelScale | None = None
    """What its values are measured by; None where it is read as 8-bit RGB."""


@dataclass(frozen=True)
class ImageSet:
    """The pictures a stage works on, in order, and the names of the classes."""

    class_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]

    @property
    def num_classes(self) -> int:
        """Number of foreground classes C."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class Cam:
    """Class activation maps of one picture.

    Attributes:
        class_ids: (K,) int64 classes of the picture, 0..C-1.
        cam: (K, h, w) float32 in [0, 1] at stride 4.
        high_res_cam: (K, H, W) float32 in [0, 1] at the picture's size.
    """

    class_ids: IntArray
    cam: FloatArray
    high_res_cam: FloatArray

    def __post_init__(self) -> None:
        count = len(self.class_ids)
        if self.class_ids.ndim != 1 or self.cam.ndim != 3 or self.high_res_cam.ndim != 3:
            raise ShapeError(
                f"a CAM needs class_ids (K,), cam (K, h, w) and high_res_cam (K, H, W), "
                f"got {self.class_ids.shape}, {self.cam.shape} and {self.high_res_cam.shape}"
            )
        if self.cam.shape[0] != count or self.high_res_cam.shape[0] != count:
            raise ShapeError(
                f"a CAM of {count} classes needs {count} maps, "
                f"got {self.cam.shape[0]} in cam and {self.high_res_cam.shape[0]} in high_res_cam"
            )
        if self.cam.shape[1:] != strided_size(self.size):
            raise ShapeError(
                f"cam of a {self.size[0]}x{self.size[1]} image must be {strided_size(self.size)}, "
                f"got {self.cam.shape[1:]}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture in pixels."""
        return int(self.high_res_cam.shape[1]), int(self.high_res_cam.shape[2])


@dataclass(frozen=True)
class CompactCam:
    """Class activation maps of one picture without the full-size ones, which are made again from `scales`.

    Attributes:
        class_ids: (K,) int64 classes of the picture, 0..C-1.
        cam: (K, h, w) float32 in [0, 1] at stride 4.
        scales: one (K, h_s, w_s) float32 of the network's maps per scale, before they are resized and added up.
        size: (H, W) of the picture in pixels.
        whole: the maps of `scales` end where the picture does (`ops.cam.full_size_cam`).
    """

    class_ids: IntArray
    cam: FloatArray
    scales: tuple[FloatArray, ...]
    size: tuple[int, int]
    whole: bool = False

    def __post_init__(self) -> None:
        count = len(self.class_ids)
        if self.class_ids.ndim != 1 or self.cam.shape != (count, *strided_size(self.size)):
            raise ShapeError(
                f"cam of {count} classes and a {self.size[0]}x{self.size[1]} picture must be "
                f"{(count, *strided_size(self.size))}, got {self.cam.shape}"
            )
        shapes = [one.shape for one in self.scales]
        if not shapes or any(len(shape) != 3 or shape[0] != count or 0 in shape[1:] for shape in shapes):
            raise ShapeError(f"scales of {count} classes must be ({count}, h, w) each, got {shapes}")


@dataclass(frozen=True)
class Instances:
    """Object instances of one picture: predicted, synthesized or true.

    Attributes:
        scores: (R,) float32; 1 for true instances.
        masks: (R, H, W) bool.
        class_ids: (R,) int64 in 0..C-1.
    """

    scores: FloatArray
    masks: BoolArray
    class_ids: IntArray

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.masks.ndim != 3 or self.masks.dtype != np.bool_:
            raise ShapeError(f"masks must be (R, H, W) bool, got {self.masks.shape} {self.masks.dtype}")
        if self.scores.shape != (count,) or self.class_ids.shape != (count,) or len(self.masks) != count:
            raise ShapeError(
                f"instances need as many scores, masks and class_ids, "
                f"got {self.scores.shape}, {self.masks.shape} and {self.class_ids.shape}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture in pixels."""
        return int(self.masks.shape[1]), int(self.masks.shape[2])

    def select(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Instances:
        """The instances that a boolean mask or an index array picks, in that order."""
        if keep.dtype == np.bool_ and keep.all():
            return self  # without a copy of the masks
        return Instances(self.scores[keep], self.masks[keep], self.class_ids[keep])

    def without_fragments(self) -> Instances:
        """Those that count: of score 1e-5 or more."""
        return self.select(self.scores >= FRAGMENT_SCORE)

    @staticmethod
    def empty(size: tuple[int, int]) -> Instances:
        """No instance in a picture of `size` (H, W)."""
        return Instances(np.zeros(0, np.float32), np.zeros((0, *size), np.bool_), np.zeros(0, np.int64))


@dataclass(frozen=True)
class GroundTruth:
    """True masks of one picture, for evaluation and upper bounds only.

    Attributes:
        label: (H, W) uint8, 0 background, class_id + 1, 255 ignore.
        instances: one mask per object; scores are 1.
        ignore: (H, W) bool pixels that are not counted when instances are compared.
        crowds: masks of groups of objects, by class, where the truth tells them; `ignore` covers what no instance of
            `instances` does. None where it tells no class: `ignore` belongs to every class.
        has_instances: False where objects are not told apart: `instances` is empty, and only `label` can be compared.
    """

    label: LabelArray
    instances: Instances
    ignore: BoolArray
    crowds: Instances | None = None
    has_instances: bool = True

    @property
    def has_foreground(self) -> bool:
        """Whether any pixel is of a class."""
        return bool(((self.label != BACKGROUND) & (self.label != IGNORE)).any())
