from __future__ import annotations

import numpy as np
import pytest
import torch

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.affinity import pair_affinity, pair_destinations, pair_paths, pair_sources


def brute_force_affinity(boundary, paths):
    """Cell by cell, from the definition of the path; gradients come from autograd."""
    height, width = boundary.shape
    margin = paths.radius - 1
    rows = []
    for dy, dx in paths.offsets.tolist():
        values = []
        for y0 in range(height - margin):
            for x0 in range(margin, width - margin):
                box = [
                    boundary[y0 + y, x0 + x]
                    for y in range(dy + 1)
                    for x in range(min(dx, 0), max(dx, 0) + 1)
                    if (dy * x - dx * y) ** 2 / (dy**2 + dx**2) < 1
                ]
                values.append(1 - torch.stack(box).max())
        rows.append(torch.stack(values))
    return torch.stack(rows)


def test_paths_of_radius_2_are_the_two_neighbours():
    paths = pair_paths(2)
    assert paths.offsets.tolist() == [[0, 1], [1, -1], [1, 0], [1, 1]]
    assert [p.tolist() for p in paths.paths] == [
        [[0, 0], [0, 1]],
        # both corners of the square lie sqrt(1/2) < 1 from the diagonal
        [[0, -1], [0, 0], [1, -1], [1, 0]],
        [[0, 0], [1, 0]],
        [[0, 0], [0, 1], [1, 0], [1, 1]],
    ]


@pytest.mark.parametrize("radius", [3, 5, 7, 10])
def test_offsets_are_one_of_each_opposite_pair_inside_the_circle(radius):
    offsets = {tuple(offset) for offset in pair_paths(radius).offsets.tolist()}
    square = [(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)]
    circle = {o for o in square if o[0] ** 2 + o[1] ** 2 < radius**2 and o != (0, 0)}
    opposite = {(-dy, -dx) for dy, dx in offsets}
    assert offsets | opposite == circle
    assert not offsets & opposite


@pytest.mark.parametrize("radius", [4, 10])
def test_runs_cover_exactly_the_path(radius):
    paths = pair_paths(radius)
    for path, runs in zip(paths.paths, paths.runs, strict=True):
        cells = [
            (run.start[0] + i * run.vertical, run.start[1] + i * (not run.vertical))
            for run in runs
            for i in range(run.length)
        ]
        assert sorted(cells) == sorted(map(tuple, path.tolist()))


def test_shared_paths_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        pair_paths(5).offsets[0, 0] = 7


@pytest.mark.parametrize("radius", [1, 0, -3])
def test_radius_without_pairs_is_refused(radius):
    with pytest.raises(ConfigError, match="at least 2"):
        pair_paths(radius)


def test_sources_and_destinations_are_aligned_views():
    values = torch.arange(4 * 6).view(1, 4, 6)
    assert pair_sources(values, 3).tolist() == [[[2, 3], [8, 9]]]
    assert pair_destinations(values, (2, -1), 3).tolist() == [[[13, 14], [19, 20]]]
    assert pair_destinations(values, np.array([0, 2]), 3).tolist() == [[[4, 5], [10, 11]]]
    pair_sources(values, 3)[...] = -1
    assert values[0, 1, 2] == -1


@pytest.mark.parametrize("shape", [(3, 20), (20, 6), (1, 1)])
def test_crop_smaller_than_a_neighbourhood_has_no_source(shape):
    assert pair_sources(torch.zeros(1, *shape), 4).numel() == 0
    assert pair_destinations(torch.zeros(1, *shape), (3, -1), 4).numel() == 0


def test_affinity_of_a_wall():
    boundary = torch.zeros(1, 2, 5)
    boundary[0, :, 2] = 0.75
    # sources (0, 1), (0, 2), (0, 3); offsets right, down-left, down, down-right
    expected = [[0.25, 0.25, 1.0], [1.0, 0.25, 0.25], [1.0, 0.25, 1.0], [0.25, 0.25, 1.0]]
    assert pair_affinity(boundary, pair_paths(2))[0].tolist() == expected


@pytest.mark.parametrize(("radius", "shape"), [(2, (3, 4)), (3, (5, 6)), (5, (7, 11)), (10, (11, 20))])
def test_affinity_and_gradient_match_brute_force(radius, shape):
    generator = torch.Generator().manual_seed(radius)
    boundary = torch.rand(2, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    paths = pair_paths(radius)
    affinity = pair_affinity(boundary, paths)
    expected = torch.stack([brute_force_affinity(b, paths) for b in boundary])
    assert torch.equal(affinity, expected)
    weights = torch.rand(affinity.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((affinity * weights).sum(), boundary)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), boundary)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2])
def test_tied_cells_share_one_gradient(levels):
    generator = torch.Generator().manual_seed(1)
    boundary = torch.randint(levels, (2, 8, 12), generator=generator).double().requires_grad_()
    affinity = pair_affinity(boundary, pair_paths(5))
    (gradient,) = torch.autograd.grad(affinity.sum(), boundary)
    assert gradient.sum() == -affinity.numel()
    if levels == 2:
        # a cell without boundary wins only on paths that have none at all
        assert gradient[boundary == 0].sum() == -(affinity == 1).sum()


def test_gradient_is_zero_without_pairs():
    boundary = torch.rand(2, 3, 8, requires_grad=True)
    affinity = pair_affinity(boundary, pair_paths(5))
    (gradient,) = torch.autograd.grad(affinity.sum(), boundary)
    assert affinity.shape == (2, 34, 0)
    assert not gradient.any()


def test_affinity_keeps_the_precision_of_its_input():
    assert pair_affinity(torch.rand(1, 9, 9), pair_paths(5)).dtype == torch.float32
    assert pair_affinity(torch.rand(1, 9, 9).double(), pair_paths(5)).dtype == torch.float64


def test_boundary_without_batch_is_refused():
    with pytest.raises(ShapeError, match=r"\(B, h, w\)"):
        pair_affinity(torch.rand(9, 9), pair_paths(5))
