"""The run folder: one folder a stage, files that are whole or absent, and a record of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from irn_pipeline import __version__
from irn_pipeline.errors import ArtifactError

T = TypeVar("T")


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
    """What a stage's `stage.json` says."""

    stage: str
    fingerprint: str
    params: dict[str, Any]
    reads: dict[str, str]
    complete: bool
    counts: dict[str, int]
    seconds: float
    versions: dict[str, str]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


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
        return artifact.read(path)

    def write(self, artifact: Artifact[T], value: T, image_id: str | None = None) -> None:
        """Write an artifact atomically."""
        with atomic_path(self.path(artifact, image_id)) as temporary:
            artifact.write(temporary, value)

    def record(self, stage: str) -> StageRecord | None:
        """What `stage.json` of a stage says; None where there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.stage_dir(stage) / "stage.json"
        if not path.is_file():
            return None
        try:
            return StageRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{path}: damaged ({error}); delete it to run the stage again") from error

    def write_record(self, record: StageRecord) -> None:
        """Write a stage's `stage.json`."""
        write_json(self.stage_dir(record.stage) / "stage.json", asdict(record))


def versions() -> dict[str, str]:
    """Versions that go into every `stage.json`."""
    packages = ("torch", "torchvision", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"irn_pipeline": __version__, "python": platform.python_version(), **found}
