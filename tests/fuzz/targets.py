"""Every reader of files from strangers, with valid files to start from: for the property tests and for the fuzzer."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from irn_pipeline import artifacts
from irn_pipeline.artifacts import Checkpoint, WalkedScores
from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.datasets import images
from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.datasets.picture_folder import restrict
from irn_pipeline.datasets.voc import load_voc, read_class_names
from irn_pipeline.export.report_records import read_curves, read_results, read_sweep
from irn_pipeline.foreign.npy import load_pickled_npy
from irn_pipeline.nn.backbone import read_state_dict
from irn_pipeline.runtime.events import TrainingLog
from irn_pipeline.runtime.lock import LOCK_NAME, Holder, holder_of, stage_lock
from irn_pipeline.runtime.options import add_options, flatten_config, from_namespace, new_parser, parse, read_yaml
from irn_pipeline.runtime.optimisation import Schedule, learning_rates, make_optimizer
from irn_pipeline.runtime.store import RECORD_NAME, RunFolder, StageRecord
from irn_pipeline.runtime.training import _State
from irn_pipeline.structures import Cam, Instances

SIZE = (5, 7)
HEADER = io.BytesIO()
np.lib.format.write_array_header_1_0(HEADER, {"descr": "|O", "fortran_order": False, "shape": ()})


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the target.
        file: name of the file that it reads.
        read: reads that file; the folder is `surroundings`' work.
        seeds: contents of valid files.
        prefix: put before every content.
        words: what a mutation should know.
    """

    name: str
    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    prefix: bytes = b""
    words: tuple[bytes, ...] = ()

    def run(self, folder: Path, content: bytes) -> object:
        """Read `content` in the place of the file."""
        path = folder / self.file
        path.write_bytes(self.prefix + content)
        return self.read(path)


def surroundings(folder: Path) -> Path:
    """The folder, with the pictures and the data set that the readers expect around their file."""
    for name in ("VOC/JPEGImages", "VOC/Annotations", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.full((*SIZE, 3), 90, np.uint8))
    for place in ("VOC/JPEGImages/a.jpg", "VOC/JPEGImages/b.c.jpg", "pictures/a.jpg", "pictures/b.jpg"):
        picture.save(folder / place)
    for stem in ("a", "b.c"):
        (folder / f"VOC/Annotations/{stem}.xml").write_bytes(_xml())
    return folder


def _written(write: Callable[[Path], object], suffix: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        write(path)
        return path.read_bytes()


def _cam() -> dict[str, object]:
    rng = np.random.default_rng(0)
    return {
        "keys": np.array([1, 4]),
        "cam": rng.random((2, 2, 2), np.float32),
        "high_res": rng.random((2, *SIZE), np.float32),
    }


def _cam_files() -> list[bytes]:
    cam = _cam()
    tensors = {name: torch.from_numpy(array).half() for name, array in cam.items() if isinstance(array, np.ndarray)}
    clip = {"keys": np.array([1, 4]), "attn_highres": cam["high_res"]}
    empty = {"keys": np.zeros(0, np.int64), "cam": np.zeros((0, 2, 2)), "high_res": np.zeros((0, *SIZE))}
    return [HEADER.getvalue() + body for content in (cam, tensors, clip, empty) for body in _pickles(content)]


def _pickles(content: object) -> list[bytes]:
    return [pickle.dumps(np.array(content, dtype=object), protocol=protocol) for protocol in (2, 3, 4, 5)]


def _all_pickles() -> list[bytes]:
    pieces: list[object] = [
        *({"s": np.float32(1)}, {"t": np.array(["ab"])}, {"big": np.zeros(2, ">f4")}, {"a": torch.zeros(2)}),
        *(["a", ("b", None, 1.5, b"x")], OrderedDict(a=True), np.asfortranarray(np.ones((2, 2), np.int16)), {}),
    ]
    return [body for content in pieces for body in _pickles(content)]


def _instances() -> list[bytes]:
    masks = np.random.default_rng(1).random((2, *SIZE)) > 0.5
    full = Instances(np.array([0.7, 0.2], np.float32), masks, np.array([4, 1]))
    made = [_written(lambda path, v=value: artifacts.write_instances(path, v), ".npy") for value in (full, Instances.empty(SIZE))]  # type: ignore[misc]
    return [*made, *_cam_files()[:1]]


def _scores() -> list[bytes]:
    value = WalkedScores(np.array([1]), np.full((1, 2, 2), 0.5, np.float16), SIZE)
    return [_written(lambda path: artifacts.write_walked_scores(path, value), ".npz")]


def _label() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 21, SIZE, np.uint8)


def _label_files() -> list[bytes]:
    return [_written(lambda path: artifacts.write_label(path, _label()), ".png")]


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(3).integers(0, 255, (*SIZE, 3), np.uint8)
    picture = Image.fromarray(pixels)
    kinds = [(picture, ".jpg"), (picture, ".png"), (picture, ".webp"), (picture, ".bmp"), (picture.quantize(8), ".png")]
    kinds += [(Image.fromarray(_label()), ".png"), (Image.fromarray(_label().astype(np.uint16)), ".png")]
    return [_written(lambda path, p=kind: p.save(path), suffix) for kind, suffix in kinds]  # type: ignore[misc]


def _checkpoints() -> list[bytes]:
    state = {"a.weight": torch.rand(2, 3), "a.steps": torch.tensor(4), "b": torch.nn.Parameter(torch.ones(2))}
    content = {"kind": "cam", "backbone": "resnet18", "class_names": ["cat"], "network": state}
    made = []
    for zipped in (True, False):
        for value in (content, state, torch.nn.BatchNorm1d(2).state_dict()):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=zipped)
            made.append(stream.getvalue())
    return [*made, _written(lambda path: artifacts.write_checkpoint(path, Checkpoint("cam", "resnet18", ("a",), state)), ".pt")]


def _training() -> _State:
    network = torch.nn.Linear(2, 1)
    schedule = Schedule(1, 1, 0.9, 0.0)
    optimizer = make_optimizer([{"params": list(network.parameters()), "lr": 0.1}], schedule)
    return _State(network, optimizer, learning_rates(optimizer, schedule, 2), None)


def _resumes() -> list[bytes]:
    def save(path: Path) -> None:
        state = _training()
        state.network(torch.ones(1, 2)).sum().backward()
        state.optimizer.step()
        state.save(path.parent, 3)
        (path.parent / "resume.pt").rename(path)

    return [_written(save, ".pt")]


def _xml() -> bytes:
    return b"<annotation><filename>a.jpg</filename><object><name>dog</name><part><name>head</name></part></object></annotation>"


def _read_xml(path: Path) -> object:
    return load_voc(path.parents[1])


def _read_list(path: Path) -> object:
    return load_voc(path.parent / "VOC", image_list=path)


def _read_folder_list(path: Path) -> object:
    table = path.parent / "table.csv"
    table.write_text("image,label\na,dog\nb,cat\n")
    return restrict(load_folder_csv(table, path.parent / "pictures"), table, path)


def _read_table(path: Path) -> object:
    return load_folder_csv(path, path.parent / "pictures")


def _read_coco(path: Path) -> object:
    coco = load_coco(path, path.parent / "pictures")
    return [coco.truths.ground_truth(record.image_id) for record in coco.loaded.images.records]


def _coco() -> list[bytes]:
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 4]], "bbox": [0, 0, 4, 4]},
        {"id": 2, "image_id": 1, "category_id": 2, "iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": [3, 30, 2]}},
        {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"size": list(SIZE), "counts": "3n0O2"}, "bbox": [1, 2, 3, 4]},
    ]  # fmt: skip
    pictures = [
        {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]},
        {"id": 2, "file_name": "b.jpg"},
    ]
    categories = [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}]
    return [json.dumps({"images": pictures, "annotations": annotations, "categories": categories}).encode()]


def _read_config(path: Path) -> object:
    # Imported here: it takes longer than all the others together.
    from stages import mine_relations, synthesize_labels

    sections: dict[str, Any] = {
        "mine_relations": mine_relations.Params,
        "synthesize_labels": synthesize_labels.Params,
    }
    parser = new_parser("x", "x")
    for name, params in sections.items():
        add_options(parser, params, prefix=f"{name}.")
    known = {name: [entry.name for entry in fields(params)] for name, params in sections.items()}
    values = parse(parser, [], flatten_config(read_yaml(path), [], known, str(path)))
    return [from_namespace(params, values, prefix=f"{name}.") for name, params in sections.items()]


def _record() -> StageRecord:
    return StageRecord(
        "make_cam", "0123", {"scales": [1.0, 0.5]}, {"train_cam": "4567"}, True, {"images": 3}, 1.5, {"torch": "2"}, {"write": 0.1}
    )


def _read_record(path: Path) -> object:
    return RunFolder(path.parents[1]).record(path.parent.name)


def _read_lock(path: Path) -> object:
    found = str(holder_of(path.parent))
    with stage_lock(path.parent):
        return found


def _read_losses(path: Path) -> object:
    curves = read_curves(path.read_bytes().decode(errors="replace"), "train_cam")
    TrainingLog(path.parent, done=1).close()
    return curves


def _read_metrics(path: Path) -> object:
    return read_results(artifacts.METRICS.read(path), str(path))


def _read_sweep(path: Path) -> object:
    return read_sweep(artifacts.SWEEP.read(path), str(path))


def _json(value: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode()]


_NAMES = (
    b"numpy", b"dtype", b"ndarray", b"numpy._core.multiarray", b"numpy.core.multiarray", b"_reconstruct", b"scalar",
    b"numpy._core.numeric", b"_frombuffer", b"torch._utils", b"_rebuild_tensor_v2", b"torch.storage", b"_load_from_bytes",
    b"collections", b"OrderedDict", b"_codecs", b"encode", b"latin1", b"f4", b"i8", b"b1", b"O8", b"U3", b"S0", b"V4", b"M8",
    b"keys", b"cam", b"high_res", b"score", b"mask", b"class", b"\x94\x93", b"\x85R", b"\x86R", b"\x87R", b"tR", b"tb", b"r\xff\xff\xff\x7f",
)  # fmt: skip

TARGETS = {
    target.name: target
    for target in (
        Target("unpickler", "x.npy", load_pickled_npy, _all_pickles, HEADER.getvalue(), _NAMES),
        Target("npy", "x.npy", load_pickled_npy, lambda: [_written(lambda p: np.save(p, np.zeros((2, 3))), ".npy")]),
        Target("cam", "x.npy", lambda path: read_cam_file(path, SIZE), _cam_files, words=_NAMES),
        Target("instances", "x.npy", artifacts.read_instances, _instances, words=_NAMES),
        Target("scores", "x.npz", artifacts.read_walked_scores, _scores),
        Target("label", "x.png", artifacts.read_label, _label_files, words=(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"IEND")),
        Target("mask", "x.png", images.read_label, _pictures, words=(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"IEND")),
        Target("picture", "x.jpg", images.read_image, _pictures, words=(b"\xff\xd8\xff", b"\xff\xda", b"\xff\xc0", b"\xff\xd9")),
        Target("size", "x.jpg", images.read_image_size, _pictures),
        Target("checkpoint", "x.pt", artifacts.read_checkpoint, _checkpoints, words=_NAMES),
        Target("weights", "x.pth", read_state_dict, _checkpoints, words=_NAMES),
        Target("resume", "resume.pt", lambda path: _training().resume(path.parent), _resumes, words=_NAMES),
        Target("xml", "VOC/Annotations/a.xml", _read_xml, lambda: [_xml()], words=(b"<object>", b"<name>", b"<!DOCTYPE")),
        Target("list", "list.txt", _read_list, lambda: [b"a\nb.c 1\n/JPEGImages/a.jpg /x/a.png\n# no\n"]),
        Target("folder_list", "list.txt", _read_folder_list, lambda: [b"a.jpg\nb\n# no\n"]),
        Target("names", "names.txt", read_class_names, lambda: [b"cat\ndog\n"]),
        Target("csv", "t.csv", _read_table, lambda: [b"image,label\na.jpg,dog\nb,cat\n", b'a.jpg;"dog";cat\n', b"image,dog,cat\na,0,1\n"]),
        Target("jsonl", "t.jsonl", _read_table, lambda: [b'{"image": "a.jpg", "labels": ["dog"]}\n{"image": "b", "dog": 1}\n']),
        Target("coco", "c.json", _read_coco, _coco, words=(b'"segmentation"', b'"counts"', b"NaN", b"-1", b"1e999")),
        Target("config", "c.yaml", _read_config, lambda: [b"mine_relations:\n  conf_fg_thres: 0.3\nsynthesize_labels:\n  beta: 8\n"]),
        Target("record", f"make_cam/{RECORD_NAME}", _read_record, _json(asdict(_record()))),
        Target("lock", f"locked/{LOCK_NAME}", _read_lock, lambda: [json.dumps(asdict(Holder("host", 2**22 + 1, 5, "now", "x"))).encode()]),
        Target("losses", "train_cam/losses.jsonl", _read_losses, lambda: [b'{"step": 1, "epoch": 0, "loss": 0.5}\n{"step": 2}\n']),
        Target("metrics", "metrics.json", _read_metrics, _json({"cam": {"miou": 0.5, "iou_per_class": {"a": 0.1}}})),
        Target("sweep", "sweep.json", _read_sweep, _json([{"threshold": 0.1, "miou": 0.2}])),
    )
}  # fmt: skip
