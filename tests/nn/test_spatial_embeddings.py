import re
from functools import cache

import numpy as np
import pytest
import torch

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.nn.backbone import build_backbone
from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings, SpatialFields
from irn_pipeline.nn.segmenters.spatial_loss import pixel_grid
from tests.nn.targets import MasksOnly, MaskTarget, box, target_of


def target(count: int, size: tuple[int, int], classes: int = 3) -> MaskTarget:
    """Squares of 6 x 6 pixels beside each other."""
    masks = [box(size, (2, 8), (7 * index, 7 * index + 6)) for index in range(count)]
    class_ids = [index % classes for index in range(count)]
    return target_of(masks, size, class_ids=class_ids, kind=MasksOnly)


@cache
def untrained(backbone):
    """One for all tests that do not change it: a ResNet takes long to make."""
    return model(backbone).eval()


def model(backbone="erfnet", classes=3, **options):
    torch.manual_seed(0)
    return SpatialEmbeddings(num_classes=classes, backbone=backbone, **options)


BACKBONES = ["erfnet", "resnet18"]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(1, 1), (37, 53)])
def test_fields_have_the_pictures_size_and_start_at_their_own_pixel(backbone, size):
    fields = untrained(backbone)(torch.rand(2, 3, *size))
    assert fields.seed.shape == (2, 3, *size)
    assert torch.equal(fields.offset, torch.zeros(2, 2, *size))
    assert torch.equal(fields.bandwidth, torch.ones(2, 2, *size))


def test_circular_bandwidth_has_one_channel():
    fields = model(bandwidth="circular").eval()(torch.rand(1, 3, 9, 17))
    assert torch.equal(fields.bandwidth, torch.ones(1, 1, 9, 17))


def test_first_prediction_claims_a_margin_of_5_74_pixels(monkeypatch):
    network = model(classes=1, min_pixels=32).eval()
    forward = network.forward

    def with_one_seed(images):
        fields = forward(images)
        seed = torch.full_like(fields.seed, 0.5)
        seed[0, 0, 30, 30] = 3.0
        return SpatialFields(fields.offset, fields.bandwidth, seed)

    monkeypatch.setattr(network, "forward", with_one_seed)
    found = network.predict(torch.rand(3, 64, 64))
    x, y = np.arange(64) * 2 / 2047, np.arange(64)[:, None] / 1023
    ellipse = (x - x[30]) ** 2 + (y - y[30]) ** 2 < (5.739 / 1023) ** 2
    assert (found.masks[0] == ellipse).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_learns_from_pictures_of_mixed_sizes(backbone):
    network = model(backbone).train()
    for p in network.decoders[0].output_conv.parameters():
        torch.nn.init.normal_(p, 0.5, 0.01)  # at the start zeros keep the gradient from what lies before
    images = [torch.rand(3, 48, 61), torch.rand(3, 40, 50)]
    losses = network.losses(images, [target(3, (48, 61)), target(0, (40, 50))])
    assert set(losses) == {"instance_loss", "bandwidth_loss", "seed_loss"}
    sum(losses.values()).backward()
    learning = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    # torchvision's pyramid has a last layer for its coarser levels too, which nobody reads.
    learning = [(n, p) for n, p in learning if not re.match(r"features\.pyramid\.layer_blocks\.[123]", n)]
    assert [name for name, p in learning if p.grad is None or not torch.isfinite(p.grad).all()] == []
    # A bias just before a batch norm in training has no influence.
    assert [n for n, p in learning if (p.grad == 0).all() and not n.endswith("bias")] == []


def test_losses_of_a_picture_do_not_depend_on_its_padding():
    # In evaluation mode pictures of a batch meet only in the padding.
    network = model().eval()
    small, large = torch.rand(3, 24, 32), torch.rand(3, 40, 48)
    targets = [target(2, (24, 32)), target(3, (40, 48))]
    alone = [network.losses([i], [t]) for i, t in zip((small, large), targets, strict=True)]
    same_size = network.losses([large, large], [targets[1], targets[1]])
    for name, value in same_size.items():
        assert value.item() == pytest.approx(alone[1][name].item(), rel=1e-4)
    both = network.losses([small, large], targets)
    # Offsets and bandwidths are constant at the start, so these terms see the labels alone.
    expected = (alone[0]["instance_loss"] + alone[1]["instance_loss"]) / 2
    assert both["instance_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_are_float32_under_autocast():
    network = model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = network.losses([torch.rand(3, 16, 24)], [target(2, (16, 24))])
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in losses.values())


def test_empty_picture_teaches_only_the_seeds():
    network = model().train()
    losses = network.losses([torch.rand(3, 8, 8)], [target(0, (8, 8))])
    assert losses["instance_loss"].item() == losses["bandwidth_loss"].item() == 0
    assert torch.isfinite(losses["seed_loss"])
    sum(losses.values()).backward()
    pointing, seed = network.decoders
    assert all((p.grad == 0).all() for p in pointing.parameters())
    assert seed.output_conv.weight.grad.abs().sum() > 0


def test_foreground_weights_follow_the_labels_of_training_only():
    network = model()
    network.eval().losses([torch.rand(3, 16, 32)], [target(2, (16, 32))])
    assert network.pixel_counts.sum() == 0
    network.train().losses([torch.rand(3, 16, 32)] * 2, [target(2, (16, 32)), target(1, (16, 32))])
    assert network.pixel_counts.tolist() == [[72, 36, 0], [1024 - 72, 1024 - 36, 1024]]
    assert network.foreground_weights().tolist() == pytest.approx([952 / 72, 988 / 36, 50])
    assert model(classes=1).foreground_weights().tolist() == [10]
    assert model(foreground_weight=3.0).foreground_weights().tolist() == [3, 3, 3]


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (96, 64)])
def test_predictions_have_the_pictures_own_size_and_are_at_most_100(size):
    network = model(min_pixels=2).eval()
    torch.nn.init.normal_(network.decoders[1].output_conv.weight, 0, 5.0)
    found = network.predict(torch.rand(3, *size))
    assert found.size == size
    assert len(found) <= 100
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.scores > 0.25) & (found.scores <= 1)).all()
    assert set(found.class_ids.tolist()) <= {0, 1, 2}
    if size == (96, 64):
        assert len(found) > 0


def clustered(monkeypatch, size, masks, **options):
    """Pixels of each instance that comes from fields of a network that knows the masks."""
    network = model(classes=1, **options).eval()
    offset, wide, seed = torch.zeros(1, 2, *size), torch.zeros(1, 2, *size), torch.full((1, 1, *size), -5.0)
    grid = pixel_grid(size)
    for mask in masks:
        offset[0, :, mask] = (grid[:, mask].mean(1)[:, None] - grid[:, mask]).atanh()
        wide[0, :, mask] = 1.0
        seed[0, :, mask] = 5.0
    monkeypatch.setattr(network, "forward", lambda images: SpatialFields(offset, wide, seed))
    return [int(mask.sum()) for mask in network.predict(torch.rand(3, *size)).masks]


def test_cars_of_200_pixels_in_a_picture_of_cityscapes_are_all_found(monkeypatch):
    size = (1024, 2048)
    places = [(100 * row, 200 * column) for row in range(9) for column in range(10)]
    cars = [box(size, (y + 7, y + 17), (x + 50, x + 70)) for y, x in places]
    assert clustered(monkeypatch, size, cars) == [200] * 90


def test_smallest_instance_is_a_number_of_pixels_whatever_the_picture(monkeypatch):
    for size in ((20, 30), (400, 400)):
        masks = [box(size, (0, 8), (0, 16)), box(size, (10, 20), (0, 13))]  # 128 and 130 pixels
        assert clustered(monkeypatch, size, masks) == [130]
        assert sorted(clustered(monkeypatch, size, masks, min_pixels=127)) == [128, 130]
        assert clustered(monkeypatch, size, masks, min_pixels=130) == []


def test_backbone_weights_are_taken_over():
    network, source = model("resnet18"), build_backbone("resnet18")
    torch.nn.init.constant_(source.layer3[1].conv2.weight, 0.25)
    network.load_backbone(source)
    assert (network.features.backbone.layer3[1].conv2.weight == 0.25).all()
    source.name = "resnet34"
    with pytest.raises(ConfigError, match="weights are of a resnet34, the model has a resnet18"):
        network.load_backbone(source)
    with pytest.raises(ConfigError, match="no backbone to fill"):
        model().load_backbone(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"backbone": "vggg"}, "no backbone is called 'vggg'"),
        ({"bandwidth": "square"}, "'circular' or 'elliptical', got 'square'"),
        ({"seed_threshold": 1.0}, "seed_threshold must be at least 0 and below 1"),
        ({"foreground_threshold": -0.1}, "foreground_threshold must be at least 0"),
        ({"min_pixels": -1}, "min_pixels must be 0 or more, got -1"),
        ({"foreground_weight": 0.0}, "foreground_weight must be a number above 0, got 0.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        model(**options)


def test_targets_and_pictures_that_do_not_fit_are_refused():
    network = model().train()
    with pytest.raises(ShapeError, match="16x24 image needs masks"):
        network.losses([torch.rand(3, 16, 24)], [target(1, (24, 16))])
    with pytest.raises(DataError, match="class id 3"):
        network.losses([torch.rand(3, 16, 32)], [target(4, (16, 32), classes=4)])
    assert network.pixel_counts.sum() == 0
    with pytest.raises(ShapeError, match=r"\(3, H, W\), got \(1, 8, 8\)"):
        network.predict(torch.rand(1, 8, 8))
