"""Stage 3: confident labels from CRF-refined activation maps, the source of pair relations (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from irn_pipeline.artifacts import CAM, IR_LABEL
from irn_pipeline.cam_source import CamSource, cam_dir_files, cams_not_read
from irn_pipeline.datasets.pixels import read_rgb
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.parallel import parallel_map
from irn_pipeline.engine.stage import Clock, Job, MapStage, Produced
from irn_pipeline.errors import IrnError
from irn_pipeline.files.regular import Place
from irn_pipeline.older_runs import require_current
from irn_pipeline.ops.crf import CrfBackend, confident_label
from irn_pipeline.ops.crf_params import CrfParams
from irn_pipeline.ops.reference_crf import require_reference
from irn_pipeline.structures import ImageRecord


@dataclass(frozen=True)
class Params:
    """Parameters of the mining of confident labels.

    Both CRF backends give the same labels but for rare ties in the last digits of float32. So the backend is part
    of no fingerprint: pictures of a run folder may be mined by either.
    """

    fg_threshold: float = 0.30
    """Background threshold of the label that defines confident foreground (conf_fg in irn)."""
    bg_threshold: float = 0.05
    """Background threshold of the label that defines confident background (conf_bg in irn)."""
    crf_confidence: float = 0.7
    """Probability assigned to the initial label of the CRF."""
    crf_iterations: int = 10
    """Mean-field iterations of the CRF."""
    crf_gaussian_sxy: float = 3.0
    """Standard deviation of the smoothness term, in pixels."""
    crf_gaussian_compat: float = 3.0
    """Weight of the smoothness term."""
    crf_bilateral_sxy: float = 50.0
    """Standard deviation of the appearance term, in pixels."""
    crf_bilateral_srgb: float = 5.0
    """Standard deviation of the appearance term, in colour values from 0 to 255."""
    crf_bilateral_compat: float = 10.0
    """Weight of the appearance term."""
    crf_backend: CrfBackend = field(default="lattice", metadata={"fingerprint": False})
    """CRF implementation: lattice (built in, several times faster) or pydensecrf (the reference)."""
    cam_dir: str | None = None
    """Folder of another project's CAM files (ID.npy), used instead of the maps of make_cam."""

    def crf(self) -> CrfParams:
        """The CRF's own parameters."""
        return CrfParams(**{entry.name: getattr(self, f"crf_{entry.name}") for entry in fields(CrfParams)})


@dataclass(frozen=True)
class Located:
    """A picture, and where its maps lie."""

    record: ImageRecord
    maps: Place

    @property
    def image_id(self) -> str:
        """Of the picture."""
        return self.record.image_id


@dataclass(frozen=True)
class Miner:
    """Work on one picture; travels to the worker processes, which may be those of another machine.

    Attributes:
        cams: the activation maps.
        params: of the stage.
        base: folder that relative paths of pictures start from.
    """

    cams: CamSource
    params: Params
    base: Path

    def __call__(self, item: Located) -> Produced:
        """The confident label of a picture, or why there is none."""
        clock = Clock()
        record = replace(item.record, path=self.base / item.record.path)
        try:
            with clock.section("read"):
                image = read_rgb(record)
                cam, file_format = self.cams.read(record, (image.shape[0], image.shape[1]), item.maps)
            with clock.section("CRF"):
                label = confident_label(
                    image,
                    cam.high_res_cam,
                    cam.class_ids,
                    fg_threshold=self.params.fg_threshold,
                    bg_threshold=self.params.bg_threshold,
                    crf=self.params.crf(),
                    backend=self.params.crf_backend,
                )
        except IrnError as error:
            # With the paths as the user gave them, so that a problem reads as in the stages before.
            return Produced(record.image_id, problem=str(error).replace(f"{self.base}/", ""))
        return Produced(record.image_id, (label,), file_format=file_format, seconds=clock.seconds)


def run(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    """Confident labels of every pending picture, on all cores."""
    require_current(job.run, STAGE.name, pending, job.data.leading_names)
    if job.params.crf_backend == "pydensecrf":
        require_reference()  # once, and not as the problem of every picture
    cams = CamSource.of(job)
    there, absent = cams.split(pending)
    yield from absent
    if there:
        miner = Miner(cams.absolute(), job.params, Path.cwd())
        # Not by the miner's own, which travels with every picture: it must not learn of all shards.
        seen = cams.absolute()
        items = [Located(record, seen.path(record.image_id)) for record in there]
        maps = items[0].maps
        shared = (
            (maps if isinstance(maps, Path) else maps.shard).parent,
            (miner.base / there[0].path).parent,
        )
        yield from parallel_map(miner, items, job.execution, shared=shared)


STAGE: MapStage[Params] = MapStage(
    name="mine_relations",
    summary="Refine the activation maps into confident labels with a dense CRF.",
    params=Params,
    reads=(CAM,),
    writes=(IR_LABEL,),
    run=run,
    unread=cams_not_read,
    files=cam_dir_files,
)
