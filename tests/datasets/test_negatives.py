"""Pictures without a tag: negatives in every form of a data set, and what a training makes of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irn_pipeline.datasets.samples import ClassificationSamples, RelationSamples
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.engine.execution import Execution
from irn_pipeline.errors import DataError
from irn_pipeline.evaluation import model_figures
from irn_pipeline.structures import ImageSet, Instances

TABLES = {
    "an empty cell": ("t.csv", "image,label\na,cat\nb,\nc,dog\nd,\n"),
    "no cell": ("t.csv", "image,label\na,cat\nb\nc,dog\nd\n"),
    "zeros": ("t.csv", "image,cat,dog\na,1,0\nb,0,0\nc,0,1\nd,0,0\n"),
    "an empty list": (
        "t.jsonl",
        '{"image": "a", "labels": ["cat"]}\n{"image": "b", "labels": []}\n'
        '{"image": "c", "labels": ["dog"]}\n{"image": "d"}\n',
    ),
}
BOX = [[0, 0, 4, 0, 4, 1, 0, 1]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for image_id in "abcd":
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "in" / f"{image_id}.png")
    return tmp_path / "in"


def table(photos: Path, kind: str = "an empty cell", **more: object) -> DataSet:
    name, content = TABLES[kind]
    (photos.parent / name).write_text(content)
    return load_source(Source(image_dir=str(photos), label_csv=str(photos.parent / name), **more))  # type: ignore[arg-type]


def coco(photos: Path, *, masks: bool = True, unknown: tuple[int, ...] = (), **more: object) -> DataSet:
    images = [{"id": n, "file_name": f"{image_id}.png"} for n, image_id in enumerate("abcd")]
    entries = [(0, 1), (2, 2), *((image, 99) for image in unknown)]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "segmentation": BOX if masks else []}
        for n, (image, category) in enumerate(entries)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path = photos.parent / "c.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_source(Source(image_dir=str(photos), coco_json=str(path), **more))  # type: ignore[arg-type]


def voc(photos: Path, **more: object) -> DataSet:
    root = photos.parent / "voc"
    (root / "Annotations").mkdir(parents=True)
    photos.rename(root / "JPEGImages")
    (root / "class_names.txt").write_text("cat\ndog\n")
    for image_id, name in zip("abcd", ("cat", "", "dog", ""), strict=True):
        objects = f"<object><name>{name}</name></object>" if name else ""
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    return load_source(Source(voc_root=str(root), **more))  # type: ignore[arg-type]


LOADERS = {**{kind: lambda photos, kind=kind, **more: table(photos, kind, **more) for kind in TABLES}}
LOADERS |= {"COCO": coco, "VOC": voc}


def ids(records: object) -> list[str]:
    return [record.image_id for record in records]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", LOADERS)
def test_they_are_counted_once_and_passed_over_without_a_warning(photos, kind, caplog):
    with caplog.at_level(logging.INFO):
        data = LOADERS[kind](photos)
    assert ids(data.items) == ["a", "c"] and ids(data.negatives) == ["b", "d"]
    told = [record for record in caplog.records if "without any" in record.getMessage()]
    assert len(told) == 1 and told[0].levelno == logging.INFO
    assert (
        "2 images with tags of 2 classes, 2 without any (negatives): cat (1), dog (1)" in told[0].getMessage()
    )
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all("single image" in line or "warnings about" in line for line in warned)


@pytest.mark.parametrize("kind", ["zeros", "COCO", "VOC"])
def test_they_can_be_left_out(photos, kind, caplog):
    with caplog.at_level(logging.INFO):
        data = LOADERS[kind](photos, untagged="skip")
    assert ids(data.items) == ["a", "c"] and not data.negatives
    assert "left out because they show none of the classes: 2 (b, d)" in caplog.text
    assert "2 images with tags of 2 classes: cat" in caplog.text


@pytest.mark.parametrize("kind", ["zeros", "COCO", "VOC"])
def test_a_list_picks_some(photos, kind):
    (photos.parent / "list.txt").write_text("d\nc\n")
    (photos.parent / "none.txt").write_text("d\n")
    data = LOADERS[kind](photos).with_list(str(photos.parent / "list.txt"))
    assert ids(data.items) == ["c"] and ids(data.negatives) == ["d"]
    with pytest.raises(DataError, match=r"none\.txt: none of its 1 images"):
        data.with_list(str(photos.parent / "none.txt"))


def test_pictures_of_other_classes_are_negatives_of_those_that_are_picked(photos):
    data = table(photos, classes=("cat",))
    assert ids(data.items) == ["a"] and ids(data.negatives) == ["b", "c", "d"]


def test_what_an_annotation_of_an_unknown_category_shows_is_not_known(photos):
    data = coco(photos, unknown=(0, 1))
    assert ids(data.items) == ["a", "c"] and ids(data.negatives) == ["d"] and data.skipped == ("b",)
    assert any("their tags are unknown: 1 (b)" in warning for warning in data.warnings)


@pytest.mark.parametrize(
    "content", ["image,cat\na,1\nb,0\nc,1\nd,0\n", "image,label\na,cat\nb,\nc,cat\nd,\n"]
)
def test_one_class_with_negatives_is_a_data_set(photos, content, caplog):
    (photos.parent / "t.csv").write_text(content)
    flags = {"image_dir": str(photos), "label_csv": str(photos.parent / "t.csv")}
    with caplog.at_level(logging.INFO):
        data = load_source(Source(**flags))  # type: ignore[arg-type]
    assert "2 images with tags of 1 class, 2 without any (negatives): cat (2)" in caplog.text
    assert "cannot learn" not in caplog.text and len(data.negatives) == 2
    load_source(Source(**flags, untagged="skip"))  # type: ignore[arg-type]
    assert "cannot learn" in caplog.text and "rows with an empty label" in caplog.text


def test_the_classifier_is_told_that_no_class_is_there(photos):
    data = table(photos)
    images = ImageSet(data.images.class_names, (*data.items, *data.negatives))
    samples = ClassificationSamples(images, long_side=(8, 8), crop=8, seed=0)
    assert [samples[0, index][1].tolist() for index in range(4)] == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_irnet_is_told_that_all_is_background(photos):
    data = table(photos)
    asked: list[str] = []

    def read_label(image_id: str) -> np.ndarray:
        asked.append(image_id)
        return np.full((8, 8), 1, np.uint8)

    samples = RelationSamples(
        (data.items[0], data.negatives[0]), read_label=read_label, scales=(1, 1), crop=8, seed=0
    )
    assert samples[0, 0][1].tolist() == [[1, 1], [1, 1]]
    assert samples[0, 1][1].tolist() == [[0, 0], [0, 0]] and asked == ["a"]


class SeesCats:
    """A model that finds a cat in the first row of every picture."""

    def predict_with_label(self, image: torch.Tensor, min_score: float = 0.5) -> tuple[Instances, np.ndarray]:
        masks = np.zeros((1, 8, 8), np.bool_)
        masks[:, 0, :4] = True
        return Instances(np.ones(1, np.float32), masks, np.zeros(1, np.int64)), masks[0].astype(np.uint8)


def test_what_a_model_finds_in_them_is_wrong(photos):
    data = coco(photos)
    truth = data.ground_truth("b")
    assert truth is not None and not truth.label.any() and not len(truth.instances)
    figures = model_figures(SeesCats(), data, Execution(quiet=True))  # type: ignore[arg-type]
    # Of four cats, four pixels each, one is there; the dog of c is called a cat.
    assert figures["pictures"] == 4 and figures["iou_per_class"]["cat"] == 0.25


def test_a_coco_file_without_masks_has_no_truth(photos):
    assert coco(photos, masks=False).ground_truth("b") is None
