"""LayerCAM: maps of every network stage, each feature weighed by its own positive gradient.

Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", TIP 2021; repository
PengtaoJiang/LayerCAM-jittor (cam/layercam.py). The sums of the positive gradients alone are the semantic information
maps of Region-CAM (arXiv 2510.25134).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.cam import sum_over_scales

_EPSILON = 1e-8


class StageMaps(NamedTuple):
    """Maps of one stage, not normalised."""

    layercam: Tensor
    """(B, K, h, w): sum_d f_d(u) ReLU(dy_k / df_d(u))."""
    information: Tensor
    """(B, K, h, w) >= 0: sum_d ReLU(dy_k / df_d(u))."""


def layercam(logits: Tensor, stages: Sequence[Tensor], class_ids: Sequence[int]) -> list[StageMaps]:
    """Maps of the asked classes on the grid of each stage, by one backward pass a class to all stages at once.

    Behind global average pooling and a linear head the last stage's gradient is W_k / N at every cell: its map is
    the activation map without the negative weights, and its information map is constant. A stage that a strided
    layer follows has a grid pattern in its gradient.

    Args:
        logits: (B, C) scores y of the pictures before softmax or sigmoid, with the graph that made them; pictures
            must not influence one another (evaluation mode).
        stages: (B, D_l, h_l, w_l) features in that graph.
        class_ids: the K classes, each 0..C-1.

    Returns:
        Maps of each stage, in the order of `stages`.

    Raises:
        ShapeError: logits or a stage have another number of dimensions or of pictures.
        ConfigError: the logits do not depend on a stage, or were made without a graph.
    """
    if logits.ndim != 2 or any(stage.ndim != 4 or len(stage) != len(logits) for stage in stages):
        raise ShapeError(
            f"logits must be (B, C) and stages (B, D, h, w), got {tuple(logits.shape)} and "
            f"{[tuple(stage.shape) for stage in stages]}"
        )
    unreached = [number for number, stage in enumerate(stages) if not stage.requires_grad]
    if unreached or not logits.requires_grad:
        raise ConfigError(
            f"gradients do not reach {f'stages {unreached}' if unreached else 'the logits'}: run the network "
            "with gradients on and no frozen stage among those asked for"
        )
    shapes = [(len(stage), len(class_ids), *stage.shape[2:]) for stage in stages]
    maps = [
        StageMaps(*(stage.new_zeros(shape) for _ in range(2)))
        for stage, shape in zip(stages, shapes, strict=True)
    ]
    for number, class_id in enumerate(class_ids):
        gradients = torch.autograd.grad(
            logits[:, class_id].sum(), list(stages), retain_graph=True, allow_unused=True
        )
        for position, (stage, gradient) in enumerate(zip(stages, gradients, strict=True)):
            if gradient is None:
                raise ConfigError(
                    f"the logits do not depend on map {position} of those asked for, which this network resizes; "
                    "choose other --layercam-stages"
                )
            positive = relu(gradient)
            maps[position].layercam[:, number] = (positive * stage.detach()).sum(1)
            maps[position].information[:, number] = positive.sum(1)
    return maps


def min_max_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (bilinear), then (x - min) / (max - min + 1e-8) for each map, as the LayerCAM repository shows maps.

    Args:
        maps: (K, h, w) maps.
        size: (H, W) to resize to.

    Returns:
        (K, H, W) maps in [0, 1].
    """
    resized = sum_over_scales([maps], size)
    lowest, highest = resized.amin((1, 2), keepdim=True), resized.amax((1, 2), keepdim=True)
    return (resized - lowest) / (highest - lowest + _EPSILON)


def fuse_stages(maps: Sequence[Tensor], size: tuple[int, int], *, gain: float = 2.0) -> Tensor:
    """Maximum over stages of tanh(gain * L / max L); the last stage enters as L / max L.

    The paper's fusion; it is not in the repository.

    Args:
        maps: (K, h_l, w_l) rectified maps of each stage, the last (coarsest) one at the end.
        size: (h, w) of the result; every stage is resized (bilinear).
        gain: how much the values of shallow stages are raised.

    Returns:
        (K, h, w) maps in [0, 1].

    Raises:
        ShapeError: there is no stage.
    """
    if not maps:
        raise ShapeError("there is no stage to fuse")
    fused = []
    for number, stage in enumerate(maps):
        share = stage / stage.amax((1, 2), keepdim=True).clamp(min=torch.finfo(stage.dtype).tiny)
        if number < len(maps) - 1:
            share = torch.tanh(gain * share)
        fused.append(sum_over_scales([share], size))
    return torch.stack(fused).amax(0)
