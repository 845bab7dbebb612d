"""Seeds that are fitted to cells of all pictures before any maps are made: `make_cam --seeds pixels` and `centre`.

The fitted classifier is a file of make_cam's folder: an interrupted stage goes on with it. Nothing here imports torch
before it is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from irn_pipeline.artifacts import SEED_CLASSIFIER, Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job
from irn_pipeline.errors import CheckpointError, ShapeError
from irn_pipeline.structures import Cam, ImageRecord, strided_size

if TYPE_CHECKING:
    from torch import Tensor

    from irn_pipeline.engine.execution import Execution
    from irn_pipeline.nn.cam_network import CamNetwork
    from irn_pipeline.seeds.cells import CellClassifier

logger = logging.getLogger(__name__)
SeedName = Literal["cam", "pixels", "centre"]
_UNLESS_DEFAULT = {"fingerprint": "unless default"}
_CELLS = 2**18
"""Cells that are kept of all pictures together: with 512 numbers each, of 2 bytes, 256 MB."""
_CELLS_PER_PICTURE = {"pixels": 250, "centre": 120}
_COMPARED = 3
"""Last maps of the backbone that cells are described by: of a ResNet layer2, layer3 and layer4."""
_STRIDE = 16
"""Of the last map. Pictures are resized to multiples of it, so that the maps end where the pictures do."""


@dataclass(frozen=True)
class PixelParams:
    """Parameters of the seeds `pixels`."""

    pixel_side: int = field(default=512, metadata=_UNLESS_DEFAULT)
    """Long side, in pixels, that pictures are resized to for --seeds pixels."""
    pixel_high: float = field(default=0.5, metadata=_UNLESS_DEFAULT)
    """Cells whose map is above this teach the classifier of --seeds pixels their class."""
    pixel_low: float = field(default=0.2, metadata=_UNLESS_DEFAULT)
    """Cells whose maps are all below this teach it the background."""

    def __post_init__(self) -> None:
        _require_side("pixel_side", self.pixel_side)
        if not 0 < self.pixel_low <= self.pixel_high < 1:
            found = f"pixel_low is {self.pixel_low}, pixel_high {self.pixel_high}"
            raise ValueError(
                f"{found}; they are shares of a map's largest value, low at most high (0.2 and 0.5)"
            )


@dataclass(frozen=True)
class CentreParams:
    """Parameters of the seeds `centre`."""

    centre_side: int = field(default=256, metadata=_UNLESS_DEFAULT)
    """Long side, in pixels, that pictures are resized to for --seeds centre."""
    centre_border: float = field(default=0.06, metadata=_UNLESS_DEFAULT)
    """Width of the border that shows no object, as a share of the shorter side."""
    centre_radius: float = field(default=0.4, metadata=_UNLESS_DEFAULT)
    """Radius of the ellipse in the middle that shows the object, as a share of half of each side."""

    def __post_init__(self) -> None:
        _require_side("centre_side", self.centre_side)
        if not (0 < self.centre_border < 0.5 and 0 < self.centre_radius <= 1):
            found = f"centre_border is {self.centre_border}, centre_radius {self.centre_radius}"
            raise ValueError(
                f"{found}; the border is a share below 0.5, the radius one of at most 1 (0.06 and 0.4)"
            )


def fit_seeds(job: Job[Any, DataSet], network: CamNetwork) -> CellClassifier:
    """The classifier of cells, fitted to all tagged pictures and the negatives; that of the folder, if there is one.

    Raises:
        DataError: not one picture can be read.
        CheckpointError: the folder's file is damaged.
        ConfigError: there are too few cells to fit it to.
    """
    from irn_pipeline.seeds.cells import CellClassifier

    record = job.run.record(SEED_CLASSIFIER.stage)
    made_from = "" if record is None else record.fingerprint
    if job.run.has(SEED_CLASSIFIER):
        try:
            kept = job.run.read(SEED_CLASSIFIER)
            # Parameters that made no map before they were given up may have left theirs.
            if kept.made_from == made_from:
                return CellClassifier.from_state(kept.state)
        except (CheckpointError, ShapeError) as error:
            path = job.run.path(SEED_CLASSIFIER)
            raise CheckpointError(
                f"{path}: holds no classifier of cells; delete it to fit the seeds again"
            ) from error
    classifier = _fit(job, network)
    names = job.data.images.class_names
    job.run.write(
        SEED_CLASSIFIER,
        Checkpoint(job.params.seeds, network.backbone.name, names, classifier.state(), made_from=made_from),
    )
    return classifier


def _fit(job: Job[Any, DataSet], network: CamNetwork) -> CellClassifier:
    import torch

    from irn_pipeline.seeds import centre, pixels
    from irn_pipeline.seeds.cells import CellSample

    params, seed = job.params, job.execution.seed
    images = job.data.readable(job, negatives=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    records = [images.records[place] for place in order[:_CELLS]]
    kind = pixels if params.seeds == "pixels" else centre
    per_picture = min(_CELLS_PER_PICTURE[params.seeds], _CELLS // len(records))
    sample = CellSample(dims=kind.DIMS, per_picture=per_picture, seed=seed)
    read = prefetch(partial(read_resized, params), records, job.execution.worker_count)
    shown = progress(read, f"seeds {params.seeds}", total=len(records), quiet=job.execution.quiet)
    for record, image in zip(records, shown, strict=True):
        features = paired_features(network, image, job.execution)
        sample.add(features, _targets(params, network, features, record.class_ids))
    logger.info("seeds %s: fitted to cells of %d pictures", params.seeds, len(records))
    if params.seeds == "centre":
        return centre.fit_centre(sample)
    classifier = pixels.fit_pixels(sample, images.num_classes, seed=seed)
    tagged = {class_id for record in records for class_id in record.class_ids}
    lacking = [images.class_names[k] for k in sorted(tagged) if classifier.bias[k + 1].isinf()]
    if lacking:
        logger.warning("seeds pixels: no sure cell of %s: their maps stay as they are", ", ".join(lacking))
    return classifier


def seed_cam(
    params: Any,
    network: CamNetwork,
    classifier: CellClassifier,
    image: Tensor,
    record: ImageRecord,
    size: tuple[int, int],
    execution: Execution,
) -> Cam:
    """Maps of one picture.

    Args:
        params: of the stage.
        network: the CAM network, in evaluation mode.
        classifier: of `fit_seeds`, on the network's device.
        image: (3, h, w) uint8 of `read_resized`.
        record: the picture.
        size: (H, W) of the picture itself.
        execution: device and precision.

    Returns:
        Its maps: of `pixels` relative to the largest value of each class; of `centre` probabilities, one map that
        all tags of the picture share, 0.5 where object and ground are equally likely.
    """
    import numpy as np

    from irn_pipeline.ops.cam import sum_over_scales
    from irn_pipeline.seeds import pixels

    class_ids = np.array(record.class_ids, np.int64)
    features = paired_features(network, image, execution)
    if params.seeds == "centre":
        scores = classifier.scores(features, _grid(features[0])).expand(len(class_ids), -1, -1)
        # Scores are resized, not probabilities: where they are nought is then known to less than a cell.
        cam, high_res = (sum_over_scales([scores], to).sigmoid() for to in (strided_size(size), size))
    else:
        teaching = pixels.teaching_maps(_tag_maps(network, features, record.class_ids), features)
        maps = pixels.pixel_maps(classifier, features, teaching, record.class_ids)
        cam, high_res = (sum_over_scales([maps], to) for to in (strided_size(size), size))
    return Cam(class_ids, cam.cpu().numpy(), high_res.cpu().numpy())


def read_resized(params: Any, record: ImageRecord) -> Tensor:
    """The picture at the size that the seeds see it at: (3, h, w) uint8, both sides multiples of 16.

    Raises:
        DataError: it cannot be read.
    """
    from irn_pipeline.datasets.transforms import to_tensor

    return resized(params, to_tensor(read_image(record.path, record.orientation)))


def resized(params: Any, image: Tensor) -> Tensor:
    """A picture (3, H, W) uint8 at the size that the seeds see it at."""
    from irn_pipeline.datasets.transforms import resize_image

    sides = image.shape[-2:]
    factor = (params.pixel_side if params.seeds == "pixels" else params.centre_side) / max(sides)
    height, width = (max(round(side * factor / _STRIDE), 1) * _STRIDE for side in sides)
    return resize_image(image, (height, width))


def paired_features(network: CamNetwork, image: Tensor, execution: Execution) -> list[Tensor]:
    """Means of a picture's and its mirror's features: (C_s, h_s, w_s) float32 of the backbone's last maps."""
    import torch

    from irn_pipeline.datasets.transforms import normalise

    picture = normalise(image.to(execution.torch_device()))
    pair = torch.stack([picture, picture.flip(-1)]).to(memory_format=torch.channels_last)
    with torch.no_grad(), execution.autocast():
        stages = network.backbone(pair)[-_COMPARED:]
    return [(stage[0].float() + stage[1].float().flip(-1)) / 2 for stage in stages]


def _targets(
    params: Any, network: CamNetwork, features: Sequence[Tensor], class_ids: Sequence[int]
) -> Tensor:
    import torch

    from irn_pipeline.seeds import centre, pixels

    if params.seeds == "pixels":
        teaching = pixels.teaching_maps(_tag_maps(network, features, class_ids), features)
        return pixels.sure_cells(teaching, class_ids, high=params.pixel_high, low=params.pixel_low)
    grid = _grid(features[0])
    if not class_ids:  # a picture without an object is border everywhere
        return torch.full(grid, centre.BORDER)
    return centre.centre_targets(grid, border=params.centre_border, radius=params.centre_radius)


def _tag_maps(network: CamNetwork, features: Sequence[Tensor], class_ids: Sequence[int]) -> Tensor:
    import torch

    with torch.no_grad():
        return network.logit_maps(features[-1][None])[0, list(class_ids)].relu()


def _grid(stage: Tensor) -> tuple[int, int]:
    return stage.shape[-2], stage.shape[-1]


def _require_side(name: str, side: int) -> None:
    if side < 4 * _STRIDE:
        raise ValueError(f"{name} is {side}; it must be {4 * _STRIDE} pixels at least")
