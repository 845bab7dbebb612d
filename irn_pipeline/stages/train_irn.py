"""Stage 4: IRNet learns class boundaries and displacement from pairs of confident pixels (paper, section 4)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irn_pipeline.artifacts import CAM_NETWORK, IR_LABEL, IRN_NETWORK, Checkpoint
from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Files, FitStage, Job
from irn_pipeline.engine.store import Artifact
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.notices import flat_losses
from irn_pipeline.older_runs import require_current
from irn_pipeline.structures import ImageRecord
from irn_pipeline.weight_files import (
    TrainingParams,
    is_trained,
    starting_point,
    weight_files,
    without_training,
)

if TYPE_CHECKING:
    from torch import Tensor

    from irn_pipeline.cached_features import FeatureSamples
    from irn_pipeline.datasets.samples import RelationSamples
    from irn_pipeline.nn.irn_network import IrnNetwork

logger = logging.getLogger(__name__)
_NOTHING_LEARNED = 0.9
"""Share of the displacement loss of a field of zeros above which nothing was learned."""


@dataclass(frozen=True)
class Params(TrainingParams):
    """Parameters of IRNet's training."""

    backbone_weights: str = "imagenet"
    """Initial weights: imagenet (installed or downloaded), installed (never downloaded), a file, cam (from
    train_cam), or none (random)."""
    epochs: int = 3
    """Passes over the image list."""
    batch_size: int = 32
    """Images per step."""
    rescale: tuple[float, ...] = (0.5, 1.5)
    """Smallest and largest random scale."""
    cached_features: tuple[float, ...] = field(default=(), metadata={"fingerprint": "unless default"})
    """Compute the backbone features once, at these scales of each image and its mirror, and crop from them. They use
    disk space until the stage ends. Default: compute them for every crop, at random scales."""
    radius: int = 10
    """Learn from pairs of cells closer than this, in cells of 4 pixels."""
    displacement_lr_factor: float = 10.0
    """Factor on the learning rate of the displacement branch."""
    displacement_context: bool = field(default=False, metadata={"fingerprint": "unless default"})
    """Let the displacement branch see the surroundings of each cell, which takes far fewer training steps. Not in the
    published network."""
    negatives: bool = field(default=False, metadata={"fingerprint": "unless default"})
    """Also train on untagged images, in which everything is background."""
    mean_shift_list: str | None = field(default=None, metadata={"fingerprint": "unless default"})
    """Images whose mean displacement is stored; same format as --image-list. Default: the training images."""
    mean_shift_crop: int = 512
    """Side of the top-left crop of each image that is used for the mean displacement, in pixels."""
    pad_to: int = field(default=0, metadata={"fingerprint": "unless default"})
    """Zero-pad smaller images to this side for the mean displacement (the original: 512); 0 disables padding."""

    def __post_init__(self) -> None:
        if self.crop % 4 or self.crop < 8 * self.radius:
            raise ValueError(
                f"crop is {self.crop}; it must be a multiple of 4, and 8 times the radius or more"
            )
        if self.cached_features and self.crop % 16:
            raise ValueError(f"crop is {self.crop}; with cached_features it must be a multiple of 16")
        if any(not 0 < scale < 100 for scale in self.cached_features):
            raise ValueError(f"cached_features is {self.cached_features}; scales must be above 0, below 100")


def fit(job: Job[Params, DataSet]) -> int:
    """Train both branches (or take the original's network), store the mean displacement and write the checkpoint."""
    from irn_pipeline.nn.input_channels import take_channels
    from irn_pipeline.nn.irn_network import IrnNetwork
    from irn_pipeline.nn.original_names import load_original

    params = job.params
    original = params.original_checkpoint
    name, weights = (params.backbone, "none") if original is not None else starting_point(job)
    context = params.displacement_context and original is None
    network = take_channels(IrnNetwork(backbone=name, displacement_context=context), job.data.channels)
    if original is not None:
        load_original(network, Path(original))
        seen = 0
    else:
        seen = _train(job, network, weights)
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    job.write(IRN_NETWORK, Checkpoint("irn", name, (), state))
    return seen


def _train(job: Job[Params, DataSet], network: IrnNetwork, weights: str) -> int:
    import torch

    from irn_pipeline.engine.training import train
    from irn_pipeline.nn.backbone import load_backbone_weights
    from irn_pipeline.nn.irn_losses import DisplacementShares, irn_losses
    from irn_pipeline.ops.affinity import pair_paths

    params, execution = job.params, job.execution
    device = execution.torch_device()
    load_backbone_weights(network.backbone, weights)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    paths = pair_paths(params.radius)
    readable = job.data.readable(job, negatives=params.negatives).records
    negatives = tuple(record for record in readable if not record.class_ids)
    records = tuple(r for r in readable if r.class_ids and job.run.has(IR_LABEL, r.image_id))
    require_current(job.run, IR_LABEL.stage, records, job.data.leading_names)
    left_out = len(readable) - len(negatives) - len(records)
    if left_out:
        logger.warning("%d images have no confident label and are left out", left_out)
    if not records:
        raise DataError(
            f"{job.run.stage_dir(IR_LABEL.stage)}: no confident labels; run stage {IR_LABEL.stage} first"
        )

    precision = torch.bfloat16 if execution.uses_bf16() else torch.float32

    def losses_of(batch: Any, _progress: float) -> dict[str, Tensor]:
        inputs, labels = batch[0], batch[1].to(device, non_blocking=True)
        with execution.autocast():
            if params.cached_features:
                maps = (one.to(device, precision, non_blocking=True) for one in inputs)
                logits, displacement = network.from_features([one.permute(0, 3, 1, 2) for one in maps])
            else:
                pictures = inputs.to(device, non_blocking=True)
                logits, displacement = network(pictures.to(memory_format=torch.channels_last))
        losses = irn_losses(
            torch.sigmoid(logits.float()), displacement.float(), labels, paths, common_counts=job.ranks.mean
        )
        return {
            "boundary": losses.boundary,
            "foreground_displacement": losses.foreground_displacement / 2,
            "background_displacement": losses.background_displacement / 2,
            "zero_displacement": losses.zero_displacement / 2,  # a constant: it changes no gradient
        }

    shares = DisplacementShares()
    with _samples(job, network, (*records, *negatives)) as dataset:
        shares.last = max(len(dataset) // params.batch_size, 1)
        seen = train(
            network=network,
            param_groups=network.param_groups(params.lr, params.displacement_lr_factor),
            dataset=dataset,
            losses_of=losses_of,
            schedule=params.schedule,
            execution=execution,
            shown=shares.added,
            ranks=job.ranks,
            folder=job.run.stage_dir(STAGE.name),
            name=STAGE.name,
        )
    for line in flat_losses(job.run.stage_dir(STAGE.name)) if job.ranks.is_first else ():
        logger.warning("%s: %s", STAGE.name, line)
    if params.mean_shift_list is not None:
        records = job.data.with_list(params.mean_shift_list).readable(job).records
    network.mean_shift.running_mean.copy_(_mean_displacement(job, network, records))
    if job.ranks.is_first and shares.steps:  # none of a training that was interrupted after its last step
        _tell(shares.mean, params)
    return seen


@contextmanager
def _samples(
    job: Job[Params, DataSet], network: IrnNetwork, records: tuple[ImageRecord, ...]
) -> Iterator[RelationSamples | FeatureSamples]:
    params, execution = job.params, job.execution
    read_label = partial(job.run.read, IR_LABEL)
    if not params.cached_features:
        from irn_pipeline.datasets.samples import RelationSamples

        scales = (params.rescale[0], params.rescale[-1])
        yield RelationSamples(
            records, read_label=read_label, scales=scales, crop=params.crop, seed=execution.seed
        )
        return
    from irn_pipeline.cached_features import feature_samples

    if job.ranks.count > 1:
        raise ConfigError(
            f"--cached-features works with one process, but there are {job.ranks.count}; start it without torchrun, or "
            "train without this flag"
        )
    network.eval()
    with feature_samples(
        network.backbone,
        records,
        read_label=read_label,
        scales=params.cached_features,
        crop=params.crop,
        folder=job.run.stage_dir(STAGE.name),
        execution=execution,
    ) as samples:
        yield samples


def _tell(share: float | None, params: Params) -> None:
    """One line on what was learned of the displacement, with what to do where it was nothing."""
    if share is None:
        logger.warning(
            "%s: the displacement was not learned: no confident label has two pixels of one object closer than "
            "--radius %d cells; move the thresholds of stage 3 closer together",
            STAGE.name, params.radius,
        )  # fmt: skip
    elif share <= _NOTHING_LEARNED:
        logger.info(
            "%s: displacement loss is %.0f %% of the loss without any displacement", STAGE.name, 100 * share
        )
    else:
        remedies = [] if params.displacement_context else ["--displacement-context"]
        if params.optimizer != "adamw":
            remedies.append("--optimizer adamw --lr 0.003 --displacement-lr-factor 2")
        cheap = "" if params.cached_features else " (cheap with --cached-features 0.75)"
        remedies.append(f"more --epochs{cheap}")
        logger.warning(
            "%s: the displacement was not learned: its loss on objects is %.0f %% of the loss without any "
            "displacement, so touching objects of a class will become one instance; give %s",
            STAGE.name, 100 * share, ", ".join(remedies),
        )  # fmt: skip


def _mean_displacement(
    job: Job[Params, DataSet], network: IrnNetwork, records: tuple[ImageRecord, ...]
) -> Tensor:
    """Mean over the images of each image's mean displacement, (2,).

    The original takes the images of its inference list and pads their crops to 512 pixels (`mean_shift_list`,
    `pad_to`); the padding enters its mean, and so it does here.
    """
    import torch

    from irn_pipeline.datasets.transforms import normalise, to_tensor
    from irn_pipeline.nn.irn_network import pad_image

    network.eval()
    network.mean_shift.running_mean.zero_()
    device, params = job.execution.torch_device(), job.params
    side = params.mean_shift_crop
    means: dict[str, Tensor] = {}
    share = job.ranks.share(records)
    for record in progress(share, "mean displacement", quiet=job.execution.quiet):
        image = normalise(to_tensor(read_pixels(record))[..., :side, :side].to(device))
        with torch.no_grad(), job.execution.autocast():
            displacement = network.displacement_field(pad_image(image, params.pad_to)[None])
        means[record.image_id] = displacement.float().mean(dim=(0, 2, 3)).cpu()
    # In the order of the images, whichever rank has worked on which: the sum is the same to the last bit.
    found = {image_id: mean for part in job.ranks.gather(means) for image_id, mean in part.items()}
    return torch.stack([found[record.image_id] for record in records]).mean(dim=0)


def _unread(params: Params) -> tuple[Artifact[Any], ...]:
    if not is_trained(params):
        return (IR_LABEL, CAM_NETWORK)
    return () if params.backbone_weights == "cam" else (CAM_NETWORK,)


def _files(job: Job[Params, DataSet]) -> Mapping[str, tuple[Files, ...]]:
    named = job.params.mean_shift_list
    # A list of the data set's own is known by its name.
    listed = {} if named is None or not Path(named).is_file() else {"mean_shift_list": (Files.one(named),)}
    return {**weight_files(job), **(listed if is_trained(job.params) else {})}


def _unused(params: Params) -> Mapping[str, str]:
    unused = dict(without_training(params, used=("backbone",)))
    if params.cached_features:
        unused.setdefault("rescale", "--cached-features gives the scales")
    return unused


STAGE: FitStage[Params] = FitStage(
    name="train_irn",
    summary="Train IRNet's boundary and displacement branches.",
    params=Params,
    reads=(IR_LABEL, CAM_NETWORK),
    writes=(IRN_NETWORK,),
    fit=fit,
    unread=_unread,
    files=_files,
    runs_network=is_trained,
    unused=_unused,
)
