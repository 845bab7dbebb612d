"""Results that give way to new ones: kept in a folder beside them until there is something new."""

from __future__ import annotations

from pathlib import Path

from irn_pipeline.engine.store import RECORD_NAME
from irn_pipeline.files.atomic import remove

ASIDE_NAME = ".replaced"
"""Folder of the results that --overwrite replaces, until there are new ones."""


def set_aside(folder: Path, keep: str) -> None:
    """Move what a stage's folder holds, but for one file, to a folder in it; the record goes last.

    Without its record, what an interruption leaves would later be taken for results of other parameters.
    """
    aside = folder / ASIDE_NAME
    remove(aside)
    aside.mkdir()
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD_NAME):
        if path.name not in (keep, ASIDE_NAME):
            path.rename(aside / path.name)


def put_back(folder: Path, keep: str) -> None:
    """Undo `set_aside`; what has come into the folder since is removed."""
    aside = folder / ASIDE_NAME
    if not aside.is_dir() or aside.is_symlink():
        return
    for path in folder.iterdir():
        if path.name not in (keep, ASIDE_NAME):
            remove(path)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == RECORD_NAME):
        path.rename(folder / path.name)
