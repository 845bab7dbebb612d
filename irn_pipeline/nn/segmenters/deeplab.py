"""DeepLab v3 (Chen et al., 2017): semantic labels by atrous spatial pyramid pooling of features at stride 16 or 8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.transforms.v2 import functional as TF

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.nn.backbone import build_backbone, freeze_batch_norms
from irn_pipeline.nn.cam_network import paired
from irn_pipeline.nn.segmenters.base import Segmenter, Target, stack_padded
from irn_pipeline.ops.crf_soft import dense_crf_probabilities
from irn_pipeline.structures import (
    BACKGROUND,
    IGNORE,
    BoolArray,
    FloatArray,
    Instances,
    LabelArray,
    imagenet_scaling,
)

_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""Output stride -> published rates."""
_NORM_GROUPS = 32
_MIN_AREA = 0.0005
_MAX_INSTANCES = 100


class DeepLabV3(Segmenter):
    """A backbone whose batch norms stay as loaded, and torchvision's DeepLab head on its last stage.

    The head's batch norms are replaced by group norms: the pooling branch has one value per channel and
    picture, of which a batch norm measures nothing for one picture and noise for a few. So every batch size can be
    trained, and a picture's result depends on no other picture, in training and after.

    Args:
        num_classes: foreground classes C, at most 254.
        backbone: name of the backbone.
        output_stride: pixels per cell of the features, 16 or 8; 8 follows outlines more closely and takes longer.
        balance_classes: give background and foreground of a picture the same weight in the loss.
        crf: refine labels with the dense CRF when asked (seconds for 21 labels of a 500 x 375 picture).
        test_scales: relative picture sizes whose probabilities are averaged when asked.

    Raises:
        ConfigError: there is no class or too many, a scale is not positive, or there is no such stride.
    """

    heads = ("head",)

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 16,
        balance_classes: bool = True,
        crf: bool = False,
        test_scales: Sequence[float] = (1.0,),
    ) -> None:
        if not 1 <= num_classes < IGNORE:
            raise ConfigError(
                f"num_classes must be in 1..{IGNORE - 1}, as {IGNORE} means ignore, got {num_classes}"
            )
        if not test_scales or not all(0 < scale < float("inf") for scale in test_scales):
            raise ConfigError(
                f"test_scales must be positive numbers, such as (0.5, 1.0), got {tuple(test_scales)}"
            )
        if output_stride not in _ATROUS_RATES:
            raise ConfigError(f"output_stride must be 16 or 8, got {output_stride}")
        super().__init__(num_classes)
        self.backbone = build_backbone(backbone, last_stride=output_stride)
        freeze_batch_norms(self.backbone)
        self.head = DeepLabHead(self.backbone.channels[-1], num_classes + 1, _ATROUS_RATES[output_stride])
        _use_group_norms(self.head)
        self.output_stride = output_stride
        self.balance_classes, self.crf, self.test_scales = balance_classes, crf, tuple(test_scales)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, C + 1, H, W) float32 logits."""
        return _resized(self._logits(images), images.shape[-2:])

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Cross-entropy of the semantic labels (see `label_loss`); smaller pictures of a batch are padded.

        Raises:
            ShapeError: a label has another size than its picture.
            DataError: a label names a class that the model does not have.
        """
        labels = [target.label.long() for target in targets]
        for image, label in zip(images, labels, strict=True):
            self._check(image, label)
        logits = self(stack_padded([_normalised(image) for image in images]))
        known = stack_padded(labels, IGNORE)
        with torch.autocast(logits.device.type, enabled=False):
            return {"cross_entropy": label_loss(logits, known, balance_classes=self.balance_classes)}

    def predict(self, image: Tensor) -> Instances:
        """The 4-connected components of the label, from 0.05 % of the picture on.

        Touching objects of one class are one instance: the model does not tell them apart. The score is the
        network's mean probability of the class inside, also with the CRF, whose own probabilities are near 1.
        """
        return self.predict_with_label(image)[0]

    def predict_with_label(self, image: Tensor, min_score: float = 0.5) -> tuple[Instances, LabelArray]:
        """The instances, and the most probable label of every pixel, after the CRF if there is one."""
        probabilities = self._probabilities(image)
        label = self._label(image, probabilities)
        return label_components(label, probabilities), label

    @torch.no_grad()
    def paired_activation_maps(self, images: Tensor) -> Tensor:
        """Class probabilities of pictures plus those of their mirrors flipped back, as maps to begin anew with.

        Args:
            images: (3, H, W) normalised picture, or (B, 3, H, W).

        Returns:
            (C, ceil(H / 16), ceil(W / 16)) maps in [0, 2], or (B, C, ...): in kind those of
            `CamNetwork.paired_activation_maps`.
        """
        found = paired(lambda some: self._logits(some).softmax(1)[:, 1:], images)
        return F.avg_pool2d(found, 2, ceil_mode=True) if self.output_stride == 8 else found

    def train(self, mode: bool = True) -> DeepLabV3:
        """Training mode, but for the backbone's batch norms."""
        super().train(mode)
        freeze_batch_norms(self.backbone)
        return self

    def _logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, C + 1, h, w) float32 at the output stride."""
        logits: Tensor = self.head(self.backbone(images)[-1]).float()
        return logits

    @torch.no_grad()
    def _probabilities(self, image: Tensor) -> FloatArray:
        """(C + 1, H, W) probabilities of one picture, the mean over the scales."""
        size, batch = image.shape[-2:], _normalised(image)[None]
        total = torch.zeros((), device=image.device)
        for scale in self.test_scales:
            scaled = _resized(batch, [max(1, round(side * scale)) for side in size])
            total = total + _resized(self._logits(scaled), size).softmax(1)[0]
        return (total / len(self.test_scales)).cpu().numpy()

    def _label(self, image: Tensor, probabilities: FloatArray) -> LabelArray:
        if self.crf:
            shown = image[[channel % len(image) for channel in range(3)]]
            pixels = (shown.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            probabilities = dense_crf_probabilities(pixels, probabilities)
        return probabilities.argmax(axis=0).astype(np.uint8)

    def _check(self, image: Tensor, label: Tensor) -> None:
        if label.shape != image.shape[-2:]:
            raise ShapeError(
                f"the label of a {tuple(image.shape[-2:])} image has the shape {tuple(label.shape)}"
            )
        highest = int(torch.where(label == IGNORE, BACKGROUND, label).max()) if label.numel() else BACKGROUND
        if highest > self.num_classes:
            raise DataError(
                f"a label holds {highest}, but the model has {self.num_classes} classes, so labels are "
                f"0..{self.num_classes} and {IGNORE}; train it with the class list that the labels were made for"
            )


def label_loss(logits: Tensor, labels: Tensor, *, balance_classes: bool) -> Tensor:
    """Mean cross-entropy of the pixels whose label is known.

    Balanced, as people report to need it for synthesized labels, which are mostly background: in every picture the
    mean over its background and the mean over its foreground count the same (the seed loss of DSRG, Huang et al.,
    CVPR 2018, halved), and so do all pictures that have known pixels.

    Args:
        logits: (B, L, H, W) float32.
        labels: (B, H, W) int64, 0 background, class_id + 1, 255 ignore.
        balance_classes: whether to balance; else every known pixel of the batch counts the same.

    Returns:
        Float32 scalar; 0, with zero gradients, where no pixel is known.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if not balance_classes:
        return losses.sum() / (labels != IGNORE).sum().clamp(min=1)
    groups = torch.stack([labels == BACKGROUND, (labels != BACKGROUND) & (labels != IGNORE)], 1)
    sizes = groups.sum((2, 3))
    means = (losses[:, None] * groups).sum((2, 3)) / sizes.clamp(min=1)
    present = (sizes > 0).sum(1)
    return (means.sum(1) / present.clamp(min=1)).sum() / (present > 0).sum().clamp(min=1)


def label_components(label: LabelArray, probabilities: FloatArray) -> Instances:
    """Instances that are the 4-connected components of every class of a label.

    Args:
        label: (H, W) uint8, 0 background, class_id + 1.
        probabilities: (C + 1, H, W) floats in [0, 1].

    Returns:
        Components of at least 0.05 % of the picture, best first, at most 100; the score is the mean probability of
        the class inside.
    """
    numbered, class_ids = np.zeros(label.shape, np.int64), [np.zeros(0, np.int64)]
    first = 0
    for value in np.unique(label[label != BACKGROUND]).tolist():
        parts, count = ndimage.label(label == value)
        numbered += np.where(parts > 0, parts + first, 0)
        class_ids.append(np.full(count, value - 1))
        first += count
    own = np.take_along_axis(probabilities, label[None].astype(np.int64), axis=0)[0]
    sizes = np.bincount(numbered.ravel(), minlength=first + 1)[1:]
    scores = np.bincount(numbered.ravel(), weights=own.ravel(), minlength=first + 1)[1:] / sizes
    # Only what is returned becomes a mask: speckled labels of large pictures have thousands of components.
    kept = np.flatnonzero(sizes >= _MIN_AREA * label.size)
    kept = kept[np.argsort(-scores[kept], kind="stable")][:_MAX_INSTANCES]
    masks: BoolArray = numbered == (kept + 1)[:, None, None]
    return Instances(scores[kept].astype(np.float32), masks, np.concatenate(class_ids)[kept])


def _normalised(image: Tensor) -> Tensor:
    return TF.normalize(image, *imagenet_scaling(len(image)))


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    shrinks = size[0] < maps.shape[-2]
    return F.interpolate(maps, size=list(size), mode="bilinear", align_corners=False, antialias=shrinks)


def _use_group_norms(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(_NORM_GROUPS, child.num_features))
        else:
            _use_group_norms(child)
