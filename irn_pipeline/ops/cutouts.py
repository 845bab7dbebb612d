"""Objects of a picture as small masks in their boxes: of a large picture, whole masks are nearly all background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.masks import mask_boxes
from irn_pipeline.structures import BoolArray, FloatArray, GroundTruth, Instances, IntArray, LabelArray


@dataclass(frozen=True)
class Cutouts:
    """Object instances of one picture, cut out along their boxes.

    Attributes:
        size: (H, W) of the picture in pixels.
        boxes: (R, 4) first row and column, end of rows and columns; zeros for an empty mask.
        masks: R masks (h, w) bool, as large as their boxes.
        class_ids: (R,) int64 in 0..C-1.
        scores: (R,) float32; 1 for true instances.
    """

    size: tuple[int, int]
    boxes: IntArray
    masks: tuple[BoolArray, ...]
    class_ids: IntArray
    scores: FloatArray

    def __post_init__(self) -> None:
        counts = {len(self.boxes), len(self.masks), len(self.class_ids), len(self.scores)}
        if len(counts) > 1 or self.boxes.shape[1:] != (4,):
            raise ShapeError("cutouts need as many boxes (R, 4), masks, class_ids and scores")

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def of_instances(instances: Instances) -> Cutouts:
        """From whole masks, which may overlap."""
        boxes = mask_boxes(instances.masks)
        masks = tuple(
            mask[top:bottom, left:right]
            for mask, (top, left, bottom, right) in zip(instances.masks, boxes.tolist(), strict=True)
        )
        return Cutouts(instances.size, boxes, masks, instances.class_ids, instances.scores)

    @staticmethod
    def of_index(index: npt.NDArray[np.integer], class_ids: IntArray) -> Cutouts:
        """From a map of objects: r + 1 in the pixels of object r, 0 for none; every object has pixels.

        Args:
            index: (H, W) integers 0..R.
            class_ids: (R,) class of each object.
        """
        places = [
            place for place in ndimage.find_objects(index, max_label=len(class_ids)) if place is not None
        ]
        boxes = [[rows.start, columns.start, rows.stop, columns.stop] for rows, columns in places]
        masks = tuple(index[place] == number for number, place in enumerate(places, start=1))
        scores = np.ones(len(class_ids), np.float32)
        size = (index.shape[0], index.shape[1])
        return Cutouts(size, np.array(boxes, np.int64).reshape(-1, 4), masks, class_ids, scores)

    def instances(self) -> Instances:
        """With whole masks."""
        masks = np.zeros((len(self), *self.size), np.bool_)
        for whole, mask, (top, left, bottom, right) in zip(
            masks, self.masks, self.boxes.tolist(), strict=True
        ):
            whole[top:bottom, left:right] = mask
        return Instances(self.scores, masks, self.class_ids)

    def window(self, position: int, rows: IntArray, columns: IntArray) -> tuple[int, int, BoolArray]:
        """A mask at the given rows and columns of the picture, but for what lies outside its box.

        Args:
            position: of the object.
            rows: of the picture, in ascending or descending order; they may repeat.
            columns: likewise.

        Returns:
            Where the mask begins among the rows and among the columns, and the mask there; empty outside its box.
        """
        top, left, bottom, right = self.boxes[position].tolist()
        down = np.flatnonzero((rows >= top) & (rows < bottom))
        along = np.flatnonzero((columns >= left) & (columns < right))
        if not (len(down) and len(along)):
            return 0, 0, np.zeros((0, 0), np.bool_)
        found = self.masks[position][rows[down] - top][:, columns[along] - left]
        return int(down[0]), int(along[0]), found


@dataclass(frozen=True)
class CutTruth:
    """True or synthesized masks of one picture as trainings read them.

    Attributes:
        label: (H, W) uint8, 0 background, class_id + 1, 255 ignore.
        objects: the instances.
        ignore: (H, W) bool pixels of which nothing is known.
    """

    label: LabelArray
    objects: Cutouts
    ignore: BoolArray

    @staticmethod
    def of(truth: GroundTruth) -> CutTruth:
        """The same masks, cut out."""
        return CutTruth(truth.label, Cutouts.of_instances(truth.instances), truth.ignore)
