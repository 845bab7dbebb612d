"""Activation maps at 4 scales with mirrors: the stage's own inference against float32 NCHW, picture by picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.case import Arrays, Benchmark, Case, Disagreement, Method, Prepared
from irn_pipeline.activation_maps import prepare_network
from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.datasets.transforms import normalise, resize_image, scaled_size, to_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.seeds import cam
from irn_pipeline.seeds.base import NoParams, Picture
from irn_pipeline.seeds.params import Params

NUM_CLASSES, CLASS_IDS = 20, (3, 11)
_TOLERANCE = 2e-2


def network(case: Case) -> CamNetwork:
    """Random weights, and batch norms with statistics that matter."""
    torch.manual_seed(0)
    built: Any = CamNetwork(num_classes=NUM_CLASSES, backbone=case.network)  # type: ignore[arg-type]
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return built.eval()


def pictures(case: Case) -> list[list[Tensor]]:
    """Generated pictures, each at every scale as (3, H_s, W_s) uint8."""
    made = [make_picture(np.random.default_rng(number), case.size).image for number in range(case.count)]
    sizes = [scaled_size(case.size, scale) for scale in Params().scales]
    return [[resize_image(to_tensor(image), size) for size in sizes] for image in made]


def ours(case: Case) -> Prepared:
    execution = Execution()
    device = execution.torch_device()
    scaled = pictures(case)
    ready = prepare_network(network(case), device)

    @torch.inference_mode()
    def work() -> Arrays:
        with execution.autocast():
            maps = [
                cam.maps(
                    Picture(
                        ready, tuple(normalise(x.to(device)) for x in one), (), list(CLASS_IDS), case.size
                    ),
                    NoParams(),
                    None,
                )
                for one in scaled
            ]
        return [merged.cpu().numpy() for one in maps for merged in merge_scales(one, case.size)]

    return Prepared(work, None, *_needs(case, scaled))


@torch.inference_mode()
def _needs(case: Case, scaled: list[list[Tensor]]) -> tuple[float, float]:
    """Operations and bytes of all convolutions, every number moved once; on tensors without memory."""
    operations, moved = 0.0, 0.0

    def count(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations, moved
        operations += 2.0 * output.numel() * module.weight[0].numel()
        moved += 4.0 * (inputs[0].numel() + output.numel() + module.weight.numel())

    with torch.device("meta"):
        shapes = CamNetwork(num_classes=NUM_CLASSES, backbone=case.network).eval()  # type: ignore[arg-type]
        pairs = [torch.empty(2, *image.shape) for image in scaled[0]]
    for module in shapes.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    for pair in pairs:
        shapes.activation_maps(pair)
    return operations * len(scaled), moved * len(scaled)


def textbook(case: Case) -> Prepared:
    scaled, plain = pictures(case), network(case)

    @torch.inference_mode()
    def work() -> Arrays:
        return [array for one in scaled for array in plain_cam(plain, one, case.size)]

    return Prepared(work)


def plain_cam(plain: CamNetwork, scaled: list[Tensor], size: tuple[int, int]) -> Arrays:
    """Section 3 of the paper, as written: sum over scales and mirrors, divide by the maximum."""
    maps = []
    for image in scaled:
        pair = torch.stack([normalise(image), normalise(image).flip(-1)])
        scores = F.relu(plain.classifier(plain.backbone(pair)[-1]))
        maps.append((scores[0] + scores[1].flip(-1))[None])
    results = []
    strided = [(side - 1) // 4 + 1 for side in size]
    padded = [(side + 15) // 16 * 16 for side in size]
    for target, (height, width) in ((strided, strided), (padded, size)):
        resized = [F.interpolate(m, target, mode="bilinear", align_corners=False) for m in maps]
        total = torch.stack(resized).sum(0)[0, list(CLASS_IDS), :height, :width]
        results.append((total / (total.amax((1, 2), keepdim=True) + 1e-5)).numpy())
    return results


def agreement(ours: Arrays, theirs: Arrays) -> float:
    """Largest difference of maps in [0, 1]."""
    error = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not error <= _TOLERANCE:
        raise Disagreement(f"maps differ by {error:.3g}, at most {_TOLERANCE} is allowed")
    return error


BENCHMARK = Benchmark(
    name="make_cam",
    summary="activation maps, 4 scales and mirror",
    cases=tuple(
        Case(size, 1, network) for network in ("resnet18", "resnet50") for size in ((375, 500), (500, 667))
    ),
    small=(Case((64, 80), 1, "resnet18"),),
    ours=Method("stage make_cam", ours),
    references=(Method("float32 NCHW, unfolded", textbook),),
    agreement=agreement,
)
