"""Whether the stages give on a GPU what they give on the CPU, and how fast: one command, generated images, no network.

python -m benchmarks.gpu [--minutes 8] [--out figures.json] [--device cuda] [--images 400] [--small]

Stages 1 to 5 run on the device. Stages 2 and 5 then run on the CPU with the same networks and a part of the images, in
float32 on both: the labels must agree on 99.9 % of the pixels. Images per second come from the stages' own records.
With two or more GPUs stages 1 to 5 run once more under torchrun (NCCL). --device cpu --small goes through all of it
without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.cost import counted
from benchmarks.machine import seconds as fastest
from irn_pipeline import read_labels, run_stages
from irn_pipeline.datasets.synthetic import generate_demo

STAGES = ("train_cam", "make_cam", "mine_relations", "train_irn", "synthesize_labels")
AGREEMENT = 0.999
"""Share of pixels on which the labels of both devices must agree."""


@dataclass(frozen=True)
class StageFigures:
    """One stage on the device.

    Attributes:
        seconds: of work, data loading included.
        images: worked on, counting each epoch of a training.
        images_per_second: of both.
        share_of_rate: operations per second as a share of the device's matrix products; None without a network.
    """

    seconds: float
    images: int
    images_per_second: float
    share_of_rate: float | None


@dataclass
class Figures:
    """All that a run of this command measures."""

    device: str
    torch: str
    images: int
    tflops: float
    stages: dict[str, StageFigures] = field(default_factory=dict)
    pixels_that_agree: float | None = None
    largest_cam_difference: float | None = None
    peak_memory_gib: float | None = None
    mean_utilisation_percent: float | None = None
    seconds_under_torchrun: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is run: the published protocol, or a small form of it."""

    images: int
    compared: int
    size: tuple[int, int]
    sections: dict[str, dict[str, object]]

    @staticmethod
    def full(images: int) -> Plan:
        """ResNet-50 with random weights: times and agreement do not depend on what it has learned."""
        random: dict[str, object] = {"backbone_weights": "none"}
        return Plan(images, 40, (375, 500), {"train_cam": random, "train_irn": random})

    @staticmethod
    def small(images: int) -> Plan:
        """Seconds instead of minutes."""
        network = {
            "backbone": "resnet18",
            "backbone_weights": "none",
            "epochs": 1,
            "batch_size": 2,
            "crop": 80,
        }
        sections: dict[str, dict[str, object]] = {
            "train_cam": {**network, "long_side": (64, 96)},
            "make_cam": {"scales": (1.0,)},
            "train_irn": network,
            "synthesize_labels": {"exp_times": 2},
        }
        return Plan(images, 2, (72, 96), sections)


def measure(plan: Plan, folder: Path, device: str, minutes: float) -> Figures:
    """All figures; what there is no time or no device for is named in `left_out`."""
    end = time.monotonic() + 60 * minutes
    figures = Figures(device_name(device), torch.__version__, plan.images, tflops(device))
    data = folder / "voc"
    generate_demo(data, num_images=plan.images, num_heldout=1, min_size=plan.size, max_size=plan.size)
    common: dict[str, object] = {"voc_root": data, "quiet": True, "plan": "published", **plan.sections}
    with Utilisation(device) as utilisation:
        run = run_stages("1-5", run_dir=folder / "device", device=device, **common)
    figures.mean_utilisation_percent = utilisation.mean()
    work = counted() if plan.size == (375, 500) else None
    for stage in STAGES:
        record = json.loads((run / stage / "stage.json").read_text())
        images = record["counts"]["images"]
        rate = images / record["seconds"]
        operations = getattr(work, stage, None)
        # A training counts each epoch's images, and its operations are those of all epochs.
        share = None if operations is None else operations * plan.images / record["seconds"] / figures.tflops
        figures.stages[stage] = StageFigures(record["seconds"], images, rate, share)
    if device.startswith("cuda"):
        figures.peak_memory_gib = torch.cuda.max_memory_allocated() / 2**30
    if time.monotonic() < end:
        compare(plan, run, folder, device, common, figures)
    else:
        figures.left_out.append("comparison with the CPU: no time left")
    if torch.cuda.device_count() < 2 or not device.startswith("cuda"):
        figures.left_out.append("torchrun with NCCL: fewer than two GPUs")
    elif time.monotonic() < end:
        under_torchrun(folder, common, figures)
    else:
        figures.left_out.append("torchrun with NCCL: no time left")
    return figures


def compare(
    plan: Plan, trained: Path, folder: Path, device: str, common: dict[str, object], figures: Figures
) -> None:
    """Stages 2 and 5 on both devices in float32, with the networks of the run before."""
    ids = [path.stem for path in sorted((folder / "voc" / "JPEGImages").glob("train_*"))][: plan.compared]
    listed = folder / "compared.txt"
    listed.write_text("\n".join(ids) + "\n")
    runs = []
    for name, place in (("on-cpu", "cpu"), ("on-device", device)):
        run = folder / name
        for stage in ("train_cam", "mine_relations", "train_irn"):
            shutil.copytree(trained / stage, run / stage)
        settings = {**common, "image_list": listed, "precision": "float32", "device": place}
        runs.append(run_stages(["make_cam", "synthesize_labels"], run_dir=run, **settings))
    agree, differences = [], []
    for image_id in ids:
        ours, theirs = (read_labels(run, image_id)[0] for run in runs)
        agree.append(float((ours == theirs).mean()))
        maps = [
            np.load(run / "make_cam" / "cam" / f"{image_id}.npy", allow_pickle=True).item() for run in runs
        ]
        differences.append(float(np.abs(maps[0]["cam"] - maps[1]["cam"]).max(initial=0)))
    figures.pixels_that_agree, figures.largest_cam_difference = float(np.mean(agree)), max(differences)


def under_torchrun(folder: Path, common: dict[str, object], figures: Figures) -> None:
    """Stages 1 to 5 by one process a GPU."""
    words = [
        "--voc-root",
        str(common["voc_root"]),
        "--run-dir",
        str(folder / "torchrun"),
        "--quiet",
        "--plan",
        "published",
    ]
    for stage in ("train_cam", "train_irn"):
        words += [f"--{stage}.backbone_weights", "none"]
    count = str(torch.cuda.device_count())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    subprocess.run([*launcher, "-m", "stages", "run", "1-5", *words], check=True)
    for stage in STAGES:
        record = json.loads((folder / "torchrun" / stage / "stage.json").read_text())
        figures.seconds_under_torchrun[stage] = record["seconds"]


class Utilisation:
    """Mean utilisation of a GPU while the context lasts; needs the package nvidia-ml-py."""

    def __init__(self, device: str) -> None:
        self.watched = device.startswith("cuda")
        self.values: list[int] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Utilisation:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while self.watched and not self.ended.wait(0.5):
            try:
                self.values.append(torch.cuda.utilization())
            except (ModuleNotFoundError, RuntimeError):
                return

    def mean(self) -> float | None:
        """Per cent; None where it could not be read."""
        return float(np.mean(self.values)) if self.values else None


def device_name(device: str) -> str:
    """The name of a device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def tflops(device: str) -> float:
    """Rate of a matrix product in the precision that the stages take on the device."""
    cuda = device.startswith("cuda")
    side, kind = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    matrix = torch.randn(side, side, device=device).to(kind)

    def product() -> None:
        matrix @ matrix
        if cuda:
            torch.cuda.synchronize()

    return 2 * side**3 / fastest(product, 5) / 1e12


def main() -> None:
    """Print one JSON object, and write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="parts that would begin later are left out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--small", action="store_true", help="a small network and small images")
    arguments = parser.parse_args()
    plan = Plan.small(arguments.images) if arguments.small else Plan.full(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(plan, Path(folder), arguments.device, arguments.minutes)
    text = json.dumps(asdict(figures), indent=1) + "\n"
    sys.stdout.write(text)
    if arguments.out is not None:
        arguments.out.write_text(text)
    if figures.pixels_that_agree is not None and figures.pixels_that_agree < AGREEMENT:
        sys.exit(f"labels agree on {figures.pixels_that_agree:.4%} of the pixels only")


if __name__ == "__main__":
    main()
