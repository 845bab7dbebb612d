"""Odd cells are found, their edge lies at 0.5, and each class takes the route that its images call for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.seeds.cells import CellSample
from irn_pipeline.seeds.contrast import contrast_map, largest_piece
from irn_pipeline.seeds.defects_maths import (
    ORDINARY,
    TAGGED,
    Candidates,
    DefectClassifier,
    OrdinaryCells,
    Route,
    defect_maps,
    fit_defects,
    region_of,
    with_pixels,
)

GRID, WIDTH, SIZE = (12, 16), 6, (48, 64)
SPOT, TEXTURE = 0, 1
"""Classes: a block of cells of another kind, and none at all that stands out."""


def features_of(seed: int, *class_ids: int) -> tuple[list[Tensor], Tensor]:
    """Two stages of an image's features, and where its spot is."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.zeros(GRID, dtype=torch.bool)
    if SPOT in class_ids:
        row, column = (int(torch.randint(side - 3, (), generator=random)) for side in GRID)
        truth[row : row + 3, column : column + 4] = True
    fine = (
        torch.randn(WIDTH, *GRID, generator=random)
        + truth * torch.tensor([4.0, -4, 0, 0, 0, 2])[:, None, None]
    )
    return [fine, torch.randn(WIDTH, GRID[0] // 2, GRID[1] // 2, generator=random)], truth


def fitted(tagged: int = 30, without: int = 30) -> DefectClassifier:
    shown = [*[(n, (SPOT,)) for n in range(tagged)], *[(100 + n, (TEXTURE,)) for n in range(tagged)]]
    shown += [(200 + n, ()) for n in range(without)]
    sample = CellSample(dims=(WIDTH, WIDTH), per_picture=150)
    for seed, class_ids in shown:
        sample.add(features_of(seed, *class_ids)[0], torch.full(GRID, TAGGED if class_ids else ORDINARY))
    ordinary = OrdinaryCells.fit(sample)
    found = [Candidates.of(features_of(seed, *ids)[0], ids, ordinary) for seed, ids in shown]
    return fit_defects(ordinary, found, 3)


def test_distances_are_those_of_mahalanobis() -> None:
    sample = CellSample(dims=(WIDTH,), per_picture=200)
    for seed in range(4):
        sample.add(features_of(seed)[0][:1], torch.full(GRID, ORDINARY))
    ordinary = OrdinaryCells.fit(sample)
    cells = ordinary.cells.double()
    covariance = np.cov(cells.T.numpy(), bias=True)
    covariance += 0.02 * np.diag(covariance).mean() * np.eye(WIDTH)
    centred = (cells - cells.mean(0)).numpy()
    expected = np.sqrt(np.einsum("nd,nd->n", centred @ np.linalg.inv(covariance), centred))
    assert ordinary.distance(ordinary.cells).numpy() == pytest.approx(expected, rel=1e-3)


def test_odd_cells_are_found_in_images_that_were_not_learned_from() -> None:
    classifier = fitted()
    for seed in (300, 301, 302):
        features, truth = features_of(seed, SPOT)
        scores = classifier.scores(features, [SPOT], GRID)[0]
        region, cut = region_of(scores, float(classifier.gates[SPOT]))
        assert cut == pytest.approx(float(classifier.gates[SPOT]))
        assert float((region & truth).sum() / (region | truth).sum()) > 0.7


def test_routes_follow_from_odd_cells_and_from_pieces() -> None:
    classifier = fitted()
    # The third class has no image.
    assert classifier.routes.tolist() == [Route.CELLS, Route.PROBE, Route.PROBE]
    assert with_pixels(classifier, {SPOT: [0.9, 0.6, 0.2]}).routes[SPOT] == Route.PIXELS
    assert with_pixels(classifier, {SPOT: [0.9, 0.3, 0.2]}).routes[SPOT] == Route.CELLS
    assert with_pixels(classifier, {TEXTURE: [1.0]}).routes[TEXTURE] == Route.PROBE


def test_the_edge_is_at_a_half_and_the_maximum_at_one() -> None:
    classifier = fitted()
    features, _ = features_of(310, SPOT)
    probe = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps = defect_maps(classifier, features, probe, torch.rand(SIZE), [SPOT, TEXTURE])
    assert maps.shape == (2, *SIZE)
    assert maps.amax((1, 2)).tolist() == pytest.approx([1, 1])
    assert float(maps.min()) >= 0
    scores = classifier.scores(features, [SPOT], SIZE)[0]
    region, _ = region_of(scores, float(classifier.gates[SPOT]))
    assert ((maps[0] > 0.5) == region).all()
    assert defect_maps(classifier, features, probe[:0], torch.rand(SIZE), []).shape == (0, *SIZE)


def test_small_spots_end_at_their_own_pixels() -> None:
    spot = torch.zeros(SIZE, dtype=torch.bool)
    spot[20:26, 30:37] = True
    gray = torch.where(spot, -1.0, 1.0) + 0.05 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    contrast = contrast_map(gray, blur=0.5)
    around = np.zeros(SIZE, bool)
    around[12:34, 22:45] = True
    assert largest_piece(contrast, around) > 0.9
    classifier = with_pixels(fitted(), {SPOT: [1.0]})
    # Features whose odd cells lie around the spot, so that the region is larger than it.
    features = [features_of(0)[0][0], features_of(0)[0][1]]
    features[0][:, 3:9, 5:12] += torch.tensor([4.0, -4, 0, 0, 0, 2])[:, None, None]
    found = defect_maps(classifier, features, torch.zeros(1, 3, 4), gray, [SPOT])[0] > 0.5
    overlap = float((found & spot).sum() / (found | spot).sum())
    coarse = defect_maps(fitted(), features, torch.zeros(1, 3, 4), gray, [SPOT])[0] > 0.5
    assert overlap > 0.6 > 0.25 > float((coarse & spot).sum() / (coarse | spot).sum())


def test_scattered_contrasts_are_no_piece() -> None:
    contrast = np.zeros(SIZE, np.float32)
    contrast[::8, ::8] = 1
    assert largest_piece(contrast, np.ones(SIZE, bool)) == pytest.approx(1 / 48)
    assert largest_piece(contrast, np.zeros(SIZE, bool)) == 0


def test_the_region_of_a_weak_image_is_its_highest_part() -> None:
    scores = torch.tensor([[1.0, 3.0, 10.0], [8.0, 6.9, 7.1]])
    assert region_of(scores, 20.0)[0].tolist() == [[False, False, True], [True, False, True]]
    assert region_of(scores, 5.0)[0].tolist() == [[False, False, True], [True, True, True]]
    region, cut = region_of(-scores, 20.0)  # no cell is likely: still the highest
    assert (region.sum(), cut) == (1, pytest.approx(-1.3))


def test_state_comes_back_and_other_tensors_are_refused() -> None:
    classifier = with_pixels(fitted(), {SPOT: [1.0]})
    again = DefectClassifier.from_state(classifier.state())
    assert again.state().keys() == classifier.state().keys()
    assert all((value == classifier.state()[name]).all() for name, value in again.state().items())
    with pytest.raises(ShapeError, match="one gate and one route"):
        DefectClassifier.from_state({n: v for n, v in classifier.state().items() if n != "gates"})


def test_images_without_a_tag_are_needed() -> None:
    with pytest.raises(
        ConfigError, match=r"images without a tag have 0 cells.*add images without any defect"
    ):
        fitted(without=0)
