"""The compiled Chebyshev series against dense matrices, and against the series in torch that other devices take."""

import numpy as np
import pytest
import torch

from irn_pipeline.ops import random_walk as module
from irn_pipeline.ops.random_walk import build_transition, walk
from irn_pipeline.ops.stencil import stencil_series


def dense_transition(weights, shifts, degree):
    size = weights.shape[1]
    matrix = np.zeros((size, size))
    for shift, row in zip(shifts, weights, strict=True):
        for cell in range(size - shift):
            matrix[cell, cell + shift] = matrix[cell + shift, cell] = row[cell]
    # the diagonal takes what the neighbours leave of the column sum
    np.fill_diagonal(matrix, degree - matrix.sum(0))
    return matrix / degree


@pytest.mark.parametrize("size", [1, 2, 7, 60, 1023, 1024, 1025])
def test_equals_polynomials_of_the_dense_matrix(size):
    rng = np.random.default_rng(size)
    shifts = [s for s in (1, 3, 5) if s < size]
    weights = rng.random((len(shifts), size), np.float32)
    for row, shift in zip(weights, shifts, strict=True):
        row[size - shift :] = 0
    degree = np.full(size, 8, np.float32)
    values = rng.random((3, size), np.float32)
    coefficients = [0.3, -0.2, 0.5, 0.0, 0.4]
    transition = dense_transition(weights.astype(float), shifts, degree.astype(float))
    earlier, term = values.astype(float), values @ transition
    expected = 0.3 * earlier - 0.2 * term
    for coefficient in coefficients[2:]:
        earlier, term = term, 2 * term @ transition - earlier
        expected += coefficient * term
    found = stencil_series(values, weights, shifts, degree, coefficients)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_constant_series_needs_no_product():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = stencil_series(values, np.zeros((0, 3), np.float32), [], np.ones(3, np.float32), [0.5])
    assert found.tolist() == (values / 2).tolist()
    assert values[1, 2] == 5


def test_compiled_and_torch_walks_are_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    boundary = torch.rand(33, 41, generator=generator) ** 2
    maps = torch.rand(4, 33, 41, generator=generator)
    transition = build_transition(boundary)
    compiled = walk(maps, transition)
    taken = []

    def by_torch(*arguments):
        taken.append(True)
        return module._series(*arguments)

    monkeypatch.setattr(module, "_compiled_series", by_torch)
    torch.testing.assert_close(walk(maps, transition), compiled, rtol=0, atol=1e-5)
    assert taken


def test_walk_does_not_change_its_input_and_takes_maps_that_require_a_gradient():
    maps = torch.rand(2, 6, 7, requires_grad=True)
    before = maps.detach().clone()
    walked = walk(maps, build_transition(torch.full((6, 7), 0.3)))
    assert torch.equal(maps, before)
    assert not walked.requires_grad
