"""The pictures of the report: what is shown of each, and how good or suspicious its labels are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, IR_LABEL, IRN_NETWORK, SEMANTIC_LABEL
from irn_pipeline.datasets.pixels import read_pixels, read_rgb
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import IrnError
from irn_pipeline.export.report_pictures import Panel, PanelMaker
from irn_pipeline.export.report_records import Picture, Quality, Sign
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.older_runs import read_converted
from irn_pipeline.ops.instance_map import instance_map
from irn_pipeline.ops.label_params import SynthesisParams
from irn_pipeline.structures import GroundTruth, ImageRecord, LabelArray
from irn_pipeline.trained_networks import irn_fields, load_irn, padding

if TYPE_CHECKING:
    from irn_pipeline.nn.irn_network import IrnNetwork

logger = logging.getLogger(__name__)
T = TypeVar("T")
_OBJECT = 0.25
"""Value of a map from which the walk takes a pixel for an object, unless told otherwise."""


@dataclass(frozen=True)
class GalleryOptions:
    """What is shown and what counts as suspicious; the fields are those of the report's parameters."""

    thumbnail: int = 256
    fields: bool = True
    covering: float = 0.9
    many_fragments: int = 10


@dataclass(frozen=True)
class _Drawn:
    """Panels of one picture that need no network; boundary and displacement belong between the two lists."""

    record: ImageRecord
    image: LabelArray | None
    seeds: tuple[Panel, ...]
    labels: tuple[Panel, ...]
    aspect: float
    spread: float | None
    signs: tuple[Sign, ...]


@dataclass(frozen=True)
class Gallery:
    """Reads and draws pictures of a run; what is damaged is left out, with a warning.

    Attributes:
        run: the run folder.
        data: the data set; without items there are no photographs and no truth.
        execution: device and workers.
        class_names: foreground classes, in order.
        options: what is shown.
    """

    run: RunFolder
    data: DataSet
    execution: Execution
    class_names: tuple[str, ...]
    options: GalleryOptions

    def qualities(self, items: Sequence[ImageRecord]) -> list[Quality]:
        """How good each picture's labels are, in order."""
        found = prefetch(self._quality, items, self.execution.worker_count)
        return list(progress(found, "report: labels", total=len(items), quiet=self.execution.quiet))

    def pictures(self, items: Sequence[ImageRecord], qualities: Sequence[Quality]) -> Iterator[Picture]:
        """Each picture with its panels, in order; its quality with what its map says."""
        drawn = prefetch(self._draw, items, self.execution.worker_count)
        bar = progress(drawn, "report: images", total=len(items), quiet=self.execution.quiet)
        for one, quality in zip(bar, qualities, strict=True):
            fields = _attempt(one.record, partial(self._fields, one.record, one.image)) or ()
            yield Picture(
                one.record.image_id,
                tuple(map(self._name, one.record.class_ids)),
                (*one.seeds, *fields, *one.labels),
                one.aspect,
                replace(quality, spread=one.spread, signs=(*quality.signs, *one.signs)),
            )

    @cached_property
    def _maker(self) -> PanelMaker:
        return PanelMaker(self.options.thumbnail)

    @cached_property
    def _side_of(self) -> Callable[[tuple[int, int]], int]:
        record = self.run.record(SEMANTIC_LABEL.stage)
        # Labels of a version that did not know the parameter were made without padding.
        return padding(self.run, None if record is None else record.params.get("pad_to", 0))

    @cached_property
    def _network(self) -> IrnNetwork | None:
        if not self.options.fields or not self.run.has(IRN_NETWORK):
            return None
        return load_irn(self.run, self.execution)

    def _fields(self, record: ImageRecord, image: LabelArray | None) -> tuple[Panel, ...]:
        if image is None or self._network is None:
            return ()
        import torch

        from irn_pipeline.datasets.transforms import to_tensor

        made = self.run.record(SEMANTIC_LABEL.stage)
        params = {} if made is None else made.params
        defaults = SynthesisParams()
        with torch.inference_mode(), self.execution.autocast():
            seen = image if record.scale is None else read_pixels(record)
            found = irn_fields(self._network, to_tensor(seen), self._side_of, params.get("tile"))
        boundary, displacement = (field.cpu().numpy() for field in found[:2])
        groups = instance_map(
            displacement,
            threshold=params.get("center_threshold", defaults.center_threshold),
            iterations=params.get("centroid_iterations", defaults.centroid_iterations),
        )
        maker = self._maker
        return maker.boundary(boundary), maker.displacement(displacement), maker.ids(groups)

    def _draw(self, record: ImageRecord) -> _Drawn:
        maker, attempt = self._maker, partial(_attempt, record)
        image = attempt(lambda: read_rgb(record)) if self.data.items else None
        cam = attempt(lambda: self._read(CAM, record))
        confident = attempt(lambda: self._read(IR_LABEL, record))
        instances = attempt(lambda: self._read(INSTANCE_LABEL, record))
        label = attempt(lambda: self._read(SEMANTIC_LABEL, record))
        truth = attempt(lambda: self._truth(record))
        seeds, labels, signs, spread = [], [], [], None
        if image is not None:
            seeds.append(maker.photo(image))
        if cam is not None:
            names = [self._name(class_id) for class_id in cam.class_ids.tolist()]
            seeds.append(maker.heat(cam.high_res_cam, names=names))
            if cam.high_res_cam.size:
                values = cam.high_res_cam.max(axis=0)
                spread = float(values.std())
                share = float((values > _OBJECT).mean())
                if share > self.options.covering:
                    text = f"map covers {100 * share:.0f} %"
                    signs.append(Sign("the map covers nearly everything", text))
        if confident is not None:
            seeds.append(maker.label(confident, "confident label", over=False))
        if instances is not None:
            labels.append(maker.masks(instances.without_fragments(), "instance labels"))
        if label is not None:
            labels.append(maker.label(label, "semantic labels"))
        if truth is not None and truth.has_instances:
            labels.append(maker.masks(truth.instances, "ground-truth instances", truth.ignore))
        if truth is not None:
            labels.append(maker.label(truth.label, "ground-truth labels"))
        sizes = [a.shape[:2] for a in (image, confident, label) if a is not None]
        sizes += [one.size for one in (cam, instances) if one is not None]
        height, width = sizes[0] if sizes else (1, 1)
        aspect = width / max(height, 1)
        return _Drawn(record, image, tuple(seeds), tuple(labels), aspect, spread, tuple(signs))

    def _quality(self, record: ImageRecord) -> Quality:
        truth = _attempt(record, lambda: self._truth(record))
        label = _attempt(record, lambda: self._read(SEMANTIC_LABEL, record))
        instances = _attempt(record, lambda: self._read(INSTANCE_LABEL, record))
        signs: list[Sign] = []
        quality = Quality()
        if instances is not None:
            kept = instances.without_fragments()
            fragments = len(instances) - len(kept)
            if not len(kept):
                signs.append(Sign("no instance in the label", "no instance"))
            if fragments >= self.options.many_fragments:
                kind = f"{self.options.many_fragments} fragments or more"
                signs.append(Sign(kind, f"{fragments} fragments"))
            named = zip(map(self._name, kept.class_ids.tolist()), kept.scores.tolist(), strict=True)
            score = float(kept.scores.mean()) if len(kept) else 0.0
            quality = Quality(score=score, instances=tuple(named))
        elif self._labelled:
            signs.append(Sign("no label that can be read", "no label"))
        if label is not None and label.size:
            shares = np.bincount(label.ravel(), minlength=256)[1:255] / label.size
            if shares.max() > self.options.covering:
                text = f"{self._name(int(shares.argmax()))} covers {100 * shares.max():.0f} %"
                kind = f"one class covers more than {100 * self.options.covering:.0f} %"
                signs.append(Sign(kind, text))
        if label is not None and truth is not None:
            quality = replace(quality, iou=_attempt(record, lambda: self._iou(label, truth)))
        return replace(quality, signs=tuple(signs))

    @cached_property
    def _labelled(self) -> bool:
        """Whether the stage that makes labels has finished."""
        record = self.run.record(SEMANTIC_LABEL.stage)
        return record is not None and record.complete

    def _iou(self, label: LabelArray, truth: GroundTruth) -> float | None:
        miou = semantic_scores(confusion_matrix(label, truth.label, len(self.class_names) + 1)).miou
        return None if np.isnan(miou) else miou

    def _name(self, class_id: int) -> str:
        return self.class_names[class_id] if class_id < len(self.class_names) else f"class {class_id}"

    def _truth(self, record: ImageRecord) -> GroundTruth | None:
        return self.data.ground_truth(record.image_id) if self.data.items else None

    def _read(self, artifact: Artifact[T], record: ImageRecord) -> T | None:
        if not self.run.has(artifact, record.image_id):
            return None
        return read_converted(self.run, artifact, record, self.data.leading_names)


def _attempt(record: ImageRecord, work: Callable[[], T]) -> T | None:
    try:
        return work()
    except IrnError as error:
        logger.warning("%s: not shown: %s", record.image_id, error)
        return None
