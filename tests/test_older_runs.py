"""Results of versions before 0.2, whose class ids counted the names of the background as classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError
from irn_pipeline.older_runs import read_converted, require_current
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import Cam, ImageRecord, Instances

RECORD = ImageRecord("p", Path("p.jpg"), (0,))


def made_by(version: str, folder: Path, *stages: str) -> RunFolder:
    run = RunFolder(folder)
    for stage in stages:
        run.write_record(StageRecord(stage, "0", {}, {}, True, {}, 0.0, {"irn_pipeline": version}))
    return run


@pytest.mark.parametrize(("version", "shift"), [("0.1.0", 2), ("0.2.0", 0)])
def test_class_ids_are_lowered_in_results_of_older_versions_only(
    tmp_path: Path, version: str, shift: int
) -> None:
    run = made_by(version, tmp_path, "synthesize_labels", "make_cam")
    masks = np.zeros((2, 2, 2), np.bool_)
    masks[0, 0, 0] = masks[1, 1, 1] = True
    run.write(INSTANCE_LABEL, Instances(np.array([0.5, 0.25], np.float32), masks, np.array([2, 3])), "p")
    run.write(SEMANTIC_LABEL, np.array([[0, 3], [4, 255]], np.uint8), "p")
    maps = np.ones((2, 1, 1), np.float32), np.ones((2, 2, 2), np.float32)
    run.write(CAM, Cam(np.array([2, 5]), *maps), "p")
    read = {
        artifact: read_converted(run, artifact, RECORD, 2)
        for artifact in (INSTANCE_LABEL, SEMANTIC_LABEL, CAM)
    }
    assert read[INSTANCE_LABEL].class_ids.tolist() == [2 - shift, 3 - shift]
    assert read[SEMANTIC_LABEL].tolist() == [[0, 3 - shift], [4 - shift, 255]]
    assert read[CAM].class_ids.tolist() == [2 - shift, 5 - shift]


def test_instances_of_the_background_are_dropped(tmp_path: Path) -> None:
    run = made_by("0.1.0", tmp_path, "synthesize_labels")
    masks = np.ones((2, 2, 2), np.bool_)
    run.write(INSTANCE_LABEL, Instances(np.array([0.5, 0.25], np.float32), masks, np.array([0, 1])), "p")
    run.write(SEMANTIC_LABEL, np.array([[0, 1], [2, 255]], np.uint8), "p")
    assert read_converted(run, INSTANCE_LABEL, RECORD, 1).class_ids.tolist() == [0]
    assert read_converted(run, SEMANTIC_LABEL, RECORD, 1).tolist() == [[0, 0], [1, 255]]


def test_nothing_is_added_to_them(tmp_path: Path) -> None:
    run = made_by("0.1.0", tmp_path, "make_cam")
    require_current(run, "make_cam", [RECORD], 0)
    with pytest.raises(ArtifactError, match=r"make_cam: was made by an older version.*--overwrite"):
        require_current(run, "make_cam", [RECORD], 1)


@pytest.mark.parametrize("first", [["_background_"], ["__ignore__", "_background_"]])
def test_an_older_run_on_a_labelme_folder_is_evaluated_right(tmp_path: Path, first: list[str]) -> None:
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (voc / name).mkdir(parents=True)
    (voc / "class_names.txt").write_text("\n".join([*first, "cat", "dog"]))
    Image.new("RGB", (8, 8)).save(voc / "JPEGImages" / "p.jpg")
    (voc / "Annotations" / "p.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    Image.fromarray(mask * 2).save(voc / "SegmentationClass" / "p.png")
    Image.fromarray(mask).save(voc / "SegmentationObject" / "p.png")
    run = made_by("0.1.0", tmp_path / "run", "synthesize_labels")
    dog = len(first) + 1
    run.write(INSTANCE_LABEL, Instances(np.ones(1, np.float32), mask[None] > 0, np.array([dog])), "p")
    run.write(SEMANTIC_LABEL, mask * np.uint8(dog + 1), "p")
    assert (
        stage_main("evaluate", ["--voc-root", str(voc), "--run-dir", str(tmp_path / "run"), "--quiet"]) == 0
    )
    figures = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert figures["semantic_label"]["miou"] == figures["instance_label"]["ap50"] == 1
