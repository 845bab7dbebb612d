import unicodedata

import numpy as np
import pytest
from PIL import Image

from irn_pipeline.datasets.voc_truth import VocTruths
from irn_pipeline.errors import DataError


def write_masks(root, image_id, label, objects=None):
    for folder, values in (("SegmentationClass", label), ("SegmentationObject", objects)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        if values is not None:
            Image.fromarray(np.array(values, np.uint8)).convert("P").save(root / folder / f"{image_id}.png")


def truth_of(root, image_id="a", num_classes=20):
    return VocTruths.find(root, num_classes).ground_truth(image_id)


def test_a_picture_a_person_can_check(tmp_path):
    # Object 2 has two cells of class 3 and one of class 1; object 7 has only unsure cells.
    label = [[1, 1, 255, 0], [3, 3, 1, 0], [255, 0, 255, 0]]
    objects = [[5, 5, 255, 0], [2, 2, 2, 0], [2, 0, 7, 0]]
    write_masks(tmp_path, "a", label, objects)
    truth = truth_of(tmp_path)
    np.testing.assert_array_equal(truth.label, label)
    np.testing.assert_array_equal(truth.instances.class_ids, [2, 0])
    np.testing.assert_array_equal(truth.instances.scores, [1, 1])
    np.testing.assert_array_equal(truth.instances.masks, [np.array(objects) == 2, np.array(objects) == 5])
    np.testing.assert_array_equal(truth.ignore, np.array([[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]], bool))
    assert truth.has_instances


def test_background_only(tmp_path):
    write_masks(tmp_path, "a", np.zeros((3, 5)), np.zeros((3, 5)))
    truth = truth_of(tmp_path)
    assert truth.instances.masks.shape == (0, 3, 5) and truth.has_instances and not truth.ignore.any()


def test_a_class_mask_alone_gives_a_label_without_instances(tmp_path):
    write_masks(tmp_path, "a", [[1, 255, 0]])
    truth = truth_of(tmp_path)
    assert truth.label.tolist() == [[1, 255, 0]] and truth.ignore.tolist() == [[False, True, False]]
    assert truth.instances.masks.shape == (0, 1, 3) and not truth.has_instances


def test_no_truth_without_a_class_mask(tmp_path):
    assert truth_of(tmp_path) is None
    write_masks(tmp_path, "a", None, [[1]])
    assert truth_of(tmp_path) is None
    write_masks(tmp_path, "a", [[1]], [[1]])
    assert truth_of(tmp_path) is not None and truth_of(tmp_path, "../a") is None


def test_suffixes_in_upper_case_and_decomposed_names(tmp_path):
    name = unicodedata.normalize("NFD", "café")
    write_masks(tmp_path, name, [[2, 0]], [[1, 0]])
    for folder in ("SegmentationClass", "SegmentationObject"):
        (tmp_path / folder / f"{name}.png").rename(tmp_path / folder / f"{name}.PNG")
    truth = truth_of(tmp_path, unicodedata.normalize("NFC", "café"))
    assert truth.label.tolist() == [[2, 0]] and truth.instances.class_ids.tolist() == [1]


def test_labels_beyond_the_classes(tmp_path):
    write_masks(tmp_path, "a", [[21, 20]], [[1, 2]])
    with pytest.raises(DataError, match=r"a\.png: label 21 is beyond the 20 classes; .*--class-names"):
        truth_of(tmp_path)
    assert truth_of(tmp_path, num_classes=21).instances.class_ids.tolist() == [20, 19]
    # VOC's colours as grey values, without object masks.
    write_masks(tmp_path, "grey", [[0, 38, 75, 113, 255, 14, 52]])
    with pytest.raises(DataError, match=r"label 38, 52, 75, 113 is beyond .*1 to 20.*not colours"):
        truth_of(tmp_path, "grey")


def test_masks_in_colour_are_refused(tmp_path):
    write_masks(tmp_path, "a", [[1]], [[1]])
    Image.new("RGB", (1, 1), (128, 0, 0)).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(
        DataError, match=r"SegmentationClass/a\.png: .*has colours \(RGB\); store class indices"
    ):
        truth_of(tmp_path)


def test_masks_of_two_sizes(tmp_path):
    write_masks(tmp_path, "a", [[1, 1]], [[1], [1]])
    with pytest.raises(DataError, match=r"2x1 pixels"):
        truth_of(tmp_path)


def test_masks_that_are_no_png_are_told(tmp_path):
    write_masks(tmp_path, "a", [[1, 0]])
    assert VocTruths.find(tmp_path, 20).unread_masks(tmp_path) is None
    masks = tmp_path / "SegmentationClass"
    for name in ("a.npy", "b.JPG", "c.tif"):  # there is a PNG of a
        (masks / name).write_bytes(b"")
    told = VocTruths.find(tmp_path, 20).unread_masks(tmp_path)
    assert told is not None
    assert told.startswith(f"{masks}: masks that are not PNG files and are not read: 2 (b, c)")
