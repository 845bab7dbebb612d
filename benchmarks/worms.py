"""Generated images of thin, bent, overlapping worms, in VOC layout.

They stand in for BBBC010, the C. elegans images of Novotny et al. (ECCV 2018), as the network sees them: binary. Where
worms cross, such an image does not show which one is on top, so these pixels count for neither (255).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import IGNORE, BoolArray, LabelArray

SIDE = 160
"""Height and width of an image, pixels."""
_COUNTS = (4, 8)
_LENGTHS = (70, 110)
_WIDTHS = (5.0, 7.0)
_MIN_FREE = 0.6
"""Part of a worm that no other may cover."""
_MIN_PIXELS = 150
_STEPS = 60


def write_worms(root: Path, *, train: int = 50, validate: int = 15, test: int = 50, seed: int = 0) -> None:
    """Write images, masks, and the lists train, validate and test; each image depends on its number alone.

    Args:
        root: folder to write to; made when missing.
        train: images.
        validate: images on which a training is judged while it runs.
        test: images.
        seed: of all images.
    """
    for name in (
        "JPEGImages",
        "SegmentationClass",
        "SegmentationObject",
        "Annotations",
        "ImageSets/Segmentation",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "class_names.txt").write_text("worm\n")
    for split, (name, count) in enumerate({"train": train, "validate": validate, "test": test}.items()):
        image_ids = [f"{name}_{index:04d}" for index in range(count)]
        for index, image_id in enumerate(image_ids):
            objects = worm_picture(np.random.default_rng([seed, split, index]))
            image = np.where(objects > 0, 255, 0).astype(np.uint8)
            Image.fromarray(image).convert("RGB").save(root / "JPEGImages" / f"{image_id}.png")
            classes = np.where((objects > 0) & (objects < IGNORE), 1, objects).astype(np.uint8)
            for folder, label in (("SegmentationClass", classes), ("SegmentationObject", objects)):
                stored = Image.fromarray(label).convert("P")
                stored.putpalette(voc_palette().tobytes())
                stored.save(root / folder / f"{image_id}.png")
            (root / "Annotations" / f"{image_id}.xml").write_text(
                f"<annotation>\n  <size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>\n"
                "  <object><name>worm</name></object>\n</annotation>\n"
            )
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(image_ids) + "\n")


def worm_picture(rng: np.random.Generator) -> LabelArray:
    """One image: (SIDE, SIDE) uint8 object ids, 0 background, 255 where worms cross."""
    wanted = int(rng.integers(_COUNTS[0], _COUNTS[1] + 1))
    worms: list[BoolArray] = []
    for _ in range(20 * wanted):
        worm = _worm(rng)
        covers = sum((other.astype(np.uint8) for other in worms), worm.astype(np.uint8))
        free = covers == 1
        if worm.sum() >= _MIN_PIXELS and all((w & free).sum() >= _MIN_FREE * w.sum() for w in [*worms, worm]):
            worms.append(worm)
        if len(worms) == wanted:
            break
    objects = np.zeros((SIDE, SIDE), np.uint8)
    for index, worm in enumerate(worms, start=1):
        objects[worm] = np.where(objects[worm] > 0, IGNORE, index)
    return objects


def _worm(rng: np.random.Generator) -> BoolArray:
    """(SIDE, SIDE) mask of a curve of smoothly changing direction, pointed at both ends."""
    length, width = rng.uniform(*_LENGTHS), rng.uniform(*_WIDTHS)
    place = np.linspace(0, 1, _STEPS)
    bend = rng.normal(0, 1.1) * np.sin(np.pi * place + rng.uniform(0, np.pi))
    bend += rng.normal(0, 0.7) * np.sin(2 * np.pi * place + rng.uniform(0, 2 * np.pi))
    angle = rng.uniform(0, 2 * np.pi) + bend
    steps = length / _STEPS * np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.cumsum(steps, 0)
    points += rng.uniform(0.15, 0.85, 2) * SIDE - points.mean(0)
    thickness = width * np.sqrt(np.sin(np.pi * np.clip(place, 0.03, 0.97)))
    return _drawn(points, thickness)


def _drawn(points: npt.NDArray[np.float64], thickness: npt.NDArray[np.float64]) -> BoolArray:
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    for (x, y), wide in zip(points, thickness, strict=True):
        # Sixteenths of a pixel, so that thin worms keep their width.
        cv2.circle(canvas, (round(16 * x), round(16 * y)), round(8 * wide), 1, -1, shift=4)
    return canvas > 0
