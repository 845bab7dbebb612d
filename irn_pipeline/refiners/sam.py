"""Labels of the walk that snap to the masks of Segment Anything, by the merge rule of SEPL; needs the extra `sam`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irn_pipeline.errors import CheckpointError, ConfigError, require_memory
from irn_pipeline.refiners import walk
from irn_pipeline.refiners.base import Picture, Refiner
from irn_pipeline.structures import BoolArray, LabelArray

if TYPE_CHECKING:
    import torch

MaskMaker = Callable[[LabelArray], list[BoolArray]]
"""(H, W, 3) uint8 picture -> (H, W) masks of everything in it."""
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_EXPECTED = f"a folder with {_CONFIG} and {_WEIGHTS}, as save_pretrained of transformers' SamModel writes"


@dataclass(frozen=True)
class SamParams:
    """Parameters of the refinement by Segment Anything."""

    sam_checkpoint: str | None = field(default=None, metadata={"fingerprint": "unless default"})
    """--refiner sam: folder of a Segment Anything model saved by transformers."""
    sam_points: int = field(default=32, metadata={"fingerprint": "unless default"})
    """--refiner sam: prompt points per side of the image; fewer are faster but miss small objects."""
    sam_iou: float = field(default=0.88, metadata={"fingerprint": "unless default"})
    """--refiner sam: drop masks whose predicted IoU is lower."""
    sam_max_area: float = field(default=0.5, metadata={"fingerprint": "unless default"})
    """--refiner sam: drop masks that cover more than this fraction of the image; a mask of the whole image would take
    every class."""

    def __post_init__(self) -> None:
        if self.sam_points < 1 or not 0 < self.sam_max_area <= 1:
            raise ConfigError(
                f"sam_points is {self.sam_points} and sam_max_area {self.sam_max_area}; they must be 1 or more, and "
                "above 0 and at most 1"
            )


def prepare(params: SamParams, device: torch.device) -> MaskMaker:
    """Load the model.

    Raises:
        ConfigError: no checkpoint is named, or transformers is not installed.
        CheckpointError: it is not there, damaged, or of another kind of model.
    """
    if params.sam_checkpoint is None:
        raise ConfigError(f"--refiner sam needs --sam-checkpoint DIR, {_EXPECTED}")
    folder = Path(params.sam_checkpoint)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"--sam-checkpoint {folder}: holds no {name}; give {_EXPECTED}")
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForMaskGeneration, pipeline
    except ImportError as error:
        raise ConfigError(
            "--refiner sam needs the package transformers, which is not installed: pip install 'irn_pipeline[sam]'"
        ) from error
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if not kind.startswith("sam"):
            raise CheckpointError(f"holds a model of kind '{kind}'")
        model = AutoModelForMaskGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        maker = pipeline("mask-generation", model=model, image_processor=processor, device=device)
    except Exception as error:  # transformers and safetensors raise many types for damaged files
        require_memory(error, f"--sam-checkpoint {folder}")
        raise CheckpointError(
            f"--sam-checkpoint {folder}: cannot be loaded ({' '.join(str(error).split())[:160]}); give {_EXPECTED}"
        ) from error

    def masks_of(image: LabelArray) -> list[BoolArray]:
        import numpy as np
        from PIL import Image

        found = maker(
            Image.fromarray(image), points_per_crop=params.sam_points, pred_iou_thresh=params.sam_iou
        )
        return [np.asarray(mask, np.bool_) for mask in found["masks"]]

    return masks_of


def label(picture: Picture, params: Any, prepared: MaskMaker) -> LabelArray:
    """The walk's label, whose regions take whole masks."""
    from irn_pipeline.ops.labels import labels_from_scores
    from irn_pipeline.refiners.sam_merge import merge_masks

    walked, class_ids = walk.scores(picture, params, None)
    before, _ = labels_from_scores(walked, class_ids, picture.size, params)
    return merge_masks(before, prepared(picture.image), max_area=params.sam_max_area)


REFINER = Refiner(label=label, params=SamParams, prepare=prepare, walks=True)
