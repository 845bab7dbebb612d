"""What metric embeddings see, as the figures of Fathi et al. (2017) show it: one PNG per image.

python examples/metric_figure.py --run-dir RUN --images DIR --out DIR [--model metric_embeddings-on-truth] [--seeds 20]

From left to right: the image, its embeddings (the first three principal components as red, green and blue),
seediness, the seeds in the order of picking, and the objects.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.instance_coloring import draw
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.picture_scan import scan_pictures
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError, IrnError
from irn_pipeline.export.overlay import heat, overlay_instances
from irn_pipeline.nn.segmenters.metric_embeddings import MetricEmbeddings
from irn_pipeline.structures import LabelArray
from irn_pipeline.trained_networks import load_segmenter

logger = logging.getLogger(__name__)


def principal_colours(embeddings: Tensor) -> LabelArray:
    """The three directions of largest variance as colours.

    Args:
        embeddings: (D, h, w), D at least 3.

    Returns:
        (h, w, 3) uint8; each colour spans the central 96 % of its component.
    """
    points = embeddings.flatten(1).T
    points = points - points.mean(0)
    axes = torch.linalg.svd(points, full_matrices=False).Vh[:3]
    values = points @ axes.T
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98], device=values.device), dim=0)
    shares = ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return (255 * shares).round().reshape(*embeddings.shape[1:], 3).cpu().numpy().astype(np.uint8)


@torch.no_grad()
def panels(model: MetricEmbeddings, image: LabelArray, count: int) -> list[tuple[str, LabelArray]]:
    """The five images of one row, all of the image's size.

    Args:
        model: on any device, in evaluation mode.
        image: (H, W, 3) uint8.
        count: seeds that are shown.
    """
    device, stride = next(model.parameters()).device, model.features.stride
    tensor = to_unit_tensor(image).to(device)
    embeddings, logits = (x[0] for x in model(tensor[None]))
    seeds, seediness, _ = model.seeds(embeddings, logits)
    height, width = image.shape[:2]

    def full(cells: LabelArray) -> LabelArray:
        return cells.repeat(stride, 0).repeat(stride, 1)[:height, :width]

    seedy = heat(seediness.reshape(embeddings.shape[1:]).cpu().numpy().astype(np.float32))
    marked = Image.fromarray(image)
    pen = ImageDraw.Draw(marked)
    for number, cell in enumerate(seeds[:count].tolist(), start=1):
        y, x = (stride * part + stride // 2 for part in divmod(cell, embeddings.shape[2]))
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill="yellow", outline="black")
        pen.text((x + 3, y - 5), str(number), fill="white", stroke_width=1, stroke_fill="black")
    found = model.predict(tensor)
    found = found.select(found.scores >= 0.5)
    return [
        ("image", image),
        ("embeddings", full(principal_colours(embeddings))),
        ("seediness", full(seedy)),
        ("seeds in order", np.asarray(marked)),
        ("objects", overlay_instances(image, found)),
    ]


def main() -> int:
    """Parse the command line and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="run folder with a trained metric_embeddings"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--out", type=Path, required=True, help="folder for FILE.png")
    parser.add_argument(
        "--model", default="metric_embeddings", help="folder of the model below train_segmenter"
    )
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds to show")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        model, _ = load_segmenter(RunFolder(options.run_dir), options.model, Execution(quiet=True))
        if not isinstance(model, MetricEmbeddings):
            raise ConfigError(f"--model {options.model}: has no seeds; give a trained metric_embeddings")
        found = scan_pictures(options.images, [], [], flag="--images")
        for file in sorted(file for files in found.values() for file in files):
            path = options.out / f"{file}.png"
            draw([panels(model, read_image(options.images / file), options.seeds)], path)
            logger.info("%s", path)
    except IrnError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
