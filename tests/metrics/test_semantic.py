from __future__ import annotations

import doctest
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.metrics import semantic
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores

NUM_LABELS = 4


def labels(values):
    return np.array(values, np.uint8)


def twin_iou(prediction, truth, label):
    """Exact IoU of one label, pixel by pixel; None where it is undefined."""
    both = either = 0
    for predicted, true in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if true == 255:
            continue
        both += predicted == label and true == label
        either += predicted == label or true == label
    return Fraction(both, either) if either else None


label_map = hnp.arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, 2, 3, 255]))
predicted_map = hnp.arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, 2, 3, 4, 200, 255]))


def test_two_by_two_by_hand():
    matrix = confusion_matrix(labels([[0, 1], [1, 1]]), labels([[0, 0], [1, 1]]), 2)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0]]
    assert matrix.dtype == np.int64
    scores = semantic_scores(matrix)
    assert scores.iou == (1 / 2, 2 / 3)
    assert scores.miou == pytest.approx(7 / 12)


def test_a_value_that_is_no_label_is_a_miss_and_no_false_positive():
    matrix = confusion_matrix(labels([[255, 7], [1, 0]]), labels([[0, 1], [1, 0]]), 2)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert semantic_scores(matrix).iou == (1 / 2, 1 / 2)


def test_true_255_is_not_counted():
    matrix = confusion_matrix(labels([[0, 1], [1, 0]]), labels([[255, 255], [255, 0]]), 2)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_absent_labels_are_nan_and_left_out_of_the_mean():
    scores = semantic_scores(confusion_matrix(labels([[0, 2]]), labels([[0, 0]]), 4))
    assert scores.iou[0] == 1 / 2
    assert scores.iou[2] == 0, "predicted but never true: wrong, not absent"
    assert np.isnan([scores.iou[1], scores.iou[3]]).all()
    assert scores.miou == 1 / 4


def test_nothing_counted_gives_nan():
    scores = semantic_scores(confusion_matrix(labels([[0]]), labels([[255]]), 3))
    assert np.isnan(scores.miou)
    assert np.isnan(scores.iou).all()


def test_empty_picture_counts_nothing():
    assert confusion_matrix(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 2).sum() == 0


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(predicted_map, label_map), min_size=1, max_size=3))
def test_equals_the_pixel_by_pixel_twin_over_a_set(pairs):
    matrix = np.sum([confusion_matrix(p, t, NUM_LABELS) for p, t in pairs], axis=0)
    prediction, truth = np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs])
    expected = [twin_iou(prediction, truth, label) for label in range(NUM_LABELS)]
    scores = semantic_scores(matrix)
    assert matrix.sum() == (truth != 255).sum()
    for iou, exact in zip(scores.iou, expected, strict=True):
        assert np.isnan(iou) if exact is None else iou == float(exact)
    present = [exact for exact in expected if exact is not None]
    if present:
        assert scores.miou == pytest.approx(float(sum(present) / len(present)), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(truth=label_map)
def test_truth_as_prediction_scores_one(truth):
    scores = semantic_scores(confusion_matrix(truth, truth, NUM_LABELS))
    present = set(truth[truth != 255].tolist())
    assert [label for label in range(NUM_LABELS) if scores.iou[label] == 1] == sorted(present)
    assert scores.miou == 1 or not present


@settings(max_examples=30, deadline=None)
@given(prediction=predicted_map, truth=label_map, order=st.permutations(range(NUM_LABELS)))
def test_renaming_the_labels_renames_the_scores(prediction, truth, order):
    rename = np.arange(256, dtype=np.uint8)
    rename[:NUM_LABELS] = order
    scores = semantic_scores(confusion_matrix(prediction, truth, NUM_LABELS))
    renamed = semantic_scores(confusion_matrix(rename[prediction], rename[truth], NUM_LABELS))
    np.testing.assert_array_equal(np.array(renamed.iou)[order], scores.iou)
    np.testing.assert_allclose(renamed.miou, scores.miou, rtol=1e-12)


def test_largest_number_of_labels_does_not_overflow():
    every = np.arange(255, dtype=np.uint8).reshape(15, 17)
    assert (confusion_matrix(every, every, 255)[:, :-1] == np.eye(255)).all()


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.zeros(4, np.uint8), np.zeros(4, np.uint8)),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8)),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32)),
    ],
)
def test_bad_shapes_and_dtypes_are_refused(prediction, truth):
    with pytest.raises(ShapeError):
        confusion_matrix(prediction, truth, 2)


def test_unknown_true_label_is_refused():
    with pytest.raises(DataError, match="hold 2"):
        confusion_matrix(labels([[0]]), labels([[2]]), 2)


@pytest.mark.parametrize("num_labels", [0, 256])
def test_bad_number_of_labels_is_refused(num_labels):
    with pytest.raises(ConfigError):
        confusion_matrix(labels([[0]]), labels([[0]]), num_labels)


@pytest.mark.parametrize("shape", [(2, 2), (0, 1), (6,)])
def test_bad_matrix_is_refused(shape):
    with pytest.raises(ShapeError):
        semantic_scores(np.zeros(shape, np.int64))


def test_doc_examples_run():
    outcome = doctest.testmod(semantic)
    assert outcome.attempted >= 5
    assert outcome.failed == 0
