"""IRNet of a run folder, for the stages that look at pictures with it."""

from __future__ import annotations

from functools import partial

import torch

from irn_pipeline.artifacts import IRN_NETWORK, restore_network
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.nn.backbone import fold_batch_norms
from irn_pipeline.nn.irn_network import IrnNetwork


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
    build = partial(IrnNetwork, backbone=checkpoint.backbone)
    network = restore_network(run.path(IRN_NETWORK), checkpoint, "irn", build)
    network.eval()
    fold_batch_norms(network.backbone)
    return network.to(execution.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
