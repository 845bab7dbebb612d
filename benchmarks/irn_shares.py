"""Where one training step of IRNet goes: backbone, branches, losses. One JSON object a line.

python -m benchmarks.irn_shares [--networks resnet18 resnet50] [--crop 512] [--repeats 3]

CPU seconds of one picture on one thread. The losses are what this package makes faster; what is left without them says
how far that can go.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise

import torch

from benchmarks.case import Case
from benchmarks.irn_step import RADIUS, batch, learner
from irn_pipeline.nn.irn_losses import irn_losses
from irn_pipeline.ops.affinity import pair_paths

_PARTS = ("backbone", "branches_forward", "losses_forward", "losses_backward", "branches_backward", "update")


def shares(case: Case, repeats: int) -> dict[str, float]:
    """Least seconds of every part over some steps, after one that is not counted."""
    images, labels = batch(case)
    network, optimizer = learner(case)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures, paths = images.to(memory_format=torch.channels_last), pair_paths(RADIUS)
    found: list[list[float]] = []
    for _ in range(repeats + 1):
        optimizer.zero_grad(set_to_none=True)
        times = [time.process_time()]
        features = network._features(pictures)
        times.append(time.process_time())
        logits, displacement = network._boundary_logits(features), network._displacement(features)
        times.append(time.process_time())
        # Leaves of their own, so that the two backward passes can be told apart.
        boundary = torch.sigmoid(logits.detach()).requires_grad_()
        field = displacement.detach().requires_grad_()
        losses = irn_losses(boundary, field, labels, paths)
        times.append(time.process_time())
        losses.total.backward()
        times.append(time.process_time())
        slope = boundary.grad * boundary.detach() * (1 - boundary.detach())  # type: ignore[operator]
        torch.autograd.backward([logits, displacement], [slope, field.grad])  # type: ignore[list-item]
        times.append(time.process_time())
        optimizer.step()
        times.append(time.process_time())
        found.append([after - before for before, after in pairwise(times)])
    return dict(zip(_PARTS, (round(min(column), 4) for column in zip(*found[1:], strict=True)), strict=True))


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds say nothing of several
    for name in arguments.networks:
        parts = shares(Case((arguments.crop, arguments.crop), 1, name), arguments.repeats)
        sys.stdout.write(json.dumps({"network": name, "crop": arguments.crop, **parts}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
