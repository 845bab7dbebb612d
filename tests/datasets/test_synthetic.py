import hashlib

import numpy as np
import pytest

from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo, make_picture
from irn_pipeline.datasets.synthetic_shapes import PAINTERS
from irn_pipeline.datasets.voc import load_voc, read_class_names
from irn_pipeline.datasets.voc_truth import VocTruths
from irn_pipeline.errors import DataError

NUM_IMAGES, NUM_HELDOUT = 40, 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    generate_demo(root, num_images=NUM_IMAGES, num_heldout=NUM_HELDOUT)
    return root


@pytest.fixture(scope="module")
def pictures():
    """60 pictures as arrays."""
    return [make_picture(np.random.default_rng([9, 0, index]), (152, 176)) for index in range(60)]


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_a_smaller_set_is_the_beginning(demo, tmp_path):
    generate_demo(tmp_path / "a", num_images=3, num_heldout=2)
    generate_demo(tmp_path / "b", num_images=3, num_heldout=2)
    generate_demo(tmp_path / "c", num_images=3, num_heldout=2, seed=1)
    first, again, other = digests(tmp_path / "a"), digests(tmp_path / "b"), digests(tmp_path / "c")
    assert first == again and len(first) == 5 * 4 + 3
    whole = digests(demo)
    for name in first:
        if "ImageSets" not in name:
            assert whole[name] == first[name]
    for name in ("JPEGImages/train_0000.jpg", "JPEGImages/val_0001.jpg"):
        assert first[name] != other[name]
    assert first["JPEGImages/train_0000.jpg"] != first["JPEGImages/val_0000.jpg"]


def test_lists_names_and_sizes(demo):
    assert read_class_names(demo / "class_names.txt") == DEMO_CLASSES
    train = load_voc(demo, class_names=DEMO_CLASSES)
    heldout = load_voc(demo, image_list="val", class_names=DEMO_CLASSES)
    assert (len(train.images), len(heldout.images)) == (NUM_IMAGES, NUM_HELDOUT)
    assert train.images.records[7].image_id == "train_0007"
    truths = VocTruths.find(demo, len(DEMO_CLASSES))
    assert len(truths.class_masks) == len(truths.object_masks) == NUM_IMAGES + NUM_HELDOUT
    sizes = {read_image(record.path).shape for record in train.images.records}
    assert len(sizes) > NUM_IMAGES // 2
    assert all(152 <= height <= 168 and 176 <= width <= 208 for height, width, _ in sizes)


def test_masks_agree_with_the_tags_and_with_one_another(demo):
    truths = VocTruths.find(demo, len(DEMO_CLASSES))
    for record in load_voc(demo, class_names=DEMO_CLASSES).images.records:
        truth = truths.ground_truth(record.image_id)
        assert truth is not None
        assert read_image(record.path).shape[:2] == truth.label.shape
        assert tuple(np.unique(truth.instances.class_ids)) == record.class_ids
        assert not truth.ignore.any()
        painted = np.zeros_like(truth.label)
        for mask, class_id in zip(truth.instances.masks, truth.instances.class_ids, strict=True):
            painted[mask] = class_id + 1
        np.testing.assert_array_equal(painted, truth.label)
        xml = (demo / "Annotations" / f"{record.image_id}.xml").read_text()
        assert xml.count("<object>") == len(truth.instances)


def test_statistics(pictures):
    counts = np.array([len(picture.class_ids) for picture in pictures])
    assert set(counts) == {1, 2, 3, 4}
    tags = [set(picture.class_ids) for picture in pictures]
    assert all(len(tag) <= 2 for tag in tags)
    several = [len(picture.class_ids) > len(set(picture.class_ids)) for picture in pictures]
    assert np.mean(several) >= 0.3
    assert len(DEMO_CLASSES) == 5
    for class_id in range(len(DEMO_CLASSES)):
        assert np.mean([class_id in tag for tag in tags]) >= 0.1


def test_objects_are_at_least_three_cells_of_16_pixels_wide_and_many_touch_their_like(pictures):
    touching = several = 0
    for picture in pictures:
        label, class_ids = picture.object_label.astype(int), np.array((-1, *picture.class_ids))
        assert set(np.unique(label)) - {0} == set(range(1, len(class_ids))), "no object is hidden"
        for index in range(1, len(class_ids)):
            rows, columns = np.nonzero(label == index)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 40
        several += len(class_ids) > 2
        pairs = [(label[1:], label[:-1]), (label[:, 1:], label[:, :-1])]
        touching += any(((a != b) & (a > 0) & (class_ids[a] == class_ids[b])).any() for a, b in pairs)
    assert 0.3 * several < touching < 0.8 * several


def test_objects_stand_out_from_their_surroundings(pictures):
    """Borders must be visible: colours inside and just outside of most objects differ."""
    distances = []
    for picture in pictures[:40]:
        for index in range(1, len(picture.class_ids) + 1):
            mask = picture.object_label == index
            inside = picture.image[mask].mean(0)
            outside = picture.image[picture.object_label == 0].mean(0)
            distances.append(np.linalg.norm(inside - outside))
    assert np.median(distances) > 30


@pytest.mark.parametrize("name", DEMO_CLASSES)
def test_sprites_fill_their_square_and_vary(name):
    sprites = [PAINTERS[name](np.random.default_rng(seed), 48, 1.0) for seed in range(8)]
    for sprite in sprites:
        assert sprite.colour.shape == (48, 48, 3) and sprite.colour.dtype == np.float32
        assert 0.2 < sprite.mask.mean() < 0.8
        assert sprite.alpha.min() == 0 and sprite.alpha.max() == 1
        assert ((sprite.alpha > 0.1) & (sprite.alpha < 0.9)).any(), "borders are smooth"
        assert (sprite.colour <= 255 * sprite.alpha[..., None] + 1e-3).all()
    opposite = PAINTERS[name](np.random.default_rng(0), 48, 1.0 + np.pi)
    np.testing.assert_array_equal(opposite.alpha, sprites[0].alpha)
    assert np.abs(opposite.colour - sprites[0].colour).mean() > 1, "the light comes from another side"
    colours = np.array([s.colour[s.mask].mean(0) for s in sprites])
    assert np.ptp(colours, axis=0).max() > 30


@pytest.mark.parametrize(
    "options",
    [
        {"num_images": 0},
        {"num_heldout": -1},
        {"seed": -1},
        {"min_size": (32, 64)},
        {"min_size": (150, 150), "max_size": (100, 300)},
    ],
)
def test_impossible_requests(tmp_path, options):
    with pytest.raises(DataError):
        generate_demo(tmp_path / "demo", **options)
    assert not (tmp_path / "demo").exists()


def test_small_pictures_work_and_a_file_in_the_way_is_reported(tmp_path):
    generate_demo(tmp_path / "demo", num_images=3, num_heldout=0, min_size=(64, 64), max_size=(64, 70))
    assert len(load_voc(tmp_path / "demo", class_names=DEMO_CLASSES).images) == 3
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        generate_demo(tmp_path / "file", num_images=1)
