"""The pictures of a folder: which files they are, and their ids.

An image id is the path of a picture below its folder, without the suffix and with "/" between folders, so the
same stem may be used in two folders. Names that could lead out of a folder are refused, never mended.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from irn_pipeline.datasets.headers import PICTURE_SUFFIXES, READ_KINDS
from irn_pipeline.datasets.lists import some
from irn_pipeline.errors import DataError

_LITTER = ("@eaDir", "__MACOSX")
"""Folders of thumbnails and of metadata, left behind by Synology's file server and by macOS."""
_HEIC = (".heic", ".heif")
_DRIVE = re.compile(r"[A-Za-z]:/")


def picture_id(name: str, where: str) -> str:
    """The image id of a picture's path below its folder, in Unicode's composed form (a Mac stores names decomposed).

    Raises:
        DataError: the name is empty or absolute, or holds "..", a backslash or a control character; `where` is named.
    """
    plain = "/".join(part for part in name.split("/") if part not in ("", "."))
    stem = without_suffix(plain)
    parts = stem.split("/")
    problem = ""
    if "\\" in name:
        problem = "holds a backslash"
    elif name.startswith("/") or _DRIVE.match(name):
        problem = "is an absolute path"
    elif ".." in parts or ".." in plain.split("/"):
        problem = "holds '..'"
    elif parts[-1] in ("", "."):
        problem = "names no image"
    elif has_control_character(name):
        problem = "holds a control character"
    if problem:
        raise DataError(
            f"{where}: {name!r} {problem}; write the path of an image below --image-dir, "
            f"with '/' between folders"
        )
    return composed(stem)


def has_control_character(text: str) -> bool:
    """Whether a text holds a control character or half of a surrogate pair, which no file can store."""
    return not text.isprintable() and any(unicodedata.category(mark) in ("Cc", "Cs") for mark in text)


def scan_pictures(
    image_dir: Path, warnings: list[str], passed_over: list[str] | None = None, *, flag: str = "--image-dir"
) -> dict[str, tuple[str, ...]]:
    """Files of a folder and its subfolders by image id; none of them is opened.

    Links are followed, also out of the folder; a folder that is reached twice is read once. Passed over are files and
    folders whose name starts with ".", the folders "@eaDir" and "__MACOSX", files whose suffix is not among
    PICTURE_SUFFIXES, and HEIC files beside another picture of the same name.

    Args:
        image_dir: the folder.
        warnings: a sentence is added when names cannot be ids.
        passed_over: what is passed over is added, paths below the folder, those of folders with a "/" at the end.
        flag: how the folder was named, for messages.

    Returns:
        Image id -> paths below `image_dir`; more than one where files differ in their suffix alone.

    Raises:
        DataError: the folder is missing, cannot be read, or holds no picture.
    """
    if not image_dir.is_dir():
        raise DataError(f"{image_dir}: no such folder; {flag} must name a folder of images")
    root, seen = str(image_dir), set[str]()
    found: dict[str, tuple[str, ...]] = {}
    unusable: list[str] = []
    ignored: list[str] = [] if passed_over is None else passed_over
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inside = os.path.relpath(folder, root)
        below = "" if inside == "." else f"{inside}/"
        ignored += (f"{below}{name}/" for name in sorted(folders) if _is_litter(name))
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        for name in sorted(files):
            path = f"{below}{name}"
            if _is_litter(name) or not name.lower().endswith(PICTURE_SUFFIXES):
                ignored.append(path)
                continue
            try:
                image_id = picture_id(path, root)
            except DataError:
                unusable.append(repr(path))
                continue
            found[image_id] = (*found.get(image_id, ()), path)
    if unusable:
        warnings.append(
            f"{image_dir}: files left out because of backslashes or control characters in their names: "
            f"{some(unusable)}"
        )
    if not found:
        others = f" among its {len(ignored)} files and folders" if ignored else ""
        raise DataError(f"{image_dir}: holds no image{others}; {READ_KINDS} files are read")
    for image_id, paths in found.items():
        read = tuple(path for path in paths if not path.lower().endswith(_HEIC))
        if read:
            ignored += (path for path in paths if path not in read)
            found[image_id] = read
    return found


def composed(path: str) -> str:
    """A path below the folder without "./" and doubled "/", its letters composed."""
    return unicodedata.normalize("NFC", "/".join(part for part in path.split("/") if part not in ("", ".")))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def without_suffix(name: str) -> str:
    """A path without the suffix of a picture; a path with any other suffix, or none, as it is."""
    return name[: name.rindex(".")] if name.lower().endswith(PICTURE_SUFFIXES) else name


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be read ({error.strerror}); check the path and its permissions"
    )
