"""What runs on a GPU gives on a device the values of the CPU, and leaves no tensor behind on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_losses import irn_losses
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.nn.segmenters.deeplab import DeepLabV3
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
from irn_pipeline.nn.segmenters.metric_embeddings import MetricEmbeddings
from irn_pipeline.nn.segmenters.semiconv_mask_rcnn import SemiconvMaskRcnn
from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings
from irn_pipeline.ops.affinity import pair_paths
from irn_pipeline.ops.background_search import background_evidence
from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.ops.feature_affinity import spread_maps
from irn_pipeline.ops.labels import labels_from_scores, walk_scores
from irn_pipeline.ops.random_walk import random_walk
from tests.nn.targets import MaskTarget, box, target_of
from tests.pretend_device import pretend_device

DETECTOR: dict[str, Any] = {"short_side": 64, "long_side": 96, "boxes_per_image": 16, "channels": 16}
MODELS: dict[str, Callable[[], Segmenter]] = {
    "mask_rcnn": lambda: MaskRcnnSegmenter(num_classes=2, backbone="resnet18", **DETECTOR),
    "semiconv_mask_rcnn": lambda: SemiconvMaskRcnn(num_classes=2, backbone="resnet18", **DETECTOR),
    "spatial_embeddings": lambda: SpatialEmbeddings(num_classes=2, backbone="resnet18"),
    "metric_embeddings": lambda: MetricEmbeddings(num_classes=2, backbone="resnet18", embedding_dims=8),
    "deeplabv3": lambda: DeepLabV3(num_classes=2, backbone="resnet18"),
}


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def target() -> MaskTarget:
    masks = [box((64, 96), (8, 40), (4, 36)), box((64, 96), (20, 60), (50, 90))]
    return target_of(masks, class_ids=[0, 1], weights=[1.0, 0.5])


def moved(one: MaskTarget, device: torch.device) -> MaskTarget:
    class Moved(MaskTarget):
        label = one.label.to(device)

    return Moved(*(part.to(device) for part in (one.masks, one.class_ids, one.weights, one.ignore)))


def gradients(network: nn.Module, losses: dict[str, Tensor]) -> list[Tensor]:
    network.zero_grad(set_to_none=True)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    return [p.grad.cpu() for p in network.parameters() if p.grad is not None]


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_tensor_that_stays_on_the_cpu_is_noticed():
    with pretend_device() as device:
        there = torch.ones(3, device=device)
        assert (there + 1).device == device
        assert (there.cpu() + torch.ones(3)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)


@pytest.mark.parametrize("name", MODELS)
def test_models_learn_on_a_device_as_on_the_cpu(name):
    torch.manual_seed(0)
    network = MODELS[name]().train()
    images, targets = list(pictures(64, 96)), [target(), target()]
    torch.manual_seed(2)
    expected = network.losses(images, targets, 0.9)
    expected_gradients = gradients(network, expected)
    network.zero_grad(set_to_none=True)
    with pretend_device() as device:
        network = copy.deepcopy(network).to(device)
        torch.manual_seed(2)
        found = network.losses(
            [image.to(device) for image in images], [moved(one, device) for one in targets], 0.9
        )
        assert {loss.device for loss in found.values()} == {device}
        found_gradients = gradients(network, found)
        for key, loss in expected.items():
            assert_same(found[key], loss)
        assert len(found_gradients) == len(expected_gradients) > 10
        for one, other in zip(found_gradients, expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_models_predict_on_a_device_as_on_the_cpu(name):
    torch.manual_seed(0)
    network = MODELS[name]().eval()
    image = pictures(64, 96)[0]
    expected, expected_label = network.predict_with_label(image, min_score=0.0)
    with pretend_device() as device:
        network = copy.deepcopy(network).to(device)
        found, label = network.predict_with_label(image.to(device), min_score=0.0)
    assert np.array_equal(found.masks, expected.masks)
    assert np.allclose(found.scores, expected.scores, atol=1e-5)
    assert np.array_equal(label, expected_label)


def test_classifier_and_its_maps():
    torch.manual_seed(0)
    network = CamNetwork(num_classes=3, backbone="resnet18")
    images = pictures(64, 96)
    expected = network.train()(images)
    expected_gradients = gradients(network, {"loss": expected.sum()})
    maps = network.eval().paired_activation_maps(images[0])
    features = [stage[0] for stage in network.backbone(images[:1])[2:]]
    cam, high_res = merge_scales([maps], (64, 96))
    spread = spread_maps([maps], features, 2.0)
    network.zero_grad(set_to_none=True)
    with pretend_device() as device:
        network = copy.deepcopy(network).to(device)
        found = network.train()(images.to(device))
        for one, other in zip(gradients(network, {"loss": found.sum()}), expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-7)
        assert_same(found, expected)
        found_maps = network.eval().paired_activation_maps(images[0].to(device))
        assert_same(found_maps, maps)
        found_cam, found_high_res = merge_scales([found_maps], (64, 96))
        assert_same(found_cam, cam)
        assert_same(found_high_res, high_res)
        found_features = [stage[0] for stage in network.backbone(images[:1].to(device))[2:]]
        assert_same(spread_maps([found_maps], found_features, 2.0), spread)


def test_irnet_learns_and_predicts():
    torch.manual_seed(0)
    network = IrnNetwork(backbone="resnet18").train()
    images, paths = pictures(64, 96), pair_paths(5)
    label = torch.randint(0, 3, (2, 16, 24), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    logits, displacement = network(images)
    expected = irn_losses(torch.sigmoid(logits), displacement, label, paths)
    expected_gradients = gradients(network, {"total": expected.total})
    predicted = network.eval().predict_with_features(images[0], pad_to=128)
    network.zero_grad(set_to_none=True)
    with pretend_device() as device:
        network = copy.deepcopy(network).to(device).train()
        logits, displacement = network(images.to(device))
        found = irn_losses(torch.sigmoid(logits), displacement, label.to(device), paths)
        assert_same(found.total, expected.total)
        for one, other in zip(gradients(network, {"total": found.total}), expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-7)
        for one, other in zip(
            network.eval().predict_with_features(images[0].to(device), pad_to=128), predicted, strict=True
        ):
            assert one.device == device
            assert_same(one, other)


def test_walk_labels_and_background_search():
    random = np.random.default_rng(0)
    cam = random.random((2, 16, 24), np.float32)
    boundary = random.random((16, 24), np.float32)
    displacement = random.normal(size=(2, 16, 24)).astype(np.float32)
    class_ids, size = np.array([0, 2]), (64, 96)
    features = torch.from_numpy(random.random((8, 4, 6), np.float32))
    walked, owners = walk_scores(cam, class_ids, boundary, displacement, size)
    evidence = background_evidence(walked, torch.from_numpy(boundary), features)
    label, instances = labels_from_scores(walked, owners, size)
    with pretend_device() as device:
        found, found_owners = walk_scores(cam, class_ids, boundary, displacement, size, device=device)
        assert found.device == device
        torch.testing.assert_close(found.cpu(), walked, rtol=1e-4, atol=1e-4)
        assert found_owners.tolist() == owners.tolist()
        found_evidence = background_evidence(
            found, torch.from_numpy(boundary).to(device), features.to(device)
        )
        found_label, found_instances = labels_from_scores(found, found_owners, size)
    assert np.allclose(found_evidence, evidence, atol=1e-3)
    assert (found_label == label).mean() > 0.999
    assert len(found_instances) == len(instances)
    assert (found_instances.masks == instances.masks).mean() > 0.999


def test_the_device_form_of_the_walk_equals_the_cpu_form():
    random = torch.Generator().manual_seed(0)
    maps, boundary = torch.rand(3, 20, 30, generator=random), torch.rand(20, 30, generator=random)
    expected = random_walk(maps, boundary, exp_times=8)
    with pretend_device() as device:
        found = random_walk(maps.to(device), boundary.to(device), exp_times=8).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
