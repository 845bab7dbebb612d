"""Training samples of models that learn masks: objects cut out along their boxes against a stack of whole masks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.case import Arrays, Benchmark, Case, Disagreement, Method, Prepared
from irn_pipeline.datasets.cityscapes import CityscapesTruths
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.mask_samples import MaskSamples
from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.datasets.transforms import (
    Crop,
    random_crop,
    resize_image,
    resize_label,
    scaled_size,
    to_tensor,
)
from irn_pipeline.ops.cutouts import CutTruth
from irn_pipeline.structures import IGNORE, GroundTruth, ImageRecord

SCALES, SEED, SAMPLES = (0.5, 1.5), 0, 4
CAR = 26


@dataclass(frozen=True)
class Street:
    """A picture on the disk, and the reader of its masks; the folder is kept for as long as this is."""

    folder: tempfile.TemporaryDirectory[str]
    record: ImageRecord
    truths: CityscapesTruths

    def cut_truth(self, image_id: str) -> CutTruth:
        truth = self.truths.cut_truth(image_id)
        assert truth is not None
        return truth

    def ground_truth(self) -> GroundTruth:
        truth = self.truths.ground_truth(self.record.image_id)
        assert truth is not None
        return truth


def street(size: tuple[int, int], count: int) -> Street:
    """A picture in Cityscapes' form with so many cars, discs at random places that may hide one another."""
    rng = np.random.default_rng(0)
    ids = np.full(size, 7, np.uint16)
    for number in range(count):
        radius = rng.integers(1, max(2, size[0] // 8))
        centre = rng.random(2) * size
        y, x = np.ogrid[: size[0], : size[1]]
        ids[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2] = 1000 * CAR + number
    ids[: size[0] // 16, : size[1] // 8] = CAR  # a group
    folder = tempfile.TemporaryDirectory()
    picture, mask = (Path(folder.name) / name for name in ("picture.png", "mask.png"))
    Image.fromarray(make_picture(rng, size).image).save(picture)
    Image.fromarray(ids).save(mask)
    return Street(folder, ImageRecord("a", picture, (0,)), CityscapesTruths({"a": mask}, {CAR: 0}))


def ours(case: Case) -> Prepared:
    place = street(case.size, case.count)
    _warm_up()
    samples = MaskSamples(
        (place.record,),
        read_target=place.cut_truth,
        scales=SCALES,
        crop=_crop(case),
        seed=SEED,
    )

    def work() -> Arrays:
        made = (samples[epoch, 0] for epoch in range(SAMPLES))
        return [
            part.numpy()
            for pixels, target in made
            for part in (pixels, target.masks, target.weights, target.ignore, target.label)
        ]

    return Prepared(work)


def whole_masks(case: Case) -> Prepared:
    place = street(case.size, case.count)
    _warm_up()

    def work() -> Arrays:
        arrays: list[Tensor] = []
        for epoch in range(SAMPLES):
            image = to_tensor(read_image(place.record.path))
            truth = place.ground_truth()
            rng = np.random.default_rng((SEED, epoch, 0))
            arrays += plain_sample(image, truth, SCALES, _crop(case), rng)
        return [array.numpy() for array in arrays]

    return Prepared(work)


def plain_sample(
    image: Tensor,
    truth: GroundTruth,
    scales: tuple[float, float],
    crop: int,
    rng: np.random.Generator,
    object_centred: float = 0.5,
) -> list[Tensor]:
    """Pixels, masks, weights, ignored pixels and label: every plane is scaled as a whole, mirrored, then cropped."""
    masks = torch.from_numpy(truth.instances.masks).to(torch.uint8)
    label, ignore = torch.from_numpy(truth.label), torch.from_numpy(truth.ignore).to(torch.uint8)
    planes = torch.cat([label[None], ignore[None], masks])
    size = scaled_size((image.shape[-2], image.shape[-1]), float(rng.uniform(*scales)))
    image, planes = resize_image(image, size), resize_label(planes, size)
    if rng.random() < 0.5:
        image, planes = image.flip(-1), planes.flip(-1)
    pixels = image.float() / 255
    if crop:
        window = _window(planes[2:], crop, rng, object_centred)
        pixels = window.apply(pixels, 0.45)
        planes = torch.cat(
            [window.apply(planes[:1], IGNORE), window.apply(planes[1:2], 1), window.apply(planes[2:], 0)]
        )
    label, ignore, masks = planes[0], planes[1].bool(), planes[2:].bool()
    keep = masks.flatten(1).sum(1) >= 16
    ignore = ignore | masks[~keep].any(0)
    label = torch.where(ignore, torch.full_like(label, IGNORE), label)
    return [pixels, masks[keep], torch.from_numpy(truth.instances.scores)[keep], ignore, label]


def _window(masks: Tensor, side: int, rng: np.random.Generator, object_centred: float) -> Crop:
    size = (masks.shape[-2], masks.shape[-1])
    centred = rng.random() < object_centred
    window = random_crop(size, side, rng)
    present = torch.nonzero(masks.flatten(1).any(1))[:, 0].tolist()
    if not (centred and present):
        return window
    places = torch.nonzero(masks[int(rng.choice(present))], as_tuple=True)
    source = [
        min(max(int(place.float().mean()) - side // 2, 0), length - side) if length > side else 0
        for place, length in zip(places, size, strict=True)
    ]
    return Crop(side, (source[0], source[1]), window.target, window.size)


def agreement(ours: Arrays, theirs: Arrays) -> float:
    """0; the samples are equal, value by value."""
    if len(ours) != len(theirs) or not all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
    ):
        raise Disagreement("the samples differ")
    return 0.0


def _warm_up() -> None:
    # The first call imports torchvision.
    resize_image(torch.zeros((3, 8, 8), dtype=torch.uint8), (4, 4))


def _crop(case: Case) -> int:
    return case.size[0] // 2


BENCHMARK = Benchmark(
    name="training_sample",
    summary="four training samples of a picture, read from the disk; a case's count is its objects",
    cases=(Case((1024, 2048), 30), Case((1024, 2048), 90)),
    small=(Case((64, 96), 12),),
    ours=Method("objects in their boxes", ours),
    references=(Method("whole masks", whole_masks),),
    agreement=agreement,
)
