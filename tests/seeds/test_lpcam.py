"""LPCAM's maths: selection, clustering and maps, against loops and against what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from irn_pipeline.errors import ShapeError
from irn_pipeline.seeds.lpcam_maths import (
    Prototypes,
    kmeans,
    lpcam_maps,
    merge_lpcam,
    select_cells,
    select_prototypes,
    similarity_map,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def some(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("size", [(50, 70), (3, 4), (47, 33), (5, 9)])
def test_cells_take_the_nearest_value(size):
    features, cam = some(6, 4, 5), some(*size)
    above, below = select_cells(features, cam, 0.5)
    expected_above, expected_below = [], []
    for row in range(4):
        for column in range(5):
            value = cam[row * size[0] // 4, column * size[1] // 5]
            (expected_above if value > 0.5 else expected_below).append(features[:, row, column])
    torch.testing.assert_close(above, torch.stack(expected_above))
    torch.testing.assert_close(below, torch.stack(expected_below))


def test_cells_at_the_threshold_are_on_neither_side():
    above, below = select_cells(some(3, 1, 3), torch.tensor([[0.25, 0.5, 0.75]]), 0.5)
    assert (len(above), len(below)) == (1, 1)


def test_directions_are_told_apart_whatever_the_length():
    directions = torch.eye(3)
    lengths = torch.tensor([1.0, 2, 5, 9])
    cells = (directions[:, None] * lengths[:, None]).reshape(-1, 3)
    found = kmeans(cells, 3, rng(), first=np.array([0, 4, 8]), tolerance=1e-6)
    assert found.assigned.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    torch.testing.assert_close(found.centres, directions * lengths.mean())


def test_clusters_are_settled_when_the_tolerance_is_small():
    cells = some(200, 8)
    found = kmeans(cells, 6, rng(), tolerance=1e-12)
    nearest = cosine_similarity(cells[:, None], found.centres[None], dim=2).argmax(1)
    assert found.assigned.tolist() == nearest.tolist()
    for number, centre in enumerate(found.centres):
        torch.testing.assert_close(centre, cells[nearest == number].mean(0))


def test_the_start_is_seeded():
    cells = some(60, 4)
    first, again = (kmeans(cells, 5, rng()) for _ in range(2))
    torch.testing.assert_close(first.centres, again.centres, atol=0, rtol=0)
    other = kmeans(cells, 5, np.random.default_rng(1))
    assert not torch.equal(first.centres, other.centres)


def test_an_emptied_cluster_starts_again():
    # Rows 0 and 1 point the same way, so the cluster that starts from row 1 gets no cell.
    cells = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0.1, 1], [1, 1]])
    found = kmeans(cells, 3, rng(), first=np.array([0, 1, 2]), tolerance=1e-9)
    assert found.centres.isfinite().all()
    assert set(found.assigned.tolist()) == {0, 1, 2}


def test_cells_that_are_all_alike_end():
    found = kmeans(torch.ones(9, 4), 3, rng(), tolerance=0)
    assert found.centres.tolist() == [[1.0] * 4] * 3


@pytest.mark.parametrize("cells", [0, 1, 4])
def test_fewer_cells_than_clusters_are_a_cluster_each(cells):
    found = kmeans(torch.eye(4)[:cells], 12, rng())
    assert sorted(found.centres.tolist()) == sorted(torch.eye(4)[:cells].tolist())
    assert sorted(found.assigned.tolist()) == list(range(cells))


def test_prototypes_and_context_are_chosen_by_their_share_of_the_classes():
    classifier = torch.eye(2)
    # Shares of class 0: 1/2, 3/4, 99/100.
    centres = torch.tensor([[0.0, 0], [float(np.log(3)), 0], [float(np.log(99)), 0]])
    found = select_prototypes(
        centres, centres, classifier, 0, prototype_above=0.9, context_between=(0.6, 0.9)
    )
    torch.testing.assert_close(found.prototypes, centres[2:])
    torch.testing.assert_close(found.context, centres[1:2])
    assert len(select_prototypes(centres, centres, classifier, 1).prototypes) == 0


def test_similarity_is_that_of_a_loop():
    features, prototypes, context = some(6, 3, 4) - 0.3, some(4, 6) - 0.3, some(2, 6) - 0.5
    found = similarity_map(features, prototypes, context)
    for row in range(3):
        for column in range(4):
            cell = features[None, :, row, column]
            value = cosine_similarity(cell, prototypes).mean() - cosine_similarity(cell, context).mean()
            assert float(found[row, column]) == pytest.approx(max(float(value), 0), abs=1e-6)


def test_a_cell_like_the_only_prototype_is_the_maximum():
    features = some(5, 3, 4)
    found = similarity_map(features, 3 * features[:, 1, 2][None], torch.zeros(0, 5))
    assert int(found.argmax()) == 1 * 4 + 2
    assert float(found.max()) == pytest.approx(1)


def test_scale_of_features_does_not_matter():
    features, prototypes, context = some(5, 3, 4), some(2, 5), some(3, 5)
    scaled = features * torch.tensor([0.1, 4, 20, 1])
    torch.testing.assert_close(
        similarity_map(scaled, prototypes, context), similarity_map(features, prototypes, context)
    )


def test_context_like_the_prototype_leaves_nothing():
    prototypes = some(2, 5)
    assert float(similarity_map(some(5, 3, 4), prototypes, prototypes).max()) < 1e-6


def test_the_mirror_is_flipped_back_and_summed_before_the_similarity():
    picture, prototypes, context = some(5, 3, 4), some(2, 5), some(1, 5)
    pair = torch.stack([picture, picture.flip(-1)])
    found = lpcam_maps(pair, [Prototypes(prototypes, context)], torch.zeros(1, 5))
    torch.testing.assert_close(found[0], similarity_map(picture, prototypes, context))


def test_a_class_without_prototypes_gets_the_plain_map():
    pair, classifier = some(2, 5, 3, 4) - 0.5, some(2, 5) - 0.5
    none = Prototypes(torch.zeros(0, 5), some(2, 5))
    other = Prototypes(some(1, 5), torch.zeros(0, 5))
    found = lpcam_maps(pair, [none, other], classifier)
    plain = torch.einsum("d,bdhw->bhw", classifier[0], pair).relu()
    torch.testing.assert_close(found[0], plain[0] + plain[1].flip(-1))


def test_merged_maps_are_averages_divided_by_their_maximum():
    maps = [some(2, 3, 4), some(2, 6, 7)]
    cam, high_res_cam = merge_lpcam(maps, (32, 48))
    for found, size in ((cam, (8, 12)), (high_res_cam, (32, 48))):
        mean = sum(interpolate(scale[None], size, mode="bilinear")[0] for scale in maps) / 2
        torch.testing.assert_close(found, mean / mean.amax((1, 2), keepdim=True))
    empty = merge_lpcam([torch.zeros(1, 3, 4)], (32, 48))
    assert all(float(found.abs().max()) == 0 for found in empty)
    assert merge_lpcam([torch.zeros(0, 3, 4)], (32, 48))[1].shape == (0, 32, 48)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="prototypes"):
        similarity_map(some(5, 3, 4), torch.zeros(0, 5), some(2, 5))
    with pytest.raises(ShapeError, match="classifier"):
        lpcam_maps(some(2, 5, 3, 4), [Prototypes(some(1, 5), some(1, 5))], torch.zeros(2, 5))
    with pytest.raises(ShapeError, match="features"):
        select_cells(some(4, 5), some(8, 8))
    with pytest.raises(ShapeError, match="cluster"):
        kmeans(some(2, 3, 4), 2, rng())
    with pytest.raises(ShapeError, match="scale"):
        merge_lpcam([], (8, 8))
