import numpy as np
import pytest
from PIL import Image

from irn_pipeline.datasets.voc import (
    VOC_CLASSES,
    ground_truth_ids,
    load_ground_truth,
    load_voc,
    read_class_names,
)
from irn_pipeline.errors import DataError


def write_xml(root, image_id, names):
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>"
        for name in names
    )
    text = f"<annotation><folder>x</folder><source><name>flickr</name></source>{objects}</annotation>"
    (root / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")


def write_list(root, name, text, folder="Segmentation", encoding="utf-8"):
    path = root / "ImageSets" / folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def ids(loaded):
    return [record.image_id for record in loaded.images.records]


@pytest.fixture
def voc(tmp_path):
    """Three pictures: a (dog, person), b (car), c.d (two cats)."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for image_id, names in {"a": ["person", " dog "], "b": ["car"], "c.d": ["cat", "cat"]}.items():
        (root / "JPEGImages" / f"{image_id}.jpg").touch()
        write_xml(root, image_id, names)
    return root


def add_picture(root, name, names=("car",)):
    (root / "JPEGImages" / name).touch()
    write_xml(root, name.rpartition(".")[0], names)


def write_masks(root, image_id, label, objects):
    for folder, values in (("SegmentationClass", label), ("SegmentationObject", objects)):
        picture = Image.fromarray(np.array(values, np.uint8)).convert("P")
        picture.save(root / folder / f"{image_id}.png")


def test_tags_are_the_sorted_distinct_classes_of_the_objects_not_of_their_parts(voc):
    loaded = load_voc(voc)
    assert loaded.images.class_names == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert [record.class_ids for record in loaded.images.records] == [(11, 14), (6,), (7,)]
    assert ids(loaded) == ["a", "b", "c.d"]
    assert loaded.images.records[2].path == voc / "JPEGImages" / "c.d.jpg"
    assert loaded.warnings == () and loaded.skipped == ()


def test_default_lists_in_their_order(voc):
    write_list(voc, "trainval", "c.d\n", folder="Main")
    assert ids(load_voc(voc)) == ["c.d"]
    write_list(voc, "train", "b\na\n")
    assert ids(load_voc(voc)) == ["b", "a"]
    write_list(voc, "train_aug", "b\n")
    assert ids(load_voc(voc)) == ["b"]


def test_list_by_name_or_path(voc, tmp_path):
    write_list(voc, "mine", "b\n", folder="Main")
    other = tmp_path / "elsewhere.txt"
    other.write_text("a")
    assert ids(load_voc(voc, image_list="mine")) == ["b"]
    assert ids(load_voc(voc, image_list="mine.txt")) == ["b"]
    assert ids(load_voc(voc, image_list=other)) == ids(load_voc(voc, image_list=str(other))) == ["a"]
    with pytest.raises(DataError, match=r"nothere.*mine"):
        load_voc(voc, image_list="nothere")


@pytest.mark.parametrize(
    "text",
    [
        "b\na\n",
        "\ufeff# a comment\r\n\r\n  b  \r\na\r\n",
        "b  1\na -1\n",
        "/JPEGImages/b.jpg /SegmentationClassAug/b.png\n/JPEGImages/a.jpg /SegmentationClassAug/a.png\n",
        "JPEGImages/b.jpg\nJPEGImages/a.jpg",
        "b.jpg\na.jpg",
    ],
)
def test_line_forms(voc, text):
    write_list(voc, "train", text)
    assert ids(load_voc(voc)) == ["b", "a"]


@pytest.mark.parametrize("stem", ["bild straße 1", "写真", "a.b.c", "x 1", "001", "..b"])
def test_any_stem(voc, stem):
    add_picture(voc, f"{stem}.JPEG")
    write_list(voc, "train", f"{stem}\n")
    assert ids(load_voc(voc)) == [stem]


def test_repeated_lines_are_dropped_with_a_warning(voc):
    write_list(voc, "train", "b\na\nb\nb 1\n")
    loaded = load_voc(voc)
    assert ids(loaded) == ["b", "a"]
    assert len(loaded.warnings) == 1 and "2 repeated" in loaded.warnings[0]


def test_pictures_without_objects_are_left_out_with_a_warning(voc):
    write_xml(voc, "b", [])
    loaded = load_voc(voc)
    assert ids(loaded) == ["a", "c.d"] and loaded.skipped == ("b",)
    assert "1 (b)" in loaded.warnings[0]
    for image_id in ("a", "c.d"):
        write_xml(voc, image_id, [])
    with pytest.raises(DataError, match="none of its 3"):
        load_voc(voc)


def test_two_files_of_one_stem(voc):
    (voc / "JPEGImages" / "b.png").touch()
    loaded = load_voc(voc)
    assert loaded.images.records[1].path.name == "b.jpg" and "1 (b)" in loaded.warnings[0]


@pytest.mark.parametrize("line", ["../a", "/etc/passwd", "x/../../a", "..", "..\\a", "/a.jpg"])
def test_ids_that_leave_the_folder_are_refused(voc, line):
    write_list(voc, "train", f"{line}\n")
    with pytest.raises(DataError, match="not an image id"):
        load_voc(voc)


def test_absent_pictures_are_counted(voc):
    write_list(voc, "train", "a\nm1\nm2\nm3\nm4\n")
    with pytest.raises(DataError, match=r"4 \(m1, m2, m3, \.\.\.\) of 5"):
        load_voc(voc)


def test_empty_list_and_list_that_is_no_text(voc):
    path = write_list(voc, "train", "\n# nothing\n")
    with pytest.raises(DataError, match="lists no picture"):
        load_voc(voc)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        load_voc(voc)


def test_missing_xml_is_counted(voc):
    (voc / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"no XML file for 1 \(b\)"):
        load_voc(voc)


def test_unknown_class_names_the_nearest_and_the_remedy(voc):
    write_xml(voc, "b", ["persn"])
    with pytest.raises(DataError, match=r"b\.xml.*'persn'.*'person'.*--class-names"):
        load_voc(voc)


def test_own_class_names(voc):
    loaded = load_voc(voc, class_names=("person", "dog", "car", "cat"))
    assert [record.class_ids for record in loaded.images.records] == [(0, 1), (2,), (3,)]
    assert loaded.images.num_classes == 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_bombs_are_refused(voc, encoding):
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(8))
    head = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE x [<!ENTITY e0 "ha">{entities}]>'
    text = f"{head}<x><object><name>&e8;</name></object></x>"
    (voc / "Annotations" / "b.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"b\.xml.*DOCTYPE"):
        load_voc(voc)


@pytest.mark.parametrize("text", ["", "<annotation><object>", "no xml", "<a>&undefined;</a>"])
def test_broken_xml(voc, text):
    (voc / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(DataError, match=r"b\.xml: not a readable XML"):
        load_voc(voc)


def test_wrong_root(voc, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_voc(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"did you mean .*VOC2012\?"):
        load_voc(tmp_path)
    with pytest.raises(DataError, match=r"did you mean .*VOC2012\?"):
        load_voc(voc / "JPEGImages")
    (tmp_path / "empty" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no picture"):
        load_voc(tmp_path / "empty")


def test_class_names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffdog\r\n traffic light \r\n\r\nStraße\r\n".encode())
    assert read_class_names(path) == ("dog", "traffic light", "Straße")
    for content, reason in (("\n", "names no class"), ("a\nb\na\n", "'a' is named twice")):
        path.write_text(content)
        with pytest.raises(DataError, match=reason):
            read_class_names(path)
    path.write_text("\n".join(map(str, range(255))))
    with pytest.raises(DataError, match="254"):
        read_class_names(path)
    with pytest.raises(DataError, match="no such file"):
        read_class_names(tmp_path / "missing.txt")


def test_ground_truth_of_a_picture_a_person_can_check(voc):
    # Object 2 has two cells of class 3 and one of class 1; object 7 has only unsure cells.
    label = [[1, 1, 255, 0], [3, 3, 1, 0], [255, 0, 255, 0]]
    objects = [[5, 5, 255, 0], [2, 2, 2, 0], [2, 0, 7, 0]]
    write_masks(voc, "a", label, objects)
    truth = load_ground_truth(voc, "a")
    assert truth is not None
    np.testing.assert_array_equal(truth.label, label)
    np.testing.assert_array_equal(truth.instances.class_ids, [2, 0])
    np.testing.assert_array_equal(truth.instances.scores, [1, 1])
    np.testing.assert_array_equal(truth.instances.masks, [np.array(objects) == 2, np.array(objects) == 5])
    np.testing.assert_array_equal(truth.ignore, np.array([[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]], bool))


def test_ground_truth_of_background_only(voc):
    write_masks(voc, "a", np.zeros((3, 5)), np.zeros((3, 5)))
    truth = load_ground_truth(voc, "a")
    assert truth is not None
    assert truth.instances.masks.shape == (0, 3, 5) and not truth.ignore.any()


def test_ground_truth_is_none_unless_both_files_are_there(voc):
    assert ground_truth_ids(voc) == ()
    write_masks(voc, "b", [[1]], [[1]])
    write_masks(voc, "a", [[1]], [[1]])
    assert ground_truth_ids(voc) == ("a", "b")
    (voc / "SegmentationObject" / "a.png").unlink()
    assert load_ground_truth(voc, "a") is None and ground_truth_ids(voc) == ("b",)
    assert ground_truth_ids(voc / "JPEGImages") == ()


def test_impossible_ground_truth(voc):
    write_masks(voc, "a", [[21, 20]], [[1, 2]])
    with pytest.raises(DataError, match="label 21 is beyond the 20 classes"):
        load_ground_truth(voc, "a")
    truth = load_ground_truth(voc, "a", num_classes=21)
    assert truth is not None
    np.testing.assert_array_equal(truth.instances.class_ids, [20, 19])
    write_masks(voc, "a", [[1, 1]], [[1, 1]])
    Image.fromarray(np.ones((2, 1), np.uint8)).save(voc / "SegmentationObject" / "a.png")
    with pytest.raises(DataError, match="2x1 pixels"):
        load_ground_truth(voc, "a")
    with pytest.raises(DataError, match="not an image id"):
        load_ground_truth(voc, "../a")
