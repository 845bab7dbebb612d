"""Hours and disk of the pipeline for a number of pictures, from counted operations and measured rates.

python -m benchmarks.cost [--pictures 10582 118287 10000000] [--tflops 30] [--gpus 1 8 64] [--crf-seconds 0.25]

Operations of the networks are counted, not timed: ResNet-50 on pictures of 375x500, the published protocol. What a
device really reaches of its peak is for its owner to measure; --tflops takes the sustained rate, and its default is an
assumption. CRF and label seconds are of one core, measured by `python -m benchmarks --only crf` and by the summary line
of `synthesize_labels`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.stages import make_cam, train_cam, train_irn

HEIGHT, WIDTH = 375, 500
BYTES = {"make_cam": 107_000, "mine_relations": 7_200, "synthesize_labels": 1_610_000}
"""Of one picture's files, mean over VOC photographs: maps without `high_res`, confident label, both final labels."""


@dataclass(frozen=True)
class Work:
    """Operations of the networks, for one picture, in TFLOP.

    Attributes:
        train_cam: all its epochs.
        make_cam: all scales, each with its mirror.
        train_irn: all its epochs and the mean displacement.
        synthesize_labels: one pass with the mirror.
    """

    train_cam: float
    make_cam: float
    train_irn: float
    synthesize_labels: float

    @property
    def total(self) -> float:
        """Of all stages."""
        return self.train_cam + self.make_cam + self.train_irn + self.synthesize_labels


def operations(network: nn.Module, height: int, width: int, *, learns: bool) -> float:
    """TFLOP of one picture through a network on torch's meta device, with gradients of what learns."""
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(learns):
        output = network(torch.empty(1, 3, height, width, device="meta"))
        if learns:
            parts = output if isinstance(output, tuple) else (output,)
            sum(part.sum() for part in parts).backward()
    return counter.get_total_flops() / 1e12


def counted() -> Work:
    """The published protocol's operations."""
    with torch.device("meta"):
        cam, irn = (
            CamNetwork(num_classes=20, backbone="resnet50").train(),
            IrnNetwork(backbone="resnet50").train(),
        )
    training, relations = train_cam.Params(), train_irn.Params()
    maps = sum(
        2 * operations(cam, round(HEIGHT * scale), round(WIDTH * scale), learns=False)
        for scale in make_cam.Params().scales
    )
    one = operations(irn, HEIGHT, WIDTH, learns=False)
    return Work(
        train_cam=training.epochs * operations(cam, training.crop, training.crop, learns=True),
        make_cam=maps,
        train_irn=relations.epochs * operations(irn, relations.crop, relations.crop, learns=True) + one,
        synthesize_labels=2 * one,
    )


def main() -> None:
    """One JSON object for the operations, then one for every number of pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", nargs="+", type=int, default=[10_582, 118_287, 10_000_000])
    parser.add_argument("--tflops", type=float, default=30.0, help="sustained rate of one GPU")
    parser.add_argument("--crf-seconds", type=float, default=0.25, help="both CRFs of an image, one core")
    parser.add_argument(
        "--label-seconds", type=float, default=0.3, help="walk and labels of an image, one core"
    )
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64])
    arguments = parser.parse_args()
    work = counted()
    lines: list[dict[str, object]] = [{"tflop_a_picture": {k: round(v, 3) for k, v in asdict(work).items()}}]
    for count in arguments.pictures:
        hours = count * work.total / arguments.tflops / 3600
        lines.append(
            {
                "pictures": count,
                "gpu_hours": round(hours, 1),
                "hours": {gpus: round(hours / gpus, 2) for gpus in arguments.gpus},
                "core_hours_crf": round(count * arguments.crf_seconds / 3600, 1),
                "core_hours_labels": round(count * arguments.label_seconds / 3600, 1),
                "gib": {stage: round(count * size / 2**30, 1) for stage, size in BYTES.items()},
            }
        )
    sys.stdout.write("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
