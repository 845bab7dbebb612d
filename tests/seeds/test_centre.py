"""Border against middle: objects that are there are found, and the sign tells centred sets from others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.cells import CellSample
from irn_pipeline.seeds.centre_maths import (
    CENTRED,
    centre_targets,
    centredness,
    fit_centre,
    is_centred,
    quarters,
)

SIDE = 24


def scene(seed: int, *, centred: bool, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Two features of ground and of a disc on it, with noise; and where the disc is."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.full((2,), (side - 1) / 2) if centred else torch.rand(2, generator=generator) * (side - 1)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = (y - place[0]) ** 2 + (x - place[1]) ** 2 < (side / 4 + seed % 3) ** 2
    features = torch.stack([disc * 2.0, 1.0 - disc * 1.0]) + 0.2 * torch.randn(
        2, side, side, generator=generator
    )
    return features, disc


def fitted(seed: int = 0):
    sample = CellSample(dims=(2,), per_picture=60, seed=seed)
    for number in range(12):
        features, _ = scene(number, centred=True)
        sample.add([features], centre_targets((SIDE, SIDE)))
    return fit_centre(sample)


def test_targets_by_hand() -> None:
    assert centre_targets((4, 5), radius=0.45).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 255, 1, 255, 0],
        [0, 255, 1, 255, 0],
        [0, 0, 0, 0, 0],
    ]
    assert (centre_targets((1, 3), border=0.4) == 0).all()
    assert (centre_targets((20, 20), border=0.1)[2:-2, 2:-2] != 0).all()
    assert (centre_targets((20, 20), border=0.1)[1] == 0).all()


def test_objects_are_found_beyond_the_middle_and_wherever_they_are() -> None:
    classifier = fitted()
    for number, centred in ((40, True), (41, False), (42, False)):
        features, disc = scene(number, centred=centred)
        found = classifier.scores([features], (SIDE, SIDE))[0] > 0
        assert (found == disc).float().mean() > 0.99


def test_cells_permute_with_the_scores() -> None:
    features, _ = scene(50, centred=True)
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(3))
    permuted = features.flatten(1)[:, order].view_as(features)
    expected = fitted().scores([features], (SIDE, SIDE)).flatten(1)[:, order].view(1, SIDE, SIDE)
    torch.testing.assert_close(fitted().scores([permuted], (SIDE, SIDE)), expected)


def test_the_fit_is_repeatable() -> None:
    assert torch.equal(fitted().weights[0], fitted().weights[0])
    assert not torch.equal(fitted().weights[0], fitted(seed=1).weights[0])


def test_pictures_too_small_for_a_middle_are_refused() -> None:
    sample = CellSample(dims=(2,), per_picture=60)
    sample.add([torch.randn(2, 2, 2)], centre_targets((2, 2)))
    with pytest.raises(ConfigError, match="too few cells"):
        fit_centre(sample)


def test_features_without_any_difference_give_no_object() -> None:
    sample = CellSample(dims=(2,), per_picture=60)
    sample.add([torch.ones(2, 8, 8)], centre_targets((8, 8)))
    assert (fit_centre(sample).scores([torch.ones(2, 8, 8)], (8, 8)) == 0).all()


def test_quarters_begin_at_the_corners_and_at_the_centre() -> None:
    image = torch.arange(24).view(1, 4, 6)
    found = quarters(image)
    assert found.shape == (8, 1, 2, 3)
    assert found[:4, 0, 0, 0].tolist() == [0, 5, 18, 23]
    assert found[4:, 0, 0, 0].tolist() == [8, 9, 14, 15]
    assert sorted(found[:4].flatten().tolist()) == list(range(24))
    odd = quarters(torch.arange(25).view(1, 5, 5))
    assert odd[:4, 0, 0, 0].tolist() == [0, 4, 20, 24]


def through_a_network(image: Tensor) -> list[Tensor]:
    """Maps of quarters by a convolution whose padding marks their border."""
    kernel = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return [conv2d(quarters(image), kernel, padding=1).relu()]


def test_the_sign_tells_centred_sets_from_others_though_padding_marks_borders() -> None:
    centred = [through_a_network(scene(number, centred=True)[0]) for number in range(20)]
    anywhere = [through_a_network(scene(number, centred=False)[0]) for number in range(20)]
    empty = [
        through_a_network(torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(n)))
        for n in range(20)
    ]
    assert centredness(centred) > CENTRED
    assert centredness(anywhere) < 0.9
    assert abs(centredness(empty) - 0.5) < 0.2
    with pytest.raises(ConfigError, match="5 images at least, got 4"):
        centredness(centred[:4])


@pytest.mark.parametrize(
    ("value", "tags", "negatives", "expected"),
    [
        (0.99, [1, 1], 0, True),
        (0.97, [1, 1], 0, False),
        (0.99, [1, 2], 0, False),
        (0.99, [1, 1], 1, False),
        (0.99, [], 0, False),
    ],
)
def test_photographs_and_sets_with_negatives_are_not_centred(value, tags, negatives, expected) -> None:
    assert is_centred(value, tags, negatives) is expected
