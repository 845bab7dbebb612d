"""Targets as `segmenters.base.Target` describes them, made from boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskTarget:
    masks: Tensor
    class_ids: Tensor
    weights: Tensor
    ignore: Tensor

    @property
    def label(self) -> Tensor:
        label = torch.zeros(self.ignore.shape, dtype=torch.uint8)
        for mask, class_id in zip(self.masks, self.class_ids.tolist(), strict=True):
            label[mask] = class_id + 1
        label[self.ignore] = 255
        return label


class MasksOnly(MaskTarget):
    """For models that learn from masks and must not look at the semantic label."""

    @property
    def label(self) -> Tensor:
        raise AssertionError("this model learns from masks only")


def box(size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """(H, W) mask of the rows and columns in these half-open ranges."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def target_of(
    masks: Sequence[Tensor],
    size: tuple[int, int] | None = None,
    *,
    class_ids: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    ignore: Tensor | None = None,
    kind: type[MaskTarget] = MaskTarget,
) -> MaskTarget:
    """A target of (H, W) masks, by default all of class 0 and fully trusted; without masks `size` is needed."""
    if masks:
        stack = torch.stack(list(masks))
    else:
        assert size is not None
        stack = torch.zeros((0, *size), dtype=torch.bool)
    return kind(
        stack,
        torch.tensor(class_ids or [0] * len(masks), dtype=torch.int64),
        torch.tensor(weights or [1.0] * len(masks)),
        torch.zeros(stack.shape[1:], dtype=torch.bool) if ignore is None else ignore,
    )
