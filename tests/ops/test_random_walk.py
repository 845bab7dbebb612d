from __future__ import annotations

import numpy as np
import pytest
import torch

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.random_walk import build_transition, chebyshev_power, random_walk, walk


def dense_affinity(boundary, radius, beta):
    """(hw, hw) float64 matrix A, from the definition."""
    height, width = boundary.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    matrix = np.eye(len(cells))
    for i, (y0, x0) in enumerate(cells):
        for j, (y1, x1) in enumerate(cells):
            dy, dx = y1 - y0, x1 - x0
            if j <= i or dy**2 + dx**2 >= radius**2:
                continue
            path = [
                boundary[y0 + y, x0 + x]
                for y in range(dy + 1)
                for x in range(min(dx, 0), max(dx, 0) + 1)
                if (dy * x - dx * y) ** 2 / (dy**2 + dx**2) < 1
            ]
            matrix[i, j] = matrix[j, i] = (1 - max(path)) ** beta
    return matrix


def random_case(seed, height, width, count=2):
    generator = torch.Generator().manual_seed(seed)
    boundary = torch.rand(height, width, generator=generator) ** 2
    return torch.rand(count, height, width, generator=generator), boundary


@pytest.mark.parametrize(
    ("height", "width", "radius", "beta", "exp_times"),
    [
        (12, 15, 5, 10.0, 8),
        (12, 15, 5, 8.0, 6),
        (8, 9, 3, 2.0, 5),
        (6, 11, 4, 1.0, 3),
        (7, 7, 2, 4.0, 10),
        (10, 4, 10, 0.5, 1),
        (5, 6, 5, 10.0, 0),
        # smaller than the radius
        (3, 2, 5, 3.0, 4),
        (1, 9, 5, 3.0, 8),
        (9, 1, 5, 3.0, 8),
        (1, 2, 10, 1.0, 2),
        (2, 1, 10, 1.0, 2),
    ],
)
def test_walk_matches_dense_matrix_power(height, width, radius, beta, exp_times):
    maps, boundary = random_case(height * width, height, width)
    affinity = dense_affinity(boundary.double().numpy(), radius, beta)
    transition = affinity / affinity.sum(0, keepdims=True)
    start = (maps * (1 - boundary)).double().numpy().reshape(len(maps), -1)
    expected = (start @ np.linalg.matrix_power(transition, 2**exp_times)).reshape(maps.shape)
    walked = random_walk(maps, boundary, radius=radius, beta=beta, exp_times=exp_times)
    assert walked.dtype == torch.float32
    np.testing.assert_allclose(walked.numpy(), expected, rtol=0, atol=1e-5 * expected.max())


def test_transition_holds_the_affinity_and_its_column_sums():
    _, boundary = random_case(3, 6, 8)
    affinity = dense_affinity(boundary.double().numpy(), 4, 3.0)
    transition = build_transition(boundary, radius=4, beta=3.0)
    np.testing.assert_allclose(transition.degree.flatten().numpy(), affinity.sum(0), rtol=1e-5)
    for (dy, dx), weights in zip(transition.offsets, transition.weights, strict=True):
        for y in range(6):
            for x in range(8):
                inside = y + dy < 6 and 0 <= x + dx < 8
                expected = affinity[y * 8 + x, (y + dy) * 8 + x + dx] if inside else 0.0
                assert float(weights[y, x]) == pytest.approx(expected, abs=1e-6)


def test_two_cells_by_hand():
    # a = 1/2: T = [[1, 1/2], [1/2, 1]] / (3/2); one step from (1, 0) is (2/3, 1/3)
    transition = build_transition(torch.tensor([[0.5, 0.25]]), beta=1.0)
    one_step = walk(torch.tensor([[[1.0, 0.0]]]), transition, exp_times=0)
    assert one_step.flatten().tolist() == pytest.approx([2 / 3, 1 / 3])
    # eigenvalues 1 and 1/3: two steps are 1/2 +- 1/18
    two_steps = walk(torch.tensor([[[1.0, 0.0]]]), transition, exp_times=1)
    assert two_steps.flatten().tolist() == pytest.approx([5 / 9, 4 / 9])


def test_single_cell_is_only_damped():
    walked = random_walk(torch.tensor([[[0.8]]]), torch.tensor([[0.25]]))
    assert walked.tolist() == [[[pytest.approx(0.6)]]]


def test_random_walk_starts_from_maps_damped_by_the_boundary():
    maps, boundary = random_case(4, 9, 10)
    expected = walk(maps * (1 - boundary), build_transition(boundary))
    assert torch.equal(random_walk(maps, boundary), expected)


@pytest.mark.parametrize("exp_times", [0, 1, 5, 8, 12])
def test_constant_maps_are_fixed_points(exp_times):
    _, boundary = random_case(5, 13, 17)
    constant = torch.full((1, 13, 17), 0.7)
    walked = walk(constant, build_transition(boundary), exp_times=exp_times)
    torch.testing.assert_close(walked, constant, rtol=0, atol=1e-5)


def test_degree_weighted_sum_is_kept():
    maps, boundary = random_case(6, 14, 11)
    transition = build_transition(boundary, radius=4, beta=5.0)
    before = (maps * transition.degree).sum((1, 2))
    after = (walk(maps, transition) * transition.degree).sum((1, 2))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)


def test_walk_is_linear_and_treats_maps_separately():
    maps, boundary = random_case(7, 10, 12, count=3)
    transition = build_transition(boundary)
    walked = walk(maps, transition)
    torch.testing.assert_close(walk(maps[1:2], transition), walked[1:2], rtol=0, atol=1e-6)
    combined = walk(2 * maps[:1] - 3 * maps[2:], transition)
    torch.testing.assert_close(combined, 2 * walked[:1] - 3 * walked[2:], rtol=0, atol=1e-5)
    assert not walk(torch.zeros(1, 10, 12), transition).any()


def test_closed_boundary_blocks_the_flow_and_leaves_either_side_mixed():
    boundary = torch.zeros(6, 11)
    boundary[:, 5] = 1.0
    maps = torch.zeros(1, 6, 11)
    maps[0, 2, 1] = 1.0
    transition = build_transition(boundary)
    walked = walk(maps, transition, exp_times=10)[0]
    assert walked[:, 5:].abs().max() == 0
    # long walks end in the constant that keeps the degree-weighted sum of their side
    level = transition.degree[2, 1] / transition.degree[:, :5].sum()
    torch.testing.assert_close(walked[:, :5], level.expand(6, 5), rtol=1e-3, atol=0)


def test_mirrored_inputs_give_mirrored_walks():
    maps, boundary = random_case(8, 9, 13)
    walked = random_walk(maps, boundary)
    mirrored = random_walk(maps.flip(2), boundary.flip(1)).flip(2)
    turned = random_walk(maps.transpose(1, 2), boundary.T).transpose(1, 2)
    torch.testing.assert_close(mirrored, walked, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned, walked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 64, 256, 4096])
def test_chebyshev_series_is_the_power(steps):
    x = np.linspace(-1, 1, 2001)
    coefficients = chebyshev_power(steps)
    assert sum(coefficients) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(np.polynomial.chebyshev.chebval(x, coefficients), x**steps, rtol=0, atol=2e-6)


def test_long_walks_need_few_products():
    # x^4 = 3/8 T_0 + 1/2 T_2 + 1/8 T_4
    assert chebyshev_power(4) == pytest.approx([3 / 8, 0, 1 / 2, 0, 1 / 8])
    assert len(chebyshev_power(256)) < 90
    assert len(chebyshev_power(2**20)) < 6000


def test_bad_inputs_are_refused():
    boundary = torch.zeros(6, 7)
    with pytest.raises(ShapeError, match=r"\(h, w\)"):
        build_transition(boundary[None])
    with pytest.raises(ShapeError, match="maps must be"):
        random_walk(torch.zeros(2, 6, 8), boundary)
    with pytest.raises(ShapeError, match="maps must be"):
        random_walk(torch.zeros(6, 7), boundary)
    with pytest.raises(ConfigError, match="beta"):
        build_transition(boundary, beta=0.0)
    with pytest.raises(ConfigError, match="radius"):
        build_transition(boundary, radius=1)
    with pytest.raises(ConfigError, match="exp_times"):
        random_walk(torch.zeros(2, 6, 7), boundary, exp_times=-1)
