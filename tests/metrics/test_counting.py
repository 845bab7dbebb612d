from __future__ import annotations

import doctest
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.metrics import counting
from irn_pipeline.metrics.counting import CountingEvaluator, mask_dice, symmetric_best_dice
from irn_pipeline.structures import Instances
from tests.metrics import pictures
from tests.metrics.pictures import ground_truth

NUM_CLASSES = 3
PERSON, DOG, CAR = range(NUM_CLASSES)
NAN = float("nan")
TOP, LEFT, CORNER = [[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [0, 0]]
BOTTOM, THREE, FULL, EMPTY = [[0, 0], [1, 1]], [[1, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]


def instances(masks, class_ids, scores=None):
    return pictures.instances(masks, class_ids, scores) if len(class_ids) else Instances.empty((2, 2))


def evaluate(pictures, **options):
    evaluator = CountingEvaluator(NUM_CLASSES, **options)
    for predictions, truth in pictures:
        evaluator.add(predictions, truth)
    return evaluator.result()


def people(predicted, true, ignore=None, scores=None, **options):
    """Scores of the class "person" in one picture."""
    predictions = instances(predicted, [PERSON] * len(predicted), scores)
    truth = ground_truth(instances(true, [PERSON] * len(true)), ignore)
    return evaluate([(predictions, truth)], **options).per_class[PERSON]


@pytest.mark.parametrize(
    ("predicted", "true", "sbd", "dic"),
    [
        ([TOP], [TOP], 1, 0),
        # Dice 2 * 1 / (2 + 2)
        ([TOP], [LEFT], Fraction(1, 2), 0),
        ([CORNER], [FULL], Fraction(2, 5), 0),
        # two people taken for one: 2 * 2 / (4 + 2) on both sides
        ([FULL], [TOP, BOTTOM], Fraction(2, 3), -1),
        # one taken for two
        ([TOP, BOTTOM], [FULL], Fraction(2, 3), 1),
        # a missed one: 1 of the predictions' side, (1 + 0) / 2 of the truths' side
        ([TOP], [TOP, BOTTOM], Fraction(1, 2), -1),
        # an invented one: the other side is the smaller
        ([TOP, BOTTOM], [TOP], Fraction(1, 2), 1),
        # the same one twice costs no Dice, only count
        ([TOP, TOP], [TOP], 1, 1),
        # predictions (2/3 + 1) / 2; truths: LEFT has 4/5 with THREE, BOTTOM has 1
        ([THREE, BOTTOM], [LEFT, BOTTOM], Fraction(9, 10), 0),
        # an empty prediction is an invented one
        ([TOP, EMPTY], [TOP], Fraction(1, 2), 1),
        ([], [TOP, BOTTOM], 0, -2),
        ([TOP], [], 0, 1),
    ],
)
def test_one_picture(predicted, true, sbd, dic):
    found = people(predicted, true)
    assert found.sbd == pytest.approx(float(sbd), abs=1e-6)
    assert (found.dic, found.abs_dic, found.pictures) == (dic, abs(dic), 1)


def test_picture_without_any_instance_is_a_right_count_but_no_dice():
    found = people([], [])
    assert np.isnan(found.sbd)
    assert (found.dic, found.abs_dic, found.pictures) == (0, 0, 0)


def test_nothing_added_gives_no_number():
    found = evaluate([])
    assert len(found.per_class) == NUM_CLASSES
    for scores in (*found.per_class, found.class_agnostic):
        assert np.isnan([scores.sbd, scores.abs_dic, scores.dic]).all() and scores.pictures == 0


def test_set_is_the_mean_of_its_pictures_and_not_of_its_instances():
    person = [PERSON]
    pictures = [
        (instances([TOP, BOTTOM], person * 2), ground_truth(instances([TOP, BOTTOM], person * 2))),
        (instances([FULL], person), ground_truth(instances([TOP, BOTTOM], person * 2))),  # 2/3, -1
        (instances([TOP, BOTTOM], person * 2), ground_truth(instances([TOP], person))),  # 1/2, +1
        (instances([], []), ground_truth(instances([], []))),
    ]
    found = evaluate(pictures).per_class[PERSON]
    assert found.sbd == pytest.approx(float((1 + Fraction(2, 3) + Fraction(1, 2)) / 3), abs=1e-6)
    assert found.dic == 0  # one too few and one too many
    assert found.abs_dic == Fraction(2, 4)
    assert found.pictures == 3


def test_classes_are_told_apart_and_agnostic_forgets_them():
    predictions = instances([TOP, BOTTOM], [DOG, DOG])
    found = evaluate([(predictions, ground_truth(instances([TOP, BOTTOM], [PERSON, DOG])))])
    assert [scores.sbd for scores in found.per_class[:2]] == [0, Fraction(1, 2)]
    assert [scores.dic for scores in found.per_class] == [-1, 1, 0]
    assert np.isnan(found.per_class[CAR].sbd)
    assert (found.class_agnostic.sbd, found.class_agnostic.dic, found.class_agnostic.abs_dic) == (1, 0, 0)


def test_void_pixels_are_left_out_only_when_asked():
    counted = people([FULL], [TOP], ignore=BOTTOM)
    assert (counted.sbd, counted.dic) == (1, 0)
    assert people([FULL], [TOP], ignore_void=False, ignore=BOTTOM).sbd == pytest.approx(2 / 3, abs=1e-6)
    # A person wholly on void pixels is neither missed nor invented.
    assert people([TOP, BOTTOM], [TOP], ignore=BOTTOM).abs_dic == 0
    assert people([TOP], [TOP, BOTTOM], ignore=BOTTOM).abs_dic == 0


def test_candidates_of_low_score_are_not_counted():
    predicted, scores = [TOP, BOTTOM, FULL], [0.9, 0.5, 0.49]
    assert people(predicted, [TOP, BOTTOM], scores=scores).sbd == 1
    assert people(predicted, [TOP, BOTTOM], scores=scores).dic == 0
    assert people(predicted, [TOP, BOTTOM], scores=scores, min_score=0.0).dic == 1
    assert people(predicted, [TOP, BOTTOM], scores=scores, min_score=0.95).dic == -2


def pixel_set(mask):
    return {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}


def twin_sbd(predicted, true):
    """SBD by its words, on sets of pixels."""
    if not predicted and not true:
        return None
    sides = []
    for source, other in ((predicted, true), (true, predicted)):
        best = [
            max(
                (Fraction(2 * len(a & b), len(a) + len(b)) if a or b else Fraction(0) for b in other),
                default=0,
            )
            for a in source
        ]
        sides.append(sum(best, Fraction(0)) / len(best) if best else Fraction(0))
    return min(sides)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_random_sets_agree_with_the_twin(seed, ignore_void):
    rng = np.random.default_rng(seed)
    pictures, expected = [], []
    for _ in range(rng.integers(1, 4)):
        sides = []
        for _ in range(2):
            count = int(rng.integers(0, 5))
            masks = rng.random((count, 4, 5)) < rng.uniform(0.1, 0.7)
            scores = rng.random(count).astype(np.float32)
            sides.append(Instances(scores, masks, rng.integers(0, NUM_CLASSES, count)))
        truth = ground_truth(sides[1], rng.random((4, 5)) < 0.2)
        pictures.append((sides[0], truth))
        void, kept = pixel_set(truth.ignore) if ignore_void else set(), []
        for side, is_prediction in zip(sides, (True, False), strict=True):
            found = []
            for score, mask, class_id in zip(side.scores, side.masks, side.class_ids, strict=True):
                before = pixel_set(mask)
                dropped = (before and before <= void) if is_prediction else before <= void
                if not dropped and (not is_prediction or score >= np.float32(0.5)):
                    found.append((int(class_id), before - void))
            kept.append(found)
        expected.append(kept)
    result = evaluate(pictures, ignore_void=ignore_void)
    for class_id, scores in [*enumerate(result.per_class), (None, result.class_agnostic)]:
        chosen = [
            [[pixels for c, pixels in side if class_id in (c, None)] for side in picture]
            for picture in expected
        ]
        values = [twin_sbd(*picture) for picture in chosen]
        values = [value for value in values if value is not None]
        differences = [len(predicted) - len(true) for predicted, true in chosen]
        assert scores.pictures == len(values)
        if values:
            assert scores.sbd == pytest.approx(float(sum(values) / len(values)), abs=1e-6)
        else:
            assert np.isnan(scores.sbd)
        assert scores.dic == pytest.approx(sum(differences) / len(differences))
        assert scores.abs_dic == pytest.approx(sum(map(abs, differences)) / len(differences))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sbd_is_symmetric_bounded_and_ignores_order(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((rng.integers(1, 5), 4, 5)) < 0.5 for _ in range(2))
    value = symmetric_best_dice(mask_dice(a, b))
    assert 0 <= value <= 1
    assert value == symmetric_best_dice(mask_dice(b, a))
    assert value == pytest.approx(symmetric_best_dice(mask_dice(rng.permutation(a), rng.permutation(b))))
    # A prediction that overlaps nothing never helps.
    assert symmetric_best_dice(mask_dice(np.concatenate([a, np.zeros_like(a[:1])]), b)) <= value + 1e-12


def test_refusals_leave_no_trace():
    evaluator = CountingEvaluator(NUM_CLASSES)
    good = instances([TOP], [PERSON])
    with pytest.raises(DataError, match="predicted class id"):
        evaluator.add(instances([TOP], [NUM_CLASSES]), ground_truth(good))
    with pytest.raises(DataError, match="true class id"):
        evaluator.add(good, ground_truth(instances([TOP], [-1])))
    with pytest.raises(DataError, match="score"):
        evaluator.add(instances([TOP], [PERSON], [NAN]), ground_truth(good))
    with pytest.raises(ShapeError, match="one size"):
        evaluator.add(Instances.empty((3, 3)), ground_truth(good))
    assert np.isnan(evaluator.result().class_agnostic.abs_dic)


def test_wrong_parameters_are_refused():
    with pytest.raises(ConfigError, match="num_classes"):
        CountingEvaluator(0)
    with pytest.raises(ConfigError, match="min_score"):
        CountingEvaluator(1, min_score=NAN)
    with pytest.raises(ShapeError, match="R, G"):
        symmetric_best_dice(np.zeros(3))
    with pytest.raises(ShapeError, match="one image"):
        mask_dice(np.zeros((1, 2, 2), np.bool_), np.zeros((1, 2, 3), np.bool_))


def test_examples_in_the_docstrings():
    result = doctest.testmod(counting)
    assert result.attempted >= 2 and result.failed == 0
