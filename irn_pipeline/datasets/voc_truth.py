"""True masks of VOC folders, for evaluation only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irn_pipeline.datasets.images import read_label
from irn_pipeline.datasets.lists import some
from irn_pipeline.datasets.voc_folder import files_by_id
from irn_pipeline.errors import DataError
from irn_pipeline.structures import IGNORE, GroundTruth, Instances, LabelArray

_OTHER_MASKS = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".npy")


@dataclass(frozen=True)
class VocTruths:
    """Reads true masks from SegmentationClass and SegmentationObject, picture by picture.

    Attributes:
        class_masks: files of SegmentationClass by image id, the one that is read first.
        object_masks: the same of SegmentationObject.
        num_classes: C; larger labels are refused.
    """

    class_masks: dict[str, list[Path]]
    object_masks: dict[str, list[Path]]
    num_classes: int

    @staticmethod
    def find(voc_root: Path, num_classes: int) -> VocTruths:
        """Those of a folder, which may have none."""
        classes, objects = voc_root / "SegmentationClass", voc_root / "SegmentationObject"
        return VocTruths(files_by_id(classes, (".png",)), files_by_id(objects, (".png",)), num_classes)

    def unread_masks(self, voc_root: Path) -> str | None:
        """A sentence about masks in SegmentationClass that are no PNG files; None where there are none."""
        folder = voc_root / "SegmentationClass"
        unread = sorted(files_by_id(folder, _OTHER_MASKS).keys() - self.class_masks.keys())
        if not unread:
            return None
        return (
            f"{folder}: masks that are not PNG files and are not read: {some(unread)}; write the number of the class "
            "into each pixel of a PNG (JPEG changes the numbers)"
        )

    def ground_truth(self, image_id: str) -> GroundTruth | None:
        """True masks of one picture.

        An object's class is the most frequent label of its pixels, background and 255 not counted. An object all
        of whose pixels lack a class is ignored, like pixels of label 255 in either file.

        Returns:
            Label and instances (R objects in the order of their ids). None without a class mask; without an object
            mask `has_instances` is false.

        Raises:
            DataError: a file is unreadable, the two have different sizes, or a label is above C.
        """
        if image_id not in self.class_masks:
            return None
        class_path = self.class_masks[image_id][0]
        label = read_label(class_path)
        self._require_known(label, class_path)
        if image_id not in self.object_masks:
            size = (label.shape[0], label.shape[1])
            return GroundTruth(label, Instances.empty(size), label == IGNORE, has_instances=False)
        object_path = self.object_masks[image_id][0]
        objects = read_label(object_path)
        if label.shape != objects.shape:
            raise DataError(
                f"{object_path}: {objects.shape[0]}x{objects.shape[1]} pixels, but the class mask has "
                f"{label.shape[0]}x{label.shape[1]}; the two must belong to the same image"
            )
        # counts[o, c]: pixels of object o that have label c, from one pass over the picture.
        joint = objects.astype(np.intp).ravel() * 256 + label.ravel()
        counts = np.bincount(joint, minlength=256 * 256).reshape(256, 256)
        votes = counts[:, 1 : self.num_classes + 1]
        present = np.flatnonzero(counts.sum(1))
        present = present[(present > 0) & (present < IGNORE)]
        object_ids = present[votes[present].sum(1) > 0]
        instances = Instances(
            np.ones(len(object_ids), np.float32),
            objects[None] == object_ids[:, None, None],
            votes[object_ids].argmax(1).astype(np.int64),
        )
        unusable = np.setdiff1d(present, object_ids)
        ignore = (label == IGNORE) | (objects == IGNORE) | np.isin(objects, unusable)
        return GroundTruth(label, instances, ignore)

    def _require_known(self, label: LabelArray, path: Path) -> None:
        values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)[:IGNORE])
        beyond = values[values > self.num_classes].tolist()
        if beyond:
            raise DataError(
                f"{path}: label {_listed(beyond)} is beyond the {self.num_classes} classes; expected 0 for background, "
                f"1 to {self.num_classes}, and 255 for what is not counted. Name every class of the data set with "
                f"--class-names FILE, or write the numbers of the classes, not colours, into the mask"
            )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
