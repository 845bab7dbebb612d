"""The three ways to a CAM network: training it, training it on with a second head, fitting a linear probe."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from irn_pipeline.datasets.samples import ClassificationSamples
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.datasets.transforms import normalise, read_resized
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RESUME_NAME
from irn_pipeline.engine.training import train
from irn_pipeline.nn.backbone import fold_batch_norms, memory_batches
from irn_pipeline.nn.cam_network import CamNetwork, ReCamNetwork
from irn_pipeline.seeds.linear_probe import fit_probe
from irn_pipeline.seeds.recam import recam_loss
from irn_pipeline.structures import FloatArray, ImageRecord, ImageSet

_FOLDER = "train_cam"


def train_classifier(job: Job[Any, DataSet], network: CamNetwork, images: ImageSet) -> int:
    """Train on the tags, from the weights that the network has; the number of pictures seen."""
    params, execution, device = job.params, job.execution, job.execution.torch_device()

    def losses_of(batch: Any, _progress: float) -> dict[str, Tensor]:
        pictures, classes = (part.to(device, non_blocking=True) for part in batch)
        with execution.autocast():
            scores = network(pictures.to(memory_format=torch.channels_last))
        return {"classification": F.multilabel_soft_margin_loss(scores.float(), classes)}

    return train(
        network=network,
        param_groups=network.param_groups(params.lr, params.head_lr_factor),
        dataset=_samples(job, images),
        losses_of=losses_of,
        schedule=params.schedule,
        execution=execution,
        ranks=job.ranks,
        folder=job.run.stage_dir(_FOLDER),
        name=_FOLDER,
    )


def train_recam(job: Job[Any, DataSet], network: CamNetwork, images: ImageSet) -> int:
    """Train a trained network on with a second head (`seeds.recam`), whose product with the first replaces it.

    The maps of the product are ReCAM's, so the stages that follow need to know nothing of it.

    Returns:
        Number of pictures seen.
    """
    params, execution, device = job.params, job.execution, job.execution.torch_device()
    torch.manual_seed(execution.seed)
    two_heads = ReCamNetwork(network).to(device)

    def losses_of(batch: Any, _progress: float) -> dict[str, Tensor]:
        pictures, classes = (part.to(device, non_blocking=True) for part in batch)
        with execution.autocast():
            features = two_heads(pictures.to(memory_format=torch.channels_last))
        heads = (network.classifier.weight.flatten(1), two_heads.head.weight.flatten(1))
        loss = recam_loss(features.float(), *heads, classes, weight=params.recam_weight)
        return {"classification": loss.multilabel, "region": params.recam_weight * loss.softmax}

    # A folder of its own: an interrupted run finds the first training finished, and goes on with this one.
    folder = job.run.stage_dir(_FOLDER) / "recam"
    folder.mkdir(parents=True, exist_ok=True)
    seen = train(
        network=two_heads,
        param_groups=[
            {"params": list(two_heads.head.parameters()), "lr": params.recam_lr},
            *network.param_groups(params.recam_lr / 10, 1.0),
        ],
        dataset=_samples(job, images),
        losses_of=losses_of,
        schedule=replace(params.schedule, epochs=params.recam_epochs),
        execution=execution,
        ranks=job.ranks,
        folder=folder,
        name=f"{_FOLDER} recam",
    )
    if job.ranks.is_first:
        (folder / RESUME_NAME).unlink(missing_ok=True)
    with torch.no_grad():
        network.classifier.weight.mul_(two_heads.head.weight)
    return seen


@torch.no_grad()
def fit_linear_probe(
    job: Job[Any, DataSet], network: CamNetwork, images: ImageSet, kept_out: Sequence[ImageRecord] = ()
) -> tuple[int, FloatArray]:
    """Fit the classifier to features of whole images, each made once and averaged with its mirror's.

    Args:
        job: of stage train_cam.
        network: whose classifier is replaced.
        images: of the first fit.
        kept_out: images that the first fit is tried on. The classifier is then fitted to these too.

    Returns:
        Number of images seen, and the (N, C) scores of the N that were kept out.

    Raises:
        ConfigError: a class is the tag of every image.
    """
    execution, device = job.execution, job.execution.torch_device()
    records = (*images.records, *kept_out)
    share = job.ranks.share(records)
    backbone = fold_batch_norms(copy.deepcopy(network.backbone))
    read = prefetch(
        partial(read_resized, long_side=job.params.long_side[-1], enlarge=False),
        share,
        execution.worker_count,
    )
    pooled: dict[str, Tensor] = {}
    bar = progress(share, "features", quiet=execution.quiet)
    for record, image in zip(bar, read, strict=True):
        picture = normalise(image.to(device))
        with execution.autocast():
            pair = [backbone(part)[-1] for part in memory_batches(torch.stack([picture, picture.flip(-1)]))]
        pooled[record.image_id] = torch.cat(pair).float().mean((0, 2, 3)).cpu()
    found = {image_id: row for part in job.ranks.gather(pooled) for image_id, row in part.items()}
    rows = torch.stack([found[record.image_id] for record in records])
    tags = torch.zeros(len(records), images.num_classes)
    for row, record in enumerate(records):
        tags[row, list(record.class_ids)] = 1
    scores = np.zeros((0, images.num_classes), np.float32)
    if kept_out:
        scores = fit_probe(rows[: len(images)], tags[: len(images)]).scores(rows[len(images) :]).numpy()
    probe = fit_probe(rows, tags)
    network.classifier.weight.copy_(probe.weight[:, :, None, None])
    if network.map_offset is not None:
        network.map_offset.copy_(probe.weight @ probe.mean)
    return len(records), scores


def _samples(job: Job[Any, DataSet], images: ImageSet) -> ClassificationSamples:
    sides = job.params.long_side
    return ClassificationSamples(
        images, long_side=(sides[0], sides[-1]), crop=job.params.crop, seed=job.execution.seed
    )
