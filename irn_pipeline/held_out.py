"""Pictures kept out of the classifier's training, and what it finds in them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.files.atomic import write_json
from irn_pipeline.notices import HELD_OUT_NAME, LEAST_POSITIVES, average_precision, untold_classes
from irn_pipeline.structures import FloatArray, ImageRecord, ImageSet

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)
_ENOUGH = 10
"""Pictures of a class from which some may be kept out of the training."""


def split(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, tuple[ImageRecord, ...]]:
    """The pictures that are learned from, and those kept out; all pictures of rare classes are learned from.

    Args:
        images: all pictures.
        share: of them, that is kept out.
        seed: of the choice.
    """
    counts = Counter(class_id for record in images.records for class_id in record.class_ids)
    free = [
        n for n, record in enumerate(images.records) if all(counts[k] >= _ENOUGH for k in record.class_ids)
    ]
    order = np.random.default_rng(seed).permutation(free)
    chosen = set(order[: round(share * len(images))].tolist())
    parts: list[list[ImageRecord]] = [[], []]
    for place, record in enumerate(images.records):
        parts[place in chosen].append(record)
    return ImageSet(images.class_names, tuple(parts[0])), tuple(parts[1])


def class_scores(
    network: nn.Module, kept_out: Sequence[ImageRecord], long_side: float, execution: Execution
) -> FloatArray:
    """(N, C) scores that a network gives to images.

    Args:
        network: gives class scores (1, C) of normalised images (1, 3, H, W); on the execution's device.
        kept_out: N images.
        long_side: that they are resized to, pixels.
        execution: device and precision.
    """
    import torch

    from irn_pipeline.datasets.transforms import normalise, read_resized

    read = partial(read_resized, long_side=long_side)
    network.eval()
    device = execution.torch_device()
    with torch.inference_mode(), execution.autocast():
        found = [
            network(normalise(image.to(device))[None])[0].float().cpu()
            for image in prefetch(read, kept_out, execution.worker_count)
        ]
    scores: FloatArray = torch.stack(found).numpy()
    return scores


def measure(
    scores: FloatArray, class_names: Sequence[str], kept_out: Sequence[ImageRecord], folder: Path
) -> str | None:
    """Average precision of each class on images that were not learned from: logged, and written for the report.

    Args:
        scores: (N, C) of the images.
        class_names: of the C classes.
        kept_out: the N images.
        folder: gets `held_out.json`.

    Returns:
        A line about the classes that are not told from the others, if there are some.
    """
    shows = np.array([[k in record.class_ids for k in range(len(class_names))] for record in kept_out])
    precisions = {
        name: average_precision(scores[:, k], shows[:, k]) if shows[:, k].sum() >= LEAST_POSITIVES else None
        for k, name in enumerate(class_names)
    }
    known = {name: value for name, value in precisions.items() if value is not None}
    told = ", ".join(f"{name} {value:.2f}" for name, value in known.items()) or "too few to say"
    logger.info("average precision on %d held-out images: %s", len(kept_out), told)
    mean = sum(known.values()) / len(known) if known else None
    figures = {"pictures": len(kept_out), "mean": mean, "ap_per_class": precisions}
    write_json(folder / HELD_OUT_NAME, figures)
    return untold_classes(precisions, dict(zip(class_names, shows.mean(axis=0).tolist(), strict=True)))
