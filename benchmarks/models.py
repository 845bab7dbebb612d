"""All models trained on masks, on one page: generated images, each model trained until it has converged.

python -m benchmarks.models --out DIR [--data demo] [--models NAME ...] [--labels truth synthesized] [--seeds 0 1 2]
python -m benchmarks.models --out DIR --data worms --models mask_rcnn semiconv_mask_rcnn --seeds 0 1 2

A training stops when AP on the validation images has not improved for a fifth of the steps, and keeps the best
weights. The last column counts those that did; the others reached --epochs before. The test images are looked at
once, at the end. Synthesized labels come from stages 1 to 5 on the same images. `semiconv_mask_rcnn` goes on from a
Mask R-CNN that was trained in the same way. Finished rows are kept: repeat the command to go on. DIR/table.md is the
page; the learning curves of seed N are in DIR/seed_N/report/report.html. benchmarks/worms.py describes the worms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.segmenter_speed import seconds_of
from benchmarks.worms import write_worms
from irn_pipeline import run_stages
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.synthetic import generate_demo
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.evaluation import model_figures
from irn_pipeline.models import MODELS, ON_TRUTH
from irn_pipeline.trained_networks import load_segmenter, segmenter_artifact

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 0.2
"""Fraction of the steps that validation AP must have been flat for."""
_IMAGES = {"demo": 80, "worms": 50}
"""Training images of each data set."""
_START = {"backbone": "efficientnet_lite0", "backbone_weights": "installed", "frozen_stages": 3}
_DETECTOR = {"short_side": 160, "long_side": 256, "boxes_per_image": 64, "channels": 64}
_CROPS = {"crop": 160, "rescale": (0.75, 1.33)}
RECIPES: dict[str, dict[str, Any]] = {
    "mask_rcnn": {**_DETECTOR, "lr": 1e-3},
    "semiconv_mask_rcnn": {**_DETECTOR, "lr": 2.5e-4},
    "spatial_embeddings": {**_CROPS, "lr": 1e-3, "min_pixels": 32},
    "metric_embeddings": {**_CROPS, "lr": 1e-3},
    "deeplabv3": {**_CROPS, "lr": 1e-3},
}
"""Parameters of each model for these images of 160 to 208 pixels."""
_COLUMNS = {
    "ap50": "AP50", "ap75": "AP75", "ap": "COCO AP", "miou": "mIoU", "sbd": "SBD", "abs_dic": r"\|DiC\|",
    "images_per_second": "images/s", "parameters": "parameters", "steps": "steps", "seconds": "seconds",
}  # fmt: skip
_PERCENT = ("ap50", "ap75", "ap", "miou", "sbd")


@dataclass(frozen=True)
class Row:
    """One training and what its network finds in the test images.

    Attributes:
        ap: COCO's, over IoU 0.5 to 0.95; the other figures as in `metrics.json`, fractions.
        steps: of the whole training; `best_step` is that of the weights.
        converged: whether validation AP was flat over the last fifth of the steps that were planned.
        seconds: of the training, validations included.
    """

    model: str
    labels: str
    seed: int
    ap50: float | None
    ap75: float | None
    ap: float | None
    miou: float | None
    sbd: float | None
    abs_dic: float | None
    images_per_second: float
    parameters: int
    steps: int
    best_step: int
    converged: bool
    seconds: float


def prepare(out: Path, data: str, images: int) -> Path:
    """Write the images unless they are there; returns the VOC folder with the lists train, validate and test."""
    root = out / "voc"
    if (root / "ImageSets" / "Segmentation" / "test.txt").is_file():
        return root
    if data == "worms":
        write_worms(root, train=images)
        return root
    generate_demo(root, num_images=images, num_heldout=60)
    lists = root / "ImageSets" / "Segmentation"
    held_out = (lists / "val.txt").read_text().split()
    (lists / "validate.txt").write_text("\n".join(held_out[:30]) + "\n")
    (lists / "test.txt").write_text("\n".join(held_out[30:]) + "\n")
    return root


def train(options: argparse.Namespace, root: Path, model: str, labels: str, seed: int) -> Row:
    """One training to its end, and its row."""
    run_dir = options.out / f"seed_{seed}"
    source: dict[str, Any] = {"voc_root": str(root), "image_list": "train", "seed": seed}
    if labels == "synthesized" and not (run_dir / "synthesize_labels").exists():
        config = str(ROOT / "configs" / "demo.yaml")
        made = run_stages("1-5", **{**source, "seed": 0}, run_dir=options.out / "labels", config=config)
        shutil.copytree(made / "synthesize_labels", run_dir / "synthesize_labels")
    recipe = dict(RECIPES[model])
    if model == "semiconv_mask_rcnn":
        recipe |= (
            {"lr": RECIPES["mask_rcnn"]["lr"]} if options.from_scratch else {"first_epochs": options.epochs}
        )
    run_stages(
        "train_segmenter", **source, run_dir=run_dir, plan="published",
        train_segmenter={
            "model": model, "labels": labels, **_START, "optimizer": "adamw", "batch_size": 4, "epochs": options.epochs,
            "validate_list": "validate", "validate_every": options.validate_every, "patience": PATIENCE,
            "warmup_steps": 50, **recipe,
        },
    )  # fmt: skip
    run, variant = RunFolder(run_dir), model + (ON_TRUTH if labels == "truth" else "")
    test = load_source(Source(voc_root=str(root), image_list="test"))
    return Row(model, labels, seed, **tested(run, variant, test), **trained(run, variant, options.epochs))


def tested(run: RunFolder, variant: str, test: DataSet) -> dict[str, Any]:
    """Figures of a trained model on the test images, and its speed on the first of them."""
    execution = Execution(quiet=True)
    model, _ = load_segmenter(run, variant, execution)
    figures = model_figures(model, test, execution)
    image = to_unit_tensor(read_image(test.items[0].path)).to(execution.torch_device())
    with execution.autocast():
        seconds, _ = seconds_of(model, image, 3)
    named = {name: figures.get(name) for name in ("ap50", "ap75", "miou", "sbd", "abs_dic")}
    return {
        **named,
        "ap": figures.get("coco", {}).get("ap"),
        "images_per_second": round(1 / seconds, 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def trained(run: RunFolder, variant: str, epochs: int) -> dict[str, Any]:
    """Length of a training, from what it wrote."""
    stage = segmenter_artifact(variant).stage
    folder, record = run.stage_dir(stage), run.record(stage)
    losses, validation = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("losses", "validation")
    )
    steps = losses[-1]["step"]
    planned = epochs * sum(line["epoch"] == 0 for line in losses)
    best = max(validation, key=lambda line: line.get("ap", line.get("miou", 0.0)))["step"]
    first = folder / "first" / "losses.jsonl"
    before = len(first.read_text().splitlines()) if first.is_file() else 0
    return {
        "steps": before + steps,
        "best_step": before + best,
        "converged": steps - best >= PATIENCE * planned,
        "seconds": 0.0 if record is None else round(record.seconds, 1),
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each model and kind of labels, means over seeds and their standard deviation."""
    lines = ["| model | labels | seeds | " + " | ".join(_COLUMNS.values()) + " | converged |"]
    lines.append("|" + "---|" * (len(_COLUMNS) + 4))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.labels), []).append(row)
    for (model, labels), group in groups.items():
        cells = [_cell(name, [getattr(row, name) for row in group]) for name in _COLUMNS]
        done = sum(row.converged for row in group)
        lines.append(
            f"| `{model}` | {labels} | {len(group)} | {' | '.join(cells)} | {done} of {len(group)} |"
        )
    return "\n".join(lines) + "\n"


def _cell(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if name == "parameters":
        return f"{known[0] / 1e6:.1f} M"
    factor, digits = (100, 1) if name in _PERCENT else (1, 0 if name in ("steps", "seconds") else 2)
    text = f"{factor * np.mean(known):.{digits}f}"
    return text + (f" ± {factor * np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else "")


def read_rows(path: Path) -> list[Row]:
    """Finished rows; none where the file is not there."""
    if not path.is_file():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def main() -> None:
    """Train and measure what is missing; the table goes to standard output and to DIR/table.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", choices=tuple(_IMAGES), default="demo")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--labels", nargs="+", choices=("truth", "synthesized"), default=["truth"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=100, help="of a training at most")
    parser.add_argument("--images", type=int, default=None, help="to train on: 80 of demo, 50 of worms")
    parser.add_argument("--validate-every", type=int, help="epochs between validations: a 20th of --epochs")
    parser.add_argument(
        "--from-scratch", action="store_true", help="semiconv_mask_rcnn without a Mask R-CNN first"
    )
    options = parser.parse_args()
    # Four in the time that a training waits for a better one: a single bad validation ends nothing.
    options.validate_every = options.validate_every or max(options.epochs // 20, 1)
    if options.data == "worms" and "synthesized" in options.labels:
        parser.error("worms have ground-truth masks only: --labels truth")
    root = prepare(options.out, options.data, options.images or _IMAGES[options.data])
    path = options.out / "rows.jsonl"
    for model, labels, seed in (
        (model, labels, seed)
        for model in options.models
        for labels in options.labels
        for seed in options.seeds
    ):
        if any((row.model, row.labels, row.seed) == (model, labels, seed) for row in read_rows(path)):
            continue
        row = train(options, root, model, labels, seed)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(row)) + "\n")
        run_stages("report", voc_root=str(root), run_dir=options.out / f"seed_{seed}", quiet=True)
    found = table(read_rows(path))
    (options.out / "table.md").write_text(found, encoding="utf-8")
    sys.stdout.write(found)


if __name__ == "__main__":
    main()
