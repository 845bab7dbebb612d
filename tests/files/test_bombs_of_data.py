"""Pictures, lists, tables and settings that would fill the memory or keep a reader for years, and hostile YAML."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from irn_pipeline.artifacts import read_checkpoint, read_label
from irn_pipeline.datasets import images
from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.datasets.voc import load_voc, read_class_names
from irn_pipeline.errors import ArtifactError, ConfigError, DataError, IrnError
from irn_pipeline.files.npy import load_pickled_npy
from irn_pipeline.files.yaml_text import read_yaml
from irn_pipeline.walked_scores import read_walked_scores
from tests.files.limits import MEBIBYTE, little, packed_zeros
from tests.fuzz.targets import surroundings

FOUND = (
    "iVBORw0KGgoAAAANSUhEUgAAAAcAAAAFCAAAAACs8akEVQAAMUlEQVQIAAAArPGpBAAACCMrMyP3OzZuRo5/f3hYv/5iZGLnYP7K+J+Rh+X3NwHG"
    "vwD4wA1HFCyjRgBOAEUASQBErkJggg==",
    "iVBORw0KGgoAAAANSUhEUgAAAAcAAAAFCAAAAACs8akEAAAAMUlEQRQIHWPk/8HI+eW3CCMrMyP3OzZuRo5/f3hYv/5iZGLnYP7K+J+Rh+X3NwHG"
    "vwD4wA1HFCyjRmFjVExJRU5ErkJggg==",
)
"""Labels of 7x5 pixels with a byte or two changed: OpenCV took more than 2 GiB and up to 10 s for them."""


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(height: int, width: int, content: bytes, colour: int = 0, length: int | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content, length) + chunk(b"IEND", b"")
    )


def test_png_bombs(tmp_path: Path) -> None:
    path, side = tmp_path / "bomb.png", 30_000
    path.write_bytes(png(side, side, packed_zeros(side * (side + 1) // MEBIBYTE + 1, window=15)))
    assert path.stat().st_size < 2 << 20
    with little(), pytest.raises(ArtifactError, match=r"bomb\.png: expected a PNG .* pixels"):
        read_label(path)
    for read in (images.read_label, images.read_image):
        with little(), pytest.raises(DataError, match=r"bomb\.png"):
            read(path)


@pytest.mark.parametrize("length", [0x55000031, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_chunk_longer_than_its_png(tmp_path: Path, length: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(4, 4, zlib.compress(bytes(20)), length=length))
    for read in (read_label, images.read_label):
        with little():  # all pixels are there, nothing is reserved for the rest
            assert not read(path).any()


@pytest.mark.parametrize("content", FOUND)
def test_labels_that_the_fuzzer_found(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(base64.b64decode(content))
    with little(), pytest.raises(ArtifactError, match=r"bomb\.png: expected a PNG"):
        read_label(path)
    with little(), pytest.raises(DataError, match=r"bomb\.png"):
        images.read_label(path)


def test_pictures_that_say_they_are_huge(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    jpeg = bytearray(stream.getvalue())
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 30_000, 30_000)
    bmp = io.BytesIO()
    Image.new("RGB", (16, 16)).save(bmp, "BMP")
    wide = bytearray(bmp.getvalue())
    wide[18:26] = struct.pack("<ii", 30_000, 30_000)
    gif = io.BytesIO()
    Image.new("L", (16, 16)).save(gif, "GIF")
    canvas = bytearray(gif.getvalue())
    canvas[6:10] = struct.pack("<HH", 30_000, 30_000)
    _, deep = cv2.imencode(".tif", np.zeros((16, 16, 3), np.uint16), [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    tiff = bytearray(deep.tobytes())
    for tag in (256, 257):
        place = tiff.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in tiff else 0
        place = place or tiff.index(struct.pack("<HHI", tag, 3, 1))
        tiff[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 30_000)
    pgm = b"P5 30000 30000 255\n"
    bombs = {"bomb.jpg": jpeg, "bomb.bmp": wide, "bomb.gif": canvas, "bomb.tif": tiff, "bomb.pgm": pgm}
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(bytes(content))
        with little(), pytest.raises(DataError, match=rf"{name}.*pixels"):
            images.read_image(tmp_path / name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return surroundings(tmp_path)


def coco(data: Path, picture: object = None, category: object = None, **annotation: object) -> Path:
    entry = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 4]], **annotation}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **(picture or {})}],  # type: ignore[dict-item]
        "categories": [{"id": 7, "name": "dog", **(category or {})}],  # type: ignore[dict-item]
        "annotations": [entry],
    }
    (data / "c.json").write_text(json.dumps(content))
    return data / "c.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": {"height": 10**9, "width": 10**9}}, "impossible"),
        ({"picture": {"height": -5, "width": 7}}, "impossible"),
        ({"picture": {"height": float("nan"), "width": 7}}, "impossible"),
        ({"picture": {"id": float("nan")}}, "missing or used twice"),
        ({"category": {"id": -7}}, "not a whole number of 0 or more"),
        ({"category": {"id": float("inf")}}, "not a whole number of 0 or more"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, "no run lengths"),
        ({"segmentation": {"size": [5, 7], "counts": [0, 36]}}, "no run lengths"),
        ({"segmentation": {"size": [5, 7], "counts": [-1, 36]}}, "no run lengths"),
        ({"segmentation": [[0, 0, 10**400, 0, 4, 4]]}, "no polygons"),
        ({"segmentation": [[0, 0, float("nan"), 0, 4, 4]]}, "no polygons"),
    ],
)  # fmt: skip
def test_absurd_annotations(data: Path, change: dict[str, object], message: str) -> None:
    path = coco(data, **change)
    with little(), pytest.raises(DataError, match=rf"c\.json.*{message}"):
        load_coco(path, data / "pictures").ground_truth("a")


@pytest.mark.parametrize(
    "box", [[0, 0, 10**400, 10**400], [-(10**400), 0, 1, float("nan")], [float("inf")] * 4]
)
def test_absurd_boxes_cover_no_more_than_the_picture(data: Path, box: list[float]) -> None:
    crowd = {"id": 2, "image_id": 1, "category_id": 7, "segmentation": [], "bbox": box}
    content = json.loads(coco(data).read_text())
    content["annotations"].append(crowd)
    (data / "c.json").write_text(json.dumps(content))
    truth = load_coco(data / "c.json", data / "pictures").ground_truth("a")
    assert truth is not None and truth.ignore.shape == (5, 7)


@pytest.mark.parametrize("span", ["0,99999999999999", "-5,40", "5,99999999999999999999999999999", "1e1,40"])
def test_a_place_in_the_file_that_a_stranger_wrote(data: Path, span: str) -> None:
    path = coco(data)
    # The key is written so that the reader's own search for polygons does not see it.
    path.write_text(
        path.read_text().replace('"segmentation": [[0, 0, 4, 0, 4, 4]]', f'"\\u0073egmentation": [{span}]')
    )
    with little(), pytest.raises(DataError, match=r"annotation 1"):
        load_coco(path, data / "pictures").ground_truth("a")


def test_masks_that_do_not_fit_into_memory(data: Path) -> None:
    Image.new("L", (3000, 3000)).save(data / "pictures" / "a.jpg")
    path = coco(data)
    content = json.loads(path.read_text())
    content["annotations"] *= 500
    path.write_text(json.dumps(content))
    loaded = load_coco(path, data / "pictures")
    with little(), pytest.raises(DataError, match=r"500 objects in .*a\.jpg"):
        loaded.ground_truth("a")
    # 2000 lines across the picture and back; pycocotools would take 5 points, of 16 bytes and more, for each pixel.
    path = coco(data, segmentation=[[-3000, -3000, 6000, 6000] * 2000])
    with little(), pytest.raises(DataError, match=r"annotation 1: .*outline"):
        load_coco(path, data / "pictures").ground_truth("a")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"<a>" * 300_000, id="deep"),
        pytest.param(b"<a><object><name>" + b"x\n" * 200_000 + b"</name></object></a>", id="long"),
        pytest.param(b"<a>" + b"<object><name>dog</name></object>" * 20_000 + b"<x>" * 200_000, id="both"),
    ],
)
def test_deep_and_long_xml(data: Path, content: bytes) -> None:
    (data / "VOC" / "Annotations" / "a.xml").write_bytes(content)
    with little(), pytest.raises(DataError, match=r"a\.xml") as caught:
        load_voc(data / "VOC")
    assert len(str(caught.value)) < 1000


def test_long_lists_of_names_and_long_lines(data: Path) -> None:
    names = data / "names.txt"
    names.write_text("\n".join(f"c{n}" for n in range(200_000)))
    with little(), pytest.raises(DataError, match="names 200000 classes"):
        read_class_names(names)
    names.write_text(f"a{' ' * 300_000}b\n")
    with little(), pytest.raises(DataError, match="not in"):
        load_voc(data / "VOC", image_list=names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: !!python/object/apply:os.mkdir [it_ran]", "python/object"),
        ("a: !!python/name:os.system", "python/name"),
        ("a: &a [x]\nb: *a", "aliases"),
        ("a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]\n" for n in range(30)), "aliases"),
        ("a: &a [*a]", "aliases"),
        ("[" * 1500, "YAML"),
        ("a: 2001-99-99", "month"),
        ("a: !!timestamp x", "YAML"),
        ("a: " + "9" * 5000, "YAML"),
        ("a: " + "x" * (1 << 20), "expected at most"),
    ],
)
def test_hostile_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with little(), pytest.raises(ConfigError, match=rf"c\.yaml: cannot be read as YAML.*{message}|{message}"):
        read_yaml(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.yaml"]


def test_pipes_and_devices_in_the_place_of_files(data: Path) -> None:
    reads: dict[str, Callable[[Path], object]] = {
        "a.npy": load_pickled_npy, "a.png": read_label, "a.pt": read_checkpoint, "a.npz": read_walked_scores,
        "a.jpg": images.read_image, "a.txt": read_class_names, "a.yaml": read_yaml, "a.pth": images.read_image_size,
    }  # fmt: skip
    for name, read in reads.items():
        for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
            path = data / name
            path.unlink(missing_ok=True)
            make(path)  # type: ignore[operator]
            with little(), pytest.raises((IrnError, OSError), match="regular file"):
                read(path)
