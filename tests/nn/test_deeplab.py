from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.nn.backbone import build_backbone
from irn_pipeline.nn.segmenters.deeplab import DeepLabV3, label_components, label_loss
from irn_pipeline.ops.crf_soft import dense_crf_probabilities

NUM_CLASSES = 2
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@dataclass(frozen=True)
class LabelTarget:
    """The part of a target that the model learns from."""

    label: torch.Tensor


def make_model(**options):
    torch.manual_seed(0)
    return DeepLabV3(num_classes=NUM_CLASSES, backbone="resnet18", **options)


@pytest.fixture(scope="module")
def asked():
    """A model that is only asked, never trained."""
    return make_model().eval()


def label_of(size, value=1):
    label = torch.zeros(size, dtype=torch.uint8)
    label[size[0] // 4 : size[0] // 2 + 1, size[1] // 4 :] = value
    label[-1] = 255
    return LabelTarget(label)


def scene(seed):
    """A red or a green square on grey, and its label."""
    rng = np.random.default_rng(seed)
    image = torch.full((3, 48, 64), 0.5) + 0.02 * torch.from_numpy(rng.standard_normal((3, 48, 64))).float()
    label = torch.zeros(48, 64, dtype=torch.uint8)
    y, x, class_id = rng.integers(0, 24), rng.integers(0, 32), seed % 2
    image[:, y : y + 24, x : x + 32] = torch.eye(3)[class_id][:, None, None]
    label[y : y + 24, x : x + 32] = class_id + 1
    return image.clamp(0, 1), LabelTarget(label)


# --- the stride ---


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_features_are_those_of_the_plain_network_at_its_own_places(name):
    torch.manual_seed(0)
    plain = get_model(name, weights=None).eval()
    dilated = build_backbone(name, last_stride=8).eval()
    dilated.load_state_dict({key: v for key, v in plain.state_dict().items() if not key.startswith("fc.")})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = plain.maxpool(plain.relu(plain.bn1(plain.conv1(image))))
        for layer in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
            features = layer(features)
        found = dilated(image)[-1]
    assert found.shape[-2:] == (8, 12)
    assert (found[..., ::4, ::4] - features).abs().max() < 1e-5 * features.max()


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_the_output_stride_is_that_of_the_logits_and_leaves_maps_to_begin_anew_with_at_16(backbone):
    for stride, cells in ((16, (3, 5)), (8, (5, 9))):
        model = DeepLabV3(num_classes=NUM_CLASSES, backbone=backbone, output_stride=stride).eval()
        image = torch.rand(3, 40, 72)
        with torch.no_grad():
            assert model._logits(image[None]).shape == (1, NUM_CLASSES + 1, *cells)
            assert model(image[None]).shape[-2:] == (40, 72)
        assert model.paired_activation_maps(image).shape == (NUM_CLASSES, 3, 5)


def test_there_is_no_other_stride():
    with pytest.raises(ConfigError, match="output_stride must be 16 or 8, got 4"):
        make_model(output_stride=4)
    with pytest.raises(ConfigError, match="--output-stride 8 needs another"):
        DeepLabV3(num_classes=1, backbone="vit_tiny_patch16_224", output_stride=8)


# --- the loss ---


def log_odds(probability, label, size):
    """Logits that give the true label this probability in every pixel, the other two sharing the rest."""
    logits = torch.full((3, *size), float(np.log((1 - probability) / 2)))
    logits[label] = float(np.log(probability))
    return logits


def test_loss_of_undecided_logits_is_the_log_of_the_number_of_labels():
    labels = torch.tensor([[[0, 1, 2, 255]]])
    for balance in (False, True):
        value = label_loss(torch.zeros(1, 3, 1, 4), labels, balance_classes=balance)
        assert value.item() == pytest.approx(np.log(3))


def test_balance_gives_background_and_foreground_the_same_weight():
    # Six pixels of background that are half sure, one of class 1 and one of class 2 that are a quarter sure.
    labels = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 2, 255]]])
    logits = log_odds(0.5, 0, (1, 9))[None]
    logits[0, :, 0, 6], logits[0, :, 0, 7] = log_odds(0.25, 1, (1,))[:, 0], log_odds(0.25, 2, (1,))[:, 0]
    plain, balanced = (label_loss(logits, labels, balance_classes=b).item() for b in (False, True))
    assert plain == pytest.approx((6 * np.log(2) + 2 * np.log(4)) / 8)
    assert balanced == pytest.approx((np.log(2) + np.log(4)) / 2)


def test_balance_is_kept_picture_by_picture():
    # One picture of background alone (loss log 2), one of 1 + 3 pixels (log 4), one of which nothing is known.
    labels = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 1, 1]], [[255, 255, 255, 255]]])
    logits = torch.stack([log_odds(0.5, 0, (1, 4)), log_odds(0.25, 1, (1, 4)), torch.randn(3, 1, 4)])
    logits[1, :, 0, 0] = log_odds(0.25, 0, (1,))[:, 0]
    plain, balanced = (label_loss(logits, labels, balance_classes=b).item() for b in (False, True))
    assert plain == pytest.approx((4 * np.log(2) + 4 * np.log(4)) / 8)
    assert balanced == pytest.approx((np.log(2) + np.log(4)) / 2)
    shuffled = label_loss(logits[[2, 1, 0]], labels[[2, 1, 0]], balance_classes=True)
    assert shuffled.item() == pytest.approx(balanced)


@pytest.mark.parametrize("balance", [False, True])
def test_pixels_of_unknown_label_get_no_gradient(balance):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = label_loss(logits, torch.tensor([[[0, 255], [255, 2]]]), balance_classes=balance)
    (gradient,) = torch.autograd.grad(loss, logits)
    moved = gradient.abs().sum(1)[0] > 0
    assert moved.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("balance", [False, True])
def test_picture_of_which_nothing_is_known_gives_zero_with_a_graph(balance):
    model = make_model(balance_classes=balance).train()
    unknown = LabelTarget(torch.full((32, 40), 255, dtype=torch.uint8))
    value = model.losses([torch.rand(3, 32, 40)], [unknown])["cross_entropy"]
    assert value.item() == 0
    value.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and not g.any() for g in gradients)


# --- training ---


@pytest.mark.parametrize("sizes", [[(48, 64)], [(16, 16)], [(1, 1)], [(33, 50), (48, 40), (20, 64)]])
def test_losses_of_one_picture_of_small_ones_and_of_mixed_sizes(sizes):
    model = make_model().train()
    losses = model.losses([torch.rand(3, *size) for size in sizes], [label_of(size) for size in sizes])
    assert list(losses) == ["cross_entropy"]
    value = losses["cross_entropy"]
    assert value.shape == () and value.dtype == torch.float32
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_padding_is_not_learned_from():
    model = make_model(balance_classes=False).train()
    model.head[0].project[3].p = 0.0  # dropout
    seen: dict[str, torch.Tensor] = {}
    model.register_forward_hook(lambda module, inputs, output: seen.update(images=inputs[0], logits=output))
    pictures, targets = (
        [torch.rand(3, 20, 64), torch.rand(3, 33, 40)],
        [label_of((20, 64)), label_of((33, 40))],
    )
    value = model.losses(pictures, targets)["cross_entropy"]
    assert seen["images"].shape == (2, 3, 33, 64)
    torch.testing.assert_close(seen["images"][0, :, :20], (pictures[0] - MEAN) / STD)
    assert not seen["images"][0, :, 20:].any() and not seen["images"][1, :, :, 40:].any()
    parts = [
        F.cross_entropy(logits[None, :, : t.label.shape[0], : t.label.shape[1]], t.label[None].long(),
                        ignore_index=255, reduction="sum")
        for logits, t in zip(seen["logits"], targets, strict=True)
    ]  # fmt: skip
    known = sum(int((t.label != 255).sum()) for t in targets)
    assert value.item() == pytest.approx(sum(part.item() for part in parts) / known, rel=1e-5)


def test_losses_are_float32_and_close_under_autocast():
    model = make_model()
    model.eval()  # no dropout, so that the two can be compared
    images, targets = [torch.rand(3, 32, 32)], [label_of((32, 32))]
    exact = model.losses(images, targets)["cross_entropy"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = model.losses(images, targets)["cross_entropy"]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.05)


def test_every_part_learns_but_the_batch_norms_of_the_backbone():
    model = make_model().train()
    statistics = {k: v.clone() for k, v in model.backbone.state_dict().items() if "running" in k}
    sum(model.losses([torch.rand(3, 48, 64)], [label_of((48, 64))]).values()).backward()
    for part in (
        model.backbone.conv1,
        model.backbone.layer4[0].conv1,
        model.head[0].convs[4][1],
        model.head[4],
    ):
        assert part.weight.grad.abs().sum() > 0
    assert all(torch.equal(model.backbone.state_dict()[k], v) for k, v in statistics.items())
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)
    assert not [m for m in model.head.modules() if isinstance(m, nn.BatchNorm2d)]


def test_result_of_a_picture_does_not_depend_on_its_batch():
    model = make_model().train()
    model.head[0].project[3].p = 0.0  # dropout
    images = torch.randn(3, 3, 48, 64)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.eval()(images), alone, atol=1e-4, rtol=1e-4)


def test_param_groups_hold_every_learning_parameter_once():
    model = make_model()
    body, head = model.param_groups(0.01)
    assert (body["lr"], head["lr"]) == (0.01, pytest.approx(0.1))
    grouped = [id(p) for group in (body, head) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_learns_two_pictures_of_two_classes():
    model = make_model().train()
    images, targets = zip(scene(1), scene(2), strict=True)
    optimiser = torch.optim.SGD(model.param_groups(1e-3), lr=1e-3, momentum=0.9)
    for step in range(12):
        optimiser.zero_grad()
        sum(model.losses(images, targets, step / 12).values()).backward()
        optimiser.step()
    model.eval()
    for image, target, class_id in zip(images, targets, (1, 0), strict=True):
        truth = target.label.numpy()
        predicted = model.predict_with_label(image)[1]
        assert (predicted[truth > 0] == class_id + 1).mean() > 0.8
        assert (predicted == truth).mean() > 0.85
        best = model.predict(image).select(np.array([0]))
        assert best.class_ids.tolist() == [class_id] and 0.6 < best.scores[0] <= 1
        assert (best.masks[0] & (truth > 0)).sum() / (best.masks[0] | (truth > 0)).sum() > 0.5


# --- prediction ---


def test_label_is_the_best_of_the_upsampled_logits(asked):
    image = torch.rand(3, 37, 53)
    with torch.no_grad():
        features = asked.backbone(((image - MEAN) / STD)[None])[-1]
        assert features.shape[-2:] == (3, 4)  # stride 16
        logits = F.interpolate(asked.head(features), size=(37, 53), mode="bilinear", align_corners=False)
    label = asked.predict_with_label(image)[1]
    assert label.shape == (37, 53) and label.dtype == np.uint8
    assert (label == logits[0].argmax(0).numpy()).all()
    assert len(np.unique(label)) > 1


def test_instances_and_label_come_from_one_pass(asked):
    passes = []
    hook = asked.head.register_forward_hook(lambda *_: passes.append(1))
    image = torch.rand(3, 37, 53)
    found, label = asked.predict_with_label(image)
    hook.remove()
    assert len(passes) == 1
    assert len(found.class_ids) and (found.masks == asked.predict(image).masks).all()
    for mask, class_id in zip(found.masks, found.class_ids, strict=True):
        assert (label[mask] == class_id + 1).all()


def test_scales_average_probabilities(asked):
    model = make_model(test_scales=(1.0, 0.5, 1.5)).eval()
    image = torch.rand(3, 40, 48)
    with torch.no_grad():
        total = torch.zeros(3, 40, 48)
        for size in ((40, 48), (20, 24), (60, 72)):
            scaled = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)
            logits = model.head(model.backbone((scaled - MEAN) / STD)[-1])
            total = total + F.interpolate(logits, size=(40, 48), mode="bilinear").softmax(1)[0]
    np.testing.assert_allclose(model._probabilities(image), total / 3, atol=1e-5)
    assert np.abs(model._probabilities(image) - asked._probabilities(image)).max() > 1e-3


def test_crf_refines_the_networks_probabilities(asked):
    pytest.importorskip("pydensecrf")
    model = make_model(crf=True).eval()
    image = torch.rand(3, 40, 48)
    image[:, :, 20:] *= 0.1
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    expected = dense_crf_probabilities(pixels, asked._probabilities(image)).argmax(0)
    assert (model.predict_with_label(image)[1] == expected).all()
    assert (expected != asked.predict_with_label(image)[1]).any()
    assert {int(v) for v in np.unique(expected)} - {0} == {
        c + 1 for c in model.predict(image).class_ids.tolist()
    }


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (33, 17)])
def test_predictions_have_the_pictures_own_size(asked, size):
    found = asked.predict(torch.rand(3, *size))
    assert found.size == size and found.masks.dtype == np.bool_
    assert (np.diff(found.scores) <= 0).all()
    assert asked.predict_with_label(torch.rand(3, *size))[1].shape == size


def test_predicting_keeps_no_graph_and_changes_nothing(asked):
    image = torch.rand(3, 32, 32)
    before = image.clone()
    first, second = asked.predict(image), asked.predict(image)
    assert torch.equal(image, before)
    assert (first.masks == second.masks).all() and (first.scores == second.scores).all()
    assert all(p.grad is None for p in asked.parameters())


# --- components ---


def test_components_of_a_small_label():
    label = np.array([[1, 1, 0, 2], [0, 0, 1, 2]], np.uint8)  # the corner at (1, 2) is no neighbour of (0, 1)
    own = np.array([[0.5, 0.75, 0.0, 1.0], [0.0, 0.0, 0.875, 0.5]])
    probabilities = np.where(np.arange(3)[:, None, None] == label, own, 0.0).astype(np.float32)
    found = label_components(label, probabilities)
    assert found.scores.tolist() == [0.875, 0.75, 0.625]
    assert found.class_ids.tolist() == [0, 1, 0]
    assert found.masks.astype(int).tolist() == [
        [[0, 0, 0, 0], [0, 0, 1, 0]],
        [[0, 0, 0, 1], [0, 0, 0, 1]],
        [[1, 1, 0, 0], [0, 0, 0, 0]],
    ]


def flood_fill(label):
    """Components of every foreground value as sets of pixels, found by walking."""
    left, found = {(y, x) for y, x in zip(*map(np.ndarray.tolist, np.nonzero(label)), strict=True)}, []
    while left:
        walk = [left.pop()]
        parts = set(walk)
        while walk:
            y, x = walk.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and label[near] == label[y, x]:
                    left.remove(near)
                    parts.add(near)
                    walk.append(near)
        found.append(frozenset(parts))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_components_agree_with_a_walk(seed):
    rng = np.random.default_rng(seed)
    label = np.where(rng.random((9, 11)) < 0.5, rng.integers(0, 4, (9, 11)), 1).astype(np.uint8)
    probabilities = rng.random((4, 9, 11)).astype(np.float32)
    found = label_components(label, probabilities)
    expected = {}
    for parts in flood_fill(label):
        value = int(label[next(iter(parts))])
        expected[parts] = (value - 1, np.mean([probabilities[value][pixel] for pixel in parts]))
    assert len(found) == len(expected) and (np.diff(found.scores) <= 0).all()
    for score, mask, class_id in zip(found.scores, found.masks, found.class_ids, strict=True):
        pixels = frozenset(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True))
        assert expected[pixels] == (class_id, pytest.approx(score, abs=1e-6))


def test_specks_are_left_out():
    label = np.zeros((100, 200), np.uint8)  # 0.05 % are 10 pixels
    label[5, 5:14] = 1
    label[50, 5:15] = 1
    found = label_components(label, np.ones((2, 100, 200), np.float32))
    assert found.masks.sum((1, 2)).tolist() == [10]
    assert found.masks[0, 50, 5]


def test_at_most_a_hundred_and_the_best_of_them():
    label = np.zeros((30, 40), np.uint8)
    label[::2, ::2] = 1  # 300 components of one pixel; 0.05 % are less than one
    probabilities = np.random.default_rng(0).random((2, 30, 40)).astype(np.float32)
    found = label_components(label, probabilities)
    assert len(found) == 100
    np.testing.assert_allclose(found.scores, np.sort(probabilities[1][label == 1])[::-1][:100], rtol=1e-6)


def test_background_alone_gives_no_instance():
    found = label_components(np.zeros((6, 7), np.uint8), np.ones((3, 6, 7), np.float32))
    assert len(found) == 0 and found.size == (6, 7) and found.class_ids.dtype == np.int64


# --- weights and bad input ---


def test_backbone_weights_are_taken_over():
    model, source = make_model(), build_backbone("resnet18")
    source.bn1.running_mean += 1
    model.load_backbone(source)
    for name, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    with pytest.raises(ConfigError, match=r"resnet34.*resnet18"):
        model.load_backbone(build_backbone("resnet34"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 255}, "num_classes"),
        ({"num_classes": 2, "test_scales": ()}, "test_scales"),
        ({"num_classes": 2, "test_scales": (1.0, 0.0)}, "test_scales"),
        ({"num_classes": 2, "test_scales": (float("nan"),)}, "test_scales"),
    ],
)
def test_wrong_parameters_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DeepLabV3(backbone="resnet18", **options)


def test_wrong_labels_are_refused(asked):
    with pytest.raises(DataError, match=r"holds 3, .* 2 classes"):
        asked.losses([torch.rand(3, 32, 32)], [label_of((32, 32), value=3)])
    with pytest.raises(ShapeError, match=r"\(32, 32\)"):
        asked.losses([torch.rand(3, 32, 32)], [label_of((32, 31))])


def test_the_maps_of_a_mirrored_picture_are_mirrored(asked):
    image = torch.randn(3, 48, 64)
    maps = asked.paired_activation_maps(image)
    assert maps.shape == (NUM_CLASSES, 3, 4)
    assert float(maps.min()) >= 0 and float(maps.sum(0).max()) <= 2
    torch.testing.assert_close(asked.paired_activation_maps(image.flip(-1)).flip(-1), maps)
