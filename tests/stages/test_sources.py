"""The flags that describe a data set, and what every kind of data set does alike."""

import json
import logging
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.engine.options import add_options, from_namespace, new_parser, parse
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import ConfigError, DataError

CLASSES = ("car", "bird")
TAGS = {"a": ("car",), "b": ("bird", "car"), "c": ("bird",)}


@pytest.fixture
def root(tmp_path):
    """The same three pictures as VOC folder, as folder with a table, and as COCO file."""
    voc = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (voc / folder).mkdir(parents=True)
    (voc / "class_names.txt").write_text("bird\ncar\n")
    rows, images, annotations = [], [], []
    for number, (image_id, names) in enumerate(TAGS.items(), 1):
        Image.new("RGB", (4, 3), (40 * number, 0, 0)).save(voc / "JPEGImages" / f"{image_id}.png")
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (voc / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        rows.append(",".join([f"{image_id}.png", *names]))
        images.append({"id": number, "file_name": f"{image_id}.png", "height": 3, "width": 4})
        label, things = np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
        for row, name in enumerate(names):
            label[row], things[row] = sorted(CLASSES).index(name) + 1, row + 1
            annotations.append({
                "id": len(annotations), "image_id": number, "category_id": {"bird": 16, "car": 3}[name],
                "segmentation": [[0, row, 4, row, 4, row + 1, 0, row + 1]],
            })  # fmt: skip
        for folder, values in (("SegmentationClass", label), ("SegmentationObject", things)):
            Image.fromarray(values).convert("P").save(voc / folder / f"{image_id}.png")
    shutil.copytree(voc / "JPEGImages", tmp_path / "pictures")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    categories = [{"id": 16, "name": "bird"}, {"id": 3, "name": "car"}]
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return tmp_path


def flags_of(root, kind):
    if kind == "voc":
        return {"voc_root": str(root / "voc")}
    table = {"csv": {"label_csv": str(root / "tags.csv")}, "coco": {"coco_json": str(root / "coco.json")}}[
        kind
    ]
    return {"image_dir": str(root / "pictures"), **table}


def tags_of(data):
    names = data.images.class_names
    return {r.image_id: tuple(sorted(names[c] for c in r.class_ids)) for r in data.items}


@pytest.mark.parametrize(
    ("kind", "names", "category_ids"),
    [("voc", ("bird", "car"), (1, 2)), ("csv", ("bird", "car"), (1, 2)), ("coco", ("car", "bird"), (3, 16))],
)
def test_every_source_gives_the_same_data_set(root, kind, names, category_ids):
    data = load_source(Source(**flags_of(root, kind)))
    assert tags_of(data) == TAGS
    assert data.identity == data.images.class_names == names
    assert data.category_ids == category_ids
    path = root / "some.txt"
    path.write_text("c\nb\n")
    for part in (
        data.with_list(str(path)),
        load_source(Source(**flags_of(root, kind), image_list=str(path))),
    ):
        assert [record.image_id for record in part.items] == ["c", "b"]
        assert part.images.class_names == names and part.category_ids == category_ids
        assert (part.ground_truth("b") is None) == (kind == "csv")
        assert [record.image_id for record in part.with_list(str(path)).items] == ["c", "b"]
    with pytest.raises(DataError, match=r"nowhere"):
        data.with_list(str(root / "nowhere.txt"))


@pytest.mark.parametrize("name", ["labelmap.txt", "labels.txt", "classes.txt"])
def test_other_names_of_the_file_of_class_names(root, name):
    (root / "voc" / "class_names.txt").rename(root / "voc" / name)
    assert load_source(Source(**flags_of(root, "voc"))).images.class_names == ("bird", "car")


def test_masks_that_are_no_png_are_told(root, caplog):
    masks = root / "voc" / "SegmentationClass"
    (masks / "b.png").rename(masks / "b.bmp")
    load_source(Source(**flags_of(root, "voc")))
    assert "masks that are not PNG files and are not read: 1 (b)" in caplog.text


def test_a_list_is_taken_from_all_pictures_of_the_source(root):
    (root / "one.txt").write_text("a\n")
    (root / "two.txt").write_text("b\nc.png\n")
    for kind in ("voc", "csv", "coco"):
        data = load_source(Source(**flags_of(root, kind), image_list=str(root / "one.txt")))
        assert [r.image_id for r in data.with_list(str(root / "two.txt")).items] == ["b", "c"]


def test_truth_of_voc_and_coco_agree(root):
    voc, coco = (load_source(Source(**flags_of(root, kind))) for kind in ("voc", "coco"))
    for image_id in TAGS:
        left, right = voc.ground_truth(image_id), coco.ground_truth(image_id)
        assert np.array_equal(left.instances.masks, right.instances.masks)
        # The VOC folder has bird first, the COCO file car, by category id.
        assert left.instances.class_ids.tolist() == [1 - c for c in right.instances.class_ids]
        assert np.array_equal(left.label, np.array([0, 2, 1])[right.label])


def test_a_data_set_goes_to_another_process(root):
    for kind in ("voc", "csv", "coco"):
        data = load_source(Source(**flags_of(root, kind)))
        twin = pickle.loads(pickle.dumps(data))
        assert tags_of(twin) == TAGS and (twin.ground_truth("a") is None) == (kind == "csv")


@pytest.mark.parametrize("words", [["car,bird"], ["car", "bird"], ["car,", "bird"]])
@pytest.mark.parametrize("kind", ["csv", "coco"])
def test_classes_as_flags(root, kind, words):
    parser = new_parser("x", "x")
    add_options(parser, Source)
    given = flags_of(root, kind)
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    data = load_source(from_namespace(Source, parse(parser, [*flags, "--classes", *words], {})))
    assert data.images.class_names == ("car", "bird") and tags_of(data) == TAGS
    only = load_source(from_namespace(Source, parse(parser, [*flags, "--classes", "bird"], {})))
    assert tags_of(only) == {"b": ("bird",), "c": ("bird",)}
    assert only.category_ids == ((16,) if kind == "coco" else (1,))


def test_classes_of_a_coco_file_may_hold_commas(root):
    path = root / "coco.json"
    path.write_text(path.read_text().replace('"bird"', '"bird, small"'))
    for words in (("car", "bird, small"), ("car,bird, small",), ('car,"bird, small"',)):
        data = load_source(Source(**flags_of(root, "coco"), classes=words))
        assert data.images.class_names == ("car", "bird, small") and data.category_ids == (3, 16)


def test_classes_of_a_yaml_file_may_be_numbers(root):
    (root / "tags.csv").write_text("image,label\na,2\nb,10\nc,1\n")
    parser = new_parser("x", "x")
    add_options(parser, Source)
    config = {**flags_of(root, "csv"), "classes": [10, "1"]}
    data = load_source(from_namespace(Source, parse(parser, [], config)))
    assert data.images.class_names == ("10", "1")


def lines_of(caplog, data_flags):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_source(Source(**data_flags))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", ["voc", "csv", "coco"])
def test_classes_are_told_with_their_pictures(root, kind, caplog):
    names = "car (2), bird (2)" if kind == "coco" else "bird (2), car (2)"
    (told,) = [line for line in lines_of(caplog, flags_of(root, kind)) if "bird" in line and "car" in line]
    assert told.endswith(f": 3 images with tags of 2 classes: {names}")


def test_of_many_classes_the_commonest_and_the_rarest_are_told(root, caplog):
    rows = [(f"{name:02}", image) for name in range(25) for image in "abc"[: 3 if name < 20 else 1]]
    (root / "tags.csv").write_text("image,label\n" + "".join(f"{image},n{name}\n" for name, image in rows))
    (told,) = [line for line in lines_of(caplog, flags_of(root, "csv")) if "25 classes" in line]
    assert told.split(": ")[-1].split(", ") == [
        *(f"n{name:02} (3)" for name in range(10)),
        "...",
        *(f"n{name:02} (1)" for name in range(20, 25)),
    ]


@pytest.mark.parametrize(
    ("table", "whole"),
    [
        ("image,car\na,1\nb,1\nc,1\n", "'car'"),
        ("image,car\na,1\nb,0\nc,1\n", None),
        ("image,label\na,car\nb,car\n", "'car'"),
        ("image,label\na,car\n", "'car'"),
        ("image,label\na,car,bird\nb,car\n", "'car'"),
        ("image,label\na,car,bird\nb,car,bird\n", "'bird' and 'car'"),
        ("image,label\na,car\nb,bird\n", None),
        ("image,car,other\na,1,0\nb,0,1\nc,1,0\n", None),
    ],
)
def test_a_class_that_every_picture_shows_cannot_be_learned(root, caplog, table, whole):
    (root / "tags.csv").write_text(table)
    lines = [line for line in lines_of(caplog, flags_of(root, "csv")) if "train_cam cannot learn" in line]
    assert len(lines) == (whole is not None)
    if whole is not None:
        assert (
            f"every image that is used shows {whole}: " in lines[0] and "rows with an empty label" in lines[0]
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "no data set: give --voc-root DIR .* --label-csv FILE or --coco-json FILE"),
        ({"voc_root": "a", "label_csv": "b"}, "--voc-root and --label-csv each describe"),
        ({"voc_root": "a", "coco_json": "b"}, "--voc-root and --coco-json each describe"),
        ({"label_csv": "a", "coco_json": "b", "image_dir": "c"}, "--label-csv and --coco-json each describe"),
        ({"image_dir": "a"}, "--image-dir names images without tags; add --label-csv"),
        ({"label_csv": "a"}, "--label-csv needs --image-dir"),
        ({"coco_json": "a"}, "--coco-json needs --image-dir"),
        ({"voc_root": "a", "image_dir": "b"}, "--image-dir cannot be used with --voc-root"),
        (
            {"voc_root": "a", "classes": ("b",)},
            "--classes cannot be used with --voc-root: .*--class-names FILE",
        ),
        (
            {"label_csv": "a", "image_dir": "b", "class_names": "c"},
            "--class-names cannot be used with --label-csv",
        ),
        (
            {"coco_json": "a", "image_dir": "b", "class_names": "c"},
            "--class-names cannot be used .* --classes a,b,c",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(ConfigError, match=message):
        load_source(Source(**flags))


def test_what_is_left_out_is_logged_and_counted(root, caplog):
    (root / "pictures" / "a.png").unlink()
    (root / "pictures" / "c.png").write_bytes(b"no image")
    for kind in ("csv", "coco"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = load_source(Source(**flags_of(root, kind)))
        assert tags_of(data) == {"b": TAGS["b"], "c": TAGS["c"]}
        lines = [record.getMessage() for record in caplog.records]
        assert any("left out because they are not in" in line and "1 (a)" in line for line in lines)
        # The second warning: car is left with one picture.
        assert "2 warnings about the data set; 2 images are used" in lines


def test_artifacts_of_ids_with_folders_do_not_meet(tmp_path):
    text = Artifact("note", "stage", ".txt", read=lambda p: p.read_text(), write=lambda p, v: p.write_text(v))
    run = RunFolder(tmp_path)
    for image_id in ("a", "x/a", "x/y/a.b", "x/y"):
        assert not run.has(text, image_id)
        run.write(text, f"<{image_id}>", image_id)
    assert [run.read(text, i) for i in ("a", "x/a", "x/y/a.b", "x/y")] == [
        "<a>",
        "<x/a>",
        "<x/y/a.b>",
        "<x/y>",
    ]
    assert run.path(text, "x/y/a.b").relative_to(tmp_path).as_posix() == "stage/note/x/y/a.b.txt"
