from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.transforms import v2

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.export.coco_json import CocoWriter, mask_polygons
from irn_pipeline.structures import Instances

NAMES = ("cat", "dog", "naïve 犬")


def instances(masks, class_ids, scores=None, size=(4, 6)):
    scores = np.ones(len(class_ids)) if scores is None else scores
    return Instances(
        np.array(scores, np.float32),
        np.array(masks, np.bool_).reshape(len(class_ids), *size),
        np.array(class_ids, np.int64),
    )


def box(top, left, bottom, right, size=(4, 6)):
    mask = np.zeros(size, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def write(path, pictures, names=NAMES, **options):
    with CocoWriter(path, names, **options) as coco:
        for file_name, size, found in pictures:
            coco.add(file_name, size, found)
    return coco


def load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def random_picture(rng, count, size):
    owners = rng.integers(0, count + 1, size)
    masks = [owners == owner for owner in range(1, count + 1)]
    return instances(masks, rng.integers(0, len(NAMES), count), rng.random(count), size)


def test_one_annotation_by_hand(tmp_path):
    write(tmp_path / "a.json", [("a.jpg", (4, 6), instances([box(1, 2, 3, 6)], [1], [0.25]))])
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}]
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "cat"), (2, "dog"), (3, "naïve 犬")]
    (annotation,) = content["annotations"]
    segmentation = annotation.pop("segmentation")
    assert annotation == {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [2.0, 1.0, 4.0, 2.0], "area": 8, "iscrowd": 0,
        "score": 0.25,
    }  # fmt: skip
    assert segmentation["size"] == [4, 6]
    assert isinstance(segmentation["counts"], str)
    assert content["licenses"] == []
    assert "description" in content["info"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 5), max_size=4))
def test_pycocotools_reads_the_same_masks(tmp_path, seed, counts):
    rng = np.random.default_rng(seed)
    sizes = [tuple(int(n) for n in rng.integers(1, 20, 2)) for _ in counts]
    pictures = [
        (f"{n}.png", size, random_picture(rng, c, size))
        for n, (c, size) in enumerate(zip(counts, sizes, strict=True))
    ]
    writer = write(tmp_path / "all.json", pictures)
    coco = load(tmp_path / "all.json")
    assert len(coco.imgs) == len(pictures) == writer.num_images
    assert sorted(coco.anns) == list(range(1, writer.num_annotations + 1))
    for image_id, (file_name, size, found) in enumerate(pictures, start=1):
        image = coco.imgs[image_id]
        assert (image["file_name"], image["height"], image["width"]) == (file_name, *size)
        expected = found.select(found.masks.any((1, 2)))
        read = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        masks = np.array([coco.annToMask(entry) for entry in read]).reshape(-1, *size)
        np.testing.assert_array_equal(masks, expected.masks)
        assert [entry["category_id"] - 1 for entry in read] == expected.class_ids.tolist()
        assert [entry["score"] for entry in read] == expected.scores.tolist()
        assert [entry["area"] for entry in read] == expected.masks.sum((1, 2)).tolist()
        for entry, mask in zip(read, expected.masks, strict=True):
            rows, columns = np.nonzero(mask)
            left, top, width, height = entry["bbox"]
            assert (top, left) == (rows.min(), columns.min())
            assert (top + height, left + width) == (rows.max() + 1, columns.max() + 1)


def test_given_category_ids(tmp_path):
    found = instances([box(0, 0, 1, 1), box(2, 2, 3, 3)], [2, 0])
    write(tmp_path / "a.json", [("a.jpg", (4, 6), found)], category_ids=[0, 17, 90])
    coco = load(tmp_path / "a.json")
    assert [entry["category_id"] for entry in coco.dataset["annotations"]] == [90, 0]
    assert {i: c["name"] for i, c in coco.cats.items()} == {0: "cat", 17: "dog", 90: "naïve 犬"}
    assert coco.getCatIds(catNms=["dog"]) == [17]


def test_given_image_ids(tmp_path):
    found = instances([box(0, 0, 1, 1)], [0])
    with CocoWriter(tmp_path / "a.json", NAMES) as coco:
        for name, image_id in (("a.jpg", 40), ("b.jpg", 0), ("c.jpg", "text")):
            coco.add(name, (4, 6), found, image_id)
        with pytest.raises(DataError, match=r"d\.jpg: another image of a\.json has its id 40 too"):
            coco.add("d.jpg", (4, 6), found, 40)
    read = load(tmp_path / "a.json")
    assert {key: image["file_name"] for key, image in read.imgs.items()} == {
        40: "a.jpg", 0: "b.jpg", "text": "c.jpg",
    }  # fmt: skip
    assert [entry["image_id"] for entry in read.dataset["annotations"]] == [40, 0, "text"]


def rasterised(polygons, size):
    return rle.decode(rle.merge(rle.frPyObjects(polygons, *size))).astype(bool)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95]))
def test_pycocotools_makes_the_same_mask_of_its_polygons(seed, density):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 24, 2)) < density
    polygons = mask_polygons(mask)
    if not mask.any():
        assert polygons == []
        return
    np.testing.assert_array_equal(rasterised(polygons, mask.shape), mask)
    assert all(len(points) >= 8 for points in polygons)


def test_polygons_of_simple_shapes():
    assert mask_polygons(box(1, 2, 3, 6)) == [[2, 1, 2, 3, 6, 3, 6, 1]]
    assert sorted(mask_polygons(box(0, 0, 1, 1) | box(2, 3, 4, 6))) == [
        [0, 0, 0, 1, 1, 1, 1, 0],
        [3, 2, 3, 4, 6, 4, 6, 2],
    ]
    rows, columns = np.ogrid[:90, :120]
    distance = np.hypot(rows - 40, columns - 60)
    disc, ring = distance < 30, (distance < 30) & (distance > 12)
    assert len(mask_polygons(disc)) == 1
    # A ring is cut through its hole: two polygons, neither of which has one.
    assert len(mask_polygons(ring)) == 2
    for mask in (disc, ring):
        np.testing.assert_array_equal(rasterised(mask_polygons(mask), mask.shape), mask)


def test_polygons_in_the_file_are_the_masks(tmp_path):
    rng = np.random.default_rng(1)
    found = random_picture(rng, 4, (30, 40))
    for polygons in (False, True):
        write(tmp_path / f"{polygons}.json", [("a.png", (30, 40), found)], polygons=polygons)
    packed, outlined = (load(tmp_path / f"{polygons}.json") for polygons in (False, True))
    for plain, drawn in zip(packed.anns.values(), outlined.anns.values(), strict=True):
        assert isinstance(drawn["segmentation"], list)
        np.testing.assert_array_equal(outlined.annToMask(drawn), packed.annToMask(plain))
        assert {**drawn, "segmentation": None} == {**plain, "segmentation": None}


def test_truth_as_its_own_prediction_has_ap_one(tmp_path):
    rng = np.random.default_rng(3)
    pictures = [(f"{n}.png", (40, 50), random_picture(rng, 3, (40, 50))) for n in range(4)]
    write(tmp_path / "a.json", pictures)
    truth = load(tmp_path / "a.json")
    with contextlib.redirect_stdout(io.StringIO()):
        results = truth.loadRes(truth.dataset["annotations"])
        for kind in ("segm", "bbox"):
            evaluation = COCOeval(truth, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[:3].tolist() == pytest.approx([1, 1, 1], abs=1e-12)


def test_empty_pictures_single_pixels_and_crowds_of_instances(tmp_path):
    size = (20, 20)
    pixels = np.eye(400, dtype=np.bool_).reshape(400, *size)[:300]
    many = instances(pixels, [n % 3 for n in range(300)], size=size)
    hollow = instances([box(0, 0, 0, 0), box(0, 0, 1, 1)], [0, 1])
    pictures = [
        ("empty.png", (7, 5), Instances.empty((7, 5))),
        # As a label file without instances says it.
        ("no size.png", (3, 3), Instances.empty((0, 0))),
        ("many.png", size, many),
        ("hollow.png", (4, 6), hollow),
    ]
    writer = write(tmp_path / "a.json", pictures)
    coco = load(tmp_path / "a.json")
    per_picture = [len(coco.getAnnIds(imgIds=[image_id])) for image_id in (1, 2, 3, 4)]
    assert per_picture == [0, 0, 300, 1]
    assert (writer.num_annotations, writer.num_empty) == (301, 1)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    assert [a["bbox"] for a in annotations[18:22]] == [
        [18, 0, 1, 1], [19, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1],
    ]  # fmt: skip
    assert {a["area"] for a in annotations} == {1}
    assert (coco.imgs[2]["height"], coco.imgs[2]["width"]) == (3, 3)


def test_no_picture_at_all_is_a_valid_file(tmp_path):
    write(tmp_path / "a.json", [])
    coco = load(tmp_path / "a.json")
    assert (coco.imgs, coco.anns, len(coco.cats)) == ({}, {}, 3)


def test_file_names_in_any_script_and_in_subfolders(tmp_path):
    names = ["写真/猫 №1.jpg", "a/photo.jpg", "b/photo.jpg", 'quote"\\.jpg', "broken\udce9.jpg"]
    write(tmp_path / "a.json", [(name, (4, 6), instances([box(0, 0, 1, 1)], [2])) for name in names])
    # Plain ASCII: pycocotools opens files in the encoding of the machine.
    assert (tmp_path / "a.json").read_bytes().isascii()
    coco = load(tmp_path / "a.json")
    assert [coco.imgs[image_id]["file_name"] for image_id in range(1, 6)] == names


def test_torchvision_trains_on_it(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    size = (64, 64)
    pictures = []
    for n in range(2):
        name = f"sub{n}/photo.png"
        (tmp_path / name).parent.mkdir()
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / name)
        masks = [box(5, 5, 30, 40, size), box(35, 20, 60, 60, size)]
        pictures.append((name, size, instances(masks, [n, 2], size=size)))
    write(tmp_path / "a.json", pictures)
    with contextlib.redirect_stdout(io.StringIO()):
        plain = CocoDetection(
            str(tmp_path),
            str(tmp_path / "a.json"),
            transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        )
    samples = wrap_dataset_for_transforms_v2(plain, target_keys=("boxes", "labels", "masks"))
    images, targets = zip(*(samples[n] for n in range(2)), strict=True)
    for target, (_, _, found) in zip(targets, pictures, strict=True):
        np.testing.assert_array_equal(target["masks"].numpy() > 0, found.masks)
        assert target["labels"].tolist() == (found.class_ids + 1).tolist()
        assert target["boxes"].tolist() == [[5, 5, 40, 30], [20, 35, 60, 60]]
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    classes = len(NAMES) + 1
    model = MaskRCNN(
        backbone,
        min_size=64,
        max_size=64,
        box_batch_size_per_image=8,
        box_head=TwoMLPHead(256 * 7 * 7, 16),
        box_predictor=FastRCNNPredictor(16, classes),
        mask_head=MaskRCNNHeads(256, (16,), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, classes),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model.roi_heads.mask_predictor.mask_fcn_logits.weight.detach().clone()
    losses = model(list(images), list(targets))
    sum(losses.values()).backward()
    optimizer.step()
    assert set(losses) >= {"loss_mask", "loss_classifier", "loss_box_reg"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_mask"] > 0
    assert not torch.equal(before, model.roi_heads.mask_predictor.mask_fcn_logits.weight)


@pytest.mark.parametrize(
    ("found", "error", "named"),
    [
        (instances([box(0, 0, 1, 1)], [3]), DataError, "class id 3"),
        (instances([box(0, 0, 1, 1)], [-1]), DataError, "class id -1"),
        (instances([box(0, 0, 1, 1)], [0], [np.nan]), DataError, "score nan"),
        (instances([box(0, 0, 1, 1)], [0], [np.inf]), DataError, "score inf"),
        (instances([box(0, 0, 1, 1, (6, 4))], [0], size=(6, 4)), ShapeError, "6x4"),
    ],
)
def test_a_picture_that_is_refused_leaves_no_trace(tmp_path, found, error, named):
    good = instances([box(0, 0, 2, 2)], [0])
    with CocoWriter(tmp_path / "a.json", NAMES) as coco:
        coco.add("good.jpg", (4, 6), good)
        with pytest.raises(error, match=named) as caught:
            coco.add("bad.jpg", (4, 6), found)
        assert "bad.jpg" in str(caught.value)
        coco.add("bad.jpg", (4, 6), good)
    read = load(tmp_path / "a.json")
    assert [image["file_name"] for image in read.imgs.values()] == ["good.jpg", "bad.jpg"]
    assert len(read.anns) == 2


def test_a_file_name_twice(tmp_path):
    with CocoWriter(tmp_path / "a.json", NAMES) as coco:
        coco.add("a.jpg", (4, 6), Instances.empty((4, 6)))
        with pytest.raises(DataError, match=r"a\.jpg: is already in a\.json"):
            coco.add("a.jpg", (4, 6), Instances.empty((4, 6)))


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 2], [-1, 1, 2], [1, 2, 3, 4]])
def test_category_ids_that_cannot_be(tmp_path, ids):
    with pytest.raises(ConfigError, match="ids"):
        CocoWriter(tmp_path / "a.json", NAMES, category_ids=ids)
    assert not (tmp_path / "a.json").exists()


def test_an_interrupted_file_is_not_taken_for_a_whole_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), CocoWriter(tmp_path / "a.json", NAMES) as coco:
        coco.add("a.jpg", (4, 6), instances([box(0, 0, 1, 1)], [0]))
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="Expecting"):
        json.loads((tmp_path / "a.json").read_text())
    with pytest.raises(RuntimeError):
        coco.add("b.jpg", (4, 6), Instances.empty((4, 6)))
