"""Cells sampled in bounded memory, and the classifier of cells: what it must find, and what must hold of its maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from irn_pipeline.errors import ShapeError
from irn_pipeline.seeds import cells
from irn_pipeline.seeds.cells import CellAxes, CellClassifier, CellSample
from irn_pipeline.seeds.pixels_maths import fit_pixels, pixel_maps, sure_cells, teaching_maps

WIDTHS, GRID = (4, 6, 8), (6, 8)
CLASSES = 3


def centres() -> list[Tensor]:
    """Features of the background and the classes at each stage, apart from one another; (4, C_s) a stage."""
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(CLASSES + 1, width, generator=generator).abs() for width in WIDTHS]


def picture(seed: int, *class_ids: int, noise: float = 0.2) -> tuple[list[Tensor], Tensor]:
    """Features of a picture whose left half is ground, and whose right half its objects; and its true cells."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(GRID, dtype=torch.int64)
    for row, class_id in enumerate(class_ids):
        truth[row * 6 // len(class_ids) : (row + 1) * 6 // len(class_ids), 4:] = class_id + 1
    stages = [centre[truth].permute(2, 0, 1) for centre in centres()]
    stages = [(s + noise * torch.randn(s.shape, generator=generator)).relu() for s in stages]
    # The first stage is finer than the others.
    return [stages[0].repeat_interleave(2, 1).repeat_interleave(2, 2), *stages[1:]], truth


def half_maps(truth: Tensor, *class_ids: int) -> Tensor:
    """Maps as classifiers have them: high on part of the object, and a little above nought elsewhere."""
    maps = torch.stack([(truth == class_id + 1) * 1.0 for class_id in class_ids])
    maps[:, :, -1] *= 0.4  # neither sure of the class nor of the background
    return maps + 0.1


def fitted(classes: int = CLASSES, pictures: int = 30, seed: int = 0) -> CellClassifier:
    sample = CellSample(dims=(4, 5, 6), per_picture=20, seed=seed)
    for number in range(pictures):
        class_id = number % classes
        features, truth = picture(number, class_id)
        sample.add(features, sure_cells(half_maps(truth, class_id), [class_id]))
    return fit_pixels(sample, CLASSES, seed=seed)


def test_sure_cells_are_those_above_and_below_the_limits() -> None:
    maps = torch.tensor([[[0.9, 0.1, 0.3, 0.6]], [[0.2, 0.15, 0.1, 0.7]]])
    assert sure_cells(maps, [4, 1]).tolist() == [[5, 0, 255, 2]]
    assert sure_cells(maps, [4, 1], high=0.65, low=0.35).tolist() == [[5, 0, 0, 2]]
    with pytest.raises(ShapeError, match="3 classes need as many maps"):
        sure_cells(maps, [4, 1, 0])


def test_a_picture_without_tags_is_background() -> None:
    assert sure_cells(torch.zeros(0, 2, 3), []).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_known_cells_are_recovered_in_new_pictures() -> None:
    classifier = fitted()
    for number, class_ids in ((100, [0, 2]), (101, [1]), (102, [2, 1])):
        features, truth = picture(number, *class_ids)
        scores = classifier.scores(features, GRID)
        assert (scores.argmax(0) == truth).all()
        even = torch.ones(len(class_ids), *GRID)
        maps = pixel_maps(classifier, features, even, class_ids)
        assert maps.shape == (len(class_ids), *GRID)
        for row, class_id in enumerate(class_ids):
            inside, outside = maps[row][truth == class_id + 1], maps[row][truth != class_id + 1]
            assert inside.min() > 0.5 > 0.4 > outside.max()


def test_maps_lie_between_nought_and_one_and_within_the_teaching_map() -> None:
    features, truth = picture(7, 1)
    teaching = teaching_maps(half_maps(truth, 1), features)
    assert teaching.max() <= 1 and teaching.min() >= 0 and teaching.shape == (1, *GRID)
    teaching[:, :, :5] = 0
    maps = pixel_maps(fitted(), features, teaching, [1])
    assert maps.max() == pytest.approx(1, abs=1e-4) and maps.min() >= 0
    assert (maps[:, :, :5] == 0).all()


def test_cells_permute_with_the_maps() -> None:
    features, _ = picture(3, 0, 2)
    features = features[1:]  # those of one grid
    classifier = CellClassifier(fitted().weights[1:], fitted().bias)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    permuted = [stage.flatten(1)[:, order].view_as(stage) for stage in features]
    teaching = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(4))
    expected = pixel_maps(classifier, features, teaching, [0, 2]).flatten(1)[:, order].view(2, *GRID)
    there = teaching.flatten(1)[:, order].view_as(teaching)
    torch.testing.assert_close(pixel_maps(classifier, permuted, there, [0, 2]), expected)


def test_maps_follow_the_order_of_the_tags_and_other_classes_change_nothing() -> None:
    classifier, (features, _) = fitted(), picture(3, 0, 2)
    teaching = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(4))
    maps = pixel_maps(classifier, features, teaching, [0, 2])
    torch.testing.assert_close(pixel_maps(classifier, features, teaching.flip(0), [2, 0]), maps.flip(0))
    bias = classifier.bias.clone()
    bias[2] += 100  # class 1, of which the picture has no tag
    torch.testing.assert_close(
        pixel_maps(CellClassifier(classifier.weights, bias), features, teaching, [0, 2]), maps
    )


def test_the_fit_is_repeatable_and_its_seed_counts() -> None:
    first, second, other = fitted(), fitted(), fitted(seed=1)
    for one, two in zip((*first.weights, first.bias), (*second.weights, second.bias), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.bias, other.bias)


def test_a_class_without_example_keeps_its_teaching_map() -> None:
    classifier = fitted(classes=2)
    assert classifier.bias.isinf().tolist() == [False, False, False, True]
    features, _ = picture(5, 2)
    even = torch.ones(1, *GRID)
    torch.testing.assert_close(pixel_maps(classifier, features, even, [2]), even, rtol=0, atol=1e-4)


def test_pictures_without_any_background_leave_classes_to_compare() -> None:
    sample = CellSample(dims=(4, 5, 6), per_picture=20)
    for number in range(10):
        features, truth = picture(number, 0, 1)
        sample.add(features, torch.where(truth == 0, 255, truth))
    classifier = fit_pixels(sample, CLASSES)
    features, truth = picture(50, 0, 1)
    maps = pixel_maps(classifier, features, torch.ones(2, *GRID), [0, 1])
    assert maps.isfinite().all()
    assert (maps.argmax(0) + 1)[truth > 0].equal(truth[truth > 0])


def test_no_tag_no_map_and_no_cell_no_classifier() -> None:
    features, _ = picture(3, 0)
    assert pixel_maps(fitted(), features, torch.zeros(0, *GRID), []).shape == (0, *GRID)
    assert teaching_maps(torch.zeros(0, *GRID), features).shape == (0, *GRID)
    sample = CellSample(dims=(4,), per_picture=5)
    sample.add([torch.zeros(4, 2, 2)], torch.full((2, 2), 255))
    with pytest.raises(ShapeError, match="no cell"):
        fit_pixels(sample, CLASSES)


def test_features_and_targets_that_do_not_fit_are_refused() -> None:
    classifier, (features, _) = fitted(), picture(3, 0)
    with pytest.raises(ShapeError, match=r"must have \[4, 6, 8\] channels"):
        classifier.scores(features[1:], GRID)
    with pytest.raises(ShapeError, match="1 classes need as many maps"):
        pixel_maps(classifier, features, torch.ones(2, *GRID), [0])
    sample = CellSample(dims=(4,), per_picture=5)
    sample.add([torch.zeros(4, 2, 2)], torch.full((2, 2), 9))
    with pytest.raises(ShapeError, match="class 8, counted from 0, but there are 3"):
        fit_pixels(sample, CLASSES)


def test_a_sample_holds_so_many_cells_a_picture_and_only_sure_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_AXES_FROM", 3)
    sample = CellSample(dims=(2,), per_picture=5)
    for number in range(8):
        targets = torch.full((4, 4), 255)
        targets[: 1 + number % 2, :3] = number
        sample.add([torch.randn(6, 4, 4)], targets)
        assert len(sample._waiting) == (number + 1 if number < 2 else 0)
    found, targets, _ = sample.finish()
    assert torch.bincount(targets).tolist() == [3, 5, 3, 5, 3, 5, 3, 5]
    assert found.shape == (32, 2)


def test_of_too_many_cells_half_are_kept_and_later_pictures_give_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells, "_AXES_FROM", 2)
    sample = CellSample(dims=(2,), per_picture=16, limit=100)
    for number in range(60):
        sample.add([torch.randn(6, 4, 4)], torch.full((4, 4), number))
        assert sum(map(len, sample._targets)) <= 100
    found, targets, _ = sample.finish()
    assert len(found) == len(targets) > 40
    assert 10 < targets.float().mean() < 50  # of the first pictures and of the last


def test_axes_are_white_and_a_classifier_on_them_is_one_on_raw_features() -> None:
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(6, 6, generator=generator)
    stages = [torch.randn(500, 6, generator=generator) @ mix + 7, torch.rand(500, 2, generator=generator)]
    stages[1][:, 1] = 3.0  # constant
    axes = CellAxes.fit(stages, (4, 5))
    reduced = axes(stages)
    assert reduced.shape == (500, 6)
    covariance = reduced.T @ reduced / 500
    torch.testing.assert_close(covariance[:4, :4], torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariance[4:, 4:], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), atol=1e-3, rtol=0)
    weight, bias = torch.randn(3, 6, generator=generator), torch.tensor([1.0, -2.0, -torch.inf])
    raw = axes.classifier(weight, bias)
    features = [stage.T.reshape(-1, 20, 25) for stage in stages]
    expected = (reduced @ weight.T + bias).T.view(3, 20, 25)
    torch.testing.assert_close(raw.scores(features, (20, 25)), expected, rtol=1e-3, atol=1e-3)


def test_a_classifier_goes_through_its_state() -> None:
    classifier = fitted()
    again = CellClassifier.from_state(classifier.state())
    assert all(torch.equal(a, b) for a, b in zip(classifier.weights, again.weights, strict=True))
    assert torch.equal(classifier.bias, again.bias)
    state = classifier.state()
    for broken in (
        {},
        {"bias": state["bias"]},
        {**state, "bias": state["bias"][1:]},
        {**state, "x": state["bias"]},
    ):
        with pytest.raises(ShapeError, match="no cell classifier"):
            CellClassifier.from_state(broken)
