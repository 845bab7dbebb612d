"""A classifier of cells into background and classes, taught by the sure cells of a network's maps.

A classifier of whole pictures has no class for the ground: its maps fall off at the object's edge at any height. Their
sure cells, high or low in maps that were spread over cells of like features, teach a linear softmax that has one. In a
picture it chooses between the background and that picture's tags. No network is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.feature_affinity import feature_affinity, spread_maps
from irn_pipeline.seeds.cells import CellClassifier, CellSample
from irn_pipeline.structures import BACKGROUND, IGNORE

DIMS = (64, 192, 256)
"""Axes kept of the network's last three maps."""
_EPSILON = 1e-6


def teaching_maps(maps: Tensor, features: Sequence[Tensor], power: float = 2.0) -> Tensor:
    """A network's maps, spread over cells of like features, each relative to its largest value.

    Args:
        maps: (K, h, w) float32 >= 0.
        features: (C_s, h_s, w_s) floats of the picture per network stage.
        power: how much more like cells count, above 0.

    Returns:
        (K, h', w') maps from 0 to 1 on the grid of the last stage.
    """
    return _normalised(spread_maps([maps], features, power))


def sure_cells(maps: Tensor, class_ids: Sequence[int], *, high: float = 0.5, low: float = 0.2) -> Tensor:
    """What cells are examples of.

    Args:
        maps: (K, h, w) from 0 to 1.
        class_ids: the picture's K tags; without any, all its cells are background.
        high: a cell whose largest map exceeds it is an example of that map's class.
        low: a cell whose maps are all below it is one of the background.

    Returns:
        (h, w) int64: class_id + 1, 0 for background, 255 for neither.

    Raises:
        ShapeError: there are more or fewer maps than tags.
    """
    if maps.ndim != 3 or len(maps) != len(class_ids):
        raise ShapeError(f"{len(class_ids)} classes need as many maps (K, h, w), got {tuple(maps.shape)}")
    if not len(maps):
        return torch.full(maps.shape[1:], BACKGROUND, device=maps.device)
    best, index = maps.max(0)
    targets = torch.full_like(index, IGNORE)
    targets[best < low] = BACKGROUND
    labels = torch.tensor([class_id + 1 for class_id in class_ids], device=maps.device)
    return torch.where(best > high, labels[index], targets)


def fit_pixels(
    sample: CellSample,
    num_classes: int,
    *,
    steps: int = 200,
    batch: int = 4096,
    lr: float = 0.02,
    seed: int = 0,
) -> CellClassifier:
    """Softmax classifier of cells, whose outputs are the background and all classes.

    A class counts by the root of its number of cells. The same sample and seed give the same classifier.

    Args:
        sample: cells with targets as `sure_cells` gives them.
        num_classes: foreground classes C.
        steps: of AdamW.
        batch: cells a step.
        lr: largest learning rate.
        seed: of the batches.

    Returns:
        A classifier of C + 1 outputs.

    Raises:
        ShapeError: the sample is empty, or has classes beyond C.
    """
    cells, targets, axes = sample.finish()
    counts = torch.bincount(targets, minlength=num_classes + 1)
    if len(counts) > num_classes + 1:
        raise ShapeError(
            f"cells of class {len(counts) - 2}, counted from 0, but there are {num_classes} classes"
        )
    importance = torch.where(counts > 0, (len(targets) / counts.clamp(min=1)).sqrt(), 0.0)
    without_example = torch.where(counts > 0, 0.0, -torch.inf)
    random = torch.Generator().manual_seed(seed)
    weight = torch.zeros(num_classes + 1, cells.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes + 1, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(cells), (batch,), generator=random)
        scores = cells[chosen] @ weight.T + bias + without_example
        loss = cross_entropy(scores, targets[chosen], weight=importance)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return axes.classifier(weight.detach(), bias.detach() + without_example)


@torch.no_grad()
def pixel_maps(
    classifier: CellClassifier,
    features: Sequence[Tensor],
    teaching: Tensor,
    class_ids: Sequence[int],
    power: float = 3.0,
) -> Tensor:
    """Maps of a picture: probabilities among the background and its tags, spread, times the maps that taught them.

    A class that the classifier has no example of keeps its teaching map.

    Args:
        classifier: of `fit_pixels`.
        features: (C_s, h_s, w_s) floats of the picture per network stage.
        teaching: (K, h, w) maps of `teaching_maps`, on the grid of the last stage.
        class_ids: the picture's K tags.
        power: how much more like cells count when the probabilities are spread, above 0.

    Returns:
        (K, h, w) maps from 0 to 1.

    Raises:
        ShapeError: the features are of other stages, or there are more or fewer maps than tags.
    """
    if len(teaching) != len(class_ids):
        raise ShapeError(f"{len(class_ids)} classes need as many maps (K, h, w), got {tuple(teaching.shape)}")
    if not len(teaching):
        return teaching
    outputs = [BACKGROUND, *(class_id + 1 for class_id in class_ids)]
    grid = (teaching.shape[1], teaching.shape[2])
    share = classifier.scores(features, grid)[outputs].softmax(0)[1:]
    share[classifier.bias[outputs[1:]].isinf()] = 1.0
    weights = feature_affinity(features, power)
    return _normalised((share.flatten(1) @ weights.T).view_as(share) * teaching)


def _normalised(maps: Tensor) -> Tensor:
    if not maps.numel():
        return maps
    return maps / (maps.amax((1, 2), keepdim=True) + _EPSILON)
