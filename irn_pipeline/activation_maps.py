"""The activation maps of one image after another, for stage make_cam: reading, network, merging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from irn_pipeline.artifacts import CAM, CAM_NETWORK, SEED_CLASSIFIER, SEGMENTER, Checkpoint, restore_network
from irn_pipeline.cam_source import CamSource
from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.datasets.transforms import normalise, pinned, resize_image, scaled_size, to_tensor
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import CheckpointError, ConfigError, IrnError, ShapeError
from irn_pipeline.nn.backbone import LARGE_PICTURE, Backbone, fold_batch_norms
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.input_channels import take_channels
from irn_pipeline.ops.cam import full_size_cam, merge_cams, strided_cam
from irn_pipeline.ops.feature_affinity import spread_maps
from irn_pipeline.ops.scenes import tile_side, tiled
from irn_pipeline.seeds.base import Picture, Seed
from irn_pipeline.structures import Cam, CompactCam, ImageRecord
from irn_pipeline.trained_networks import load_segmenter

_COMPARED = 3
"""Last maps of the backbone, whose features tell how like two cells are: of a ResNet layer2, layer3 and layer4."""


class MapNetwork(Protocol):
    """A network that has maps of its classes: the classifier, or a model of an earlier round."""

    backbone: Backbone

    def paired_activation_maps(self, images: Tensor) -> Tensor:
        """(C, ceil(H / 16), ceil(W / 16)) maps >= 0 of a normalised (3, H, W) picture and its mirror; or (B, ...)."""
        ...


@dataclass(frozen=True)
class Input:
    """What the maps of one image are made of, or why there are none.

    A `scene` is scaled one size after the other, and cut into tiles.
    """

    record: ImageRecord
    size: tuple[int, int] = (0, 0)
    given: Cam | None = None
    scaled: tuple[Tensor, ...] = ()
    scene: Tensor | None = None
    bounded: Tensor | None = None
    file_format: str | None = None
    problem: str | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for those whose maps can be made together."""
        return (*self.size, self.problem is None)


class MapMaker:
    """Makes the maps of a job, with a seed and the network that it needs.

    Args:
        job: of stage make_cam.
        seed: how maps are made.
        sources: CAM files whose mean the maps are, instead of a network's.
        runs_network: whether a network is needed.
        pending: images left to do on this process.

    Raises:
        ArtifactError: the network is missing.
        CheckpointError: its file is damaged, or it was trained on other classes.
        ConfigError: `from_model` names no model that has maps.
    """

    def __init__(
        self,
        job: Job[Any, DataSet],
        seed: Seed,
        sources: Sequence[CamSource],
        *,
        runs_network: bool,
        pending: int,
    ) -> None:
        self.job, self.seed, self.sources = job, seed, sources
        self.device = job.execution.torch_device()
        self.network = _network(job) if runs_network else None
        self.prepared: Any = None
        if self.network is not None and job.ranks.total({"pending": pending})["pending"]:
            self.prepared = self._prepared() if seed.restore is None else self._kept()

    def read(self, record: ImageRecord, *, tiles: bool = True) -> Input:
        """All that the maps of an image are made of; the image itself is decoded once.

        Args:
            record: the image.
            tiles: whether a scene is left to be cut into tiles; else it is scaled whole.
        """
        try:
            image = to_tensor(read_pixels(record))
            size = (int(image.shape[-2]), int(image.shape[-1]))
            found = [source.read(record, size) for source in self.sources]
        except IrnError as error:
            return Input(record, problem=str(error))
        try:
            given = merge_cams([cam for cam, _ in found]) if found else None
        except ShapeError as error:
            paths = " and ".join(str(source.path(record.image_id)) for source in self.sources)
            return Input(record, problem=f"{paths}: {error}")
        params = self.job.params
        cut = tiles and self.seed.size is None and tile_side(size, params.tile) > 0
        sizes = [scaled_size(size, scale) for scale in params.scales] if given is None and not cut else []
        if self.seed.size is not None:
            sizes = [self.seed.size(params, size)]
        spreads = params.feature_affinity and self.seed.size is None
        # The affinity has a weight for each two cells: a large image's features come from a smaller copy.
        share = min(1.0, (LARGE_PICTURE / (size[0] * size[1])) ** 0.5)
        return Input(
            record,
            size,
            given,
            tuple(pinned(resize_image(image, one), self.device) for one in sizes),
            image if cut and given is None else None,
            resize_image(image, scaled_size(size, share)) if spreads else None,
            found[0][1] if found else None,
        )

    def made(self, items: Sequence[Input]) -> list[Cam | CompactCam]:
        """The maps of images of one kind that were read."""
        if self.network is None:
            return [item.given for item in items if item.given is not None]
        if self.sources:
            return [self._merged(item, None) for item in items]
        pictures = [self._picture(item) for item in items]
        with self.job.execution.autocast(), torch.inference_mode():
            if items[0].scene is not None:
                found = [self._maps(item) for item in items]
            elif self.seed.maps_of_many is not None:
                found = self.seed.maps_of_many(pictures, self.job.params, self.prepared)
            else:
                found = [self.seed.maps(picture, self.job.params, self.prepared) for picture in pictures]
        return [self._merged(item, maps) for item, maps in zip(items, found, strict=True)]

    def _merged(self, item: Input, maps: list[Tensor] | None) -> Cam | CompactCam:
        """The maps of all scales, or without any those of the files, as one."""
        assert self.network is not None
        class_ids = np.array(item.record.class_ids, np.int64)
        if maps is None:
            assert item.given is not None
            class_ids, maps = item.given.class_ids, [torch.from_numpy(item.given.cam).to(self.device)]
        if item.bounded is not None:
            with torch.inference_mode(), self.job.execution.autocast():
                features = self.network.backbone(normalise(item.bounded.to(self.device))[None])
            compared = [stage[0] for stage in features[-_COMPARED:]]
            maps = [spread_maps(maps, compared, self.job.params.feature_affinity)]
        maps = [one.contiguous() for one in maps]  # as they come back from a file: sums are equal bit for bit
        cam, whole = strided_cam(maps, item.size).cpu().numpy(), self.seed.size is not None
        if self.job.params.keep_high_res:
            return Cam(class_ids, cam, full_size_cam(maps, item.size, whole=whole).cpu().numpy())
        return CompactCam(class_ids, cam, tuple(one.cpu().numpy() for one in maps), item.size, whole)

    def _maps(self, item: Input) -> list[Tensor]:
        """The seed's maps of a scene at each scale, put together from those of its tiles."""
        assert item.scene is not None
        params, device = self.job.params, self.device
        found: list[Tensor] = []
        for scale in params.scales:

            def see(part: Tensor, scale: float = scale) -> list[Tensor]:
                ids = list(item.record.class_ids)
                seen = Picture(self.network, (normalise(part.to(device)),), (scale,), ids, item.size)
                return self.seed.maps(seen, params, self.prepared)

            scaled = resize_image(item.scene, scaled_size(item.size, scale))
            found += tiled(see, scaled, tile_side(item.size, params.tile))
        return found

    def _picture(self, item: Input) -> Picture:
        scaled = tuple(normalise(one.to(self.device, non_blocking=True)) for one in item.scaled)
        return Picture(self.network, scaled, self.job.params.scales, list(item.record.class_ids), item.size)

    def _kept(self) -> Any:
        """What the first process fits, or finds in the stage's folder."""
        job, restore, record = self.job, self.seed.restore, self.job.run.record(CAM.stage)
        assert restore is not None and record is not None and self.network is not None
        backbone = self.network.backbone.name
        damaged = f"{job.run.path(SEED_CLASSIFIER)}: holds no classifier of cells; delete it to fit it again"

        def state() -> dict[str, Tensor]:
            try:
                kept = job.run.read(SEED_CLASSIFIER) if job.run.has(SEED_CLASSIFIER) else None
            except CheckpointError as error:
                raise CheckpointError(damaged) from error
            # A run of other parameters that made no map may have left one.
            if kept is not None and kept.made_from == record.fingerprint:
                return kept.state
            found: dict[str, Tensor] = self._prepared().state()
            names = job.data.images.class_names
            checkpoint = Checkpoint(job.params.seeds, backbone, names, found, made_from=record.fingerprint)
            job.run.write(SEED_CLASSIFIER, checkpoint)
            return found

        found = job.ranks.from_first(state)
        try:
            return restore(found)
        except ShapeError as error:
            raise CheckpointError(damaged) from error

    def _prepared(self) -> Any:
        if self.seed.prepare is None:
            return None
        with torch.inference_mode(), self.job.execution.autocast():
            return self.seed.prepare(
                _Passes(self._pictures), self.job.data.images.num_classes, self.job.params
            )

    def _pictures(self) -> Iterator[Picture]:
        """All images of the list, for what is learned from them before the first map is made."""
        execution, fits = self.job.execution, self.seed.restore is not None
        records = self.job.data.readable(self.job, negatives=fits).records
        if fits:
            order = torch.randperm(len(records), generator=torch.Generator().manual_seed(execution.seed))
            records = tuple(records[place] for place in order.tolist())
        read = prefetch(partial(self.read, tiles=False), records, execution.worker_count)
        for item in progress(read, "survey", total=len(records), quiet=execution.quiet):
            if item.problem is None:
                yield self._picture(item)


@dataclass(frozen=True)
class _Passes:
    """Images that can be gone through more than once; each loop reads them again."""

    images: Callable[[], Iterator[Picture]]

    def __iter__(self) -> Iterator[Picture]:
        return self.images()


def prepare_network(network: CamNetwork, device: torch.device) -> CamNetwork:
    """Put a network, in place, into the form in which it infers fastest; for inference only."""
    network.eval().requires_grad_(False)
    fold_batch_norms(network.backbone)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _network(job: Job[Any, DataSet]) -> MapNetwork:
    return _classifier(job) if job.params.from_model is None else _model(job, Path(job.params.from_model))


def _model(job: Job[Any, DataSet], folder: Path) -> MapNetwork:
    # Not above: the models need torchvision, which takes longer to import than the rest of the program.
    from irn_pipeline.nn.segmenters.deeplab import DeepLabV3

    place = folder.absolute()
    if place.parent.name != SEGMENTER.stage:
        raise ConfigError(
            f"--from-model {folder}: is not a model's folder; give RUN_DIR/{SEGMENTER.stage}/deeplabv3"
        )
    model, checkpoint = load_segmenter(RunFolder(place.parent.parent), place.name, job.execution)
    if not isinstance(model, DeepLabV3):
        raise ConfigError(
            f"--from-model {folder}: a {checkpoint.kind} has no map for each class; train a deeplabv3"
        )
    _require_classes(job, folder, checkpoint)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _require_classes(job: Job[Any, DataSet], path: Path, checkpoint: Checkpoint) -> None:
    if checkpoint.class_names != job.data.images.class_names:
        raise CheckpointError(
            f"{path}: was trained on other classes ({len(checkpoint.class_names)}, here "
            f"{job.data.images.num_classes}); use the run folder of this data set, or train again"
        )


def _classifier(job: Job[Any, DataSet]) -> CamNetwork:
    checkpoint = job.run.read(CAM_NETWORK)
    _require_classes(job, job.run.path(CAM_NETWORK), checkpoint)

    def build() -> CamNetwork:
        count, offset = len(checkpoint.class_names), "map_offset" in checkpoint.state
        network = CamNetwork(num_classes=count, backbone=checkpoint.backbone, centred_if_one_map=offset)
        return take_channels(network, job.data.channels)

    network = restore_network(job.run.path(CAM_NETWORK), checkpoint, "cam", build)
    return prepare_network(network, job.execution.torch_device())
