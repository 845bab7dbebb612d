"""Where a stage finds its activation maps: stage make_cam's, or the folder of another project's CAM files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irn_pipeline.artifacts import CAM, SEMANTIC_LABEL, read_label
from irn_pipeline.cam_files import cam_of_label, read_cam_file
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.stage import Files, Job, Produced
from irn_pipeline.engine.store import Artifact, RunFolder, require_same_classes
from irn_pipeline.errors import ArtifactError, DataError
from irn_pipeline.files.regular import Place
from irn_pipeline.older_runs import read_converted, rotation_hint
from irn_pipeline.structures import Cam, ImageRecord


@dataclass(frozen=True)
class CamSource:
    """The activation maps of a job; travels to worker processes.

    Attributes:
        run: run folder, whose maps are taken where `folder` is None.
        folder: another project's CAM files.
        class_names: the data set's foreground classes.
        leading_names: of the data set, for maps of older versions.
        semantic: the folder holds class masks, ID.png, instead of maps.
    """

    run: RunFolder
    folder: Path | None
    class_names: tuple[str, ...]
    leading_names: int = 0
    semantic: bool = False

    @staticmethod
    def of(job: Job[Any, DataSet]) -> CamSource:
        """Those that a job's `cam_dir` or `semantic_dir` names."""
        masks = getattr(job.params, "semantic_dir", None)
        if masks is not None:
            return replace(CamSource.of_folder(job, masks), semantic=True)
        return CamSource.of_folder(job, job.params.cam_dir)

    @staticmethod
    def of_folder(job: Job[Any, DataSet], folder: str | None) -> CamSource:
        """Another project's or another run's, or the run folder's where none is given.

        Raises:
            ArtifactError: they are those of a run folder with other classes, or in another order.
        """
        place, names = None if folder is None else Path(folder), job.data.images.class_names
        stage = job.run.stage_dir(CAM.stage) if place is None else place.absolute().parent
        if place is None or place.absolute().name in (CAM.name, SEMANTIC_LABEL.name):
            require_same_classes(RunFolder(stage.parent), names, job.data.origin, stage.name)
        return CamSource(job.run, place, names, job.data.leading_names)

    def absolute(self) -> CamSource:
        """The same maps for processes with other working folders."""
        folder = None if self.folder is None else self.folder.absolute()
        return replace(self, run=RunFolder(self.run.root.absolute()), folder=folder)

    def path(self, image_id: str) -> Place:
        """Where the maps of a picture lie."""
        if self.folder is None:
            return self.run.place(CAM, image_id)
        return self._file(image_id)

    def has(self, image_id: str) -> bool:
        """Whether there are maps of a picture."""
        return self.run.has(CAM, image_id) if self.folder is None else self._file(image_id).is_file()

    def _file(self, image_id: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{image_id}{SEMANTIC_LABEL.suffix if self.semantic else CAM.suffix}"

    def read(
        self, record: ImageRecord, size: tuple[int, int], path: Place | None = None
    ) -> tuple[Cam, str | None]:
        """The maps of a picture of `size` (H, W), and for another project's the format they were recognised as.

        Args:
            record: the picture.
            size: (H, W) in pixels.
            path: where its maps lie, if that is known: a worker process need not look into the shards.

        Raises:
            ArtifactError: they are missing or damaged, of a picture of another size, or of classes that the data
                set does not have.
        """
        path = path or self.path(record.image_id)
        if self.folder is None:
            cam, name = read_converted(self.run, CAM, record, self.leading_names, path), None
        elif self.semantic:
            cam, name = cam_of_label(read_label(path)), "class mask"
        else:
            cam, name = read_cam_file(path, size)
        if cam.size != size:
            raise ArtifactError(
                f"{path}: is for a {cam.size[0]}x{cam.size[1]} image, but {record.path} is {size[0]}x{size[1]}"
                f"{rotation_hint(record)}; make the CAMs of this data set again"
            )
        largest = int(max(cam.class_ids, default=-1))
        if largest >= len(self.class_names):
            raise ArtifactError(
                f"{path}: holds maps of class {largest}, counted from 0, but the data set has "
                f"{len(self.class_names)} classes ({', '.join(self.class_names[:3])} ...); "
                "use the data set that the maps were made from"
            )
        # Most often a sign that the other project orders or counts its classes otherwise.
        if name is not None and not set(cam.class_ids.tolist()) <= set(record.class_ids):
            name += ", of classes that the tags do not name"
        return cam, name

    def files(self, job: Job[Any, DataSet]) -> Files:
        """The files of the data set's pictures in another project's folder."""
        assert self.folder is not None
        return Files(self.folder, {item.image_id: self._file(item.image_id) for item in job.data.items})

    def split(self, records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], Iterator[Produced]]:
        """The pictures to work on, and the skips of those that another project's folder does not cover."""
        if self.folder is None:
            return list(records), iter(())
        there = [record for record in records if self.has(record.image_id)]
        kept = {record.image_id for record in there}
        absent = [record for record in records if record.image_id not in kept]
        return there, (
            Produced(r.image_id, problem=f"{self.path(r.image_id)}: no such file", common=True)
            for r in absent
        )


def cams_not_read(params: Any) -> tuple[Artifact[Any], ...]:
    """The maps of make_cam, where the parameters (`cam_dir`, or also `semantic_dir`) name other ones.

    Raises:
        DataError: the folder they name holds no CAM file.
    """
    masks = getattr(params, "semantic_dir", None)
    if masks is not None:
        require_files("--semantic-dir", masks, SEMANTIC_LABEL.suffix)
    elif params.cam_dir is not None:
        require_files("--cam-dir", params.cam_dir)
    else:
        return ()
    return (CAM,)


def cam_files(job: Job[Any, DataSet], *folders: str) -> tuple[Files, ...]:
    """The files of the data set's pictures in folders of other projects' maps."""
    return tuple(CamSource.of_folder(job, folder).files(job) for folder in folders)


def cam_dir_files(job: Job[Any, DataSet]) -> Mapping[str, tuple[Files, ...]]:
    """Those that a job's `cam_dir` or `semantic_dir` names."""
    source = CamSource.of(job)
    if source.folder is None:
        return {}
    return {"semantic_dir" if source.semantic else "cam_dir": (source.files(job),)}


def require_files(flag: str, name: str, suffix: str = CAM.suffix) -> None:
    """Refuse a folder that holds no file ID.npy, or of another suffix.

    Raises:
        DataError: it holds none; `flag` is how it was named.
    """
    folder = Path(name)
    if next(folder.rglob(f"*{suffix}"), None) is None:
        problem = f"holds no {suffix} file" if folder.is_dir() else "no such folder"
        shards = next(folder.rglob("*.tar"), None)
        remedy = (
            "give the folder that" if shards is None else f"unpack {shards.parent}/*.tar to a folder that"
        )
        raise DataError(f"{flag} {folder}: {problem}; {remedy} holds one file ID{suffix} per image")
