"""Pictures of any depth and number of channels: values as stored, measured by the data set, one line where mixed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.datasets.headers import read_header
from irn_pipeline.datasets.images import read_image, read_values
from irn_pipeline.datasets.pixels import (
    PixelKind,
    kind_of,
    measure,
    read_pixels,
    read_rgb,
    read_scale,
    settle_scale,
)
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.structures import ImageRecord, PixelScale

Values = npt.NDArray[Any]
SAMPLES: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
"""How tifffile writes (H, W, C) as C samples a pixel."""
WRITTEN = {
    "samples": ((6, 7, 5), SAMPLES),
    "packed": ((6, 7, 2), {**SAMPLES, "compression": "zlib"}),
    "planes": ((5, 6, 7), {"photometric": "minisblack", "planarconfig": "separate"}),
    "imagej": ((5, 6, 7), {"imagej": True, "metadata": {"axes": "CYX"}}),
    "ome": ((2, 6, 7), {"ome": True, "metadata": {"axes": "CYX"}}),
    "grey": ((6, 7), {}),
    "rgb": ((6, 7, 3), {"photometric": "rgb"}),
    "colour planes": ((3, 6, 7), {"photometric": "rgb", "planarconfig": "separate"}),
}


def tiff(path: Path, values: Values, **options: Any) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def record(path: Path, scale: PixelScale | None = None) -> ImageRecord:
    header = read_header(path)
    return ImageRecord(path.stem, path, (0,), channels=header.channels, bits=max(header.bits, 8), scale=scale)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("name", WRITTEN)
def test_values_come_back_as_they_were_written(tmp_path: Path, name: str, dtype: type) -> None:
    shape, options = WRITTEN[name]
    values = (np.arange(math.prod(shape)).reshape(shape) % 250).astype(dtype)
    path = tiff(tmp_path / "a.tif", values, **options)
    expected = values.transpose(1, 2, 0) if shape[0] != 6 else values.reshape(6, 7, -1)
    channels = expected.shape[-1]
    assert read_header(path).channels == channels
    found = read_values(path, channels)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    assert read_image(path).shape == (6, 7, 3)


def test_of_depths_and_times_the_first_is_read(tmp_path: Path) -> None:
    stack = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    path = tiff(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    assert read_header(path).more and read_header(path).channels == 3
    np.testing.assert_array_equal(read_values(path, 3), stack[0].transpose(1, 2, 0))


@pytest.mark.parametrize("orientation", [3, 6])
def test_tiffs_of_many_channels_are_turned(tmp_path: Path, orientation: int) -> None:
    values = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
    tag = (274, "H", 1, orientation, False)
    path = tiff(tmp_path / "a.tif", values, **SAMPLES, extratags=[tag])
    np.testing.assert_array_equal(read_values(path, 5, 1), values)
    np.testing.assert_array_equal(read_values(path, 5), np.rot90(values, {3: 2, 6: -1}[orientation]))


def test_channels_are_cut_repeated_or_refused(tmp_path: Path) -> None:
    grey = tiff(tmp_path / "grey.tif", np.full((2, 2), 9, np.uint16))
    assert read_values(grey, 3)[0, 0].tolist() == [9, 9, 9]
    two = tiff(tmp_path / "two.tif", np.full((2, 2, 2), (5, 6), np.uint16), **SAMPLES)
    assert read_values(two, 1)[0, 0].tolist() == [5]
    assert read_values(two, 3)[0, 0].tolist() == [5, 6, 5]
    with pytest.raises(DataError, match=r"two\.tif: has 2 channels, 5 are wanted"):
        read_values(two, 5)
    rgba = tiff(tmp_path / "rgba.tif", np.full((2, 2, 4), (1, 2, 3, 255), np.uint8), photometric="rgb")
    assert read_header(rgba).channels == 3, "the fourth is called transparency"
    assert read_values(rgba, 4)[0, 0].tolist() == [1, 2, 3, 255]
    assert read_values(rgba, 3)[0, 0].tolist() == read_image(rgba)[0, 0].tolist() == [1, 2, 3]


def test_networks_see_mean_0_and_deviation_1_of_the_data_set(tmp_path: Path) -> None:
    dark = tiff(tmp_path / "dark.tif", np.full((4, 4, 2), (100, 7), np.uint16), **SAMPLES)
    bright = tiff(tmp_path / "bright.tif", np.full((4, 4, 2), (300, 7), np.uint16), **SAMPLES)
    scale = measure([record(dark), record(bright)], PixelKind(2, 16))
    assert (scale.mean, scale.std) == ((200.0, 7.0), (100.0, 1.0)), "a channel of one value divides by 1"
    assert read_pixels(record(dark, scale))[0, 0].tolist() == [-1.0, 0.0]
    assert read_pixels(record(bright, scale))[0, 0].tolist() == [1.0, 0.0]
    # The first channel is red and blue, the second green; each by its own range.
    assert read_rgb(record(dark, scale))[0, 0].tolist() == [0, 0, 0]
    assert read_rgb(record(bright, scale))[0, 0].tolist() == [255, 0, 255]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf, 1.0, 3.0]], np.float32)
    path = tiff(tmp_path / "a.tif", values)
    scale = measure([record(path)], PixelKind(1, 32))
    assert (scale.mean, scale.std) == ((2.0,), (1.0,))
    assert read_pixels(record(path, scale))[0, :, 0].tolist() == [0.0, 0.0, -1.0, 1.0]
    assert read_rgb(record(path, scale))[0, 2:, 1].tolist() == [0, 255]
    hollow = tiff(tmp_path / "b.tif", np.full((2, 2), np.nan, np.float32))
    assert measure([record(hollow)], PixelKind(1, 32)).std == (1.0,)


def test_pictures_of_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    rows = []
    for name, values in (("rgb.png", pixels), ("grey.png", pixels[..., 0]), ("rgb.jpg", pixels)):
        Image.fromarray(values).save(tmp_path / name)
        rows.append(f"{name},cat")
    rows.remove("rgb.jpg,cat")
    (tmp_path / "rgb.jpg").rename(tmp_path / "photo.jpg")
    (tmp_path / "tags.csv").write_text("\n".join([*rows, "photo.jpg,cat"]))
    records = load_folder_csv(tmp_path / "tags.csv", tmp_path).items
    warnings: list[str] = []
    assert kind_of(records, None, warnings).channels is None and not warnings
    for one in records:
        for read in (read_pixels, read_rgb):
            np.testing.assert_array_equal(read(one), read_image(one.path))


def records_of(*kinds: tuple[int, int]) -> list[ImageRecord]:
    return [
        ImageRecord(f"p{n}", Path(), (0,), channels=channels, bits=bits)
        for n, (channels, bits) in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "asked", "expected", "told"),
    [
        ([(3, 8), (1, 8)], None, None, ""),
        ([(1, 8)], None, None, ""),
        ([(1, 8)], 1, 1, ""),
        ([(1, 16)], None, 1, ""),
        ([(5, 8)], None, 5, ""),
        ([(5, 16)], 3, 3, ""),
        ([(3, 8), (4, 8)], None, None, "1 with 3, 1 with 4; all are read with three channels"),
        ([(1, 16), (5, 16), (5, 16)], None, 3, "1 with 1, 2 with 5; all are read with three channels"),
        ([(4, 16), (5, 16)], 4, 4, "1 with 4, 1 with 5; all are read with 4"),
        ([(3, 8), (3, 16), (3, 16)], 3, 3, "set (the rarer: 1 (p0)): values are taken as they are"),
        ([(3, 8), (3, 8), (3, 16)], None, None, "images of 8 and 16 bits in one set (the rarer: 1 (p2)): each is"),
    ],
)  # fmt: skip
def test_what_a_data_set_is_read_as(
    kinds: list[tuple[int, int]], asked: int | None, expected: int | None, told: str
) -> None:
    warnings: list[str] = []
    assert kind_of(records_of(*kinds), asked, warnings).channels == expected
    assert len(warnings) == bool(told) and told in "".join(warnings)


def test_impossible_channels() -> None:
    with pytest.raises(ConfigError, match=r"--channels 0: an image has one channel at least"):
        kind_of(records_of((3, 8)), 0, [])


def test_the_first_command_measures_and_the_others_follow(tmp_path: Path) -> None:
    first = record(tiff(tmp_path / "a.tif", np.arange(16, dtype=np.uint16).reshape(4, 4)))
    other = record(tiff(tmp_path / "b.tif", np.full((4, 4), 999, np.uint16)))

    def settle(kind: PixelKind, *records: ImageRecord, write: bool = True, overwrite: bool = False) -> Any:
        execution = Execution(workers=1, overwrite=overwrite, device="cpu")
        return settle_scale(kind, records, RunFolder(tmp_path / "run"), execution, write=write)

    grey = PixelKind(1, 16)
    assert settle(grey, first, write=False).mean == (7.5,) and not (tmp_path / "run").exists()
    measured = settle(grey, first)
    assert settle(grey, other) == measured == read_scale(tmp_path / "run"), "not measured again"
    for kind, told in ((PixelKind(None, 8), "images of 8 bits"), (PixelKind(3, 16, 3), "--channels 3")):
        with pytest.raises(ConfigError, match=rf"pixels\.json: this run has .* 1 channels.* here are {told}"):
            settle(kind, first)
    assert settle(PixelKind(None, 8), first, overwrite=True) is None and read_scale(tmp_path / "run") is None


def test_a_run_that_began_with_8_bit_rgb_goes_on_so(tmp_path: Path) -> None:
    """Results of a version that read 16 bits as 8, or of a set of several depths of which a list has one."""
    run = RunFolder(tmp_path / "run")
    run.write_record(StageRecord("train_cam", "", {}, {}, True, {}, 0.0, {}))
    deep = record(tiff(tmp_path / "a.tif", np.arange(16, dtype=np.uint16).reshape(4, 4)))
    assert settle_scale(PixelKind(1, 16), [deep], run, Execution(device="cpu"), write=True) is None
    assert read_scale(run.root) is None
    with pytest.raises(
        ConfigError, match=r"run: this run has read images as 8-bit RGB, here are --channels 1"
    ):
        settle_scale(PixelKind(1, 16, 1), [deep], run, Execution(device="cpu"), write=True)


@pytest.mark.parametrize(
    "change",
    [{"std": [0.0]}, {"mean": []}, {"high": [-9.0]}, {"bits": None}, {"low": "x"}, {"mean": [float("nan")]}],
)
def test_a_damaged_scale(tmp_path: Path, change: dict[str, Any]) -> None:
    content = {"bits": 16, "mean": [1.0], "std": [1.0], "low": [0.0], "high": [2.0]}
    (tmp_path / "pixels.json").write_text(json.dumps(content))
    assert read_scale(tmp_path) == PixelScale(16, (1.0,), (1.0,), (0.0,), (2.0,))
    (tmp_path / "pixels.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ConfigError, match=r"pixels\.json: damaged"):
        read_scale(tmp_path)


def test_a_tiff_with_more_data_than_pixels(tmp_path: Path) -> None:
    path = tiff(
        tmp_path / "a.tif", np.random.default_rng(0).integers(0, 99, (64, 64, 5), np.uint16), **SAMPLES
    )
    whole = bytearray(path.read_bytes())
    for tag, value in ((256, 4), (257, 4)):
        for place in range(len(whole) - 12):
            if whole[place : place + 8] in (
                tag.to_bytes(2, "little") + b"\3\0\1\0\0\0",
                tag.to_bytes(2, "little") + b"\4\0\1\0\0\0",
            ):
                whole[place + 8 : place + 12] = value.to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.tif: the picture cannot be decoded"):
        read_values(path, 5)
