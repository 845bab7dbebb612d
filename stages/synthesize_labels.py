"""Stage 5: instance and semantic labels from one network pass and one random walk a picture (paper, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IRN_NETWORK, SEMANTIC_LABEL, restore_network
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import normalise, to_tensor
from irn_pipeline.errors import IrnError
from irn_pipeline.nn.backbone import fold_batch_norms
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.ops.labels import SynthesisParams, synthesize
from irn_pipeline.runtime.parallel import prefetch
from irn_pipeline.runtime.stage import Job, MapStage, Produced
from irn_pipeline.structures import Cam, ImageRecord
from stages._cams import CamSource, cams_not_read
from stages._source import DataSet


@dataclass(frozen=True)
class Params(SynthesisParams):
    """Parameters of label synthesis, and the maps it starts from."""

    cam_dir: str | None = None
    """Folder of another project's CAM files, ID.npy, instead of stage make_cam's."""


@dataclass(frozen=True)
class _Input:
    record: ImageRecord
    image: Tensor | None
    cam: Cam | None
    problem: str | None = None
    file_format: str | None = None


def run(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    """Both labels of every pending picture."""
    network = load_irn(job)
    device = job.execution.torch_device()
    cams = CamSource.of(job)
    there, absent = cams.split(pending)
    yield from absent

    def read(record: ImageRecord) -> _Input:
        try:
            image = to_tensor(read_image(record.path))
            cam, file_format = cams.read(record, (int(image.shape[-2]), int(image.shape[-1])))
            return _Input(record, image, cam, file_format=file_format)
        except IrnError as error:
            return _Input(record, None, None, str(error))

    for item in prefetch(read, there, job.execution.worker_count):
        image_id = item.record.image_id
        if item.image is None or item.cam is None:
            yield Produced(image_id, problem=item.problem)
            continue
        with torch.inference_mode(), job.execution.autocast():
            boundary, displacement = network.predict(normalise(item.image.to(device)))
        size = (int(item.image.shape[-2]), int(item.image.shape[-1]))
        try:
            label, instances = synthesize(
                item.cam.cam, item.cam.class_ids, boundary.cpu().numpy(), displacement.cpu().numpy(),
                size, job.params, device=device,
            )  # fmt: skip
        except IrnError as error:
            yield Produced(image_id, problem=f"{cams.path(image_id)}: {error}")
            continue
        yield Produced(image_id, (instances, label), file_format=item.file_format)


def load_irn(job: Job[Any, DataSet]) -> IrnNetwork:
    """IRNet as train_irn left it, ready for inference."""
    checkpoint = job.run.read(IRN_NETWORK)
    build = partial(IrnNetwork, backbone=checkpoint.backbone)  # type: ignore[arg-type]
    network = restore_network(job.run.path(IRN_NETWORK), checkpoint, "irn", build)
    network.eval()
    fold_batch_norms(network.backbone)
    return network.to(job.execution.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


STAGE: MapStage[Params] = MapStage(
    name="synthesize_labels",
    summary="Synthesize instance and semantic labels by a random walk.",
    params=Params,
    reads=(CAM, IRN_NETWORK),
    writes=(INSTANCE_LABEL, SEMANTIC_LABEL),
    run=run,
    unread=cams_not_read,
)

if __name__ == "__main__":
    from stages.__main__ import stage_main

    raise SystemExit(stage_main("synthesize_labels"))
