"""Pixels as networks and people see them: pictures that are not of 8-bit RGB are measured by their whole data set."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from irn_pipeline.datasets.images import read_image, read_values
from irn_pipeline.datasets.lists import some
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.files.atomic import write_json
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import regular_bytes
from irn_pipeline.structures import ImageRecord, LabelArray, PixelScale

logger = logging.getLogger(__name__)
SCALE_NAME = "pixels.json"
"""File of the run folder that keeps the scale."""
_MEASURED, _VALUES = 200, 10_000
"""Pictures, evenly over the data set, and pixels of each that the scale is measured by."""
_SHOWN = (0.5, 99.5)
"""Percentiles of a channel that are shown black and white."""


@dataclass(frozen=True)
class PixelKind:
    """How the pictures of a data set are read.

    Attributes:
        channels: that networks see; None for 8-bit RGB.
        bits: of a value in the files.
        asked: the channels that the user asked for; None for those of the files.
    """

    channels: int | None = None
    bits: int = 8
    asked: int | None = None


RGB = PixelKind()
"""Of ordinary pictures."""


def read_pixels(record: ImageRecord) -> npt.NDArray[Any]:
    """A picture for networks (`transforms.normalise`).

    Returns:
        (H, W, 3) uint8 RGB; or, of a picture with a scale, (H, W, C) float32 of mean 0 and deviation 1 over the data
        set, 0 where a value is not finite.

    Raises:
        DataError: as `read_image`, or it has too few channels.
    """
    if record.scale is None:
        return read_image(record.path, record.orientation)
    return standardised(read_values(record.path, record.scale.channels, record.orientation), record.scale)


def read_rgb(record: ImageRecord) -> LabelArray:
    """A picture for people, and for what compares colours: (H, W, 3) uint8.

    Of a picture with a scale, 0 and 255 are the scale's `low` and `high`. The first three channels are red, green and
    blue; of two, the first is red and blue, the second green.

    Raises:
        DataError: as `read_pixels`.
    """
    if record.scale is None:
        return read_image(record.path, record.orientation)
    channels = np.arange(3) % record.scale.channels
    values = read_values(record.path, record.scale.channels, record.orientation)[..., channels]
    low, high = (np.array(bound, np.float32)[channels] for bound in (record.scale.low, record.scale.high))
    share = np.nan_to_num((values.astype(np.float32) - low) / (high - low)).clip(0, 1)
    return (255 * share).round().astype(np.uint8)


def standardised(values: npt.NDArray[Any], scale: PixelScale) -> npt.NDArray[np.float32]:
    """(H, W, C) values of any type, as `read_pixels` gives them."""
    mean, std = np.array(scale.mean, np.float32), np.array(scale.std, np.float32)
    return np.nan_to_num((values.astype(np.float32) - mean) / std, nan=0.0, posinf=0.0, neginf=0.0)


def kind_of(records: Sequence[ImageRecord], asked: int | None, warnings: list[str]) -> PixelKind:
    """How pictures are read: as 8-bit RGB if they all are that or grey, else all channels by their own range.

    Args:
        records: the pictures.
        asked: the number of channels that the user wants; None for that of the files, or three where they differ.
        warnings: a sentence is added where pictures are of several kinds.
    """
    if asked is not None and asked < 1:
        raise ConfigError(f"--channels {asked}: an image has one channel at least")
    counts, depths = (Counter(getattr(one, name) for one in records) for name in ("channels", "bits"))
    channels = asked or (3 if len(counts) > 1 else next(iter(counts), 3))
    if len(counts) > 1:
        told = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        how = "three channels, the first three or a grey one repeated"
        line = f"images of different channel counts: {told}; all are read with {how if channels == 3 else channels}"
        if counts.keys() <= {1, 3}:  # photographs are often mixed so
            logger.info("%s", line)
        else:
            warnings.append(line)
    if len(depths) > 1:
        several = " and ".join(map(str, sorted(depths)))
        few = some(one.image_id for one in records if one.bits == min(depths, key=lambda bits: depths[bits]))
        remedy = "convert them to one depth"
        how = (
            "each is read as 8-bit RGB by its own range" if asked is None else "values are taken as they are"
        )
        warnings.append(f"images of {several} bits in one set (the rarer: {few}): {how}; {remedy}")
        return PixelKind(asked, 8 if asked is None else max(depths), asked)
    bits = next(iter(depths), 8)
    plain = bits == 8 and (channels == 3 or (asked is None and channels == 1))
    return PixelKind(None if plain else channels, bits, asked)


def settle_scale(
    kind: PixelKind, records: Sequence[ImageRecord], run: RunFolder, execution: Execution, *, write: bool
) -> PixelScale | None:
    """The scale that all commands on a run folder read pictures by: kept in it, or measured before its first stage.

    Results without a scale were made from 8-bit RGB, by this version or an earlier one, and so are those to come.

    Args:
        kind: of the pictures.
        records: the pictures.
        run: the run folder.
        execution: threads that read, and whether a scale of another kind gives way (--overwrite).
        write: whether to keep what is measured.

    Returns:
        None for pictures of 8-bit RGB.

    Raises:
        ConfigError: the run folder's pictures are of another kind, or its file is damaged.
        DataError: not one picture can be read.
    """
    root, kept = run.root, read_scale(run.root)
    if kept is None and run.folders() and (kind.asked is None or not execution.overwrite):
        if kind.asked is not None and kind.channels is not None:
            raise ConfigError(
                f"{root}: this run has read images as 8-bit RGB, here are --channels {kind.asked}; give another "
                "--run-dir, or --overwrite with stage train_cam"
            )
        return None
    if kept is not None:
        fits = kind.bits == kept.bits and kind.asked in (None, kept.channels)
        if fits:
            return kept
        if not execution.overwrite:
            have = f"--channels {kind.asked}" if kind.bits == kept.bits else f"images of {kind.bits} bits"
            raise ConfigError(
                f"{root / SCALE_NAME}: this run has images of {kept.channels} channels and {kept.bits} bits, here "
                f"are {have}; give another --run-dir, or --overwrite with stage train_cam"
            )
    if kind.channels is None:
        if kept is not None and write:
            (root / SCALE_NAME).unlink()
        return None
    scale = measure(records, kind, execution.worker_count)
    logger.info("pixels: %d channels of %d bits, measured by the data set", kind.channels, kind.bits)
    if write:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / SCALE_NAME, {"channels": kind.channels, **asdict(scale)})
    return scale


def read_scale(root: Path) -> PixelScale | None:
    """The scale that a run folder keeps; None where its pictures are of 8-bit RGB.

    Raises:
        ConfigError: the file is damaged.
    """
    path = root / SCALE_NAME
    if not path.is_file():
        return None
    try:
        content = parse_json(regular_bytes(path))
        lists = [tuple(map(float, content[name])) for name in ("mean", "std", "low", "high")]
        scale = PixelScale(int(content["bits"]), *lists)
        values = np.array(lists)  # ValueError where they differ in length
        fits = np.isfinite(values).all() and (values[1] > 0).all() and (values[2] < values[3]).all()
        if not scale.channels or not fits:
            raise ValueError("impossible values")
    except (ValueError, TypeError, LookupError, OSError) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); delete it and start again with stage train_cam"
        ) from error
    return scale


def measure(records: Sequence[ImageRecord], kind: PixelKind, workers: int = 1) -> PixelScale:
    """Mean, deviation and range of each channel over pictures.

    Raises:
        DataError: not one picture can be read.
    """
    chosen = records[:: max(len(records) // _MEASURED, 1)][:_MEASURED]
    values = np.concatenate(list(_samples(chosen, kind.channels or 3, workers)))
    columns = [_column(channel[np.isfinite(channel)]) for channel in values.T]
    return PixelScale(kind.bits, *zip(*columns, strict=True))  # type: ignore[arg-type]


def _column(values: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Mean, deviation, and the values that are shown black and white; of a channel of one value 0 and black."""
    if not values.size:
        return 0.0, 1.0, 0.0, 1.0
    low, high = np.percentile(values, _SHOWN).tolist()
    if high <= low:  # a few bright pixels on nothing
        low, high = float(values.min()), float(values.max())
    return float(values.mean()), float(values.std()) or 1.0, low, high if high > low else low + 1


def _samples(
    records: Sequence[ImageRecord], channels: int, workers: int
) -> Iterator[npt.NDArray[np.float64]]:
    def read(record: ImageRecord) -> npt.NDArray[np.float64] | DataError:
        try:
            values = read_values(record.path, channels).reshape(-1, channels)
        except DataError as error:
            return error
        return values[:: max(len(values) // _VALUES, 1)].astype(np.float64)

    problem: DataError | None = None
    found = False
    for part in prefetch(read, records, workers):
        if isinstance(part, DataError):
            problem = part  # the first stage names each
        else:
            found = True
            yield part
    if not found:
        raise DataError(f"none of the images can be read; the last: {problem}")
