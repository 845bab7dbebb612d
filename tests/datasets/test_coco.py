import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from irn_pipeline.datasets import coco_truth
from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.errors import ConfigError, DataError

# Categories with gaps, not in order: class ids follow the category ids 2 cat, 7 dog, 90 ox.
CATEGORIES = [{"id": 90, "name": "ox"}, {"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}]
TOP = [[0, 0, 4, 0, 4, 1, 0, 1]]
LEFT = [[0, 0, 2, 0, 2, 3, 0, 3]]


def box_of(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(number, image_id, category_id, segmentation=TOP, **more):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        **more,
    }


class Folder:
    """A folder with pictures of 3x4 pixels, and the file that describes them."""

    def __init__(self, root, names=("a.jpg", "sub/a.jpg", "b.png")):
        self.pictures, self.path = root / "pictures", root / "instances.json"
        self.images = []
        for number, name in enumerate(names, 1):
            (self.pictures / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3)).save(self.pictures / name)
            self.images.append({"id": number, "file_name": name, "height": 3, "width": 4})

    def load(self, annotations, classes=(), **more):
        content = {"images": self.images, "annotations": annotations, "categories": CATEGORIES, **more}
        self.path.write_text(json.dumps(content))
        return load_coco(self.path, self.pictures, classes=classes)

    def truth(self, *annotations, classes=()):
        return self.load(list(annotations), classes=classes).ground_truth("a")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def tags_of(coco):
    names = coco.images.class_names
    return {r.image_id: [names[c] for c in r.class_ids] for r in coco.images.records}


def about(coco, word):
    (found,) = [warning for warning in coco.warnings if word in warning]
    return found


def test_tags_are_the_categories_of_the_annotations_in_the_order_of_their_ids(folder):
    coco = folder.load([annotation(1, 1, 90), annotation(2, 1, 2), annotation(3, 1, 2), annotation(4, 2, 7)])
    assert coco.images.class_names == ("cat", "dog", "ox")
    assert coco.category_ids == (2, 7, 90)
    assert tags_of(coco) == {"a": ["cat", "ox"], "sub/a": ["dog"]}
    assert coco.images.records[1].path == folder.pictures / "sub" / "a.jpg"
    assert [record.image_id for record in coco.negatives] == ["b"] and not coco.skipped


def test_classes_are_picked_and_ordered(folder):
    annotations = [annotation(1, 1, 90), annotation(2, 1, 2), annotation(3, 2, 7), annotation(4, 3, 7)]
    coco = folder.load(annotations, classes=("ox", "cat"))
    assert coco.images.class_names == ("ox", "cat") and coco.category_ids == (90, 2)
    assert coco.images.records[0].class_ids == (0, 1)
    assert [record.image_id for record in coco.negatives] == ["sub/a", "b"]
    with pytest.raises(ConfigError, match=r"instances\.json has no class 'dig' \(nearest: 'dog'\)"):
        folder.load(annotations, classes=("dig",))


def test_categories_of_one_name_are_joined_in_tags_and_truth(folder):
    categories = [*CATEGORIES, {"id": 40, "name": "cat"}]
    annotations = [
        annotation(1, 1, 40, LEFT),
        annotation(2, 1, 90, TOP),
        annotation(3, 2, 2),
        annotation(4, 3, 7),
    ]
    for classes, ids in (((), (2, 7, 90)), (("ox", "cat"), (90, 2))):
        coco = folder.load(annotations, classes=classes, categories=categories)
        names = coco.images.class_names
        assert tags_of(coco) == {"a": [n for n in names if n != "dog"], "sub/a": ["cat"]} | (
            {} if classes else {"b": ["dog"]}
        )
        assert coco.category_ids == ids and "joined" in about(coco, "2, 40")
        truth = coco.ground_truth("a")
        assert [names[number] for number in truth.instances.class_ids] == ["cat", "ox"]
        assert truth.label[2].tolist() == [names.index("cat") + 1] * 2 + [0, 0]


def test_ids_from_0_and_a_root_that_is_left_out(folder):
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
        {"id": number, "name": name, "supercategory": "pets"} for number, name in ((1, "cat"), (2, "dog"))
    ]
    coco = folder.load([annotation(1, 1, 1), annotation(2, 2, 2)], categories=categories)
    assert coco.images.class_names == ("cat", "dog") and coco.category_ids == (1, 2)
    assert about(coco, "root category").endswith("'pets' (id 0)")
    for root in (0, 1):
        used = folder.load(
            [annotation(1, 1, root), annotation(2, 2, 2)], categories=categories, classes=("pets", "dog")
        )
        assert used.category_ids == (0, 2)
        assert tags_of(used) == {"sub/a": ["dog"]} | ({"a": ["pets"]} if root == 0 else {})


def test_more_categories_than_labels_need_a_choice(folder):
    many = [{"id": number, "name": f"c{number}"} for number in range(300)]
    with pytest.raises(DataError, match=r"--classes picks some\): names 300 classes; 254 at most"):
        folder.load([annotation(1, 1, 0)], categories=many)
    assert folder.load([annotation(1, 1, 0)], categories=many, classes=("c7", "c0")).category_ids == (7, 0)


def test_a_crowd_gives_a_tag_and_ignored_pixels(folder):
    crowd = {"size": [3, 4], "counts": [0, 6, 6]}
    coco = folder.load(
        [
            annotation(1, 1, 7, crowd, iscrowd=1),
            annotation(2, 1, 2, TOP),
            annotation(3, 2, 7, crowd, iscrowd=1),
        ]
    )
    assert tags_of(coco) == {"a": ["cat", "dog"], "sub/a": ["dog"]}
    truth = coco.ground_truth("a")
    assert truth.label.tolist() == [[1, 1, 1, 1], [255, 255, 0, 0], [255, 255, 0, 0]]
    assert truth.ignore.tolist() == (truth.label == 255).tolist()
    assert len(truth.instances) == 1 and truth.instances.class_ids.tolist() == [0]
    only = coco.ground_truth("sub/a")
    assert len(only.instances) == 0 and only.ignore.sum() == 6


def test_truth_of_a_picture_a_person_can_check(folder):
    truth = folder.truth(annotation(1, 1, 90, LEFT), annotation(2, 1, 2, TOP), annotation(3, 2, 7))
    assert truth.instances.class_ids.tolist() == [2, 0]
    assert truth.instances.masks.astype(int).tolist() == [
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    # TOP has 4 pixels and lies over LEFT with its 6, though it comes later or earlier in the file.
    assert truth.label.tolist() == [[1, 1, 1, 1], [3, 3, 0, 0], [3, 3, 0, 0]]
    assert not truth.ignore.any()
    assert (
        folder.truth(annotation(2, 1, 2, TOP), annotation(1, 1, 90, LEFT)).label.tolist()
        == truth.label.tolist()
    )


def test_classes_that_are_not_used_are_background_in_the_truth(folder):
    truth = folder.truth(annotation(1, 1, 90, LEFT), annotation(2, 1, 2, TOP), classes=("ox",))
    assert truth.label.tolist() == [[1, 1, 0, 0]] * 3 and len(truth.instances) == 1


@pytest.mark.parametrize("empty", [None, [], [[]], {}, "", [[], []], "missing"])
def test_an_object_without_mask_gives_a_tag_and_its_box_is_ignored(folder, empty):
    bare = annotation(1, 1, 7, empty, bbox=[2.5, 1, 1, 1])
    if empty == "missing":
        del bare["segmentation"]
    coco = folder.load([bare, annotation(2, 1, 2, TOP), annotation(3, 2, 2)])
    assert tags_of(coco)["a"] == ["cat", "dog"]
    assert about(coco, "without a mask").endswith(": 1")
    truth = coco.ground_truth("a")
    assert truth.label.tolist() == [[1, 1, 1, 1], [0, 0, 255, 255], [0, 0, 0, 0]]
    assert len(truth.instances) == 1


def test_there_is_no_truth_without_any_mask_or_for_an_unknown_picture(folder):
    coco = folder.load([annotation(1, 1, 7, [], bbox=[0, 0, 1, 1])])
    assert coco.ground_truth("a") is None and coco.ground_truth("nobody") is None


@pytest.mark.parametrize(
    "box", [None, [], "x", [1, 2], [0, 0, float("nan"), 1], [9e99, 0, 1, 1], [-5, -5, 1e30, 0]]
)
def test_odd_boxes_ignore_nothing_beyond_the_picture(folder, box):
    truth = folder.truth(annotation(1, 1, 7, [], bbox=box), annotation(2, 1, 2, TOP))
    assert truth.label.shape == (3, 4) and truth.label[0].tolist() == [1, 1, 1, 1]


def test_every_way_to_write_a_mask_gives_the_same(folder):
    expected = np.zeros((3, 4), bool)
    expected[:, :2] = True
    packed = rle.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"].decode()
    for segmentation in (LEFT, {"size": [3, 4], "counts": [0, 6, 6]}, {"size": [3, 4], "counts": packed}):
        assert np.array_equal(folder.truth(annotation(1, 1, 2, segmentation)).instances.masks, expected[None])
    two = folder.truth(annotation(1, 1, 2, [TOP[0], box_of(0, 2, 4, 3)[0], [0, 0, 1, 1]]))
    assert two.instances.masks[0].astype(int).tolist() == [[1] * 4, [0] * 4, [1] * 4]


def test_masks_equal_those_of_the_official_reader(tmp_path):
    folder = Folder(tmp_path, ("a.jpg",))
    Image.new("RGB", (40, 30)).save(folder.pictures / "a.jpg")
    folder.images[0].update(height=30, width=40)
    random = np.random.default_rng(0)
    annotations = [
        annotation(number, 1, 7, [[float(v) for v in np.round(random.uniform(-3, 43, 10), 2)]])
        for number in range(1, 20)
    ]
    truth = folder.load(annotations).ground_truth("a")
    official = COCO()
    official.dataset = json.loads(folder.path.read_text())
    official.createIndex()
    for mask, entry in zip(truth.instances.masks, annotations, strict=True):
        assert np.array_equal(mask, official.annToMask(entry).astype(bool))
    assert truth.instances.masks.any((1, 2)).sum() > 10


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_packed_run_lengths_are_unpacked_as_pycocotools_packs_them(cells):
    mask = np.asfortranarray(np.array(cells, np.uint8).reshape(1, -1))
    packed = rle.encode(mask)["counts"].decode()
    runs = coco_truth._unpacked(packed)
    assert np.repeat(np.arange(len(runs)) % 2, runs).tolist() == mask.ravel().tolist()


@settings(max_examples=200)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_hostile_run_lengths_are_refused_or_whole(text):
    try:
        runs = coco_truth._run_lengths({"size": [3, 4], "counts": text}, (3, 4), "here")
    except DataError:
        return
    assert set(np.unique(rle.decode(runs))) <= {0, 1}


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([[0, 0], [2, 0], [2, 3], [0, 3]], id="pairs"),
        pytest.param([[[0, 0], [2, 0], [2, 3], [0, 3]]], id="polygon of pairs"),
        pytest.param([[[0, 0], [2, 0], [2, 1], [0, 1]], [[0, 1], [2, 1], [2, 3], [0, 3]]], id="two of pairs"),
        pytest.param([["0", "0", "2.0", "0", "2", " 3", "0", "3e0"]], id="texts"),
        pytest.param([["0", "0"], ["2", "0"], ["2", "3"], ["0", "3"]], id="pairs of texts"),
        pytest.param([[0, 0, 2, 0, 2, 3, 0, 3], [3, 2, 4, 2], [1, 1], []], id="beside a line and a point"),
        pytest.param({"size": ["3", 4.0], "counts": ["0", 6.0, 6]}, id="run lengths of texts"),
    ],
)
def test_other_ways_to_write_a_mask_whose_meaning_is_clear(folder, segmentation):
    truth = folder.truth(annotation(1, 1, 2, segmentation))
    assert truth.instances.masks.astype(int).tolist() == [[[1, 1, 0, 0]] * 3]


def test_fractions_of_a_picture_are_told_from_its_first_pixel(folder):
    with pytest.raises(
        DataError, match=r"instances\.json: annotation 5: .*from 0 to 1 are fractions.*in pixels"
    ):
        folder.truth(annotation(1, 1, 2), annotation(5, 1, 7, [[0, 0, 1, 0, 1, 0.33, 0, 0.33]]))
    first = folder.truth(annotation(1, 1, 2, box_of(0, 0, 1, 1)))
    assert first.instances.masks.sum() == 1 and first.instances.masks[0, 0, 0]


def test_a_mask_that_is_not_read_does_not_stop_the_training(folder):
    """Only the truth needs masks: the same file serves for tags."""
    coco = folder.load([annotation(1, 1, 7, [[0, 0, 1, 1]]), annotation(2, 2, 2)])
    assert tags_of(coco) == {"a": ["dog"], "sub/a": ["cat"]}
    assert coco.ground_truth("sub/a").has_foreground
    with pytest.raises(DataError, match="annotation 1: its polygons have fewer than three points; expected"):
        coco.ground_truth("a")


@pytest.mark.parametrize(("value", "crowd"), [(0, False), ("0", False), (False, False), ("", False), (None, False),
                                              (1, True), ("1", True), (True, True), (1.0, True)])  # fmt: skip
def test_ways_to_write_iscrowd(folder, value, crowd):
    truth = folder.truth(annotation(1, 1, 7, TOP, iscrowd=value))
    assert (len(truth.instances), bool(truth.ignore.any()), truth.has_foreground) == (
        (0, True, False) if crowd else (1, False, True)
    )


def test_an_iscrowd_that_is_no_number_names_the_annotation(folder):
    with pytest.raises(DataError, match=r"instances\.json: annotation 3: iscrowd 'few' .*expected 0 or 1"):
        folder.load([annotation(3, 1, 7, iscrowd="few")])


def test_masks_that_are_all_crowds_are_told(folder):
    coco = folder.load(
        [annotation(1, 1, 7, iscrowd=1), annotation(2, 2, 7, iscrowd=1), annotation(3, 2, 2, [])]
    )
    assert about(coco, "every mask is a crowd").endswith(": 2")
    mixed = folder.load([annotation(1, 1, 7, iscrowd=1), annotation(2, 2, 7)])
    assert not any("is a crowd" in warning for warning in mixed.warnings)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 4, 0, 4, 1, 0]],
        [[0, 0, 1e9, 0, 4, 1]],
        [[0, 0, 4, 0, 4, float("nan")]],
        [["0", 0, "wide", 0, 4, 1]],
        [["nan", 0, 4, 0, 4, 1]],
        [[True, 0, 4, 0, 4, 1]],
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1], [2, 2]],
        [[0, 0], [4, 1]],
        [{"x": 0, "y": 0}, {"x": 4, "y": 0}, {"x": 4, "y": 1}],
        [[{"x": 0, "y": 0}, {"x": 4, "y": 0}, {"x": 4, "y": 1}]],
        {"x": [0, 4, 4], "y": [0, 0, 1]},
        [[0.1, 0.1, 0.9, 0.1, 0.9, 0.5]],
        [[0.0, 0.0], [1.0, 0.0], [1.0, 0.5]],
        [[-0.002, 0.1, 1.004, 0.1, 1.004, 1.0]],
        "[[0, 0, 4, 0, 4, 1]]",
        [0, 0, 4, 0, 4, 1, 0, 1],
        "text",
        7,
        {"size": [3, 4], "counts": [0, 6]},
        {"size": [3, 4], "counts": [12, -1, 1]},
        {"size": [3, 4], "counts": [10**30]},
        {"size": [30000, 40000], "counts": [0, 1200000000]},
        {"size": [4, 3], "counts": [12]},
        {"size": [3, 4], "counts": "zzzzzz"},
        {"size": [3, 4], "counts": ""},
        {"size": [3, 4]},
    ],
)
def test_a_damaged_mask_names_its_annotation(folder, segmentation):
    coco = folder.load([annotation(41, 1, 7, segmentation)])
    with pytest.raises(DataError, match=r"instances\.json: annotation 41: .*; expected|write it again"):
        coco.ground_truth("a")


def test_a_picture_of_another_size_than_the_file_says(folder):
    folder.images[0]["width"] = 5
    with pytest.raises(DataError, match=r"a\.jpg: 3x4 pixels .* says \(3, 5\)"):
        folder.truth(annotation(1, 1, 7))
    del folder.images[0]["width"], folder.images[0]["height"]
    assert folder.truth(annotation(1, 1, 7)).label.shape == (3, 4)


def test_missing_pictures_and_strange_annotations_are_left_out_and_counted(folder):
    (folder.pictures / "sub" / "a.jpg").unlink()
    strange = [annotation(7, 99, 2), annotation(8, 1, 3), annotation(9, 98, 2), annotation(10, 1, 91)]
    coco = folder.load([annotation(1, 1, 2), annotation(2, 2, 2), annotation(3, 3, 2), *strange])
    assert tags_of(coco) == {"a": ["cat"], "b": ["cat"]}
    assert about(coco, "are not in").endswith("1 (sub/a)") and coco.skipped == ("sub/a",)
    assert about(coco, "category_id is not in the file").endswith("4 (7, 8, 9, ...)")
    assert about(coco, "no image").endswith("2 ('dog', 'ox')")


def test_an_annotation_that_is_in_the_file_twice_is_one_object(folder):
    box = [0, 0, 4, 1]
    same = [annotation(5, 1, 2, bbox=box), annotation(5, 1, 2, bbox=box)]
    # An id of two objects is no copy: another box, another class, another picture, or no box to tell by.
    other = [
        annotation(5, 1, 2, bbox=[0, 1, 4, 1]),
        annotation(5, 1, 90, bbox=box),
        annotation(6, 1, 2, bbox=box),
    ]
    coco = folder.load(
        [*same, *other, annotation(5, 2, 2, bbox=box), annotation(7, 3, 2), annotation(7, 3, 2)]
    )
    assert about(coco, "twice").endswith("in the file twice: 1 (5)")
    assert tags_of(coco) == {"a": ["cat", "ox"], "sub/a": ["cat"], "b": ["cat"]}
    assert len(coco.ground_truth("a").instances) == 4
    assert len(coco.ground_truth("b").instances) == 2
    assert len(coco.ground_truth("sub/a").instances) == 1


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(str, id="texts"),
        pytest.param(float, id="floats"),
        pytest.param(lambda key: f"{key}.0", id="texts of floats"),
        pytest.param(lambda key: f" {key:06d} ", id="padded texts"),
    ],
)
@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_of_annotations_in_another_spelling(folder, spell, key):
    entries = [annotation(1, 1, 90), annotation(2, 3, 2)]
    for entry in entries:
        entry[key] = spell(entry[key])
    coco = folder.load(entries)
    assert tags_of(coco) == {"a": ["ox"], "b": ["cat"]} and coco.category_ids == (2, 7, 90)
    assert coco.coco.ids == {"a": 1, "sub/a": 2, "b": 3}


def test_ids_of_images_and_categories_in_another_spelling(folder):
    for entry in folder.images:
        entry["id"] = f"00{entry['id']}"
    categories = [{"id": "90", "name": "ox"}, {"id": 2.0, "name": "cat"}, {"id": "7", "name": "dog"}]
    coco = folder.load([annotation(1, 1, 90), annotation(2, "003", "2")], categories=categories)
    assert tags_of(coco) == {"a": ["ox"], "b": ["cat"]} and coco.category_ids == (2, 7, 90)
    # Image ids may be texts, and stay what they are.
    assert coco.coco.ids == {"a": "001", "sub/a": "002", "b": "003"}


def test_image_ids_may_be_any_text(folder):
    for entry in folder.images:
        entry["id"] = f"image {entry['id']}"
    coco = folder.load([annotation(1, "image 1", 90), annotation(2, "image 9", 2), annotation(3, 1, 2)])
    assert tags_of(coco) == {"a": ["ox"]} and about(coco, "not in the file").endswith("2 (2, 3)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_id": "a.jpg"},
            r"annotation 4: image_id 'a\.jpg' is not the id of an image; expected 1, 2, 3$",
        ),
        ({"image_id": 1.5}, r"annotation 4: image_id '1\.5' is not the id of an image"),
        ({"image_id": [1]}, r"annotation 4: image_id 'list' is not the id"),
        ({"image_id": None}, r"annotation 4: image_id 'None' is not the id"),
        ({"image_id": True}, r"annotation 4: image_id 'True' is not the id"),
        (
            {"category_id": "dog"},
            r"annotation 4: category_id 'dog' is not the id of a category; expected 2, 7, 90$",
        ),
        ({"category_id": 7.5}, r"annotation 4: category_id '7\.5' is not the id"),
        ({"category_id": {}}, r"annotation 4: category_id 'dict' is not the id"),
        ({"category_id": None, "id": None}, r"annotations\[1\]: category_id 'None' is not the id"),
    ],
)
def test_ids_that_can_be_none_name_the_annotation_and_not_the_folder(folder, change, message):
    with pytest.raises(DataError, match=rf"instances\.json: {message}") as caught:
        folder.load([annotation(1, 1, 7), annotation(4, 1, 7) | change])
    assert "image-dir" not in str(caught.value)


def test_a_panoptic_file_is_called_so(folder):
    segments = [{"id": 5, "category_id": 7, "area": 4, "bbox": [0, 0, 4, 1], "iscrowd": 0}]
    panoptic = {"image_id": 1, "file_name": "a.png", "segments_info": segments}
    with pytest.raises(
        DataError, match=r"annotations\[0\] has segments_info: this is a panoptic file"
    ) as caught:
        folder.load([panoptic])
    assert "expected an instances file" in str(caught.value) and "image-dir" not in str(caught.value)


def test_annotations_that_all_belong_to_another_file(folder):
    with pytest.raises(
        DataError, match=r"none of its 2 annotations .* first is 1, expected 1, 2, 3 as image_id"
    ):
        folder.load([annotation(1, 11, 7), annotation(2, 1, 8)])
    with pytest.raises(DataError, match=r"instances\.json: has no annotations"):
        folder.load([])


def test_pictures_without_the_chosen_class_are_not_blamed_on_the_folder(folder):
    with pytest.raises(DataError, match="3 show none of the classes") as caught:
        folder.load([annotation(1, 1, 7)], classes=("ox",))
    assert "--image-dir" not in str(caught.value)


@pytest.mark.parametrize("size", [(3.0, 4.0), ("3", "4"), ("3.0", 4)])
def test_sizes_in_another_spelling(folder, size):
    folder.images[0].update(height=size[0], width=size[1])
    assert folder.truth(annotation(1, 1, 7)).label.shape == (3, 4)
    folder.images[0]["width"] = "5"
    with pytest.raises(DataError, match=r"a\.jpg: 3x4 pixels .* says \(3, 5\)"):
        folder.truth(annotation(1, 1, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height 0 and width 4"),
        ({"height": 10**12}, "height 1000000000000 and width 4"),
        ({"height": 3.5}, "height 3.5 and width 4"),
        ({"height": "tall"}, "height tall and width 4"),
        ({"width": None}, "height 3 and width None"),
    ],
)
def test_impossible_sizes_concern_the_truth_only(folder, change, message):
    folder.images[0].update(change)
    coco = folder.load([annotation(1, 1, 7), annotation(2, 2, 2)])
    assert tags_of(coco) == {"a": ["dog"], "sub/a": ["cat"]} and coco.ground_truth("sub/a") is not None
    with pytest.raises(
        DataError, match=rf"instances\.json: images\[0\]: {message} are impossible; expected whole"
    ):
        coco.ground_truth("a")


def test_ids_of_pictures_by_their_place_below_the_folder(folder, tmp_path, monkeypatch):
    folder.images[1]["id"] = 40
    coco = folder.load([annotation(1, 1, 7)])
    (tmp_path / "link").symlink_to(folder.pictures)
    monkeypatch.chdir(tmp_path)
    paths = [
        folder.pictures / "sub" / "a.jpg", Path("pictures/b.png"), Path("link/a.jpg"),
        Path("pictures/../elsewhere/a.jpg"), Path("pictures/c.jpg"),
    ]  # fmt: skip
    # Those that the file does not list are numbered behind all of the file's ids.
    assert coco.coco_image_ids(paths) == [40, 3, 1, 41, 42]


def test_numbers_of_other_pictures_do_not_clash_with_texts_or_negative_ids(folder):
    for entry, key in zip(folder.images, ("9", -4, -7), strict=True):
        entry["id"] = key
    coco = folder.load([annotation(1, -4, 7)])
    assert coco.coco_image_ids([folder.pictures / name for name in ("a.jpg", "b.png", "x.png", "y.png")]) == [
        "9", -7, 10, 11,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ('{"images": [],\n "annotations": [}\n', r"line 2, column 18: not JSON"),
        ('{"a": {"segmentation": [[1, 2]]},\n "b" 1}', r"line 2, column 6: not JSON"),
        ("[1, 2]", "not a COCO instances file"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff", "not JSON"),
        (
            '{"categories": [{"id": 1, "name": "x"}], "images": [{"id": 1, "file_name": "a.jpg"}]}',
            "has no list 'annotations'",
        ),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}', "lists no images"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"categories": [3]}', r"categories\[0\] is not an object"),
    ],
)
def test_files_that_are_no_instances_file(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message) as caught:
        load_coco(tmp_path / "x.json", tmp_path)
    assert str(tmp_path / "x.json") in str(caught.value)
    with pytest.raises(DataError, match=r"no\.json: no such file"):
        load_coco(tmp_path / "no.json", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../a.jpg"}, r"images\[0\]: .* holds '\.\.'"),
        ({"file_name": "/etc/a.jpg"}, r"images\[0\]: .* is an absolute path"),
        ({"file_name": "sub\\a.jpg"}, r"images\[0\]: .* holds a backslash"),
        ({"file_name": None}, r"images\[0\]: has no file_name"),
        ({"file_name": "b.jpg"}, r"images\[2\]: another image has the file_name 'b\.png' too"),
        ({"id": 2}, r"images\[1\]: id '2' is missing or used twice"),
        ({"id": None}, r"images\[0\]: id 'None' is missing"),
        ({"id": [1]}, r"images\[0\]: id 'list' is missing"),
    ],
)
def test_impossible_images(folder, change, message):
    folder.images[0].update(change)
    with pytest.raises(DataError, match=message):
        folder.load([annotation(1, 1, 7)])


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "x"}, {"id": 1, "name": "y"}], r"categories\[1\]: id 1 is used twice"),
        ([{"id": 1, "name": "x"}, {"id": "1", "name": "y"}], r"categories\[1\]: id 1 is used twice"),
        ([{"id": 1, "name": " "}], r"categories\[0\]: name ' ' is not a class name"),
        ([{"id": 1, "name": "a\ud800"}], r"categories\[0\]: name .* is not a class name"),
        ([{"id": "one", "name": "x"}], r"categories\[0\]: id 'one' is not a whole number"),
        ([{"id": 1.5, "name": "x"}], r"categories\[0\]: id '1.5' is not a whole number"),
        ([{"id": -1, "name": "x"}], r"categories\[0\]: id '-1' is not a whole number"),
        ([{"id": True, "name": "x"}], r"categories\[0\]: id 'True' is not a whole number"),
    ],
)
def test_impossible_categories(folder, categories, message):
    with pytest.raises(DataError, match=message):
        folder.load([annotation(1, 1, 1)], categories=categories)


def test_none_of_the_pictures_is_there(folder):
    for entry in folder.images:
        entry["file_name"] = f"train2017/{entry['file_name']}"
    with pytest.raises(
        DataError, match=r"none of its 3 images can be used: 3 are not in .*'a'.*does --image-dir fit"
    ):
        folder.load([annotation(1, 1, 7)])


def test_polygons_are_found_again_behind_a_mark_and_wide_characters(folder):
    """Spans are bytes of the file, not characters."""
    folder.load(
        [annotation(1, 1, 7, LEFT), annotation(2, 1, 2, TOP)], info={"note": 'é猫 "segmentation": [[1]]'}
    )
    content = json.dumps(json.loads(folder.path.read_text()), ensure_ascii=False, indent=1)
    folder.path.write_bytes(content.encode("utf-8-sig"))
    truth = load_coco(folder.path, folder.pictures).ground_truth("a")
    assert truth.instances.masks.sum((1, 2)).tolist() == [6, 4]


def test_a_file_that_changed_since_it_was_read(folder):
    coco = folder.load([annotation(1, 1, 7, LEFT)])
    folder.path.write_text("{}")
    with pytest.raises(DataError, match="annotation 1: its polygons are damaged, or the file has changed"):
        coco.ground_truth("a")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PLACES = st.sampled_from(
    [("images", "id"), ("images", "file_name"), ("images", "height"), ("images", None)]
    + [
        ("annotations", key)
        for key in ("id", "image_id", "category_id", "segmentation", "bbox", "iscrowd", None)
    ]
    + [("categories", key) for key in ("id", "name", None)]
)


@settings(deadline=None, max_examples=100)
@given(place=PLACES, value=VALUES)
def test_any_value_anywhere_is_read_or_explained(tmp_path_factory, place, value):
    folder = Folder(tmp_path_factory.mktemp("any"), ("a.png",))
    content = {"images": folder.images, "annotations": [annotation(1, 1, 7)], "categories": CATEGORIES}
    content = json.loads(json.dumps(content))
    key, inner = place
    if inner is None:
        content[key] = value
    else:
        content[key][0][inner] = value
    folder.path.write_text(json.dumps(content))
    try:
        coco = load_coco(folder.path, folder.pictures)
        truth = coco.ground_truth("a")
    except DataError as error:
        assert str(folder.path) in str(error)
        return
    assert truth is None or truth.label.shape == (3, 4)
