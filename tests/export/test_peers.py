"""Other programs read the exported COCO file: skipped where they are not installed (`pip install supervision`)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from irn_pipeline.export.coco_json import CocoWriter
from irn_pipeline.structures import Instances


def test_supervision_reads_masks_and_classes(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 5:15, 3:20] = masks[1, 18:28, 22:35] = True
    masks[0, 8:10, 6:9] = False  # a hole, which a polygon could not keep
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "a.png"), np.zeros((30, 40, 3), np.uint8))
    with CocoWriter(tmp_path / "a.json", ("cat", "dog")) as coco:
        coco.add("a.png", (30, 40), Instances(np.array([1.0, 0.5], np.float32), masks, np.array([1, 0])))
    data = supervision.DetectionDataset.from_coco(
        images_directory_path=str(tmp_path / "pictures"),
        annotations_path=str(tmp_path / "a.json"),
        force_masks=True,
    )
    [(_, _, found)] = list(data)
    assert [data.classes[index] for index in found.class_id] == ["dog", "cat"]
    assert np.array_equal(found.mask, masks)
