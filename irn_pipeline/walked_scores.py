"""Files of walked activation maps, from which labels can be made again with other thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ArtifactError, ShapeError
from irn_pipeline.files.npy import read_npz
from irn_pipeline.files.regular import Place, open_regular
from irn_pipeline.files.shards import Draft
from irn_pipeline.structures import CAM_STRIDE, IGNORE, FloatArray, IntArray, grid_stride, strided_size

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WalkedScores:
    """Walked activation maps of one picture's instances, from which labels can be made with any threshold.

    Attributes:
        class_ids: (M,) int64 class of each map, 0..C-1.
        maps: (M, h, w) float16 at stride 4 (8, 16 ... of scenes), divided by the largest value of them all; labels made
            from them differ in fewer than 0.1 % of the pixels from those of the float32 maps.
        size: (H, W) of the picture in pixels.
        evidence: (T,) float32 of `ops.background_search`; None in files of the time before it.
    """

    class_ids: IntArray
    maps: npt.NDArray[np.float16]
    size: tuple[int, int]
    evidence: FloatArray | None = None

    def __post_init__(self) -> None:
        count = len(self.class_ids)
        try:
            stride = grid_stride(self.maps.shape[1:], self.size)
        except ShapeError:
            stride = CAM_STRIDE
        grid = strided_size(self.size, stride)
        if self.class_ids.ndim != 1 or self.maps.dtype != np.float16 or self.maps.shape != (count, *grid):
            raise ShapeError(
                f"walked scores of {count} maps and a {self.size[0]}x{self.size[1]} image must be "
                f"{(count, *grid)} float16, got {self.maps.shape} {self.maps.dtype}"
            )
        if self.evidence is not None and self.evidence.ndim != 1:
            raise ShapeError(f"evidence must be (T,), got {self.evidence.shape}")


def kept_scores(
    walked: Tensor, class_ids: IntArray, size: tuple[int, int], evidence: FloatArray | None
) -> WalkedScores:
    """What is kept of walked maps: in float16, relative to the largest value.

    Labels made from it differ from those of the walk itself where the two best scores of a pixel, the background's
    among them, are within 2**-10 of one another: in fewer than 0.1 % of the pixels (measured in docs/TUNING.md).

    Args:
        walked: (M, h, w) float32 walked maps, not negative.
        class_ids: (M,) class of each map.
        size: (H, W) of the picture in pixels.
        evidence: (T,) of `background_evidence`.
    """
    if walked.numel():
        walked = walked / walked.max().clamp_min(float(np.finfo(np.float32).tiny))
    return WalkedScores(class_ids, walked.half().cpu().numpy(), size, evidence)


def read_walked_scores(path: Place) -> WalkedScores:
    """Read walked scores; nothing the file holds is run.

    Raises:
        ArtifactError: it is damaged, hostile, or its arrays do not fit one another.
    """
    try:
        with open_regular(path) as stream:
            ids, maps, size, *evidence = read_npz(
                stream, ("class_ids", "maps", "size"), optional=("evidence",)
            )
        class_ids, (height, width) = ids.astype(np.int64), size.tolist()
        if not np.isfinite(maps).all() or (class_ids < 0).any() or (class_ids >= IGNORE - 1).any():
            raise ShapeError("its maps are not finite, or its class ids are invalid")
        if any(np.isnan(each).any() for each in evidence):
            raise ShapeError("its evidence holds NaN")
        return WalkedScores(class_ids, maps, (height, width), *(each.astype(np.float32) for each in evidence))
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types for damaged and for hostile files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(
            f"{path}: holds no walked scores ({reason}); delete it and run stage synthesize_labels "
            "with --keep-scores again"
        ) from error


def write_walked_scores(path: Path | Draft, scores: WalkedScores) -> None:
    """Write walked scores as an .npz file of arrays class_ids, maps, size and, if there is any, evidence."""
    size = np.array(scores.size)
    with path.open("wb") as stream:
        save = partial(np.savez_compressed, stream, class_ids=scores.class_ids, maps=scores.maps, size=size)
        save() if scores.evidence is None else save(evidence=scores.evidence)
