"""The trained networks of a run folder, ready to look at pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from irn_pipeline.artifacts import IRN_NETWORK, SEGMENTER, Checkpoint, restore_network
from irn_pipeline.datasets.pixels import read_scale
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RECORD_NAME, Artifact, RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.models import MODELS, ON_TRUTH, AskedParams, SegmenterParams, build_segmenter
from irn_pipeline.ops.scenes import tile_side, tiled
from irn_pipeline.structures import Instances, LabelArray

if TYPE_CHECKING:
    from torch import Tensor

    from irn_pipeline.nn.irn_network import IrnNetwork
    from irn_pipeline.nn.segmenters.base import Segmenter


def load_irn(run: RunFolder, execution: Execution) -> IrnNetwork:
    """IRNet as train_irn left it, ready for inference.

    Args:
        run: run folder that stage train_irn has worked in.
        execution: names the device.

    Raises:
        ArtifactError: there is no IRNet, or its file is damaged.
        CheckpointError: the weights are of another network.
    """
    import torch

    from irn_pipeline.nn.backbone import fold_batch_norms
    from irn_pipeline.nn.input_channels import take_channels
    from irn_pipeline.nn.irn_network import IrnNetwork

    checkpoint = run.read(IRN_NETWORK)
    context = IrnNetwork.has_context(checkpoint.state)

    def build() -> IrnNetwork:
        network = IrnNetwork(backbone=checkpoint.backbone, displacement_context=context)
        return take_channels(network, channels_of(run))

    network = restore_network(run.path(IRN_NETWORK), checkpoint, "irn", build)
    network.eval()
    fold_batch_norms(network.backbone)
    return network.to(execution.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def irn_fields(
    network: IrnNetwork, image: Tensor, side_of: Callable[[tuple[int, int]], int], tile: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What IRNet sees in a picture, of a scene put together from its tiles (`scenes.tiled`).

    Args:
        network: in evaluation mode.
        image: (C, H, W), as `transforms.normalise` takes it.
        side_of: of `padding`.
        tile: side of the tiles, as for `scenes.tile_side`.

    Returns:
        boundary (h, w), displacement (2, h, w) and the last stage's features (D, h', w').
    """
    from irn_pipeline.datasets.transforms import normalise

    device = network.mean_shift.running_mean.device

    def see(part: Tensor) -> list[Tensor]:
        pad_to = side_of((part.shape[-2], part.shape[-1]))
        boundary, *others = network.predict_with_features(normalise(part.to(device)), pad_to=pad_to)
        return [boundary[None], *others]

    side = tile_side((image.shape[-2], image.shape[-1]), tile)
    boundary, displacement, features = tiled(see, image, side)
    return boundary[0], displacement, features


def channels_of(run: RunFolder) -> int:
    """Channels that the networks of a run folder see."""
    scale = read_scale(run.root)
    return 3 if scale is None else scale.channels


def padding(run: RunFolder, pad_to: int | None) -> Callable[[tuple[int, int]], int]:
    """Function from the size (H, W) of a picture to the side that it is padded to for the IRNet of a run folder.

    Args:
        run: run folder that stage train_irn has worked in.
        pad_to: side in pixels for all pictures, 0 for no padding; None for `side_as_trained`.

    Raises:
        ArtifactError: the record of train_irn has impossible values.
    """
    if pad_to is not None:
        return lambda size: pad_to
    record = run.record(IRN_NETWORK.stage)
    params = {} if record is None else record.params
    crop, rescale = params.get("crop", 512), params.get("rescale", (0.5, 1.5))
    cached = params.get("cached_features", ())
    try:
        scales, cached = [float(scale) for scale in rescale], [float(scale) for scale in cached]
        possible = 0 < crop < 2**15 and 0 < scales[0] <= scales[-1] < 100
        possible = possible and all(0 < scale < 100 for scale in cached)
    except (TypeError, ValueError, LookupError):
        possible = False
    if not possible:
        raise ArtifactError(
            f"{run.stage_dir(IRN_NETWORK.stage) / RECORD_NAME}: damaged (crop is {crop}, rescale is {rescale}, "
            f"cached_features is {cached}); "
            "give --pad-to, or run stage train_irn again with --overwrite"
        )
    from irn_pipeline.nn.irn_network import side_as_trained

    return partial(side_as_trained, crop=crop, rescale=(scales[0], scales[-1]), cached=cached)


def segmenter_artifact(variant: str) -> Artifact[Checkpoint]:
    """The checkpoint in one folder below `train_segmenter`."""
    return replace(SEGMENTER, stage=f"{SEGMENTER.stage}/{variant}")


def trained_variants(run: RunFolder) -> tuple[str, ...]:
    """The folders below `train_segmenter` that hold a model, in the order of `MODELS`."""
    names = (model + ending for model in MODELS for ending in ("", ON_TRUTH))
    return tuple(name for name in names if run.has(segmenter_artifact(name)))


def load_segmenter(
    run: RunFolder, variant: str, execution: Execution, asked: AskedParams | None = None
) -> tuple[Segmenter, Checkpoint]:
    """A trained model, ready to predict on the execution's device, and its checkpoint.

    Args:
        run: the run folder.
        variant: name of the model's folder in it.
        execution: the device.
        asked: how the model will be asked; what it does not have is left out (see `require_asked`).

    Raises:
        ArtifactError: it is not in the run folder; the message names those that are.
        CheckpointError: its file is damaged or of another model.
    """
    artifact = segmenter_artifact(variant)
    path = run.path(artifact)
    record = run.record(artifact.stage)
    if not run.has(artifact) or record is None:
        there = ", ".join(trained_variants(run)) or "none"
        raise ArtifactError(
            f"{path}: no trained model here (trained in {run.root}: {there}); run stage {SEGMENTER.stage} "
            f"with --model {variant.removesuffix(ON_TRUTH)} first"
        )
    checkpoint = run.read(artifact)
    known = {f.name for f in fields(SegmenterParams)}
    # The weights decide about the network where the parameters leave it open (`imagenet.network_for`).
    params = replace(
        SegmenterParams(**{k: v for k, v in record.params.items() if k in known}),
        backbone=checkpoint.backbone,
    )
    if params.model not in MODELS:
        raise ArtifactError(
            f"{path}: holds a {params.model}, which this version does not know; known are {', '.join(MODELS)}"
        )
    build = partial(build_segmenter, params, len(checkpoint.class_names), asked, channels_of(run))
    model = restore_network(path, checkpoint, params.model, build)
    return model.eval().to(execution.torch_device()), checkpoint


def look_at(
    model: Segmenter, image: npt.NDArray[Any], execution: Execution, min_score: float = 0.5
) -> tuple[Instances, LabelArray]:
    """What a trained model finds in one picture.

    Args:
        model: on the execution's device.
        image: (H, W, C), as `pixels.read_pixels` gives it.
        execution: device and precision.
        min_score: instances below it are not painted.

    Returns:
        All instances, best first, and the (H, W) uint8 semantic label.
    """
    from irn_pipeline.datasets.transforms import to_unit_tensor

    with execution.autocast():
        return model.predict_with_label(to_unit_tensor(image).to(execution.torch_device()), min_score)
