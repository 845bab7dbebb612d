"""Run folders made before version 0.2, which read photographs as stored, without their EXIF rotation.

Their labels and maps of turned photographs are turned when they are read; no other results are added to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.ops.orientation import UPRIGHT, turned
from irn_pipeline.structures import Cam, ImageRecord, Instances

T = TypeVar("T")
_FIRST = (0, 2)
"""First version that applies the rotation."""


def read_upright(run: RunFolder, artifact: Artifact[T], record: ImageRecord) -> T:
    """An artifact of a picture, turned as the picture is read today.

    Args:
        run: the run folder.
        artifact: maps, instances or a label.
        record: the picture.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    value = run.read(artifact, record.image_id)
    if not _is_turned(record) or not _is_older(run, artifact.stage):
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


def require_upright(run: RunFolder, stage: str, records: Sequence[ImageRecord]) -> None:
    """Refuse to work with results of turned photographs that were made from their pixels as stored.

    Args:
        run: the run folder.
        stage: name of the stage that made, or makes, the results.
        records: the pictures that are worked on.

    Raises:
        ArtifactError: there are such results.
    """
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
