"""What the evaluation compares with: VOC folders whose truth lacks objects, classes, or anything at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import irn_pipeline
from irn_pipeline.artifacts import INSTANCE_LABEL, SEMANTIC_LABEL, Checkpoint, write_checkpoint
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import Instances
from irn_pipeline.trained_networks import segmenter_artifact

CLASSES = ("cat", "dog")
SIZE = (4, 6)
IDS = {"a": 1, "b": 2}
"""Each picture's label; its object is the left half."""


def painted(value: int) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    label[:, :3] = value
    return label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A VOC folder of two pictures with class masks and object masks, and a run whose labels equal them."""
    root, run = tmp_path / "voc", RunFolder(tmp_path / "run")
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / name).mkdir(parents=True)
    (root / "class_names.txt").write_text("\n".join(CLASSES))
    run.write_record(
        StageRecord(
            "synthesize_labels", "0", {}, {}, True, {}, 0.0, {"irn_pipeline": irn_pipeline.__version__}
        )
    )
    for image_id, label in IDS.items():
        Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{image_id}.png")
        xml = f"<annotation><object><name>{CLASSES[label - 1]}</name></object></annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
        for name, value in (("SegmentationClass", label), ("SegmentationObject", 1)):
            Image.fromarray(painted(value)).save(root / name / f"{image_id}.png")
        mask = painted(1)[None] > 0
        instances = Instances(np.ones(1, np.float32), mask, np.array([label - 1], np.int64))
        run.write(INSTANCE_LABEL, instances, image_id)
        run.write(SEMANTIC_LABEL, painted(label), image_id)
    return tmp_path


def evaluate(folder: Path, *flags: str) -> int:
    return stage_main("evaluate", ["--voc-root", f"{folder}/voc", "--run-dir", f"{folder}/run", *flags])


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "evaluate" / "metrics.json").read_text())
    return found


def error(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def add_model(folder: Path) -> None:
    path = RunFolder(folder / "run").path(segmenter_artifact("mask_rcnn"))
    path.parent.mkdir(parents=True)
    write_checkpoint(path, Checkpoint("mask_rcnn", "resnet18", CLASSES, {"x": torch.zeros(1)}))


def test_labels_that_equal_the_truth(folder: Path) -> None:
    assert evaluate(folder) == 0
    found = figures(folder)
    assert found["pictures"] == 2
    assert found["semantic_label"]["miou"] == found["instance_label"]["ap50"] == 1
    assert found["semantic_label"]["iou_per_class"] == {"background": 1, "cat": 1, "dog": 1}


def test_class_masks_alone_give_miou_and_one_line_why_no_ap(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "voc" / "SegmentationObject").iterdir():
        path.unlink()
    assert evaluate(folder) == 0
    found = figures(folder)
    assert found["pictures"] == 2 and found["semantic_label"]["miou"] == 1 and "instance_label" not in found
    assert (
        capsys.readouterr().err.count("no average precision: the ground-truth masks do not separate objects")
        == 1
    )


def test_ap_of_the_pictures_that_have_object_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "voc" / "SegmentationObject" / "b.png").unlink()
    assert evaluate(folder) == 0
    found = figures(folder)
    assert found["pictures"] == 2 and found["semantic_label"]["iou_per_class"]["dog"] == 1
    assert found["instance_label"]["instances"] == 1
    assert found["instance_label"]["ap50_per_class"] == {"cat": 1, "dog": None}
    assert "average precision covers 1 of 2 images" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, 255])
def test_a_truth_without_classes_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str], value: int
) -> None:
    for path in (folder / "voc" / "SegmentationClass").iterdir():
        Image.fromarray(painted(value)).save(path)
    assert evaluate(folder) == 1
    line = error(capsys)
    assert f"{folder}/voc: the ground-truth masks of 2 images show no object of any class" in line
    assert "in masks of 0 and 255 write the class's label for 255" in line
    assert not (folder / "run" / "evaluate" / "metrics.json").exists()


def test_one_picture_with_a_class_is_enough(folder: Path) -> None:
    Image.fromarray(painted(255)).save(folder / "voc" / "SegmentationClass" / "b.png")
    assert evaluate(folder) == 0
    assert figures(folder)["semantic_label"]["iou_per_class"] == {"background": 1, "cat": 1, "dog": None}


@pytest.mark.parametrize("first", ["_background_", "__ignore__\n_background_", "background"])
def test_names_of_the_background_shift_no_class(folder: Path, first: str) -> None:
    (folder / "voc" / "class_names.txt").write_text("\n".join([first, *CLASSES]))
    assert evaluate(folder) == 0
    assert figures(folder)["semantic_label"]["iou_per_class"] == {"background": 1, "cat": 1, "dog": 1}


def test_the_label_map_of_cvat_names_the_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "voc" / "class_names.txt").unlink()
    label_map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    (folder / "voc" / "labelmap.txt").write_text(label_map)
    assert evaluate(folder) == 0
    assert figures(folder)["instance_label"]["ap50_per_class"] == {"cat": 1, "dog": 1}
    told = capsys.readouterr().err
    assert f"class names: {folder}/voc/labelmap.txt" in told
    assert re.search(r"2 classes: cat \(\d+\), dog \(\d+\)", told)


def test_a_class_called_background_has_figures_beside_the_background(folder: Path) -> None:
    (folder / "voc" / "class_names.txt").write_text("cat\nbackground\n")
    xml = "<annotation><object><name>background</name></object></annotation>"
    (folder / "voc" / "Annotations" / "b.xml").write_text(xml)
    run = RunFolder(folder / "run")
    run.path(SEMANTIC_LABEL, "b").unlink()
    run.write(SEMANTIC_LABEL, painted(0), "b")
    assert evaluate(folder) == 0
    # Background: 24 + 12 predicted pixels, of which 24 are true.
    assert figures(folder)["semantic_label"]["iou_per_class"] == {
        "_background_": pytest.approx(2 / 3, abs=1e-6),
        "cat": 1,
        "background": 0,
    }


def test_the_list_that_was_taken_is_logged_with_its_count(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder) == 0
    assert f"images: 2 of {folder}/voc/JPEGImages" in capsys.readouterr().err
    lists = folder / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    assert evaluate(folder) == 0
    assert f"images: 1 of {lists}/train.txt (choose others" in capsys.readouterr().err
    assert evaluate(folder, "--image-list", "val") == 0
    assert f"images: 1 of {lists}/val.txt\n" in capsys.readouterr().err


def test_a_model_without_held_out_pictures_asks_for_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(folder)
    # The labels can be compared: a line says what the model lacks.
    assert evaluate(folder) == 0
    assert "mask_rcnn" in (line := capsys.readouterr().err) and "--heldout-list" in line
    for name in ("SegmentationClass", "SegmentationObject"):
        for path in (folder / "voc" / name).iterdir():
            path.unlink()
    assert evaluate(folder) == 1
    line = error(capsys)
    assert "the trained models (mask_rcnn) are evaluated on images held out" in line
    assert "--heldout-list: a text file with one image id per line" in line


def test_nothing_to_evaluate_says_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(folder / "run")
    for image_id in IDS:
        run.path(SEMANTIC_LABEL, image_id).unlink()
    assert evaluate(folder) == 1
    assert "holds no maps or labels of the 2 images with ground-truth masks" in error(capsys)
    for path in (folder / "voc" / "SegmentationClass").iterdir():
        path.unlink()
    assert evaluate(folder) == 1
    assert f"{folder}/voc: none of its 2 images has ground-truth masks" in error(capsys)


def test_labels_of_other_classes_are_refused_with_their_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(folder / "run")
    mask = painted(1)[None] > 0
    run.path(INSTANCE_LABEL, "b").unlink()
    run.write(INSTANCE_LABEL, Instances(np.ones(1, np.float32), mask, np.array([2], np.int64)), "b")
    assert evaluate(folder) == 1
    line = error(capsys)
    assert f"{folder}/run: the maps or labels of b do not match" in line and "[2]" in line


def test_a_sweep_over_a_truth_without_classes_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "voc" / "SegmentationClass").iterdir():
        Image.fromarray(painted(255)).save(path)
    maps = folder / "maps"
    maps.mkdir()
    for image_id, label in IDS.items():
        np.save(
            maps / f"{image_id}.npy",
            {
                "keys": np.array([label - 1]),
                "high_res": np.ones((1, *SIZE), np.float32),
                "cam": np.ones((1, 1, 2), np.float32),
            },
        )
    flags = ["--voc-root", f"{folder}/voc", "--run-dir", f"{folder}/run", "--cam", "--cam-dir", str(maps)]
    assert stage_main("sweep", flags) == 1
    assert "the ground-truth masks of 2 images show no object of any class" in error(capsys)
