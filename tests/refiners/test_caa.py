"""Class-aware attention affinity: against the sentence that defines it, and what must hold of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.refiners.caa import (
    box_mask,
    caa,
    cell_attention,
    min_max,
    region_boxes,
    symmetric_affinity,
)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def boxed(maps: Tensor, threshold: float = 0.4) -> Tensor:
    masks = [box_mask(region_boxes(m.numpy(), threshold), m.shape) for m in maps]
    return maps * torch.from_numpy(np.stack(masks))


def contour_mask(activation: np.ndarray, threshold: float) -> np.ndarray:
    """The original's way: boxes of outer and inner contours."""
    levels = (activation * 255).astype(np.uint8)
    _, above = cv2.threshold(levels, int(threshold * levels.max()), 255, cv2.THRESH_BINARY)
    mask = np.zeros(activation.shape, bool)
    height, width = activation.shape
    for contour in cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        mask[y : min(y + h, height - 1), x : min(x + w, width - 1)] = True
    return mask


@settings(deadline=None, max_examples=200)
@given(
    arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.floats(0, 1, width=32)),
    st.sampled_from([0.0, 0.4, 0.7, 0.9]),
)
def test_boxes_are_those_of_contours(activation, threshold):
    mask = box_mask(region_boxes(activation, threshold), activation.shape)
    np.testing.assert_array_equal(mask, contour_mask(activation, threshold))


def test_boxes_reach_the_border_when_asked_to():
    activation = np.zeros((4, 5), np.float32)
    activation[2:, 3:] = 1
    assert region_boxes(activation, 0.4).tolist() == [[3, 2, 4, 3]]
    assert region_boxes(activation, 0.4, keep_border=True).tolist() == [[3, 2, 5, 4]]


def test_affinity_is_that_of_the_sentence():
    attention = some(12, 12).double()
    matrix = attention.numpy().copy()
    for _ in range(3):
        matrix = matrix / matrix.sum(0)
        matrix = matrix / matrix.sum(1)[:, None]
    matrix = (matrix + matrix.T) / 2
    np.testing.assert_allclose(symmetric_affinity(attention).numpy(), matrix)
    maps = some(2, 3, 4, seed=1)
    expected = (matrix @ matrix) @ boxed(maps).flatten(1).double().numpy().T
    np.testing.assert_allclose(caa(attention, maps).flatten(1).numpy(), expected.T, atol=1e-6)


def test_affinity_is_symmetric_with_rows_of_about_one():
    affinity = symmetric_affinity(some(20, 20))
    torch.testing.assert_close(affinity, affinity.T)
    assert ((affinity.sum(1) - 1).abs() < 0.05).all()


def test_rows_and_columns_of_zeros_stay():
    attention = some(6, 6)
    attention[2], attention[:, 2] = 0, 0
    affinity = symmetric_affinity(attention)
    assert affinity.isfinite().all()
    assert float(affinity[2].sum()) == 0


def test_attention_to_itself_gives_the_boxed_map():
    maps = some(3, 4, 5)
    torch.testing.assert_close(caa(torch.eye(20), maps), boxed(maps))


def test_even_attention_gives_the_mean_of_the_boxed_map():
    maps = some(2, 4, 5)
    expected = boxed(maps).mean((1, 2), keepdim=True).expand(2, 4, 5)
    torch.testing.assert_close(caa(torch.full((20, 20), 0.3), maps), expected)


def test_order_of_cells_does_not_matter_without_boxes():
    """A box around everything, so that only the affinity is left."""
    attention, maps = some(20, 20), 0.9 + 0.1 * some(1, 4, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    permuted = maps.flatten(1)[:, order].view(1, 4, 5)
    found = caa(attention[order][:, order], permuted, keep_border=True)
    expected = caa(attention, maps, keep_border=True).flatten(1)[:, order].view(1, 4, 5)
    torch.testing.assert_close(found, expected)


def test_an_empty_map_stays_empty():
    assert float(caa(some(20, 20), torch.zeros(1, 4, 5)).abs().max()) == 0
    assert caa(some(20, 20), torch.zeros(0, 4, 5)).shape == (0, 4, 5)


def test_tokens_that_are_no_cell_are_dropped_and_layers_averaged():
    attention = some(3, 7, 7)
    found = cell_attention(attention, prefix=5)
    torch.testing.assert_close(found, attention.mean(0)[5:, 5:])
    assert cell_attention(attention).shape == (6, 6)


def test_maps_are_stretched_to_nought_and_one():
    found = min_max(torch.tensor([[[2.0, 4.0, 3.0]], [[5.0, 5.0, 5.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[0, 1, 0.5]], [[0.0, 0, 0]]]))
    assert min_max(torch.zeros(0, 2, 2)).shape == (0, 2, 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="h \\* w"):
        caa(some(19, 19), some(1, 4, 5))
    with pytest.raises(ShapeError, match="attention"):
        symmetric_affinity(some(3, 4))
    with pytest.raises(ShapeError, match="map to box"):
        region_boxes(np.zeros(4, np.float32), 0.4)
    for threshold in (-0.1, 1, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            region_boxes(np.zeros((2, 2), np.float32), threshold)
