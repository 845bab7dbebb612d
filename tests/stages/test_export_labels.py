"""The labels of a run folder as COCO JSON and as VOC PNGs, read back by other programs' readers."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, SEMANTIC_LABEL, Checkpoint
from irn_pipeline.datasets.voc import read_class_names
from irn_pipeline.datasets.voc_truth import VocTruths
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError, ConfigError, DataError
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.stages.export_labels import STAGE, Params
from irn_pipeline.structures import BoolArray, ImageRecord, ImageSet, Instances, LabelArray

CLASSES = ("cat", "naïve 犬")
SIZE = (6, 8)
ANNOTATION = "<annotation><object><name>{}</name></object></annotation>\n"


@dataclass(frozen=True)
class Pictures:
    """A data set as far as the export knows it."""

    images: ImageSet
    category_ids: tuple[int, ...]
    origin: Path = Path("pictures")
    leading_names: int = 0
    pixels: str = ""

    @property
    def items(self) -> Sequence[ImageRecord]:
        return self.images.records

    @property
    def identity(self) -> Sequence[str]:
        return self.images.class_names

    def coco_image_ids(self, paths: Sequence[Path]) -> Sequence[int]:
        return range(1, len(paths) + 1)


def box(top: int, left: int, bottom: int, right: int) -> BoolArray:
    mask = np.zeros(SIZE, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def labels(image_id: str) -> Instances:
    """Two objects, one of each class, and a fragment of score 0."""
    shift = len(image_id) % 2
    masks = np.stack([box(0, 0, 3, 3), box(2 + shift, 4, 6, 8), box(5, 0, 6, 1)])
    return Instances(np.array([1.0, 0.25, 0.0], np.float32), masks, np.array([0, 1, 0]))


def semantic(instances: Instances) -> LabelArray:
    label = np.zeros(SIZE, np.uint8)
    for mask, class_id in zip(instances.masks[:2], instances.class_ids, strict=False):
        label[mask] = class_id + 1
    return label


def fill(run: RunFolder, image_ids: Sequence[str]) -> None:
    """What stage 5 would have left."""
    run.write_record(StageRecord("synthesize_labels", "0", {}, {}, True, {}, 0.0, {}))
    for image_id in image_ids:
        run.write(INSTANCE_LABEL, labels(image_id), image_id)
        run.write(SEMANTIC_LABEL, semantic(labels(image_id)), image_id)


def pictures(folder: Path, names: Sequence[str], category_ids: tuple[int, ...] = (1, 2)) -> Pictures:
    """Pictures in `folder`; ids are the names without suffix."""
    records = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
        records.append(ImageRecord(str(Path(name).with_suffix("")), path, (0, 1)))
    return Pictures(ImageSet(CLASSES, tuple(records)), category_ids)


def export(run: RunFolder, data: Pictures, out: Path | None, kind: str) -> int:
    params = Params(format=kind, out=None if out is None else str(out))  # type: ignore[arg-type]
    execution = Execution(device="cpu", quiet=True)
    return run_stage(STAGE, Job(run, params, data, execution)).counts["images"]


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


NAMES = ("a/photo.png", "b/photo.png", "写真.png", "one.two.png")
IDS = ("a/photo", "b/photo", "写真", "one.two")


def test_coco(run: RunFolder, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", NAMES, category_ids=(17, 18))
    fill(run, IDS)
    assert export(run, data, tmp_path / "out", "coco") == 4
    coco = load(tmp_path / "out" / "instances.json")
    assert [image["file_name"] for image in coco.imgs.values()] == list(NAMES)
    assert {i: c["name"] for i, c in coco.cats.items()} == {17: "cat", 18: "naïve 犬"}
    assert len(coco.anns) == 8
    for image_id, name in enumerate(IDS, start=1):
        read = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        expected = labels(name)
        np.testing.assert_array_equal([coco.annToMask(entry) for entry in read], expected.masks[:2])
        assert [(entry["category_id"], entry["score"]) for entry in read] == [(17, 1.0), (18, 0.25)]
        png = Image.open(tmp_path / "out" / "labels" / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(png), semantic(expected))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("form_of_folder", ["NFC", "NFD"])
def test_file_names_are_those_on_the_disk(
    run: RunFolder, tmp_path: Path, form: Literal["NFC", "NFD"], form_of_folder: Literal["NFC", "NFD"]
) -> None:
    """A Mac stores names decomposed; an archive may mix both forms in one path."""
    name = (
        f"{unicodedata.normalize(form_of_folder, 'été à Paris')}/{unicodedata.normalize(form, 'café 1.PNG')}"
    )
    made = pictures(tmp_path / "in", [name])
    image_id = "été à Paris/café 1"
    record = replace(made.items[0], image_id=unicodedata.normalize("NFC", image_id))
    fill(run, [record.image_id])
    export(run, replace(made, images=ImageSet(CLASSES, (record,))), tmp_path / "out", "coco")
    (image,) = load(tmp_path / "out" / "instances.json").imgs.values()
    assert image["file_name"] == name and (tmp_path / "in" / image["file_name"]).is_file()


def test_polygons(run: RunFolder, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", NAMES)
    fill(run, IDS)
    params = Params(polygons=True, out=str(tmp_path / "out"))
    run_stage(STAGE, Job(run, params, data, Execution(device="cpu", quiet=True)))
    coco = load(tmp_path / "out" / "instances.json")
    assert coco.anns[1]["segmentation"] == [[0, 0, 0, 3, 3, 3, 3, 0]]
    masks = [coco.annToMask(entry) for entry in coco.loadAnns(coco.getAnnIds(imgIds=[1]))]
    np.testing.assert_array_equal(masks, labels(IDS[0]).masks[:2])
    voc = Params(format="voc", polygons=True, out=str(tmp_path / "voc"))
    with pytest.raises(ConfigError, match="--polygons is for --format coco"):
        run_stage(STAGE, Job(run, voc, data, Execution(device="cpu", quiet=True)))
    assert not (tmp_path / "voc").exists()


def test_voc_is_read_back_as_a_data_set(run: RunFolder, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", ["photo.png", "one.two.png", "写真.png"])
    fill(run, ["photo", "one.two", "写真"])
    out = tmp_path / "out"
    assert export(run, data, out, "voc") == 3
    for image_id in ("photo", "one.two", "写真"):
        truth = VocTruths.find(out, 2).ground_truth(image_id)
        assert truth is not None
        expected = labels(image_id)
        np.testing.assert_array_equal(truth.label, semantic(expected))
        np.testing.assert_array_equal(truth.instances.masks, expected.masks[:2])
        assert truth.instances.class_ids.tolist() == [0, 1]
        for folder in ("SegmentationClass", "SegmentationObject"):
            picture = Image.open(out / folder / f"{image_id}.png")
            assert picture.mode == "P"
            assert tuple((picture.getpalette() or [])[3:6]) == (128, 0, 0)
    listed = (out / "ImageSets" / "Segmentation" / "train.txt").read_text(encoding="utf-8")
    assert listed.splitlines() == ["photo", "one.two", "写真"]
    assert (out / "class_names.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)
    assert read_class_names(out / "class_names.txt") == read_class_names(out / "labelmap.txt") == CLASSES
    with (out / "objects.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[:3] == [
        ["image", "object", "class", "score"],
        ["photo", "1", "cat", "1"],
        ["photo", "2", "naïve 犬", "0.25"],
    ]
    assert len(rows) == 7


def test_the_default_folder_is_in_the_run_folder(run: RunFolder, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    fill(run, ["photo"])
    for kind, file in (("coco", "instances.json"), ("voc", "class_names.txt")):
        export(run, data, None, kind)
        assert (run.root / "export_labels" / kind / file).is_file()


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_pictures_without_an_instance_are_kept(run: RunFolder, tmp_path: Path, kind: str) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    fill(run, ["photo"])
    # The size of an empty label file is not that of its picture.
    run.write(INSTANCE_LABEL, Instances.empty((0, 0)), "photo")
    assert export(run, data, tmp_path / "out", kind) == 1
    if kind == "coco":
        coco = load(tmp_path / "out" / "instances.json")
        assert (coco.imgs[1]["height"], coco.imgs[1]["width"], len(coco.anns)) == (*SIZE, 0)
    else:
        assert not np.asarray(Image.open(tmp_path / "out" / "SegmentationObject" / "photo.png")).any()


def test_more_instances_than_a_png_has_ids(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "in" / "many.png"
    path.parent.mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    data = Pictures(ImageSet(CLASSES, (ImageRecord("many", path, (0,)),)), (1, 2))
    fill(run, [])
    masks = np.eye(400, dtype=np.bool_).reshape(400, 20, 20)[:300]
    many = Instances(np.linspace(1, 0.5, 300, dtype=np.float32), masks, np.zeros(300, np.int64))
    run.write(INSTANCE_LABEL, many, "many")
    label: LabelArray = np.any(masks, axis=0).astype(np.uint8)
    run.write(SEMANTIC_LABEL, label, "many")
    with caplog.at_level(logging.WARNING):
        export(run, data, tmp_path / "voc", "voc")
        export(run, data, tmp_path / "coco", "coco")
    assert [r.getMessage() for r in caplog.records] == [
        "left out: 46 instances of lowest score; a VOC PNG holds at most 254 objects"
    ]
    ids = np.asarray(Image.open(tmp_path / "voc" / "SegmentationObject" / "many.png")).ravel()
    assert ids[:254].tolist() == list(range(1, 255))
    assert not ids[254:].any()
    assert len(load(tmp_path / "coco" / "instances.json").anns) == 300


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_what_cannot_be_exported_is_named_and_counted(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    names = ["good", "no_label", "other_size", "damaged", "no_picture", "class_7"]
    data = pictures(tmp_path / "in", [f"{name}.png" for name in names])
    fill(run, [name for name in names if name != "no_label"])
    other = Instances(np.ones(1, np.float32), np.ones((1, 3, 3), np.bool_), np.zeros(1, np.int64))
    run.write(INSTANCE_LABEL, other, "other_size")
    run.path(SEMANTIC_LABEL, "damaged").write_bytes(b"no image")
    (tmp_path / "in" / "no_picture.png").unlink()
    run.write(
        INSTANCE_LABEL, Instances(np.ones(1, np.float32), box(0, 0, 1, 1)[None], np.array([7])), "class_7"
    )
    with caplog.at_level(logging.WARNING):
        assert export(run, data, tmp_path / "out", kind) == 1
    messages = [r.getMessage() for r in caplog.records]
    assert messages[-1] == "left out: 1 images without labels, 4 that cannot be exported"
    for name, culprit in (
        ("other_size", run.path(INSTANCE_LABEL, "other_size")),
        ("damaged", run.path(SEMANTIC_LABEL, "damaged")),
        ("no_picture", tmp_path / "in" / "no_picture.png"),
        ("class_7", run.path(INSTANCE_LABEL, "class_7")),
    ):
        assert sum(m.startswith(f"{name}: left out: {culprit}") for m in messages) == 1
    assert [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".part-")] == []


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_no_label_at_all(run: RunFolder, tmp_path: Path, kind: str) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    with pytest.raises(ArtifactError, match="run stage synthesize_labels on this --run-dir first"):
        export(run, data, tmp_path / "out", kind)
    fill(run, ["another"])
    with pytest.raises(DataError, match="no label of the data set's 1 images can be exported"):
        export(run, data, tmp_path / "out", kind)
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


def test_labels_of_other_classes(run: RunFolder, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    fill(run, ["photo"])
    run.write(CAM_NETWORK, Checkpoint("cam", "resnet18", CLASSES[::-1], {}))
    with pytest.raises(DataError, match="made with the classes naïve 犬, cat, but the data set has cat"):
        export(run, data, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("background", "cat"), ("cat", "background")])
def test_a_class_called_background_is_read_back(
    run: RunFolder, tmp_path: Path, names: tuple[str, str]
) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    data = replace(data, images=ImageSet(names, data.images.records))
    fill(run, ["photo"])
    export(run, data, tmp_path / "out", "voc")
    for file in ("class_names.txt", "labelmap.txt"):
        assert read_class_names(tmp_path / "out" / file) == names


def test_a_class_name_that_no_label_map_can_hold(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    data = replace(data, images=ImageSet(("cat", "light:red"), data.images.records))
    fill(run, ["photo"])
    assert export(run, data, tmp_path / "out", "voc") == 1
    assert "labelmap.txt is not written" in caplog.text and "'light:red'" in caplog.text
    assert read_class_names(tmp_path / "out" / "class_names.txt") == ("cat", "light:red")
    assert not (tmp_path / "out" / "labelmap.txt").exists()


def test_a_file_in_place_of_the_folder(run: RunFolder, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", ["photo.png"])
    fill(run, ["photo"])
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(ConfigError, match=f"--out {out}: cannot be made a folder"):
            export(run, data, out, "coco")


def voc_folder(root: Path) -> Path:
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    for image_id in ("first", "second"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
        (root / "Annotations" / f"{image_id}.xml").write_text(ANNOTATION.format("cat"))
    (root / "class_names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    return root


@pytest.mark.parametrize("command", [lambda words: stage_main("export_labels", words), main])
def test_the_command(run: RunFolder, tmp_path: Path, command, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_folder(tmp_path / "voc")
    fill(run, ["first", "second"])
    words = ["--run-dir", str(run.root), "--voc-root", str(root), "--out", str(tmp_path / "out"), "--quiet"]
    words = ["export_labels", *words] if command is main else words
    assert command([*words, "--format", "coco"]) == 0
    coco = load(tmp_path / "out" / "instances.json")
    assert [image["file_name"] for image in coco.imgs.values()] == ["first.jpg", "second.jpg"]
    assert list(coco.cats) == [1, 2]
    assert len(coco.anns) == 4
    capsys.readouterr()
    assert command([*words, "--format", "yolo"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert "format" in text
