import numpy as np
import pytest
import torch

from irn_pipeline.datasets.mask_samples import SegmentationTarget
from irn_pipeline.nn.backbone import build_backbone
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter, as_torchvision


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MaskRcnnSegmenter(
        num_classes=3, backbone="resnet18", short_side=64, long_side=96, boxes_per_image=16
    )


def target(count: int) -> SegmentationTarget:
    masks = torch.zeros(count, 48, 64, dtype=torch.bool)
    for index in range(count):
        masks[index, 5 : 25 + index, 10 : 30 + 2 * index] = True
    label = torch.zeros(48, 64, dtype=torch.uint8)
    return SegmentationTarget(masks, torch.arange(count) % 3, torch.ones(count), label.bool(), label)


def test_losses_are_finite_and_teach_every_part(model):
    model.train()
    losses = model.losses([torch.rand(3, 48, 64), torch.rand(3, 40, 50)], [target(2), target(0)])
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert model.model.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.abs().sum() > 0
    assert model.model.backbone.body.layer4[0].conv1.weight.grad.abs().sum() > 0


def test_losses_are_float32_under_autocast(model):
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses([torch.rand(3, 48, 64)], [target(1)])
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_predictions_have_the_pictures_own_size(model):
    found = model.eval().predict(torch.rand(3, 37, 53))
    assert found.size == (37, 53)
    assert found.masks.dtype == np.bool_
    assert (np.diff(found.scores) <= 0).all()
    assert set(found.class_ids.tolist()) <= {0, 1, 2}


def test_backbone_weights_are_taken_over(model):
    source = build_backbone("resnet18")
    model.load_backbone(source)
    assert torch.equal(model.model.backbone.body.layer3[1].conv2.weight, source.layer3[1].conv2.weight)


def test_the_default_width_is_torchvisions_own_model():
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    ours = MaskRcnnSegmenter(num_classes=20).model.state_dict()
    peer = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21).state_dict()
    counters = {k for k in peer if k.endswith("num_batches_tracked")}  # frozen batch norms have none
    assert {k: v.shape for k, v in ours.items()} == {k: peer[k].shape for k in peer.keys() - counters}


def test_narrow_heads_have_few_weights():
    wide, narrow = (
        sum(p.numel() for p in MaskRcnnSegmenter(num_classes=3, backbone="resnet18", channels=c).parameters())
        for c in (256, 64)
    )
    body = sum(p.numel() for p in build_backbone("resnet18").parameters())
    assert narrow - body < 0.1 * (wide - body)


@pytest.mark.parametrize(("rows", "columns"), [(slice(5, 25), slice(10, 11)), (slice(5, 6), slice(10, 30))])
def test_an_instance_one_pixel_wide_or_high_is_left_out(model, rows, columns):
    lean = target(2)
    lean.masks[1] = False
    lean.masks[1, rows, columns] = True
    found = as_torchvision(lean)
    assert found["boxes"].tolist() == [[10, 5, 30, 25]]
    assert found["labels"].tolist() == [1]
    assert found["masks"].shape == (1, 48, 64)
    model.train()
    alone = SegmentationTarget(lean.masks[:1], lean.class_ids[:1], lean.weights[:1], lean.ignore, lean.label)
    losses = []
    for one in (lean, alone):
        torch.manual_seed(0)
        losses.append(model.losses([torch.full((3, 48, 64), 0.5)], [one]))
    assert losses[0] == losses[1]


def test_boxes_labels_and_masks_are_those_of_torchvision():
    """Corners lie on the outer edges of the pixels, classes count from 1, the background being 0."""
    masks = torch.zeros(3, 48, 64, dtype=torch.bool)
    masks[0, 5:25, 10:30] = True
    masks[1, 40:48, 0:2] = True
    masks[2, 10, 40] = masks[2, 12, 45] = True  # in two parts
    label = torch.zeros(48, 64, dtype=torch.uint8)
    weights = torch.tensor([1.0, 0.5, 0.25])
    found = as_torchvision(SegmentationTarget(masks, torch.tensor([2, 0, 1]), weights, label.bool(), label))
    assert found["boxes"].tolist() == [[10, 5, 30, 25], [0, 40, 2, 48], [40, 10, 46, 13]]
    assert found["boxes"].dtype == torch.float32
    assert found["labels"].tolist() == [3, 1, 2]
    assert found["labels"].dtype == torch.int64
    assert found["weights"].tolist() == [1.0, 0.5, 0.25]
    assert found["masks"].dtype == torch.uint8
    assert torch.equal(found["masks"].bool(), masks)


def test_a_picture_without_instances_has_an_empty_target():
    found = as_torchvision(target(0))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (0, 4), "labels": (0,), "weights": (0,), "masks": (0, 48, 64)
    }  # fmt: skip
    assert found["boxes"].dtype == torch.float32
