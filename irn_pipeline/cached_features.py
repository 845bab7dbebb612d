"""Features of a frozen backbone, computed once for a whole training; crops are cut out of the feature maps."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from irn_pipeline.datasets.images import read_image_size
from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.datasets.samples import require_size
from irn_pipeline.datasets.transforms import (
    normalise,
    random_crop,
    resize_image,
    resize_label,
    scaled_size,
    stride4_label,
    to_tensor,
)
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.progress import progress
from irn_pipeline.errors import ConfigError
from irn_pipeline.files.atomic import PART_PREFIX
from irn_pipeline.nn.backbone import Backbone
from irn_pipeline.structures import IGNORE, ImageRecord, LabelArray

STRIDES = (4, 4, 8, 16, 16)
"""Of a backbone's five maps."""
COARSEST = max(STRIDES)
_FREE_SHARE = 0.9
"""Of the free disk may be filled."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """A picture at one scale, mirrored or not, with zeros right and below up to whole cells and the crop's side.

    Attributes:
        cells: height and width in cells of stride 16.
        start: where its five maps begin in the file, in values.
        label: (4 * height, 4 * width) uint8, the confident label at stride 4, 255 in the padding.
    """

    cells: tuple[int, int]
    start: int
    label: LabelArray


class FeatureSamples(Dataset[tuple[list[Tensor], Tensor]]):
    """(five maps (side / stride, side / stride, C_i) float16, confident label (side / 4, side / 4) uint8).

    A sample is a window of a view of a picture, at a multiple of 16 pixels. Both are chosen by (seed, epoch, index).

    Args:
        path: file of the views' maps, each (h, w, C_i) float16.
        views: of each picture.
        channels: of the five maps.
        crop: side of the windows, pixels; a multiple of 16.
        seed: of all random choices.
    """

    def __init__(
        self, path: Path, views: Sequence[Sequence[View]], channels: tuple[int, ...], crop: int, seed: int
    ) -> None:
        self.path, self.views, self.channels, self.crop, self.seed = path, views, channels, crop, seed
        self._values: npt.NDArray[np.float16] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file would travel to another process as a copy of its content.
        return {**self.__dict__, "_values": None}

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        if self._values is None:
            self._values = np.memmap(self.path, np.float16, mode="r")
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        view = self.views[index][int(rng.integers(len(self.views[index])))]
        (top, left), side = random_crop(view.cells, self.crop // COARSEST, rng).source, self.crop // COARSEST
        maps, start = [], view.start
        for stride, channels in zip(STRIDES, self.channels, strict=True):
            n = COARSEST // stride
            shape = (view.cells[0] * n, view.cells[1] * n, channels)
            whole = self._values[start : start + math.prod(shape)].reshape(shape)
            start += whole.size
            window = whole[top * n : (top + side) * n, left * n : (left + side) * n]
            maps.append(torch.from_numpy(np.array(window)))
        label = view.label[4 * top : 4 * (top + side), 4 * left : 4 * (left + side)]
        return maps, torch.from_numpy(np.array(label))


@contextmanager
def feature_samples(
    backbone: Backbone,
    records: Sequence[ImageRecord],
    *,
    read_label: Callable[[str], LabelArray],
    scales: Sequence[float],
    crop: int,
    folder: Path,
    execution: Execution,
) -> Iterator[FeatureSamples]:
    """Samples from features that are computed at entry, of each picture and its mirror at every scale.

    The features lie in a temporary file, in float16; the operating system keeps in memory what there is room for.

    Args:
        backbone: in evaluation mode, on its device.
        records: pictures; one without a class is all background.
        read_label: image id -> confident label (H, W) uint8.
        scales: of the pictures.
        crop: side of the samples, pixels; a multiple of 16.
        folder: of the temporary file.
        execution: device, precision and seed.

    Raises:
        ConfigError: the features do not fit on the disk, or a value not into float16.
        DataError: a label and its picture differ in size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(backbone, records, scales, crop, folder)
    device = execution.torch_device()
    with tempfile.NamedTemporaryFile(prefix=PART_PREFIX, suffix=".features", dir=folder) as stream:
        views: list[list[View]] = []
        for record in progress(records, "features", total=len(records), quiet=execution.quiet):
            views.append([])
            for image, label in _views(record, read_label, scales, crop):
                cells = (label.shape[0] * 4 // COARSEST, label.shape[1] * 4 // COARSEST)
                views[-1].append(View(cells, stream.tell() // 2, label))
                batch = image[None].to(device, memory_format=torch.channels_last)
                with torch.no_grad(), execution.autocast():
                    maps = backbone(batch)
                for one in maps:
                    values = one[0].permute(1, 2, 0).half().contiguous()
                    if not bool(values.isfinite().all()):
                        raise ConfigError(
                            f"--cached-features: a feature of {record.path} is too large for float16; train without "
                            "this flag"
                        )
                    stream.write(values.cpu().numpy().data)
        stream.flush()
        yield FeatureSamples(Path(stream.name), views, backbone.channels, crop, execution.seed)


def _frame(size: tuple[int, int], crop: int) -> tuple[int, int]:
    """Sides of a view in pixels: whole cells, and room for a crop."""
    height, width = (-(-max(side, crop) // COARSEST) * COARSEST for side in size)
    return height, width


def _views(
    record: ImageRecord, read_label: Callable[[str], LabelArray], scales: Sequence[float], crop: int
) -> Iterator[tuple[Tensor, LabelArray]]:
    """(normalised picture (3, H, W), confident label (H / 4, W / 4)) of every view, H and W as of `_frame`."""
    whole = to_tensor(read_pixels(record))
    whole_label = torch.zeros_like(whole[:1])
    if record.class_ids:
        whole_label = torch.from_numpy(read_label(record.image_id))[None]
    require_size(record, whole, tuple(whole_label.shape[-2:]), "its confident label is")
    for scale in scales:
        size = scaled_size((whole.shape[-2], whole.shape[-1]), scale)
        height, width = _frame(size, crop)
        margins = (0, width - size[1], 0, height - size[0])
        image, label = normalise(resize_image(whole, size)), resize_label(whole_label, size)
        for picture, its_label in ((image, label), (image.flip(-1), label.flip(-1))):
            padded_label = F.pad(its_label, margins, value=IGNORE)
            yield F.pad(picture, margins), stride4_label(padded_label)[0].numpy()


def _require_space(
    backbone: Backbone, records: Sequence[ImageRecord], scales: Sequence[float], crop: int, folder: Path
) -> None:
    pixels = 0
    for record in records:
        size = read_image_size(record.path, record.orientation)
        pixels += 2 * sum(math.prod(_frame(scaled_size(size, scale), crop)) for scale in scales)
    per_pixel = sum(c / stride**2 for c, stride in zip(backbone.channels, STRIDES, strict=True))
    needed, free = 2 * pixels * per_pixel / 2**30, shutil.disk_usage(folder).free / 2**30
    if needed > _FREE_SHARE * free:
        raise ConfigError(
            f"--cached-features: the features of {len(records)} images take {needed:.1f} GiB, {folder} has "
            f"{free:.1f} GiB free; give fewer or smaller scales, a backbone with fewer channels, such as "
            "efficientnet_lite0, or train without this flag"
        )
    logger.info("features of %d images: %.1f GiB until the end of the training", len(records), needed)
