"""Photographs with an EXIF rotation, and files that cannot be read, through the stages by their commands."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from irn_pipeline import __version__
from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IR_LABEL, SEMANTIC_LABEL
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.datasets.voc import load_voc
from irn_pipeline.engine.store import RunFolder, StageRecord, versions
from irn_pipeline.errors import ArtifactError
from irn_pipeline.older_runs import read_converted, require_current
from irn_pipeline.ops.orientation import inverse, turned
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.structures import Cam, ImageRecord, Instances
from tests.stages.conftest import CONFIG

SIZE = (40, 60)
OBJECT = np.zeros(SIZE, np.bool_)
OBJECT[4:20, 6:30] = True
ROTATIONS = range(2, 9)
OLDER = {"irn_pipeline": "0.1.0"}


def photograph(path: Path, orientation: int, shown: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(turned(shown, inverse(orientation))).save(path, "JPEG", quality=95, exif=exif)


def labelled(folder: Path, made_with: dict[str, str], *, as_stored: bool) -> list[str]:
    """A photograph of each rotation, its truth as it is shown, and a run folder with labels that equal the truth."""
    run = RunFolder(folder / "run")
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, made_with))
    images, annotations = [], []
    polygon = [[6, 4, 30, 4, 30, 20, 6, 20]]
    for orientation in ROTATIONS:
        name = f"p{orientation}"
        photograph(
            folder / "in" / f"{name}.jpg", orientation, np.repeat(OBJECT[..., None] * np.uint8(200), 3, 2)
        )
        mask = np.ascontiguousarray(turned(OBJECT, inverse(orientation))) if as_stored else OBJECT
        run.write(INSTANCE_LABEL, Instances(np.ones(1, np.float32), mask[None], np.zeros(1, np.int64)), name)
        run.write(SEMANTIC_LABEL, mask.astype(np.uint8), name)
        images.append({"id": orientation, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        annotations.append(
            {"id": orientation, "image_id": orientation, "category_id": 1, "segmentation": polygon}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "seen.json").write_text(json.dumps(content))
    (folder / "tags.csv").write_text("".join(f"p{orientation}.jpg,cat\n" for orientation in ROTATIONS))
    return ["--run-dir", str(run.root), "--image-dir", str(folder / "in"), "--device", "cpu", "--quiet"]


@pytest.mark.parametrize(("made_with", "as_stored"), [(OLDER, True), (versions(), False)])
def test_truth_drawn_as_shown_fits_old_and_new_labels(
    tmp_path: Path, made_with: dict[str, str], as_stored: bool
) -> None:
    flags = labelled(tmp_path, made_with, as_stored=as_stored)
    assert stage_main("evaluate", [*flags, "--coco-json", str(tmp_path / "seen.json")]) == 0
    figures = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert figures["pictures"] == 7
    # A polygon takes in the pixels on its border.
    assert figures["semantic_label"]["miou"] > 0.93
    assert figures["instance_label"]["ap50"] == 1


@pytest.mark.parametrize(("made_with", "as_stored"), [(OLDER, True), (versions(), False)])
def test_exports_agree_with_what_opencv_shows(
    tmp_path: Path, made_with: dict[str, str], as_stored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = labelled(tmp_path, made_with, as_stored=as_stored)
    assert stage_main("export_labels", [*flags, "--label-csv", str(tmp_path / "tags.csv")]) == 0
    assert capsys.readouterr().err.count("images that carry an EXIF rotation: 7 (p2, p3, p4, ...)") == 1
    out = tmp_path / "run" / "export_labels" / "coco"
    content = json.loads((out / "instances.json").read_text())
    assert len(content["images"]) == 7
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        shown = cv2.imread(str(tmp_path / "in" / image["file_name"]))
        assert shown.shape[:2] == (image["height"], image["width"]) == SIZE
        mask = rle.decode(annotation["segmentation"]).astype(bool)
        np.testing.assert_array_equal(mask, OBJECT)
        assert shown[mask].mean() > 190
        assert shown[~mask].mean() < 10
        label = np.asarray(Image.open(out / "labels" / f"{Path(image['file_name']).stem}.png"))
        np.testing.assert_array_equal(label, OBJECT)


def test_labels_of_another_size_are_refused_with_the_rotation_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = labelled(tmp_path, versions(), as_stored=True)
    assert stage_main("evaluate", [*flags, "--coco-json", str(tmp_path / "seen.json")]) == 1
    assert (
        "p5 do not match" in (line := capsys.readouterr().err.splitlines()[-1])
        and "EXIF rotation (5)" in line
    )
    assert stage_main("export_labels", [*flags, "--label-csv", str(tmp_path / "tags.csv")]) == 0
    told = capsys.readouterr().err
    assert "p6: left out: " in told and "40x60 after its EXIF rotation (6); export with" in told


def test_maps_of_an_older_run_are_turned_and_not_added_to(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_record(StageRecord("make_cam", "0", {}, {}, True, {}, 0.0, OLDER))
    maps = np.linspace(0, 1, 8 * 12, dtype=np.float32).reshape(1, 8, 12)
    run.write(CAM, Cam(np.zeros(1, np.int64), maps[:, ::4, ::4], maps), "a")
    record = ImageRecord("a", tmp_path / "a.jpg", (0,), 6)
    found = read_converted(run, CAM, record)
    np.testing.assert_array_equal(found.high_res_cam[0], np.rot90(maps[0], -1))
    assert found.cam.shape == (1, 3, 2)
    with pytest.raises(
        ArtifactError, match="did not apply EXIF rotations, and 1 of the images carry one; give"
    ):
        require_current(run, "make_cam", [record])
    for orientation in (None, 1):
        upright = ImageRecord("a", tmp_path / "a.jpg", (0,), orientation)
        require_current(run, "make_cam", [upright])
        np.testing.assert_array_equal(read_converted(run, CAM, upright).high_res_cam, maps)
    run.write_record(StageRecord("make_cam", "0", {}, {}, True, {}, 0.0, versions()))
    require_current(run, "make_cam", [record])
    np.testing.assert_array_equal(read_converted(run, CAM, record).high_res_cam, maps)


def test_all_stages_agree_and_each_broken_file_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_demo(tmp_path / "voc", num_images=4, num_heldout=0, min_size=(64, 80), max_size=(80, 96))
    rows = ["cut.jpg,bird", "phone.jpg,car"]
    for number, record in enumerate(load_voc(tmp_path / "voc", class_names=DEMO_CLASSES).images.records):
        with Image.open(record.path) as picture:
            photograph(
                tmp_path / "in" / f"p{number}.jpg", (1, 3, 6, 5)[number], np.array(picture.convert("RGB"))
            )
        rows.append(",".join([f"p{number}.jpg", *(DEMO_CLASSES[class_id] for class_id in record.class_ids)]))
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    (tmp_path / "in" / "cut.jpg").write_bytes((tmp_path / "in" / "p0.jpg").read_bytes()[:900])
    (tmp_path / "in" / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    source = ["--image-dir", str(tmp_path / "in"), "--label-csv", str(tmp_path / "tags.csv")]
    flags = [*source, "--config", str(tmp_path / "tiny.yaml"), "--run-dir", str(tmp_path / "run")]
    assert main(["1-6", *flags]) == 0
    told = capsys.readouterr().err
    assert told.count("phone.jpg: holds a HEIC image") == told.count("cut.jpg: the JPEG is cut off") == 1
    assert told.count("images that carry an EXIF rotation: 3 (p1, p2, p3)") == 1
    run = RunFolder(tmp_path / "run")
    for number in range(4):
        size = cv2.imread(str(tmp_path / "in" / f"p{number}.jpg")).shape[:2]
        name = f"p{number}"
        assert run.read(CAM, name).size == size
        assert run.read(IR_LABEL, name).shape == run.read(SEMANTIC_LABEL, name).shape == size
        assert run.read(INSTANCE_LABEL, name).size == size
    assert stage_main("report", flags) == 0

    # The same folder, as if an older version had made its maps: what is there is kept, nothing is added.
    record = tmp_path / "run" / "make_cam" / "stage.json"
    record.write_text(
        record.read_text().replace(f'"irn_pipeline": "{__version__}"', '"irn_pipeline": "0.1.0"')
    )
    assert stage_main("make_cam", flags) == 0
    run.path(CAM, "p0").unlink()
    assert stage_main("make_cam", flags) == 0
    run.path(CAM, "p1").unlink()
    capsys.readouterr()
    assert stage_main("make_cam", flags) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        "make_cam: was made by an older version" in line and "1 of the images carry one; give another" in line
    )
    assert stage_main("make_cam", [*flags, "--overwrite"]) == 0
    assert json.loads(record.read_text())["versions"]["irn_pipeline"] == __version__
