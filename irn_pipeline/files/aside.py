"""Results that are replaced, kept until there are new ones."""

from __future__ import annotations

from pathlib import Path

from irn_pipeline.files.atomic import remove

ASIDE_NAME = ".replaced"
"""Folder of the results that --overwrite replaces, until there are new ones."""


def set_aside(folder: Path, *, keep: str, last: str) -> None:
    """Move what a folder holds, but for one file, to a folder in it.

    Args:
        folder: of a stage.
        keep: name of the file that stays.
        last: name of the file that goes last: without a stage's record, what an interruption leaves would later be
            taken for results of other parameters.
    """
    aside = folder / ASIDE_NAME
    remove(aside)
    aside.mkdir()
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.name not in (keep, ASIDE_NAME):
            path.rename(aside / path.name)


def put_back(folder: Path, *, keep: str, last: str) -> None:
    """Undo `set_aside`; what has come into the folder since is removed."""
    aside = folder / ASIDE_NAME
    if not aside.is_dir() or aside.is_symlink():
        return
    for path in folder.iterdir():
        if path.name not in (keep, ASIDE_NAME):
            remove(path)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == last):
        path.rename(folder / path.name)
