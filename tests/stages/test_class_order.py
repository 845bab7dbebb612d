"""Files hold class numbers: a data set with the same classes in another order is read in theirs, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import irn_pipeline
from irn_pipeline.artifacts import CAM, CAM_NETWORK, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.engine.store import RunFolder, StageRecord, fingerprint_of
from irn_pipeline.stages.catalogue import stage_main
from irn_pipeline.structures import Cam, Instances

SIZE = (8, 12)
SHOWS = {"a": "ant", "b": "cat"}
"""Each image's class; its object is the left half. Both tables name them, the COCO file in the order cat, ant."""
BY_NAME = ["ant", "cat"]


def half() -> np.ndarray:
    mask = np.zeros(SIZE, np.bool_)
    mask[:, :6] = True
    return mask


def record(
    stage: str, names: list[str], version: str = irn_pipeline.__version__, **facts: str
) -> StageRecord:
    versions = {"irn_pipeline": version}
    return StageRecord(stage, "0", {}, {}, True, {}, 0.0, versions, facts=facts, class_names=names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, `tags.csv`, `instances.json`, and a run whose maps and labels were made with the table."""
    run = RunFolder(tmp_path / "run")
    (tmp_path / "images").mkdir()
    entries, polygon = [], [0, 0, 6, 0, 6, 8, 0, 8]
    for number, (image_id, name) in enumerate(SHOWS.items(), start=1):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / f"{image_id}.png")
        category = 1 if name == "cat" else 2
        box = {"image_id": number, "category_id": category, "bbox": [0, 0, 6, 8], "area": 48, "iscrowd": 0}
        entries.append({"id": number, "segmentation": [polygon], **box})
        class_id = BY_NAME.index(name)
        mask = half()
        high = mask[None].astype(np.float32)
        run.write(CAM, Cam(np.array([class_id]), high[:, ::4, ::4].copy(), high), image_id)
        run.write(
            INSTANCE_LABEL, Instances(np.ones(1, np.float32), mask[None], np.array([class_id])), image_id
        )
        run.write(SEMANTIC_LABEL, np.where(mask, class_id + 1, 0).astype(np.uint8), image_id)
    rows = "".join(f"{image_id}.png,{name}\n" for image_id, name in SHOWS.items())
    (tmp_path / "tags.csv").write_text(f"image,label\n{rows}")
    images = [
        {"id": number, "file_name": f"{image_id}.png", "height": SIZE[0], "width": SIZE[1]}
        for number, image_id in enumerate(SHOWS, start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "ant"}]
    content = {"images": images, "annotations": entries, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    for stage in ("make_cam", "synthesize_labels"):
        run.write_record(record(stage, BY_NAME))
    return tmp_path


def command(folder: Path, stage: str, *flags: str, table: str = "--coco-json", run: str = "run") -> int:
    file = folder / ("instances.json" if table == "--coco-json" else "tags.csv")
    data = [table, str(file), "--image-dir", str(folder / "images")]
    return stage_main(stage, [*data, "--run-dir", str(folder / run), "--device", "cpu", *flags])


def ious(folder: Path) -> list[float]:
    found = json.loads((folder / "run" / "evaluate" / "metrics.json").read_text())
    return [found[kind]["iou_per_class"][name] for kind in ("cam", "semantic_label") for name in BY_NAME]


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("evaluate", (), "synthesize_labels"),
        ("sweep", ("--cam",), "make_cam"),
        ("export_labels", (), "synthesize_labels"),
        ("report", (), "synthesize_labels"),
        ("mine_relations", (), "make_cam"),
        ("train_segmenter", ("--backbone-weights", "none"), "synthesize_labels"),
    ],
)
def test_results_of_another_order_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], stage: str, flags: tuple[str, ...], named: str
) -> None:
    assert command(folder, stage, *flags, "--classes", "cat", "ant") == 1
    line = refusal(capsys)
    assert f"{folder / 'run' / named}: was made with the classes ant, cat, but {folder}" in line
    assert "instances.json has cat, ant" in line
    assert "--classes ant cat" in line


def test_a_table_of_another_order_is_read_in_that_of_the_results(folder: Path) -> None:
    assert command(folder, "evaluate") == 0
    assert ious(folder) == [1.0] * 4
    assert command(folder, "export_labels") == 0
    exported = json.loads((folder / "run" / "export_labels" / "coco" / "instances.json").read_text())
    names = {entry["id"]: entry["name"] for entry in exported["categories"]}
    files = {entry["id"]: entry["file_name"] for entry in exported["images"]}
    found = {files[one["image_id"]]: names[one["category_id"]] for one in exported["annotations"]}
    assert found == {"a.png": "ant", "b.png": "cat"}


def test_the_remedy_that_it_names_gives_right_figures(folder: Path) -> None:
    assert command(folder, "evaluate", "--classes", "ant", "cat") == 0
    assert ious(folder) == [1.0] * 4
    assert RunFolder(folder / "run").record("evaluate").class_names == BY_NAME  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("stage", "flag", "maps"),
    [
        ("mine_relations", "--cam-dir", "make_cam/cam"),
        ("make_cam", "--from-cams", "make_cam/cam"),
        ("evaluate", "--cam-dir", "make_cam/cam"),
        ("synthesize_labels", "--semantic-dir", "synthesize_labels/semantic_label"),
    ],
)
def test_maps_of_another_run_are_refused_too(
    folder: Path, capsys: pytest.CaptureFixture[str], stage: str, flag: str, maps: str
) -> None:
    RunFolder(folder / "other").write_record(record("train_irn", []))
    assert command(folder, stage, flag, str(folder / "run" / maps), run="other") == 1
    assert "was made with the classes ant, cat" in refusal(capsys)
    assert command(folder, stage, flag, str(folder / "run" / maps), table="--label-csv", run="other") in (
        0,
        1,
    )
    assert "was made with the classes" not in capsys.readouterr().err


def test_records_that_hold_a_hash_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(folder / "run")
    for stage in ("make_cam", "synthesize_labels"):
        run.write_record(record(stage, [], classes=fingerprint_of(BY_NAME)))
    assert command(folder, "evaluate") == 1
    assert "was made with other classes, or in another order" in refusal(capsys)
    assert command(folder, "evaluate", "--classes", "ant", "cat") == 0
    assert ious(folder) == [1.0] * 4


@pytest.mark.parametrize("known", [True, False])
def test_more_classes_behind_the_same_ones_change_no_number(folder: Path, known: bool) -> None:
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 3, "name": "dog"})
    path.write_text(json.dumps(content))
    run = RunFolder(folder / "run")
    for stage in ("make_cam", "synthesize_labels") if not known else ():
        run.write_record(record(stage, [], classes=fingerprint_of(BY_NAME)))
    assert command(folder, "evaluate", "--classes", "ant", "cat", "dog") == 0
    assert ious(folder) == [1.0] * 4


def test_records_of_the_first_versions_are_read(folder: Path) -> None:
    run = RunFolder(folder / "run")
    for stage in ("make_cam", "synthesize_labels"):
        run.write_record(record(stage, [], version="0.1.0", classes="0123"))
    assert command(folder, "evaluate", "--classes", "ant", "cat") == 0
    assert ious(folder) == [1.0] * 4


def test_names_are_known_without_a_network(folder: Path) -> None:
    assert not RunFolder(folder / "run").has(CAM_NETWORK)
    assert irn_pipeline.class_names(folder / "run") == ("ant", "cat")
