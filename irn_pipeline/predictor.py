"""A trained model that is loaded once and answers many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from irn_pipeline.datasets.pixels import read_pixels, read_scale, standardised
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ShapeError
from irn_pipeline.models import AskedParams, require_asked
from irn_pipeline.structures import ImageRecord, Instances
from irn_pipeline.trained_networks import load_segmenter, look_at


class Predictor:
    """Finds objects in pictures with a model of stage train_segmenter.

    Attributes:
        class_names: names of the classes, in the order of their class ids.

    Example:
        predictor = Predictor("runs/mine", "mask_rcnn")
        found = predictor("new/cat.jpg")
    """

    def __init__(
        self,
        run_dir: str | Path,
        model: str = "mask_rcnn",
        *,
        crf: bool = False,
        test_scales: Sequence[float] = (),
        min_pixels: int | None = None,
        seed_threshold: float | None = None,
        foreground_threshold: float | None = None,
        device: str = "auto",
        precision: Literal["auto", "bf16", "float32"] = "auto",
    ) -> None:
        """Load a model.

        Args:
            run_dir: run folder that stage train_segmenter has worked in.
            model: as given to train_segmenter: mask_rcnn, deeplabv3 ...
            crf: refine deeplabv3's labels with the dense CRF.
            test_scales: average deeplabv3's probabilities over these relative sizes.
            min_pixels: spatial_embeddings' objects need more pixels than this; None for as in its training.
            seed_threshold: smallest seed probability that starts an object of spatial_embeddings; None likewise.
            foreground_threshold: its objects hold pixels of a larger seed probability only; None likewise.
            device: auto, cpu, cuda or cuda:N.
            precision: of the network pass, as for the stages.

        Raises:
            ArtifactError: the model is not in the run folder; the message names those that are.
            ConfigError: the model has none of what was asked for, or there is no such device.
        """
        self._execution = Execution(device=device, precision=precision)
        asked = AskedParams(
            crf=crf,
            test_scales=tuple(test_scales),
            min_pixels=min_pixels,
            seed_threshold=seed_threshold,
            foreground_threshold=foreground_threshold,
        )
        require_asked((model,), asked)
        self._segmenter, checkpoint = load_segmenter(RunFolder(Path(run_dir)), model, self._execution, asked)
        self.class_names = checkpoint.class_names
        self._scale = read_scale(Path(run_dir))

    def __call__(self, image: npt.NDArray[Any] | str | Path, *, min_score: float = 0.5) -> Instances:
        """Objects in one picture.

        Args:
            image: path of a picture, or its pixels: (H, W, 3) uint8 RGB, or (H, W, C) values of the kind that the model
                was trained on, where those were not of 8-bit RGB.
            min_score: instances below it are left out.

        Returns:
            The instances, best first: masks (R, H, W) bool, scores (R,) float32, class_ids (R,) int64 from 0.

        Raises:
            DataError: the file cannot be read.
            ShapeError: the array is not such a picture.
        """
        if isinstance(image, str | Path):
            image = read_pixels(ImageRecord("", Path(image), (), scale=self._scale))
        elif self._scale is not None:
            if image.ndim != 3 or image.shape[2] != self._scale.channels:
                raise ShapeError(f"an image must be (H, W, {self._scale.channels}), got {image.shape}")
            image = standardised(image, self._scale)
        elif image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        found, _ = look_at(self._segmenter, image, self._execution)
        return found.select(found.scores >= min_score)
