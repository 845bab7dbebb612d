"""AdvCAM: the picture climbs towards its class, and the maps of all steps are added up; no training.

Lee et al., "Anti-Adversarially Manipulated Attributions for Weakly and Semi-Supervised Semantic Segmentation", CVPR
2021; repository jbeomlee93/AdvCAM (obtain_CAM_masking.py, gradCAM.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu

from irn_pipeline.errors import ShapeError

LogitMaps = Callable[[Tensor], Tensor]
"""A network: normalised pictures (B, 3, H, W) -> each class's logit at each cell (B, K, h, w), differentiable."""
_EPSILON = 1e-12


class ClimbState(NamedTuple):
    """What one step sees."""

    map: Tensor
    """(h, w) map of the class, of picture and mirror."""
    pair: Tensor
    """(2, 3, H, W) picture and mirror before the step."""


def steps_at(scale: float, steps: int = 27) -> int:
    """Steps at one scale: half of them, rounded down, on pictures made smaller.

    Args:
        scale: size relative to the picture's own.
        steps: at scale 1 and above.

    Returns:
        Number of steps, at least 1.
    """
    return max(steps // 2, 1) if scale < 1 else steps


def pair_map(logits: Tensor, positive_weights: int) -> Tensor:
    """Grad-CAM of the pair: s_0 ReLU(l_0) + flipped back s_1 ReLU(l_1).

    Grad-CAM divides by the number of positive gradients of both pictures together. Behind a linear head that is
    s_b = n_b / (n_0 + n_1) / P, where n_b is the number of cells of picture b with a logit above 0 and P the number
    of positive weights of the class; no gradient is needed for it, and none runs through it.

    Args:
        logits: (2, h, w) logits of one class, of a picture and its mirror.
        positive_weights: P.

    Returns:
        (h, w) map >= 0; 0 where there is no logit above 0.
    """
    cells = (logits > 0).sum((1, 2))
    shares = cells / (cells.sum().clamp(min=1) * max(positive_weights, 1))
    maps = relu(logits) * shares[:, None, None]
    return maps[0] + maps[1].flip(-1)


def objective(
    logits: Tensor,
    class_id: int,
    current: Tensor,
    first: Tensor,
    *,
    keep_weight: float = 7.0,
    keep_above: float = 0.5,
) -> Tensor:
    """What is climbed: the class's score less all others', and less the change of the map where it is high already.

    sum_b (y_bc - sum_{k != c} y_bk) - keep_weight * sum_u |R(u) - R_first(u)| [R(u) > keep_above * max R], where
    y_bk is the mean over cells of ReLU(l_bk).

    Args:
        logits: (2, K, h, w) logits of picture and mirror.
        class_id: c; the other classes count, tagged or not.
        current: (h, w) the present map R.
        first: (h, w) the map of step 0.
        keep_weight: published 7.
        keep_above: published 0.5.

    Returns:
        A scalar.
    """
    scores = relu(logits).mean((2, 3))
    climbed = 2 * scores[:, class_id].sum() - scores.sum()
    high = current > keep_above * current.max()
    return climbed - keep_weight * (current - first).abs()[high].sum()


def climb(
    network: LogitMaps,
    image: Tensor,
    class_id: int,
    positive_weights: int,
    *,
    step_size: float = 0.08,
    keep_weight: float = 7.0,
    keep_above: float = 0.5,
) -> Iterator[ClimbState]:
    """Endless steps x <- clip(x + step_size * g / (max |g| + 1e-12), min x, max x) of a picture and its mirror.

    g is the gradient of `objective`; maximum, and minimum and maximum of x, are over the pair, so that its range can
    only shrink. One forward and one backward pass a step; the backward pass runs when the next step is asked for.

    Args:
        network: gives logits; in evaluation mode. Its parameters get no gradients.
        image: (3, H, W) normalised picture.
        class_id: the class to climb towards.
        positive_weights: number of the classifier's weights of this class that are above 0.
        step_size: in units of the normalised picture.
        keep_weight: see `objective`.
        keep_above: see `objective`.

    Yields:
        Map and pictures of step 0 (the untouched picture), 1, 2 ...

    Raises:
        ShapeError: the picture is not (3, H, W), or the network's answer not (2, K, h, w).
    """
    if image.ndim != 3:
        raise ShapeError(f"an image must be (3, H, W), got {tuple(image.shape)}")
    pair = torch.stack([image, image.flip(-1)])
    first = None
    while True:
        with torch.inference_mode(False), torch.enable_grad():
            pair = pair.detach().clone().requires_grad_()
            logits = network(pair)
            if logits.ndim != 4 or len(logits) != 2:
                raise ShapeError(f"the network must give logits (2, K, h, w), got {tuple(logits.shape)}")
            current = pair_map(logits[:, class_id], positive_weights)
        first = current.detach() if first is None else first
        yield ClimbState(current.detach(), pair.detach())
        with torch.inference_mode(False), torch.enable_grad():
            value = objective(
                logits, class_id, current, first, keep_weight=keep_weight, keep_above=keep_above
            )
            (gradient,) = torch.autograd.grad(value, pair)
        step = step_size * gradient / (gradient.abs().max() + _EPSILON)
        pair = (pair.detach() + step).clamp(pair.detach().min(), pair.detach().max())


def advcam_maps(
    network: LogitMaps, image: Tensor, class_ids: Sequence[int], classifier: Tensor, *, steps: int = 27
) -> Tensor:
    """Sum of a picture's maps over the steps, for each class from the untouched picture anew.

    Args:
        network: gives logits; in evaluation mode.
        image: (3, H, W) normalised picture at one scale.
        class_ids: the K' classes that the picture is tagged with.
        classifier: (K, D) weights that the logits are made with.
        steps: maps that are added up (`steps_at`); 1 gives the plain map, weighed as in `pair_map`.

    Returns:
        (K', h, w) maps >= 0 of picture plus mirror, to be merged by `ops.cam.merge_scales`.

    Raises:
        ShapeError: the picture is not (3, H, W), or the network's answer not (2, K, h, w).
    """
    if not class_ids:
        with torch.no_grad():
            return network(image[None])[0, :0]
    positive = (classifier.flatten(1) > 0).sum(1).tolist()
    totals = []
    for class_id in class_ids:
        states = climb(network, image, class_id, positive[class_id])
        totals.append(torch.stack([state.map for state in islice(states, steps)]).sum(0))
    return torch.stack(totals)
