"""`evaluate --protocol`: what a user types, sees and finds in metrics.json."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import ap_noise
from irn_pipeline.artifacts import INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ConfigError
from irn_pipeline.running import run_stages
from irn_pipeline.stages.catalogue import main
from irn_pipeline.structures import Instances

XML = "<annotation><object><name>cat</name></object></annotation>"


def painted(rows: list[str], marks: dict[str, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array([[marks[mark] for mark in row] for row in rows], np.uint8)


@pytest.fixture
def by_hand(tmp_path: Path) -> list[str]:
    """One picture of 4x4 pixels with two cats, void below them, and three instances as the original writes them."""
    rows = ["aabb", "aabb", "vvvv", "...."]
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (voc / name).mkdir(parents=True)
    imageio.imwrite(voc / "JPEGImages" / "x.jpg", np.zeros((4, 4, 3), np.uint8))
    (voc / "Annotations" / "x.xml").write_text(XML)
    label = painted(rows, {"a": 1, "b": 1, "v": 255, ".": 0})
    imageio.imwrite(voc / "SegmentationClass" / "x.png", label)
    imageio.imwrite(voc / "SegmentationObject" / "x.png", painted(rows, {"a": 1, "b": 2, "v": 255, ".": 0}))
    names = tmp_path / "names.txt"
    names.write_text("cat\n")
    run = RunFolder(tmp_path / "run")
    masks = [
        painted(["....", "....", "xxxx", "...."], {"x": 1, ".": 0}),  # on void alone
        painted(["xx..", "xx..", "....", "...."], {"x": 1, ".": 0}),  # the first cat
        painted(["..xx", "..xx", "....", "...."], {"x": 1, ".": 0}),  # the second cat, but a fragment
    ]
    scores = np.array([1.0, 0.9, 0.0], np.float32)
    run.write(INSTANCE_LABEL, Instances(scores, np.array(masks) > 0, np.zeros(3, np.int64)), "x")
    # The truth, but for a pixel of the background that is unsure.
    semantic = np.where(label == 255, 0, label).astype(np.uint8)
    semantic[3, 0] = 255
    run.write(SEMANTIC_LABEL, semantic, "x")
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))
    return ["--voc-root", str(voc), "--run-dir", str(run.root), "--class-names", str(names)]


def metrics_of(flags: list[str]) -> dict[str, Any]:
    run_dir = Path(flags[flags.index("--run-dir") + 1])
    found: dict[str, Any] = json.loads((run_dir / "evaluate" / "metrics.json").read_text())
    return found


# The curve of `original`: a miss, two hits; of `voc`: a hit. COCO ignores the miss, too, and reads at 101 recalls.
@pytest.mark.parametrize(
    ("given", "protocol", "ap50", "miou"),
    [
        ([], "voc", 1 / 2, (3 / 4 + 1) / 2),
        (["--protocol", "voc"], "voc", 1 / 2, (3 / 4 + 1) / 2),
        (["--protocol", "original"], "original", 2 / 3, 1),
        (["--protocol", "coco"], "coco", 51 / 101, (3 / 4 + 1) / 2),
    ],
)
def test_the_protocol_decides_and_is_told(
    by_hand: list[str],
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    protocol: str,
    ap50: float,
    miou: float,
) -> None:
    assert main(["evaluate", *by_hand, *given]) == 0
    metrics = metrics_of(by_hand)
    assert metrics["protocol"] == protocol
    assert metrics["instance_label"]["ap50"] == pytest.approx(ap50, abs=1e-6)
    assert metrics["semantic_label"]["miou"] == pytest.approx(miou, abs=1e-6)
    (heading,) = [line for line in capsys.readouterr().err.splitlines() if "mIoU" in line]
    assert heading.split() == ["protocol", protocol, "mIoU", "AP50", "AP70", "AP75"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--ignore-void", "false"],
        ["evaluate", "--ignore_void=true"],
        ["evaluate", "--evaluate.ignore_void", "false"],
        ["sweep", "--ignore-void", "true"],
    ],
)
def test_the_flag_of_earlier_versions_names_its_successor(
    by_hand: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    command = ["evaluate", "report"] if words[1].startswith("--evaluate.") else words[:1]
    assert main([*command, *by_hand, *words[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words[1].split('=')[0]} was removed: write protocol instead: 'voc'")
    assert "'original' counts them as background" in line


@pytest.mark.parametrize("command", ["evaluate", "1-6"])
def test_the_key_of_earlier_files_names_its_successor(
    by_hand: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = tmp_path / "old.yaml"
    config.write_text("evaluate: {ignore-void: false}\n")
    assert main([command, *by_hand, "--config", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: {config}: evaluate.ignore_void was removed: write protocol instead: 'voc'"
    )
    with pytest.raises(
        ConfigError, match=r"run_stages\(\): evaluate\.ignore_void was removed: write protocol"
    ):
        run_stages("evaluate", run_dir=by_hand[3], voc_root=by_hand[1], evaluate={"ignore_void": True})


def test_a_protocol_that_does_not_exist_is_refused(
    by_hand: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *by_hand, "--protocol", "pascal"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ("protocol", "pascal", "original", "voc", "coco"))


def test_a_run_folder_evaluated_by_an_earlier_version_is_evaluated_anew(by_hand: list[str]) -> None:
    run = RunFolder(Path(by_hand[3]))
    old = {"ignore_void": True, "cam_threshold": 0.15}
    run.write_record(StageRecord("evaluate", "0", old, {}, True, {"images": 1}, 1.0, {}))
    assert main(["evaluate", "report", *by_hand]) == 0
    record = run.record("evaluate")
    assert record is not None
    assert record.params["protocol"] == "voc"
    assert "ignore_void" not in record.params


def test_pictures_without_labels_are_told(by_hand: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    voc = Path(by_hand[1])
    for place in (
        "JPEGImages/x.jpg",
        "Annotations/x.xml",
        "SegmentationClass/x.png",
        "SegmentationObject/x.png",
    ):
        shutil.copy(voc / place, (voc / place).with_stem("y"))
    assert main(["evaluate", *by_hand]) == 0
    assert metrics_of(by_hand)["pictures"] == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "have no" in line]
    assert line.endswith(
        "1 of the 2 images with ground-truth masks have no labels: the figures cover the other 1"
    )


def test_each_rule_of_the_original_has_its_line(
    by_hand: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ap_noise", *by_hand[:4]])
    ap_noise.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["what"]: line["ap50"] for line in lines[:5]} == {
        "protocol voc": 50.0,
        "voc, but void is background": 25.0,
        "voc, but with fragments": 100.0,
        "voc, but equal scores one after the other": 50.0,
        "protocol original": 66.7,
    }
    assert lines[-1]["ground-truth instances"] == 2
    assert lines[-1]["0.5"] == 1


def objects(
    rng: np.random.Generator, count: int, size: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    masks = np.zeros((count, *size), np.bool_)
    for mask in masks:
        top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[top : top + rng.integers(4, 14), left : left + rng.integers(4, 14)] = True
    return masks


def encoded(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    found = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def test_coco_is_the_official_evaluation_of_the_file_with_its_crowds(tmp_path: Path) -> None:
    rng, size, categories = np.random.default_rng(5), (32, 40), [3, 17]
    images, annotations, detections = [], [], []
    run = RunFolder(tmp_path / "run")
    (tmp_path / "pictures").mkdir()
    for image_id in range(1, 9):
        imageio.imwrite(tmp_path / "pictures" / f"{image_id}.png", np.zeros((*size, 3), np.uint8))
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": size[0], "width": size[1]})
        true = objects(rng, 5, size)
        classes = rng.integers(0, 2, 5)
        for mask, class_id, crowd in zip(true, classes, [0, 0, 0, 1, 1], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[class_id],
                    "segmentation": encoded(mask),
                    "area": int(mask.sum()),
                    "bbox": rle.toBbox(encoded(mask)).tolist(),
                    "iscrowd": crowd,
                }
            )
        found = np.concatenate([true, objects(rng, 4, size)])
        found[:5] = np.roll(true, 1, axis=1)
        found_ids = np.where(rng.random(9) < 0.7, np.concatenate([classes, rng.integers(0, 2, 4)]), 0)
        scores = rng.choice([0.25, 0.5, 1.0], 9).astype(np.float32)
        run.write(INSTANCE_LABEL, Instances(scores, found, found_ids), str(image_id))
        run.write(SEMANTIC_LABEL, np.zeros(size, np.uint8), str(image_id))
        for mask, class_id, score in zip(found, found_ids, scores.tolist(), strict=True):
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": categories[class_id],
                    "segmentation": encoded(mask),
                    "score": score,
                }
            )
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))
    coco_json = tmp_path / "truth.json"
    names = [{"id": id_, "name": name} for id_, name in zip(categories, ("cat", "dog"), strict=True)]
    coco_json.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    flags = [
        "--image-dir",
        str(tmp_path / "pictures"),
        "--coco-json",
        str(coco_json),
        "--run-dir",
        str(run.root),
    ]
    assert main(["evaluate", *flags, "--protocol", "coco"]) == 0
    figures = metrics_of(flags)["instance_label"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco_json))
        official = COCOeval(truth, truth.loadRes(detections), "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    expected = official.stats
    assert 0.05 < expected[0] < expected[1] < 0.95
    for key, value in zip(("ap", "ap50", "ap75", "ap_small"), expected[:4], strict=True):
        assert figures["coco"][key] == pytest.approx(value, abs=1e-6)
    for key, row in (("ap50", 0), ("ap70", 4), ("ap75", 5)):
        per_class = official.eval["precision"][row, :, :, 0, -1].mean(0)
        assert figures[key] == pytest.approx(per_class.mean(), abs=1e-6)
        assert list(figures[f"{key}_per_class"].values()) == pytest.approx(per_class.tolist(), abs=1e-6)
    assert figures["instances"] == 8 * 3
    # Void that is left out, or is background, gives other figures.
    for protocol in ("voc", "original"):
        assert main(["evaluate", *flags, "--protocol", protocol]) == 0
        assert metrics_of(flags)["instance_label"]["coco"]["ap"] != pytest.approx(expected[0], abs=1e-3)
