"""Small files that would fill the memory or keep a reader for years: each is made, and each is refused at once."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irn_pipeline.artifacts import read_checkpoint, read_instances, read_label, read_walked_scores
from irn_pipeline.datasets import images
from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.datasets.voc import load_voc, read_class_names
from irn_pipeline.errors import ArtifactError, CheckpointError, ConfigError, DataError, IrnError
from irn_pipeline.foreign import pickle_machine
from irn_pipeline.foreign.npy import load_pickled_npy
from irn_pipeline.nn.backbone import read_state_dict
from irn_pipeline.runtime.options import read_yaml
from tests.foreign.limits import little
from tests.fuzz.targets import HEADER, surroundings

HEAD = b"\x80\x04"
BLOCK = 1 << 20


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


EMPTY_ARRAY = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
OBJECTS = named("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
NO_BYTES = named("numpy", "dtype") + text("S0") + b"\x89\x88\x87R"
DOUBLING = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(100))
"""From the value of memo 0: pairs of pairs of pairs, all kept; the last one stands for 2^100 values."""
MEMO = HEAD + b"Nr\xff\xff\xff\x7f."
PICKLES = {
    "key that takes 2^100 steps to hash": HEAD + b"}(K\x01q\x00" + DOUBLING + b"tNs.",
    "lists in lists": HEAD + b"(]q\x00" + DOUBLING + b"t.",
    "keys of one hash": HEAD + b"}(" + b"".join(number((2**61 - 1) * n) + b"N" for n in range(1, 50)) + b"u.",
    "bytes that are not there": HEAD + b"\x8e" + (2**40).to_bytes(8, "little") + b".",
    "bytearray that is not there": HEAD + b"\x96" + (2**36).to_bytes(8, "little") + b".",
    "bytes by a call": HEAD + named("builtins", "bytes") + number(10**11) + b"\x85R.",
    "objects that are not there": HEAD + EMPTY_ARRAY + b"(K\x01" + number(10**6) + b"\x85" + OBJECTS + b"\x89]tb.",
    "array of elements without bytes": HEAD + EMPTY_ARRAY + b"(K\x01" + number(10**12) + b"\x85" + NO_BYTES + b"\x89C\x00tb.",
    "state of a function": HEAD + named("_codecs", "encode") + b"N}" + text("__defaults__") + b")s\x86b.",
    "state of a class": HEAD + named("collections", "OrderedDict") + b"}" + text("x") + b"Nsb.",
    "an array filled twice": HEAD + EMPTY_ARRAY + b"q\x07" + 2 * (b"(K\x01)" + OBJECTS + b"\x89]Natb") + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_small_pickles_that_are_large(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.npy"
    path.write_bytes(HEADER.getvalue() + PICKLES[name])
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npy: refused"):
        load_pickled_npy(path)


def test_a_memo_of_two_thousand_million_places_is_one_place(tmp_path: Path) -> None:
    (tmp_path / "bomb.npy").write_bytes(HEADER.getvalue() + MEMO)
    with little():
        assert load_pickled_npy(tmp_path / "bomb.npy") is None


def test_pythons_own_unpickler_does_take_the_years() -> None:
    # In a process of its own: while it hashes it looks at no signal but SIGKILL.
    code = f"import pickle; pickle.loads({PICKLES['key that takes 2^100 steps to hash']!r})"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=1, check=False)
    with pytest.raises(MemoryError), little():
        pickle.loads(MEMO)


def test_many_steps_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "_MOST_STEPS", 20_000)
    path = tmp_path / "bomb.npy"
    path.write_bytes(HEADER.getvalue() + HEAD + b"(" + b"N" * 3_000_000 + b"t.")
    with little(), pytest.raises(ArtifactError, match="steps"):
        load_pickled_npy(path)


def test_one_text_copied_many_times(tmp_path: Path) -> None:
    encode = named("_codecs", "encode") + b"q\x01"
    long = b"X" + struct.pack("<I", BLOCK) + b"a" * BLOCK + b"q\x02" + text("latin1") + b"q\x03"
    path = tmp_path / "bomb.npy"
    path.write_bytes(HEADER.getvalue() + HEAD + b"(" + encode + long + b"h\x01h\x02h\x03\x86R" * 4000 + b"t.")
    with little(), pytest.raises(ArtifactError, match="many times the length"):
        load_pickled_npy(path)


@pytest.mark.parametrize("dtype", ["<f8", "|S0", "|V0", "<M8[s]"])
def test_a_header_that_announces_a_terabyte(tmp_path: Path, dtype: str) -> None:
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(stream, header)
    (tmp_path / "bomb.npy").write_bytes(stream.getvalue() + b"x" * 8)
    for read in (load_pickled_npy, read_instances):
        with little(), pytest.raises(ArtifactError, match=r"bomb\.npy"):
            read(tmp_path / "bomb.npy")


def packed_zeros(count: int, start: bytes = b"", window: int = -15) -> bytes:
    """A deflate stream of `start` and of `count` MiB of zeros: 1 kB each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * count + packer.flush()


def archive(path: Path, members: dict[str, tuple[bytes, int, int]]) -> None:
    """An archive of packed contents: name -> stream, its unpacked length, method."""
    body, directory = b"", b""
    for name, (stream, length, method) in members.items():
        fields = struct.pack("<HHHHIII", 0, method, 0, 0, 0, len(stream), length) + struct.pack("<HH", len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<HH", 20, 20) + fields
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + struct.pack("<H", 20) + fields + name.encode() + stream
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)


def test_an_npz_that_unpacks_to_two_gigabytes(tmp_path: Path) -> None:
    path, gigabytes = tmp_path / "bomb.npz", 2
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f2", "fortran_order": False, "shape": (1, 2**15, gigabytes * 2**14)}
    )
    length = len(head.getvalue()) + (gigabytes << 30)
    bomb = (packed_zeros(gigabytes << 10, head.getvalue()), length, zipfile.ZIP_DEFLATED)
    small = {}
    for name, value in (("class_ids", np.array([0])), ("size", np.array([2**17, 2**17]))):
        stream = io.BytesIO()
        np.save(stream, value)
        small[f"{name}.npy"] = (stream.getvalue(), len(stream.getvalue()), zipfile.ZIP_STORED)
    archive(path, {**small, "maps.npy": bomb})
    assert path.stat().st_size < 4 << 20
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npz: .*unpacks to more than"):
        read_walked_scores(path)
    # A directory that tells less than there is: the reader stops where it says.
    archive(path, {**small, "maps.npy": (bomb[0], 200, bomb[2])})
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npz"):
        read_walked_scores(path)


def repacked(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Change the members of a checkpoint's archive."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in members.items():
            target.writestr(name, change(name, content))


def refused_checkpoint(path: Path, message: str = "") -> None:
    for read in (read_checkpoint, read_state_dict):
        with little(), pytest.raises(CheckpointError, match=rf"bomb\.pt.*{message}"):
            read(path)


def test_a_checkpoint_that_unpacks_to_much(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    repacked(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 13
    refused_checkpoint(path, "unpacks to more than the file")


STATE = {"a": torch.zeros(4)}
OLD = b"\x80\x02}X\x01\x00\x00\x00a"
CHECKPOINTS = {
    "bytearray": OLD + b"cbuiltins\nbytearray\n" + number(10**11) + b"\x85Rs.",
    "key that takes 2^100 steps to hash": b"\x80\x02}(K\x01q\x00" + DOUBLING + b"tNs.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_whose_pickle_is_a_bomb(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "bomb.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        repacked(path, lambda n, content: CHECKPOINTS[name] if n.endswith("data.pkl") else content)
    else:
        stream = io.BytesIO(path.read_bytes())
        for _ in range(3):
            pickle.load(stream)
        path.write_bytes(path.read_bytes()[: stream.tell()] + CHECKPOINTS[name])
    refused_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_and_tensors_larger_than_the_file(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "bomb.pt"
    # The count of the storage, then the size of the tensor; both are written as K\x04.
    for old, new in ((b"K\x04t", b"J\xff\xff\xff\x7ft"), (b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")):
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
        if zipped:
            repacked(path, lambda _, content, a=old, b=new: content.replace(a, b))  # type: ignore[misc]
        else:
            content = path.read_bytes()
            path.write_bytes(content.replace(old, new) if b"t" not in old else content.replace(b"K\x04N", b"J\xff\xff\xff\x7fN"))
        assert b"J\xff\xff\xff\x7f" in path.read_bytes()
        refused_checkpoint(path)


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(height: int, width: int, content: bytes, colour: int = 0, length: int | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content, length) + chunk(b"IEND", b"")


def test_png_bombs(tmp_path: Path) -> None:
    path, side = tmp_path / "bomb.png", 30_000
    path.write_bytes(png(side, side, packed_zeros(side * (side + 1) // BLOCK + 1, window=15)))
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
    with little(), pytest.raises(ArtifactError, match=r"bomb\.png: expected a PNG"):
        read_label(path)
    with little():  # Pillow takes the bytes that there are
        assert images.read_label(path).shape == (4, 4)


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
    for name, content in (("bomb.jpg", bytes(jpeg)), ("bomb.bmp", bytes(wide))):
        (tmp_path / name).write_bytes(content)
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
        ({"category": {"id": -7}}, "no whole number from 0"),
        ({"category": {"id": float("inf")}}, "no whole number from 0"),
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
        load_coco(path, data / "pictures").truths.ground_truth("a")


@pytest.mark.parametrize("box", [[0, 0, 10**400, 10**400], [-(10**400), 0, 1, float("nan")], [float("inf")] * 4])
def test_absurd_boxes_cover_no_more_than_the_picture(data: Path, box: list[float]) -> None:
    crowd = {"id": 2, "image_id": 1, "category_id": 7, "segmentation": [], "bbox": box}
    content = json.loads(coco(data).read_text())
    content["annotations"].append(crowd)
    (data / "c.json").write_text(json.dumps(content))
    truth = load_coco(data / "c.json", data / "pictures").truths.ground_truth("a")
    assert truth is not None and truth.ignore.shape == (5, 7)


@pytest.mark.parametrize("span", ["0,99999999999999", "-5,40", "5,99999999999999999999999999999", "1e1,40"])
def test_a_place_in_the_file_that_a_stranger_wrote(data: Path, span: str) -> None:
    path = coco(data)
    # The key is written so that the reader's own search for polygons does not see it.
    path.write_text(path.read_text().replace('"segmentation": [[0, 0, 4, 0, 4, 4]]', f'"\\u0073egmentation": [{span}]'))
    with little(), pytest.raises(DataError, match=r"annotation 1"):
        load_coco(path, data / "pictures").truths.ground_truth("a")


def test_masks_that_do_not_fit_into_memory(data: Path) -> None:
    Image.new("L", (3000, 3000)).save(data / "pictures" / "a.jpg")
    path = coco(data)
    content = json.loads(path.read_text())
    content["annotations"] *= 500
    path.write_text(json.dumps(content))
    loaded = load_coco(path, data / "pictures")
    with little(), pytest.raises(DataError, match=r"500 objects in .*a\.jpg"):
        loaded.truths.ground_truth("a")
    # 2000 lines across the picture and back; pycocotools would take 5 points, of 16 bytes and more, for each pixel.
    path = coco(data, segmentation=[[-3000, -3000, 6000, 6000] * 2000])
    with little(), pytest.raises(DataError, match=r"annotation 1: .*outline"):
        load_coco(path, data / "pictures").truths.ground_truth("a")


@pytest.mark.parametrize(
    "content",
    [
        b"<a>" * 300_000,
        b"<a><object><name>" + b"x\n" * 200_000 + b"</name></object></a>",
        b"<a>" + b"<object><name>dog</name></object>" * 20_000 + b"<x>" * 200_000,
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
def test_hostile_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
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
