"""Cityscapes folders: every value of a mask goes to the right class, group or background, and bad folders are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irn_pipeline.datasets import cityscapes
from irn_pipeline.datasets.cityscapes import load_cityscapes
from irn_pipeline.datasets.images import read_ids
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.stages.catalogue import main, stage_main

EIGHT = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
SIZE = (32, 64)
ROAD, EGO = 7, 1
STREET = ((26001, 0, 8), (26002, 8, 20), (26, 20, 26), (24000, 26, 34), (33999, 34, 44), (27000, 44, 50))
"""Value, first column and end of the upper half: two cars, a group of cars, a person, a bicycle, a truck."""
EMPTY = ()
GROUP = ((26, 0, 16),)


def write(root: Path, split: str, city: str, frame: int, things: tuple[tuple[int, int, int], ...]) -> None:
    name = f"{city}_{frame:06d}_000019"
    ids = np.full(SIZE, ROAD, np.uint16)
    ids[-4:] = EGO
    picture = np.full((*SIZE, 3), 90, np.uint8)
    for value, start, end in things:
        ids[:16, start:end] = value
        picture[:16, start:end] = (value % 251, value % 83, value % 17)
    for half, ending, values in (
        ("leftImg8bit", "leftImg8bit", picture),
        ("gtFine", "gtFine_instanceIds", ids),
    ):
        (root / half / split / city).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / half / split / city / f"{name}_{ending}.png")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "irn_pipeline"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cityscapes"
    write(folder, "train", "aachen", 0, STREET)
    write(folder, "train", "aachen", 1, EMPTY)
    write(folder, "train", "bochum", 0, GROUP)
    write(folder, "val", "lindau", 0, STREET)
    return folder


def mask_of(root: Path, image_id: str) -> Path:
    return root / "gtFine" / image_id.replace("_leftImg8bit", "_gtFine_instanceIds.png")


STREET_ID, EMPTY_ID, GROUP_ID, VAL_ID = (
    f"{place}_000019_leftImg8bit"
    for place in (
        "train/aachen/aachen_000000",
        "train/aachen/aachen_000001",
        "train/bochum/bochum_000000",
        "val/lindau/lindau_000000",
    )
)


def test_masks_become_tags_instances_groups_and_background(root):
    data = load_cityscapes(root, classes=["car,bicycle"])
    assert data.images.class_names == ("car", "bicycle")
    assert data.category_ids == (26, 33)
    assert [(r.image_id, r.class_ids) for r in data.items] == [(STREET_ID, (0, 1)), (GROUP_ID, (0,))]
    assert [record.image_id for record in data.negatives] == [EMPTY_ID]
    truth = data.ground_truth(STREET_ID)
    assert truth.instances.class_ids.tolist() == [0, 0, 1]
    expected = np.zeros((3, *SIZE), np.bool_)
    for mask, (start, end) in zip(expected, ((0, 8), (8, 20), (34, 44)), strict=True):
        mask[:16, start:end] = True
    assert np.array_equal(truth.instances.masks, expected)
    group = np.zeros(SIZE, np.bool_)
    group[:16, 20:26] = True
    assert np.array_equal(truth.ignore, group)
    assert np.array_equal(truth.crowds.masks, group[None])
    assert truth.crowds.class_ids.tolist() == [0]
    label = np.where(
        expected[:2].any(0), 1, 2 * expected[2]
    )  # person, truck, road and ego vehicle: background
    assert np.array_equal(truth.label, np.where(group, 255, label))
    nothing = data.ground_truth(EMPTY_ID)
    assert (len(nothing.instances), len(nothing.crowds), nothing.label.any()) == (0, 0, False)
    assert data.ground_truth("train/aachen/other") is None


def test_a_group_of_another_class_is_background(root):
    truth = load_cityscapes(root, classes=["person"]).ground_truth(STREET_ID)
    assert truth.instances.class_ids.tolist() == [0]
    assert not truth.ignore.any()


def test_classes_are_the_eight_that_are_evaluated_or_those_that_are_picked_in_their_order(root):
    data = load_cityscapes(root)
    assert data.images.class_names == EIGHT
    assert data.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert data.items[0].class_ids == (0, 2, 3, 7)
    assert any("classes with no image: 4 ('rider', 'bus', 'train', 'motorcycle')" in w for w in data.warnings)
    assert load_cityscapes(root, classes=["truck", "car"]).items[0].class_ids == (0, 1)
    with pytest.raises(ConfigError, match="has no instances of 'road'; it has them of person, rider"):
        load_cityscapes(root, classes=["car", "road"])
    with pytest.raises(ConfigError, match="'car' is named twice"):
        load_cityscapes(root, classes=["car,car"])


def test_splits_and_files_are_lists(root, tmp_path):
    ids = [record.image_id for record in load_cityscapes(root, "val").items]
    assert ids == [VAL_ID]
    assert [r.image_id for r in load_cityscapes(root).with_list("val").items] == ids
    chosen = tmp_path / "some.txt"
    chosen.write_text(f"{VAL_ID}.png\n{STREET_ID}\n")
    data = load_cityscapes(root, str(chosen), classes=["car"])
    assert [record.image_id for record in data.items] == [VAL_ID, STREET_ID]
    assert data.with_list("train").images.class_names == ("car",)
    with pytest.raises(DataError, match=r"has no split 'vall' \(there: train, val\), and there is no file"):
        load_cityscapes(root, "vall")
    shutil.rmtree(root / "gtFine" / "train")
    shutil.rmtree(root / "leftImg8bit" / "train")
    assert [record.image_id for record in load_cityscapes(root).items] == [VAL_ID]


@pytest.mark.parametrize("half", ["leftImg8bit", "gtFine"])
def test_a_missing_half_is_one_line(root, half):
    shutil.rmtree(root / half / "val")
    with pytest.raises(DataError, match=r"val: . images .* and . masks .* do not match; unpack both"):
        load_cityscapes(root, "val")
    shutil.rmtree(root / half)
    with pytest.raises(DataError, match=f"holds no folder {half}; --cityscapes-root needs leftImg8bit/SPLIT"):
        load_cityscapes(root)


def test_pictures_and_masks_without_the_other_are_left_out_and_told(root):
    mask_of(root, EMPTY_ID).unlink()
    (root / "leftImg8bit" / f"{GROUP_ID}.png").unlink()
    data = load_cityscapes(root)
    assert ([r.image_id for r in data.items], data.negatives) == ([STREET_ID], ())
    assert any(f"left out because they have no mask: 1 ({EMPTY_ID})" in w for w in data.warnings)
    assert any(f"because they are not in {root / 'leftImg8bit'}: 1 ({GROUP_ID})" in w for w in data.warnings)


@pytest.mark.parametrize("value", [34, 255, 999, 1000, 23999, 34000, 65535])
def test_values_that_are_no_id_are_refused_by_file(root, value):
    write(root, "train", "aachen", 0, ((value, 0, 9),))
    with pytest.raises(
        DataError, match=f"instanceIds.png: the value {value} is not an id of Cityscapes; expected"
    ):
        load_cityscapes(root)


def test_a_colour_picture_in_the_place_of_a_mask_and_a_cut_one_are_refused(root):
    path = mask_of(root, STREET_ID)
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with pytest.raises(DataError, match=r"instanceIds.png"):
        load_cityscapes(root)
    shutil.copy(root / "leftImg8bit" / f"{STREET_ID}.png", path)
    with pytest.raises(DataError, match="must have one channel"):
        load_cityscapes(root)


def test_a_class_without_instances_is_one_line(root):
    with pytest.raises(DataError, match="none of its 3 masks shows train; choose other --classes"):
        load_cityscapes(root, classes=["train"])


def test_masks_are_read_once_and_again_where_they_change(root, cache, monkeypatch):
    read: list[str] = []

    def counted(path: Path) -> object:
        read.append(path.name)
        return read_ids(path)

    monkeypatch.setattr(cityscapes, "read_ids", counted)
    first = load_cityscapes(root)
    assert len(read) == 3
    assert load_cityscapes(root).images == first.images
    assert (
        load_cityscapes(root, classes=["car"]).negatives[0].image_id == EMPTY_ID
    )  # other classes, same masks
    assert len(read) == 3
    write(root, "train", "aachen", 1, GROUP)
    assert EMPTY_ID in [record.image_id for record in load_cityscapes(root).items]
    assert read[3:] == [mask_of(root, EMPTY_ID).name]
    (file,) = cache.iterdir()
    for damaged in ("{", "[]", '{"a": "b"}'):
        file.write_text(damaged)
        assert len(load_cityscapes(root).items) == 3
    assert len(read) == 4 + 3 * 3


def test_a_cache_that_cannot_be_written_is_passed_over(root, cache):
    cache.parent.write_text("a file in the place of the folder")
    assert len(load_cityscapes(root).items) == 2


def test_without_a_home_nothing_is_remembered(root, monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert len(load_cityscapes(root).items) == 2


def test_a_link_to_a_mask_that_is_gone_is_told_by_its_name(root):
    path = mask_of(root, STREET_ID)
    path.unlink()
    path.symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=path.name):
        load_cityscapes(root)


def test_other_flags_of_data_sets_do_not_go_with_it(root):
    flag = {"cityscapes_root": str(root)}
    with pytest.raises(ConfigError, match="--voc-root and --cityscapes-root each describe a data set"):
        load_source(Source(voc_root="x", **flag))
    with pytest.raises(
        ConfigError, match="--image-dir cannot be used with --cityscapes-root: the images are"
    ):
        load_source(Source(image_dir="x", **flag))
    with pytest.raises(ConfigError, match="--class-names cannot be used with --cityscapes-root"):
        load_source(Source(class_names="x", **flag))
    assert not load_source(Source(**flag)).listed
    assert load_source(Source(image_list="val", **flag)).listed


def test_true_masks_train_and_evaluate_a_model_without_any_other_stage(root, tmp_path):
    run = tmp_path / "run"
    flags = [
        *("--cityscapes-root", str(root), "--run-dir", str(run)),
        *("--classes", "car,person"),
        "--device=cpu",
    ]
    train = [*("--labels", "truth", "--model", "spatial_embeddings"), *("--backbone", "erfnet")]
    train += [*("--backbone-weights", "none"), *("--epochs", "1"), *("--batch-size", "2"), *("--crop", "32")]
    assert stage_main("train_segmenter", [*flags, *train]) == 0
    assert (run / "train_segmenter" / "spatial_embeddings-on-truth" / "network.pt").is_file()
    assert stage_main("evaluate", [*flags, "--heldout-list", "val", "--min-pixels", "20"]) == 0
    figures = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert figures["segmenter"]["miou"] >= 0


def test_tags_of_the_masks_train_the_classifier(root, tmp_path):
    words = [
        *("--cityscapes-root", str(root), "--run-dir", str(tmp_path / "run")),
        *("--classes", "car,person"),
    ]
    words += [*("--device", "cpu", "--backbone", "resnet18", "--backbone-weights", "none", "--epochs", "1")]
    words += [*("--crop", "32", "--batch-size", "2", "--long-side", "32", "48")]
    assert stage_main("train_cam", words) == 0
    run = tmp_path / "run"
    assert main(["2", *words[:6], "--device", "cpu"]) == 0
    assert (run / "make_cam" / "cam" / f"{STREET_ID}.npy").is_file()
