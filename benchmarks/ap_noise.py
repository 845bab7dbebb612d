"""How far instance AP of labels is chance or the evaluation's rules, and not the masks.

python -m benchmarks.ap_noise --voc-root DIR --run-dir RUN [--image-list val] [--seed 0]

First AP by the protocols `voc` and `original` of `evaluate`, and by `voc` with one rule of `original` at a time. Then
what is chance in `voc`: synthesized labels scored by their maximum have many scores of exactly 1, which enter the
curve together; an evaluator that sorts them in some order gives a value as in the line "in any order". "over
pictures" is the bootstrap: pictures drawn with replacement, as often as there are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from irn_pipeline.artifacts import INSTANCE_LABEL
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.metrics.instance import ORIGINAL_RULES, InstanceEvaluator, PictureHits, Rules
from irn_pipeline.structures import FloatArray

THRESHOLDS = (0.5, 0.7, 0.75)
REPEATS = 200


RULES = {
    "protocol voc": Rules(),
    "voc, but void is background": Rules(ignore_void=False),
    "voc, but with fragments": Rules(keep_fragments=True),
    "voc, but equal scores one after the other": Rules(ties_together=False),
    "protocol original": ORIGINAL_RULES,
}


def mean_ap(
    pictures: Sequence[PictureHits], num_classes: int, generator: np.random.Generator | None = None
) -> FloatArray:
    """(T,) mean over classes of AP in per cent; with a generator, equal scores in a random order."""
    if generator is not None:
        scores = np.concatenate([each.scores for each in pictures])
        shuffled = generator.permutation(len(scores))
        ranks = np.empty(len(scores), np.float32)
        ranks[shuffled[np.argsort(scores[shuffled], kind="stable")]] = np.arange(1, len(scores) + 1)
        ends = np.cumsum([len(each.scores) for each in pictures])
        parts = np.split(ranks, ends[:-1])
        pictures = [replace(each, scores=part) for each, part in zip(pictures, parts, strict=True)]
    evaluator = InstanceEvaluator(num_classes, THRESHOLDS)
    for each in pictures:
        evaluator.add_hits(each)
    return np.asarray(100 * np.array(evaluator.result().mean_ap), np.float32)


def main() -> None:
    """One JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voc-root", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--image-list")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = load_source(Source(voc_root=arguments.voc_root, image_list=arguments.image_list))
    run, generator = RunFolder(arguments.run_dir), np.random.default_rng(arguments.seed)
    num_classes = data.images.num_classes
    evaluators = {
        what: InstanceEvaluator(num_classes, THRESHOLDS, rules=rules) for what, rules in RULES.items()
    }
    pictures: list[PictureHits] = []
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        if truth is not None and run.has(INSTANCE_LABEL, record.image_id):
            found = run.read(INSTANCE_LABEL, record.image_id)
            for evaluator in evaluators.values():
                evaluator.add(found, truth)
            pictures.append(evaluators["protocol voc"].hits(found, truth))
    if not pictures:
        raise SystemExit(
            f"{arguments.run_dir}: no image has both ground-truth masks and instance labels; run stage 5"
        )
    for what, evaluator in evaluators.items():
        write(what, 100 * np.array(evaluator.result().mean_ap, np.float32))
    any_order = np.stack([mean_ap(pictures, num_classes, generator) for _ in range(REPEATS)])
    draws = generator.integers(0, len(pictures), (REPEATS, len(pictures)))
    drawn = np.stack([mean_ap([pictures[index] for index in draw], num_classes) for draw in draws])
    write("voc, equal scores in any order, mean", any_order.mean(0))
    write("voc, standard deviation over images", drawn.std(0))
    found_truths = np.sum([each.hits.sum(1) for each in pictures], axis=0)
    total = sum(len(each.truths) for each in pictures)
    line = {
        "ground-truth instances": total,
        **dict(zip(map(str, THRESHOLDS), found_truths.tolist(), strict=True)),
    }
    sys.stdout.write(json.dumps(line) + "\n")


def write(what: str, ap: FloatArray) -> None:
    """One line of AP at the three thresholds."""
    values = {f"ap{round(100 * t)}": round(float(v), 1) for t, v in zip(THRESHOLDS, ap, strict=True)}
    sys.stdout.write(json.dumps({"what": what, **values}) + "\n")


if __name__ == "__main__":
    main()
