from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.metrics.coco_ap import CocoEvaluator
from irn_pipeline.metrics.instance import InstanceEvaluator
from irn_pipeline.structures import Instances
from tests.metrics.pictures import ground_truth, instances

NUM_CLASSES = 3
THRESHOLDS = np.linspace(0.5, 0.95, 10)
TOP, LEFT, CORNER = [[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [0, 0]]
THREE, FULL, EMPTY = [[1, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]


def gathered(pictures, num_classes=NUM_CLASSES, void="background"):
    evaluation = CocoEvaluator(num_classes, void=void)
    for predictions, truth in pictures:
        evaluation.add(predictions, truth)
    return evaluation


def evaluate(pictures, num_classes=NUM_CLASSES, void="background"):
    return gathered(pictures, num_classes, void).coco_scores()


def random_pictures(seed, count=6, ties=False, size=(8, 9)):
    """Disjoint truths and noisy copies of them; scores are distinct unless `ties`."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        owners = rng.integers(0, 4, size)
        masks = [owners == owner for owner in range(1, rng.integers(1, 5))]
        true = instances(np.reshape(masks, (-1, *size)), rng.integers(0, NUM_CLASSES, len(masks)))
        predicted, class_ids = [], []
        for _ in range(rng.integers(0, 7) if masks else 1):
            copied = rng.integers(0, len(masks)) if masks else None
            noise = rng.random(size) < rng.uniform(0, 0.12)
            predicted.append(noise if copied is None else masks[copied] ^ noise)
            same_class = copied is not None and rng.random() < 0.8
            class_ids.append(true.class_ids[copied] if same_class else rng.integers(0, NUM_CLASSES))
        scores = rng.integers(1, 4, len(predicted)) / 4 if ties else rng.random(len(predicted))
        pictures.append(
            (instances(np.reshape(predicted, (-1, *size)), class_ids, scores), ground_truth(true))
        )
    return pictures


def twin_matches(predictions, truths, threshold):
    """COCO's rule: by score, each prediction takes the best truth that is still free."""
    free, judged = list(truths), []
    for score, mask in sorted(predictions, key=lambda prediction: -prediction[0]):
        best, chosen = min(threshold, 1 - 1e-10), None
        for index, other in enumerate(free):
            iou = (mask & other).sum() / max((mask | other).sum(), 1)
            if iou >= best:
                best, chosen = iou, index
        if chosen is not None:
            free.pop(chosen)
        judged.append((score, chosen is not None))
    return judged


def twin_ap(pictures, class_id, threshold):
    """101-point interpolated precision; None without truths."""
    judged, num_truths = [], 0
    for predictions, truth in pictures:
        true = truth.instances
        truths = [m for m, c in zip(true.masks, true.class_ids, strict=True) if c == class_id and m.any()]
        rows = zip(predictions.scores.tolist(), predictions.masks, predictions.class_ids, strict=True)
        judged += twin_matches([(s, m) for s, m, c in rows if c == class_id], truths, threshold)
        num_truths += len(truths)
    if not num_truths:
        return None
    recalls, precisions, found = [], [], 0
    for rank, (_, hit) in enumerate(sorted(judged, key=lambda detection: -detection[0]), start=1):
        found += hit
        recalls.append(found / num_truths)
        precisions.append(found / (rank + np.spacing(1)))
    total = 0.0
    for level in np.linspace(0, 1, 101):
        total += max((p for r, p in zip(recalls, precisions, strict=True) if r >= level), default=0)
    return total / 101


def mean(values):
    numbers = [value for value in values if value is not None]
    return np.mean(numbers) if numbers else np.nan


@pytest.mark.parametrize(
    ("predicted", "true", "iou"),
    [(THREE, TOP, 2 / 3), (CORNER, FULL, 1 / 4), (THREE, FULL, 3 / 4), (FULL, FULL, 1), (EMPTY, FULL, 0)],
)
def test_two_by_two_masks_are_found_up_to_their_iou(predicted, true, iou):
    scores = evaluate([(instances([predicted], [0]), ground_truth(instances([true], [0])))], 1)
    found = iou + 1e-9 >= THRESHOLDS
    assert scores.ap == pytest.approx(found.mean())
    assert (scores.ap50, scores.ap75) == pytest.approx((float(iou >= 0.5), float(iou >= 0.75)))
    assert scores.ap_small == scores.ap
    assert scores.ap_per_class == (scores.ap,)
    assert np.isnan([scores.ap_medium, scores.ap_large]).all()


def test_sizes_are_told_apart_by_area():
    masks = np.zeros((3, 128, 160), np.bool_)
    masks[0, :10, :10] = masks[1, :40, 20:60] = masks[2, :100, 60:160] = True
    true = instances(masks, [0, 0, 0])
    missing_medium = true.select(np.array([0, 2]))
    scores = evaluate([(missing_medium, ground_truth(true))], 1)
    assert (scores.ap_small, scores.ap_medium, scores.ap_large) == pytest.approx((1, 0, 1))
    assert scores.ap == pytest.approx(67 / 101), "recall 2/3 covers the levels 0, 0.01 ... 0.66"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_brute_force_twin(seed, ties):
    pictures = random_pictures(seed, ties=ties)
    scores = evaluate(pictures)
    table = [[twin_ap(pictures, c, threshold) for threshold in THRESHOLDS] for c in range(NUM_CLASSES)]
    np.testing.assert_allclose(scores.ap_per_class, [mean(row) for row in table], atol=1e-9)
    assert scores.ap == pytest.approx(mean([value for row in table for value in row]), abs=1e-9)
    assert scores.ap50 == pytest.approx(mean([row[0] for row in table]), abs=1e-9)
    assert scores.ap75 == pytest.approx(mean([row[5] for row in table]), abs=1e-9)
    assert 0 < scores.ap < scores.ap50 < 1


@pytest.mark.parametrize("seed", range(6))
def test_voc_ap50_is_within_a_hundredth(seed):
    # Truths are disjoint, so at IoU > 0.5 both matching rules agree. The envelope falls from at most 1, so
    # its mean at 101 recalls is within 1/100 of its area.
    pictures = random_pictures(seed, count=15)
    coco, by_voc = evaluate(pictures), InstanceEvaluator(NUM_CLASSES)
    for predictions, truth in pictures:
        by_voc.add(predictions, truth)
    voc = by_voc.result()
    assert 0.1 < voc.mean_ap[0] < 0.95
    assert coco.ap50 == pytest.approx(voc.mean_ap[0], abs=0.01 + 1e-9)
    assert coco.ap75 == pytest.approx(voc.mean_ap[2], abs=0.01 + 1e-9)


@pytest.mark.parametrize("void", ["background", "left_out", "crowd"])
def test_truth_as_prediction_scores_one(void):
    truths = [truth for _, truth in random_pictures(3, count=15)]
    scores = evaluate([(truth.instances, truth) for truth in truths], void=void)
    assert (scores.ap, scores.ap50, scores.ap75, scores.ap_small) == pytest.approx((1, 1, 1, 1), abs=1e-12)
    np.testing.assert_allclose(scores.ap_per_class, 1)


def test_order_of_pictures_does_not_matter_without_ties():
    pictures = random_pictures(7)
    np.testing.assert_equal(asdict(evaluate(pictures[::-1])), asdict(evaluate(pictures)))


def test_renaming_the_classes_renames_the_scores():
    pictures, rename = random_pictures(8), np.array([2, 0, 1])

    def renamed(found):
        return Instances(found.scores, found.masks, rename[found.class_ids])

    before = evaluate(pictures)
    after = evaluate([(renamed(p), ground_truth(renamed(t.instances))) for p, t in pictures])
    assert after.ap == pytest.approx(before.ap, abs=1e-12)
    np.testing.assert_array_equal(np.array(after.ap_per_class)[rename], before.ap_per_class)
    assert len(set(before.ap_per_class)) == NUM_CLASSES


def test_only_a_hundred_instances_count():
    true = ground_truth(instances([TOP], [0]))
    for wrong, expected in ((99, 1 / 100), (100, 0)):
        predicted = instances([CORNER] * wrong + [TOP], [0] * (wrong + 1), [0.9] * wrong + [0.1])
        predicted.masks[:-1] = np.array([[0, 0], [1, 0]], np.bool_)
        assert evaluate([(predicted, true)], 1).ap50 == pytest.approx(expected)


def test_void_pixels_are_removed_only_when_asked():
    truth = ground_truth(instances([CORNER], [0]), ignore=[[0, 1], [1, 0]])
    pictures = [(instances([THREE], [0]), truth)]
    assert evaluate(pictures, 1, void="left_out").ap == pytest.approx(1)
    assert evaluate(pictures, 1, void="background").ap == 0


def test_nothing_predicted_is_zero_and_nothing_true_is_nan():
    missed = evaluate([(Instances.empty((2, 2)), ground_truth(instances([TOP], [1])))])
    assert missed.ap == missed.ap50 == missed.ap_per_class[1] == 0
    assert np.isnan([missed.ap_per_class[0], missed.ap_per_class[2]]).all()
    for pictures in ([], [(instances([TOP], [1]), ground_truth(Instances.empty((2, 2))))]):
        undefined = evaluate(pictures)
        assert np.isnan([undefined.ap, undefined.ap50, undefined.ap75, *undefined.ap_per_class]).all()


def test_result_is_silent_and_can_be_asked_again(capsys):
    evaluator = CocoEvaluator(NUM_CLASSES)
    pictures = random_pictures(9)
    for predictions, truth in pictures[:-1]:
        evaluator.add(predictions, truth)
    first = evaluator.coco_scores()
    np.testing.assert_equal(asdict(evaluator.coco_scores()), asdict(first))
    evaluator.add(*pictures[-1])
    np.testing.assert_equal(asdict(evaluator.coco_scores()), asdict(evaluate(pictures)))
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_refused():
    with pytest.raises(ConfigError):
        CocoEvaluator(0)
    with pytest.raises(ShapeError):
        CocoEvaluator(1).add(Instances.empty((2, 3)), ground_truth(instances([TOP], [0])))
    with pytest.raises(DataError):
        CocoEvaluator(1).add(instances([TOP], [1]), ground_truth(instances([TOP], [0])))
