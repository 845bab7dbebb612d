"""Pictures a second of every model trained on the labels, and how much of it is the network: one picture at a time.

python -m benchmarks.segmenter_speed [--run-dir RUN] [--sizes 512x512 1024x2048] [--backbone resnet18] [--repeats 3]
    [--models spatial_embeddings]

Of a run folder, its trained models; else models of random weights. The time of a network does not depend on its
weights, that of what comes after it does: untrained embeddings take half of all pixels for objects. SpatialEmbeddings
of random weights therefore cluster maps of 30 objects that are drawn, as a trained network would give them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import seconds
from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.models import MODELS, ON_TRUTH, SegmenterParams, build_segmenter
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings
from irn_pipeline.ops.spatial_clustering import UNIT_X, UNIT_Y, cluster_instances
from irn_pipeline.structures import FloatArray
from irn_pipeline.trained_networks import load_segmenter, trained_variants

_NUM_CLASSES, _OBJECTS = 20, 30


@dataclass(frozen=True)
class Entry:
    """A model to measure; `build` makes it for pictures of a size."""

    name: str
    backbone: str
    build: Callable[[tuple[int, int]], Segmenter]


def untrained(backbone: str) -> Iterator[Entry]:
    """Every model on a ResNet, and SpatialEmbeddings on ERFNet, with random weights."""
    for name, own in dict.fromkeys(
        [*((model, backbone) for model in MODELS), ("spatial_embeddings", "erfnet")]
    ):
        params = SegmenterParams(model=name, backbone=own)  # type: ignore[arg-type]

        def build(size: tuple[int, int], params: SegmenterParams = params) -> Segmenter:
            # The Mask R-CNNs look at the picture as it is.
            torch.manual_seed(0)
            sides: dict[str, Any] = {"short_side": min(size), "long_side": max(size)}
            return build_segmenter(replace(params, **sides), _NUM_CLASSES)

        yield Entry(name, own, build)


def trained(run: RunFolder, execution: Execution) -> Iterator[Entry]:
    """The trained models of a run folder."""
    for name in trained_variants(run):
        model, checkpoint = load_segmenter(run, name, execution)

        def build(size: tuple[int, int], model: Segmenter = model) -> Segmenter:
            if isinstance(model, MaskRcnnSegmenter):
                resize = model.model.transform
                resize.min_size, resize.max_size = (min(size),), max(size)
            return model

        yield Entry(name, checkpoint.backbone, build)


def drawn_maps(size: tuple[int, int], objects: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Embedding, bandwidth and one seed map of discs of many sizes, with the errors of a trained network.

    Args:
        size: (H, W) in pixels.
        objects: number of discs, which may hide one another.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    embedding = np.stack([x * UNIT_X, y * UNIT_Y]).astype(np.float32)
    bandwidth, seeds = np.ones((2, *size), np.float32), np.zeros((1, *size), np.float32)
    for _ in range(objects):
        centre, radius = rng.random(2) * size, rng.uniform(0.01, 0.1) * size[0]
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        count = int(inside.sum())
        middle = np.array([centre[1] * UNIT_X, centre[0] * UNIT_Y])[:, None]
        embedding[:, inside] = middle + rng.normal(0, 0.2 * radius * UNIT_Y, (2, count))
        bandwidth[:, inside] = np.log(np.log(2) / (radius * UNIT_Y) ** 2) / 10
        seeds[0, inside] = rng.uniform(0.7, 1.0, count)
    return embedding, bandwidth, seeds


@torch.no_grad()
def seconds_of(
    model: Segmenter, image: Tensor, repeats: int, *, is_trained: bool = True
) -> tuple[float, float | None]:
    """Seconds of a prediction, and of the network in it; None for detectors, which are one with what comes after."""
    if isinstance(model, SpatialEmbeddings) and not is_trained:
        network = seconds(lambda: model(image[None]), repeats)
        maps = drawn_maps((image.shape[-2], image.shape[-1]), _OBJECTS)
        clustering = partial(cluster_instances, *maps, min_pixels=model.min_pixels, seed_threshold=0.9)
        return network + seconds(clustering, repeats), network
    whole = seconds(lambda: model.predict(image), repeats)
    if isinstance(model, MaskRcnnSegmenter):
        return whole, None
    return whole, seconds(lambda: model(image[None]), repeats)


def main() -> None:
    """Measure every model at every size; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["512x512", "1024x2048"])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    execution = Execution(device=arguments.device)
    device = execution.torch_device()
    entries = (
        untrained(arguments.backbone)
        if arguments.run_dir is None
        else trained(RunFolder(arguments.run_dir), execution)
    )
    for entry in entries:
        if entry.name.removesuffix(ON_TRUTH) not in arguments.models:
            continue
        for text in arguments.sizes:
            height, width = (int(part) for part in text.split("x"))
            picture = make_picture(np.random.default_rng(0), (height, width))
            image = to_unit_tensor(picture.image).to(device)
            model = entry.build((height, width)).eval().to(device)
            whole, network = seconds_of(
                model, image, arguments.repeats, is_trained=arguments.run_dir is not None
            )
            line = {
                "model": entry.name, "backbone": entry.backbone, "size": text, "device": str(device),
                "threads": torch.get_num_threads(), "seconds": round(whole, 3),
                "network_seconds": None if network is None else round(network, 3),
                "pictures_per_second": round(1 / whole, 3),
                "parameters": sum(p.numel() for p in model.parameters()),
            }  # fmt: skip
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
