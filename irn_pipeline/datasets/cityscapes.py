"""Cityscapes folders: tags and true masks from `gtFine`'s instance ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.images import read_ids
from irn_pipeline.datasets.label_cache import labels_of
from irn_pipeline.datasets.lists import some
from irn_pipeline.datasets.picture_folder import TagTable, build_set, chosen_names, restrict
from irn_pipeline.datasets.picture_scan import without_suffix
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.ops.cutouts import Cutouts, CutTruth
from irn_pipeline.structures import BACKGROUND, IGNORE, GroundTruth, IntArray

IdArray: TypeAlias = npt.NDArray[np.uint16]

CITYSCAPES_CLASSES: tuple[str, ...] = (
    *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""Names of the classes with instances, in the order of their label ids."""
_FIRST_LABEL, _LAST_LABEL = 24, 33
"""Label ids of these classes; 33 is the largest of all labels."""
_NOT_EVALUATED = ("caravan", "trailer")
_IDS_A_LABEL = 1000
_PICTURES, _MASKS = "leftImg8bit", "gtFine"
_PICTURE_END, _MASK_END = "_leftImg8bit", "_gtFine_instanceIds.png"


@dataclass(frozen=True)
class CityscapesTruths:
    """Reads true masks from `instanceIds` files, picture by picture.

    Attributes:
        masks: image id -> its file.
        class_of: label id -> class id, for the classes that are used.
    """

    masks: dict[str, Path]
    class_of: dict[int, int]

    def ground_truth(self, image_id: str) -> GroundTruth | None:
        """True masks of one picture; None where it has none.

        Regions with the id of a used class alone are groups (`cargroup`): they are `crowds`, and ignored. Everything
        else that is no instance of a used class is background, the void labels included.

        Raises:
            DataError: the file is unreadable, or a value is not an id of Cityscapes.
        """
        found = self._read(image_id)
        if found is None:
            return None
        truth, crowds = found
        return GroundTruth(truth.label, truth.objects.instances(), truth.ignore, crowds.instances())

    def cut_truth(self, image_id: str) -> CutTruth | None:
        """The same as a training reads them, without whole masks."""
        found = self._read(image_id)
        return None if found is None else found[0]

    def _read(self, image_id: str) -> tuple[CutTruth, Cutouts] | None:
        """The truth, and the groups."""
        if image_id not in self.masks:
            return None
        ids = read_ids(self.masks[image_id])
        present = _present(ids, self.masks[image_id])
        used = present[[_label_of(value) in self.class_of for value in present.tolist()]]
        single = used >= _IDS_A_LABEL
        label_of_id = np.full(2**16, BACKGROUND, np.uint8)
        label_of_id[used] = np.where(single, self._class_ids(used) + 1, IGNORE)
        label = label_of_id[ids]
        return (
            CutTruth(label, self._cutouts(ids, used[single]), label == IGNORE),
            self._cutouts(ids, used[~single]),
        )

    def _class_ids(self, values: IntArray) -> IntArray:
        return np.array([self.class_of[_label_of(value)] for value in values.tolist()], np.int64)

    def _cutouts(self, ids: IdArray, values: IntArray) -> Cutouts:
        if not len(values):
            return Cutouts.of_index(np.zeros(ids.shape, np.uint8), values)
        number_of_id = np.zeros(2**16, np.int32)
        number_of_id[values] = np.arange(1, len(values) + 1)
        return Cutouts.of_index(number_of_id[ids], self._class_ids(values))


def load_cityscapes(root: Path, image_list: str | None = None, *, classes: Sequence[str] = ()) -> DataSet:
    """Find the pictures of a Cityscapes folder and the classes that their masks show.

    The first command reads all masks of the split for this, later ones only those that have changed.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        image_list: name of a split (train, val), or a text file of image ids: paths below leftImg8bit, without
            suffix. None takes train, or all splits where there is no train.
        classes: names of classes with instances, in the order of their class ids; by default the eight that
            Cityscapes evaluates.

    Returns:
        The pictures that show a class, alone or in a group; the others as `negatives`.

    Raises:
        ConfigError: `classes` holds a name without instances in Cityscapes, or one twice.
        DataError: one of the two folders, the split or the list is missing, or a mask is damaged.
    """
    names = _choose(classes)
    splits = _splits(root)
    if image_list is not None and image_list not in splits:
        if not Path(image_list).is_file():
            raise DataError(
                f"{root / _PICTURES}: has no split {image_list!r} (there: {', '.join(splits)}), and there is no file "
                "of that name; give a split, or a text file of image ids, as --image-list"
            )
        chosen = restrict(_load(root, splits, names), image_list)
        return replace(chosen, load_list=_loader(root, names), listing=image_list)
    default = ("train",) if "train" in splits else splits
    return _load(root, default if image_list is None else (image_list,), names)


def _load(root: Path, splits: Sequence[str], names: tuple[str, ...]) -> DataSet:
    listing = root / _PICTURES / (splits[0] if len(splits) == 1 else "")
    pictures = {
        without_suffix(path.relative_to(root / _PICTURES).as_posix())
        for split in splits
        for path in (root / _PICTURES / split).glob(f"*/*{_PICTURE_END}.*")
    }
    masks = {
        path.relative_to(root / _MASKS).as_posix().removesuffix(_MASK_END) + _PICTURE_END: path
        for split in splits
        for path in sorted((root / _MASKS / split).glob(f"*/*{_MASK_END}"))
    }
    if not pictures & masks.keys():
        raise DataError(
            f"{root}: {' and '.join(splits)}: {len(pictures)} images CITY/*{_PICTURE_END}.png in {_PICTURES} and "
            f"{len(masks)} masks CITY/*{_MASK_END} in {_MASKS} do not match; unpack both archives into "
            "one folder"
        )
    warnings: list[str] = []
    if missing := sorted(pictures - masks.keys()):
        warnings.append(f"{root / _MASKS}: images left out because they have no mask: {some(missing)}")
    labels = dict(zip(masks, labels_of(root, list(masks.values()), _labels_in), strict=True))
    label_ids = [_FIRST_LABEL + CITYSCAPES_CLASSES.index(name) for name in names]
    tags = {
        image_id: {place for place, label_id in enumerate(label_ids) if label_id in found}
        for image_id, found in labels.items()
    }
    if not any(tags.values()):
        raise DataError(
            f"{listing}: none of its {len(masks)} masks shows {' or '.join(names)}; choose other --classes, or another "
            "--image-list"
        )
    data, _ = build_set(TagTable(names, tags), root, root / _PICTURES, (), warnings)
    truths = CityscapesTruths(masks, {label_id: class_id for class_id, label_id in enumerate(label_ids)})
    return replace(
        data,
        category_ids=tuple(label_ids),
        load_truth=truths.ground_truth,
        load_cut_truth=truths.cut_truth,
        load_list=_loader(root, names),
        listing=str(listing),
    )


def _loader(root: Path, names: tuple[str, ...]) -> partial[DataSet]:
    return partial(load_cityscapes, root, classes=names)


def _choose(words: Sequence[str]) -> tuple[str, ...]:
    if not words:
        return tuple(name for name in CITYSCAPES_CLASSES if name not in _NOT_EVALUATED)
    names = chosen_names(words, CITYSCAPES_CLASSES)
    for name in names:
        if name not in CITYSCAPES_CLASSES:
            raise ConfigError(
                f"--classes: Cityscapes has no instances of {name!r}; it has them of {', '.join(CITYSCAPES_CLASSES)}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"--classes: {name!r} is named twice; class names must differ")
    return tuple(names)


def _splits(root: Path) -> tuple[str, ...]:
    for half in (_PICTURES, _MASKS):
        if not (root / half).is_dir():
            raise DataError(
                f"{root}: holds no folder {half}; --cityscapes-root needs "
                f"{_PICTURES}/SPLIT/CITY/*{_PICTURE_END}.png and {_MASKS}/SPLIT/CITY/*{_MASK_END}"
            )
    found = {path.name for half in (_PICTURES, _MASKS) for path in (root / half).iterdir() if path.is_dir()}
    return tuple(sorted(found))


def _labels_in(path: Path) -> list[int]:
    """Label ids of a mask."""
    return sorted({_label_of(value) for value in _present(read_ids(path), path).tolist()})


def _label_of(value: int) -> int:
    return value // _IDS_A_LABEL if value >= _IDS_A_LABEL else value


def _present(ids: IdArray, path: Path) -> IntArray:
    """The values of a mask, sorted.

    Raises:
        DataError: one is not an id of Cityscapes.
    """
    seen = np.zeros(2**16, np.bool_)
    seen[ids] = True
    present = np.flatnonzero(seen)
    single = present >= _IDS_A_LABEL
    labels = np.where(single, present // _IDS_A_LABEL, present)
    wrong = present[(labels > _LAST_LABEL) | (single & (labels < _FIRST_LABEL))]
    if len(wrong):
        raise DataError(
            f"{path}: the value {wrong[0]} is not an id of Cityscapes; expected the label's id, 0 to {_LAST_LABEL}, or "
            f"for an object label id * {_IDS_A_LABEL} + number, {_FIRST_LABEL * _IDS_A_LABEL} to "
            f"{(_LAST_LABEL + 1) * _IDS_A_LABEL - 1}, in a grey PNG of 16 bits"
        )
    return present
