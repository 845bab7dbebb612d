"""Draws docs/overview.jpg: four pictures of a finished run around the median of their label IoU, and the worst one.

python docs/render_overview.py --run-dir runs/demo --voc-root data/demo --out docs/overview.jpg
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.datasets.pixels import read_rgb
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.engine.command import run_command
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError, DataError
from irn_pipeline.export.overlay import heat, hues, instance_layer, label_colours, over
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.gallery import Gallery, GalleryOptions
from irn_pipeline.structures import ImageRecord, LabelArray

logger = logging.getLogger(__name__)
TITLES = ("photograph", "CAM", "instance labels", "semantic labels", "ground-truth instances")
CELL, GAP, LINE = 240, 6, 30
"""Width of a panel, space between panels, height of a line of text; pixels."""
MEDIANS = 4


@dataclass(frozen=True)
class Row:
    """A chosen picture and what it is: its rank and label IoU."""

    record: ImageRecord
    caption: str


def choose(records: Sequence[ImageRecord], ious: Sequence[float | None]) -> list[Row]:
    """The four pictures around the median IoU, best first, and the worst one; fewer of a smaller set.

    Args:
        records: all pictures.
        ious: mean IoU of each one's semantic label, in [0, 1]; None without label or truth.

    Raises:
        ArtifactError: not one picture has an IoU.
    """
    known = [(iou, record) for iou, record in zip(ious, records, strict=True) if iou is not None]
    if not known:
        raise ArtifactError(
            "no image of the run has both labels and ground-truth masks; run stage synthesize_labels first, and name "
            "the data set that the run worked on"
        )
    known.sort(key=lambda pair: -pair[0])
    *others, worst = known
    start = max((len(known) - MEDIANS) // 2, 0)
    rows = [
        Row(record, f"median {number} of {len(known)} images, label IoU {100 * iou:.0f} %")
        for number, (iou, record) in enumerate(others[start : start + MEDIANS], 1)
    ]
    iou, record = worst
    return [*rows, Row(record, f"worst of {len(known)} images, label IoU {100 * iou:.0f} %")]


def panels(run: RunFolder, data: DataSet, record: ImageRecord) -> list[LabelArray]:
    """One (H, W, 3) uint8 RGB panel for each title; the last one is white where objects are not told apart."""
    image = read_rgb(record)
    dark = (0.6 * image).astype(np.uint8)
    truth = data.ground_truth(record.image_id)
    label = run.read(SEMANTIC_LABEL, record.image_id)
    cam = run.read(CAM, record.image_id).high_res_cam.max(axis=0)
    labels = run.read(INSTANCE_LABEL, record.image_id).without_fragments()
    return [
        image,
        over(image, _layer(heat(cam), np.ones(cam.shape, np.bool_), 0.55)),
        over(dark, instance_layer(labels, opacity=0.7)) if len(labels) else dark,
        over(dark, _layer(label_colours(label), label > 0, 0.7)),
        np.full_like(image, 255)
        if truth is None or not truth.has_instances
        else over(dark, instance_layer(truth.instances, opacity=0.7)),
    ]


def compose(drawn: Sequence[tuple[str, Sequence[LabelArray]]], class_names: Sequence[str]) -> LabelArray:
    """Rows of panels under their captions, titles above and the colours of the classes below: (H, W, 3) RGB."""
    width = GAP + len(TITLES) * (CELL + GAP)
    header = np.full((LINE, width, 3), 255, np.uint8)
    for column, title in enumerate(TITLES):
        _write(header, title, GAP + column * (CELL + GAP), 0.58)
    strips = [header]
    for caption, row in drawn:
        height = max(round(CELL * row[0].shape[0] / row[0].shape[1]), 1)
        strip = np.full((LINE + height + GAP, width, 3), 255, np.uint8)
        _write(strip, caption, GAP, 0.5)
        for column, panel in enumerate(row):
            left = GAP + column * (CELL + GAP)
            mode = cv2.INTER_AREA if panel.shape[1] > CELL else cv2.INTER_CUBIC
            strip[LINE : LINE + height, left : left + CELL] = cv2.resize(
                panel, (CELL, height), interpolation=mode
            )
        strips.append(strip)
    legend = np.full((LINE, width, 3), 255, np.uint8)
    left = GAP
    for name, colour in zip(class_names, hues(np.arange(len(class_names))).tolist(), strict=True):
        cv2.rectangle(legend, (left, 7), (left + 16, 23), colour, -1)
        _write(legend, name, left + 22, 0.5)
        left += 40 + cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    return np.concatenate([*strips, legend])


def _layer(colours: LabelArray, shown: np.ndarray, opacity: float) -> LabelArray:
    return np.dstack([colours, np.where(shown, round(255 * opacity), 0).astype(np.uint8)])


def _write(canvas: LabelArray, text: str, left: int, scale: float) -> None:
    cv2.putText(canvas, text, (left, 21), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


def render(arguments: argparse.Namespace) -> None:
    """Draw what the arguments ask for, write it and log the caption of each row."""
    run = RunFolder(Path(arguments.run_dir))
    data = load_source(Source(voc_root=arguments.voc_root, image_list=arguments.image_list))
    names = data.images.class_names
    gallery = Gallery(run, data, Execution(device="cpu", quiet=True), names, GalleryOptions(fields=False))
    rows = choose(data.items, [quality.iou for quality in gallery.qualities(data.items)])
    drawn = compose([(row.caption, panels(run, data, row.record)) for row in rows], names)
    out = Path(arguments.out)
    if out.suffix.lower() not in (".jpg", ".png"):
        raise DataError(f"{out}: cannot be written; give --out the path of a .jpg or .png file")
    with atomic_path(out) as temporary:
        Image.fromarray(drawn).save(temporary, quality=88)
    for row in rows:
        logger.info("%s: %s", row.record.image_id, row.caption)
    logger.info("%s: %d images", out, len(rows))


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw the median images of a finished run by label IoU, and the worst one."
    )
    parser.add_argument("--run-dir", default="runs/demo", help="run folder with stages 1 to 5 done")
    parser.add_argument("--voc-root", default="data/demo", help="the data set that run worked on")
    parser.add_argument("--image-list", help="as for the stages")
    parser.add_argument("--out", default="docs/overview.jpg", help="the image to write")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_command(lambda: render(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
