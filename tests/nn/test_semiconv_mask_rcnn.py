"""Mask R-CNN with semi-convolutional embeddings: what it adds to the plain model, and that it adds nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from irn_pipeline.errors import CheckpointError, ShapeError
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
from irn_pipeline.nn.segmenters.semiconv_mask_rcnn import SemiconvMaskRcnn
from irn_pipeline.nn.segmenters.semiconv_roi_heads import RoiTargets, make_roi_targets
from tests.nn.targets import MasksOnly, MaskTarget, box, target_of

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "backbone": "resnet18",
    "short_side": 64,
    "long_side": 96,
    "boxes_per_image": 16,
}
SMALL |= {"channels": 16}
PLAIN_LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
NEW_LOSSES = {"loss_kernel", "loss_embedding"}


def target(*boxes, size=(128, 128), weight=1.0, ignore=None) -> MaskTarget:
    """Rectangles (top, left, bottom, right) of classes 0, 1, 2, 0 ..."""
    masks = [box(size, (top, bottom), (left, right)) for top, left, bottom, right in boxes]
    class_ids, weights = [index % 3 for index in range(len(boxes))], [weight] * len(boxes)
    return target_of(masks, size, class_ids=class_ids, weights=weights, ignore=ignore, kind=MasksOnly)


def picture(*size, seed=0) -> Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


def losses_of(model, images, targets, seed=3):
    """Losses with the same sampled boxes every time."""
    torch.manual_seed(seed)
    return model.train().losses(images, targets)


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return MaskRcnnSegmenter(**SMALL)


@pytest.fixture
def model(plain):
    torch.manual_seed(1)
    network = SemiconvMaskRcnn(**SMALL)
    network.load_trained(plain.state_dict())
    return network


def test_losses_teach_every_part(model):
    losses = losses_of(
        model, [picture(128, 128), picture(100, 150)], [target((9, 9, 70, 60)), target(size=(100, 150))]
    )
    assert set(losses) == PLAIN_LOSSES | NEW_LOSSES
    assert all(v.ndim == 0 and torch.isfinite(v) and v > 0 for v in losses.values())
    sum(losses.values()).backward()
    heads = model.model.roi_heads
    for part in (
        heads.embedding.layers[0].weight,
        heads.embedding.layers[2].weight,
        heads.log_sigma,
        heads.mask_predictor.mask_fcn_logits.weight,
        model.model.backbone.body.layer4[0].conv1.weight,
    ):
        assert torch.isfinite(part.grad).all()
        assert part.grad.abs().sum() > 0


def test_losses_are_float32_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, [picture(64, 64)], [target((5, 5, 40, 50), size=(64, 64))])
        found = model.eval().predict(picture(64, 64))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert found.size == (64, 64)


def test_pictures_without_instances_give_zero_and_a_graph(model):
    losses = losses_of(model, [picture(90, 70)], [target(size=(90, 70))])
    assert all(losses[name] == 0 for name in ("loss_mask", *NEW_LOSSES))
    sum(losses.values()).backward()
    heads = model.model.roi_heads
    for part in (*heads.embedding.parameters(), *heads.mask_predictor.parameters(), heads.log_sigma):
        assert part.grad is not None
        assert not part.grad.any()


def test_predictions_have_the_pictures_own_size(model):
    found = model.eval().predict(picture(75, 106))
    assert found.size == (75, 106)
    assert 0 < len(found) <= 100
    assert found.masks.dtype == np.bool_
    assert (np.diff(found.scores) <= 0).all()
    assert set(found.class_ids.tolist()) <= {0, 1, 2}


def test_picture_without_a_detection_is_empty(model):
    model.model.roi_heads.score_thresh = 1.1
    found = model.eval().predict(picture(64, 80))
    assert len(found) == 0
    assert found.masks.shape == (0, 64, 80)


def test_infinite_sigma_recovers_mask_rcnn_exactly(plain, model):
    with torch.no_grad():
        model.model.roi_heads.log_sigma.fill_(100)
    images = [picture(128, 150), picture(140, 120)]
    targets = [
        target((9, 9, 70, 60), (80, 80, 120, 140), size=(128, 150)),
        target((3, 3, 99, 99), size=(140, 120)),
    ]
    expected, found = losses_of(plain, images, targets), losses_of(model, images, targets)
    for name in PLAIN_LOSSES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        expected, found = plain.eval().model(images), model.eval().model(images)
    assert sum(len(f["scores"]) for f in found) > 10
    for e, f in zip(expected, found, strict=True):
        assert all(torch.equal(e[name], f[name]) for name in ("boxes", "labels", "scores", "masks"))


def test_kernel_only_lowers_mask_probabilities(plain, model):
    with torch.no_grad():
        model.model.roi_heads.log_sigma.fill_(0)
        expected = plain.eval().model([picture(128, 128)])[0]["masks"]
        found = model.eval().model([picture(128, 128)])[0]["masks"]
    assert (found <= expected + 1e-6).all()
    assert (found < expected - 1e-3).float().mean() > 0.01


def test_weights_multiply_the_losses_about_masks(model):
    boxes = ((9, 9, 70, 60), (60, 70, 120, 120))
    whole, half, none = (
        losses_of(model, [picture(128, 128)], [target(*boxes, weight=w)]) for w in (1.0, 0.5, 0.0)
    )
    for name in ("loss_mask", *NEW_LOSSES):
        torch.testing.assert_close(half[name], whole[name] / 2)
        assert none[name] == 0
    for name in PLAIN_LOSSES - {"loss_mask"}:
        assert none[name] == whole[name]


def test_what_is_ignored_counts_in_no_mask_loss(model):
    box, everything = (9, 9, 70, 60), torch.ones(128, 128, dtype=torch.bool)
    losses = losses_of(model, [picture(128, 128)], [target(box, ignore=everything)])
    # Torchvision's interpolation of a constant rounds: what remains is of that order.
    assert all(losses[name].item() == pytest.approx(0, abs=1e-6) for name in ("loss_mask", *NEW_LOSSES))
    elsewhere = everything.clone()
    elsewhere[:100, :100] = False
    counted = losses_of(model, [picture(128, 128)], [target((9, 9, 60, 60))])["loss_embedding"]
    assert (
        losses_of(model, [picture(128, 128)], [target((9, 9, 60, 60), ignore=elsewhere)])["loss_embedding"]
        == counted
    )


def test_roi_targets_by_hand():
    # A 28-pixel box has cells of one pixel; torchvision samples half a pixel further, between two pixels.
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, :, :14] = 1
    masks[1, :7] = 1  # ignored
    given = [{"masks": masks, "weights": torch.tensor([0.25])}]
    box = torch.tensor([[0.0, 0, 28, 28]])
    made = make_roi_targets(given, [box], [torch.zeros(1, dtype=torch.int64)])
    assert made.masks[0, 20].tolist() == [1] * 13 + [0.5] + [0] * 14
    assert made.known[0, :, 5].tolist() == [0] * 6 + [0.5] + [1] * 21
    assert made.weights.tolist() == [0.25]
    # Errors in ignored rows cost nothing; an error of 3 everywhere has mean 3, times the weight.
    cost = torch.full((1, 28, 28), 3.0)
    cost[:, :6] = 1000
    assert made.mean(cost).item() == pytest.approx(0.75)


def test_mean_over_boxes_is_torchvisions_without_weights():
    cost = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(5, 28, 28)
    assert RoiTargets(ones, ones, torch.ones(5)).mean(cost).item() == pytest.approx(cost.mean().item())
    assert RoiTargets(ones[:0], ones[:0], torch.ones(0)).mean(cost[:0]) == 0


def attraction_of_positions(rectangle, stride, unit=32.0):
    """Mean distance of a rectangle's cells from their mean, for embeddings that are positions only."""
    top, left, bottom, right = rectangle
    cells = [(y, x) for y in range(0, 128, stride) for x in range(0, 128, stride)]
    cells = np.array([(y, x) for y, x in cells if top <= y < bottom and left <= x < right]) / unit
    return np.linalg.norm(cells - cells.mean(0), axis=1).mean()


def test_each_segment_is_judged_on_the_level_of_its_box():
    model = SemiconvMaskRcnn(**{**SMALL, "short_side": 128, "long_side": 128})
    with torch.no_grad():
        for parameter in model.model.roi_heads.embedding.layers[-1].parameters():
            parameter.zero_()
    small, large, tiny = (10, 20, 45, 60), (2, 3, 126, 125), (100, 100, 104, 107)
    fine, coarse = attraction_of_positions(small, 4), attraction_of_positions(large, 8)
    assert attraction_of_positions(large, 4) != pytest.approx(coarse, rel=1e-3)
    for boxes, expected in (
        ([small], fine),
        ([small, large], (fine + coarse) / 2),
        ([tiny], 0),  # two cells say nothing
        ([small, tiny], fine),
    ):
        found = losses_of(model, [picture(128, 128)], [target(*boxes)])["loss_embedding"]
        assert found.item() == pytest.approx(expected, rel=1e-5)
    batch = losses_of(model, [picture(128, 128)] * 2, [target(small, large), target(small)])
    assert batch["loss_embedding"].item() == pytest.approx(((fine + coarse) / 2 + fine) / 2, rel=1e-5)


def test_embeddings_of_all_levels_share_one_coordinate_frame(model):
    with torch.no_grad():
        for parameter in model.model.roi_heads.embedding.layers[-1].parameters():
            parameter.zero_()
        maps = model.model.roi_heads.embeddings(model.model.backbone(picture(128, 192)[None]))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "0": (8, 32, 48),
        "1": (8, 16, 24),
        "2": (8, 8, 12),
        "3": (8, 4, 6),
    }
    for name, skip in (("0", 8), ("1", 4), ("2", 2)):
        assert torch.equal(maps[name][:, :, ::skip, ::skip], maps["3"])
    assert maps["3"][0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]  # 32 pixels are one unit


def test_starts_from_mask_rcnn_with_the_same_names(plain, model):
    own, other = model.state_dict(), plain.state_dict()
    assert set(other) < set(own)
    assert {name.split(".")[2] for name in set(own) - set(other)} == {"embedding", "log_sigma"}
    assert all(torch.equal(own[name], value) for name, value in other.items())
    fresh = SemiconvMaskRcnn(**SMALL)
    fresh.load_state_dict(own)


def test_state_of_another_model_is_refused(plain, model):
    state = plain.state_dict()
    other_classes = MaskRcnnSegmenter(**{**SMALL, "num_classes": 5}).state_dict()
    with pytest.raises(CheckpointError, match=r"3 classes.*instead of"):
        model.load_trained(other_classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shorter = {name: value for name, value in state.items() if "mask_head" not in name}
    with pytest.raises(CheckpointError, match=r"mask_head.*is missing.*and \d+ more"):
        model.load_trained(shorter)
    with pytest.raises(CheckpointError, match=r"embedding\.\S+ is unknown"):
        model.load_trained(model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_instance_of_one_pixel_is_left_out_with_its_weight(model):
    image, box = picture(128, 128), (9, 9, 70, 60)
    both = target((5, 100, 6, 101), box)
    alone = MasksOnly(both.masks[1:], both.class_ids[1:], torch.tensor([0.5]), both.ignore)
    both = MasksOnly(both.masks, both.class_ids, torch.tensor([0.9, 0.5]), both.ignore)
    assert losses_of(model, [image], [both]) == losses_of(model, [image], [alone])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ignore": torch.zeros(128, 127, dtype=torch.bool)}, "128x128 image"),
        ({"masks": torch.zeros(1, 100, 128, dtype=torch.bool)}, "128x128 image"),
        ({"weights": torch.ones(2)}, "1 masks need as many"),
        ({"class_ids": torch.zeros(0, dtype=torch.int64)}, "1 masks need as many"),
    ],
)
def test_target_that_does_not_fit_is_refused(model, wrong, message):
    with pytest.raises(ShapeError, match=message):
        model.losses([picture(128, 128)], [MasksOnly(**{**vars(target((9, 9, 70, 60))), **wrong})])


def test_sigma_learns_without_weight_decay(model):
    groups = model.param_groups(0.1)
    assert [p for group in groups[1:] for p in group["params"]] == [model.model.roi_heads.log_sigma]
    assert groups[1]["weight_decay"] == 0
    assert "weight_decay" not in groups[0]
    learning = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, learning)) == sorted(id(p) for group in groups for p in group["params"])
    assert model.model.roi_heads.log_sigma.exp().item() == pytest.approx(8)


def test_steered_probability_is_that_of_the_kernel_at_the_hard_seed(model):
    """The detections' masks, computed once more from the parts, box by box."""
    heads = model.eval().model.roi_heads
    image = picture(128, 128)
    with torch.no_grad():
        heads.log_sigma.fill_(-1)
        batch, _ = model.model.transform([image])
        features = model.model.backbone(batch.tensors)
        proposals, _ = model.model.rpn(batch, features)
        found = heads(features, proposals, batch.image_sizes)[0][0]
        boxes, labels = [found["boxes"]], found["labels"]
        logits = heads.mask_predictor(
            heads.mask_head(heads.mask_roi_pool(features, boxes, batch.image_sizes))
        )
        pooled = heads.embedding_roi_pool(heads.embeddings(features), boxes, batch.image_sizes)
    for index in range(5):
        own, points = logits[index, labels[index]].flatten(), pooled[index].flatten(1)
        distance = (points - points[:, own.argmax()][:, None]).square().sum(0).sqrt()
        expected = torch.sigmoid(own - distance / np.exp(-1))
        torch.testing.assert_close(found["masks"][index, 0].flatten(), expected, rtol=1e-4, atol=1e-5)
        # To the last digit only where both take the same vector instructions.
        torch.testing.assert_close(found["masks"][index, 0].flatten()[own.argmax()], F.sigmoid(own.max()))
