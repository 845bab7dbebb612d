"""Catalogue of the run folder: each artifact's name, the stage that writes it, its structure and its file format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.engine.store import Artifact
from irn_pipeline.errors import ArtifactError, CheckpointError, ConfigError, ShapeError, require_memory
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.npy import load_pickled_npy
from irn_pipeline.files.regular import Place, open_regular, regular_bytes
from irn_pipeline.files.shards import Draft
from irn_pipeline.files.text import plain_line
from irn_pipeline.files.torch_file import load_torch
from irn_pipeline.structures import MAX_PIXELS, Cam, CompactCam, Instances, LabelArray
from irn_pipeline.walked_scores import WalkedScores, read_walked_scores, write_walked_scores

if TYPE_CHECKING:  # imported when it is used: every declaration of a stage imports this module
    from torch import Tensor, nn

N = TypeVar("N", bound="nn.Module")
_GREY_8 = b"\x08\x00"
"""Bits of a sample, and colours, in a PNG's header."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network.

    Attributes:
        kind: "cam", "irn" or the name of a segmenter.
        backbone: name of its ResNet.
        class_names: foreground classes it knows, in order; empty where it knows none.
        state: its state dict.
        category_ids: COCO category id of each class; empty where the file does not say.
        made_from: fingerprint of the stage that it is a half-way result of; empty for others.
    """

    kind: str
    backbone: str
    class_names: tuple[str, ...]
    state: dict[str, Tensor]
    category_ids: tuple[int, ...] = ()
    made_from: str = ""


def _as_array(value: object) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"an array of numbers is needed, found {array.dtype} of the shape {array.shape}")
    return array


def _read_dict(path: Place, keys: tuple[str, ...]) -> dict[Any, Any]:
    content = load_pickled_npy(path)
    if not isinstance(content, dict):
        raise ArtifactError(
            f"{path}: expected a dictionary with {', '.join(keys)}; found {type(content).__name__}"
        )
    missing = [key for key in keys if key not in content]
    if missing:
        raise ArtifactError(
            f"{path}: has no '{missing[0]}'; expected {', '.join(keys)}, found {', '.join(map(str, content))[:200]}"
        )
    return content


def read_cam(path: Place) -> Cam:
    """Read a CAM file of any format that `cam_files` knows, this package's two among them.

    Raises:
        ArtifactError: it is damaged, hostile, or its maps do not fit one another.
    """
    return read_cam_file(path)[0]


def write_cam(path: Path | Draft, cam: Cam | CompactCam) -> None:
    """Write a CAM file: in the original's format, or without the full-size maps and with what they are made from."""
    content = {"keys": cam.class_ids, "cam": cam.cam}
    if isinstance(cam, Cam):
        _save_dict(path, {**content, "high_res": cam.high_res_cam})
    else:
        _save_dict(path, {**content, "scales": list(cam.scales), "size": cam.size, "whole": cam.whole})


def read_instances(path: Place) -> Instances:
    """Read instance labels: {"score", "mask", "class"}.

    Raises:
        ArtifactError: the file is damaged, hostile, or its arrays do not fit one another.
    """
    content = _read_dict(path, ("score", "mask", "class"))
    try:
        return Instances(
            _as_array(content["score"]).astype(np.float32),
            _as_array(content["mask"]).astype(np.bool_),
            _as_array(content["class"]).astype(np.int64),
        )
    except (ShapeError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: {error}; make it again with stage synthesize_labels") from error


def write_instances(path: Path | Draft, instances: Instances) -> None:
    """Write instance labels in the original's format."""
    _save_dict(path, {"score": instances.scores, "mask": instances.masks, "class": instances.class_ids})


def read_label(path: Place) -> LabelArray:
    """Read a label PNG: (H, W) uint8.

    Raises:
        ArtifactError: the file is missing, is no PNG of one 8-bit channel, or is of more than MAX_PIXELS.
    """
    try:
        data = regular_bytes(path)
        if data[24:26] != _GREY_8:
            raise ValueError("other colours, or another depth")
        # Not OpenCV: a PNG of 106 bytes, one of them wrong, keeps it busy for seconds and takes gigabytes.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            return np.array(picture, np.uint8)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise ArtifactError(
            f"{path}: expected a PNG of one 8-bit channel, of at most {MAX_PIXELS} pixels ({plain_line(str(error))}); "
            "delete it and run its stage again"
        ) from error


def write_label(path: Path | Draft, label: LabelArray) -> None:
    """Write a label as a PNG of one 8-bit channel."""
    _, data = cv2.imencode(".png", label)
    with path.open("wb") as stream:
        stream.write(data.tobytes())


def read_checkpoint(path: Place) -> Checkpoint:
    """Read a trained network; nothing the file holds is run.

    Raises:
        CheckpointError: the file is damaged or was not written by this package.
    """
    from torch import Tensor

    try:
        with open_regular(path) as stream:
            content = load_torch(stream)
        kind, backbone, names = content["kind"], content["backbone"], tuple(content["class_names"])
        state = dict(content["network"])
        if not all(isinstance(name, str) for name in (kind, backbone, *names, *state)):
            raise TypeError("a name is not a string")
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("a weight is not a tensor")
        category_ids = tuple(content.get("category_ids", ()))
        if category_ids and not (
            len(set(category_ids)) == len(names) == len(category_ids)
            and all(type(value) is int and value >= 0 for value in category_ids)
        ):
            raise TypeError("its category ids do not fit its classes")
        return Checkpoint(kind, backbone, names, state, category_ids, str(content.get("made_from", "")))
    except Exception as error:  # torch raises many types for damaged and for hostile files
        require_memory(error, path)
        raise CheckpointError(
            f"{path}: is not a checkpoint of this package ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}); train the network again"
        ) from error


def write_checkpoint(path: Path | Draft, checkpoint: Checkpoint) -> None:
    """Write a trained network as plain tensors and strings."""
    import torch

    content: dict[str, Any] = {
        "kind": checkpoint.kind, "backbone": checkpoint.backbone,
        "class_names": list(checkpoint.class_names), "network": checkpoint.state,
    }  # fmt: skip
    if checkpoint.category_ids:
        content["category_ids"] = list(checkpoint.category_ids)
    if checkpoint.made_from:
        content["made_from"] = checkpoint.made_from
    # Given a path, torch writes the file's name into the archive: equal networks would differ in bytes.
    with path.open("wb") as stream:
        torch.save(content, stream)


def restore_network(path: Path, checkpoint: Checkpoint, kind: str, build: Callable[[], N]) -> N:
    """The network that `build` makes, filled with a checkpoint's weights.

    Args:
        path: where the checkpoint was read from, for messages.
        checkpoint: the weights.
        kind: what the checkpoint must be of.
        build: makes the untrained network.

    Raises:
        CheckpointError: the weights are of another network.
    """
    remedy = "name another --run-dir, or train the network again with --overwrite"
    if checkpoint.kind != kind:
        raise CheckpointError(f"{path}: holds a network of kind '{checkpoint.kind}', not '{kind}'; {remedy}")
    try:
        network = build()
        network.load_state_dict(checkpoint.state)
    except (
        RuntimeError,
        AttributeError,
        ConfigError,
    ) as error:  # other tensors, or a backbone that there is not
        raise CheckpointError(
            f"{path}: does not hold the weights of a {checkpoint.backbone}; {remedy}"
        ) from error
    return network


def _save_dict(path: Path | Draft, content: dict[str, Any]) -> None:
    # An open file, because numpy appends ".npy" to paths that end otherwise.
    with path.open("wb") as stream:
        np.save(stream, np.array(content, dtype=object), allow_pickle=True)


def _read_json(path: Place) -> Any:
    try:
        return parse_json(regular_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged ({error}); run stage evaluate again") from error


def _write_json(path: Path | Draft, value: Any) -> None:
    with path.open("wb") as stream:
        stream.write(f"{json.dumps(value, indent=2)}\n".encode())


_network = partial(
    Artifact[Checkpoint],
    name="network",
    suffix=".pt",
    read=read_checkpoint,
    write=write_checkpoint,
    per_image=False,
)

CAM_NETWORK = _network(stage="train_cam", summary="Classifier that the CAMs come from")
CAM: Artifact[Cam] = Artifact("cam", "make_cam", ".npy", read_cam, write_cam, summary="Class activation maps")
SEED_CLASSIFIER = _network(stage="make_cam", summary="Classifier of cells, of --seeds pixels and centre")
IR_LABEL: Artifact[LabelArray] = Artifact(
    "ir_label", "mine_relations", ".png", read_label, write_label, summary="Confident labels, 255 unsure"
)
IRN_NETWORK = _network(stage="train_irn", summary="IRNet: boundary and displacement")
INSTANCE_LABEL: Artifact[Instances] = Artifact(
    "instance_label", "synthesize_labels", ".npy", read_instances, write_instances, summary="Instance masks"
)
SEMANTIC_LABEL: Artifact[LabelArray] = Artifact(
    "semantic_label", "synthesize_labels", ".png", read_label, write_label, summary="Class masks"
)
WALKED_SCORES: Artifact[WalkedScores] = Artifact(
    "scores",
    "synthesize_labels",
    ".npz",
    read_walked_scores,
    write_walked_scores,
    summary="Walked scores, to make labels again with other thresholds (--keep-scores)",
)
SEGMENTER = _network(stage="train_segmenter", summary="Model trained on the labels")
_figures = partial(
    Artifact[Any], stage="evaluate", suffix=".json", read=_read_json, write=_write_json, per_image=False
)
METRICS = _figures(name="metrics", summary="All figures")
SWEEP = _figures(name="sweep", summary="Figures over the threshold")
CAM_SWEEP = _figures(name="sweep_cam", summary="The same of the CAMs")
