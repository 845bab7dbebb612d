"""Seeds equal those of the original implementations (ReCAM, LPCAM, AdvCAM, LayerCAM)."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.seeds import advcam_maths, layercam_maths, lpcam_maths, recam


def tensors(data, *names: str) -> list[Tensor]:
    return [torch.from_numpy(data[name]) for name in names]


def assert_close(actual: Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("prefix", "weight"), [("", 1.0), ("empty_", 0.1)])
def test_recam_losses_and_gradients(golden, prefix, weight):
    data = golden("recam")
    features, classifier, head, tags = tensors(data, "features", "classifier", "head", f"{prefix}tags")
    leaves = [leaf.requires_grad_() for leaf in (features, classifier, head)]
    found = recam.recam_loss(*leaves, tags, weight=weight)
    assert_close(found.multilabel, data[f"{prefix}loss_bce"], 1e-6)
    assert_close(found.softmax, data[f"{prefix}loss_ce"], 1e-6)
    assert_close(found.total, data[f"{prefix}loss"], 1e-6)
    assert_close(found.accuracy, data[f"{prefix}accuracy"], 1e-6)
    found.total.backward()
    for leaf, name in zip(leaves, ("features", "classifier", "head"), strict=True):
        if f"{prefix}grad_{name}" in data:
            assert_close(leaf.grad, data[f"{prefix}grad_{name}"], 1e-6)


def test_recam_maps(golden):
    data = golden("recam")
    features, classifier, head, pair = tensors(data, "features", "classifier", "head", "infer_pair")
    maps = recam.normalised_maps(features, classifier)
    assert_close(maps, data["cams"], 1e-6)
    assert_close(recam.class_features(features, maps), data["pooled"], 1e-6)
    ones = torch.ones_like(head)
    heads = {"cam": (classifier, ones), "head_only": (ones, head), "recam": (classifier, head)}
    for name, (first, second) in heads.items():
        found = recam.product_maps(pair, first, second)
        assert_close(found[0] + found[1].flip(-1), data[f"infer_{name}"], 1e-6)


@pytest.mark.parametrize("class_id", [15, 16])
def test_lpcam_prototypes(golden, class_id):
    data = golden("lpcam_prototypes")
    selected = []
    for picture in range(int(data["n_pictures"])):
        class_ids = data[f"keys{picture}"].tolist()
        if class_id in class_ids:
            features, cams = tensors(data, f"features{picture}", f"high_res{picture}")
            selected.append(lpcam_maths.select_cells(features, cams[class_ids.index(class_id)]))
    centres = []
    for kind, cells in zip(
        ("fg", "bg"), (torch.cat(part) for part in zip(*selected, strict=True)), strict=True
    ):
        assert_close(cells, data[f"{kind}_cells_{class_id}"], 0)
        first = data[f"{kind}_first_{class_id}"]
        clusters = lpcam_maths.kmeans(cells, 5, np.random.default_rng(0), first=first, tolerance=1e-4)
        assert clusters.assigned.tolist() == data[f"{kind}_assigned_{class_id}"].tolist()
        assert_close(clusters.centres, data[f"{kind}_centres_{class_id}"], 1e-5)
        centres.append(clusters.centres)
    (classifier,) = tensors(data, "classifier")
    found = lpcam_maths.select_prototypes(*centres, classifier, class_id)
    assert_close(found.prototypes, data[f"prototypes_{class_id}"], 1e-5)
    assert_close(found.context, data[f"context_{class_id}"], 1e-5)


def test_lpcam_map(golden):
    data = golden("lpcam_map")
    classes = [
        lpcam_maths.Prototypes(*tensors(data, f"prototypes_{k}", f"context_{k}")) for k in data["keys"]
    ]
    assert [len(found.context) for found in classes] == [3, 0]
    pairs = tensors(data, *(f"scale{number}" for number in range(4)))
    maps = [lpcam_maths.lpcam_maps(pair, classes, torch.zeros(2, pair.shape[1])) for pair in pairs]
    height, width = data["size"].tolist()
    cam, high_res_cam = lpcam_maths.merge_lpcam(maps, (height, width))
    assert_close(cam, data["cam"], 1e-5)
    assert_close(high_res_cam, data["high_res"], 1e-5)


def two_convolutions(data) -> tuple[nn.Module, nn.Module, nn.Module]:
    stage1, stage4 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1)
    classifier = nn.Conv2d(10, 4, 1, bias=False)
    network = nn.ModuleDict({"stage1": nn.Sequential(stage1), "stage4": nn.Sequential(stage4)})
    network["classifier"] = classifier
    state = {
        name.removeprefix("net."): torch.from_numpy(data[name]) for name in data if name.startswith("net.")
    }
    network.load_state_dict(state)
    return nn.Sequential(stage1, nn.ReLU()), nn.Sequential(stage4, nn.ReLU()), classifier


def test_advcam(golden):
    data = golden("advcam")
    stage1, stage4, classifier = two_convolutions(data)
    network = nn.Sequential(stage1, stage4, classifier)
    (image,) = tensors(data, "image")
    weights = classifier.weight.detach().flatten(1)
    maps = []
    for number, (scale, size) in enumerate(zip((1, 0.5, 1.5, 2), data["sizes"].tolist(), strict=True)):
        resized = interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        steps = advcam_maths.steps_at(scale)
        assert steps == (13 if scale == 0.5 else 27)
        sums = advcam_maths.advcam_maps(network, resized, data["keys"].tolist(), weights, steps=steps)
        maps.append(sums)
        for position, class_id in enumerate(data["keys"].tolist()):
            name = f"s{number}_c{class_id}"
            assert_close(sums[position], data[f"sum_maps_{name}"], 1e-5)
            climb = advcam_maths.climb(network, resized, class_id, int((weights[class_id] > 0).sum()))
            states = list(islice(climb, steps + 1))
            assert_close(states[0].map, data[f"first_map_{name}"], 1e-5)
            assert_close(states[steps - 1].map, data[f"last_map_{name}"], 1e-5)
            if number == 0:
                assert_close(states[1].pair, data[f"image_{name}_it1"], 1e-5)
                assert_close(states[27].pair, data[f"image_{name}_it27"], 1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())
    cam, high_res_cam = merge_scales(maps, image.shape[1:])
    assert_close(cam, data["cam"], 1e-5)
    assert_close(high_res_cam, data["high_res"], 1e-5)


@pytest.mark.parametrize("class_id", [0, 2])
def test_advcam_gradient(golden, class_id):
    data = golden("advcam")
    stage1, stage4, classifier = two_convolutions(data)
    (image,) = tensors(data, "image")
    pair = torch.stack([image, image.flip(-1)]).requires_grad_()
    logits = classifier(stage4(stage1(pair)))
    current = advcam_maths.pair_map(logits[:, class_id], int((classifier.weight[class_id] > 0).sum()))
    value = advcam_maths.objective(logits, class_id, current, current.detach())
    (gradient,) = torch.autograd.grad(value, pair)
    assert_close(gradient, data[f"gradient_s0_c{class_id}_it0"], 1e-5)


def test_layercam(golden):
    data, network = golden("layercam"), golden("advcam")
    stage1, stage4, classifier = two_convolutions(network)
    (image,) = tensors(network, "image")
    low = stage1(image[None])
    high = stage4(low)
    found = layercam_maths.layercam(classifier(high).mean((2, 3)), [low, high], [0, 2])
    for stage, maps in zip(("stage1", "stage4"), found, strict=True):
        shown = layercam_maths.min_max_map(maps.layercam[0], (16, 20))
        for position, class_id in enumerate((0, 2)):
            name = f"{stage}_c{class_id}"
            assert_close(maps.layercam[0, position], data[f"raw_{name}"], 1e-6)
            assert_close(maps.information[0, position], data[f"positive_gradients_{name}"], 1e-6)
            assert_close(shown[position], data[f"map_{name}"], 1e-6)
