"""File formats of the run folder: ours, and the original's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import (
    CAM,
    INSTANCE_LABEL,
    Checkpoint,
    read_cam,
    read_checkpoint,
    read_instances,
    read_label,
    write_cam,
    write_checkpoint,
    write_instances,
    write_label,
)
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError, CheckpointError
from irn_pipeline.nn.backbone import build_backbone, load_backbone_weights, read_state_dict
from irn_pipeline.structures import Cam, Instances

SIZE = (9, 14)


@pytest.fixture
def cam() -> Cam:
    rng = np.random.default_rng(0)
    return Cam(np.array([1, 4]), rng.random((2, 3, 4), np.float32), rng.random((2, *SIZE), np.float32))


@pytest.fixture
def instances() -> Instances:
    rng = np.random.default_rng(1)
    return Instances(
        np.array([0.75, 0.0, 0.5], np.float32), rng.random((3, *SIZE)) > 0.5, np.array([4, 1, 1])
    )


def save(path: Path, content: dict[str, Any]) -> Path:
    np.save(path, content)
    return path


def test_a_cam_comes_back(tmp_path: Path, cam: Cam) -> None:
    write_cam(tmp_path / "a.npy", cam)
    found = read_cam(tmp_path / "a.npy")
    assert found.class_ids.dtype == np.int64
    assert found.cam.dtype == found.high_res_cam.dtype == np.float32
    assert np.array_equal(found.class_ids, cam.class_ids)
    assert np.array_equal(found.cam, cam.cam)
    assert np.array_equal(found.high_res_cam, cam.high_res_cam)


def test_instances_come_back(tmp_path: Path, instances: Instances) -> None:
    write_instances(tmp_path / "a.npy", instances)
    found = read_instances(tmp_path / "a.npy")
    assert np.array_equal(found.scores, instances.scores)
    assert np.array_equal(found.masks, instances.masks)
    assert np.array_equal(found.class_ids, instances.class_ids)


def test_no_instance_comes_back(tmp_path: Path) -> None:
    write_instances(tmp_path / "a.npy", Instances.empty(SIZE))
    found = read_instances(tmp_path / "a.npy")
    assert len(found) == 0
    assert found.size == SIZE


def test_the_original_s_readers_read_ours(tmp_path: Path, cam: Cam, instances: Instances) -> None:
    run = RunFolder(tmp_path)
    run.write(CAM, cam, "2007_000032")
    run.write(INSTANCE_LABEL, instances, "2007_000032")
    maps = np.load(tmp_path / "make_cam" / "cam" / "2007_000032.npy", allow_pickle=True).item()
    assert maps.keys() == {"keys", "cam", "high_res"}
    assert maps["keys"].tolist() == [1, 4]
    assert maps["high_res"].shape == (2, *SIZE)
    label_path = tmp_path / "synthesize_labels" / "instance_label" / "2007_000032.npy"
    label = np.load(label_path, allow_pickle=True).item()
    assert label.keys() == {"score", "mask", "class"}
    assert label["mask"].dtype == np.bool_
    assert label["class"].tolist() == [4, 1, 1]


def test_the_original_s_files_read_equal(tmp_path: Path, cam: Cam) -> None:
    content = {
        "keys": torch.from_numpy(cam.class_ids),
        "cam": torch.from_numpy(cam.cam),
        "high_res": cam.high_res_cam,
    }
    found = read_cam(save(tmp_path / "original.npy", content))
    assert np.array_equal(found.class_ids, cam.class_ids)
    assert np.array_equal(found.cam, cam.cam)
    assert np.array_equal(found.high_res_cam, cam.high_res_cam)


def test_half_precision_files_read_as_float32(tmp_path: Path, cam: Cam) -> None:
    content = {"keys": cam.class_ids, "cam": cam.cam.astype(np.float16), "high_res": cam.high_res_cam}
    found = read_cam(save(tmp_path / "half.npy", content))
    assert found.cam.dtype == np.float32
    assert np.allclose(found.cam, cam.cam, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.array([1, 4, 5])},
        {"keys": np.array([[1, 4]])},
        {"keys": np.array(["cat", "dog"])},
        {"cam": np.zeros((2, 4, 4), np.float32)},
        {"cam": np.zeros((3, 4), np.float32)},
        {"high_res": np.zeros((1, *SIZE), np.float32)},
        {"high_res": "text"},
        {"cam": None},
    ],
)
def test_cams_that_do_not_fit_are_named(tmp_path: Path, cam: Cam, change: dict[str, Any]) -> None:
    content = {"keys": cam.class_ids, "cam": cam.cam, "high_res": cam.high_res_cam, **change}
    path = save(tmp_path / "bad.npy", content)
    with pytest.raises(ArtifactError, match="make_cam") as caught:
        read_cam(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"score": np.zeros(2)},
        {"class": np.zeros(4, np.int64)},
        {"mask": np.zeros((2, *SIZE), bool)},
        {"mask": np.zeros(SIZE, bool)},
        {"class": ["a", "b", "c"]},
    ],
)
def test_instances_that_do_not_fit_are_named(
    tmp_path: Path, instances: Instances, change: dict[str, Any]
) -> None:
    content = {
        "score": instances.scores, "mask": instances.masks, "class": instances.class_ids, **change
    }  # fmt: skip
    path = save(tmp_path / "bad.npy", content)
    with pytest.raises(ArtifactError, match="synthesize_labels") as caught:
        read_instances(path)
    assert str(path) in str(caught.value)


def test_missing_keys_and_other_objects_are_named(tmp_path: Path, cam: Cam) -> None:
    path = save(tmp_path / "a.npy", {"keys": cam.class_ids, "cam": cam.cam})
    with pytest.raises(ArtifactError, match=r"a\.npy: has no 'high_res'.*found keys, cam"):
        read_cam(path)
    np.save(path, np.zeros(3))
    with pytest.raises(ArtifactError, match=r"a\.npy: expected .* in a dictionary; found ndarray"):
        read_cam(path)


def test_a_label_comes_back(tmp_path: Path) -> None:
    label = np.array([[0, 1, 20], [255, 3, 254]], np.uint8)
    write_label(tmp_path / "a.png", label)
    found = read_label(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, label)


def test_labels_that_are_no_grey_png_are_named(tmp_path: Path) -> None:
    write_label(tmp_path / "colour.png", np.zeros((2, 2, 3), np.uint8))
    write_label(tmp_path / "deep.png", np.zeros((2, 2), np.uint16))
    (tmp_path / "text.png").write_text("no image")
    for name in ("colour.png", "deep.png", "text.png", "gone.png"):
        with pytest.raises(ArtifactError, match=name):
            read_label(tmp_path / name)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    state = {"a.weight": torch.rand(2, 3), "a.steps": torch.tensor(4)}
    write_checkpoint(tmp_path / "network.pt", Checkpoint("cam", "resnet18", ("cat", "dög"), state))
    found = read_checkpoint(tmp_path / "network.pt")
    assert (found.kind, found.backbone, found.class_names) == ("cam", "resnet18", ("cat", "dög"))
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], state[name]) for name in state)


def test_category_ids_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    write_checkpoint(path, Checkpoint("mask_rcnn", "resnet18", ("cat", "dog"), {}, (0, 18)))
    assert read_checkpoint(path).category_ids == (0, 18)
    content = {"kind": "mask_rcnn", "backbone": "resnet18", "class_names": ["cat", "dog"], "network": {}}
    torch.save(content, path)  # as older versions wrote it
    assert read_checkpoint(path).category_ids == ()
    for damaged in ([3], [3, 3], [3, -1], [3, True], ["3", "4"], [3, [4]], 7):
        torch.save({**content, "category_ids": damaged}, path)
        with pytest.raises(CheckpointError, match=r"network\.pt"):
            read_checkpoint(path)


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / "bad.pt"
    content = {"kind": "cam", "backbone": "resnet18", "class_names": [], "network": _Hostile(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (read_checkpoint, read_state_dict):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_damaged_checkpoints_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        read_checkpoint(path)


def test_a_state_dict_alone_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: is not a checkpoint of this package"):
        read_checkpoint(tmp_path / "other.pt")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save(build_backbone("resnet18").state_dict(), path)
    for other in ("resnet34", "resnet50"):
        with pytest.raises(CheckpointError, match=r"r18\.pth.*--backbone"):
            load_backbone_weights(build_backbone(other), path)
