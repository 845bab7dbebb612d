"""A COCO file through the stages: its ids come out again, and a truth that shows nothing is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from irn_pipeline.artifacts import (
    CAM,
    INSTANCE_LABEL,
    METRICS,
    SEMANTIC_LABEL,
    read_checkpoint,
    write_checkpoint,
)
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.structures import Cam, Instances

SIZE = (64, 96)
SQUARES = {"p1": [("cat", 10, 8)], "p2": [("dog", 40, 20)], "p3": [("cat", 4, 30), ("dog", 60, 12)]}
"""Of each picture: class, left and top of squares of 24 pixels."""


def outline(left: int, top: int) -> list[list[Any]]:
    return [[left, top, left + 24, top, left + 24, top + 24, left, top + 24]]


class Set:
    """Pictures, their COCO file, and a run folder whose labels equal its masks."""

    def __init__(self, root: Path, ids: dict[str, int], image_ids: dict[str, int | str]) -> None:
        self.root, self.run = root, RunFolder(root / "run")
        self.run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))
        (root / "photos").mkdir()
        names = [name for _, name in sorted((key, name) for name, key in ids.items())]
        images, annotations = [], []
        for image_id, key in image_ids.items():
            Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(root / "photos" / f"{image_id}.jpg")
            images.append({"id": key, "file_name": f"{image_id}.jpg", "height": SIZE[0], "width": SIZE[1]})
            squares = SQUARES.get(image_id, [])
            masks, label = np.zeros((len(squares), *SIZE), bool), np.zeros(SIZE, np.uint8)
            for mask, (name, left, top) in zip(masks, squares, strict=True):
                mask[top : top + 24, left : left + 24] = True
                label[mask] = names.index(name) + 1
                annotations.append({
                    "id": len(annotations) + 1, "image_id": key, "category_id": ids[name], "area": 576, "iscrowd": 0,
                    "bbox": [left, top, 24, 24], "segmentation": outline(left, top),
                })  # fmt: skip
            classes = np.array([names.index(name) for name, _, _ in squares], np.int64)
            if squares:
                self.run.write(
                    INSTANCE_LABEL, Instances(np.ones(len(classes), np.float32), masks, classes), image_id
                )
                self.run.write(SEMANTIC_LABEL, label, image_id)
        categories = [{"id": key, "name": name} for name, key in ids.items()]
        self.content: dict[str, Any] = {
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        self.write()

    def write(self) -> None:
        (self.root / "c.json").write_text(json.dumps(self.content))

    def command(self, stage: str, *words: str, data: bool = True) -> int:
        flags = ["--run-dir", str(self.run.root), "--device", "cpu", "--workers", "1", "--quiet"]
        named = (
            ["--image-dir", str(self.root / "photos"), "--coco-json", str(self.root / "c.json")]
            if data
            else []
        )
        return stage_main(stage, [*flags, *named, *words])

    def average_precision(self, path: Path) -> float:
        """AP50 as others compute it: joined by image and category id, with COCO's own code."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(self.root / "c.json"))
            found = truth.loadRes(json.loads(path.read_text())["annotations"])
            evaluation = COCOeval(truth, found, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[1])


IDS = {
    "gaps": ({"cat": 17, "dog": 3}, {"p1": 1185, "empty": 40, "p2": 7, "p3": 8}),
    "from 0": ({"cat": 0, "dog": 1}, {"p1": 0, "p2": 1, "empty": 2, "p3": 3}),
    "texts": ({"cat": 1, "dog": 2}, {"p3": "third", "p1": "000012", "p2": "12b", "empty": "e"}),
}


@pytest.fixture(params=list(IDS))
def every(request: pytest.FixtureRequest, tmp_path: Path) -> Set:
    return Set(tmp_path, *IDS[request.param])


@pytest.fixture
def data(tmp_path: Path) -> Set:
    return Set(tmp_path, *IDS["gaps"])


@pytest.mark.parametrize("kind", [(), ("--polygons",)])
def test_the_export_is_joined_with_its_source_by_ids(every: Set, kind: tuple[str, ...]) -> None:
    assert every.command("export_labels", *kind) == 0
    path = every.run.root / "export_labels" / "coco" / "instances.json"
    assert every.average_precision(path) == 1.0
    exported, source = json.loads(path.read_text()), every.content
    for key in ("file_name", "id"):
        known = {image["file_name"]: image[key] for image in source["images"]}
        assert all(known[image["file_name"]] == image[key] for image in exported["images"])
    assert {c["name"]: c["id"] for c in exported["categories"]} == {
        c["name"]: c["id"] for c in source["categories"]
    }


TINY = (
    *(
        "--backbone",
        "resnet18",
        "--backbone-weights",
        "none",
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--channels",
        "16",
    ),
    *("--short-side", "64", "--long-side", "96", "--boxes-per-image", "16"),
)


def predictions(data: Set, *words: str, out: str, named: bool = False) -> dict[str, Any]:
    flags = ["--min-score", "0", "--overlays", "false", "--out", str(data.root / out)]
    assert data.command("predict", *flags, *words, data=named) == 0
    return json.loads((data.root / out / "predictions.json").read_text())


def test_predictions_have_the_ids_of_the_data(data: Set, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.command("train_segmenter", *TINY) == 0
    path = data.run.root / "train_segmenter" / "mask_rcnn" / "network.pt"
    assert read_checkpoint(path).category_ids == (3, 17)
    photos = data.root / "photos"
    Image.new("RGB", SIZE[::-1]).save(photos / "new.jpg")
    # The model knows the category ids without the COCO file, the image ids are its alone.
    alone = predictions(data, "--images", str(photos), out="alone")
    assert [(c["id"], c["name"]) for c in alone["categories"]] == [(3, "dog"), (17, "cat")]
    assert {entry["category_id"] for entry in alone["annotations"]} <= {3, 17}
    assert [image["id"] for image in alone["images"]] == [1, 2, 3, 4, 5]
    named = predictions(data, "--images", str(photos), out="named", named=True)
    assert {image["file_name"]: image["id"] for image in named["images"]} == {
        "empty.jpg": 40, "new.jpg": 1186, "p1.jpg": 1185, "p2.jpg": 7, "p3.jpg": 8,
    }  # fmt: skip
    assert named["categories"] == alone["categories"]
    # A file of an older version says nothing of category ids.
    assert "category ids" not in capsys.readouterr().err
    old = read_checkpoint(path)
    path.unlink()
    write_checkpoint(path, type(old)(old.kind, old.backbone, old.class_names, old.state))
    older = predictions(data, "--images", str(photos), out="older")
    assert [c["id"] for c in older["categories"]] == [1, 2]
    assert "holds no COCO category ids" in capsys.readouterr().err
    assert (
        predictions(data, "--images", str(photos), out="o", named=True)["categories"] == named["categories"]
    )


def pairs(square: list[list[Any]]) -> Any:
    (values,) = square
    return [list(pair) for pair in zip(values[::2], values[1::2], strict=True)]


READABLE = {
    "polygons": lambda square: square,
    "point pairs": pairs,
    "polygons of point pairs": lambda square: [pairs(square)],
    "texts": lambda square: [[f"{value:.1f}" for value in square[0]]],
}
UNREADABLE = {
    "dictionaries": lambda square: [{"x": x, "y": y} for x, y in pairs(square)],
    "four numbers": lambda square: [[*square[0][:2], *square[0][4:6]]],
    "fractions": lambda square: [[value / 96 for value in square[0]]],
    "pairs of fractions": lambda square: [[x / 96, y / 64] for x, y in pairs(square)],
    "words": lambda square: [[f"{value}px" for value in square[0]]],
}


@pytest.mark.parametrize("kind", READABLE)
def test_masks_that_can_be_read_agree_with_equal_labels(data: Set, kind: str) -> None:
    for entry in data.content["annotations"]:
        entry["segmentation"] = READABLE[kind](entry["segmentation"])
    data.write()
    assert data.command("evaluate") == 0
    figures = data.run.read(METRICS)
    assert (figures["pictures"], figures["semantic_label"]["miou"], figures["instance_label"]["ap75"]) == (
        3,
        1,
        1,
    )
    assert figures["instance_label"]["instances"] == 4


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("spoilt", [slice(None), slice(3, 4)])
def test_a_mask_that_cannot_be_read_stops_the_evaluation(
    data: Set, kind: str, spoilt: slice, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in data.content["annotations"][spoilt]:
        entry["segmentation"] = UNREADABLE[kind](entry["segmentation"])
    data.write()
    assert data.command("evaluate") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    first = data.content["annotations"][spoilt][0]["id"]
    assert message.startswith(f"error: {data.root / 'c.json'}: annotation {first}: ")
    assert "expected [[x, y, x, y, x, y, ...], ...] in pixels" in message
    assert not data.run.has(METRICS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iscrowd": 1}, "the ground-truth masks of 3 images show no object of any class"),
        (
            {"segmentation": {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}},
            "show no object of any class",
        ),
        ({"segmentation": []}, "none of its 3 images has ground-truth masks"),
        ({"segmentation": None}, "none of its 3 images has ground-truth masks"),
    ],
    ids=["crowds", "run lengths without a pixel", "boxes only", "no segmentation"],
)
def test_a_truth_without_any_object_is_no_truth(
    data: Set, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in data.content["annotations"]:
        entry.update(change)
    data.write()
    assert data.command("evaluate") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last and str(data.root / "c.json") in last
    assert not data.run.has(METRICS)


def test_thresholds_are_not_swept_on_a_truth_without_any_object(
    data: Set, capsys: pytest.CaptureFixture[str]
) -> None:
    data.run.write_record(StageRecord("make_cam", "0", {}, {}, True, {}, 0.0, {}))
    for image_id in SQUARES:
        maps = np.ones((1, *SIZE), np.float32)
        data.run.write(CAM, Cam(np.zeros(1, np.int64), maps[:, ::4, ::4], maps), image_id)
    assert data.command("sweep", "--cam") == 0
    for entry in data.content["annotations"]:
        entry["iscrowd"] = 1
    data.write()
    capsys.readouterr()
    assert data.command("sweep", "--cam") == 1
    assert "ground-truth masks of 3 images show no object" in capsys.readouterr().err.splitlines()[-1]


def test_a_held_out_list_of_crowds_only(data: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """The models are compared with other pictures than the labels."""
    assert data.command("train_segmenter", *TINY) == 0
    data.content["annotations"][0]["iscrowd"] = 1
    data.write()
    (data.root / "held.txt").write_text("p1\n")
    capsys.readouterr()
    assert data.command("evaluate", "--heldout-list", str(data.root / "held.txt")) == 1
    assert "ground-truth masks of 1 images show no object" in capsys.readouterr().err.splitlines()[-1]


def test_ids_as_texts_train_and_ids_of_nothing_are_explained(
    data: Set, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in data.content["annotations"]:
        entry.update(category_id=str(entry["category_id"]), image_id=float(entry["image_id"]))
    data.write()
    assert data.command("export_labels") == 0
    data.content["annotations"][1]["category_id"] = "cat"
    data.write()
    capsys.readouterr()
    words = ["--image-dir", str(data.root / "photos"), "--coco-json", str(data.root / "c.json")]
    assert main(["run", "1", *words, "--run-dir", str(data.root / "other")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {data.root / 'c.json'}: annotation 2: category_id 'cat' is not the id of a category; expected 3, 17"
    )
