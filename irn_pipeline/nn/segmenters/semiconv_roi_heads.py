"""Region heads of Mask R-CNN whose mask branch is steered by semi-convolutional embeddings (Novotny et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from irn_pipeline.nn.semiconv import (
    KernelName,
    SemiconvEmbedding,
    hard_seed,
    kernel_cross_entropy,
    segment_attraction,
    soft_seed,
    steered_log_kernel,
)

MASK_SIDE = 28
"""Cells a side of torchvision's mask logits."""
MIN_CELLS = 4
"""A smaller segment, on its level of the pyramid, says nothing of how its embeddings should be spread."""
_FIRST_SIGMA = 8.0
"""Bandwidth of the kernel at the start, in units of the embedding; it changes little before it has learned."""
_STRIDES = {"0": 4, "1": 8, "2": 16, "3": 32}
"""Levels of torchvision's feature pyramid that masks are pooled from; pixels per cell."""


@dataclass(frozen=True)
class RoiTargets:
    """What the mask branch learns from the N positive boxes of a batch.

    Attributes:
        masks: (N, 28, 28) float32 share of each cell that belongs to the object.
        known: (N, 28, 28) float32 share of each cell that is not to be ignored.
        weights: (N,) float32 how far each object is to be trusted.
    """

    masks: Tensor
    known: Tensor
    weights: Tensor

    def mean(self, cost: Tensor) -> Tensor:
        """Mean cost of a box over what is known of it, times its weight; mean over boxes, 0 without one.

        Args:
            cost: (N, 28, 28).

        Returns:
            Scalar; torchvision's plain mean when all is known and all weights are 1.
        """
        cells = self.known.sum((1, 2)).clamp(min=1)
        terms = self.weights * (cost * self.known).sum((1, 2)) / cells
        return terms.sum() / max(len(terms), 1)


class SemiconvRoiHeads(RoIHeads):
    """Torchvision's heads with an embedding beside the mask logits.

    The logit of a cell is s + log K, where s is the mask head's and K compares the cell's embedding with that of the
    best cell of the box, its seed. In training each picture's target holds, beside torchvision's entries, `weights`
    (R,), and in `masks` (R + 1, H, W) the ignored region comes last.

    Args:
        plain: the heads of a Mask R-CNN; its parts, and so the names of their weights, are kept.
        channels: of the feature pyramid.
        kernel: laplacian or gaussian.
    """

    def __init__(self, plain: RoIHeads, channels: int, kernel: KernelName = "laplacian") -> None:
        super().__init__(
            plain.box_roi_pool,
            plain.box_head,
            plain.box_predictor,
            plain.proposal_matcher.high_threshold,
            plain.proposal_matcher.low_threshold,
            plain.fg_bg_sampler.batch_size_per_image,
            plain.fg_bg_sampler.positive_fraction,
            plain.box_coder.weights,
            plain.score_thresh,
            plain.nms_thresh,
            plain.detections_per_img,
            plain.mask_roi_pool,
            plain.mask_head,
            plain.mask_predictor,
        )
        self.kernel = kernel
        self.embedding = SemiconvEmbedding(channels)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(_FIRST_SIGMA)))
        self.embedding_roi_pool = MultiScaleRoIAlign(list(_STRIDES), MASK_SIDE, sampling_ratio=2)
        self.level_of = LevelMapper(2, 5)  # of strides 2^2 to 2^5

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation mode, losses in training mode; arguments and results as torchvision's."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets or [])
        return self._detections(features, proposals, image_shapes), {}

    def embeddings(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embedding maps of the pyramid: level -> (B, D, h, w) float32, comparable across levels."""
        return {name: self.embedding(features[name], stride) for name, stride in _STRIDES.items()}

    def log_kernel(self, embeddings: Tensor, seeds: Tensor) -> Tensor:
        """Log of the steered kernel at the learned bandwidth: (N, D, h, w) and (N, D) -> (N, h, w)."""
        return steered_log_kernel(embeddings, seeds, self.log_sigma.exp(), self.kernel)

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        class_logits, box_regression = self._classify(features, proposals, image_shapes)
        found = self.postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        boxes, _, labels = found
        scores = self._mask_scores(features, boxes, torch.cat(labels), image_shapes)
        embeddings = self.embeddings(features)
        with torch.autocast(scores.device.type, enabled=False):
            pooled = self.embedding_roi_pool(embeddings, boxes, image_shapes)
            steered = scores + self.log_kernel(pooled, hard_seed(scores, pooled))
        masks = steered.sigmoid()[:, None].split([len(b) for b in boxes])
        return [
            {"boxes": b, "scores": s, "labels": c, "masks": m}
            for b, s, c, m in zip(*found, masks, strict=True)
        ]

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        class_logits, box_regression = self._classify(features, proposals, image_shapes)
        loss_classifier, loss_box_reg = fastrcnn_loss(class_logits, box_regression, labels, regression)

        positive = [found > 0 for found in labels]
        boxes = [box[keep] for box, keep in zip(proposals, positive, strict=True)]
        objects = [index[keep] for index, keep in zip(matched, positive, strict=True)]
        classes = torch.cat([found[keep] for found, keep in zip(labels, positive, strict=True)])
        scores = self._mask_scores(features, boxes, classes, image_shapes)
        embeddings = self.embeddings(features)
        with torch.autocast(scores.device.type, enabled=False):
            roi_targets = make_roi_targets(targets, boxes, objects)
            pooled = self.embedding_roi_pool(embeddings, boxes, image_shapes)
            log_kernel = self.log_kernel(pooled, soft_seed(scores, pooled))
            mask_cost = F.binary_cross_entropy_with_logits(
                scores + log_kernel, roi_targets.masks, reduction="none"
            )
            return {
                "loss_classifier": loss_classifier,
                "loss_box_reg": loss_box_reg,
                "loss_mask": roi_targets.mean(mask_cost),
                "loss_kernel": roi_targets.mean(kernel_cross_entropy(log_kernel, roi_targets.masks)),
                "loss_embedding": self._attraction(embeddings, targets),
            }

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        class_logits, box_regression = self.box_predictor(
            self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        )
        return class_logits, box_regression

    def _mask_scores(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Mask logits of the boxes' own classes, (N, 28, 28) float32."""
        pooled = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        logits: Tensor = self.mask_predictor(pooled).float()
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def _attraction(self, embeddings: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """L(Psi): mean over the segments of a picture, each on the level that its box is pooled from; then pictures."""
        # A graph without segments.
        total = torch.stack([level.sum() for level in embeddings.values()]).sum() * 0
        for index, target in enumerate(targets):
            levels = self.level_of([target["boxes"]])
            masks = target["masks"].bool()
            masks, ignore = masks[:-1], masks[-1]
            terms: list[Tensor] = []
            for level, (name, stride) in enumerate(_STRIDES.items()):
                chosen = levels == level
                # Cell (i, j) stands at pixel (i * stride, j * stride), and the map may reach beyond the picture.
                segments = (masks[chosen] & ~ignore)[:, ::stride, ::stride]
                kept = segments.sum((1, 2)) >= MIN_CELLS
                height, width = segments.shape[1:]
                maps = embeddings[name][index, :, :height, :width]
                terms.append(
                    segment_attraction(maps, segments[kept]) * target["weights"][chosen][kept].to(maps.dtype)
                )
            found = torch.cat(terms)
            total = total + found.sum() / max(len(found), 1) / len(targets)
        return total


def make_roi_targets(
    targets: Sequence[dict[str, Tensor]], boxes: Sequence[Tensor], objects: Sequence[Tensor]
) -> RoiTargets:
    """Crop each box's object and the ignored region as torchvision crops masks.

    Args:
        targets: one for each picture: `masks` (R + 1, H, W) with the ignored region last, `weights` (R,).
        boxes: (N_i, 4) positive boxes of each picture, pixels.
        objects: (N_i,) int64 index of the object that each box covers.

    Returns:
        Targets of all boxes, in order.
    """
    masks: list[Tensor] = []
    known: list[Tensor] = []
    weights: list[Tensor] = []
    for target, box, index in zip(targets, boxes, objects, strict=True):
        masks.append(project_masks_on_boxes(target["masks"], box, index, MASK_SIDE))
        ignored = torch.full_like(index, len(target["masks"]) - 1)
        known.append(1 - project_masks_on_boxes(target["masks"], box, ignored, MASK_SIDE))
        weights.append(target["weights"][index].float())
    return RoiTargets(torch.cat(masks), torch.cat(known), torch.cat(weights))
