"""Valid files of every kind that is read, small, to mutate."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle

from irn_pipeline import artifacts
from irn_pipeline.artifacts import Checkpoint
from irn_pipeline.engine.optimisation import Schedule
from irn_pipeline.engine.store import StageRecord
from irn_pipeline.engine.training import TrainingState
from irn_pipeline.structures import Cam, CompactCam, Instances
from irn_pipeline.walked_scores import WalkedScores, write_walked_scores

SIZE = (5, 7)
XML = b"<a><filename>a.jpg</filename><object><name>dog</name><part><name>head</name></part></object></a>"
LIST = [b"a\nb.c 1\n/JPEGImages/a.jpg /x/a.png\n# no\n"]
FOLDER_LIST = [b"a.jpg\nb\n# no\n"]
NAMES = [b"cat\ndog\n"]
TABLES = [b"image,label\na.jpg,dog\nb,cat\n", b'a.jpg;"dog";cat\n', b"image,dog,cat\na,0,1\n"]
LINES = [b'{"image": "a.jpg", "labels": ["dog"]}\n{"image": "b", "dog": 1}\n']
LOSSES = [b'{"step": 1, "epoch": 0, "loss": 0.5}\n{"step": 2}\n']
METRICS = [b'{"cam": {"miou": 0.5, "iou_per_class": {"a": 0.1}}}']
SWEEP = [b'[{"threshold": 0.1, "miou": 0.2}]']
PICKLE_WORDS = (
    b"numpy", b"dtype", b"ndarray", b"numpy._core.multiarray", b"numpy.core.multiarray", b"_reconstruct", b"scalar",
    b"numpy._core.numeric", b"_frombuffer", b"torch._utils", b"_rebuild_tensor_v2", b"torch.storage",
    b"_load_from_bytes", b"collections", b"OrderedDict", b"_codecs", b"encode", b"latin1", b"keys", b"cam", b"high_res",
    b"score", b"mask", b"class", b"f4", b"i8", b"b1", b"O8", b"U3", b"S0", b"V4", b"M8", b"\x94\x93", b"\x85R",
    b"\x86R", b"\x87R", b"tR", b"tb", b"r\xff\xff\xff\x7f",
)  # fmt: skip


def pickle_header() -> bytes:
    """What stands before the pickle in a `.npy` file."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue()


def _written(write: Callable[[Path], object], suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        write(path)
        return path.read_bytes()


def _pickles(content: object) -> list[bytes]:
    return [pickle.dumps(np.array(content, dtype=object), protocol=protocol) for protocol in (2, 3, 4, 5)]


def pickles() -> list[bytes]:
    """Bodies of `.npy` files with every kind of value."""
    pieces: list[object] = [
        *({"s": np.float32(1)}, {"t": np.array(["ab"])}, {"big": np.zeros(2, ">f4")}, {"a": torch.zeros(2)}),
        *(
            ["a", ("b", None, 1.5, b"x")],
            OrderedDict(a=True),
            np.asfortranarray(np.ones((2, 2), np.int16)),
            {},
        ),
    ]
    return [body for content in pieces for body in _pickles(content)]


def plain_arrays() -> list[bytes]:
    """`.npy` files without a pickle."""
    return [_written(lambda path: np.save(path, np.zeros((2, 3))), ".npy")]


def cam_files() -> list[bytes]:
    """Activation maps in the formats of several projects."""
    rng = np.random.default_rng(0)
    maps, high_res = rng.random((2, 2, 2), np.float32), rng.random((2, *SIZE), np.float32)
    irn = {"keys": np.array([1, 4]), "cam": maps, "high_res": high_res}
    tensors = {name: torch.from_numpy(array).half() for name, array in irn.items()}
    clip = {"keys": np.array([1, 4]), "attn_highres": high_res}
    empty = {"keys": np.zeros(0, np.int64), "cam": np.zeros((0, 2, 2)), "high_res": np.zeros((0, *SIZE))}
    made = Cam(irn["keys"], maps, high_res), CompactCam(irn["keys"], maps, (maps, maps[:, :1]), SIZE)
    ours = [_written(partial(artifacts.write_cam, cam=one), ".npy") for one in made]
    foreign = [body for content in (irn, tensors, clip, empty) for body in _pickles(content)]
    return [*ours, *(pickle_header() + body for body in foreign)]


def instance_files() -> list[bytes]:
    """Instance labels: two masks, and none."""
    masks = np.random.default_rng(1).random((2, *SIZE)) > 0.5
    full = Instances(np.array([0.7, 0.2], np.float32), masks, np.array([4, 1]))
    return [_instances(full), _instances(Instances.empty(SIZE))]


def _instances(value: Instances) -> bytes:
    return _written(lambda path: artifacts.write_instances(path, value), ".npy")


def score_files() -> list[bytes]:
    """Walked scores, with and without evidence."""
    maps = np.full((1, 2, 2), 0.5, np.float16)
    values = [WalkedScores(np.array([1]), maps, SIZE, extra) for extra in (None, np.ones(3, np.float32))]
    return [_written(partial(write_walked_scores, scores=value), ".npz") for value in values]


def _label() -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).integers(0, 21, SIZE, np.uint8)


def label_files() -> list[bytes]:
    """Label PNGs of the run folder."""
    return [_written(lambda path: artifacts.write_label(path, _label()), ".png")]


def pictures() -> list[bytes]:
    """Pictures of every format, and masks."""
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (*SIZE, 3), np.uint8))
    masks = [picture.quantize(8), Image.fromarray(_label()), Image.fromarray(_label().astype(np.uint16))]
    suffixes = (".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm")
    kinds = [(picture, suffix) for suffix in suffixes] + [(m, ".png") for m in masks]
    deep = np.random.default_rng(4).integers(0, 4096, (*SIZE, 3)).astype(np.uint16)
    floating = (deep / 4096).astype(np.float32)
    arrays = ((".png", deep), (".tif", deep), (".tif", floating))
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = [_written(partial(picture.save, exif=exif), suffix) for suffix in (".jpg", ".png", ".tif")]
    coded = [cv2.imencode(suffix, array)[1].tobytes() for suffix, array in arrays]
    return [*(_saved(*kind) for kind in kinds), *coded, *rotated]


def _saved(picture: Image.Image, suffix: str) -> bytes:
    return _written(picture.save, suffix)


def checkpoints() -> list[bytes]:
    """Networks in both of torch's formats, alone and as this package writes them."""
    state = {"a.weight": torch.rand(2, 3), "a.steps": torch.tensor(4), "b": torch.nn.Parameter(torch.ones(2))}
    content = {"kind": "cam", "backbone": "resnet18", "class_names": ["cat"], "network": state}
    made = []
    for zipped in (True, False):
        for value in (content, state, torch.nn.BatchNorm1d(2).state_dict()):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=zipped)
            made.append(stream.getvalue())
    ours = Checkpoint("cam", "resnet18", ("a",), state)
    return [*made, _written(lambda path: artifacts.write_checkpoint(path, ours), ".pt")]


def training() -> TrainingState:
    """A training of two weights."""
    network = torch.nn.Linear(2, 1)
    schedule = Schedule(1, 1, 0.9, 0.0)
    return TrainingState(network, [{"params": list(network.parameters()), "lr": 0.1}], schedule, 2)


def resumes() -> list[bytes]:
    """What a training goes on from."""

    def save(path: Path) -> None:
        state = training()
        state.network(torch.ones(1, 2)).sum().backward()
        state.optimizer.step()
        state.save(path.parent, 3)
        (path.parent / "resume.pt").rename(path)

    return [_written(save, ".pt")]


def coco_files() -> list[bytes]:
    """Polygons, a crowd, and packed run lengths."""
    packed = rle.encode(np.asfortranarray(np.eye(*SIZE, dtype=np.uint8)))["counts"].decode()
    size = list(SIZE)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 5, "width": 7}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 4]]},
            {"id": 2, "image_id": 1, "category_id": 2, "iscrowd": 1, "segmentation": {"size": size, "counts": [3, 32]}},
            {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"size": size, "counts": packed}},
            {"id": 4, "image_id": 2, "category_id": 7, "segmentation": [], "bbox": [1, 2, 3, 4]},
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}],
    }  # fmt: skip
    return [json.dumps(content).encode()]


def records() -> list[bytes]:
    """A `stage.json`."""
    reads, sections = {"train_cam": "4567"}, {"write": 0.1}
    record = StageRecord(
        "make_cam", "0123", {"scales": [1.0]}, reads, True, {"images": 3}, 1.5, {"torch": "2"}, sections
    )
    return [json.dumps(asdict(record)).encode()]


def locks() -> list[bytes]:
    """The text of a lock, whose holder has ended."""
    return [b"process 7 on here since now (x)"]
