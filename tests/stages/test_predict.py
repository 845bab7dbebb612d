"""Masks for new pictures: what is written, what is skipped, and that no data set is needed."""

from __future__ import annotations

import contextlib
import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

from irn_pipeline.artifacts import Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.picture_scan import scan_pictures
from irn_pipeline.engine.store import RunFolder, StageRecord
from irn_pipeline.models import SegmenterParams, build_segmenter
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.ops.orientation import inverse, turned
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.stages.catalogue import main, stage_main
from irn_pipeline.structures import Instances
from irn_pipeline.trained_networks import segmenter_artifact

CLASSES = ("dark", "bright 明")


class Thresholds(Segmenter):
    """Finds the bright half (class 1, score 0.9), the dark one (class 0, 0.6) and everything (0.4)."""

    def __init__(self) -> None:
        super().__init__(len(CLASSES))
        self.passes = 0

    def losses(self, images, targets, progress=0.0) -> dict[str, Tensor]:
        return {}

    def predict(self, image: Tensor) -> Instances:
        self.passes += 1
        assert image.dtype == torch.float32
        assert image.max() <= 1
        bright = image.mean(0).numpy() > 0.5
        masks = np.stack([bright, ~bright, np.ones_like(bright)])
        return Instances(np.array([0.9, 0.6, 0.4], np.float32), masks, np.array([1, 0, 0]))


class Semantic(Thresholds):
    """A model with a label of its own."""

    def predict_with_label(self, image: Tensor, min_score: float = 0.5) -> tuple[Instances, np.ndarray]:
        return self.predict(image), np.full(image.shape[1:], 2, np.uint8)


def halves(size: tuple[int, int]) -> np.ndarray:
    """A picture that is dark left and bright right."""
    picture = np.full((*size, 3), 20, np.uint8)
    picture[:, size[1] // 2 :] = 230
    return picture


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


SIZES = {"a.png": (10, 12), "deep/er/a.png": (7, 20), "deep/写真 1.JPG": (16, 16), "zz.bmp": (1, 2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, and files that are none."""
    for name, size in SIZES.items():
        save(tmp_path / "in" / name, halves(size))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "._a.png").write_bytes(b"no image")
    return tmp_path / "in"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Thresholds:
    """In place of a trained model."""
    network = Thresholds()
    use(monkeypatch, network)
    return network


def use(monkeypatch: pytest.MonkeyPatch, network: Segmenter) -> None:
    checkpoint = Checkpoint("mask_rcnn", "resnet18", CLASSES, {})
    monkeypatch.setattr(
        "irn_pipeline.stages.predict.load_segmenter", lambda *arguments: (network.eval(), checkpoint)
    )


def predict(tmp_path: Path, *words: str, out: str = "out") -> int:
    flags = ["--run-dir", str(tmp_path / "run"), "--out", str(tmp_path / out)]
    execution = ["--device", "cpu", "--workers", "1", "--quiet", "--precision", "float32"]
    return stage_main("predict", [*flags, *execution, *words])


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def the_only_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_everything_that_is_written(tmp_path: Path, folder: Path, model: Thresholds) -> None:
    assert predict(tmp_path, "--images", str(folder)) == 0
    out = tmp_path / "out"
    names = [Path(name).with_suffix("").as_posix() for name in SIZES]
    assert files(out) == {"predictions.json"} | {
        f"{kind}/{name}.{suffix}"
        for name in names
        for kind, suffix in (("masks", "png"), ("labels", "png"), ("overlays", "jpg"))
    }
    coco = load(out / "predictions.json")
    assert [image["file_name"] for image in coco.imgs.values()] == list(SIZES)
    assert [category["name"] for category in coco.cats.values()] == list(CLASSES)
    assert model.passes == len(SIZES)
    for image_id, (file_name, name) in enumerate(zip(SIZES, names, strict=True), start=1):
        size = SIZES[file_name]
        bright = np.zeros(size, np.bool_)
        bright[:, size[1] // 2 :] = True
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert [entry["category_id"] for entry in found] == [2, 1]
        assert [entry["score"] for entry in found] == pytest.approx([0.9, 0.6])
        np.testing.assert_array_equal([coco.annToMask(entry) for entry in found], [bright, ~bright])
        ids, label = (Image.open(out / kind / f"{name}.png") for kind in ("masks", "labels"))
        np.testing.assert_array_equal(np.asarray(ids), np.where(bright, 1, 2))
        np.testing.assert_array_equal(np.asarray(label), np.where(bright, 2, 1))
        assert label.getpalette() == voc_palette().ravel().tolist()
        assert read_image(out / "overlays" / f"{name}.jpg").shape == (*size, 3)


def test_the_overlay_shows_the_classes(tmp_path: Path, model: Thresholds) -> None:
    save(tmp_path / "in" / "a.png", halves((64, 64)))
    assert predict(tmp_path, "--images", str(tmp_path / "in")) == 0
    drawn = read_image(tmp_path / "out" / "overlays" / "a.jpg").astype(int)
    # Half of the picture's grey and half of the class colour, but for JPEG.
    assert np.abs(drawn[32, 12] - [74, 10, 10]).max() <= 6
    assert np.abs(drawn[32, 52] - [115, 179, 115]).max() <= 6


def test_min_score_and_overlays(tmp_path: Path, folder: Path, model: Thresholds) -> None:
    words = ["--images", str(folder), "--min-score", "0.7", "--overlays", "false"]
    assert predict(tmp_path, *words) == 0
    coco = load(tmp_path / "out" / "predictions.json")
    assert {entry["category_id"] for entry in coco.anns.values()} == {2}
    assert not (tmp_path / "out" / "overlays").exists()
    label = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    assert label[0].tolist() == [0] * 6 + [2] * 6
    assert predict(tmp_path, "--images", str(folder), "--min-score", "0", out="all") == 0
    assert len(load(tmp_path / "all" / "predictions.json").anns) == 3 * len(SIZES)
    assert predict(tmp_path, "--images", str(folder), "--min-score", "2", out="none") == 0
    coco = load(tmp_path / "none" / "predictions.json")
    assert (len(coco.imgs), len(coco.anns)) == (len(SIZES), 0)
    assert not np.asarray(Image.open(tmp_path / "none" / "masks" / "a.png")).any()


def test_a_model_with_a_label_of_its_own(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Semantic())
    assert predict(tmp_path, "--images", str(folder)) == 0
    assert (np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png")) == 2).all()
    assert set(np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")).ravel()) == {1, 2}


def test_unreadable_pictures_are_skipped_and_counted(
    tmp_path: Path, folder: Path, model: Thresholds, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "deep" / "text.jpg").write_text("no image")
    assert predict(tmp_path, "--images", str(folder)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(f"a.png: skipped: {folder / 'a.png'}" in line for line in lines) == 1
    assert sum(f"deep/text.jpg: skipped: {folder / 'deep' / 'text.jpg'}" in line for line in lines) == 1
    assert "2 of 5 images cannot be read and were skipped" in lines[-1]
    coco = load(tmp_path / "out" / "predictions.json")
    assert [image["file_name"] for image in coco.imgs.values()] == list(SIZES)[1:]
    assert not (tmp_path / "out" / "masks" / "a.png").exists()


def test_no_readable_picture(tmp_path: Path, model: Thresholds, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    assert predict(tmp_path, "--images", str(tmp_path / "in")) == 1
    assert "none of its 1 images can be read" in capsys.readouterr().err.splitlines()[-1]
    assert files(tmp_path / "out") == set()


def test_folders_that_cannot_be_used(
    tmp_path: Path, folder: Path, model: Thresholds, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "twins" / "a.png", halves((4, 4)))
    save(tmp_path / "twins" / "a.jpg", halves((4, 4)))
    for images, named in (
        (tmp_path / "nowhere", "nowhere: no such folder"),
        (folder / "a.png", "a.png: no such folder"),
        (tmp_path / "empty", "empty: holds no image"),
        (tmp_path / "twins", "a.jpg and a.png would both be written to masks/a.png"),
        (tmp_path / "out", "out: "),
    ):
        assert predict(tmp_path, "--images", str(images)) == 1
        assert named in the_only_line(capsys)
    assert predict(tmp_path) == 1
    assert "--images DIR" in the_only_line(capsys)
    assert predict(tmp_path, "--images", str(folder), out="in") == 1
    assert "is the folder of images itself" in the_only_line(capsys)
    assert predict(tmp_path, "--images", str(folder), "--min-score", "nan") == 1
    assert "min_score" in the_only_line(capsys)
    assert model.passes == 0
    assert not (tmp_path / "out").exists()


def test_results_inside_the_folder_are_no_pictures(tmp_path: Path, folder: Path, model: Thresholds) -> None:
    for _ in range(2):
        assert predict(tmp_path, "--images", str(folder), out="in/found") == 0
        assert len(load(folder / "found" / "predictions.json").imgs) == len(SIZES)
    # The other way round, pictures below the folder of results are pictures.
    assert predict(tmp_path, "--images", str(folder / "deep"), out="in") == 0
    assert len(load(folder / "predictions.json").imgs) == 2


def test_an_interrupted_prediction_leaves_whole_files_only(
    tmp_path: Path, folder: Path, model: Thresholds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def third_time_is_too_much(image: Tensor) -> Instances:
        if model.passes == 2:
            raise KeyboardInterrupt
        return Thresholds.predict(model, image)

    monkeypatch.setattr(model, "predict", third_time_is_too_much)
    assert predict(tmp_path, "--images", str(folder)) == 130
    left = files(tmp_path / "out")
    assert len(left) == 6
    assert not any(name.startswith("predictions") or ".part-" in name for name in left)
    for name in left:
        read_image(tmp_path / "out" / name)
    monkeypatch.undo()
    use(monkeypatch, model)
    assert predict(tmp_path, "--images", str(folder)) == 0
    assert len(load(tmp_path / "out" / "predictions.json").imgs) == len(SIZES)


def test_a_real_network_from_the_run_folder(tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(0)
    params = SegmenterParams(model="mask_rcnn", backbone="resnet18", short_side=32, long_side=48, channels=16)
    network = build_segmenter(params, len(CLASSES))
    run, artifact = RunFolder(tmp_path / "run"), segmenter_artifact("mask_rcnn")
    run.write(artifact, Checkpoint("mask_rcnn", "resnet18", CLASSES, network.state_dict()))
    run.write_record(StageRecord(artifact.stage, "0", asdict(params), {}, True, {}, 0.0, {}))
    words = ["--images", str(folder), "--model", "mask_rcnn", "--min-score", "0", "--run-dir", str(run.root)]
    execution = ["--device", "cpu", "--workers", "1", "--quiet", "--precision", "float32"]
    assert main(["predict", *words, *execution]) == 0
    # Without --out the results are in the run folder.
    out = run.root / "predict" / "mask_rcnn"
    coco = load(out / "predictions.json")
    assert [(i["height"], i["width"]) for i in coco.imgs.values()] == list(SIZES.values())
    for name, size in SIZES.items():
        picture = Image.open(out / "masks" / Path(name).with_suffix(".png"))
        assert picture.size == size[::-1]


def test_a_model_that_was_not_trained(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path, "--images", str(folder), "--model", "mask_rcnn") == 1
    line = the_only_line(capsys)
    assert str(tmp_path / "run") in line
    assert "train_segmenter" in line
    assert not (tmp_path / "out").exists()


def test_the_rules_are_those_of_image_dir_and_one_line_tells_what_was_passed_over(
    tmp_path: Path, model: Thresholds, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    for name in (
        "a.jpg",
        "b.TIF",
        "c.gif",
        "deep/d.jfif",
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "@eaDir/a.jpg",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG"}.get(Path(name).suffix)
        Image.fromarray(halves((8, 12))).save(source / name, format=kind)
    save(tmp_path / "elsewhere" / "e.png", halves((8, 12)))
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "deep" / "loop").symlink_to(source)
    (source / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (source / "f.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (source / "notes.txt").touch()
    assert predict(tmp_path, "--images", str(source)) == 0
    told = capsys.readouterr().err.splitlines()
    (passed_over,) = [line for line in told if "ignored" in line]
    assert passed_over.endswith(": 4 (.ipynb_checkpoints/, @eaDir/, notes.txt, ...)")
    (unread,) = [line for line in told if "HEIC" in line]
    assert (
        unread
        == f"f.png: skipped: {source / 'f.png'}: holds a HEIC image, which cannot be read; convert it to JPEG or PNG"
    )
    assert told[-1] == "1 of 6 images cannot be read and were skipped"
    names = [image["file_name"] for image in load(tmp_path / "out" / "predictions.json").imgs.values()]
    assert names == ["a.jpg", "b.TIF", "c.gif", "deep/d.jfif", "linked/e.png"]
    assert set(scan_pictures(source, [])) == {
        Path(name).with_suffix("").as_posix() for name in [*names, "f.png"]
    }


@pytest.mark.parametrize("orientation", range(1, 9))
def test_predictions_are_of_the_picture_as_it_is_shown(
    tmp_path: Path, model: Thresholds, capsys: pytest.CaptureFixture[str], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "in").mkdir()
    stored = np.ascontiguousarray(turned(halves((16, 24)), inverse(orientation)))
    Image.fromarray(stored).save(tmp_path / "in" / "a.jpg", quality=95, exif=exif)
    assert predict(tmp_path, "--images", str(tmp_path / "in")) == 0
    assert capsys.readouterr().err.count("EXIF rotation: 1 (a); it is applied") == (orientation != 1)
    coco = load(tmp_path / "out" / "predictions.json")
    (image,) = coco.imgs.values()
    assert (image["height"], image["width"]) == (16, 24)
    bright = coco.annToMask(next(entry for entry in coco.anns.values() if entry["category_id"] == 2))
    np.testing.assert_array_equal(bright, halves((16, 24))[..., 0] > 128)
    assert read_image(tmp_path / "out" / "overlays" / "a.jpg").shape == (16, 24, 3)
