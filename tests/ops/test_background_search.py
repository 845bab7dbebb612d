"""A picture's own background score, against a loop over cells and against what must hold of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.background_search import CANDIDATES, background_evidence, best_background
from irn_pipeline.ops.label_params import LabelParams
from irn_pipeline.ops.labels import labels_from_scores


def by_hand(maps: np.ndarray, boundary: np.ndarray, features: np.ndarray) -> list[float]:
    """The formulas, cell by cell, of features on a grid that is 2 x 2 times coarser."""
    depth, rows, columns = features.shape
    unit = features.reshape(depth, -1).T / np.linalg.norm(features.reshape(depth, -1).T, axis=1)[:, None]
    affinity = unit @ unit.T
    found = []
    for candidate in CANDIDATES:
        label = np.where(maps.max(0) > candidate * maps.max(), maps.argmax(0) + 1, 0)
        contour = []
        for y, x in np.ndindex(label.shape):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < label.shape[0] and u < label.shape[1] and label[y, x] != label[v, u]:
                    contour.append(max(boundary[y, x], boundary[v, u]))
        share = (label > 0).reshape(rows, 2, columns, 2).mean((1, 3)).ravel()
        if not 0 < (label > 0).sum() < label.size:
            found.append(-np.inf)
            continue
        inside, outside = (unit * share[:, None]).sum(0), (unit * (1 - share)[:, None]).sum(0)
        likeness = inside @ outside / np.linalg.norm(inside) / np.linalg.norm(outside)
        between = sum(
            share[i] * (1 - share[j]) * affinity[i, j] for i in range(len(share)) for j in range(len(share))
        )
        cut = between / (share @ affinity.sum(1)) + between / ((1 - share) @ affinity.sum(1))
        found.append(np.mean(contour) - likeness - cut)
    return found


@pytest.mark.parametrize("num_maps", [1, 3])
def test_the_evidence_is_that_of_the_formulas(num_maps: int) -> None:
    generator = torch.Generator().manual_seed(num_maps)
    maps, boundary, features = (
        torch.rand(shape, generator=generator) for shape in ((num_maps, 8, 12), (8, 12), (5, 4, 6))
    )
    maps *= 7.5  # the scale of the maps does not matter
    expected = by_hand(*(array.double().numpy() for array in (maps, boundary, features)))
    np.testing.assert_allclose(background_evidence(maps, boundary, features), expected, rtol=1e-4)
    assert np.isfinite(expected).sum() > 10


def scene(peak: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A square object under a map that falls to 0.1 far outside it; on its edge the map has the value `peak`."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    distance = torch.maximum((rows - 15.5).abs(), (columns - 19.5).abs())
    square = distance < 8
    cone = torch.where(square, 1 - (1 - peak) * distance / 8, peak * (1 - (distance - 8) / 16).clamp(min=0.1))
    boundary = 0.1 + 0.8 * ((distance > 6) & (distance < 9)).float()
    features = torch.full((2, 8, 10), 0.2)
    features[0, 2:6, 3:7] = 1
    features[1][features[0] < 1] = 1
    return cone[None], boundary, features, square


@pytest.mark.parametrize("peak", [0.22, 0.42, 0.62])
def test_the_score_at_which_the_map_covers_the_object_is_found(peak: float) -> None:
    maps, boundary, features, square = scene(peak)
    found = best_background(background_evidence(maps, boundary, features), (0.1, 0.9))
    assert found == pytest.approx(peak, abs=0.1)
    region = maps[0] > found
    assert (region & square).sum() / (region | square).sum() > 0.75
    fixed = maps[0] > 0.9
    assert (fixed & square).sum() / (fixed | square).sum() < 0.3


def test_scores_that_part_nothing_have_no_evidence() -> None:
    boundary, features = torch.rand(4, 4), torch.rand(3, 2, 2)
    for maps in (torch.zeros(0, 4, 4), torch.zeros(2, 4, 4), torch.ones(1, 4, 4)):
        evidence = background_evidence(maps, boundary, features)
        assert evidence.shape == (len(CANDIDATES),)
        assert (evidence == -np.inf).all()
        assert best_background(evidence, (0.05, 0.95)) is None
    assert (background_evidence(torch.rand(1, 4, 4), boundary, torch.zeros(3, 2, 2)) == -np.inf).all()
    two = torch.ones(2, 4, 4)  # a contour between two classes, but no background
    two[0, :2] = 0.9
    two[1, 2:] = 0.9
    evidence = background_evidence(two, boundary, features)
    assert (evidence[[score < 0.9 for score in CANDIDATES]] == -np.inf).all()


def test_the_best_within_the_limits_is_taken() -> None:
    evidence = np.linspace(1, 0, len(CANDIDATES), dtype=np.float32)
    assert best_background(evidence, (0.2, 0.55)) == 0.2
    assert best_background(evidence[::-1].copy(), (0.2, 0.55)) == 0.55
    assert best_background(evidence, (0.3, 0.3)) == 0.3
    with pytest.raises(ShapeError, match="evidence must be"):
        best_background(evidence[:3], (0.2, 0.5))


def test_labels_with_the_score_found_are_those_of_that_score() -> None:
    maps, boundary, features, _ = scene(0.42)
    evidence = background_evidence(maps, boundary, features)
    found = best_background(evidence, (0.2, 0.55))
    assert found is not None
    assert found != 0.25
    ids, size = np.array([3]), (128, 160)
    searched = LabelParams(bg_search=(0.2, 0.55))
    label, instances = labels_from_scores(maps, ids, size, searched, evidence)
    plain = LabelParams(semantic_bg_threshold=found, instance_bg_threshold=found)
    expected, parts = labels_from_scores(maps, ids, size, plain)
    assert (label == expected).all()
    assert (instances.masks == parts.masks).all()
    # Without evidence for any score the thresholds hold.
    nothing = np.full_like(evidence, -np.inf)
    label, _ = labels_from_scores(maps, ids, size, searched, nothing)
    assert (label == labels_from_scores(maps, ids, size)[0]).all()
    with pytest.raises(ConfigError, match="bg_search needs evidence"):
        labels_from_scores(maps, ids, size, searched)


@pytest.mark.parametrize("limits", [(0.2,), (0.5, 0.2), (0.2, 0.3, 0.4), (0.21, 0.24), (float("nan"), 0.5)])
def test_impossible_limits_are_refused(limits: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be two numbers, the lower one first"):
        LabelParams(bg_search=limits)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="need a boundary"):
        background_evidence(torch.ones(1, 4, 4), torch.ones(4, 5), torch.ones(3, 2, 2))
