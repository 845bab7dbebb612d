"""Every reader of files from strangers, by name: for the property tests and for the fuzzer."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from irn_pipeline import artifacts
from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.datasets import images
from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.datasets.picture_folder import restrict
from irn_pipeline.datasets.voc import load_voc, read_class_names
from irn_pipeline.engine.options import add_options, flat_config, from_namespace, new_parser, parse
from irn_pipeline.engine.store import RECORD_NAME, RunFolder
from irn_pipeline.engine.training_log import TrainingLog
from irn_pipeline.export.report_records import read_curves, read_results, read_sweep
from irn_pipeline.files.lock import LOCK_NAME, holder_of, stage_lock
from irn_pipeline.files.npy import load_pickled_npy
from irn_pipeline.files.yaml_text import read_yaml
from irn_pipeline.nn.backbone import read_state_dict
from tests.fuzz import seeds
from tests.fuzz.seeds import PICKLE_WORDS, SIZE, pickle_header


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the target.
        file: name of the file that it reads.
        read: reads that file, in a folder that `surroundings` has prepared.
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
    for name in ("VOC/JPEGImages", "VOC/Annotations", "pictures", "make_cam", "train_cam", "locked"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.full((*SIZE, 3), 90, np.uint8))
    for place in ("VOC/JPEGImages/a.jpg", "VOC/JPEGImages/b.c.jpg", "pictures/a.jpg", "pictures/b.jpg"):
        picture.save(folder / place)
    for stem in ("a", "b.c"):
        (folder / f"VOC/Annotations/{stem}.xml").write_bytes(seeds.XML)
    (folder / "table.csv").write_text("image,label\na,dog\nb,cat\n")
    return folder


def _read_xml(path: Path) -> object:
    return load_voc(path.parents[1])


def _read_list(path: Path) -> object:
    return load_voc(path.parent / "VOC", image_list=path)


def _read_folder_list(path: Path) -> object:
    table = path.parent / "table.csv"
    return restrict(load_folder_csv(table, path.parent / "pictures"), path)


def _read_table(path: Path) -> object:
    return load_folder_csv(path, path.parent / "pictures")


def _read_coco(path: Path) -> object:
    coco = load_coco(path, path.parent / "pictures")
    return [coco.ground_truth(record.image_id) for record in coco.items]


@cache
def _sections() -> dict[str, Any]:
    # Imported here: it takes longer than all the others together.
    from irn_pipeline.stages import mine_relations, synthesize_labels

    return {"mine_relations": mine_relations.Params, "synthesize_labels": synthesize_labels.Params}


def _configs() -> list[bytes]:
    _sections()
    return [b"mine_relations:\n  fg_threshold: 0.3\nsynthesize_labels:\n  beta: 8\n  keep_scores: true\n"]


def _read_config(path: Path) -> object:
    sections = _sections()
    parser = new_parser("x", "x")
    for name, params in sections.items():
        add_options(parser, params, prefix=f"{name}.")
    values = parse(parser, [], flat_config(read_yaml(path), sections.items(), str(path)))
    return [from_namespace(params, values, prefix=f"{name}.") for name, params in sections.items()]


def _read_record(path: Path) -> object:
    return RunFolder(path.parents[1]).record(path.parent.name)


def _read_lock(path: Path) -> object:
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = holder_of(path.parent)
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


_PNG_WORDS = (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"IEND")
_JPEG_WORDS = (b"\xff\xd8\xff", b"\xff\xda", b"\xff\xc0", b"\xff\xd9")
_COCO_WORDS = (b'"segmentation"', b'"counts"', b"NaN", b"-1", b"1e999")
_XML_WORDS = (b"<object>", b"<name>", b"<!DOCTYPE")
_ALL = (
    Target("unpickler", "x.npy", load_pickled_npy, seeds.pickles, pickle_header(), PICKLE_WORDS),
    Target("npy", "x.npy", load_pickled_npy, seeds.plain_arrays),
    Target("cam", "x.npy", lambda path: read_cam_file(path, SIZE), seeds.cam_files, words=PICKLE_WORDS),
    Target("instances", "x.npy", artifacts.read_instances, seeds.instance_files, words=PICKLE_WORDS),
    Target("scores", "x.npz", artifacts.read_walked_scores, seeds.score_files),
    Target("label", "x.png", artifacts.read_label, seeds.label_files, words=_PNG_WORDS),
    Target("mask", "x.png", images.read_label, seeds.pictures, words=_PNG_WORDS),
    Target("picture", "x.jpg", images.read_image, seeds.pictures, words=_JPEG_WORDS),
    Target("size", "x.jpg", images.read_image_size, seeds.pictures),
    Target("checkpoint", "x.pt", artifacts.read_checkpoint, seeds.checkpoints, words=PICKLE_WORDS),
    Target("weights", "x.pth", read_state_dict, seeds.checkpoints, words=PICKLE_WORDS),
    Target("resume", "resume.pt", lambda path: seeds.training().resume(path.parent), seeds.resumes),
    Target("xml", "VOC/Annotations/a.xml", _read_xml, lambda: [seeds.XML], words=_XML_WORDS),
    Target("list", "list.txt", _read_list, lambda: seeds.LIST),
    Target("folder_list", "list.txt", _read_folder_list, lambda: seeds.FOLDER_LIST),
    Target("names", "names.txt", read_class_names, lambda: seeds.NAMES),
    Target("csv", "t.csv", _read_table, lambda: seeds.TABLES),
    Target("jsonl", "t.jsonl", _read_table, lambda: seeds.LINES),
    Target("coco", "c.json", _read_coco, seeds.coco_files, words=_COCO_WORDS),
    Target("config", "c.yaml", _read_config, _configs),
    Target("record", f"make_cam/{RECORD_NAME}", _read_record, seeds.records),
    Target("lock", f"locked/{LOCK_NAME}", _read_lock, seeds.locks),
    Target("losses", "train_cam/losses.jsonl", _read_losses, lambda: seeds.LOSSES),
    Target("metrics", "metrics.json", _read_metrics, lambda: seeds.METRICS),
    Target("sweep", "sweep.json", _read_sweep, lambda: seeds.SWEEP),
)
TARGETS = {target.name: target for target in _ALL}
