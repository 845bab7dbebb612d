import copy

import pytest
import torch
import torchvision

from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.backbone import build_backbone, fold_batch_norms, load_backbone_weights
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Batch-norm statistics of a trained network are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network.eval()


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 64), ("resnet50", 256)])
def test_strides_and_channels(name, channels):
    network = build_backbone(name)
    with torch.no_grad():
        shapes = [tuple(f.shape) for f in network(torch.zeros(1, 3, 65, 97))]
    sizes = [(17, 25), (17, 25), (9, 13), (5, 7), (5, 7)]
    widths = [64, channels, 2 * channels, 4 * channels, 8 * channels]
    assert shapes == [(1, c, *s) for c, s in zip(widths, sizes, strict=True)]
    assert network.channels == tuple(widths)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folded_batch_norms_keep_the_function(name):
    network = randomised(build_backbone(name))
    folded = fold_batch_norms(copy.deepcopy(network))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        for ours, theirs in zip(folded(image), network(image), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))


def test_gradient_is_cut_after_the_frozen_stages():
    network = CamNetwork(num_classes=3, backbone="resnet18").train()
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert network.backbone.conv1.weight.grad is None
    assert network.backbone.layer2[0].conv1.weight.grad is None
    assert network.backbone.layer3[0].conv1.weight.grad is not None
    assert not network.backbone.layer3[0].bn1.training
    learning = {id(p) for group in network.param_groups(0.1, 10.0) for p in group["params"]}
    assert id(network.backbone.layer2[0].conv1.weight) not in learning
    assert id(network.backbone.layer4[1].conv2.weight) in learning


def moved(network: CamNetwork) -> set[str]:
    """Names of the parameters that one step of training changes."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.param_groups(0.1, 10.0), weight_decay=1e-4)
    network.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return {name for name, p in network.named_parameters() if not torch.equal(before[name], p)}


def test_a_step_moves_all_of_the_learning_stages_batch_norms_included():
    # In the original only the statistics of batch norms are frozen; the gradient is cut after layer2.
    network = randomised(CamNetwork(num_classes=3, backbone="resnet18"))
    statistics = {name: b.clone() for name, b in network.named_buffers()}
    learning = ("backbone.layer3.", "backbone.layer4.", "classifier.")
    assert moved(network) == {name for name, _ in network.named_parameters() if name.startswith(learning)}
    assert all(torch.equal(statistics[name], b) for name, b in network.named_buffers())


def test_from_scratch_everything_moves():
    network = CamNetwork(num_classes=3, backbone="resnet18", frozen_stages=0, frozen_batch_norm=False)
    assert moved(network) == {name for name, _ in network.named_parameters()}


def test_class_scores_are_the_mean_of_the_linear_maps():
    network = CamNetwork(num_classes=4, backbone="resnet18").eval()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        features = network.backbone(image)[-1]
        linear = network.classifier(features).mean(dim=(2, 3))
        assert torch.allclose(network(image), linear, atol=1e-5)
        assert torch.equal(network.activation_maps(image), torch.relu(network.classifier(features)))


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (37, 50), (64, 48)])
def test_irn_takes_any_size_and_mirrors_its_boundary(size):
    network = IrnNetwork(backbone="resnet18").eval()
    image = torch.randn(3, *size)
    boundary, displacement = network.predict(image)
    grid = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
    assert boundary.shape == grid
    assert displacement.shape == (2, *grid)
    assert 0 <= float(boundary.min()) <= float(boundary.max()) <= 1
    mirrored, _ = network.predict(image.flip(-1))
    # The picture and its mirror enter the mean alike, so it mirrors with the picture.
    assert torch.allclose(mirrored.flip(-1), boundary, atol=1e-5)


@pytest.mark.parametrize("large", [0, 2**20])
def test_the_prediction_is_that_of_the_network_on_picture_and_mirror(monkeypatch, large):
    monkeypatch.setattr("irn_pipeline.nn.backbone.LARGE_PICTURE", large)
    torch.manual_seed(3)
    network = IrnNetwork(backbone="resnet18").eval()
    network.mean_shift.running_mean.fill_(0.25)
    image = torch.randn(3, 68, 92)  # multiples of 4: the mirror's cells are the picture's
    boundary, displacement = network.predict(image)
    with torch.no_grad():
        logits, field = network(torch.stack([image, image.flip(-1)]))
    torch.testing.assert_close(boundary, torch.sigmoid((logits[0] + logits[1].flip(-1)) / 2))
    torch.testing.assert_close(displacement, field[0])
    again, _, features = network.predict_with_features(image)
    with torch.no_grad():
        torch.testing.assert_close(network.displacement_field(image[None])[0], field[0])
        torch.testing.assert_close(features, network.backbone(image[None])[-1][0], rtol=1e-3, atol=1e-3)
    assert torch.equal(again, boundary)
    padded = network.predict_with_features(image, pad_to=128)[2]
    assert padded.shape == features.shape
    cams = CamNetwork(num_classes=3, backbone="resnet18").eval()
    with torch.no_grad():
        maps = cams.activation_maps(torch.stack([image, image.flip(-1)]))
        torch.testing.assert_close(cams.paired_activation_maps(image), maps[0] + maps[1].flip(-1))


def test_mean_shift_works_in_evaluation_only():
    network = IrnNetwork(backbone="resnet18")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = network.eval()(image)[1]
        network.mean_shift.running_mean.copy_(torch.tensor([1.5, -2.0]))
        shifted = network(image)[1]
        training = network.train()(image)[1]
    assert torch.allclose(
        plain - shifted, torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand_as(plain), atol=1e-5
    )
    assert torch.allclose(training, plain, atol=1e-5)
    assert not network.backbone.bn1.training


def test_context_adds_two_convolutions_and_lets_a_cell_see_further():
    torch.manual_seed(0)
    published = IrnNetwork(backbone="resnet18").eval()
    torch.manual_seed(0)
    wider = IrnNetwork(backbone="resnet18", displacement_context=True).eval()
    added = wider.state_dict().keys() - published.state_dict().keys()
    assert added == {f"displacement.{i}.context.{part}" for i in (3, 4) for part in ("weight", "bias")}
    assert not published.state_dict().keys() - wider.state_dict().keys()
    assert wider.has_context(wider.state_dict())
    assert not published.has_context(published.state_dict())
    reach = []
    for network in (published, wider):
        features = [
            torch.randn(1, c, 256 // s, 256 // s)
            for c, s in ((64, 4), (64, 4), (128, 8), (256, 16), (512, 16))
        ]
        for norm in network.modules():  # whose statistics are of the whole map
            if isinstance(norm, torch.nn.GroupNorm):
                norm.forward = lambda x: x
        features[-1].requires_grad_()
        network.from_features(features)[1][0, :, 32, 32].sum().backward()
        cells = features[-1].grad.abs().sum((0, 1)).nonzero()
        reach.append(int((cells.amax(0) - cells.amin(0)).max()))
    assert reach == [1, 5], "two cells further on either side"


@pytest.mark.parametrize("context", [False, True])
def test_irn_backbone_never_learns(context):
    network = IrnNetwork(backbone="resnet18", displacement_context=context).train()
    logits, displacement = network(torch.randn(1, 3, 32, 32))
    (logits.sum() + displacement.sum()).backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    groups = network.param_groups(0.1, 10.0)
    assert [g["lr"] for g in groups] == [0.1, 1.0]
    learning = sum(p.numel() for g in groups for p in g["params"])
    assert learning == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_torchvision_weights_load(tmp_path):
    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    network = build_backbone("resnet18")
    load_backbone_weights(network, tmp_path / "weights.pth")
    assert torch.equal(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_cam_network_serves_as_backbone_weights(tmp_path):
    source = CamNetwork(num_classes=2, backbone="resnet18")
    torch.save({"network": source.state_dict()}, tmp_path / "network.pt")
    network = build_backbone("resnet18")
    load_backbone_weights(network, tmp_path / "network.pt")
    assert torch.equal(network.conv1.weight, source.backbone.conv1.weight)


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, [1, 2], {}, {"conv1.weight": "text"}])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        load_backbone_weights(build_backbone("resnet18"), path)


def test_weights_of_another_resnet_are_refused(tmp_path):
    path = tmp_path / "r34.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match="--backbone"):
        load_backbone_weights(build_backbone("resnet50"), path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 not really")
    for name in ("damaged.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_backbone_weights(build_backbone("resnet18"), tmp_path / name)
