"""The ablation of SpatialEmbeddings (Neven et al., 2019, section 4.2): margins and centres, on true masks.

python -m benchmarks.spatial_ablation --out runs/ablation [--voc-root data/demo] [--image-list train --heldout-list val]
    [--epochs 150 50 --crops 96 160] [--backbone erfnet] [--backbone-weights none]

One margin for both axes or one for each, the centroid or the centre that is learned: four trainings with the same
steps and seed. Each is measured with its own seeds and with centres sampled at the true objects, which shows what the
seeds lose. Finished trainings in --out are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from irn_pipeline import run_stages
from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import Source, load_source
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.evaluation import InstanceTally
from irn_pipeline.models import AskedParams
from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings
from irn_pipeline.trained_networks import load_segmenter

MODEL = "spatial_embeddings-on-truth"
BANDWIDTHS = ("circular", "elliptical")
CENTRES = {"centroid": True, "learned": False}
FIGURES = ("ap", "ap50", "ap75")


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train and measure each of the four."""
    for bandwidth, (centre, to_center) in itertools.product(BANDWIDTHS, CENTRES.items()):
        folder = arguments.out / f"{bandwidth}-{centre}"
        run_stages(
            "train_segmenter",
            run_dir=folder,
            voc_root=arguments.voc_root,
            image_list=arguments.image_list,
            device=arguments.device,
            plan="published",
            quiet=arguments.quiet,
            train_segmenter={
                "labels": "truth", "model": "spatial_embeddings", "backbone": arguments.backbone,
                "backbone_weights": arguments.backbone_weights, "bandwidth": bandwidth, "to_center": to_center,
                "crops": arguments.crops, "epochs": arguments.epochs, "batch_size": arguments.batch_size,
            },
        )  # fmt: skip
        data = load_source(Source(voc_root=arguments.voc_root)).with_list(arguments.heldout_list)
        yield {"margin": bandwidth, "centre": centre} | measure(RunFolder(folder), data, arguments)


def measure(run: RunFolder, data: DataSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures with the model's own seeds, and with centres sampled at the true objects (`_gt`)."""
    execution = Execution(device=arguments.device, precision="float32")
    model, _ = load_segmenter(run, MODEL, execution, AskedParams(min_pixels=arguments.min_pixels))
    assert isinstance(model, SpatialEmbeddings)
    own, at_truth = (InstanceTally(data.images.class_names, protocol="voc") for _ in range(2))
    for record in data.items:
        truth = data.ground_truth(record.image_id)
        if truth is None:
            continue
        image = to_unit_tensor(read_image(record.path, record.orientation)).to(execution.torch_device())
        own.add(model.predict(image), truth)
        at_truth.add(model.predict_at(image, truth.instances), truth)
    found = {"": own.report()["coco"], "_gt": at_truth.report()["coco"]}
    return {f"{name}{kind}": figures[name] for kind, figures in found.items() for name in FIGURES}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The four rows, per cent."""
    columns = [f"{name}{kind}" for kind in ("", "_gt") for name in FIGURES]
    text = f"{'margin':<12}{'centre':<10}" + "".join(f"{column:>9}" for column in columns)
    for line in lines:
        cells = (line[column] for column in columns)
        shown = "".join(f"{'-' if cell is None else f'{100 * cell:.1f}':>9}" for cell in cells)
        text += f"\n{line['margin']:<12}{line['centre']:<10}{shown}"
    return text


def main(words: Sequence[str] | None = None) -> None:
    """Train and measure the four; one JSON object a line, then a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spatial_ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that gets a run folder for each training"
    )
    parser.add_argument("--voc-root", default="data/demo")
    parser.add_argument("--image-list", default="train")
    parser.add_argument("--heldout-list", default="val")
    parser.add_argument("--backbone", default="erfnet")
    parser.add_argument("--backbone-weights", default="none")
    parser.add_argument("--crops", type=int, nargs="+", default=[96, 160])
    parser.add_argument("--epochs", type=int, nargs="+", default=[150, 50])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--min-pixels", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args(words)
    lines = []
    for line in rows(arguments):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        lines.append(line)
    sys.stdout.write(table(lines) + "\n")


if __name__ == "__main__":
    main()
