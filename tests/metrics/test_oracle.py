"""Ground truth fed as predictions scores 1.0 on every metric there is, and anything less does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from irn_pipeline.evaluation import ap_evaluator
from irn_pipeline.metrics.coco_ap import CocoEvaluator
from irn_pipeline.metrics.counting import CountingEvaluator
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.structures import BACKGROUND, IGNORE, GroundTruth, Instances

NUM_CLASSES = 3
SIZE = (7, 8)
VOID = {"original": "background", "voc": "left_out", "coco": "crowd"}
PROTOCOLS = st.sampled_from(sorted(VOID))


@st.composite
def pictures(draw):
    """One to three pictures of disjoint objects: pixels belong to nobody (0), to an object 1..5, or are void (6)."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        owners = draw(hnp.arrays(np.int64, SIZE, elements=st.integers(0, 6)))
        class_of = draw(st.lists(st.integers(0, NUM_CLASSES - 1), min_size=5, max_size=5))
        present = [owner for owner in range(1, 6) if (owners == owner).any()]
        masks = np.reshape([owners == owner for owner in present], (-1, *SIZE)).astype(np.bool_)
        class_ids = np.array([class_of[owner - 1] for owner in present], np.int64)
        true = Instances(np.ones(len(present), np.float32), masks, class_ids)
        label = np.full(SIZE, BACKGROUND, np.uint8)
        label[owners == 6] = IGNORE
        for mask, class_id in zip(masks, class_ids, strict=True):
            label[mask] = class_id + 1
        found.append(GroundTruth(label, true, owners == 6))
    assume(any(len(truth.instances) for truth in found))
    return found


def scores(pairs, protocol):
    """Every score of predictions that are given as (label, instances); those that are undefined are NaN."""
    ap, coco = ap_evaluator(NUM_CLASSES, protocol), CocoEvaluator(NUM_CLASSES, void=VOID[protocol])
    counts = CountingEvaluator(NUM_CLASSES, ignore_void=protocol != "original")
    matrix = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 2), np.int64)
    for (label, predictions), truth in pairs:
        ap.add(predictions, truth)
        coco.add(predictions, truth)
        counts.add(predictions, truth)
        matrix += confusion_matrix(label, truth.label, NUM_CLASSES + 1)
    by_ap, by_coco, by_count = ap.result(), coco.coco_scores(), counts.result()
    assert by_ap.iou_thresholds == (0.5, 0.7, 0.75)
    headline = {f"AP at {t}": ap for t, ap in zip(by_ap.iou_thresholds, by_ap.mean_ap, strict=True)}
    headline |= {
        "class-agnostic AP50": by_ap.class_agnostic_ap50,
        "COCO AP": by_coco.ap,
        "COCO AP50": by_coco.ap50,
        "COCO AP75": by_coco.ap75,
        "COCO AP small": by_coco.ap_small,
        "mIoU": semantic_scores(matrix).miou,
        "class-agnostic SBD": by_count.class_agnostic.sbd,
    }
    per_class = [*(value for ap in by_ap.ap for value in ap), *by_coco.ap_per_class]
    per_class += [*semantic_scores(matrix).iou, *(c.sbd for c in by_count.per_class)]
    differences = [c.abs_dic for c in (*by_count.per_class, by_count.class_agnostic)]
    return headline, per_class, differences


@settings(max_examples=25, deadline=None)
@given(pictures(), PROTOCOLS)
def test_ground_truth_scores_one_everywhere(truths, protocol):
    pairs = [((truth.label, truth.instances), truth) for truth in truths]
    headline, per_class, differences = scores(pairs, protocol)
    assert headline == pytest.approx(dict.fromkeys(headline, 1.0), abs=1e-9)
    defined = [value for value in per_class if not np.isnan(value)]
    assert defined == pytest.approx([1.0] * len(defined), abs=1e-9)
    present = {class_id for truth in truths for class_id in truth.instances.class_ids.tolist()}
    # Three thresholds, COCO, IoU and SBD are defined for a class that is there; background may be there too.
    assert len(defined) >= 6 * len(present)
    assert not any(differences)


@settings(max_examples=25, deadline=None)
@given(pictures(), PROTOCOLS, st.randoms(use_true_random=False))
def test_one_object_less_is_less_than_one_everywhere(truths, protocol, random):
    victim = random.choice([index for index, truth in enumerate(truths) if len(truth.instances)])
    lost = random.randrange(len(truths[victim].instances))
    pairs = []
    for index, truth in enumerate(truths):
        label, found = truth.label, truth.instances
        if index == victim:
            label = np.where(found.masks[lost], np.uint8(BACKGROUND), label)
            found = found.select(np.arange(len(found)) != lost)
        pairs.append(((label, found), truth))
    headline, _, differences = scores(pairs, protocol)
    assert all(value < 0.999 for value in headline.values()), headline
    assert differences[-1] == pytest.approx(1 / len(truths))


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.just(5), st.just(6))), st.integers(0, 2**32 - 1))
def test_overlapping_objects_score_one_too(masks, seed):
    masks = np.unique(masks[masks.any((1, 2))], axis=0)
    assume(len(masks))
    class_ids = np.random.default_rng(seed).integers(0, NUM_CLASSES, len(masks))
    true = Instances(np.ones(len(masks), np.float32), masks, class_ids)
    label = np.zeros(true.size, np.uint8)
    truth = GroundTruth(label, true, np.zeros(true.size, np.bool_))
    headline, _, differences = scores([((label, true), truth)], "original")
    assert headline == pytest.approx(dict.fromkeys(headline, 1.0), abs=1e-9)
    assert not any(differences)
