"""IRNet of a run folder, for the stages that look at pictures with it, and how they pad the pictures for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from irn_pipeline.artifacts import IRN_NETWORK, restore_network
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RECORD_NAME, RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.nn.backbone import fold_batch_norms
from irn_pipeline.nn.irn_network import IrnNetwork, side_as_trained


def load_irn(run: RunFolder, execution: Execution) -> IrnNetwork:
    """IRNet as train_irn left it, ready for inference.

    Args:
        run: run folder that stage train_irn has worked in.
        execution: names the device.

    Raises:
        ArtifactError: there is no IRNet, or its file is damaged.
        CheckpointError: the weights are of another network.
    """
    checkpoint = run.read(IRN_NETWORK)
    build = partial(IrnNetwork, backbone=checkpoint.backbone)  # type: ignore[arg-type]
    network = restore_network(run.path(IRN_NETWORK), checkpoint, "irn", build)
    network.eval()
    fold_batch_norms(network.backbone)
    return network.to(execution.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


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
    try:
        scales = [float(scale) for scale in rescale]
        possible = 0 < crop < 2**15 and 0 < scales[0] <= scales[-1] < 100
    except (TypeError, ValueError, LookupError):
        possible = False
    if not possible:
        raise ArtifactError(
            f"{run.stage_dir(IRN_NETWORK.stage) / RECORD_NAME}: damaged (crop is {crop}, rescale is {rescale}); "
            "give --pad-to, or run stage train_irn again with --overwrite"
        )
    return partial(side_as_trained, crop=crop, rescale=(scales[0], scales[-1]))
