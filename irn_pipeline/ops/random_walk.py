"""Random walk that spreads activation maps inside class boundaries (paper, section 5.2).

The original builds the dense (hw, hw) transition matrix and squares it. Here the matrix is a stencil, and n
steps of it cost about sqrt(30 n) applications.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.affinity import pair_affinity, pair_paths

_TAIL = 1e-6
"""Sum of the Chebyshev coefficients that may be left out. All of them sum to 1, so it bounds the error."""

_Stencil: TypeAlias = list[tuple[int, Tensor]]
"""Shift along a flat vector and the weights of the pairs that far apart."""


@dataclass(frozen=True)
class Transition:
    """Transition matrix T = A / column sums of a walk on a grid; A is symmetric with a diagonal of 1.

    Attributes:
        offsets: P pairs (dy, dx), dy >= 0.
        weights: (P, h, w) float32, A between a cell and the cell at the offset; 0 where that is outside.
        degree: (h, w) float32 column sums of A.
    """

    offsets: tuple[tuple[int, int], ...]
    weights: Tensor
    degree: Tensor


def random_walk(
    maps: Tensor, boundary: Tensor, *, radius: int = 5, beta: float = 10.0, exp_times: int = 8
) -> Tensor:
    """Spread activation maps for 2^exp_times steps, starting from maps * (1 - boundary).

    Args:
        maps: (M, h, w) activations, not yet multiplied by (1 - boundary).
        boundary: (h, w) class boundary probability on the same device.
        radius: cells closer than this are joined directly.
        beta: exponent of the affinity; larger values close weak boundaries.
        exp_times: how often the transition matrix is, in effect, squared.

    Returns:
        (M, h, w) float32 walked maps; as `walk`.

    Raises:
        ShapeError: maps and boundary do not fit.
        ConfigError: radius < 2, beta <= 0 or exp_times < 0.
    """
    if maps.ndim != 3 or maps.shape[1:] != boundary.shape:
        raise ShapeError(f"maps must be (M, *{tuple(boundary.shape)}), got {tuple(maps.shape)}")
    transition = build_transition(boundary, radius=radius, beta=beta)
    return walk(maps.float() * (1 - boundary.float()), transition, exp_times=exp_times)


def build_transition(boundary: Tensor, *, radius: int = 5, beta: float = 10.0) -> Transition:
    """Transition of A = (1 - maximum of the boundary on the path)^beta, both directions.

    Args:
        boundary: (h, w) class boundary probability; outside of the grid it is taken to be 1.
        radius: cells closer than this are joined directly.
        beta: exponent of the affinity.

    Returns:
        The transition, on the boundary's device.

    Raises:
        ShapeError: the boundary has other than two dimensions.
        ConfigError: radius < 2 or beta <= 0.
    """
    if boundary.ndim != 2:
        raise ShapeError(f"boundary must be (h, w), got {tuple(boundary.shape)}")
    if beta <= 0:
        raise ConfigError(f"beta must be positive, got {beta}")
    paths, margin = pair_paths(radius), radius - 1
    surrounded = pad(boundary.float(), (margin, margin, 0, margin), value=1.0)
    weights = pair_affinity(surrounded[None], paths)[0].pow(beta).unflatten(1, boundary.shape)
    offsets = tuple((int(dy), int(dx)) for dy, dx in paths.offsets)
    return Transition(offsets, weights, _degree(offsets, weights))


@torch.no_grad()
def walk(maps: Tensor, transition: Transition, *, exp_times: int = 8) -> Tensor:
    """Walk maps for n = 2^exp_times steps: x T^n, each map being a row vector x.

    T is similar to a symmetric matrix with eigenvalues in [-1, 1], so that T^n is a Chebyshev series, which
    needs about sqrt(30 n) products with T. No gradient is recorded.

    Args:
        maps: (M, h, w) start vectors.
        transition: of the same grid and device.
        exp_times: how often T is, in effect, squared.

    Returns:
        (M, h, w) float32. Constant maps stay as they are, and the sum of map * degree is kept. Errors are of
        the order of 1e-6 of the largest value, so that cells the walk hardly reaches may be as far below 0.

    Raises:
        ShapeError: maps and transition do not fit.
        ConfigError: exp_times < 0.
    """
    if maps.ndim != 3 or maps.shape[1:] != transition.degree.shape:
        raise ShapeError(f"maps must be (M, *{tuple(transition.degree.shape)}), got {tuple(maps.shape)}")
    if exp_times < 0:
        raise ConfigError(f"exp_times must not be negative, got {exp_times}")
    grid = _FlatGrid(maps.shape[2], max(abs(dx) for _, dx in transition.offsets))
    stencil = grid.stencil(transition.offsets, transition.weights)
    # the empty cells take no part; a degree of 0 would make them 0 / 0
    degree = grid.flatten(transition.degree).clamp(min=1)
    series = _compiled_series if maps.device.type == "cpu" else _series
    return grid.restore(series(grid.flatten(maps.float()), stencil, degree, chebyshev_power(2**exp_times)))


def _degree(offsets: tuple[tuple[int, int], ...], weights: Tensor) -> Tensor:
    degree = torch.ones_like(weights[0])
    height, width = degree.shape
    for (dy, dx), weight in zip(offsets, weights, strict=True):
        degree += weight
        if dy < height and abs(dx) < width:
            inside = weight[: height - dy, max(-dx, 0) : width - max(dx, 0)]
            degree[dy:, max(dx, 0) : width - max(-dx, 0)] += inside
    return degree


def _series(values: Tensor, stencil: _Stencil, degree: Tensor, coefficients: list[float]) -> Tensor:
    """Sum of c_k x T_k(T) for (M, n) values x, T_k(T) being the Chebyshev polynomials of the transition."""
    total, term = values * coefficients[0], values.clone()
    step = torch.zeros_like(values)
    for order, coefficient in enumerate(coefficients[1:], start=1):
        # T_1 = T, then T_(k+1) = 2 T T_k - T_(k-1), by the differences of successive terms: with the terms
        # themselves float32 loses three more digits over a few hundred steps
        step.add_(_inflow(term, stencil).div_(degree), alpha=1 if order == 1 else 2)
        term.add_(step)
        if coefficient:
            total.add_(term, alpha=coefficient)
    return total


def _compiled_series(values: Tensor, stencil: _Stencil, degree: Tensor, coefficients: list[float]) -> Tensor:
    """`_series` in one pass over the cells per order, for a CPU."""
    # Only this device's way needs numba, which takes a second to import.
    from irn_pipeline.ops.stencil import stencil_series

    size = values.shape[1]
    weights = values.new_zeros(len(stencil), size)
    for row, (shift, weight) in zip(weights, stencil, strict=True):
        row[: size - shift] = weight
    shifts = [shift for shift, _ in stencil]
    walked = stencil_series(values.numpy(), weights.numpy(), shifts, degree.numpy(), coefficients)
    return torch.from_numpy(walked)


def _inflow(values: Tensor, stencil: _Stencil) -> Tensor:
    """Weighted sum of the differences from each cell of (M, n) values to its neighbours."""
    total, buffer = torch.zeros_like(values), torch.empty_like(values)
    size = values.shape[1]
    for shift, weight in stencil:
        near, far = slice(size - shift), slice(shift, size)
        difference = torch.sub(values[:, far], values[:, near], out=buffer[:, near])
        total[:, near].addcmul_(difference, weight)
        total[:, far].addcmul_(difference, weight, value=-1)
    return total


@dataclass(frozen=True)
class _FlatGrid:
    """Row-major vectors of a grid whose rows end in `margin` empty cells.

    An offset is then one shift of the whole vector, which is faster than a shifted 2-d view, and no offset
    reaches from one row into the next.
    """

    width: int
    margin: int

    def flatten(self, values: Tensor) -> Tensor:
        """(..., h, w) -> (..., n)."""
        return pad(values, (0, self.margin)).flatten(-2)

    def restore(self, values: Tensor) -> Tensor:
        """(..., n) -> (..., h, w)."""
        return values.unflatten(-1, (-1, self.width + self.margin))[..., : self.width].contiguous()

    def stencil(self, offsets: tuple[tuple[int, int], ...], weights: Tensor) -> _Stencil:
        """Shift and weights (n - shift,) of every offset that fits into the grid."""
        shifts = [dy * (self.width + self.margin) + dx for dy, dx in offsets]
        flat = self.flatten(weights)
        size = flat.shape[1]
        return [(s, weight[: size - s]) for s, weight in zip(shifts, flat, strict=True) if s < size]


def chebyshev_power(steps: int) -> list[float]:
    """Coefficients c_0, c_1 ... of x^steps = sum of c_k T_k(x) on [-1, 1], cut where the rest is below 1e-6.

    x^n = 2^(1-n) sum' C(n, (n - k) / 2) T_k(x) over the k of n's parity, k = 0 halved. Neighbouring terms
    have the ratio (n - k) / (n + k + 2), and all sum to 1 (x = 1): neither needs the huge binomials.

    Args:
        steps: the power, at least 0.

    Returns:
        Coefficients that sum to 1; every second one is 0.
    """
    degrees, terms = [steps % 2], [1.0]
    while degrees[-1] < steps and terms[-1] > 1e-3 * _TAIL:
        k = degrees[-1]
        terms.append(terms[-1] * (steps - k) / (steps + k + 2))
        degrees.append(k + 2)
    if degrees[0] == 0:
        terms[0] /= 2
    total, left_out = math.fsum(terms), 0.0
    while left_out + terms[-1] < _TAIL * total:
        left_out += terms.pop()
    total -= left_out
    coefficients = [0.0] * (degrees[len(terms) - 1] + 1)
    for degree, term in zip(degrees, terms, strict=False):
        coefficients[degree] = term / total
    return coefficients
