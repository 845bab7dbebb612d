"""Draws docs/overview.jpg: what each stage of a finished run makes of a few pictures, one row a picture.

python docs/render_overview.py --run-dir runs/demo --voc-root data/demo --out docs/overview.jpg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IR_LABEL, SEMANTIC_LABEL
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet, Source, load_source
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.engine.command import run_command
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError, DataError
from irn_pipeline.export.report_pictures import UNSURE, hues, label_colours, wheel
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.ops.instance_map import instance_map
from irn_pipeline.ops.labels import SynthesisParams
from irn_pipeline.structures import BoolArray, FloatArray, ImageRecord, LabelArray
from irn_pipeline.trained_networks import load_irn

TITLES = (
    *("photograph", "CAM", "confident label", "boundary", "displacement", "instance map"),
    *("instance labels", "semantic label", "truth"),
)
CELL, GAP, HEADER = 192, 6, 32
"""Width of a panel, space between panels, height of the line of titles; pixels."""


@dataclass(frozen=True)
class Drawer:
    """Draws the panels of one picture after another.

    Attributes:
        job: run folder, data set and the parameters that the labels were made with.
        network: IRNet of that run.
    """

    job: Job[SynthesisParams, DataSet]
    network: IrnNetwork

    def row(self, record: ImageRecord) -> list[LabelArray]:
        """One (H, W, 3) uint8 RGB panel for each title; the last one is white where truth is unknown."""
        run, params, image_id = self.job.run, self.job.params, record.image_id
        image = read_image(record.path, record.orientation)
        size = (image.shape[0], image.shape[1])
        with torch.inference_mode(), self.job.execution.autocast():
            pixels = normalise(to_tensor(image).to(self.job.execution.torch_device()))
            outputs = self.network.predict(pixels)
        boundary, displacement = (output.cpu().numpy() for output in outputs)
        groups = instance_map(
            displacement, threshold=params.center_threshold, iterations=params.centroid_iterations
        )
        kept = run.read(INSTANCE_LABEL, image_id).without_fragments()
        truth = self.job.data.ground_truth(image_id)
        blank = np.full_like(image, 255)
        return [
            image,
            over_picture(image, heat(run.read(CAM, image_id).high_res_cam.max(axis=0)), 0.55),
            label_colours(run.read(IR_LABEL, image_id)),
            enlarged(np.repeat((255 * boundary).astype(np.uint8)[..., None], 3, axis=2), size),
            enlarged(wheel(displacement), size),
            enlarged(hues(groups), size),
            with_masks(image, kept.masks),
            over_picture(image, label_colours(run.read(SEMANTIC_LABEL, image_id)), 0.6),
            blank if truth is None else with_masks(image, truth.instances.masks),
        ]


def heat(values: FloatArray) -> LabelArray:
    """(H, W) in [0, 1] -> (H, W, 3) RGB from blue over green to red."""
    levels = (255 * values.clip(0, 1)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1], np.uint8)


def over_picture(image: LabelArray, colours: LabelArray, opacity: float) -> LabelArray:
    """Mix (H, W, 3) colours over a picture of that size; black lets the darkened picture through."""
    return np.asarray(cv2.addWeighted(colours, opacity, image, 1 - opacity, 0), np.uint8)


def with_masks(image: LabelArray, masks: BoolArray) -> LabelArray:
    """Picture (H, W, 3) under (R, H, W) masks, each in a colour of its own, with a white outline."""
    drawn = (0.4 * image).astype(np.uint8)
    for mask, colour in zip(masks, hues(np.arange(len(masks))), strict=True):
        drawn[mask] = (0.45 * image[mask] + 0.55 * colour).astype(np.uint8)
    for mask in masks:
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, (255, 255, 255), 1)
    return drawn


def enlarged(panel: LabelArray, size: tuple[int, int]) -> LabelArray:
    """A panel at stride 4 -> one of the picture's `size` (H, W)."""
    four = panel.repeat(4, axis=0).repeat(4, axis=1)
    return four[: size[0], : size[1]]


def compose(rows: Sequence[Sequence[LabelArray]], class_names: Sequence[str]) -> LabelArray:
    """Rows of panels under their titles, over a line of class colours: (H, W, 3) RGB."""
    width = GAP + len(TITLES) * (CELL + GAP)
    header = np.full((HEADER, width, 3), 255, np.uint8)
    for column, title in enumerate(TITLES):
        _write(header, title, (GAP + column * (CELL + GAP) + 2, 21), 0.58)
    strips = [header]
    for panels in rows:
        height = max(round(CELL * panels[0].shape[0] / panels[0].shape[1]), 1)
        strip = np.full((height + GAP, width, 3), 255, np.uint8)
        for column, panel in enumerate(panels):
            left = GAP + column * (CELL + GAP)
            mode = cv2.INTER_AREA if panel.shape[1] > CELL else cv2.INTER_CUBIC
            strip[:height, left : left + CELL] = cv2.resize(panel, (CELL, height), interpolation=mode)
        strips.append(strip)
    return np.concatenate([*strips, _legend(class_names, width)])


def _legend(class_names: Sequence[str], width: int) -> LabelArray:
    legend = np.full((HEADER, width, 3), 255, np.uint8)
    colours = [*hues(np.arange(len(class_names))).tolist(), list(UNSURE)]
    left = GAP
    for name, colour in zip([*class_names, "unsure"], colours, strict=True):
        cv2.rectangle(legend, (left, 7), (left + 16, 23), colour, -1)
        _write(legend, name, (left + 22, 20), 0.5)
        left += 22 + cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 18
    radius = HEADER // 2 - 2
    arrows = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    inside = np.hypot(*arrows) <= radius
    legend[2 : 2 * radius + 3, left : left + 2 * radius + 1][inside] = wheel(arrows)[inside]
    _write(legend, "displacement: seen from the middle, where it points", (left + 2 * radius + 8, 20), 0.5)
    return legend


def _write(canvas: LabelArray, text: str, corner: tuple[int, int], scale: float) -> None:
    cv2.putText(canvas, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


def choose(
    run: RunFolder, records: Sequence[ImageRecord], wanted: Sequence[str], rows: int
) -> list[ImageRecord]:
    """The wanted pictures, or `rows` of those that have labels, evenly spaced over the list.

    Raises:
        DataError: a wanted picture is not in the list.
        ArtifactError: no picture has labels.
    """
    by_id = {record.image_id: record for record in records}
    for image_id in wanted:
        if image_id not in by_id:
            raise DataError(f"{image_id}: is not among the {len(by_id)} pictures of the list")
    if wanted:
        return [by_id[image_id] for image_id in wanted]
    labelled = [record for record in records if run.has(INSTANCE_LABEL, record.image_id)]
    if not labelled:
        raise ArtifactError(
            f"{run.root}: holds no labels of these pictures; run stage synthesize_labels first"
        )
    count = min(rows, len(labelled))
    return [labelled[int((place + 0.5) * len(labelled) / count)] for place in range(count)]


def render(arguments: argparse.Namespace) -> None:
    """Draw what the arguments ask for and write it."""
    run = RunFolder(Path(arguments.run_dir))
    data = load_source(Source(voc_root=arguments.voc_root, image_list=arguments.image_list))
    records = choose(run, data.items, arguments.image_ids, arguments.rows)
    record = run.record(SEMANTIC_LABEL.stage)
    known = {field.name for field in fields(SynthesisParams)}
    made_with = record.params if record is not None else {}
    params = SynthesisParams(**{name: value for name, value in made_with.items() if name in known})
    job = Job(run, params, data, Execution(device=arguments.device))
    drawer = Drawer(job, load_irn(run, job.execution))
    drawn = compose([drawer.row(chosen) for chosen in records], data.images.class_names)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), np.ascontiguousarray(drawn[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88]):
        raise DataError(f"{out}: could not be written; give --out the path of a .jpg or .png file")


def main() -> int:
    """Parse the command line and draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw what each stage of a finished run makes of a few pictures."
    )
    parser.add_argument("--run-dir", default="runs/demo", help="run folder with stages 1 to 5 done")
    parser.add_argument("--voc-root", default="data/demo", help="the data set that run worked on")
    parser.add_argument("--image-list", help="as for the stages")
    parser.add_argument(
        "--image-ids", nargs="+", default=[], help="pictures; by default evenly over the list"
    )
    parser.add_argument("--rows", type=int, default=4, help="how many pictures without --image-ids")
    parser.add_argument("--out", default="docs/overview.jpg", help="the picture to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments = parser.parse_args()
    if arguments.rows < 1:
        parser.error("--rows must be at least 1")
    return run_command(lambda: render(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
