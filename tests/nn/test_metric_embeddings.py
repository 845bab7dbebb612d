"""The model around the losses and seeds: sizes, schedules, gradients, and masks from known embeddings."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2.functional import normalize

from irn_pipeline.errors import ConfigError
from irn_pipeline.nn.backbone import build_backbone
from irn_pipeline.nn.segmenters.metric_embeddings import MetricEmbeddings
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.structures import IMAGENET_MEAN, IMAGENET_STD


class PictureTarget:
    """Vertical bars of alternating classes."""

    def __init__(self, size: tuple[int, int], count: int, *, ignored: bool = False) -> None:
        self.masks = torch.zeros(count, *size, dtype=torch.bool)
        for index in range(count):
            self.masks[index, 8:-8, 16 * index + 4 : 16 * index + 16] = True
        self.class_ids = torch.arange(count) % 2
        self.weights = torch.ones(count)
        self.ignore = torch.full(size, ignored)
        self.label = torch.zeros(size, dtype=torch.uint8)


def build(**values: object) -> MetricEmbeddings:
    torch.manual_seed(0)
    return MetricEmbeddings(num_classes=2, backbone="resnet18", embedding_dims=8, **values)


@pytest.fixture(scope="module")
def model():
    return build()


def gradient(model: MetricEmbeddings, loss: Tensor, name: str) -> float:
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    grad = model.get_parameter(name).grad
    return 0.0 if grad is None else float(grad.abs().sum())


def test_both_losses_teach_the_network_and_their_own_head_only(model):
    model.train()
    images = [torch.rand(3, 48, 64), torch.rand(3, 48, 64)]
    losses = model.losses(images, [PictureTarget((48, 64), 3), PictureTarget((48, 64), 1)], 0.9)
    assert set(losses) == {"loss_embedding", "loss_class"}
    assert torch.isfinite(sum(losses.values()))
    first_layer = "features.backbone.layer1.0.conv1.weight"
    assert gradient(model, losses["loss_embedding"], first_layer) > 0
    assert gradient(model, losses["loss_embedding"], "embedding_head.weight") > 0
    assert gradient(model, losses["loss_embedding"], "class_head.weight") == 0
    assert gradient(model, losses["loss_class"], first_layer) > 0
    assert gradient(model, losses["loss_class"], "class_head.weight") > 0
    # the targets come from the embeddings, but no gradient goes back to them
    assert gradient(model, losses["loss_class"], "embedding_head.weight") == 0


def test_class_loss_waits_for_the_embeddings(model):
    model.train()
    values = []
    for progress in (0.1, 0.4, 0.8):
        torch.manual_seed(5)
        image, target = torch.rand(3, 48, 64), PictureTarget((48, 64), 2)
        values.append(model.losses([image], [target], progress)["loss_class"].item())
    assert values[0] == 0
    assert values[2] > 0 and values[1] == pytest.approx(values[2] / 2)


def test_losses_are_float32_under_autocast(model):
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses([torch.rand(3, 48, 64)], [PictureTarget((48, 64), 2)], 0.5)
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_pictures_of_mixed_sizes_without_instances_or_knowledge(model):
    model.train()
    sizes = [(48, 64), (41, 30), (17, 70)]
    targets = [
        PictureTarget(sizes[0], 3),
        PictureTarget(sizes[1], 0),
        PictureTarget(sizes[2], 1, ignored=True),
    ]
    losses = model.losses([torch.rand(3, *size) for size in sizes], targets, 0.9)
    model.zero_grad()
    sum(losses.values()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads) and any(grad.any() for grad in grads)


def test_a_picture_of_which_nothing_is_known_teaches_nothing(model):
    model.train()
    losses = model.losses([torch.rand(3, 32, 32)], [PictureTarget((32, 32), 1, ignored=True)], 0.9)
    assert [value.item() for value in losses.values()] == [0, 0]
    model.zero_grad()
    sum(losses.values()).backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_one_pixel_instances_and_more_than_255_of_them(monkeypatch, model):
    model.train()
    monkeypatch.setattr(model, "points_per_instance", 2)
    target = PictureTarget((144, 144), 0)
    target.masks = torch.zeros(300, 144, 144, dtype=torch.bool)
    for index in range(300):
        target.masks[index, 4 + 8 * (index // 18), 4 + 8 * (index % 18)] = True
    target.class_ids, target.weights = torch.arange(300) % 2, torch.rand(300)
    losses = model.losses([torch.rand(3, 144, 144)], [target], 0.9)
    assert torch.isfinite(sum(losses.values())) and losses["loss_embedding"] > 0


def test_the_run_seed_decides_the_points(model):
    model.train()
    image, target = torch.rand(3, 48, 64), PictureTarget((48, 64), 2)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(model.losses([image], [target])["loss_embedding"].item())
    assert values[0] == values[1] != values[2]


def known(monkeypatch, model: MetricEmbeddings, embeddings: Tensor, logits: Tensor) -> None:
    monkeypatch.setattr(model, "forward", lambda images: (embeddings[None], logits[None]))


def test_free_embeddings_and_logits_learn_the_instances(monkeypatch, model):
    embeddings = torch.randn(8, 6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = torch.zeros(4, 3, 6, 8, requires_grad=True)
    known(monkeypatch, model, embeddings, logits)
    monkeypatch.setattr(model, "class_points", 48)
    optimizer = torch.optim.Adam([embeddings, logits], 0.1)
    image, target, steps = torch.rand(3, 48, 64), PictureTarget((48, 64), 4), 100
    for step in range(steps):
        optimizer.zero_grad()
        sum(model.losses([image], [target], step / steps).values()).backward()
        optimizer.step()
    found = model.predict(image)
    iou = mask_iou(found.masks[found.scores > 0.5], target.masks.numpy())
    # a bar 12 pixels wide fills two cells of 8, so that 12 / 16 is what can be reached
    assert iou.shape == (4, 4) and iou.max(0).min() > 0.7
    assert found.class_ids[:4].tolist() == target.class_ids[iou.argmax(1)].tolist()


@pytest.fixture
def three_blocks():
    """6 x 8 cells: two blocks of class 1 and one of class 0, ideal embeddings and sure classes."""
    blocks = torch.zeros(3, 6, 8, dtype=torch.bool)
    blocks[0, 1:5, 0:2], blocks[1, 0:3, 4:8], blocks[2, 4:6, 3:7] = True, True, True
    embeddings, logits = torch.zeros(8, 6, 8), torch.zeros(4, 3, 6, 8)
    logits[:, 0] = 6.0
    for index, (block, class_id) in enumerate(zip(blocks, (1, 0, 1), strict=True)):
        embeddings[index, block] = 3.0
        logits[:, 0, block] = 0.0
        logits[:, class_id + 1, block] = 4.0 + index
    return blocks, embeddings, logits


def test_ideal_embeddings_give_the_instances(monkeypatch, model, three_blocks):
    blocks, embeddings, logits = three_blocks
    known(monkeypatch, model, embeddings, logits)
    found = model.predict(torch.rand(3, 45, 61))
    truth = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :45, :61].numpy()
    assert found.class_ids.tolist() == [1, 0, 1]
    # the third block's class has the largest logit
    np.testing.assert_allclose(found.scores, [np.exp(v) / (np.exp(v) + 2) for v in (6, 5, 4)], rtol=1e-5)
    assert mask_iou(found.masks, truth[[2, 1, 0]]).diagonal().min() > 0.95


def test_sure_background_has_no_instance(monkeypatch, model, three_blocks):
    logits = torch.zeros(4, 3, 6, 8)
    logits[:, 0] = 8.0
    known(monkeypatch, model, three_blocks[1], logits)
    found = model.predict(torch.rand(3, 45, 61))
    assert len(found) == 0 and found.size == (45, 61)


def test_seeds_bound_the_number_of_instances(monkeypatch, model):
    monkeypatch.setattr(model, "max_seeds", 5)
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    embeddings = torch.cat([torch.stack([y, x]) * 9, torch.zeros(6, 6, 8)])
    logits = torch.zeros(4, 3, 6, 8)
    logits[:, 1] = 5.0
    known(monkeypatch, model, embeddings, logits)
    found = model.predict(torch.rand(3, 48, 64))
    # every cell is an instance of its own, and interpolation does not lose it
    assert len(found) == 5 and found.masks.sum((1, 2)).min() >= 16


def test_the_threshold_with_the_best_class_bounds_the_mask(monkeypatch, model):
    # squared distances from the first column: 0, 0.3, 1, 1.5, 8 ... where the limits are 1.946, 1.099, 0.511, 0.201
    line = torch.tensor([0, 0.3, 1.0, 1.5, 8, 9, 10, 11]).sqrt()
    embeddings = torch.zeros(8, 6, 8)
    embeddings[0] = line
    widths = []
    for best in range(4):
        logits = torch.zeros(4, 3, 6, 8)
        logits[:, 0] = 9.0
        logits[best, 1, 3, 0] = 12.0
        known(monkeypatch, model, embeddings, logits)
        found = model.predict(torch.rand(3, 48, 64))
        assert len(found) == 1 and found.class_ids.tolist() == [0]
        widths.append(found.masks[0, 28].sum() / 8)
    # columns inside: 4, 3, 2, 1; the edge lies between the outermost one in and the first one out
    for width, columns in zip(widths, (4, 3, 2, 1), strict=True):
        assert columns - 0.5 <= width <= columns + 0.5


def test_connected_masks_leave_out_what_only_looks_alike(monkeypatch, model, three_blocks):
    blocks, embeddings, logits = three_blocks
    embeddings[:] = 0.0
    embeddings[0] = 3.0 * blocks.any(0)
    # equal to the last digit, they would have one seed
    embeddings += 0.01 * torch.randn(8, 6, 8, generator=torch.Generator().manual_seed(0))
    known(monkeypatch, model, embeddings, logits)
    image, truth = torch.rand(3, 48, 64), blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    monkeypatch.setattr(model, "connected", False)
    assert mask_iou(model.predict(image).masks, truth.any(0, keepdims=True)).max() > 0.95
    monkeypatch.setattr(model, "connected", True)
    assert (mask_iou(model.predict(image).masks, truth).max(0) > 0.9).all()


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (9, 100)])
def test_predictions_have_the_pictures_own_size(model, size):
    found = model.eval().predict(torch.rand(3, *size))
    assert found.size == size and found.masks.dtype == np.bool_ and found.scores.dtype == np.float32
    assert len(found) <= 100 and (np.diff(found.scores) <= 0).all() and (found.scores >= 0.05).all()
    assert set(found.class_ids.tolist()) <= {0, 1} and found.masks.any((1, 2)).all()
    assert model.predict_with_label(torch.rand(3, *size))[1].shape == size


def test_coordinates_are_positions_in_two_dimensions(monkeypatch, model):
    image = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        placed = model(image)[0]
        monkeypatch.setattr(model, "coordinates", False)
        difference = placed - model(image)[0]
    # a cell of 8 pixels is a quarter of the unit
    assert torch.allclose(difference[0, 0, :, 3], torch.arange(5) / 4, atol=1e-5)
    assert torch.allclose(difference[0, 1, 2], torch.arange(7) / 4, atol=1e-5)
    assert not difference[0, 2:].any()


def test_stride_and_scales_set_the_grid_and_the_width_of_the_heads():
    model = build(cell_size=4, feature_scales=(0.5, 1.0))
    embeddings, logits = model(torch.rand(2, 3, 41, 30))
    assert embeddings.shape == (2, 8, 11, 8) and logits.shape == (2, 4, 3, 11, 8)
    assert model.embedding_head.in_channels == 2 * model.features.channels
    model.train()
    losses = model.losses([torch.rand(3, 41, 30)], [PictureTarget((41, 30), 1)], 0.9)
    assert torch.isfinite(sum(losses.values()))


def test_dilated_features_are_deeplabs():
    torch.manual_seed(0)
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    own = MetricEmbeddings(num_classes=2, backbone="resnet50", features="dilated", embedding_dims=8).eval()
    own.features.backbone.load_state_dict(reference.state_dict(), strict=False)
    image = torch.rand(1, 3, 41, 30)
    body = create_feature_extractor(reference, ["layer4"])
    with torch.no_grad():
        expected = body(normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD)))["layer4"]
        torch.testing.assert_close(own.features(image), expected)
        assert own(image)[0].shape == (1, 8, 6, 4)
    assert not any(m.training for m in own.train().modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_dilated_features_need_a_resnet():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"--features dilated needs one of resnet18, .* got mobilenetv3"):
        MetricEmbeddings(num_classes=2, backbone="mobilenetv3_small_050", features="dilated")


def test_backbone_weights_are_taken_over(model):
    source = build_backbone("resnet18")
    model.load_backbone(source)
    assert torch.equal(model.features.backbone.layer3[1].conv2.weight, source.layer3[1].conv2.weight)


def test_every_parameter_that_learns_is_in_one_group(model):
    groups = model.param_groups(0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(model.class_head.weight)] == pytest.approx(1.0)
    assert rates[id(model.features.backbone.layer4[0].conv1.weight)] == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"similarities": (0.5, 1.5)}, "similarities"),
        ({"similarities": ()}, "similarities"),
        ({"cell_size": 16}, "cells of 4 or 8"),
        ({"cell_size": 4, "features": "dilated"}, "cells of 8"),
        ({"feature_scales": ()}, "feature_scales"),
        ({"feature_scales": (1.0, 0.0)}, "feature_scales"),
        ({"max_seeds": 0}, "max_seeds"),
        ({"max_seeds": 101}, "max_seeds"),
        ({"min_seediness": 1.5}, "min_seediness"),
        ({"max_iou": -0.1}, "max_iou"),
        ({"background_points": 0}, "background_points"),
        ({"points_per_instance": 0}, "points_per_instance"),
        ({"class_points": 0}, "class_points"),
        ({"diversity": -0.1}, "diversity"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(**values)


def test_an_embedding_needs_room_for_coordinates():
    with pytest.raises(ConfigError, match="embedding_dims"):
        MetricEmbeddings(num_classes=2, backbone="resnet18", embedding_dims=1)
