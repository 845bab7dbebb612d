"""The noise of AP counts hits as the evaluation does."""

import numpy as np
import pytest

from benchmarks.ap_noise import THRESHOLDS, mean_ap
from irn_pipeline.metrics.instance import InstanceEvaluator, PictureHits
from irn_pipeline.structures import GroundTruth, Instances


def _scene(generator: np.random.Generator) -> tuple[Instances, GroundTruth]:
    """Shifted copies of three true boxes, some far off; scores often equal."""
    true = np.zeros((3, 40, 60), np.bool_)
    found = np.zeros((6, 40, 60), np.bool_)
    for index in range(6):
        top, left = int(generator.integers(0, 6)), 20 * (index % 3) + int(generator.integers(0, 4))
        found[index, top : top + 30, left : left + 14] = True
        true[index % 3, 2:32, 20 * (index % 3) + 2 : 20 * (index % 3) + 16] = True
    ignore = np.zeros((40, 60), np.bool_)
    ignore[:4] = True
    classes = np.array([0, 1, 1])
    truth = Instances(np.ones(3, np.float32), true, classes)
    label = np.where(true.any(0), 1, 0).astype(np.uint8)
    scores = generator.choice([0.5, 0.9, 1.0], 6).astype(np.float32)
    return Instances(scores, found, np.tile(classes, 2)), GroundTruth(label, truth, ignore)


def test_curves_are_those_of_the_evaluation() -> None:
    generator = np.random.default_rng(3)
    scenes = [_scene(generator) for _ in range(12)]
    evaluator = InstanceEvaluator(4, THRESHOLDS)
    hits = [evaluator.hits(*scene) for scene in scenes]
    for scene in scenes:
        evaluator.add(*scene)
    expected = 100 * np.array(evaluator.result().mean_ap)
    assert 0 < expected[2] < expected[0] < 100
    np.testing.assert_allclose(mean_ap(hits, 4), expected, rtol=1e-5)


@pytest.mark.parametrize(("scores", "possible"), [((1.0, 1.0), {50.0, 100.0}), ((0.5, 1.0), {50.0})])
def test_only_equal_scores_change_places(scores: tuple[float, float], possible: set[float]) -> None:
    """A hit and a miss of one class with one truth: AP is 1 when the hit comes first, 1/2 when second."""
    hits = np.tile(np.array([True, False]), (len(THRESHOLDS), 1))
    values = np.array(scores, np.float32)
    one = PictureHits(np.zeros(2, np.int64), values, hits, values, hits[0], np.array([0]))
    generator = np.random.default_rng(0)
    assert {float(mean_ap([one], 2, generator)[0]) for _ in range(40)} == possible
