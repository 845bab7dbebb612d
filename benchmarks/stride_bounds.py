"""What a semantic model can reach at most at a stride: logits that are fitted to the true label, without a network.

python -m benchmarks.stride_bounds [--voc-root data/demo] [--image-list train] [--pictures 12] [--steps 150]

DeepLab decides on a grid of one cell every 16 or 8 pixels, which is enlarged bilinearly. The best grid under its loss,
balanced or not, shows what outlines and gaps that leaves, whatever has been learned. `discs` is the number of
components that two discs with a gap of 5 pixels become, `discs_area` their area, 1 for the true one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.evaluation import InstanceTally, SemanticTally
from irn_pipeline.nn.segmenters.deeplab import label_components, label_loss
from irn_pipeline.structures import FloatArray, LabelArray

_RATE, _GAP = 0.5, 5


def best_probabilities(
    label: LabelArray, num_labels: int, *, stride: int, balance: bool, steps: int
) -> FloatArray:
    """(L, H, W) probabilities of the logits at a stride that fit a label best.

    Args:
        label: (H, W) uint8, 255 ignore.
        num_labels: L, the background included.
        stride: pixels per cell of the logits.
        balance: as DeepLab's `balance_classes`.
        steps: of Adam.
    """
    truth, size = torch.from_numpy(label).long()[None], label.shape
    logits = torch.zeros(1, num_labels, *(-(-side // stride) for side in size), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        enlarged = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        label_loss(enlarged, truth, balance_classes=balance).backward()
        optimizer.step()
    enlarged = F.interpolate(logits.detach(), size, mode="bilinear", align_corners=False)
    return enlarged.softmax(1)[0].numpy()


def two_discs(gap: int) -> LabelArray:
    """(96, 128) label of two discs of class 0 with a radius of 20 pixels, and so many pixels between them."""
    y, x = np.ogrid[:96, :128]
    centres = (40, 81 + gap)
    return np.any([(y - 48) ** 2 + (x - centre) ** 2 <= 400 for centre in centres], axis=0).astype(np.uint8)


def main(words: Sequence[str] | None = None) -> None:
    """Fit and measure every stride and loss; one JSON object a line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stride_bounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--voc-root", default="data/demo")
    parser.add_argument("--image-list")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args(words)
    data = load_source(Source(voc_root=arguments.voc_root, image_list=arguments.image_list))
    read = (data.ground_truth(record.image_id) for record in data.items[: arguments.pictures])
    truths = [truth for truth in read if truth is not None]
    names = data.images.class_names
    for stride, balance in itertools.product((16, 8), (True, False)):
        semantic, instances = SemanticTally(names), InstanceTally(names, protocol="voc")
        for truth in truths:
            probabilities = best_probabilities(
                truth.label, len(names) + 1, stride=stride, balance=balance, steps=arguments.steps
            )
            label = probabilities.argmax(0).astype(np.uint8)
            semantic.add(label, truth)
            instances.add(label_components(label, probabilities), truth)
        discs = two_discs(_GAP)
        found = best_probabilities(discs, 2, stride=stride, balance=balance, steps=arguments.steps).argmax(0)
        figures = {"miou": semantic.report()["miou"], **instances.report()}
        line: dict[str, Any] = {"output_stride": stride, "balance_classes": balance, "pictures": len(truths)}
        line |= {name: figures[name] for name in ("miou", "ap50", "ap75")}
        line |= {"discs": ndimage.label(found)[1], "discs_area": round(float(found.sum() / discs.sum()), 3)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
