"""ReCAM's maths: what must hold of it, and a loop over pictures and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from irn_pipeline.errors import ShapeError
from irn_pipeline.seeds.recam import class_features, normalised_maps, product_maps, recam_loss

generator = torch.Generator()


@pytest.fixture
def batch():
    generator.manual_seed(5)
    features = torch.rand(4, 6, 3, 5, generator=generator)
    classifier, head = (torch.randn(7, 6, generator=generator) for _ in range(2))
    tags = (torch.rand(4, 7, generator=generator) > 0.6).float()
    tags[:, 2] = 1
    return features, classifier, head, tags


def softmax_loss_by_hand(features, classifier, head, tags) -> float:
    """One picture and class after the other, in numpy."""
    features, classifier, head = (t.double().numpy() for t in (features, classifier, head))
    total = 0.0
    for picture, present in zip(features, tags.numpy(), strict=True):
        losses = []
        for k in np.flatnonzero(present):
            activation = np.maximum(np.tensordot(classifier[k], picture, 1), 0)
            activation = activation / (activation.max() + 1e-5)
            logits = head @ (activation * picture).mean((1, 2))
            losses.append(np.log(np.exp(logits).sum()) - logits[k])
        total += np.mean(losses) if losses else 0
    return total / len(features)


def test_softmax_loss_is_that_of_a_loop(batch):
    features, classifier, head, tags = batch
    tags[1] = 0
    found = recam_loss(features, classifier, head, tags, weight=0.3)
    assert float(found.softmax) == pytest.approx(softmax_loss_by_hand(*batch), rel=1e-5)
    assert float(found.total) == pytest.approx(float(found.multilabel) + 0.3 * float(found.softmax))


def test_scale_of_the_classifier_changes_neither_maps_nor_second_loss(batch):
    features, classifier, head, tags = (part.double() for part in batch)
    # Maxima far above the 1e-5 that is added to them.
    classifier = 1e4 * classifier.abs()
    scaled = 3.7 * classifier
    torch.testing.assert_close(
        normalised_maps(features, scaled), normalised_maps(features, classifier), atol=1e-8, rtol=0
    )
    torch.testing.assert_close(
        recam_loss(features, scaled, head, tags).softmax,
        recam_loss(features, classifier, head, tags).softmax,
        atol=1e-8,
        rtol=0,
    )


def test_a_single_class_has_no_second_loss(batch):
    features, classifier, head, _ = batch
    found = recam_loss(features, classifier[:1], head[:1], torch.ones(4, 1))
    assert float(found.softmax) == 0
    assert float(found.accuracy) == 1


def test_order_of_classes_permutes_maps_and_keeps_losses(batch):
    features, classifier, head, tags = batch
    order = [3, 0, 6, 1, 5, 2, 4]
    maps = product_maps(features, classifier, head)
    torch.testing.assert_close(product_maps(features, classifier[order], head[order]), maps[:, order])
    found = recam_loss(features, classifier[order], head[order], tags[:, order])
    for part, expected in zip(found, recam_loss(features, classifier, head, tags), strict=True):
        torch.testing.assert_close(part, expected)


def test_a_head_of_ones_gives_the_plain_map(batch):
    features, classifier, _, _ = batch
    plain = torch.nn.functional.conv2d(features, classifier[:, :, None, None]).relu()
    torch.testing.assert_close(product_maps(features, classifier, torch.ones_like(classifier)), plain)


def test_no_tag_at_all_gives_no_second_loss_and_finite_gradients(batch):
    features, classifier, head, _ = batch
    head.requires_grad_()
    found = recam_loss(features, classifier, head, torch.zeros(4, 7))
    found.total.backward()
    assert found.softmax.item() == found.accuracy.item() == 0
    assert (head.grad == 0).all()


def test_a_tagged_class_without_a_map_costs_the_logarithm_of_the_classes(batch):
    features, classifier, head, _ = batch
    classifier[2] = -1
    tags = torch.zeros(4, 7)
    tags[:, 2] = 1
    assert float(recam_loss(features, classifier, head, tags).softmax) == pytest.approx(math.log(7))


def test_vectors_of_classes_are_sums_over_cells(batch):
    features, classifier, _, _ = batch
    maps = normalised_maps(features, classifier)
    expected = (maps[:, :, None] * features[:, None]).mean((3, 4))
    torch.testing.assert_close(class_features(features, maps), expected)


def test_what_does_not_fit_is_refused(batch):
    features, classifier, head, tags = batch
    with pytest.raises(ShapeError, match="tags"):
        recam_loss(features, classifier, head, tags[:2])
    with pytest.raises(ShapeError, match="tags"):
        recam_loss(features, classifier, head[:, :3], tags)
    with pytest.raises(ShapeError, match="features"):
        normalised_maps(features[0], classifier)
