"""Files that parameters name, told apart by their content: a moved file is the same, a changed one is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from irn_pipeline.engine.declaration import Files
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.store import write_json
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import open_regular, regular_bytes

INPUTS_NAME = "inputs.json"
_BLOCK = 1 << 20
_MANY = 1000
"""So many files take a while: their reading is shown."""


class Stamp(NamedTuple):
    """A file's content, and what its folder says of it, by which it is known without being read again."""

    size: int
    modified_ns: int
    changed_ns: int
    digest: str


@dataclass(frozen=True)
class FileSet:
    """The files of one path that a parameter gives, as they were when they were read.

    Attributes:
        path: absolute.
        files: key (see `Files`) -> stamp.
    """

    path: str
    files: Mapping[str, Stamp]


Inputs = Mapping[str, tuple[FileSet, ...]]
"""Parameter -> its files, one entry for each path that it gives."""


def read_inputs(folder: Path) -> Inputs:
    """What a stage's folder says of the files it was made from; nothing where it says nothing.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / INPUTS_NAME
    if not path.is_file():
        return {}
    try:
        return {
            str(name): tuple(
                FileSet(str(one["path"]), {str(key): _stamp(found) for key, found in one["files"].items()})
                for one in sets
            )
            for name, sets in parse_json(regular_bytes(path)).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ArtifactError(
            f"{path}: damaged ({type(error).__name__}); delete it, and the files that parameters name are taken for "
            "those that the results were made from"
        ) from error


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write what `read_inputs` reads."""
    content = {
        name: [{"path": one.path, "files": one.files} for one in sets] for name, sets in inputs.items()
    }
    write_json(folder / INPUTS_NAME, content, indent=None)


def digests(inputs: Inputs) -> dict[str, list[dict[str, str]]]:
    """The contents alone, for fingerprints."""
    return {
        name: [{key: stamp.digest for key, stamp in one.files.items()} for one in sets]
        for name, sets in inputs.items()
    }


def take_stock(
    named: Mapping[str, tuple[Files, ...]],
    before: Inputs,
    made: Callable[[str], bool] | None,
    *,
    workers: int,
    quiet: bool = False,
) -> tuple[dict[str, tuple[FileSet, ...]], list[str]]:
    """Look at the files that parameters name; read those that are new or seem changed.

    Args:
        named: parameter -> its files.
        before: what was known of them.
        made: whether there are results of a key, so that its file must be the one of then; None where there are none.
        workers: threads that read.
        quiet: show no progress.

    Returns:
        What is known of them now; and one phrase for every path whose files are not those that results were made from.
    """
    found: dict[str, tuple[FileSet, ...]] = {}
    changed: list[str] = []
    for name, sets in named.items():
        known = before.get(name, ())
        looked: list[FileSet] = []
        for index, files in enumerate(sets):
            old = known[index] if index < len(known) else FileSet("", {})
            stamps = _read(name, files, old, workers, quiet)
            if made is not None:
                changed += _compare(name, files, old, stamps, made)
            looked.append(FileSet(_place(files), stamps))
        found[name] = tuple(looked)
    return found, changed


def _compare(
    name: str, files: Files, old: FileSet, stamps: dict[str, Stamp], made: Callable[[str], bool]
) -> list[str]:
    """What is no longer as it was; the stamps of results whose file is not there, or not asked for, are kept."""
    found: list[str] = []
    for key, stamp in old.files.items():
        now = stamps.get(key)
        if (now is not None and now.digest == stamp.digest) or not made(key):
            continue
        if now is not None:
            found.append(f"{files.of[key]}: its content is not what it was")
        elif key in files.of and _place(files) != old.path:
            found.append(f"{files.of[key]}: not found; {old.path} was read before")
        else:
            stamps[key] = stamp
    others = f", nor are {len(found) - 1} others as they were" if len(found) > 1 else ""
    return [f"{_flag(name)} {found[0]}{others}"] if found else []


def _read(name: str, files: Files, old: FileSet, workers: int, quiet: bool) -> dict[str, Stamp]:
    same_place = old.path == _place(files)

    def stamp(key: str) -> Stamp | None:
        path = files.of[key]
        try:
            state = path.stat()
            at = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            was = old.files.get(key) if same_place else None
            return was if was is not None and was[:3] == at else Stamp(*at, content_digest(path))
        except OSError:  # the stage says what is wrong when it reads the file
            return None

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        read = progress(
            pool.map(stamp, files.of),
            f"{name}: contents of files",
            total=len(files.of),
            unit="file",
            quiet=quiet or len(files.of) < _MANY,
        )
        return {key: found for key, found in zip(files.of, read, strict=True) if found is not None}


def content_digest(path: Path) -> str:
    """Hash of a file's bytes.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _stamp(value: object) -> Stamp:
    if not isinstance(value, list) or list(map(type, value)) != [int, int, int, str]:
        raise ValueError("no stamp of a file")
    return Stamp(*value)


def _place(files: Files) -> str:
    return str(files.path.absolute())


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
