"""How far instance AP of labels is chance: the order of equal scores, and which pictures have masks.

python -m benchmarks.ap_noise --voc-root DIR --run-dir RUN [--image-list val] [--seed 0]

Synthesized labels scored by their maximum have many scores of exactly 1. `evaluate` lets equal scores enter the curve
together; an evaluator that sorts them in some order gives a value of the second line. The third line is the bootstrap:
pictures drawn with replacement, as often as there are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irn_pipeline.artifacts import INSTANCE_LABEL
from irn_pipeline.metrics.instance import average_precision, counted_instances, match
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.runtime.store import RunFolder
from irn_pipeline.structures import BoolArray, FloatArray, GroundTruth, Instances, IntArray
from stages._source import Source, load_source

THRESHOLDS = (0.5, 0.7, 0.75)
REPEATS = 200


@dataclass(frozen=True)
class Picture:
    """What one picture adds to the curves.

    Attributes:
        scores: (R,) of its predictions, descending.
        class_ids: (R,) of its predictions.
        hits: (T, R) true positives at each of `THRESHOLDS`.
        truths: (C,) true instances of each class.
    """

    scores: FloatArray
    class_ids: IntArray
    hits: BoolArray
    truths: IntArray


def picture(found: Instances, truth: GroundTruth, num_classes: int) -> Picture:
    """Hits of one picture's instances, each class for itself, as `evaluate` decides them."""
    found, true = counted_instances(found, truth, num_classes, ignore_void=True)
    found = found.select(np.argsort(-found.scores, kind="stable"))
    iou = mask_iou(found.masks, true.masks)
    hits = np.zeros((len(THRESHOLDS), len(found.scores)), np.bool_)
    for class_id in np.unique(found.class_ids).tolist():
        own = found.class_ids == class_id
        for row, threshold in zip(hits, THRESHOLDS, strict=True):
            row[own] = match(iou[own][:, true.class_ids == class_id], threshold)
    return Picture(found.scores, found.class_ids, hits, np.bincount(true.class_ids, minlength=num_classes))


def mean_ap(pictures: Sequence[Picture], generator: np.random.Generator | None = None) -> FloatArray:
    """(T,) mean over classes of AP in per cent; with a generator, equal scores in a random order."""
    class_ids = np.concatenate([each.class_ids for each in pictures])
    hits = np.concatenate([each.hits for each in pictures], axis=1)
    truths = np.sum([each.truths for each in pictures], axis=0)
    scores = np.concatenate([each.scores for each in pictures])
    if generator is not None:
        shuffled = generator.permutation(len(scores))
        order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
        class_ids, hits = class_ids[order], hits[:, order]
        scores = -np.arange(len(order), dtype=np.float32)
    present = np.flatnonzero(truths)
    curves = [
        [average_precision(scores[own], row[own], int(truths[class_id])) for row in hits]
        for class_id in present
        for own in [class_ids == class_id]
    ]
    return np.asarray(100 * np.mean(curves, axis=0), np.float32)


def main() -> None:
    """Four JSON objects, one a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voc-root", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--image-list")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = load_source(Source(voc_root=arguments.voc_root, image_list=arguments.image_list))
    run, generator = RunFolder(arguments.run_dir), np.random.default_rng(arguments.seed)
    pictures: list[Picture] = []
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        if truth is not None and run.has(INSTANCE_LABEL, record.image_id):
            found = run.read(INSTANCE_LABEL, record.image_id).without_fragments()
            pictures.append(picture(found, truth, data.images.num_classes))
    if not pictures:
        raise SystemExit(
            f"{arguments.run_dir}: no picture has both true masks and instance labels; run stage 5"
        )
    any_order = np.stack([mean_ap(pictures, generator) for _ in range(REPEATS)])
    draws = generator.integers(0, len(pictures), (REPEATS, len(pictures)))
    drawn = np.stack([mean_ap([pictures[index] for index in draw]) for draw in draws])
    found_truths = np.sum([each.hits.sum(1) for each in pictures], axis=0)
    total = int(np.sum([each.truths.sum() for each in pictures]))
    write("as evaluated", mean_ap(pictures))
    write("equal scores in any order, mean", any_order.mean(0))
    write("standard deviation over pictures", drawn.std(0))
    line = {"true instances": total, **dict(zip(map(str, THRESHOLDS), found_truths.tolist(), strict=True))}
    sys.stdout.write(json.dumps(line) + "\n")


def write(what: str, ap: FloatArray) -> None:
    """One line of AP at the three thresholds."""
    values = {f"ap{round(100 * t)}": round(float(v), 1) for t, v in zip(THRESHOLDS, ap, strict=True)}
    sys.stdout.write(json.dumps({"what": what, **values}) + "\n")


if __name__ == "__main__":
    main()
