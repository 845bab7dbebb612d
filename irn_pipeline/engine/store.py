"""The run folder: one folder a stage, files that are whole or absent, and a record of what made them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from irn_pipeline import __version__
from irn_pipeline.engine.faults import write_fault
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import regular_bytes

T = TypeVar("T")
RECORD_NAME = "stage.json"
RESUME_NAME = "resume.pt"
PART_PREFIX = ".part-"


@dataclass(frozen=True)
class Artifact(Generic[T]):
    """A kind of file that one stage writes and others read.

    Attributes:
        name: name of the artifact and, for one file an image, of its folder.
        stage: name of the stage that writes it.
        suffix: file ending with the dot.
        read: path -> value; raises ArtifactError.
        write: path, value -> None; the path is a temporary one.
        per_image: one file an image, or one file in all.
        summary: one line for tables and messages.
    """

    name: str
    stage: str
    suffix: str
    read: Callable[[Path], T]
    write: Callable[[Path, T], None]
    per_image: bool = True
    summary: str = ""


@dataclass(frozen=True)
class StageRecord:
    """What a stage's `stage.json` says.

    `seconds` is the time of all runs that made the results, `sections` where it went, by name. `facts` is what results
    depend on beside parameters, files and other stages (see `provenance.facts_of`); earlier versions of this program
    recorded none. `data` is the folder or file of the data set.
    """

    stage: str
    fingerprint: str
    params: dict[str, Any]
    reads: dict[str, str]
    complete: bool
    counts: dict[str, int]
    seconds: float
    versions: dict[str, str]
    sections: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    data: str = ""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The content reaches the disk before the name does: after a power cut, too, a file is whole or absent.

    Raises:
        ArtifactError: the system refused the write: full disk, no permission, read-only folder.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PART_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    except Exception as error:
        fault = write_fault(path, error, temporary)
        if fault is None:
            raise
        raise fault from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def clear_folder(folder: Path, keep: str) -> None:
    """Remove what a stage's folder holds but for one file; the record goes last.

    Without its record, what an interruption leaves would later be taken for the results of other parameters.
    """
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD_NAME):
        if path.name != keep:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder with all it holds, or a link, but nothing behind a link; what is not there is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_own_folder(root: Path, folder: Path) -> None:
    """Refuse to write to or remove from a folder of a run that is a link, or lies behind one.

    Args:
        root: the run folder, which may be a link itself: its user named it.
        folder: the folder, below it.

    Raises:
        ArtifactError: on its way is a link.
    """
    for place in (folder, *folder.parents):
        if place == root:
            return
        if place.is_symlink():
            raise ArtifactError(
                f"{place}: is a link, and nothing is written to or removed from what it leads to; remove the link "
                "(to read results of another run, link them in a --run-dir whose stages are not run again)"
            )


def remove_parts(folder: Path) -> int:
    """Remove what a killed process left half-written below a folder that nobody else writes to; returns how many."""
    count = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(PART_PREFIX):
                Path(place, name).unlink(missing_ok=True)
                count += 1
    return count


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems know no such thing for folders, or at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Write JSON atomically, keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


def fingerprint_of(value: object) -> str:
    """A short hash of any JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunFolder:
    """Paths and records below one run folder.

    Args:
        root: the folder; made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage_dir(self, stage: str) -> Path:
        """Folder of one stage."""
        return self.root / stage

    def path(self, artifact: Artifact[Any], image_id: str | None = None) -> Path:
        """Where an artifact lies; `image_id` for those with one file an image."""
        base = self.stage_dir(artifact.stage)
        if artifact.per_image:
            return base / artifact.name / f"{image_id}{artifact.suffix}"
        return base / f"{artifact.name}{artifact.suffix}"

    def has(self, artifact: Artifact[Any], image_id: str | None = None) -> bool:
        """Whether the artifact is there and not empty (files are written whole or not at all)."""
        try:
            return self.path(artifact, image_id).stat().st_size > 0
        except OSError:
            return False

    def read(self, artifact: Artifact[T], image_id: str | None = None) -> T:
        """Read an artifact.

        Raises:
            ArtifactError: it is missing (the message names the stage to run) or damaged.
        """
        path = self.path(artifact, image_id)
        if not path.is_file():
            raise ArtifactError(f"{path}: no {artifact.name} here; run stage {artifact.stage} first")
        try:
            return artifact.read(path)
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be read ({error.strerror or error}); mend its permissions or its disk, or delete it "
                f"and run stage {artifact.stage} again"
            ) from error

    def write(self, artifact: Artifact[T], value: T, image_id: str | None = None) -> None:
        """Write an artifact atomically.

        Raises:
            ArtifactError: the system refused the write; the message says why and what to do.
        """
        path = self.path(artifact, image_id)
        require_own_folder(self.root, path.parent)
        with atomic_path(path) as temporary:
            artifact.write(temporary, value)

    def record(self, stage: str) -> StageRecord | None:
        """What `stage.json` of a stage says; None where there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.stage_dir(stage) / RECORD_NAME
        if not path.is_file():
            return None
        try:
            return _checked(StageRecord(**parse_json(regular_bytes(path))))
        except (ValueError, TypeError, OSError) as error:
            raise ArtifactError(f"{path}: damaged ({error}); delete it to run the stage again") from error

    def folders(self) -> list[str]:
        """Names of all folders, variants' too, that hold a record, in order of the alphabet."""
        found = [*self.root.glob(f"*/{RECORD_NAME}"), *self.root.glob(f"*/*/{RECORD_NAME}")]
        return sorted(path.parent.relative_to(self.root).as_posix() for path in found)

    def write_record(self, record: StageRecord) -> None:
        """Write a stage's `stage.json`."""
        write_json(self.stage_dir(record.stage) / RECORD_NAME, asdict(record))


_STAGE_NAME = re.compile(r"\w+(/\w[\w.-]*)?")


def _checked(record: StageRecord) -> StageRecord:
    kinds: dict[str, type] = {
        "stage": str, "fingerprint": str, "params": dict, "reads": dict, "complete": bool, "counts": dict,
        "versions": dict, "sections": dict, "facts": dict, "data": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(record, name), kind):
            raise ValueError(f"'{name}' is no {kind.__name__}")
    for mapping, wanted in (
        (record.reads, str),
        (record.counts, int),
        (record.versions, str),
        (record.facts, str),
        (record.sections, int | float),
        ({"seconds": record.seconds}, int | float),
    ):
        wrong = [
            name for name, value in mapping.items() if not isinstance(value, wanted) or _is_endless(value)
        ]
        if wrong:
            raise ValueError(f"'{wrong[0][:40]}' has an impossible value")
    # Their records are looked for: a name must not lead out of the run folder.
    if not all(_STAGE_NAME.fullmatch(name) for name in record.reads):
        raise ValueError("'reads' names something that is no stage")
    return record


def _is_endless(value: object) -> bool:
    return isinstance(value, int | float) and not abs(value) < 1e18


def versions() -> dict[str, str]:
    """Versions that go into every `stage.json`."""
    packages = ("torch", "torchvision", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"irn_pipeline": __version__, "python": platform.python_version(), **found}
