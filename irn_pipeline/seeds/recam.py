"""ReCAM: a second classifier head, trained with softmax on the features under each class's map, reweighs the first.

Chen et al., "Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation", CVPR 2022; repository
zhaozhengChen/ReCAM (net/resnet50_cam.py, step/train_recam.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, multilabel_soft_margin_loss, relu

from irn_pipeline.errors import ShapeError

_EPSILON = 1e-5


class ReCamLoss(NamedTuple):
    """The loss of one batch and its parts; all are scalars."""

    total: Tensor
    """multilabel + weight * softmax."""
    multilabel: Tensor
    """Multi-label soft margin loss of the first head."""
    softmax: Tensor
    """Cross entropy of the second head."""
    accuracy: Tensor
    """Share of the tagged classes that the second head puts first; 0 without a tag."""


def normalised_maps(features: Tensor, classifier: Tensor) -> Tensor:
    """Activation map of every class, tagged or not, divided by its maximum: Mn_k = M_k / (max_u M_k + 1e-5).

    Args:
        features: (B, D, h, w) features f of the last stage.
        classifier: (K, D) weights W of the first head; M_k = ReLU(W_k . f).

    Returns:
        (B, K, h, w) maps in [0, 1]; the gradient runs through the maximum too.

    Raises:
        ShapeError: features and classifier do not fit together.
    """
    maps = relu(_logits(features, classifier))
    return maps / (maps.amax((2, 3), keepdim=True) + _EPSILON)


def class_features(features: Tensor, maps: Tensor) -> Tensor:
    """Features under each class's map: p_k = (1 / N) sum_u maps_k(u) f(u), for the N = h * w cells.

    Args:
        features: (B, D, h, w) features.
        maps: (B, K, h, w) maps.

    Returns:
        (B, K, D) vectors. A product of matrices: no (B, K, D, h, w) tensor is made.
    """
    return maps.flatten(2) @ features.flatten(2).transpose(1, 2) / features[0, 0].numel()


def recam_loss(
    features: Tensor, classifier: Tensor, head: Tensor, tags: Tensor, *, weight: float = 1.0
) -> ReCamLoss:
    """Loss with which the network, the classifier and the second head are trained further.

    The softmax loss of a picture is the mean over its tagged classes k of -log softmax_j(V_j . p_k)[k]. A picture
    without tags counts as 0 in the mean over the batch. Nothing is detached: both parts reach the features and the
    classifier.

    Args:
        features: (B, D, h, w) features of the last stage.
        classifier: (K, D) weights W of the first head.
        head: (K, D) weights V of the second head.
        tags: (B, K), 1 for the classes that a picture is tagged with, else 0.
        weight: of the softmax loss; the published values are 1 for VOC and 0.1 for COCO.

    Returns:
        The loss and its parts.

    Raises:
        ShapeError: the tensors do not fit together.
    """
    if head.shape != classifier.shape or tags.shape != (len(features), len(classifier)):
        raise ShapeError(
            f"classifier and head must be (K, D) and tags (B, K), got {tuple(classifier.shape)}, "
            f"{tuple(head.shape)} and {tuple(tags.shape)} for {len(features)} images"
        )
    pooled = class_features(features, normalised_maps(features, classifier))
    scores = features.mean((2, 3)) @ classifier.T
    multilabel = multilabel_soft_margin_loss(scores, tags.to(scores.dtype))
    present = tags > 0
    logits = pooled @ head.T
    losses = -log_softmax(logits, dim=2).diagonal(dim1=1, dim2=2)
    of_picture = torch.where(present, losses, 0).sum(1) / present.sum(1).clamp(min=1)
    right = logits.argmax(2) == torch.arange(len(head), device=logits.device)
    accuracy = (right & present).sum() / present.sum().clamp(min=1)
    softmax = of_picture.mean()
    return ReCamLoss(multilabel + weight * softmax, multilabel, softmax, accuracy)


def product_maps(features: Tensor, classifier: Tensor, head: Tensor) -> Tensor:
    """ReCAM's maps: ReLU(sum_d V_kd W_kd f_d), the product of the two heads as the weights.

    Args:
        features: (B, D, h, w) features of the last stage.
        classifier: (K, D) weights W of the first head.
        head: (K, D) weights V of the second head.

    Returns:
        (B, K, h, w) maps >= 0, not normalised.

    Raises:
        ShapeError: features and heads do not fit together.
    """
    return relu(_logits(features, head * classifier))


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    if features.ndim != 4 or weights.ndim != 2 or features.shape[1] != weights.shape[1]:
        raise ShapeError(
            f"features must be (B, D, h, w) and a head's weights (K, D), "
            f"got {tuple(features.shape)} and {tuple(weights.shape)}"
        )
    return torch.einsum("kd,bdhw->bkhw", weights, features)
