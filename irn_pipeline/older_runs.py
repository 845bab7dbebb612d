"""Run folders made before version 0.2, which read some data sets in another way.

Their pictures are as stored, without EXIF rotation, and their class ids count `_background_` and the like in the first
lines of class_names.txt as classes. Labels and maps are brought to today's reading when they are read; no other results
are added to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.regular import Place
from irn_pipeline.ops.orientation import UPRIGHT, turned
from irn_pipeline.structures import IGNORE, Cam, ImageRecord, Instances

T = TypeVar("T")
_FIRST = (0, 2)
"""First version that applies the rotation."""


def read_converted(
    run: RunFolder,
    artifact: Artifact[T],
    record: ImageRecord,
    leading_names: int = 0,
    place: Place | None = None,
) -> T:
    """An artifact of a picture; one of an older run is turned as the picture is read today, and has today's class ids.

    Args:
        run: the run folder.
        artifact: maps, instances or a label.
        record: the picture.
        leading_names: names of the background and of ignored pixels before the first class.
        place: of the artifact, where it is known.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    value = run.read_at(artifact, place or run.place(artifact, record.image_id))
    if not (_is_turned(record) or leading_names) or not _is_older(run, artifact.stage):
        return value
    turn = partial(_turned, orientation=record.orientation or UPRIGHT)
    if isinstance(value, np.ndarray):
        lower = np.where(value > leading_names, value - leading_names, 0)
        return turn(np.where(value == IGNORE, IGNORE, lower).astype(np.uint8), rows=0)  # type: ignore[return-value]
    if not isinstance(value, Cam | Instances):
        raise TypeError(f"{artifact.name} holds no pixels")
    kept = value.class_ids >= leading_names
    class_ids = value.class_ids[kept] - leading_names
    if isinstance(value, Cam):
        return Cam(class_ids, turn(value.cam[kept]), turn(value.high_res_cam[kept]))  # type: ignore[return-value]
    return Instances(value.scores[kept], turn(value.masks[kept]), class_ids)  # type: ignore[return-value]


def _turned(array: npt.NDArray[Any], orientation: int, rows: int = 1) -> npt.NDArray[Any]:
    return np.ascontiguousarray(turned(array, orientation, rows=rows))


def require_current(
    run: RunFolder, stage: str, records: Sequence[ImageRecord], leading_names: int = 0
) -> None:
    """Refuse to work with results of an older version that today's reading of the data set does not fit.

    Args:
        run: the run folder.
        stage: name of the stage that made, or makes, the results.
        records: the pictures that are worked on.
        leading_names: as for `read_converted`.

    Raises:
        ArtifactError: there are such results.
    """
    count = sum(map(_is_turned, records))
    reason = ""
    if leading_names:
        reason = "took the names of the background in the class file for classes"
    elif count:
        reason = f"did not apply EXIF rotations, and {count} of the images carry one"
    if reason and _is_older(run, stage):
        raise ArtifactError(
            f"{run.stage_dir(stage)}: was made by an older version, which {reason}; give another --run-dir, or run "
            f"{stage} again with --overwrite"
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
