"""What half precision of kept scores changes in the labels: pixels whose two best scores are nearly equal."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from irn_pipeline.ops.label_params import LabelParams, SynthesisParams
from irn_pipeline.ops.labels import class_maps, labels_from_scores, walk_scores
from irn_pipeline.structures import IntArray, strided_size
from irn_pipeline.walked_scores import kept_scores

SIZE = (157, 210)
THRESHOLDS = (0.1, 0.2, 0.3, 0.4)
CLOSE = 2.0**-10
"""float16 has 11 binary digits, so a score and the one it is divided by are each off by 2**-11 of their value."""


@cache
def walked_picture(seed: int) -> tuple[Tensor, IntArray]:
    """Walked maps of a picture of three classes, a weak boundary with gaps, and several instances."""
    rng = np.random.default_rng(seed)
    grid = strided_size(SIZE)
    y, x = np.indices(grid)
    centres = rng.uniform(8, 32, (3, 2, 1, 1))
    cam = np.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 120).astype(np.float32)
    boundary = rng.random(grid, np.float32) ** 3
    displacement = rng.normal(0, 2, (2, *grid)).astype(np.float32)
    params = SynthesisParams(exp_times=5)
    return walk_scores(cam, np.array([7, 2, 4]), boundary, displacement, SIZE, params)


def as_kept(walked: Tensor, class_ids: IntArray) -> Tensor:
    return torch.from_numpy(kept_scores(walked, class_ids, SIZE, None).maps).float()


def best_two(maps: Tensor, threshold: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(2, H, W) the two largest of the background's score and the maps at full size, from float32."""
    full = interpolate(maps[None], scale_factor=4, mode="bilinear")[0, :, : SIZE[0], : SIZE[1]]
    layers = torch.cat([torch.full((1, *SIZE), threshold), full / full.max()])
    return layers.topk(2, dim=0).values.numpy()


@pytest.mark.parametrize("seed", range(12))
def test_half_digits_change_less_than_a_thousandth_of_the_pixels(seed: int) -> None:
    walked, class_ids = walked_picture(seed)
    kept = as_kept(walked, class_ids)
    for threshold in THRESHOLDS:
        params = LabelParams(semantic_bg_threshold=threshold, instance_bg_threshold=threshold)
        label, instances = labels_from_scores(walked, class_ids, SIZE, params)
        again, others = labels_from_scores(kept, class_ids, SIZE, params)
        assert label.any() and len(instances.without_fragments()) > 0
        assert (again != label).mean() <= 1e-3
        assert (others.masks.any(0) != instances.masks.any(0)).mean() <= 1e-3


def test_labels_do_depend_on_them_where_two_scores_are_nearly_equal() -> None:
    changed = 0
    for seed in range(12):
        walked, class_ids = walked_picture(seed)
        kept = as_kept(walked, class_ids)
        for threshold in THRESHOLDS:
            params = LabelParams(semantic_bg_threshold=threshold, instance_bg_threshold=threshold)
            label, _ = labels_from_scores(walked, class_ids, SIZE, params)
            again, _ = labels_from_scores(kept, class_ids, SIZE, params)
            first, second = best_two(class_maps(walked, class_ids)[0], threshold)[:, label != again]
            assert (first - second <= CLOSE * first + 1e-6).all()
            changed += first.size
    assert changed > 0
