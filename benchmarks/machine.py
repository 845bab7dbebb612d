"""What this machine can do: matrix rate in float32 and bfloat16, and a ResNet forward pass. One JSON object a line.

python benchmarks/machine.py
"""

import json
import sys
import time

import torch
from torchvision.models import resnet18, resnet50


def seconds(work, repeats: int) -> float:
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def report(**figures) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


@torch.inference_mode()
def main() -> None:
    report(
        torch=torch.__version__, threads=torch.get_num_threads(), isa=torch.backends.cpu.get_cpu_capability()
    )
    side = 1024
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(side, side).to(dtype)
        took = seconds(lambda m=matrix: m @ m, 3)
        report(what=f"matrix product {dtype}", gflops=round(2 * side**3 / took / 1e9, 1))
    images = torch.randn(2, 3, 384, 512).to(memory_format=torch.channels_last)
    for name, build in (("resnet18", resnet18), ("resnet50", resnet50)):
        network = build().eval().to(memory_format=torch.channels_last)
        report(
            what=f"{name} forward 2x3x384x512 float32",
            seconds=round(seconds(lambda n=network: n(images), 3), 3),
        )


if __name__ == "__main__":
    main()
