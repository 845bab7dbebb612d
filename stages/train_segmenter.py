"""Stage 6: an instance segmentation model learns from the synthesized labels (paper, section 6.4)."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from torch import Tensor

from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, SEGMENTER, Checkpoint
from irn_pipeline.datasets.samples import InstanceSamples, SegmentationTarget, collate_lists
from irn_pipeline.errors import DataError
from irn_pipeline.nn.backbone import Backbone, load_backbone_weights
from irn_pipeline.runtime.stage import FitStage, Job
from irn_pipeline.runtime.training import Schedule, finish_training, train
from irn_pipeline.structures import ImageRecord
from stages._segmenter import SegmenterParams, build_segmenter
from stages._source import DataSet

logger = logging.getLogger(__name__)


def fit(job: Job[SegmenterParams, DataSet]) -> int:
    """Train the model on the pictures that have an instance and write its checkpoint."""
    params, execution = job.params, job.execution
    device = execution.torch_device()
    network = build_segmenter(params, job.data.images.num_classes)
    backbone = Backbone(name=params.backbone)
    weights = params.backbone_weights
    load_backbone_weights(backbone, str(job.run.path(CAM_NETWORK)) if weights == "cam" else weights)
    network.load_backbone(backbone)
    network.to(device)
    records = _labelled(job)

    def losses_of(batch: Any) -> dict[str, Tensor]:
        images, targets = batch
        moved = [
            SegmentationTarget(t.masks.to(device), t.class_ids.to(device), t.weights.to(device))
            for t in targets
        ]
        with execution.autocast():
            return network.losses([image.to(device) for image in images], moved)

    seen = train(
        network=network,
        param_groups=network.param_groups(params.lr),
        dataset=InstanceSamples(
            records,
            read_instances=partial(job.run.read, INSTANCE_LABEL),
            scales=(params.rescale[0], params.rescale[-1]),
            seed=execution.seed,
        ),
        losses_of=losses_of,
        schedule=Schedule(
            params.epochs, params.batch_size, params.momentum, params.weight_decay,
            max_gradient_norm=params.max_gradient_norm,
            optimizer=params.optimizer,
        ),
        execution=execution,
        folder=job.run.stage_dir(STAGE.name),
        name=STAGE.name,
        collate=collate_lists,
    )  # fmt: skip
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    job.run.write(SEGMENTER, Checkpoint(params.model, params.backbone, job.data.images.class_names, state))
    finish_training(job.run.stage_dir(STAGE.name))
    return seen


def _labelled(job: Job[SegmenterParams, DataSet]) -> tuple[ImageRecord, ...]:
    """Pictures with at least one instance of positive score; the others teach nothing."""
    kept: list[ImageRecord] = []
    missing = empty = 0
    for record in job.data.readable(job.execution).records:
        if not job.run.has(INSTANCE_LABEL, record.image_id):
            missing += 1
        elif (job.run.read(INSTANCE_LABEL, record.image_id).scores >= 1e-5).any():
            kept.append(record)
        else:
            empty += 1
    if missing or empty:
        logger.warning(
            "left out: %d pictures without labels, %d whose labels hold no instance", missing, empty
        )
    if not kept:
        raise DataError(
            f"{job.run.stage_dir(INSTANCE_LABEL.stage)}: not one instance label to train on; run stage "
            f"{INSTANCE_LABEL.stage} on these pictures first, or lower its --instance-bg-threshold"
        )
    return tuple(kept)


STAGE: FitStage[SegmenterParams] = FitStage(
    name="train_segmenter",
    summary="Train Mask R-CNN on the synthesized instance labels.",
    params=SegmenterParams,
    reads=(INSTANCE_LABEL,),
    writes=(SEGMENTER,),
    fit=fit,
)

if __name__ == "__main__":
    from stages.__main__ import stage_main

    raise SystemExit(stage_main("train_segmenter"))
