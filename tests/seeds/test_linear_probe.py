"""The linear probe: maps agree with logits, the fit is a minimum, and tags alone choose its strength."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from irn_pipeline.errors import ConfigError, IrnError, ShapeError
from irn_pipeline.seeds.linear_probe import (
    REGULARISATIONS,
    deal_folds,
    fit_probe,
    pool,
)


def pictures(count: int = 60, width: int = 8, classes: int = 3, noise: float = 0.5, seed: int = 0):
    """Pooled features whose first channels show the classes, on channels of unlike scale and offset."""
    rng = np.random.default_rng(seed)
    tags = rng.random((count, classes)) < np.array([0.5, 0.3, 0.15])[:classes]
    tags[:classes], tags[classes : 2 * classes] = np.eye(classes), np.eye(classes)
    features = rng.normal(0, noise, (count, width))
    features[:, :classes] += tags
    features = features * np.geomspace(0.01, 100, width) + np.linspace(-30, 30, width)
    return torch.from_numpy(features).float(), torch.from_numpy(tags).float()


def test_mean_of_a_map_is_the_logit_without_its_bias():
    features = torch.randn(5, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    probe = fit_probe(*pictures(), regularisation=0.1)
    maps = probe.maps(features, [0, 2])
    logits = probe.scores(pool(features))[:, [0, 2]] - probe.bias[[0, 2]]
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=1e-4, atol=1e-4)


def test_a_centred_map_is_nought_at_the_mean_feature():
    pooled, tags = pictures()
    probe = fit_probe(pooled, tags, regularisation=0.1)
    torch.testing.assert_close(probe.mean, pooled.mean(0), rtol=1e-5, atol=1e-5)
    at_mean = probe.maps(probe.mean[:, None, None].expand(-1, 2, 3), [1], centred=True)
    assert float(at_mean.abs().max()) < 1e-4
    plain = probe.maps(pooled[0][:, None, None], [1])
    centred = probe.maps(pooled[0][:, None, None], [1], centred=True)
    torch.testing.assert_close(plain - centred, (probe.weight[1] @ probe.mean).reshape(1, 1, 1))


def test_cells_permute_with_the_map():
    probe = fit_probe(*pictures(), regularisation=0.1)
    features = torch.randn(8, 3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    permuted = features.flatten(1)[:, order].view(8, 3, 4)
    expected = probe.maps(features, [0]).flatten(1)[:, order].view(1, 3, 4)
    torch.testing.assert_close(probe.maps(permuted, [0]), expected)


def test_a_class_without_pictures_has_an_empty_map():
    pooled, tags = pictures()
    probe = fit_probe(pooled, torch.cat([tags, torch.zeros(len(tags), 1)], 1))
    assert (probe.weight[3] == 0).all()
    assert (probe.maps(torch.randn(8, 2, 2), [3]) == 0).all()
    assert (probe.weight[:3] != 0).any(1).all()


def loss_of(weight, bias, pooled, tags, regularisation: float, balanced: bool) -> torch.Tensor:
    """The sentence of the docstring, in torch."""
    standardised_weight = weight * pooled.std(0, correction=0)
    total = regularisation / 2 * (standardised_weight**2).sum()
    for k in range(tags.shape[1]):
        errors = binary_cross_entropy_with_logits(pooled @ weight[k] + bias[k], tags[:, k], reduction="none")
        present = tags[:, k] > 0
        total = total + (
            (errors[present].mean() + errors[~present].mean()) / 2 if balanced else errors.mean()
        )
    return total


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("regularisation", [0.01, 1.0])
def test_the_fit_is_where_the_loss_is_flat(balanced, regularisation):
    pooled, tags = (part.double() for part in pictures())
    probe = fit_probe(pooled, tags, regularisation=regularisation, balanced=balanced)
    deviation = pooled.std(0, correction=0)
    standard = (probe.weight.double() * deviation).requires_grad_()
    offset = (probe.bias.double() + probe.weight.double() @ pooled.mean(0)).requires_grad_()
    weight = standard / deviation
    loss = loss_of(weight, offset - weight @ pooled.mean(0), pooled, tags, regularisation, balanced)
    for gradient in torch.autograd.grad(loss, [standard, offset]):
        assert float(gradient.abs().max()) < 1e-4


def test_scale_and_offset_of_features_are_folded_in():
    pooled, tags = pictures()
    scale, offset = torch.linspace(0.5, 40, 8), torch.linspace(-3, 5, 8)
    first = fit_probe(pooled, tags, regularisation=0.1)
    second = fit_probe(pooled * scale + offset, tags, regularisation=0.1)
    torch.testing.assert_close(
        first.scores(pooled), second.scores(pooled * scale + offset), atol=1e-2, rtol=1e-2
    )


def test_channels_that_never_vary_get_no_weight():
    pooled, tags = pictures()
    constant = torch.cat([pooled, torch.full((len(pooled), 1), 0.1), torch.zeros(len(pooled), 1)], 1)
    probe = fit_probe(constant, tags, regularisation=0.1)
    assert (probe.weight[:, 8:] == 0).all()
    torch.testing.assert_close(probe.weight[:, :8], fit_probe(pooled, tags, regularisation=0.1).weight)


def test_a_rare_class_is_found_as_well_as_a_common_one():
    rng = np.random.default_rng(3)
    tags = np.zeros((400, 1), bool)
    tags[:8] = True
    features = torch.from_numpy(rng.normal(0, 1, (400, 2)) + 2.5 * tags).float()
    balanced, plain = (
        fit_probe(features, torch.from_numpy(tags), regularisation=0.01, balanced=choice).scores(features)
        for choice in (True, False)
    )
    assert (balanced[:8] > 0).float().mean() >= 7 / 8
    assert (balanced[8:] < 0).float().mean() > 0.9
    assert (plain[:8] > 0).float().mean() < (balanced[:8] > 0).float().mean()


def test_noise_asks_for_more_regularisation_than_clear_features():
    rng = np.random.default_rng(0)
    tags = rng.random((40, 2)) < 0.5
    clear = np.repeat(tags, 5, 1) + rng.normal(0, 0.05, (40, 10))
    noise = rng.normal(0, 1, (40, 10))
    strengths = [
        fit_probe(torch.from_numpy(part), torch.from_numpy(tags)).regularisation for part in (noise, clear)
    ]
    assert strengths[0] == REGULARISATIONS[0]
    assert strengths[1] <= 1e-3


def test_the_choice_is_the_smallest_loss_on_left_out_pictures():
    """Cross-validation anew, with probes that are fitted by `fit_probe` and judged in torch."""
    pooled, tags = pictures(noise=1.5)
    fold_of = torch.from_numpy(deal_folds(tags.numpy() > 0, 4))
    shares = tags.mean(0)
    weights = torch.where(tags > 0, 0.5 / shares, 0.5 / (1 - shares))
    losses = []
    for strength in REGULARISATIONS:
        total = 0.0
        for fold in range(4):
            kept = fold_of != fold
            probe = fit_probe(pooled[kept], tags[kept], regularisation=strength)
            scores = probe.scores(pooled[~kept])
            total += float(
                binary_cross_entropy_with_logits(scores, tags[~kept], weight=weights[~kept], reduction="sum")
            )
        losses.append(total)
    found = fit_probe(pooled, tags, folds=4)
    assert found.regularisation == REGULARISATIONS[int(np.argmin(losses))]
    assert found.regularisation not in (REGULARISATIONS[0], REGULARISATIONS[-1])


def test_folds_spread_every_class():
    tags = np.random.default_rng(1).random((53, 6)) < np.array([0.9, 0.5, 0.3, 0.2, 0.1, 0.05])
    fold_of = deal_folds(tags, 5)
    assert set(fold_of) == set(range(5))
    sizes = np.bincount(fold_of)
    assert sizes.max() - sizes.min() <= 6
    for column in tags.T:
        held = np.bincount(fold_of[column], minlength=5)
        assert held.max() - held.min() <= max(2, 0.3 * held.mean())


def test_one_picture_a_class_is_fitted_without_a_choice():
    probe = fit_probe(torch.eye(3), torch.eye(3))
    assert probe.scores(torch.eye(3)).argmax(1).tolist() == [0, 1, 2]


def test_inputs_are_left_alone_and_the_result_repeats():
    pooled, tags = pictures()
    before = pooled.clone(), tags.clone()
    first, second = fit_probe(pooled, tags), fit_probe(pooled, tags)
    assert torch.equal(pooled, before[0])
    assert torch.equal(tags, before[1])
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision(dtype):
    pooled, tags = pictures()
    probe = fit_probe(pooled.to(dtype), tags, regularisation=0.1)
    assert probe.weight.dtype == torch.float32
    assert probe.maps(torch.randn(8, 2, 2).to(dtype), [0]).dtype == dtype


def test_pooling():
    features = torch.arange(12.0).view(2, 2, 3)
    assert pool(features).tolist() == [2.5, 8.5]
    assert pool(features, "max").tolist() == [5, 11]


def test_what_cannot_be_fitted_is_refused():
    pooled, tags = pictures()
    with pytest.raises(ConfigError, match=r"classes \[1\] .* all 60 images"):
        fit_probe(pooled, torch.cat([tags[:, :1], torch.ones(60, 1)], 1))
    with pytest.raises(ShapeError, match="pooled"):
        fit_probe(pooled[:5], tags)
    with pytest.raises(ShapeError, match="pooled"):
        fit_probe(pooled[:0], tags[:0])
    for strength in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="above 0"):
            fit_probe(pooled, tags, regularisation=strength)
    pooled[3, 2] = float("nan")
    with pytest.raises(IrnError, match="NaN"):
        fit_probe(pooled, tags)
    with pytest.raises(ShapeError, match="features must be"):
        fit_probe(*pictures(), regularisation=1.0).maps(torch.zeros(9, 2, 2), [0])
