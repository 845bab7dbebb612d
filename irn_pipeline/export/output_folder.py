"""Folders outside the run folder, into which the tools write what other programs read."""

from __future__ import annotations

from pathlib import Path

from irn_pipeline.errors import ConfigError
from irn_pipeline.export.voc_png import ObjectMap, object_map, save_palette_png
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.structures import Instances, LabelArray


def output_folder(folder: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        ConfigError: it cannot be made, or a file is in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(f"--out {folder}: cannot be made a folder ({reason}); name another one") from error
    return folder


def write_object_and_label(objects: Path, labels: Path, found: Instances, label: LabelArray) -> ObjectMap:
    """Write a picture's object ids and its (H, W) label as two PNGs; returns what the first one shows."""
    painted = object_map(found, (label.shape[0], label.shape[1]))
    write_index_png(objects, painted.ids)
    write_index_png(labels, label)
    return painted


def write_index_png(path: Path, index: LabelArray) -> None:
    """Write labels or object ids, (H, W) uint8, as a palette PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        save_palette_png(temporary, index)
