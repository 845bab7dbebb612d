"""Stage 2: one class activation map per image-level class and picture (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from irn_pipeline.artifacts import CAM, CAM_NETWORK, SEGMENTER, Checkpoint, restore_network
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import normalise, resize_image, scaled_size, to_tensor
from irn_pipeline.errors import CheckpointError, ConfigError, DataError
from irn_pipeline.nn.backbone import fold_batch_norms
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.ops.cam import merge_scales
from irn_pipeline.runtime.parallel import prefetch
from irn_pipeline.runtime.stage import Job, MapStage, Produced
from irn_pipeline.runtime.store import Artifact, RunFolder
from irn_pipeline.structures import Cam, ImageRecord
from stages._segmenter import load_segmenter
from stages._source import DataSet


@dataclass(frozen=True)
class Params:
    """Parameters of the activation maps."""

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Relative picture sizes whose maps are summed; each with its mirror."""
    from_model: str | None = field(default=None, metadata={"fingerprint": "unless default"})
    """Folder RUN/train_segmenter/deeplabv3: maps are that model's probabilities, for a second round."""


class MapNetwork(Protocol):
    """A network that has maps of its classes: the classifier, or a model of an earlier round."""

    def paired_activation_maps(self, image: Tensor) -> Tensor:
        """(C, ceil(H / 16), ceil(W / 16)) maps >= 0 of a normalised (3, H, W) picture and its mirror."""
        ...


@dataclass(frozen=True)
class _Pictures:
    record: ImageRecord
    size: tuple[int, int]
    scaled: tuple[Tensor, ...]
    problem: str | None = None


def run(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    """Activation maps of every pending picture."""
    network, device = _network(job), job.execution.torch_device()
    read = prefetch(_reader(job.params.scales), pending, job.execution.worker_count)
    for pictures in job.clock.waiting("read", read):
        if pictures.problem is not None:
            yield Produced(pictures.record.image_id, problem=pictures.problem)
            continue
        with job.clock.section("network"), job.execution.autocast():
            value = extract_cam(
                network, pictures.scaled, pictures.size, pictures.record.class_ids, device=device
            )
        yield Produced(pictures.record.image_id, (value,))


@torch.inference_mode()
def extract_cam(
    network: MapNetwork,
    scaled: Sequence[Tensor],
    size: tuple[int, int],
    class_ids: Sequence[int],
    *,
    device: torch.device | str = "cpu",
) -> Cam:
    """Activation maps of one picture.

    Args:
        network: in evaluation mode; a classifier made ready by `prepare_network` is faster.
        scaled: the picture at every scale, (3, H_s, W_s) uint8.
        size: (H, W) of the picture.
        class_ids: K foreground class ids.
        device: where the network is.
    """
    chosen = torch.tensor(class_ids, dtype=torch.int64, device=device)
    maps = [network.paired_activation_maps(normalise(s.to(device)))[chosen].float() for s in scaled]
    cam, high_res = merge_scales(maps, size)
    return Cam(np.array(class_ids), cam.cpu().numpy(), high_res.cpu().numpy())


def prepare_network(network: CamNetwork, device: torch.device) -> CamNetwork:
    """Put a network, in place, into the form in which it infers fastest; for inference only."""
    network.eval()
    fold_batch_norms(network.backbone)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class _reader:
    """Reads a picture once and resizes it to every scale."""

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = scales

    def __call__(self, record: ImageRecord) -> _Pictures:
        try:
            image = to_tensor(read_image(record.path))
        except DataError as error:
            return _Pictures(record, (0, 0), (), str(error))
        size = (int(image.shape[-2]), int(image.shape[-1]))
        scaled = tuple(resize_image(image, scaled_size(size, scale)) for scale in self.scales)
        return _Pictures(record, size, scaled)


def _network(job: Job[Params, DataSet]) -> MapNetwork:
    return _classifier(job) if job.params.from_model is None else _model(job, Path(job.params.from_model))


def _model(job: Job[Params, DataSet], folder: Path) -> MapNetwork:
    # Not above: the models need torchvision, which takes longer to import than the rest of the program.
    from irn_pipeline.nn.segmenters.deeplab import DeepLabV3

    if len(folder.parts) < 3 or folder.parent.name != SEGMENTER.stage:
        raise ConfigError(
            f"--from-model {folder}: is no model's folder; give RUN_DIR/{SEGMENTER.stage}/deeplabv3"
        )
    model, checkpoint = load_segmenter(RunFolder(folder.parent.parent), folder.name, job.execution)
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
    build = partial(CamNetwork, num_classes=len(checkpoint.class_names), backbone=checkpoint.backbone)  # type: ignore[arg-type]
    network = restore_network(job.run.path(CAM_NETWORK), checkpoint, "cam", build)
    return prepare_network(network, job.execution.torch_device())


def _unread(params: Params) -> tuple[Artifact[Any], ...]:
    return () if params.from_model is None else (CAM_NETWORK,)


STAGE: MapStage[Params] = MapStage(
    name="make_cam",
    summary="Extract class activation maps.",
    params=Params,
    reads=(CAM_NETWORK,),
    writes=(CAM,),
    run=run,
    unread=_unread,
)

if __name__ == "__main__":
    from stages.__main__ import stage_main

    raise SystemExit(stage_main("make_cam"))
