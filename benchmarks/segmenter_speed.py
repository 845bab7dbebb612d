"""Pictures a second of every model trained on the labels: one picture at a time, random weights.

python -m benchmarks.segmenter_speed [--sizes 512x512 1024x2048] [--backbone resnet18] [--repeats 3]

Random weights find other things than trained ones; the time of the network does not depend on it, that of what comes
after it does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from stages._segmenter import MODELS, SegmenterParams, build_segmenter


def seconds_a_picture(model: torch.nn.Module, size: tuple[int, int], repeats: int) -> float:
    """The fastest of some predictions of one random picture, after one that is not counted."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((3, *size), generator=generator)
    model.predict(image)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.predict(image)
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Measure every model at every size; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["512x512", "1024x2048"])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    chosen = [(model, arguments.backbone) for model in MODELS] + [("spatial_embeddings", "erfnet")]
    for name, backbone in chosen:
        torch.manual_seed(0)
        for text in arguments.sizes:
            height, width = (int(part) for part in text.split("x"))
            # The Mask R-CNNs look at the picture as it is.
            params = SegmenterParams(
                model=name, backbone=backbone, short_side=min(height, width), long_side=max(height, width)
            )
            model = build_segmenter(params, 20).eval()
            seconds = seconds_a_picture(model, (height, width), arguments.repeats)
            parameters = sum(p.numel() for p in model.parameters())
            line = {
                "model": name, "backbone": backbone, "size": text, "threads": torch.get_num_threads(),
                "seconds": round(seconds, 3), "pictures_per_second": round(1 / seconds, 3),
                "parameters": parameters,
            }  # fmt: skip
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
