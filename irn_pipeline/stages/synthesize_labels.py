"""Stage 5: instance and semantic labels from one network pass and one random walk a picture (paper, section 5).

Other refiners can stand in the walk's place, and class masks of other projects in that of the activation maps.

With `keep_scores` the walked scores stay too, and `from_scores` makes labels from them again in the same folder, with
other thresholds and without network, pictures or walk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IRN_NETWORK, SEMANTIC_LABEL, WALKED_SCORES
from irn_pipeline.cam_source import CamSource, cam_dir_files, cams_not_read
from irn_pipeline.datasets.pixels import read_pixels, read_rgb
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.parallel import batches, prefetch, together
from irn_pipeline.engine.stage import Files, Job, MapStage, Produced, Remake
from irn_pipeline.engine.store import Artifact
from irn_pipeline.errors import ArtifactError, IrnError
from irn_pipeline.notices import covered, far_walk, no_boundaries
from irn_pipeline.older_runs import require_current
from irn_pipeline.ops.background_search import background_evidence
from irn_pipeline.ops.label_params import LabelParams, SynthesisParams
from irn_pipeline.ops.scenes import coarse_boundary, require_tile, tile_side
from irn_pipeline.refiners import REFINERS, RefinerName
from irn_pipeline.refiners.base import Picture
from irn_pipeline.structures import CAM_STRIDE, Cam, ImageRecord, grid_stride, strided_size
from irn_pipeline.trained_networks import irn_fields, load_irn, padding
from irn_pipeline.variants import bases_of, unused_by
from irn_pipeline.walked_scores import WalkedScores, kept_scores

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommonParams(SynthesisParams):
    """Parameters of all refiners, and the maps that labels start from."""

    refiner: RefinerName = field(default="walk", metadata={"fingerprint": "unless default"})
    """How to turn maps into regions: walk (published), none, pamr, features, crf, or sam (the walk, snapped to SAM
    masks)."""
    parts: Literal["displacement", "components"] = field(
        default="displacement", metadata={"fingerprint": "unless default"}
    )
    """How to split regions into objects: displacement (IRNet's, published), or components, for --refiner none: split
    them only where they do not touch, without IRNet."""
    semantic_dir: str | None = field(default=None, metadata={"fingerprint": "unless default"})
    """Folder of another project's class masks (ID.png: 0 background, 1 the first class) to split into instances."""
    pad_to: int | None = field(default=None, metadata={"fingerprint": "unless default", "before": 0})
    """Zero-pad smaller images to this side before IRNet (the original: 512); 0 disables padding. Default: pad to the
    fraction of zeros in the training crops."""
    tile: int | None = field(default=None, metadata={"fingerprint": "unless default"})
    """Cut images that are longer than this into overlapping tiles of this side, in pixels, for IRNet; 0 never cuts.
    Default: 2048 for images of 4000 pixels and more."""
    cam_dir: str | None = None
    """Folder of another project's CAM files (ID.npy), used instead of the maps of make_cam."""
    keep_scores: bool = field(default=False, metadata={"fingerprint": False})
    """Keep the walked scores for --from-scores and for sweep. They are stored as float16, which changes less than 0.1
    % of the pixels."""
    from_scores: bool = field(default=False, metadata={"fingerprint": False})
    """Rebuild the labels from kept scores with other thresholds. Replaces the labels and keeps the scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tile(self.tile)
        if self.semantic_dir is not None and self.cam_dir is not None:
            raise ValueError("semantic_dir and cam_dir both name what labels start from; give one of them")
        if self.parts == "components" and self.refiner != "none":
            raise ValueError(
                f"parts components leaves IRNet out, which refiner {self.refiner} needs; give --refiner none"
            )
        if (self.keep_scores or self.from_scores) and REFINERS[self.refiner].scores is None:
            raise ValueError(
                f"refiner {self.refiner} makes labels without scores; leave out keep_scores and from_scores"
            )


@dataclass(frozen=True)
class Params(*bases_of([refiner.params for refiner in REFINERS.values()]), CommonParams):  # type: ignore[misc]
    """Parameters of label synthesis."""


@dataclass(frozen=True)
class _Input:
    record: ImageRecord
    image: Tensor | None
    cam: Cam | None
    problem: str | None = None
    file_format: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture in pixels; of none (0, 0)."""
        return (0, 0) if self.image is None else (int(self.image.shape[-2]), int(self.image.shape[-1]))


_Fields: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
"""Boundary, displacement and features of a picture."""


def run(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    """Both labels of every pending picture."""
    return _from_scores(job, pending) if job.params.from_scores else _from_cams(job, pending)


def _from_cams(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    import torch

    from irn_pipeline.datasets.transforms import normalise, pinned, to_tensor
    from irn_pipeline.ops.labels import class_maps, labels_from_scores
    from irn_pipeline.ops.parting import parted_label

    require_current(job.run, STAGE.name, pending, job.data.leading_names)
    network = load_irn(job.run, job.execution) if _runs_network(job.params) else None
    side_of = padding(job.run, job.params.pad_to) if network is not None else None
    device, clock = job.execution.torch_device(), job.clock
    refiner = REFINERS[job.params.refiner]
    prepared = None if refiner.prepare is None else refiner.prepare(job.params, device)
    evidence_wanted = bool(job.params.bg_search) or job.params.keep_scores
    cams = CamSource.of(job)
    there, absent = cams.split(pending)
    yield from absent

    highest: list[float] = []
    shares: list[tuple[float, float]] = []

    def read(record: ImageRecord) -> _Input:
        try:
            image = pinned(to_tensor(read_pixels(record)), device)
            cam, file_format = cams.read(record, (int(image.shape[-2]), int(image.shape[-1])))
            return _Input(record, image, cam, file_format=file_format)
        except IrnError as error:
            return _Input(record, None, None, str(error))

    def fields_of(items: Sequence[_Input]) -> Sequence[_Fields | None]:
        if items[0].image is None:
            return [None] * len(items)
        if network is None or side_of is None:  # one centre everywhere
            grid = strided_size(items[0].size)
            return [(torch.zeros(grid), torch.zeros(2, *grid), torch.empty(0))] * len(items)
        images = [item.image.to(device, non_blocking=True) for item in items if item.image is not None]
        with torch.inference_mode(), job.execution.autocast():
            if tile_side(items[0].size, job.params.tile):
                return [irn_fields(network, image, side_of, job.params.tile) for image in images]
            return network.predict_many(torch.stack([*map(normalise, images)]), pad_to=side_of(items[0].size))

    def passed() -> Iterator[tuple[_Input, _Fields | None]]:
        reading = clock.waiting("read", prefetch(read, there, job.execution.worker_count))
        for items in batches(reading, lambda item: item.size, job.execution.batch):
            with clock.section("network"):
                found = together(fields_of, items)
            yield from zip(items, found, strict=True)

    for item, fields_found in passed():
        image_id, size = item.record.image_id, item.size
        if item.image is None or item.cam is None or fields_found is None:
            yield Produced(image_id, problem=item.problem)
            continue
        boundary, displacement, features = fields_found
        with clock.section("network"):
            arrays = boundary.cpu().numpy(), displacement.cpu().numpy()
        try:
            image = read_rgb(item.record) if job.data.scale else item.image.permute(1, 2, 0).numpy()
            picture = Picture(image, item.cam, *arrays, features, device)
            if refiner.label is not None:
                with clock.section(job.params.refiner):
                    label = refiner.label(picture, job.params, prepared)
                    instances = parted_label(label, item.cam, arrays[1], job.params)
                yield Produced(image_id, (instances, label), file_format=item.file_format)
                continue
            assert refiner.scores is not None
            with clock.section(job.params.refiner):
                walked, owners = refiner.scores(picture, job.params, prepared)
            with clock.section("labels"):
                evidence = None
                if evidence_wanted:
                    walls = coarse_boundary(
                        boundary, grid_stride((walked.shape[1], walked.shape[2]), size) // CAM_STRIDE
                    )
                    evidence = background_evidence(class_maps(walked, owners)[0], walls, features)
                label, instances = labels_from_scores(walked, owners, size, job.params, evidence)
        except IrnError as error:
            yield Produced(image_id, problem=f"{cams.path(image_id)}: {error}")
            continue
        highest.append(float(arrays[0].max()))
        shares.append((covered(item.cam.cam), float((label > 0).mean())))
        scores = (kept_scores(walked, owners, size, evidence),) if job.params.keep_scores else ()
        yield Produced(image_id, (instances, label, *scores), file_format=item.file_format)
    for line in (no_boundaries(highest), far_walk(shares)):
        if line is not None:
            logger.warning("%s: %s", STAGE.name, line)


def _from_scores(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    import torch

    from irn_pipeline.ops.labels import labels_from_scores

    def read(record: ImageRecord) -> WalkedScores | str:
        try:
            return job.run.read(WALKED_SCORES, record.image_id)
        except IrnError as error:
            return str(error)

    there = [record for record in pending if job.run.has(WALKED_SCORES, record.image_id)]
    absent = {record.image_id for record in pending} - {record.image_id for record in there}
    for image_id in sorted(absent):
        path = job.run.place(WALKED_SCORES, image_id)
        yield Produced(image_id, problem=f"{path}: no such file; run with --keep-scores first", common=True)
    waiting = job.clock.waiting("read", prefetch(read, there, job.execution.worker_count))
    for record, scores in zip(there, waiting, strict=True):
        if isinstance(scores, str):
            yield Produced(record.image_id, problem=scores)
            continue
        with job.clock.section("labels"):
            walked = torch.from_numpy(scores.maps).float()
            label, instances = labels_from_scores(
                walked, scores.class_ids, scores.size, job.params, scores.evidence
            )
        yield Produced(record.image_id, (instances, label))


def _require_evidence(job: Job[Params, DataSet]) -> None:
    """Refuse scores of the time before bg_search; one file tells, as one run wrote them all."""
    kept = [record.image_id for record in job.data.items if job.run.has(WALKED_SCORES, record.image_id)]
    if job.params.bg_search and kept and job.run.read(WALKED_SCORES, kept[0]).evidence is None:
        raise ArtifactError(
            f"{job.run.place(WALKED_SCORES, kept[0])}: was written by a version without --bg-search and lacks what it "
            "needs; build this stage again with --overwrite --keep-scores, without --from-scores"
        )


def _unread(params: Params) -> tuple[Artifact[Any], ...]:
    if params.from_scores:
        return (CAM, IRN_NETWORK)
    return (*cams_not_read(params), *(() if _runs_network(params) else (IRN_NETWORK,)))


def _unwritten(params: Params) -> tuple[Artifact[Any], ...]:
    return () if params.keep_scores and not params.from_scores else (WALKED_SCORES,)


def _files(job: Job[Params, DataSet]) -> Mapping[str, tuple[Files, ...]]:
    found = dict(cam_dir_files(job))
    if job.params.sam_checkpoint is not None:
        folder = Path(job.params.sam_checkpoint)
        found["sam_checkpoint"] = (Files(folder, {"": folder / "model.safetensors"}),)
    return found


def _unused(params: Params) -> Mapping[str, str]:
    refiner = REFINERS[params.refiner]
    found = unused_by([params.refiner], {name: one.params for name, one in REFINERS.items()})
    if not refiner.walks:
        found |= dict.fromkeys(
            ("beta", "exp_times", "radius"), f"--refiner {params.refiner} takes no random walk"
        )
    if refiner.label is not None:
        found["bg_search"] = f"--refiner {params.refiner} makes labels without scores"
    if params.parts == "components":
        found |= dict.fromkeys(
            ("pad_to", "center_threshold", "centroid_iterations"), "--parts components leaves IRNet out"
        )
    return found


def _runs_network(params: Params) -> bool:
    return not params.from_scores and params.parts == "displacement"


STAGE: MapStage[Params] = MapStage(
    name="synthesize_labels",
    summary="Synthesize instance and semantic labels with a random walk.",
    params=Params,
    reads=(CAM, IRN_NETWORK),
    writes=(INSTANCE_LABEL, SEMANTIC_LABEL, WALKED_SCORES),
    run=run,
    unread=_unread,
    unwritten=_unwritten,
    files=_files,
    unused=_unused,
    runs_network=_runs_network,
    remake=Remake(
        source=WALKED_SCORES,
        chosen=lambda params: params.from_scores,
        free=tuple(entry.name for entry in fields(LabelParams)),
        keep_flag="--keep-scores",
        flag="--from-scores",
        require=_require_evidence,
    ),
)
