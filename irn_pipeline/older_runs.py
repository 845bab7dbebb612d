"""Run folders made before version 0.2, which read some data sets in another way.

Their pictures are as stored, without EXIF rotation, and their class ids count `_background_` and the like in the first
lines of class_names.txt as classes. Labels and maps are brought to today's reading when they are read; no other results
are added to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.ops.orientation import UPRIGHT, turned
from irn_pipeline.structures import IGNORE, Cam, ImageRecord, Instances

T = TypeVar("T")
_FIRST = (0, 2)
"""First version that applies the rotation."""


def read_upright(run: RunFolder, artifact: Artifact[T], record: ImageRecord, leading_names: int = 0) -> T:
    """An artifact of a picture, turned as the picture is read today, with today's class ids.

    Args:
        run: the run folder.
        artifact: maps, instances or a label.
        record: the picture.
        leading_names: names of the background and of ignored pixels before the first class.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    value = run.read(artifact, record.image_id)
    if not (_is_turned(record) or leading_names) or not _is_older(run, artifact.stage):
        return value
    if leading_names:
        value = _without_leading(value, leading_names)
    if not _is_turned(record):
        return value
    orientation = record.orientation or UPRIGHT
    if isinstance(value, Cam):
        cam, high_res = (turned(maps, orientation, rows=1) for maps in (value.cam, value.high_res_cam))
        return Cam(value.class_ids, np.ascontiguousarray(cam), np.ascontiguousarray(high_res))  # type: ignore[return-value]
    if isinstance(value, Instances):
        masks = np.ascontiguousarray(turned(value.masks, orientation, rows=1))
        return Instances(value.scores, masks, value.class_ids)  # type: ignore[return-value]
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(turned(value, orientation))  # type: ignore[return-value]
    raise TypeError(f"{artifact.name} holds no pixels")


def _without_leading(value: T, count: int) -> T:
    """The same maps, instances or label with class ids that are `count` lower; what is below was no class."""
    if isinstance(value, Cam):
        kept = value.class_ids >= count
        return Cam(value.class_ids[kept] - count, value.cam[kept], value.high_res_cam[kept])  # type: ignore[return-value]
    if isinstance(value, Instances):
        kept = value.class_ids >= count
        return Instances(value.scores[kept], value.masks[kept], value.class_ids[kept] - count)  # type: ignore[return-value]
    if isinstance(value, np.ndarray):
        lower = np.where(value > count, value - count, 0)
        return np.where(value == IGNORE, IGNORE, lower).astype(np.uint8)  # type: ignore[return-value]
    raise TypeError(f"{type(value).__name__} holds no class ids")


def require_upright(
    run: RunFolder, stage: str, records: Sequence[ImageRecord], leading_names: int = 0
) -> None:
    """Refuse to work with results of an older version that today's reading of the data set does not fit.

    Args:
        run: the run folder.
        stage: name of the stage that made, or makes, the results.
        records: the pictures that are worked on.
        leading_names: names of the background and of ignored pixels before the first class.

    Raises:
        ArtifactError: there are such results.
    """
    if leading_names and _is_older(run, stage):
        raise ArtifactError(
            f"{run.stage_dir(stage)}: was made by an older version, which took the names of the background in the "
            f"class file for classes; give another --run-dir, or run {stage} again with --overwrite"
        )
    count = sum(map(_is_turned, records))
    if count and _is_older(run, stage):
        raise ArtifactError(
            f"{run.stage_dir(stage)}: was made by an older version, which did not apply EXIF rotations, and "
            f"{count} of the pictures carry one; give another --run-dir, or run {stage} again with --overwrite"
        )


def rotation_hint(record: ImageRecord) -> str:
    """Words for a message about sizes that do not fit; none for a picture without an EXIF rotation."""
    return f" after its EXIF rotation ({record.orientation})" if _is_turned(record) else ""


def _is_turned(record: ImageRecord) -> bool:
    return record.orientation not in (None, UPRIGHT)


def _is_older(run: RunFolder, stage: str) -> bool:
    record = run.record(stage)
    version = "" if record is None else record.versions.get("irn_pipeline", "0.1")
    numbers = version.split(".")[:2]
    return all(part.isdecimal() for part in numbers) and tuple(map(int, numbers)) < _FIRST
