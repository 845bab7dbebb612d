from __future__ import annotations

import doctest
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.metrics import instance
from irn_pipeline.metrics.instance import InstanceEvaluator, Rules, average_precision, match
from irn_pipeline.structures import GroundTruth, Instances
from tests.metrics.pictures import ground_truth, instances

NUM_CLASSES = 3
THRESHOLDS = (0.5, 0.7, 0.75)
NAN = float("nan")


def evaluate(pictures, num_classes=NUM_CLASSES, ignore_void=True, thresholds=THRESHOLDS):
    evaluator = InstanceEvaluator(num_classes, thresholds, rules=Rules(ignore_void=ignore_void))
    for predictions, truth in pictures:
        evaluator.add(predictions, truth)
    return evaluator.result()


def random_picture(rng, score_levels=4, size=(6, 7)):
    """Disjoint truths, predictions that are noisy copies of them or noise, void pixels; scores with ties."""
    owners = rng.integers(0, 5, size).repeat(2, axis=0)[: size[0]]
    masks = [owners == owner for owner in range(1, 1 + rng.integers(0, 5))]
    masks = [mask for mask in masks if mask.any()]
    true = instances(np.reshape(masks, (-1, *size)), rng.integers(0, NUM_CLASSES, len(masks)))
    predicted, class_ids = [], []
    for _ in range(rng.integers(0, 7)):
        copied = rng.integers(0, len(masks)) if masks and rng.random() < 0.8 else None
        mask = rng.random(size) < 0.2 if copied is None else masks[copied] ^ (rng.random(size) < 0.06)
        same_class = copied is not None and rng.random() < 0.8
        predicted.append(mask)
        class_ids.append(true.class_ids[copied] if same_class else rng.integers(0, NUM_CLASSES))
    scores = (1 + rng.integers(0, score_levels, len(predicted))) / score_levels
    void = (owners == 0) & (rng.random(size) < 0.5)
    return instances(np.reshape(predicted, (-1, *size)), class_ids, scores), ground_truth(true, void)


def pixel_set(mask):
    return {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}


def twin_ap(pictures, threshold, ignore_void, class_ids):
    """Average precision of the instances whose class is in `class_ids`, with sets of pixels and fractions."""
    threshold = Fraction(str(threshold))
    judged, num_truths = [], 0
    for predictions, truth in pictures:
        void = pixel_set(truth.ignore) if ignore_void else set()
        true = truth.instances
        truths = [
            pixel_set(m) - void for m, c in zip(true.masks, true.class_ids, strict=True) if c in class_ids
        ]
        truths = [pixels for pixels in truths if pixels]
        num_truths += len(truths)
        detections = []
        for score, mask, class_id in zip(
            predictions.scores.tolist(), predictions.masks, predictions.class_ids, strict=True
        ):
            before = pixel_set(mask)
            if class_id in class_ids and not (before and before <= void):
                detections.append((score, before - void))
        taken = set()
        for score, pixels in sorted(detections, key=lambda detection: -detection[0]):
            best, wanted = Fraction(-1), None
            for index, other in enumerate(truths):
                iou = Fraction(len(pixels & other), len(pixels | other))
                if iou > best:
                    best, wanted = iou, index
            hit = wanted is not None and best >= threshold and wanted not in taken
            if hit:
                taken.add(wanted)
            judged.append((score, hit))
    if num_truths == 0:
        return None
    points = []
    for level in sorted({score for score, _ in judged}, reverse=True):
        hits = [hit for score, hit in judged if score >= level]
        points.append((Fraction(sum(hits), num_truths), Fraction(sum(hits), len(hits))))
    area, recall_before = Fraction(0), Fraction(0)
    for index, (recall, _) in enumerate(points):
        area += (recall - recall_before) * max(precision for _, precision in points[index:])
        recall_before = recall
    return area


def assert_same(number, exact):
    assert np.isnan(number) if exact is None else number == pytest.approx(float(exact), abs=1e-12)


TOP, LEFT, CORNER = [[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [0, 0]]
THREE, FULL, EMPTY = [[1, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("predicted", "true", "iou"),
    [(THREE, TOP, 2 / 3), (CORNER, FULL, 1 / 4), (TOP, LEFT, 1 / 3), (THREE, FULL, 3 / 4), (EMPTY, FULL, 0)],
)
def test_two_by_two_masks_are_found_up_to_their_iou(predicted, true, iou):
    pictures = [(instances([predicted], [0]), ground_truth(instances([true], [0])))]
    thresholds = (0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0)
    scores = evaluate(pictures, 1, thresholds=thresholds)
    assert scores.mean_ap == tuple(float(threshold <= iou) for threshold in thresholds)
    assert scores.class_agnostic_ap50 == float(iou >= 0.5)


def test_precision_envelope_by_hand():
    # Precision 1/1, 1/2, 2/3 at recall 1/3, 1/3, 2/3: area 1/3 * 1 + 1/3 * 2/3.
    area = average_precision(np.array([0.7, 0.9, 0.8], np.float32), np.array([True, True, False]), 3)
    assert area == pytest.approx(5 / 9)
    # Precision 0/1, 1/2, 2/3, 3/4 rises, so its envelope is 3/4 everywhere.
    rising = average_precision(np.array([4, 3, 2, 1], np.float32), np.array([False, True, True, True]), 3)
    assert rising == pytest.approx(3 / 4)


def test_equal_scores_enter_the_curve_together():
    scores = np.ones(4, np.float32)
    for position in range(4):
        hits = np.arange(4) == position
        assert average_precision(scores, hits, 1) == 1 / 4


def test_no_second_choice_when_the_best_truth_is_taken():
    iou = np.array([[0.9, 0.0], [0.8, 0.7], [0.1, 0.6]], np.float32)
    assert match(iou, 0.5).tolist() == [True, False, True]
    assert match(iou, 0.65).tolist() == [True, False, False]
    assert match(np.zeros((2, 0), np.float32), 0.5).tolist() == [False, False]
    assert match(np.zeros((0, 2), np.float32), 0.5).tolist() == []


def test_duplicate_is_a_false_positive():
    true = ground_truth(instances([TOP, [[0, 0], [1, 1]]], [0, 0]))
    predicted = instances([TOP, TOP, [[0, 0], [1, 1]]], [0, 0, 0], [0.9, 0.8, 0.7])
    # Precision 1/1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    assert evaluate([(predicted, true)], 1).mean_ap[0] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_higher_score_matches_first_whatever_the_order_given():
    true = ground_truth(instances([FULL], [0]))
    for order in ([0, 1], [1, 0]):
        predicted = instances([FULL, THREE], [0, 0], [0.4, 0.6]).select(np.array(order))
        scores = evaluate([(predicted, true)], 1, thresholds=(0.75, 0.8))
        assert scores.mean_ap == (1.0, 1 / 2)


def test_wrong_class_counts_only_class_agnostically():
    scores = evaluate([(instances([TOP], [2]), ground_truth(instances([TOP], [1])))])
    assert scores.ap[0][1] == 0
    assert np.isnan([scores.ap[0][0], scores.ap[0][2]]).all()
    assert scores.mean_ap == (0, 0, 0)
    assert scores.class_agnostic_ap50 == 1
    assert scores.truth_counts == (0, 1, 0)


def test_no_prediction_scores_zero():
    scores = evaluate([(Instances.empty((2, 2)), ground_truth(instances([TOP], [1])))])
    assert scores.mean_ap == (0, 0, 0)
    assert scores.class_agnostic_ap50 == 0


def test_no_truth_is_nan_even_with_predictions():
    for predicted in (Instances.empty((2, 2)), instances([TOP], [1])):
        scores = evaluate([(predicted, ground_truth(Instances.empty((2, 2))))])
        assert np.isnan([*scores.mean_ap, *np.ravel(scores.ap), scores.class_agnostic_ap50]).all()
        assert scores.truth_counts == (0, 0, 0)


def test_no_picture_is_nan():
    assert np.isnan(evaluate([]).mean_ap).all()


def test_picture_without_truth_adds_false_positives():
    found = (instances([TOP], [0], [0.5]), ground_truth(instances([TOP], [0])))
    wrong = (instances([TOP], [0], [0.9]), ground_truth(Instances.empty((2, 2))))
    assert evaluate([found, wrong], 1).mean_ap == (1 / 2, 1 / 2, 1 / 2)


def test_void_pixels_are_removed_only_when_asked():
    truth = ground_truth(instances([CORNER], [0]), ignore=[[0, 1], [1, 0]])
    pictures = [(instances([THREE], [0]), truth)]
    assert evaluate(pictures, 1, ignore_void=True).mean_ap == (1, 1, 1)
    assert evaluate(pictures, 1, ignore_void=False).mean_ap == (0, 0, 0)


def test_prediction_wholly_on_void_is_dropped_and_an_empty_one_is_wrong():
    truth = ground_truth(instances([CORNER], [0]), ignore=[[0, 0], [1, 1]])
    on_void = instances([[[0, 0], [1, 1]], CORNER], [0, 0], [0.9, 0.5])
    empty = instances([EMPTY, CORNER], [0, 0], [0.9, 0.5])
    assert evaluate([(on_void, truth)], 1).mean_ap[0] == 1
    assert evaluate([(on_void, truth)], 1, ignore_void=False).mean_ap[0] == 1 / 2
    assert evaluate([(empty, truth)], 1).mean_ap[0] == 1 / 2


def test_truth_without_pixels_is_not_counted():
    truth = ground_truth(instances([CORNER, EMPTY], [0, 1]))
    assert evaluate([(truth.instances, truth)]).truth_counts == (1, 0, 0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ignore_void", [True, False])
def test_equals_the_brute_force_twin(seed, ignore_void):
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(5)]
    scores = evaluate(pictures, ignore_void=ignore_void)
    for index, threshold in enumerate(THRESHOLDS):
        exact = [twin_ap(pictures, threshold, ignore_void, {class_id}) for class_id in range(NUM_CLASSES)]
        for number, expected in zip(scores.ap[index], exact, strict=True):
            assert_same(number, expected)
        present = [area for area in exact if area is not None]
        assert_same(scores.mean_ap[index], sum(present) / len(present) if present else None)
    assert_same(scores.class_agnostic_ap50, twin_ap(pictures, 0.5, ignore_void, set(range(NUM_CLASSES))))


def test_random_data_is_worth_comparing():
    rng = np.random.default_rng(0)
    scores = evaluate([random_picture(rng) for _ in range(60)])
    assert 0.1 < scores.mean_ap[2] < scores.mean_ap[1] < scores.mean_ap[0] < 0.8


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_truth_as_prediction_scores_one(seed):
    rng = np.random.default_rng(seed)
    truths = [random_picture(rng)[1] for _ in range(3)]
    scores = evaluate([(truth.instances, truth) for truth in truths])
    counts = np.bincount(np.concatenate([t.instances.class_ids for t in truths]), minlength=NUM_CLASSES)
    assert scores.truth_counts == tuple(counts.tolist())
    expected = np.where(counts > 0, 1.0, NAN)
    for ap, mean in zip(scores.ap, scores.mean_ap, strict=True):
        np.testing.assert_array_equal(ap, expected)
        assert mean == 1 or not counts.any()
    assert scores.class_agnostic_ap50 == 1 or not counts.any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_order_of_pictures_does_not_matter_even_with_ties(seed, order):
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, score_levels=2) for _ in range(4)]
    np.testing.assert_equal(
        asdict(evaluate([pictures[index] for index in order])), asdict(evaluate(pictures))
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(NUM_CLASSES)))
def test_renaming_the_classes_renames_the_scores(seed, order):
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(4)]
    rename = np.array(order)

    def renamed(found):
        return Instances(found.scores, found.masks, rename[found.class_ids])

    other = [(renamed(p), GroundTruth(t.label, renamed(t.instances), t.ignore)) for p, t in pictures]
    before, after = evaluate(pictures), evaluate(other)
    np.testing.assert_array_equal(np.array(after.ap)[:, rename], before.ap)
    np.testing.assert_allclose(after.mean_ap, before.mean_ap, rtol=1e-12)
    assert np.array(after.truth_counts)[rename].tolist() == list(before.truth_counts)
    np.testing.assert_equal(after.class_agnostic_ap50, before.class_agnostic_ap50)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_only_the_order_of_the_scores_counts(seed):
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(3)]
    squashed = [(Instances(p.scores**2 / 8, p.masks, p.class_ids), t) for p, t in pictures]
    np.testing.assert_equal(asdict(evaluate(squashed)), asdict(evaluate(pictures)))


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [
        (Instances.empty((2, 3)), ground_truth(instances([TOP], [0]))),
        (instances([TOP], [0]), ground_truth(Instances.empty((3, 2)))),
        (instances([TOP], [0]), ground_truth(instances([TOP], [0]), ignore=[[0, 0, 0]])),
    ],
)
def test_different_sizes_are_refused(predicted, truth):
    with pytest.raises(ShapeError, match="one size"):
        InstanceEvaluator(1).add(predicted, truth)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (instances([TOP], [3]), instances([TOP], [0]), "predicted class id"),
        (instances([TOP], [0]), instances([TOP], [-1]), "true class id"),
        (instances([TOP], [0], [NAN]), instances([TOP], [0]), "not a number"),
    ],
)
def test_impossible_values_are_refused_and_leave_no_trace(predicted, true, message):
    evaluator = InstanceEvaluator(NUM_CLASSES)
    with pytest.raises(DataError, match=message):
        evaluator.add(predicted, ground_truth(true))
    assert evaluator.result().truth_counts == (0, 0, 0)


@pytest.mark.parametrize(("num_classes", "thresholds"), [(0, (0.5,)), (1, ()), (1, (0.0,)), (1, (0.5, 1.1))])
def test_bad_parameters_are_refused(num_classes, thresholds):
    with pytest.raises(ConfigError):
        InstanceEvaluator(num_classes, thresholds)


def test_curve_of_unlike_arrays_is_refused():
    with pytest.raises(ShapeError):
        average_precision(np.ones(2, np.float32), np.ones(3, np.bool_), 1)


def test_doc_examples_run():
    outcome = doctest.testmod(instance)
    assert outcome.attempted >= 2
    assert outcome.failed == 0
