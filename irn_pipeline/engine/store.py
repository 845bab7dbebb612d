"""The run folder: one folder a stage, files that are whole or absent, and a record of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from irn_pipeline import __version__
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import PART_PREFIX, atomic_path, require_own_folder, write_json
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import Member, Place, regular_bytes
from irn_pipeline.files.shards import SHARDS_NAME, Draft, Layout, ShardWriter, read_shards

T = TypeVar("T")
RECORD_NAME = "stage.json"
RESUME_NAME = "resume.pt"
_STAGE_NAME = re.compile(r"\w+(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Artifact(Generic[T]):
    """A kind of file that one stage writes and others read.

    Attributes:
        name: name of the artifact and, for one file an image, of its folder.
        stage: name of the stage that writes it.
        suffix: file ending with the dot.
        read: path -> value; raises ArtifactError. The path may be a Member of a shard (`files.regular`).
        write: path, value -> None; the path is a temporary one, or a Draft (`files.shards`), which has its `open`.
        per_image: one file an image, or one file in all.
        summary: one line for tables and messages.
    """

    name: str
    stage: str
    suffix: str
    read: Callable[[Place], T]
    write: Callable[[Path | Draft, T], None]
    per_image: bool = True
    summary: str = ""


@dataclass(frozen=True)
class StageRecord:
    """What a stage's `stage.json` says.

    `seconds` is the time of all runs that made the results, `sections` where it went. `facts` is what results depend on
    beside parameters, files and other stages (`provenance.facts_of`); the earliest versions recorded none. `data` is
    the folder or file of the data set, `class_names` its classes in the order of the numbers in files.
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
    class_names: list[str] = field(default_factory=list)


class RunFolder:
    """Paths and records below one run folder, which is made when something is written.

    Shards are looked into once, and again after `writing`; every stage begins with a new object.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._members: dict[tuple[str, str], dict[str, Member]] = {}

    def stage_dir(self, stage: str) -> Path:
        """Folder of one stage."""
        return self.root / stage

    def path(self, artifact: Artifact[Any], image_id: str | None = None) -> Path:
        """Where an artifact lies; `image_id` for those with one file an image."""
        base = self.stage_dir(artifact.stage)
        if artifact.per_image:
            return base / artifact.name / f"{image_id}{artifact.suffix}"
        return base / f"{artifact.name}{artifact.suffix}"

    def place(self, artifact: Artifact[Any], image_id: str) -> Place:
        """Where the artifact of a picture lies: in a shard if it is in one, and otherwise where `path` says."""
        return self.members(artifact).get(image_id) or self.path(artifact, image_id)

    def members(self, artifact: Artifact[Any]) -> Mapping[str, Member]:
        """The artifacts in shards by `image_id`, as this object first found them.

        Raises:
            ArtifactError: the index of a shard is damaged.
        """
        key = artifact.stage, artifact.name
        if key not in self._members:
            self._members[key] = {
                name.removesuffix(artifact.suffix): member
                for name, member in read_shards(self._shards(artifact)).items()
                if name.endswith(artifact.suffix)
            }
        return self._members[key]

    def image_ids(self, artifact: Artifact[Any]) -> set[str]:
        """The pictures that there is such an artifact of, whether the data set has them or not."""
        folder = self.stage_dir(artifact.stage) / artifact.name
        found = set(self.members(artifact))
        for place, _, names in os.walk(folder):
            found.update(
                Path(place, name).relative_to(folder).as_posix().removesuffix(artifact.suffix)
                for name in names
                if name.endswith(artifact.suffix) and not name.startswith(PART_PREFIX)
            )
        return found

    def has(self, artifact: Artifact[Any], image_id: str | None = None) -> bool:
        """Whether the artifact is there and not empty (files are written whole or not at all)."""
        if image_id is not None and image_id in self.members(artifact):
            return True
        try:
            return self.path(artifact, image_id).stat().st_size > 0
        except OSError:
            return False

    def read(self, artifact: Artifact[T], image_id: str | None = None) -> T:
        """Read an artifact.

        Raises:
            ArtifactError: it is missing (the message names the stage to run) or damaged.
        """
        return self.read_at(
            artifact, self.path(artifact) if image_id is None else self.place(artifact, image_id)
        )

    def read_at(self, artifact: Artifact[T], path: Place) -> T:
        """Read an artifact from its `place`; raises as `read` does."""
        if isinstance(path, Path) and not path.is_file():
            raise ArtifactError(f"{path}: no {artifact.name} here; run stage {artifact.stage} first")
        try:
            return artifact.read(path)
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be read ({error.strerror or error}); fix its permissions or the disk, or delete it "
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

    @contextmanager
    def writing(self, layout: Layout, series: int) -> Iterator[Callable[[Artifact[Any], Any, str], None]]:
        """A function that writes the artifacts of pictures, in one of two layouts.

        Args:
            layout: files or shards.
            series: number that no other process at work on the stage has.
        """
        if layout == "files":
            yield self.write
            return
        with ExitStack() as open_shards:
            writers: dict[str, ShardWriter] = {}
            open_shards.callback(self._members.clear)  # once they are closed

            def write(artifact: Artifact[Any], value: Any, image_id: str) -> None:
                if image_id in self.members(artifact):
                    return  # of a picture that lacked another artifact; a name must be in a shard once
                if artifact.name not in writers:
                    folder = self._shards(artifact)
                    require_own_folder(self.root, folder)
                    writers[artifact.name] = ShardWriter(folder, series)
                    open_shards.callback(writers[artifact.name].close)
                draft = Draft()
                artifact.write(draft, value)
                writers[artifact.name].add(f"{image_id}{artifact.suffix}", draft.getvalue())

            yield write

    def _shards(self, artifact: Artifact[Any]) -> Path:
        return self.stage_dir(artifact.stage) / artifact.name / SHARDS_NAME

    def record(self, stage: str) -> StageRecord | None:
        """What `stage.json` of a stage says; None where there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.stage_dir(stage) / RECORD_NAME
        if not path.is_file():
            return None
        try:
            record = StageRecord(**parse_json(regular_bytes(path)))
            for name, hint in get_type_hints(StageRecord).items():
                _check(name, getattr(record, name), hint)
            # Their records are looked for: a name must not lead out of the run folder.
            if not all(map(_STAGE_NAME.fullmatch, record.reads)):
                raise ValueError("'reads' names something that is not a stage")
        except (ValueError, TypeError, OSError) as error:
            raise ArtifactError(f"{path}: damaged ({error}); delete it to run the stage again") from error
        return record

    def folders(self) -> list[str]:
        """Names of all folders, variants' too, that hold a record, in order of the alphabet."""
        found = [*self.root.glob(f"*/{RECORD_NAME}"), *self.root.glob(f"*/*/{RECORD_NAME}")]
        names = (path.parent.relative_to(self.root).as_posix() for path in found)
        return sorted(filter(_STAGE_NAME.fullmatch, names))

    def class_names(self) -> list[str]:
        """Class names that finished stages worked with; none if there are none, or only of versions before 0.2."""
        records = filter(None, map(self.record, self.folders()))
        return next((record.class_names for record in records if record.complete and record.class_names), [])

    def write_record(self, record: StageRecord) -> None:
        """Write a stage's `stage.json`."""
        write_json(self.stage_dir(record.stage) / RECORD_NAME, asdict(record))


def require_same_classes(run: RunFolder, class_names: Sequence[str], origin: Path, *stages: str) -> None:
    """Refuse results whose class numbers mean other classes than those of the data set, or another order of them.

    Classes that the data set has behind those of the results change no number.

    Args:
        run: the run folder.
        class_names: of the data set; with none, everything goes.
        origin: of the data set, for the message.
        stages: folders of the run; those that are not there are passed over.

    Raises:
        ArtifactError: the classes differ; the message names both lists.
    """
    here = list(class_names)
    starts = [here[:count] for count in range(len(here) + 1)]
    for record in filter(None, map(run.record, stages)):
        then = record.class_names
        # Earlier versions recorded a hash at most, and 0.1 may have counted the background.
        older = record.versions.get("irn_pipeline", "0.1").startswith("0.1")
        digest = fingerprint_of(then) if then or older else record.facts.get("classes", fingerprint_of([]))
        if not here or digest in map(fingerprint_of, starts):
            continue
        made = f"the classes {', '.join(then)}" if then else "other classes, or in another order"
        order = " ".join(f'"{name}"' if " " in name else name for name in then) or "..."
        raise ArtifactError(
            f"{run.stage_dir(record.stage)}: was made with {made}, but {origin} has {', '.join(here)}; its files hold "
            "class numbers, which would be mixed up. Name the data set that it was made with; if only the order "
            f"differs, give it with --classes {order} (for a VOC folder with --class-names FILE)"
        )


def fingerprint_of(value: object) -> str:
    """A short hash of any JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of a record that its type does not allow, and numbers without an end."""
    if hint is Any:
        return
    kind = get_origin(hint) or hint
    if not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"'{name[:40]}' is no {kind.__name__}")
    if isinstance(value, int | float) and not abs(value) < 1e18:
        raise ValueError(f"'{name[:40]}' has an impossible value")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key, inner, get_args(hint)[1])
    if isinstance(value, list):
        for inner in value:
            _check(name, inner, get_args(hint)[0])


def versions() -> dict[str, str]:
    """Versions that go into every `stage.json`."""
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    return {"irn_pipeline": __version__, "python": platform.python_version(), **packages}
