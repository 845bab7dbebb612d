"""Names of the original implementations' checkpoints in this package's networks.

IRNet's original (`res50_cam.pth`, `res50_irn.pth`) registers every tensor under several names (its whole ResNet, its
stages, its module lists), so one of ours has many of theirs. Where they differ the name that sorts last counts, as when
torch loads such a file in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.backbone import read_state_dict
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.nn.segmenters.erfnet import ERFNET_CHANNELS

_CAM = {
    "classifier.": "classifier.",
    "newly_added.0.": "classifier.",
    "stage1.0.": "backbone.conv1.",
    "stage1.1.": "backbone.bn1.",
    "stage1.4.": "backbone.layer1.",
    **{f"stage{n}.0.": f"backbone.layer{n}." for n in (2, 3, 4)},
    "resnet50.": "backbone.",
}
_IRN = {
    "stage1.0.": "backbone.conv1.",
    "stage1.1.": "backbone.bn1.",
    **{f"stage{n + 1}.0.": f"backbone.layer{n}." for n in (1, 2, 3, 4)},
    "resnet50.": "backbone.",
    **{
        f"fc_{theirs}{n + 1}.{index}.": f"{ours}.{n}.{part}."
        for theirs, ours in (("edge", "boundary"), ("dp", "displacement"))
        for n in range(5)
        for index, part in enumerate(("conv", "norm"))
    },
    "mean_shift.": "mean_shift.",
    "fc_edge6.": "boundary_head.",
    "fc_dp6.0.": "displacement_merge.conv.",
    "fc_dp6.1.": "displacement_merge.norm.",
    "fc_dp7.0.": "displacement_top.conv.",
    "fc_dp7.1.": "displacement_top.norm.",
    "fc_dp7.3.": "displacement_head.",
}
"""Beginning of a name of theirs -> of ours."""
_OF_BOTH = "stage1.0."
"""Beginning of names of both networks of IRNet."""
_UNUSED_HEAD = "encoder.output_conv."
_OURS_ALONE = ("num_batches_tracked", "pixel_counts")


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original's CAM network or IRNet, under this package's names.

    Args:
        state: the original's names and tensors; which of both networks is told from the names.

    Returns:
        A state dict for `CamNetwork` or `IrnNetwork`; names without a counterpart (aliases) are left out.
    """
    table = _IRN if any(name.startswith("fc_edge") for name in state) else _CAM
    return {
        ours + name.removeprefix(theirs): state[name]
        for name in sorted(state)
        for theirs, ours in table.items()
        if name.startswith(theirs)
    }


def from_original_spatial(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' SpatialEmbeddings under the names of this package's network on ERFNet."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    return {
        name.replace("encoder.", "features.", 1): value
        for name, value in plain.items()
        if not name.startswith(_UNUSED_HEAD)
    }


def to_original_spatial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `SpatialEmbeddings` on ERFNet as the authors' code loads it, as its `model_state_dict`.

    Returns:
        Their names and tensors; the head of the encoder, which they never use, is zero.
    """
    renamed = {
        f"module.{'encoder.' + name.removeprefix('features.') if name.startswith('features.') else name}": value
        for name, value in state.items()
        if name != "pixel_counts"
    }
    outputs = sum(len(state[f"decoders.{decoder}.output_conv.bias"]) for decoder in (0, 1))
    renamed[f"module.{_UNUSED_HEAD}weight"] = torch.zeros(outputs, ERFNET_CHANNELS, 1, 1)
    renamed[f"module.{_UNUSED_HEAD}bias"] = torch.zeros(outputs)
    return renamed


def load_original(network: nn.Module, path: Path) -> None:
    """Fill a `CamNetwork` or `IrnNetwork` with a checkpoint of the original implementation.

    Args:
        network: of the checkpoint's kind, with its number of classes.
        path: `res50_cam.pth` or `res50_irn.pth`.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a checkpoint of this network.
    """
    state = read_state_dict(path)
    if not any(name.startswith(_OF_BOTH) for name in state):
        raise CheckpointError(
            f"{path}: not a checkpoint of the original implementation; expected res50_cam.pth or res50_irn.pth"
        )
    _fill(network, from_original(state), path)


def load_original_spatial(network: Segmenter, path: Path) -> None:
    """Fill a `SpatialEmbeddings` on ERFNet with a checkpoint of the authors.

    Args:
        network: with the checkpoint's number of classes and kind of bandwidth.
        path: their `checkpoint.pth` or `best_iou_model.pth`, or the state dict in it.

    Raises:
        CheckpointError: the file is missing, unreadable, or of another network.
    """
    state = from_original_spatial(read_state_dict(path))
    outputs = [state.get(f"decoders.{decoder}.output_conv.bias") for decoder in (0, 1)]
    if "features.initial_block.conv.weight" not in state or outputs[0] is None or outputs[1] is None:
        raise CheckpointError(
            f"{path}: not a checkpoint of the authors' SpatialEmbeddings; expected tensors called "
            "module.encoder.* and module.decoders.*"
        )
    bandwidth = {3: "circular", 4: "elliptical"}.get(len(outputs[0]))
    if bandwidth is None:
        raise CheckpointError(
            f"{path}: its first decoder has {len(outputs[0])} outputs; expected 3 (circular) or 4 (elliptical)"
        )
    if len(outputs[0]) != len(network.state_dict()["decoders.0.output_conv.bias"]):
        raise CheckpointError(f"{path}: its bandwidth is {bandwidth}; add --bandwidth {bandwidth}")
    if len(outputs[1]) != network.num_classes:
        raise CheckpointError(
            f"{path}: has {len(outputs[1])} seed maps, one for each class, and the data set has {network.num_classes} "
            "classes; name as many, in the checkpoint's order"
        )
    _fill(network, state, path)


def _fill(network: nn.Module, renamed: Mapping[str, Tensor], path: Path) -> None:
    wrong = [
        name
        for name, value in network.state_dict().items()
        if not name.endswith(_OURS_ALONE) and (name not in renamed or renamed[name].shape != value.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: does not fit a {type(network).__name__} ('{wrong[0]}' is missing or has another shape); "
            "is it the other network's checkpoint, or one of other classes?"
        )
    network.load_state_dict(renamed, strict=False)
