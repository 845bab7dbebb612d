"""Read the activation maps of this package, of the original, and of the projects that followed it.

Each is a pickled dictionary in a `.npy` file; nothing in it is run. The formats:

| format | `keys` | `cam` | `high_res` |
|---|---|---|---|
| irn (AdvCAM, RIB, ReCAM and ours) | (K,) classes from 0 | (K, h, w) at stride 4 | (K, H, W) |
| AMN | (K,) | background first, (K + 1, h, w) | (K, H, W), or background first, (K + 1, H, W) |
| CLIP-ES | (K,) | none | none; `attn_highres` (K, H, W) instead |
| RIB without class | (0,) | none | none |
| SEAM, MCTformer | none: the dictionary is {class from 0: (H, W) map} | none | the maps |
| ours, compact | (K,) | (K, h, w) | none; `scales`, `size` and `whole` of `structures.CompactCam` |

Arrays may be NumPy's or torch tensors, of 16 or more bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ArtifactError, ShapeError
from irn_pipeline.files.npy import load_pickled_npy
from irn_pipeline.files.regular import Place
from irn_pipeline.structures import (
    BACKGROUND,
    IGNORE,
    Cam,
    CompactCam,
    FloatArray,
    IntArray,
    LabelArray,
    strided_size,
)

_EXPECTED = (
    "expected 'keys' with 'high_res' and 'cam' (irn, AdvCAM, RIB, ReCAM, AMN) or with 'attn_highres' (CLIP-ES), or "
    "{class: map} (SEAM, MCTformer)"
)
_BY_CLASS = "SEAM, MCTformer"
_REMEDY = "make it again (stage make_cam, or the project it comes from)"
_LOWEST, _HIGHEST = -1.0, 2.0
"""Maps are in [0, 1], but resizing overshoots a little; maps beyond these bounds were never normalised."""


def read_cam_file(path: Place, size: tuple[int, int] | None = None) -> tuple[Cam, str]:
    """Read a CAM file of any known format.

    Where there is no `cam`, it is the full-size map resized to the grid of stride 4 (bilinear, not aligned to the
    corners, not normalised again). A background channel is dropped. Values below 0 become 0.

    Args:
        path: the file.
        size: (H, W) of the picture in pixels, for files that hold no map because the picture has no class.

    Returns:
        The maps in float32, and the name of the format: "irn", "compact", "AMN", "CLIP-ES", "RIB without class" or
        "SEAM, MCTformer", followed by "float16" and "cam derived" in parentheses where they apply.

    Raises:
        ArtifactError: the file is damaged or hostile, of no known format, or its arrays do not fit one another.
    """
    content = load_pickled_npy(path)
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path}: {_EXPECTED}, in a dictionary; found {type(content).__name__}")
    by_class = all(isinstance(key, int | np.integer) and not isinstance(key, bool) for key in content)
    if "keys" not in content and not by_class:
        raise ArtifactError(f"{path}: has no 'keys'; {_EXPECTED}; found {_names(content)}")
    try:
        if by_class:
            return _of_classes(path, content, size)
        if "scales" in content:
            return _compact(content), "compact"
        class_ids = _class_ids(content["keys"])
        if not len(class_ids) and not {"cam", "high_res", "attn_highres"} & content.keys():
            return _no_class(path, size), "RIB without class"
        return _with_maps(path, content, class_ids)
    except KeyError as error:
        raise ArtifactError(f"{path}: has 'scales', but no {error}; {_REMEDY}") from error
    except (ShapeError, ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path}: {error}; {_REMEDY}") from error


def cam_of_label(label: LabelArray) -> Cam:
    """A semantic label as maps: 1 inside each class, 0 outside; unknown pixels (255) count as background.

    Args:
        label: (H, W) uint8, 0 background, class_id + 1, 255 unknown.
    """
    values = np.unique(label[(label != BACKGROUND) & (label != IGNORE)]).astype(np.int64)
    high_res = (label == values[:, None, None]).astype(np.float32)
    cam = _at_stride(high_res) if len(values) else np.zeros((0, *strided_size(label.shape)), np.float32)
    return Cam(values - 1, cam, high_res)


def _with_maps(path: Place, content: Mapping[str, Any], class_ids: IntArray) -> tuple[Cam, str]:
    source = next((name for name in ("high_res", "attn_highres") if name in content), None)
    if source is None:
        raise ArtifactError(
            f"{path}: has no 'high_res' and no 'attn_highres'; {_EXPECTED}; found {_names(content)}"
        )
    kind = "irn" if source == "high_res" else "CLIP-ES"
    given = {name: _array(name, content[name]) for name in (source, "cam") if name in content}
    for name, maps in given.items():
        if len(maps) == len(class_ids) + 1:
            given[name], kind = maps[1:], "AMN"
    high_res = _maps(source, given[source])
    cam = _maps("cam", given["cam"]) if "cam" in given else _at_stride(high_res)
    remarks = [
        *(["float16"] if any(maps.dtype == np.float16 for maps in given.values()) else []),
        *([] if "cam" in given else ["cam derived"]),
    ]
    return Cam(class_ids, cam, high_res), f"{kind} ({', '.join(remarks)})" if remarks else kind


def _of_classes(path: Place, content: Mapping[Any, Any], size: tuple[int, int] | None) -> tuple[Cam, str]:
    """Maps of SEAM and MCTformer; an empty dictionary is a picture without class."""
    if not content:
        return _no_class(path, size), f"{_BY_CLASS} without class"
    class_ids = _class_ids(sorted(content))
    given = [_array(f"class {key}", content[key]) for key in class_ids.tolist()]
    for key, single in zip(class_ids.tolist(), given, strict=True):
        if single.ndim != 2 or single.shape != given[0].shape:
            raise ShapeError(
                f"every class must have one (H, W) map, as in SEAM's and MCTformer's files; class {key} has "
                f"{single.shape}, class {class_ids[0]} {given[0].shape}"
            )
    high_res = _maps("map", np.stack(given))
    half = "float16, " if any(single.dtype == np.float16 for single in given) else ""
    return Cam(class_ids, _at_stride(high_res), high_res), f"{_BY_CLASS} ({half}cam derived)"


def _compact(content: Mapping[Any, Any]) -> Cam:
    """Our own maps without the full-size ones: these are made as stage make_cam would have made them."""
    height, width = (int(side) for side in content["size"])
    found = CompactCam(
        _class_ids(content["keys"]),
        _maps("cam", _array("cam", content["cam"])),
        tuple(np.ascontiguousarray(_array("scales", one), np.float32) for one in content["scales"]),
        (height, width),
        bool(content["whole"]),
    )
    if min(found.size) < 1:
        raise ShapeError(f"a picture of {height}x{width} pixels has no map")
    # Not above: with them come SciPy and torch, and every command imports this module.
    import torch

    from irn_pipeline.ops.cam import full_size_cam

    # No larger than 16 times the file: its `cam` fits its `size`.
    maps = [torch.tensor(one) for one in found.scales]
    return Cam(
        found.class_ids,
        found.cam,
        _maps("scales", full_size_cam(maps, found.size, whole=found.whole).numpy()),
    )


def _no_class(path: Place, size: tuple[int, int] | None) -> Cam:
    if size is None:
        raise ArtifactError(
            f"{path}: holds no classes and no maps, so the size of its image is unknown; "
            "give the stage the folder as --cam-dir"
        )
    return Cam(
        np.zeros(0, np.int64),
        np.zeros((0, *strided_size(size)), np.float32),
        np.zeros((0, *size), np.float32),
    )


def _class_ids(value: object) -> IntArray:
    keys = _array("keys", value)
    found = keys.astype(np.int64)
    if keys.ndim != 1 or not np.array_equal(found, keys) or len(np.unique(found)) != len(found):
        raise ShapeError(f"'keys' must be (K,) classes, whole numbers, each once; found {keys.tolist()}")
    if len(found) and found.min() < 0:
        raise ShapeError(f"'keys' counts classes from 0; found {found.min()}")
    return found


def _array(name: str, value: object) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise ShapeError(
            f"'{name}' must be an array of numbers, found {array.dtype} of the shape {array.shape}"
        )
    return array


def _maps(name: str, array: npt.NDArray[Any]) -> FloatArray:
    maps = np.ascontiguousarray(array, np.float32)
    if not maps.size:
        return maps
    lowest, highest = float(maps.min()), float(maps.max())
    # NaN fails every comparison.
    if not (lowest >= _LOWEST and highest <= _HIGHEST):
        raise ShapeError(
            f"'{name}' must hold maps in [0, 1], each class divided by its maximum; found {lowest:g} to {highest:g}"
        )
    return np.maximum(maps, 0.0) if lowest < 0 else maps


def _at_stride(high_res: FloatArray) -> FloatArray:
    if high_res.ndim != 3 or not min(high_res.shape[1:]):
        raise ShapeError(f"full-size maps must be (K, H, W), found {high_res.shape}")
    grid = strided_size((high_res.shape[1], high_res.shape[2]))
    if not len(high_res):
        return np.zeros((0, *grid), np.float32)
    import torch
    from torch.nn.functional import interpolate

    # A view of a read-only array would make torch warn.
    resized = interpolate(torch.tensor(high_res)[None], grid, mode="bilinear", align_corners=False)
    return resized[0].numpy()


def _names(content: Mapping[Any, Any]) -> str:
    names = [str(name)[:40] for name in content]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"
