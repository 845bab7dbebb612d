"""What this machine can do: matrix rate, memory bandwidth, and a ResNet forward pass. One JSON object a line.

python benchmarks/machine.py [--rates]
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch
from torchvision.models import resnet18, resnet50


def seconds(work, repeats: int) -> float:
    """Fastest of some runs; on one thread, time that others took on the machine does not count."""
    work()
    taken = []
    for _ in range(repeats):
        wall, own = time.perf_counter(), time.process_time()
        work()
        wall, own = time.perf_counter() - wall, time.process_time() - own
        taken.append(min(wall, own) if torch.get_num_threads() == 1 else wall)
    return min(taken)


def report(**figures) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def gflops(dtype: torch.dtype, side: int) -> float:
    """Rate of a square matrix product."""
    matrix = torch.randn(side, side).to(dtype)
    return 2 * side**3 / seconds(lambda: matrix @ matrix, 5) / 1e9


def gib_per_second(mib: int) -> float:
    """Rate of a copy, bytes read and bytes written together."""
    source = torch.ones(mib * 2**18)
    target = torch.empty_like(source)
    return 2 * mib / 1024 / seconds(lambda: target.copy_(source), 5)


def processor() -> str:
    """Its name, where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report_rates(small: bool) -> None:
    """The two rates that floors are made of, and what they were measured on."""
    report(
        machine=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        load_average=round(os.getloadavg()[0], 1),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        isa=torch.backends.cpu.get_cpu_capability(),
        float32_gflops=round(gflops(torch.float32, 256 if small else 1024), 1),
        memory_gib_s=round(gib_per_second(8 if small else 256), 2),
    )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", action="store_true", help="the two rates only")
    parser.add_argument("--small", action="store_true", help="smaller arrays")
    options = parser.parse_args()
    report_rates(options.small)
    if options.rates:
        return
    report(what="matrix product bfloat16", gflops=round(gflops(torch.bfloat16, 1024), 1))
    images = torch.randn(2, 3, 384, 512).to(memory_format=torch.channels_last)
    for name, build in (("resnet18", resnet18), ("resnet50", resnet50)):
        network = build().eval().to(memory_format=torch.channels_last)
        report(
            what=f"{name} forward 2x3x384x512 float32",
            seconds=round(seconds(lambda n=network: n(images), 3), 3),
        )


if __name__ == "__main__":
    main()
