"""Files that parameters name, known by their content: a moved file is the same, a changed one is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Files
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import write_json
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
    """The files of one path that a parameter gives: the path, absolute, and key (see `Files`) -> stamp."""

    path: str
    files: dict[str, Stamp]


Inputs = Mapping[str, tuple[FileSet, ...]]
"""Parameter -> its files, one entry for each path that it gives."""


def read_inputs(folder: Path) -> Inputs:
    """The files that the results of a stage's folder were made from; nothing where none are recorded.

    Raises:
        ArtifactError: the record is damaged.
    """
    path = folder / INPUTS_NAME
    if not path.is_file():
        return {}
    try:
        return {
            name: tuple(
                FileSet(str(one["path"]), {key: _stamp(values) for key, values in one["files"].items()})
                for one in sets
            )
            for name, sets in parse_json(regular_bytes(path)).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ArtifactError(
            f"{path}: damaged ({type(error).__name__}); delete it; the files that parameters name are then taken for "
            "those that the results were made from"
        ) from error


def _stamp(values: list[object]) -> Stamp:
    if list(map(type, values)) != [int, int, int, str]:
        raise ValueError("no stamp of a file")
    return Stamp(*values)  # type: ignore[arg-type]


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
    execution: Execution,
) -> tuple[dict[str, tuple[FileSet, ...]], list[str]]:
    """Look at the files that parameters name; read those that are new or seem changed.

    Args:
        named: parameter -> its files.
        before: what was known of them.
        made: whether there are results of a key, so that its file must be the one of then; None where there are none.
        execution: number of threads that read, progress.

    Returns:
        What is known of them now; and one phrase for every path whose files are not those that results were made from.
    """
    found: dict[str, tuple[FileSet, ...]] = {}
    changed: list[str] = []
    for name, sets in named.items():
        known = [*before.get(name, ()), *[FileSet("", {})] * len(sets)]
        looked = [_look(name, files, old, execution) for files, old in zip(sets, known, strict=False)]
        for files, old, new in zip(sets, known, looked, strict=False):
            others = _compare(files, old, new, made) if made is not None else []
            if others:
                more = f", nor are {len(others) - 1} others as they were" if len(others) > 1 else ""
                changed.append(f"--{name.replace('_', '-')} {others[0]}{more}")
        found[name] = tuple(looked)
    return found, changed


def _look(name: str, files: Files, old: FileSet, execution: Execution) -> FileSet:
    place = str(files.path.absolute())

    def stamp(key: str) -> Stamp | None:
        try:
            state = files.of[key].stat()
            at = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            was = old.files.get(key) if old.path == place else None
            return was if was is not None and was[:3] == at else Stamp(*at, content_digest(files.of[key]))
        except OSError:  # the stage says what is wrong when it reads the file
            return None

    quiet = execution.quiet or len(files.of) < _MANY
    with ThreadPoolExecutor(execution.worker_count) as pool:
        stamps = progress(
            pool.map(stamp, files.of),
            f"{name}: contents of files",
            total=len(files.of),
            unit="file",
            quiet=quiet,
        )
        return FileSet(place, {key: found for key, found in zip(files.of, stamps, strict=True) if found})


def _compare(files: Files, old: FileSet, new: FileSet, made: Callable[[str], bool]) -> list[str]:
    """What is no longer as it was; the stamps of results whose file is not there, or not asked for, are kept."""
    found: list[str] = []
    for key, stamp in old.files.items():
        now = new.files.get(key)
        if (now is not None and now.digest == stamp.digest) or not made(key):
            continue
        if now is not None:
            found.append(f"{files.of[key]}: its content has changed")
        elif key in files.of and new.path != old.path:
            found.append(f"{files.of[key]}: not found; {old.path} was read before")
        else:
            new.files[key] = stamp
    return found


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
