"""Stage 2: one class activation map per image-level class and picture (paper, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from irn_pipeline.artifacts import CAM, CAM_NETWORK, SEED_CLASSIFIER, SEGMENTER, Checkpoint, restore_network
from irn_pipeline.cam_source import CamSource, cam_files, require_files
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.datasets.transforms import normalise, resize_image, scaled_size, to_tensor
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Files, Job, MapStage, Produced
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import CheckpointError, ConfigError, IrnError, ShapeError
from irn_pipeline.nn.backbone import LARGE_PICTURE, Backbone, fold_batch_norms
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.notices import covered, odd_maps
from irn_pipeline.older_runs import require_current
from irn_pipeline.ops.cam import merge_cams, merge_scales, merge_whole
from irn_pipeline.ops.feature_affinity import spread_maps
from irn_pipeline.seeds import SEEDS
from irn_pipeline.seeds.base import Picture
from irn_pipeline.seeds.params import Params, fits
from irn_pipeline.structures import Cam, ImageRecord
from irn_pipeline.trained_networks import load_segmenter, segmenter_artifact
from irn_pipeline.variants import unused_by

logger = logging.getLogger(__name__)
_COMPARED = 3
"""Last maps of the backbone, whose features tell how like two cells are: of a ResNet layer2, layer3 and layer4."""


class MapNetwork(Protocol):
    """A network that has maps of its classes: the classifier, or a model of an earlier round."""

    backbone: Backbone

    def paired_activation_maps(self, image: Tensor) -> Tensor:
        """(C, ceil(H / 16), ceil(W / 16)) maps >= 0 of a normalised (3, H, W) picture and its mirror."""
        ...


@dataclass(frozen=True)
class _Input:
    record: ImageRecord
    size: tuple[int, int] = (0, 0)
    given: Cam | None = None
    scaled: tuple[Tensor, ...] = ()
    bounded: Tensor | None = None
    file_format: str | None = None
    problem: str | None = None


def run(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    """Activation maps of every pending picture."""
    require_current(job.run, STAGE.name, pending, job.data.leading_names)
    sources = tuple(CamSource.of_folder(job, folder) for folder in job.params.from_cams)
    network = None if _needs_no_network(job.params) else _network(job)
    prepared = None
    if network is not None and job.ranks.total({"pending": len(pending)})["pending"]:
        prepared = _kept(job, network) if fits(job.params) else _prepared(job, network)
    there = list(pending)
    for source in sources:
        there, absent = source.split(there)
        yield from absent
    shares: list[float] = []
    read = prefetch(_reader(job.params, sources), there, job.execution.worker_count)
    for item in job.clock.waiting("read", read):
        if item.problem is not None:
            yield Produced(item.record.image_id, problem=item.problem)
            continue
        with job.clock.section("network"):
            value = _cam(job, network, item, prepared)
        shares.append(covered(value.high_res_cam))
        yield Produced(item.record.image_id, (value,), file_format=item.file_format)
    if (line := odd_maps(shares)) is not None:
        logger.warning("%s: %s", STAGE.name, line)


def _kept(job: Job[Params, DataSet], network: MapNetwork) -> Any:
    """What the first process prepares, or finds in the stage's folder."""
    restore = SEEDS[job.params.seeds].restore
    record = job.run.record(STAGE.name)
    assert restore is not None and record is not None
    damaged = f"{job.run.path(SEED_CLASSIFIER)}: holds no classifier of cells; delete it to fit it again"

    def state() -> dict[str, Tensor]:
        try:
            kept = job.run.read(SEED_CLASSIFIER) if job.run.has(SEED_CLASSIFIER) else None
        except CheckpointError as error:
            raise CheckpointError(damaged) from error
        # A run of other parameters that made no map may have left one.
        if kept is not None and kept.made_from == record.fingerprint:
            return kept.state
        found: dict[str, Tensor] = _prepared(job, network).state()
        names, made_from = job.data.images.class_names, record.fingerprint
        checkpoint = Checkpoint(job.params.seeds, network.backbone.name, names, found, made_from=made_from)
        job.run.write(SEED_CLASSIFIER, checkpoint)
        return found

    found = job.ranks.from_first(state)
    try:
        return restore(found)
    except ShapeError as error:
        raise CheckpointError(damaged) from error


def _prepared(job: Job[Params, DataSet], network: MapNetwork) -> Any:
    prepare = SEEDS[job.params.seeds].prepare
    if prepare is None:
        return None
    with torch.inference_mode(), job.execution.autocast():
        return prepare(_pictures(job, network), job.data.images.num_classes, job.params)


def _pictures(job: Job[Params, DataSet], network: MapNetwork) -> Iterator[Picture]:
    """All pictures of the list, for what is learned of them before the first map is made."""
    records = job.data.readable(job, negatives=fits(job.params)).records
    if fits(job.params):
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(job.execution.seed))
        records = tuple(records[place] for place in order.tolist())
    read = prefetch(_reader(job.params, ()), records, job.execution.worker_count)
    for item in progress(read, "survey", total=len(records), quiet=job.execution.quiet):
        if item.problem is None:
            yield _picture(job, network, item)


def _picture(job: Job[Params, DataSet], network: MapNetwork, item: _Input) -> Picture:
    device = job.execution.torch_device()
    scaled = tuple(normalise(one.to(device)) for one in item.scaled)
    return Picture(network, scaled, job.params.scales, list(item.record.class_ids), item.size)


def _cam(job: Job[Params, DataSet], network: MapNetwork | None, item: _Input, prepared: Any) -> Cam:
    if network is None:
        assert item.given is not None
        return item.given
    device = job.execution.torch_device()
    if item.given is not None:
        class_ids, maps = item.given.class_ids, [torch.from_numpy(item.given.cam).to(device)]
    else:
        class_ids = np.array(item.record.class_ids, np.int64)
        with job.execution.autocast(), torch.inference_mode():
            maps = SEEDS[job.params.seeds].maps(_picture(job, network, item), job.params, prepared)
    if item.bounded is not None:
        with torch.inference_mode(), job.execution.autocast():
            features = network.backbone(normalise(item.bounded.to(device))[None])
        compared = [stage[0] for stage in features[-_COMPARED:]]
        maps = [spread_maps(maps, compared, job.params.feature_affinity)]
    merge = merge_scales if SEEDS[job.params.seeds].size is None else merge_whole
    cam, high_res = merge(maps, item.size)
    return Cam(class_ids, cam.cpu().numpy(), high_res.cpu().numpy())


def prepare_network(network: CamNetwork, device: torch.device) -> CamNetwork:
    """Put a network, in place, into the form in which it infers fastest; for inference only."""
    network.eval().requires_grad_(False)
    fold_batch_norms(network.backbone)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class _reader:
    """Reads all that the maps of a picture are made of; the picture itself is decoded once."""

    def __init__(self, params: Params, sources: Sequence[CamSource]) -> None:
        self.params, self.sources = params, sources

    def __call__(self, record: ImageRecord) -> _Input:
        try:
            image = to_tensor(read_image(record.path, record.orientation))
            size = (int(image.shape[-2]), int(image.shape[-1]))
            found = [source.read(record, size) for source in self.sources]
        except IrnError as error:
            return _Input(record, problem=str(error))
        try:
            given = merge_cams([cam for cam, _ in found]) if found else None
        except ShapeError as error:
            paths = " and ".join(str(source.path(record.image_id)) for source in self.sources)
            return _Input(record, problem=f"{paths}: {error}")
        sizes = [scaled_size(size, scale) for scale in self.params.scales] if given is None else []
        if (size_of := SEEDS[self.params.seeds].size) is not None:
            sizes = [size_of(self.params, size)]
        spreads = self.params.feature_affinity and size_of is None
        # The affinity has a weight for each two cells: a large picture's features come from a smaller copy.
        share = min(1.0, (LARGE_PICTURE / (size[0] * size[1])) ** 0.5)
        return _Input(
            record,
            size,
            given,
            tuple(resize_image(image, one) for one in sizes),
            resize_image(image, scaled_size(size, share)) if spreads else None,
            found[0][1] if found else None,
        )


def _network(job: Job[Params, DataSet]) -> MapNetwork:
    return _classifier(job) if job.params.from_model is None else _model(job, Path(job.params.from_model))


def _model(job: Job[Params, DataSet], folder: Path) -> MapNetwork:
    # Not above: the models need torchvision, which takes longer to import than the rest of the program.
    from irn_pipeline.nn.segmenters.deeplab import DeepLabV3

    place = folder.absolute()
    if place.parent.name != SEGMENTER.stage:
        raise ConfigError(
            f"--from-model {folder}: is no model's folder; give RUN_DIR/{SEGMENTER.stage}/deeplabv3"
        )
    model, checkpoint = load_segmenter(RunFolder(place.parent.parent), place.name, job.execution)
    if not isinstance(model, DeepLabV3):
        raise ConfigError(
            f"--from-model {folder}: a {checkpoint.kind} has no map of a whole class; train a deeplabv3"
        )
    _require_classes(job, folder, checkpoint)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _require_classes(job: Job[Params, DataSet], path: Path, checkpoint: Checkpoint) -> None:
    if checkpoint.class_names != job.data.images.class_names:
        raise CheckpointError(
            f"{path}: was trained on other classes ({len(checkpoint.class_names)}, here "
            f"{job.data.images.num_classes}); use the run folder of this data set, or train again"
        )


def _classifier(job: Job[Params, DataSet]) -> CamNetwork:
    checkpoint = job.run.read(CAM_NETWORK)
    _require_classes(job, job.run.path(CAM_NETWORK), checkpoint)
    build = partial(
        CamNetwork,
        num_classes=len(checkpoint.class_names),
        backbone=checkpoint.backbone,
        centred_if_one_map="map_offset" in checkpoint.state,
    )
    network = restore_network(job.run.path(CAM_NETWORK), checkpoint, "cam", build)
    return prepare_network(network, job.execution.torch_device())


def _needs_no_network(params: Params) -> bool:
    return bool(params.from_cams) and not params.feature_affinity


def _unread(params: Params) -> tuple[Artifact[Any], ...]:
    for folder in params.from_cams:
        require_files("--from-cams", folder)
    return () if params.from_model is None and not _needs_no_network(params) else (CAM_NETWORK,)


def _runs_network(params: Params) -> bool:
    return not _needs_no_network(params)


def _files(job: Job[Params, DataSet]) -> Mapping[str, tuple[Files, ...]]:
    found: dict[str, tuple[Files, ...]] = {}
    if job.params.from_cams:
        found["from_cams"] = cam_files(job, *job.params.from_cams)
    if job.params.from_model is not None:
        folder = Path(job.params.from_model)
        network = segmenter_artifact(folder.name)
        found["from_model"] = (Files(folder, {"": folder / f"{network.name}{network.suffix}"}),)
    return found


def _unused(params: Params) -> Mapping[str, str]:
    found = unused_by([params.seeds], {name: seed.params for name, seed in SEEDS.items()})
    if params.from_cams:
        found["scales"] = "--from-cams gives the maps, and no network makes any"
    if SEEDS[params.seeds].size is not None:
        found |= {
            "scales": f"seeds {params.seeds} see pictures at one size, which they have a flag for",
            "feature_affinity": f"seeds {params.seeds} tell cells apart by these features already",
        }
    return found


STAGE: MapStage[Params] = MapStage(
    name="make_cam",
    summary="Extract class activation maps.",
    params=Params,
    reads=(CAM_NETWORK,),
    writes=(CAM,),
    run=run,
    unread=_unread,
    files=_files,
    runs_network=_runs_network,
    unused=_unused,
    fits=fits,
)
