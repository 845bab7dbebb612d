"""Each difference between the protocols on masks of 2x2 pixels, and `original` against a twin made of pixel sets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from irn_pipeline.evaluation import InstanceTally, SemanticTally, ap_evaluator
from irn_pipeline.metrics.coco_ap import CocoEvaluator
from irn_pipeline.metrics.instance import ORIGINAL_RULES, InstanceEvaluator, Rules
from irn_pipeline.structures import GroundTruth, Instances
from tests.metrics.pictures import ground_truth, instances

NAMES = ("original", "voc", "coco")
THRESHOLDS = (0.5, 0.7, 0.75)
NUM_CLASSES = 3
TOP, BOTTOM, FULL = [[1, 1], [0, 0]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]
CORNER, THREE = [[1, 0], [0, 0]], [[1, 1], [1, 0]]


def one_class(found, true, scores=None, ignore=None):
    return instances(found, [0] * len(found), scores), ground_truth(instances(true, [0] * len(true)), ignore)


VOID_INSIDE = one_class([THREE], [CORNER], ignore=[[0, 1], [1, 0]])
VOID_ONLY = one_class([BOTTOM, CORNER], [CORNER], [0.9, 0.8], ignore=BOTTOM)
FRAGMENT_RIGHT = one_class([TOP, BOTTOM], [TOP, BOTTOM], [1, 0])
FRAGMENT_WRONG = one_class([TOP, CORNER], [TOP, BOTTOM], [1, 0])
TIE_WRONG_FIRST = one_class([BOTTOM, TOP], [TOP])
TIE_RIGHT_FIRST = one_class([TOP, BOTTOM], [TOP])
RIGHT, WRONG = one_class([TOP], [TOP]), (instances([TOP], [0]), ground_truth(Instances.empty((2, 2))))
SECOND_BEST = one_class([TOP, FULL], [TOP, BOTTOM], [0.9, 0.8])

# AP50 by original, voc and coco.
CASES = {
    # IoU 1/3 with void, 1 without; COCO matches nothing and ignores it, as 2/3 of it are void.
    "void inside a prediction": ([VOID_INSIDE], ("0", "1", "0")),
    "a prediction on void alone": ([VOID_ONLY], ("1/2", "1", "1")),
    # Recall 1/2 is reached at the levels 0, 0.01 ... 0.50 of COCO's 101.
    "a fragment that is right": ([FRAGMENT_RIGHT], ("1", "1/2", "51/101")),
    "a fragment that is wrong": ([FRAGMENT_WRONG], ("1/2", "1/2", "51/101")),
    # The original reverses the order in the picture and once more over the set: the last one takes the truth, but is
    # ranked last.
    "a tie in an image, the wrong one first": ([TIE_WRONG_FIRST], ("1/2", "1/2", "1/2")),
    "a tie in an image, the right one first": ([TIE_RIGHT_FIRST], ("1", "1/2", "1")),
    "a tie of two that find one truth": ([one_class([TOP, TOP], [TOP])], ("1/2", "1/2", "1")),
    "a tie of two images, the wrong one first": ([WRONG, RIGHT], ("1", "1/2", "1/2")),
    "a tie of two images, the right one first": ([RIGHT, WRONG], ("1/2", "1/2", "1")),
    # Both truths have the IoU 1/2 with the second prediction; the first truth is taken.
    "the second-best truth is free": ([SECOND_BEST], ("1/2", "1/2", "1")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_each_difference_by_hand(case, name):
    pictures, expected = CASES[case]
    tally, evaluator = InstanceTally(("cat",), protocol=name), ap_evaluator(1, name)
    for picture in pictures:
        tally.add(*picture)
        evaluator.add(*picture)
    value = float(Fraction(expected[NAMES.index(name)]))
    scores, report = evaluator.result(), tally.report()
    assert scores.mean_ap[0] == scores.ap[0][0] == pytest.approx(value, abs=1e-9)
    assert scores.class_agnostic_ap50 == pytest.approx(value, abs=1e-9)
    assert report["ap50"] == report["ap50_per_class"]["cat"] == pytest.approx(value, abs=1e-6)
    assert report["ap50_class_agnostic"] == pytest.approx(value, abs=1e-6)
    assert report["instances"] == sum(len(truth.instances) for _, truth in pictures)


@pytest.mark.parametrize(
    ("name", "ap", "wrongly_counted"), [("original", 1 / 2, 1), ("voc", 1, 0), ("coco", 1, 0)]
)
def test_one_treatment_of_void_for_all_figures(name, ap, wrongly_counted):
    tally = InstanceTally(("cat",), protocol=name)
    tally.add(*VOID_ONLY)
    report = tally.report()
    assert (report["ap50"], report["coco"]["ap50"]) == pytest.approx((ap, ap))
    assert report["abs_dic"] == wrongly_counted


@pytest.mark.parametrize("name", NAMES)
def test_fragments_are_counted_by_no_protocol(name):
    tally = InstanceTally(("cat",), protocol=name)
    tally.add(*FRAGMENT_RIGHT)
    report = tally.report()
    assert report["abs_dic"] == 1
    assert report["coco"]["ap50"] == pytest.approx(51 / 101, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "miou"), [("original", 1), ("voc", Fraction(1, 2)), ("coco", Fraction(1, 2))]
)
def test_an_unsure_pixel_is_background_in_the_original(name, miou):
    truth = GroundTruth(
        np.array([[0, 1], [1, 255]], np.uint8), Instances.empty((2, 2)), np.zeros((2, 2), bool)
    )
    label = np.array([[255, 1], [1, 0]], np.uint8)
    before, tally = label.copy(), SemanticTally(("cat",), protocol=name)
    tally.add(label, truth)
    assert tally.report()["miou"] == miou
    assert (label == before).all()


@pytest.mark.parametrize(
    ("rules", "case", "value"),
    [
        (Rules(ignore_void=False), VOID_ONLY, 1 / 2),
        (Rules(keep_fragments=True), FRAGMENT_RIGHT, 1),
        (Rules(ties_together=False), TIE_RIGHT_FIRST, 1),
    ],
)
def test_each_rule_of_the_original_can_be_taken_alone(rules, case, value):
    evaluator = InstanceEvaluator(1, (0.5,), rules=rules)
    evaluator.add(*case)
    assert evaluator.result().mean_ap[0] == value
    others = [other for other in (VOID_ONLY, FRAGMENT_RIGHT, TIE_RIGHT_FIRST) if other is not case]
    for other in others:
        alone, usual = InstanceEvaluator(1, (0.5,), rules=rules), InstanceEvaluator(1, (0.5,))
        alone.add(*other)
        usual.add(*other)
        assert alone.result().mean_ap == usual.result().mean_ap


def test_hits_of_one_picture():
    evaluator = InstanceEvaluator(2, (0.5, 1.0))
    found = instances([FULL, TOP, TOP], [1, 0, 0], [0.5, 0.2, 0.9])
    hits = evaluator.hits(found, ground_truth(instances([TOP, BOTTOM], [0, 1])))
    assert hits.class_ids.tolist() == [0, 0, 1]
    assert hits.scores.tolist() == pytest.approx([0.9, 0.2, 0.5])
    assert hits.hits.tolist() == [[True, False, True], [True, False, False]]
    assert hits.agnostic_hits.tolist() == [True, False, False]
    assert hits.truths.tolist() == [0, 1]
    assert evaluator.result().truth_counts == (0, 0), "it was not taken in"
    evaluator.add_hits(hits)
    assert evaluator.result().ap == ((1.0, 1.0), (1.0, 0.0))


def random_picture(rng, levels, size=(6, 7)):
    """Disjoint truths, void, and many predictions with ties and fragments: copies of truths with void, or noise."""
    owners = rng.integers(0, 5, size).repeat(2, axis=0)[: size[0]]
    masks = [owners == owner for owner in range(1, 5) if (owners == owner).any()]
    class_ids = rng.integers(0, NUM_CLASSES, len(masks))
    void = (owners == 0) & (rng.random(size) < 0.6)
    found, found_ids = [], []
    for _ in range(rng.integers(0, 25)):
        copied = rng.integers(0, len(masks))
        rim = void & (rng.random() < 0.4)
        found.append((masks[copied] ^ (rng.random(size) < rng.choice([0, 0.05]))) | rim)
        found_ids.append(class_ids[copied] if rng.random() < 0.8 else rng.integers(0, NUM_CLASSES))
    scores = rng.integers(0, levels + 1, len(found)) / levels
    return (
        instances(np.reshape(found, (-1, *size)), found_ids, scores),
        ground_truth(instances(masks, class_ids), void),
    )


def pixels(mask):
    return {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}


def twin_of_original(pictures, class_id, threshold):
    """Void counts as background, fragments take part, equal scores follow one another as NumPy's argsort, reversed."""
    scores, hits, total = [], [], 0
    for found, truth in pictures:
        of_class = [index for index, c in enumerate(found.class_ids) if c == class_id]
        true = [
            pixels(m)
            for m, c in zip(truth.instances.masks, truth.instances.class_ids, strict=True)
            if c == class_id
        ]
        total += len(true)
        taken = set()
        for place in reversed(np.argsort(found.scores[of_class]).tolist()):
            mask = pixels(found.masks[of_class[place]])
            overlaps = [Fraction(len(mask & other), len(mask | other)) for other in true]
            wanted = overlaps.index(max(overlaps)) if true else None
            close = wanted is not None and overlaps[wanted] >= Fraction(str(threshold))
            hits.append(close and wanted not in taken)
            if close:
                taken.add(wanted)
            scores.append(found.scores[of_class[place]])
    if not total:
        return None
    curve, right = [], 0
    for rank, place in enumerate(reversed(np.argsort(np.array(scores, np.float32)).tolist()), start=1):
        right += hits[place]
        curve.append((Fraction(right, total), Fraction(right, rank)))
    area, before = Fraction(0), Fraction(0)
    for place, (recall, _) in enumerate(curve):
        area += (recall - before) * max(precision for _, precision in curve[place:])
        before = recall
    return area


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_original_equals_its_twin(seed, levels):
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, levels) for _ in range(4)]
    evaluator = InstanceEvaluator(NUM_CLASSES, THRESHOLDS, rules=ORIGINAL_RULES)
    for picture in pictures:
        evaluator.add(*picture)
    scores = evaluator.result()
    for row, mean, threshold in zip(scores.ap, scores.mean_ap, THRESHOLDS, strict=True):
        exact = [twin_of_original(pictures, class_id, threshold) for class_id in range(NUM_CLASSES)]
        expected = [float("nan") if value is None else float(value) for value in exact]
        np.testing.assert_allclose(row, expected, atol=1e-12)
        assert mean == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_the_protocols_differ_on_random_pictures():
    rng = np.random.default_rng(0)
    pictures = [random_picture(rng, 3) for _ in range(12)]
    found = {}
    for name in NAMES:
        evaluator = ap_evaluator(NUM_CLASSES, name)
        for picture in pictures:
            evaluator.add(*picture)
        found[name] = evaluator.result().mean_ap[0]
    assert len({round(value, 3) for value in found.values()}) == 3
    assert all(0.1 < value < 0.95 for value in found.values())


@pytest.mark.parametrize(("crowd_class", "ap"), [(0, 1), (1, Fraction(1, 2))])
def test_a_crowd_is_ignored_for_its_own_class_alone(crowd_class, ap):
    found, truth = VOID_ONLY
    crowds = instances([BOTTOM], [crowd_class])
    told = GroundTruth(truth.label, truth.instances, truth.ignore, crowds)
    evaluator = CocoEvaluator(2, void="crowd")
    evaluator.add(found, told)
    assert evaluator.coco_scores().ap50 == pytest.approx(float(ap))
    assert evaluator.result().truth_counts == (1, 0), "a crowd is no instance to be found"
