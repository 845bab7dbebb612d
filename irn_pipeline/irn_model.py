"""IRNet of a run folder, for the stages that look at pictures with it, and how they pad the pictures for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from irn_pipeline.artifacts import IRN_NETWORK, restore_network
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RECORD_NAME, RunFolder
from irn_pipeline.errors import ArtifactError
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
    build = partial(IrnNetwork, backbone=checkpoint.backbone)  # type: ignore[arg-type]
    network = restore_network(run.path(IRN_NETWORK), checkpoint, "irn", build)
    network.eval()
    fold_batch_norms(network.backbone)
    return network.to(execution.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Padding:
    """Zeros around pictures at inference, for the group norms of IRNet: they saw zeros around small crops in training.

    Attributes:
        pad_to: side in pixels that smaller pictures are padded to, 0 for never; None for the share of zeros that the
            training crops of a picture of that size had on average.
        crop: side of the training crops, pixels.
        rescale: smallest and largest scale of the pictures in training.
    """

    pad_to: int | None
    crop: int = 512
    rescale: tuple[float, float] = (0.5, 1.5)

    @staticmethod
    def of(run: RunFolder, pad_to: int | None) -> Padding:
        """Padding for the IRNet of a run folder.

        Args:
            run: run folder that stage train_irn has worked in.
            pad_to: as above.

        Raises:
            ArtifactError: its record says impossible things.
        """
        record = run.record(IRN_NETWORK.stage)
        if pad_to is not None or record is None:
            return Padding(pad_to)
        crop = record.params.get("crop", Padding.crop)
        rescale = record.params.get("rescale", Padding.rescale)
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
        return Padding(None, crop, (scales[0], scales[-1]))

    def side(self, size: tuple[int, int]) -> int:
        """Side that a picture of `size` (H, W) pixels is padded to."""
        if self.pad_to is not None:
            return self.pad_to
        height, width = size
        scales = np.linspace(*self.rescale, 1001)
        # Share of a training crop that the picture covered at each scale.
        covered = np.minimum(scales * height / self.crop, 1) * np.minimum(scales * width / self.crop, 1)
        area = height * width / float(covered.mean())
        # A square, or where that is less wide than the picture, a strip that its short side is padded to.
        return round(area**0.5 if area**0.5 >= max(size) else area / max(size))
