"""Instances as one COCO JSON file, written picture by picture so that its size is bounded by the disk alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
from pycocotools import mask as rle

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.ops.masks import encode_mask
from irn_pipeline.structures import BoolArray, Instances, IntArray


class CocoWriter:
    """A COCO JSON file of instance masks (https://cocodataset.org/#format-data), open for writing.

    Masks are run-length encoded by pycocotools, or polygons; beyond the format, every annotation has a `score`. The
    file is complete when the block ends; one left by an error is not, so write to a temporary path.

    Attributes:
        num_annotations: instances written so far.
        num_empty: instances left out because their mask has no pixel, for which COCO has no box.

    Example:
        >>> import tempfile
        >>> masks = np.array([[[True, True], [False, False]]])
        >>> found = Instances(np.ones(1, np.float32), masks, np.zeros(1, np.int64))
        >>> path = Path(tempfile.mkdtemp()) / "instances.json"
        >>> with CocoWriter(path, ["dog"]) as coco:
        ...     coco.add("a.jpg", (2, 2), found)
        >>> json.loads(path.read_text())["annotations"][0]["bbox"]
        [0.0, 0.0, 2.0, 1.0]
    """

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        description: str = "",
        polygons: bool = False,
    ) -> None:
        """Describe the file, which `with` opens.

        Args:
            path: the JSON file, replaced if it is there.
            class_names: the C foreground classes.
            category_ids: COCO's id of each class; by default 1..C.
            description: what `info` says.
            polygons: write masks as `mask_polygons` instead of run lengths.

        Raises:
            ConfigError: there are not as many ids as names, or an id is repeated or below 0.
        """
        ids = list(range(1, len(class_names) + 1)) if category_ids is None else [int(i) for i in category_ids]
        if len(ids) != len(class_names):
            raise ConfigError(f"{len(class_names)} classes need as many COCO category ids, got {len(ids)}")
        if len(set(ids)) != len(ids) or min(ids, default=0) < 0:
            raise ConfigError(f"COCO category ids must differ and be at least 0, got {ids}")
        self._path, self._names, self._ids = path, tuple(class_names), ids
        self._description, self._polygons = description, polygons
        self._images: dict[str, str] = {}
        self._image_ids: set[int | str] = set()
        self._stream: TextIO | None = None
        self.num_annotations = 0
        self.num_empty = 0

    @property
    def num_images(self) -> int:
        """Pictures written so far."""
        return len(self._images)

    def __enter__(self) -> CocoWriter:
        """Open the file."""
        self._stream = self._path.open("w", encoding="ascii")
        categories = [
            {"id": category_id, "name": name, "supercategory": ""}
            for category_id, name in zip(self._ids, self._names, strict=True)
        ]
        info = {"description": self._description}
        self._stream.write(
            f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": {json.dumps(categories)},\n'
            '"annotations": ['
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file, unless the block failed, and close it."""
        assert self._stream is not None
        with self._stream as stream:
            if kind is None:
                stream.write('\n],\n"images": [\n' + ",\n".join(self._images.values()) + "\n]}\n")
        self._stream = None

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        instances: Instances,
        image_id: int | str | None = None,
    ) -> None:
        """Write one picture and its instances; a picture that is refused leaves no trace.

        Args:
            file_name: path below the folder of pictures, with forward slashes.
            size: (H, W) of the picture in pixels.
            instances: (R, H, W) masks; R may be 0.
            image_id: COCO's id of the picture; by default its number, from 1.

        Raises:
            ShapeError: the masks are not of the picture's size.
            DataError: the picture or its id was added before, a class id is outside 0..C-1, or a score is no number.
        """
        if self._stream is None:
            raise RuntimeError("CocoWriter.add works inside `with CocoWriter(...) as writer:` only")
        image_id = self.num_images + 1 if image_id is None else image_id
        self._check(file_name, size, instances, image_id)
        self._image_ids.add(image_id)
        self._images[file_name] = json.dumps(
            {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
        )
        for mask, class_id, score in zip(instances.masks, instances.class_ids, instances.scores, strict=True):
            if not mask.any():
                self.num_empty += 1
                continue
            self._stream.write(",\n" if self.num_annotations else "\n")
            self.num_annotations += 1
            annotation = {
                "id": self.num_annotations,
                "image_id": image_id,
                "category_id": self._ids[int(class_id)],
                **_shape(mask, polygons=self._polygons),
                "iscrowd": 0,
                "score": float(score),
            }
            self._stream.write(json.dumps(annotation))

    def _check(
        self, file_name: str, size: tuple[int, int], instances: Instances, image_id: int | str
    ) -> None:
        if file_name in self._images:
            raise DataError(
                f"{file_name}: is already in {self._path.name}; every image needs its own file name"
            )
        if image_id in self._image_ids:
            raise DataError(f"{file_name}: another image of {self._path.name} has its id {image_id} too")
        if len(instances) and instances.size != size:
            raise ShapeError(
                f"{file_name}: has {size[0]}x{size[1]} pixels, but its masks {instances.size[0]}x"
                f"{instances.size[1]}; make them again from this image"
            )
        for class_id in instances.class_ids[
            (instances.class_ids < 0) | (instances.class_ids >= len(self._names))
        ]:
            raise DataError(
                f"{file_name}: an instance has the class id {class_id}, but the {len(self._names)} class "
                f"names are numbered from 0; give the class names that the masks were made with"
            )
        for score in instances.scores[~np.isfinite(instances.scores)]:
            raise DataError(f"{file_name}: an instance has the score {score}; make its masks again")


def mask_polygons(mask: BoolArray) -> list[list[int]]:
    """Outlines of a mask along the edges of its pixels, as COCO's polygons.

    pycocotools makes the same mask of them, pixel by pixel. A polygon cannot have a hole: a mask with one is cut
    into parts through the hole, which touch at the cut.

    Args:
        mask: (H, W) bool.

    Returns:
        Polygons x, y, x, y, ... in pixels, of four corners or more; none for an empty mask.

    Example:
        >>> mask_polygons(np.array([[True, True], [False, False]]))
        [[0, 0, 0, 1, 2, 1, 2, 0]]
    """
    return [outline.ravel().tolist() for outline in _outlines(mask)]


def _outlines(mask: BoolArray) -> list[IntArray]:
    """(N, 2) x, y of each outline; masks with holes are cut."""
    # OpenCV goes through the centres of pixels. Each pixel becomes four, so that each has edges of its own:
    # from 2 x and 2 x + 1, the centres along the left and the right edge, follow the edges x and x + 1.
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [_corners((contour[:, 0].astype(np.int64) + 1) // 2) for contour in found]
    holes = [
        outline[:, 0]
        for outline, links in zip(outlines, tree[0] if found else (), strict=True)
        if links[3] >= 0
    ]
    if not holes:
        return outlines
    # Through the middle one, so that few cuts open many holes.
    cuts = sorted(int(columns.min() + columns.max()) // 2 for columns in holes)
    cut = cuts[len(cuts) // 2]
    return _outlines(mask[:, :cut]) + [outline + np.array([cut, 0]) for outline in _outlines(mask[:, cut:])]


def _corners(points: IntArray) -> IntArray:
    """The points of a closed outline at which it turns."""
    points = points[(points != np.roll(points, 1, 0)).any(1)]
    steps = np.roll(points, -1, 0) - points
    return points[(steps != np.roll(steps, 1, 0)).any(1)]


def _shape(mask: BoolArray, *, polygons: bool) -> dict[str, Any]:
    encoded = encode_mask(mask)
    run_lengths = {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
    return {
        "segmentation": mask_polygons(mask) if polygons else run_lengths,
        "bbox": [float(edge) for edge in rle.toBbox(encoded)],
        "area": int(rle.area(encoded)),
    }
