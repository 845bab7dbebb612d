"""Metric embeddings with seediness: a mask is what lies near a good seed in an embedding space.

Fathi et al., "Semantic Instance Segmentation via Deep Metric Learning" (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from irn_pipeline.errors import ConfigError
from irn_pipeline.nn.segmenters.base import Segmenter, Target, stack_padded
from irn_pipeline.nn.segmenters.metric_loss import (
    BackgroundRole,
    BackgroundSize,
    CellTarget,
    cell_target,
    class_loss,
    class_loss_weight,
    class_targets,
    embedding_loss,
    sample_points,
)
from irn_pipeline.nn.segmenters.pyramid import DilatedFeatures, PyramidFeatures
from irn_pipeline.nn.semiconv import coordinate_map
from irn_pipeline.ops.metric_seeds import (
    distance_limits,
    pick_seeds,
    seed_components,
    squared_distances,
    suppress_masks,
)
from irn_pipeline.structures import BoolArray, Instances

FeatureKind = Literal["pyramid", "dilated"]
_COORDINATE_UNIT = 32.0
"""Pixels along the picture that count as a distance of 1 between embeddings."""


class MetricEmbeddings(Segmenter):
    """Embeddings, and for every cell the class of the mask around it at each of several similarities.

    Args:
        num_classes: foreground classes C.
        backbone: name of the backbone.
        features: "pyramid", or "dilated" as DeepLab's, which the paper is built on.
        cell_size: pixels per side of a feature cell, 8 or 4; 8 for dilated features.
        embedding_dims: dimensions D of the embedding.
        coordinates: add a cell's position to two of the dimensions (Novotny et al., ECCV 2018). Without it, as
            published, equal objects far apart have equal embeddings and become one mask.
        feature_scales: relative sizes of the picture whose features are put side by side; the paper's are 0.25, 0.5,
            1 and 2.
        similarities: thresholds T that bound a mask, in (0, 1).
        points_per_instance: sampled for the embedding loss.
        background: what background cells do in the embedding loss (see `BackgroundRole`); as published, nothing.
        background_points: sampled of it.
        background_size: what weighs them (see `BackgroundSize`).
        class_points: cells a picture whose masks' classes are learned in a step; published are about 10.
        max_seeds: picked a picture at inference, at most 100.
        diversity: weight of the distance from other seeds when one is picked (the paper's alpha; see `pick_seeds`).
        min_seediness: cells that score less are no seeds.
        max_iou: of two masks of a class that overlap by more, the better one stays.
        connected: keep only the part of a mask that is connected with its seed.

    Raises:
        ConfigError: a value is out of its range.
    """

    heads = ("embedding_head", "class_head")

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet50",
        features: FeatureKind = "pyramid",
        cell_size: int = 8,
        embedding_dims: int = 64,
        coordinates: bool = True,
        feature_scales: tuple[float, ...] = (1.0,),
        similarities: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9),
        points_per_instance: int = 10,
        background: BackgroundRole = "repel",
        background_points: int = 40,
        background_size: BackgroundSize = "mean",
        class_points: int = 64,
        max_seeds: int = 100,
        diversity: float = 0.3,
        min_seediness: float = 0.05,
        max_iou: float = 0.5,
        connected: bool = False,
    ) -> None:
        super().__init__(num_classes)
        least = {
            "embedding_dims": 2,
            "points_per_instance": 1,
            "class_points": 1,
            "background_points": 1,
            "diversity": 0,
        }
        values = (embedding_dims, points_per_instance, class_points, background_points, diversity)
        for (name, low), value in zip(least.items(), values, strict=True):
            if not low <= value < float("inf"):
                raise ConfigError(f"{name} must be at least {low}, got {value}")
        if not 1 <= max_seeds <= 100:
            raise ConfigError(f"max_seeds must be 1 to 100, got {max_seeds}")
        if not (0 <= min_seediness <= 1 and 0 <= max_iou <= 1):
            raise ConfigError(f"min_seediness and max_iou must be 0 to 1, got {min_seediness} and {max_iou}")
        if not feature_scales or not all(0 < scale < float("inf") for scale in feature_scales):
            raise ConfigError(f"feature_scales must be positive numbers, got {feature_scales}")
        self.limits = distance_limits(similarities)
        self.similarities, self.feature_scales, self.coordinates = similarities, feature_scales, coordinates
        self.points_per_instance = points_per_instance
        self.background, self.background_points = background, background_points
        self.background_size = background_size
        self.class_points, self.max_seeds, self.diversity = class_points, max_seeds, diversity
        self.min_seediness, self.max_iou, self.connected = min_seediness, max_iou, connected
        if features == "dilated" and cell_size != DilatedFeatures.stride:
            raise ConfigError(
                f"dilated features have cells of {DilatedFeatures.stride} pixels, got {cell_size}"
            )
        self.features = (
            DilatedFeatures(backbone=backbone)
            if features == "dilated"
            else PyramidFeatures(backbone=backbone, stride=cell_size)
        )
        channels = self.features.channels * len(feature_scales)
        self.embedding_head = nn.Conv2d(channels, embedding_dims, 1)
        self.class_head = nn.Conv2d(channels, len(similarities) * (num_classes + 1), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and class logits of a batch, at the feature stride.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].

        Returns:
            Float32 embeddings (B, D, h, w), and logits (B, T, C + 1, h, w) of the mask around each cell.
        """
        size, stride = images.shape[-2:], self.features.stride
        grid = [-(-length // stride) for length in size]
        maps = []
        for scale in self.feature_scales:
            scaled = [max(round(length * scale), 1) for length in size]
            resized = images if scale == 1 else interpolate(images, scaled, mode="bilinear", antialias=True)
            features = self.features(resized)
            maps.append(features if scale == 1 else interpolate(features, grid, mode="bilinear"))
        joined = torch.cat(maps, 1)
        embeddings = self.embedding_head(joined).float()
        if self.coordinates:
            # y, then x
            position = coordinate_map(
                (grid[0], grid[1]), stride=stride / _COORDINATE_UNIT, device=embeddings.device
            ).flip(0)
            embeddings = embeddings + pad(position, (0, 0, 0, 0, 0, embeddings.shape[1] - 2))
        logits = self.class_head(joined).float()
        return embeddings, logits.unflatten(1, (len(self.similarities), self.num_classes + 1))

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Embedding loss, and the class loss times its weight at this time of the training; means over pictures.

        The sampled points follow torch's global random state.
        """
        embeddings, logits = self(stack_padded(images))
        device = embeddings.device
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
        with torch.autocast(device.type, enabled=False):
            pairs, classes = [], []
            for image, target, own_embeddings, own_logits in zip(
                images, targets, embeddings, logits, strict=True
            ):
                # A picture that was padded to the size of a larger one answers for its own cells only.
                rows, columns = (-(-length // self.features.stride) for length in image.shape[-2:])
                cells = cell_target(target, self.features.stride)
                flat = own_embeddings[:, :rows, :columns].flatten(1).T
                flat_logits = own_logits[..., :rows, :columns].flatten(2).permute(2, 0, 1)
                pairs.append(self._pair_loss(flat, cells, generator))
                classes.append(self._class_loss(flat, flat_logits, cells, generator))
            weight = class_loss_weight(progress)
            return {
                "loss_embedding": torch.stack(pairs).mean(),
                "loss_class": weight * torch.stack(classes).mean(),
            }

    def _pair_loss(self, embeddings: Tensor, target: CellTarget, generator: torch.Generator) -> Tensor:
        points = sample_points(
            target,
            self.points_per_instance,
            generator,
            background_count=0 if self.background == "none" else self.background_points,
            background_size=self.background_size,
        )
        attracts = self.background == "attract"
        return embedding_loss(embeddings[points.cells], points, background_attracts=attracts)

    def _class_loss(
        self, embeddings: Tensor, logits: Tensor, target: CellTarget, generator: torch.Generator
    ) -> Tensor:
        known = target.known.nonzero()[:, 0]
        count = min(self.class_points, len(known))
        order = torch.randperm(len(known), generator=generator, device=known.device)
        cells = known[order[:count]]
        labels, weights = class_targets(embeddings, cells, target, self.limits)
        return class_loss(logits[cells], labels, weights)

    def seeds(self, embeddings: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Seeds of one picture, and the seediness that they are picked by.

        Args:
            embeddings: (D, h, w).
            logits: (T, C + 1, h, w).

        Returns:
            Seeds, (S,) int64 cells in the order of picking; of each of the N = h * w cells its seediness, (N,) float32
            in [0, 1], and its best pair of threshold t and class c, (N,) int64 t * C + c.
        """
        scores, best = logits.softmax(1)[:, 1:].flatten(0, 1).flatten(1).max(0)
        # A cell that would be dropped for its score needs no seed.
        wanted = scores * (scores >= self.min_seediness)
        seeds = pick_seeds(
            embeddings.flatten(1).T.contiguous(), wanted, self.max_seeds, diversity=self.diversity
        )
        return seeds, scores, best

    @torch.no_grad()
    def predict(self, image: Tensor) -> Instances:
        """Instances of one picture: the masks around up to `max_seeds` seeds, without duplicates (section 3.3)."""
        embeddings, logits = (x[0] for x in self(image[None]))
        grid, size = (embeddings.shape[1], embeddings.shape[2]), (image.shape[-2], image.shape[-1])
        flat = embeddings.flatten(1).T.contiguous()
        seeds, scores, best = self.seeds(embeddings, logits)
        if len(seeds) == 0:
            return Instances.empty(size)
        scores, best = scores[seeds], best[seeds]
        threshold, class_ids = best // self.num_classes, best % self.num_classes
        distances = squared_distances(flat[seeds], flat)
        distances[torch.arange(len(seeds), device=seeds.device), seeds] = 0
        masks = distances <= distances.new_tensor(self.limits)[threshold][:, None]
        if self.connected:
            parts = seed_components(masks.unflatten(1, grid).cpu().numpy(), seeds.tolist())
            masks = torch.from_numpy(parts).to(masks.device).flatten(1)
            distances = distances.masked_fill(~masks, torch.inf)
        kept = suppress_masks(masks, scores, class_ids, max_iou=self.max_iou)
        level = distances.new_tensor(self.similarities)[threshold[kept]]
        fine = _upsample(distances[kept].unflatten(1, grid), level, self.features.stride, size)
        found = Instances(scores[kept].cpu().numpy().astype(np.float32), fine, class_ids[kept].cpu().numpy())
        return found.select(np.flatnonzero(fine.any((1, 2))))


def _upsample(distances: Tensor, thresholds: Tensor, stride: int, size: tuple[int, int]) -> BoolArray:
    """Masks at the picture's size: where the interpolated similarity exceeds the threshold.

    Interpolated is the similarity's place between threshold and extreme, 1 at the seed, 0 at the threshold and -1
    far away. It does not let a mask of a single cell vanish, as the similarity itself would.

    Args:
        distances: (K, h, w) squared distances.
        thresholds: (K,) similarities.
        stride: pixels per cell.
        size: (H, W) of the picture.

    Returns:
        (K, H, W) bool.
    """
    masks = np.zeros((len(distances), *size), np.bool_)
    # One at a time: a hundred float maps of a large picture are not kept together.
    for mask, distance, threshold in zip(masks, distances, thresholds, strict=True):
        excess = 2 / (1 + distance.exp()) - threshold
        soft = torch.where(excess >= 0, excess / (1 - threshold), excess / threshold)
        fine = interpolate(soft[None, None], scale_factor=stride, mode="bilinear")[0, 0]
        mask[:] = (fine[: size[0], : size[1]] >= 0).cpu().numpy()
    return masks
