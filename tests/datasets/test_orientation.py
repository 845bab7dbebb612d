"""Which way up pictures are read: as viewers show them, unless the sizes in the data set's files say otherwise."""

import json

import numpy as np
import pytest
from PIL import Image

from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.voc import load_voc
from irn_pipeline.ops.orientation import inverse, turned

SHOWN = np.zeros((40, 60, 3), np.uint8)
SHOWN[:16, :24] = 250  # the bright corner is at the top left


def photograph(path, orientation, shown=SHOWN):
    """A photograph that viewers show as `shown`; its pixels are stored otherwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(turned(shown, inverse(orientation))).save(path, "JPEG", quality=95, exif=exif)
    return path


def is_shown(record, shown=SHOWN):
    pixels = read_image(record.path, record.orientation).astype(int)
    return pixels.shape == shown.shape and np.abs(pixels - shown).mean() < 4


def is_stored(record):
    return is_shown(record, turned(SHOWN, inverse(read_orientation(record.path))))


def read_orientation(path):
    with Image.open(path) as picture:
        return picture.getexif()[0x0112]


def about_exif(loaded):
    """What the only warning about rotations says, without the file and the ids."""
    (found,) = [warning for warning in loaded.warnings if "EXIF" in warning]
    return found.split("); ")[1]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photographs_of_a_table_are_read_as_they_are_shown(tmp_path, orientation):
    photograph(tmp_path / "in" / "a.jpg", orientation)
    photograph(tmp_path / "in" / "b.jpg", 1)
    (tmp_path / "tags.csv").write_text("a.jpg,cat\nb.jpg,cat\n")
    loaded = load_folder_csv(tmp_path / "tags.csv", tmp_path / "in")
    assert [record.orientation for record in loaded.images.records] == [orientation, 1]
    assert all(map(is_shown, loaded.images.records))
    (warning,) = loaded.warnings
    assert warning == (
        f"{tmp_path / 'tags.csv'}: images that carry an EXIF rotation: 1 (a); it is applied, so they are used as "
        "viewers show them"
    )


def coco(folder, orientations, size_of):
    images, annotations = [], []
    for number, orientation in enumerate(orientations):
        photograph(folder / "in" / f"{number}.jpg", orientation)
        size = size_of(orientation)
        sizes = {} if size is None else {"height": size[0], "width": size[1]}
        images.append({"id": number, "file_name": f"{number}.jpg", **sizes})
        corner = [[0, 0, 24, 0, 24, 16, 0, 16]]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": corner})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "coco.json").write_text(json.dumps(content))
    return load_coco(folder / "coco.json", folder / "in")


def stored_size(orientation):
    return (60, 40) if orientation >= 5 else (40, 60)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_coco_sizes_decide(tmp_path, orientation):
    for name, size_of, check, told in (
        ("shown", lambda _: (40, 60), is_shown, "applied to 1, as the sizes in the file say"),
        ("none", lambda _: None, is_shown, "applied to 1 whose sizes do not show it, as viewers do"),
        (
            "stored",
            stored_size,
            is_stored,
            "not applied to 1, whose sizes in the file are those of the stored pixels",
        ),
    ):
        found = coco(tmp_path / name, [orientation], size_of)
        (record,) = found.images.records
        assert check(record), name
        assert about_exif(found) == told
        truth = found.ground_truth("0")
        assert (
            truth is not None and truth.label.shape == read_image(record.path, record.orientation).shape[:2]
        )


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_where_coco_sizes_cannot_tell_pictures_are_as_shown(tmp_path, orientation):
    found = coco(tmp_path, [orientation, 1], stored_size)
    assert all(map(is_shown, found.images.records))
    assert about_exif(found) == "applied to 1 whose sizes do not show it, as viewers do"
    truth = found.ground_truth("0")
    assert truth is not None
    np.testing.assert_array_equal(truth.label == 1, SHOWN[..., 0] > 0)


def test_square_photographs_are_as_shown(tmp_path):
    square = SHOWN[:, :40]
    photograph(tmp_path / "in" / "a.jpg", 6, square)
    (tmp_path / "tags.csv").write_text("a.jpg,cat\n")
    (record,) = load_folder_csv(tmp_path / "tags.csv", tmp_path / "in").images.records
    assert is_shown(record, square)


def test_every_picture_is_decided_alone_and_one_line_tells_all(tmp_path):
    sizes = {6: (40, 60), 8: (60, 40), 3: (40, 60), 1: (40, 60)}
    found = coco(tmp_path, [6, 8, 3, 1], sizes.get)
    assert [record.orientation for record in found.images.records] == [6, 1, 3, 1]
    (warning,) = [warning for warning in found.warnings if "EXIF" in warning]
    assert ": 3 (0, 2, 1); applied to 1, as the sizes in the file say, applied to 1 whose sizes" in warning
    assert warning.endswith("not applied to 1, whose sizes in the file are those of the stored pixels")


def voc(root, orientation, size="", mask=None):
    photograph(root / "JPEGImages" / "a.jpg", orientation)
    (root / "Annotations").mkdir()
    xml = f"<annotation>{size}<object><name>cat</name></object></annotation>"
    (root / "Annotations" / "a.xml").write_text(xml)
    if mask is not None:
        (root / "SegmentationClass").mkdir()
        Image.fromarray(np.zeros(mask, np.uint8)).save(root / "SegmentationClass" / "a.png")
    (record,) = (loaded := load_voc(root, class_names=("cat",))).images.records
    return record, about_exif(loaded)


def xml_size(height, width):
    return f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"


@pytest.mark.parametrize(
    ("orientation", "size", "mask", "check"),
    [
        (6, xml_size(40, 60), None, is_shown),
        (6, xml_size(60, 40), None, is_stored),
        (7, xml_size("60.0", "40.0"), None, is_stored),
        (8, xml_size(0, 0), None, is_shown),
        (8, xml_size(0, 0), (60, 40), is_stored),
        (5, "", (60, 40), is_stored),
        (5, "", (40, 60), is_shown),
        (5, xml_size("x", ""), None, is_shown),
        (6, xml_size("1" * 400, "nan"), None, is_shown),
        (3, xml_size(40, 60), None, is_shown),
    ],
)
def test_voc_sizes_decide(tmp_path, orientation, size, mask, check):
    record, told = voc(tmp_path / "voc", orientation, size, mask)
    assert check(record)
    assert told.startswith("not applied" if check is is_stored else "applied")


def test_unreadable_pictures_are_left_to_those_who_read_them(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe1")
    (tmp_path / "tags.csv").write_text("a.jpg,cat\n")
    loaded = load_folder_csv(tmp_path / "tags.csv", tmp_path / "in")
    assert [record.image_id for record in loaded.images.records] == ["a"]
    assert not any("EXIF" in warning for warning in loaded.warnings)


def test_animations_and_pages_are_told(tmp_path):
    (tmp_path / "in").mkdir()
    frames = [Image.fromarray(np.full((6, 8, 3), grey, np.uint8)) for grey in (40, 200)]
    for name in ("a.gif", "b.tif", "one.tif"):
        more = {} if name == "one.tif" else {"save_all": True, "append_images": frames[1:]}
        frames[0].save(tmp_path / "in" / name, **more)
    (tmp_path / "tags.csv").write_text("a.gif,cat\nb.tif,cat\none.tif,cat\n")
    (warning,) = load_folder_csv(tmp_path / "tags.csv", tmp_path / "in").warnings
    assert warning.endswith("several pages, of which the first image is used: 2 (a, b)")
