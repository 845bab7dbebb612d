"""What limits instance labels: the maps' classes, or IRNet's parting of instances. Needs true masks.

python -m benchmarks.label_bounds --voc-root DIR --run-dir RUN [--image-list val]

From the walked scores that `synthesize_labels --keep-scores` keeps, average precision of three kinds of instances:
the labels themselves; the regions of the semantic label, parted as the true instances are; and the true regions of
every class, parted as the walked maps part them. The second is what better displacement could give, the third what
better maps could.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from irn_pipeline.artifacts import WALKED_SCORES
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.metrics.instance import InstanceEvaluator, Rules
from irn_pipeline.ops.label_params import LabelParams
from irn_pipeline.ops.labels import labels_from_scores
from irn_pipeline.structures import CAM_STRIDE, BoolArray, GroundTruth, Instances, LabelArray
from irn_pipeline.walked_scores import WalkedScores

KINDS = ("labels", "our classes, true parts", "true classes, our parts")


def as_true_instances_are(label: LabelArray, truth: GroundTruth) -> Instances:
    """Regions of a semantic label, every pixel given to the nearest true instance of its class."""
    masks: list[BoolArray] = []
    class_ids: list[int] = []
    for class_id in np.unique(truth.instances.class_ids).tolist():
        region = label == class_id + 1
        parts = truth.instances.masks[truth.instances.class_ids == class_id]
        nearest = np.stack([ndimage.distance_transform_edt(~part) for part in parts]).argmin(0)
        found = [region & (nearest == index) for index in range(len(parts))]
        masks += [mask for mask in found if mask.any()]
        class_ids += [class_id] * (len(masks) - len(class_ids))
    return _instances(np.ones(len(masks)), masks, class_ids, label.shape)


def as_walked_maps_are(scores: WalkedScores, truth: GroundTruth) -> Instances:
    """True regions of every class, every pixel given to the strongest walked map of that class."""
    height, width = scores.size
    values: list[float] = []
    masks: list[BoolArray] = []
    class_ids: list[int] = []
    for class_id in np.unique(scores.class_ids).tolist():
        region = truth.label == class_id + 1
        own = torch.from_numpy(scores.maps[scores.class_ids == class_id]).float()
        maps = interpolate(own[None], scale_factor=CAM_STRIDE, mode="bilinear")[0, :, :height, :width].numpy()
        strongest = maps.argmax(0)
        for index, walked in enumerate(maps):
            mask = region & (strongest == index)
            if mask.any():
                masks.append(mask)
                values.append(float(walked[mask].mean()))
                class_ids.append(class_id)
    return _instances(np.array(values), masks, class_ids, truth.label.shape)


def _instances(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],
    masks: list[BoolArray],
    class_ids: list[int],
    size: tuple[int, ...],
) -> Instances:
    stacked = np.stack(masks) if masks else np.zeros((0, *size), np.bool_)
    return Instances(scores.astype(np.float32), stacked, np.array(class_ids, np.int64))


def main() -> None:
    """Measure the three kinds; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voc-root", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--image-list")
    arguments = parser.parse_args()
    data = load_source(Source(voc_root=arguments.voc_root, image_list=arguments.image_list))
    run, params = RunFolder(arguments.run_dir), LabelParams(instance_score="mean")
    # The score of a bound may be as small as a fragment's.
    rules = Rules(keep_fragments=True)
    tallies = {kind: InstanceEvaluator(data.images.num_classes, rules=rules) for kind in KINDS}
    pictures = 0
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        if truth is None or not run.has(WALKED_SCORES, record.image_id):
            continue
        pictures += 1
        scores = run.read(WALKED_SCORES, record.image_id)
        walked = torch.from_numpy(scores.maps).float()
        label, instances = labels_from_scores(walked, scores.class_ids, scores.size, params)
        made = (
            instances.without_fragments(),
            as_true_instances_are(label, truth),
            as_walked_maps_are(scores, truth),
        )
        for kind, found in zip(KINDS, made, strict=True):
            tallies[kind].add(found, truth)
    if not pictures:
        raise SystemExit(
            f"{arguments.run_dir}: no image has both ground-truth masks and kept scores; "
            "run stage synthesize_labels with --keep-scores"
        )
    for kind, tally in tallies.items():
        means = [round(100 * value, 1) for value in tally.result().mean_ap]
        line = {"instances": kind, "pictures": pictures, "ap50": means[0], "ap70": means[1], "ap75": means[2]}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
