"""Names of the original implementation's checkpoints (`res50_cam.pth`, `res50_irn.pth`) in this package's networks.

The original registers every tensor under several names (its whole ResNet, its stages, its module lists), so one of
ours has many of theirs. Where they differ the name that sorts last counts, as when torch loads such a file in order.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.backbone import read_state_dict

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


def load_original(network: nn.Module, path: Path) -> None:
    """Fill a `CamNetwork` or `IrnNetwork` with a checkpoint of the original implementation.

    Args:
        network: of the checkpoint's kind, with its number of classes.
        path: `res50_cam.pth` or `res50_irn.pth`.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a checkpoint of this network.
    """
    state = read_state_dict(path)
    if not any(name.startswith("stage1.0.") for name in state):
        raise CheckpointError(
            f"{path}: no checkpoint of the original implementation; expected res50_cam.pth or res50_irn.pth"
        )
    renamed, own = from_original(state), network.state_dict()
    wrong = [
        name
        for name, value in own.items()
        if not name.endswith("num_batches_tracked")
        and (name not in renamed or renamed[name].shape != value.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: does not fit a {type(network).__name__} ('{wrong[0]}' is missing or has another shape); "
            "is it the other network's checkpoint, or one of other classes?"
        )
    network.load_state_dict(renamed, strict=False)
