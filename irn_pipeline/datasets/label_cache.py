"""Which labels the masks of a folder show, remembered between commands: reading all masks takes minutes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import write_json
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import regular_bytes

logger = logging.getLogger(__name__)
_READERS = 8
"""Threads that read masks; decoding leaves Python to them."""


def labels_of(root: Path, masks: Sequence[Path], read: Callable[[Path], list[int]]) -> list[list[int]]:
    """The labels of each mask; only masks that are new, or whose size or time has changed, are read.

    They are remembered in `irn_pipeline` of the user's cache ($XDG_CACHE_HOME or ~/.cache), one file for each root. A
    file that is damaged or cannot be written is passed over: it only saves time.

    Args:
        root: folder of the data set.
        masks: files below it.
        read: the labels of a mask.

    Raises:
        DataError: `read` refuses a mask; nothing is remembered then.
    """
    path = _cache_file(root)
    known = {} if path is None else _known(path)
    names = [mask.relative_to(root).as_posix() for mask in masks]
    stamps = [_stamp(mask) for mask in masks]
    new = {
        name: mask
        for name, mask, stamp in zip(names, masks, stamps, strict=True)
        if name not in known or known[name][0] != stamp
    }
    if new:
        logger.info("%s: reading %d masks for their classes", root, len(new))
        with ThreadPoolExecutor(_READERS) as pool:
            found = dict(zip(new, pool.map(read, new.values()), strict=True))
        known |= {
            name: (stamp, found[name]) for name, stamp in zip(names, stamps, strict=True) if name in found
        }
        if path is not None:
            with suppress(ArtifactError):
                write_json(path, known, indent=None)
    return [known[name][1] for name in names]


def _cache_file(root: Path) -> Path | None:
    """None where the user has no home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return home / "irn_pipeline" / f"labels-{name}.json"


def _stamp(mask: Path) -> str:
    try:
        status = mask.stat()
    except OSError:
        return ""  # `read` says what is wrong with it
    return f"{status.st_size} {status.st_mtime_ns}"


def _known(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Name of a mask -> what its file was like, and its labels."""
    try:
        content: Any = parse_json(regular_bytes(path))
        return {
            str(name): (str(stamp), [label for label in labels if type(label) is int])
            for name, (stamp, labels) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
