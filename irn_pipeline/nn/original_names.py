"""Names of the original implementation's checkpoints (`res50_cam.pth`, `res50_irn.pth`) in this package's networks.

The original registers every tensor under several names (its whole ResNet, its stages, its module lists), so one of
ours has many of theirs. Where they differ the name that sorts last counts, as when torch loads such a file in order.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from irn_pipeline.errors import CheckpointError
from irn_pipeline.nn.backbone import read_state_dict

_CAM_STAGES = {
    r"^classifier\.": "classifier.",
    r"^newly_added\.0\.": "classifier.",
    r"^stage1\.0\.": "backbone.conv1.",
    r"^stage1\.1\.": "backbone.bn1.",
    r"^stage1\.4\.": "backbone.layer1.",
    r"^stage2\.0\.": "backbone.layer2.",
    r"^stage3\.0\.": "backbone.layer3.",
    r"^stage4\.0\.": "backbone.layer4.",
    r"^resnet50\.": "backbone.",
}
_IRN_STAGES = {
    r"^stage1\.0\.": "backbone.conv1.",
    r"^stage1\.1\.": "backbone.bn1.",
    r"^stage2\.0\.": "backbone.layer1.",
    r"^stage3\.0\.": "backbone.layer2.",
    r"^stage4\.0\.": "backbone.layer3.",
    r"^stage5\.0\.": "backbone.layer4.",
    r"^resnet50\.": "backbone.",
    r"^mean_shift\.": "mean_shift.",
    r"^fc_edge6\.": "boundary_head.",
    r"^fc_dp6\.0\.": "displacement_merge.conv.",
    r"^fc_dp6\.1\.": "displacement_merge.norm.",
    r"^fc_dp7\.0\.": "displacement_top.conv.",
    r"^fc_dp7\.1\.": "displacement_top.norm.",
    r"^fc_dp7\.3\.": "displacement_head.",
}


def is_original(names: list[str]) -> bool:
    """Whether these are the names of a checkpoint of the original implementation."""
    return any(name.startswith("stage1.0.") for name in names)


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original's CAM network or IRNet, under this package's names.

    Args:
        state: the original's names and tensors; which of both networks is told from the names.

    Returns:
        A state dict for `CamNetwork` or `IrnNetwork`; names without a counterpart (aliases) are left out.
    """
    irn = any(name.startswith("fc_edge") for name in state)
    renamed: dict[str, Tensor] = {}
    for name in sorted(state):
        ours = _irn_name(name) if irn else _cam_name(name)
        if ours is not None:
            renamed[ours] = state[name]
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
    if not is_original(list(state)):
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


def _cam_name(name: str) -> str | None:
    return _replace_prefix(name, _CAM_STAGES)


def _irn_name(name: str) -> str | None:
    branch = re.match(r"^fc_(edge|dp)([1-5])\.([01])\.(.+)$", name)
    if branch:
        kind, number, part, leaf = branch.groups()
        module = "boundary" if kind == "edge" else "displacement"
        return f"{module}.{int(number) - 1}.{('conv', 'norm')[int(part)]}.{leaf}"
    return _replace_prefix(name, _IRN_STAGES)


def _replace_prefix(name: str, table: dict[str, str]) -> str | None:
    for pattern, prefix in table.items():
        if re.match(pattern, name):
            return re.sub(pattern, prefix, name)
    return None
