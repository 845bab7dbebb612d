"""Every known CAM format reads as the same maps; files of no format are named with what was found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irn_pipeline.artifacts import read_cam, write_cam
from irn_pipeline.cam_files import read_cam_file
from irn_pipeline.errors import ArtifactError
from irn_pipeline.ops.cam import full_size_cam, strided_cam
from irn_pipeline.structures import Cam, CompactCam, strided_size

SIZE = (9, 14)
KEYS = np.array([1, 4])


def maps(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random maps that float16 holds exactly: multiples of 1/64."""
    return np.random.default_rng(seed).integers(0, 65, (count, *size)).astype(np.float32) / 64


HIGH_RES = maps(2, SIZE)
CAM = maps(2, strided_size(SIZE), 1)


def save(path: Path, content: Any) -> Path:
    np.save(path, content)
    return path


COMPACT = {"keys": KEYS, "cam": CAM, "scales": [CAM, maps(2, (1, 1))], "size": SIZE, "whole": False}


def with_background(stack: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full((1, *stack.shape[1:]), 0.5, stack.dtype), stack])


def half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "ours": ({"keys": KEYS, "cam": CAM, "high_res": HIGH_RES}, "irn"),
    "original": ({"keys": tensor(KEYS), "cam": tensor(CAM), "high_res": HIGH_RES}, "irn"),
    "tensors": ({"keys": tensor(KEYS), "cam": tensor(CAM), "high_res": tensor(HIGH_RES)}, "irn"),
    "more": ({"keys": KEYS.tolist(), "cam": CAM, "high_res": HIGH_RES, "note": "x"}, "irn"),
    "gradient": ({"keys": KEYS, "cam": tensor(CAM).requires_grad_(), "high_res": HIGH_RES}, "irn"),
    "int32 keys": ({"keys": KEYS.astype(np.int32), "cam": CAM, "high_res": HIGH_RES}, "irn"),
    "float64": ({"keys": KEYS, "cam": CAM.astype(np.float64), "high_res": HIGH_RES}, "irn"),
    "half": ({"keys": KEYS, "cam": half(CAM), "high_res": half(HIGH_RES)}, "irn (float16)"),
    "half tensor": ({"keys": tensor(KEYS), "cam": tensor(CAM).half(), "high_res": HIGH_RES}, "irn (float16)"),
    "AMN": ({"keys": tensor(KEYS), "cam": tensor(with_background(CAM)), "high_res": HIGH_RES}, "AMN"),
    "AMN twice": ({"keys": KEYS, "cam": with_background(CAM), "high_res": with_background(HIGH_RES)}, "AMN"),
    "AMN high_res": ({"keys": KEYS, "cam": CAM, "high_res": with_background(HIGH_RES)}, "AMN"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_with_a_cam_reads_as_the_same_maps(tmp_path: Path, name: str) -> None:
    content, recognised = FORMATS[name]
    cam, found = read_cam_file(save(tmp_path / "a.npy", content))
    assert found == recognised
    assert cam.class_ids.dtype == np.int64
    assert cam.cam.dtype == cam.high_res_cam.dtype == np.float32
    assert cam.class_ids.tolist() == [1, 4]
    assert np.array_equal(cam.cam, CAM)
    assert np.array_equal(cam.high_res_cam, HIGH_RES)


def bilinear(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Another way to resize one map: per pixel, centre to centre, clamped at the borders."""
    resized = np.empty(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = np.clip((row + 0.5) * grid.shape[0] / size[0] - 0.5, 0, grid.shape[0] - 1)
            x = np.clip((column + 0.5) * grid.shape[1] / size[1] - 0.5, 0, grid.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, grid.shape[0] - 1), min(x0 + 1, grid.shape[1] - 1)
            top = grid[y0, x0] * (1 - x + x0) + grid[y0, x1] * (x - x0)
            low = grid[y1, x0] * (1 - x + x0) + grid[y1, x1] * (x - x0)
            resized[row, column] = top * (1 - y + y0) + low * (y - y0)
    return resized


@pytest.mark.parametrize(
    ("content", "recognised"),
    [
        ({"keys": KEYS, "attn_highres": half(HIGH_RES)}, "CLIP-ES (float16, cam derived)"),
        ({"keys": KEYS, "attn_highres": HIGH_RES}, "CLIP-ES (cam derived)"),
        ({"keys": tensor(KEYS), "high_res": HIGH_RES}, "irn (cam derived)"),
        ({"keys": KEYS, "high_res": half(with_background(HIGH_RES))}, "AMN (float16, cam derived)"),
    ],
)
def test_a_missing_cam_is_the_full_size_map_resized(
    tmp_path: Path, content: dict[str, Any], recognised: str
) -> None:
    cam, found = read_cam_file(save(tmp_path / "a.npy", content))
    assert found == recognised
    assert np.array_equal(cam.high_res_cam, HIGH_RES)
    for derived, full in zip(cam.cam, HIGH_RES, strict=True):
        np.testing.assert_allclose(derived, bilinear(full, (3, 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "recognised"),
    [
        ({1: HIGH_RES[0], 4: HIGH_RES[1]}, "SEAM, MCTformer (cam derived)"),
        ({4: HIGH_RES[1], 1: HIGH_RES[0]}, "SEAM, MCTformer (cam derived)"),
        (dict(zip(KEYS.tolist(), HIGH_RES.astype(np.float64), strict=True)), "SEAM, MCTformer (cam derived)"),
        ({1: half(HIGH_RES[0]), 4: half(HIGH_RES[1])}, "SEAM, MCTformer (float16, cam derived)"),
        ({1: tensor(HIGH_RES[0]), 4: tensor(HIGH_RES[1])}, "SEAM, MCTformer (cam derived)"),
    ],
)
def test_a_map_for_each_class_by_its_number(tmp_path: Path, content: dict[Any, Any], recognised: str) -> None:
    same = {"keys": KEYS, "high_res": HIGH_RES}
    expected, _ = read_cam_file(save(tmp_path / "b.npy", same))
    cam, found = read_cam_file(save(tmp_path / "a.npy", content))
    assert found == recognised
    assert cam.class_ids.tolist() == [1, 4]
    assert np.array_equal(cam.high_res_cam, HIGH_RES)
    assert np.array_equal(cam.cam, expected.cam)


def test_no_map_at_all_is_a_picture_without_class(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", {})
    cam, found = read_cam_file(path, SIZE)
    assert (found, cam.size, cam.cam.shape) == ("SEAM, MCTformer without class", SIZE, (0, 3, 4))
    with pytest.raises(ArtifactError, match=r"a\.npy: holds no class.*--cam-dir"):
        read_cam_file(path)


def test_a_derived_cam_by_hand(tmp_path: Path) -> None:
    # From 8 to 2 cells a cell's centre lies between its pixels 1 and 2 (of 0..3): the mean of those four.
    full = np.arange(64, dtype=np.float32).reshape(1, 8, 8) / 64
    cam, _ = read_cam_file(save(tmp_path / "a.npy", {"keys": np.array([0]), "attn_highres": full}))
    first = (9 + 10 + 17 + 18) / 4
    assert (cam.cam * 64).tolist() == [[[first, first + 4], [first + 32, first + 36]]]


def test_a_file_without_class_takes_the_picture_s_size(tmp_path: Path) -> None:
    for keys in (torch.tensor([]), torch.zeros(0, dtype=torch.int64), np.zeros(0, np.int64), []):
        path = save(tmp_path / "a.npy", {"keys": keys})
        cam, found = read_cam_file(path, SIZE)
        assert found == "RIB without class"
        assert cam.size == SIZE
        assert cam.cam.shape == (0, 3, 4)
        with pytest.raises(ArtifactError, match=r"a\.npy: holds no class.*--cam-dir"):
            read_cam_file(path)


def test_no_class_with_empty_maps_needs_no_size(tmp_path: Path) -> None:
    nothing = {"keys": KEYS[:0], "cam": CAM[:0], "high_res": HIGH_RES[:0]}
    assert read_cam_file(save(tmp_path / "a.npy", nothing))[0].size == SIZE
    del nothing["cam"]
    assert read_cam_file(save(tmp_path / "a.npy", nothing))[0].cam.shape == (0, 3, 4)


def test_a_single_class_and_its_background(tmp_path: Path) -> None:
    # K + 1 = 2 channels are two classes, or one and the background: the keys decide.
    two = maps(2, strided_size(SIZE), 2)
    content = {"keys": KEYS[:1], "cam": two, "high_res": HIGH_RES[:1]}
    assert np.array_equal(read_cam_file(save(tmp_path / "a.npy", content))[0].cam, two[1:])


def test_overshoot_below_zero_is_cut(tmp_path: Path) -> None:
    low = CAM - 0.125
    cam, _ = read_cam_file(
        save(tmp_path / "a.npy", {"keys": KEYS, "cam": low, "high_res": HIGH_RES + 0.0625})
    )
    assert np.array_equal(cam.cam, np.maximum(low, 0))
    assert np.array_equal(cam.high_res_cam, HIGH_RES + 0.0625)


BAD: list[tuple[Any, str]] = [
    (np.zeros(3), "in a dictionary; found ndarray"),
    ({"cam": CAM}, "has no 'keys'.* found cam"),
    ({3: CAM, 7: CAM}, r"one \(H, W\) map.*class 3 has \(2, 3, 4\)"),
    ({3: CAM[0], 7: HIGH_RES[0]}, r"class 7 has \(9, 14\), class 3 \(3, 4\)"),
    ({-1: HIGH_RES[0]}, "from 0; found -1"),
    ({3: HIGH_RES[0] * 20}, r"'map' must hold maps in \[0, 1\]"),
    ({3: HIGH_RES[0], "note": 1}, "has no 'keys'.*found 3, note"),
    ({True: HIGH_RES[0]}, "has no 'keys'"),
    ({"keys": KEYS}, "has no 'high_res' and no 'attn_highres'.* found keys"),
    ({"keys": KEYS, "cam": CAM}, "has no 'high_res'.* found keys, cam"),
    ({"keys": KEYS, "high_res": HIGH_RES, "cam": CAM[:1]}, "2 classes needs 2 maps, got 1"),
    ({"keys": KEYS, "high_res": HIGH_RES, "cam": maps(4, (3, 4))}, "2 classes needs 2 maps, got 4"),
    ({"keys": KEYS, "high_res": HIGH_RES, "cam": HIGH_RES}, r"must be \(3, 4\), got \(9, 14\)"),
    ({"keys": KEYS, "attn_highres": HIGH_RES[0]}, r"full-size maps must be \(K, H, W\)"),
    ({"keys": KEYS, "attn_highres": HIGH_RES[:, :0]}, r"full-size maps must be \(K, H, W\)"),
    ({"keys": KEYS[None], "high_res": HIGH_RES}, "'keys' must be"),
    ({"keys": np.array([1, 1]), "high_res": HIGH_RES}, r"each once; found \[1, 1\]"),
    ({"keys": np.array([0.5, 1]), "high_res": HIGH_RES}, "whole numbers"),
    ({"keys": np.array([-1, 1]), "high_res": HIGH_RES}, "from 0; found -1"),
    ({"keys": ["cat", "dog"], "high_res": HIGH_RES}, "'keys' must be an array of numbers"),
    ({"keys": KEYS, "high_res": None}, "'high_res' must be an array of numbers"),
    ({"keys": KEYS, "high_res": [[[1.0]], [[1.0, 2.0]]]}, "make it again"),
    ({"keys": KEYS, "high_res": HIGH_RES * 20}, r"in \[0, 1\].*found 0 to 20"),
    ({"keys": KEYS, "high_res": HIGH_RES - 3}, r"in \[0, 1\]"),
    ({"keys": KEYS, "high_res": HIGH_RES, "cam": CAM * np.nan}, r"'cam' must hold.*nan"),
    ({key: value for key, value in COMPACT.items() if key != "size"}, "has 'scales', but no 'size'"),
    ({**COMPACT, "size": (9, 18)}, r"9x18 picture must be \(2, 3, 5\), got \(2, 3, 4\)"),
    ({**COMPACT, "size": (10**30, 4)}, "picture must be"),
    ({**COMPACT, "size": (0, 0), "cam": CAM[:, :0, :0]}, "0x0 pixels has no map"),
    ({**COMPACT, "size": 9}, "make it again"),
    ({**COMPACT, "scales": []}, "scales of 2 classes must be"),
    ({**COMPACT, "scales": [CAM[:1]]}, r"must be \(2, h, w\) each, got \[\(1, 3, 4\)\]"),
    ({**COMPACT, "scales": [CAM[:, :0]]}, r"got \[\(2, 0, 4\)\]"),
    ({**COMPACT, "scales": ["text"]}, "'scales' must be an array of numbers"),
    ({**COMPACT, "scales": [CAM * np.nan]}, r"'scales' must hold.*nan"),
    ({**COMPACT, "scales": [CAM * np.inf]}, r"'scales' must hold.*nan"),
    ({"keys": KEYS, "attn_highres": half(HIGH_RES) + np.float16(np.inf)}, r"'attn_highres' must hold.*inf"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_files_of_no_format_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = save(tmp_path / "bad.npy", content)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_cam_file(path)
    assert str(caught.value).startswith(f"{path}: ")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    class_ids=st.lists(st.integers(0, 79), max_size=4, unique=True),
    seed=st.integers(0, 1000),
)
def test_our_files_read_with_numpy_alone_and_with_every_reader(
    tmp_path: Path, height: int, width: int, class_ids: list[int], seed: int
) -> None:
    size, count, path = (height, width), len(class_ids), tmp_path / "ours.npy"
    made = Cam(
        np.array(class_ids, np.int64), maps(count, strided_size(size), seed), maps(count, size, seed + 1)
    )
    write_cam(path, made)
    plain = np.load(path, allow_pickle=True).item()
    assert list(plain) == ["keys", "cam", "high_res"]
    found = read_cam(path)
    for theirs, ours, mine in zip(
        plain.values(),
        (found.class_ids, found.cam, found.high_res_cam),
        (made.class_ids, made.cam, made.high_res_cam),
        strict=True,
    ):
        assert type(theirs) is np.ndarray
        assert theirs.dtype == mine.dtype
        assert np.array_equal(theirs, mine)
        assert np.array_equal(ours, mine)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [0, 2])
def test_full_size_maps_come_back_from_a_file_without_them(tmp_path: Path, count: int, whole: bool) -> None:
    size, path = (33, 47), tmp_path / "ours.npy"
    scales = (maps(count, (3, 3)), maps(count, (5, 6), 1))
    tensors = [torch.from_numpy(one) for one in scales]
    cam = strided_cam(tensors, size).numpy()
    write_cam(path, CompactCam(KEYS[:count], cam, scales, size, whole))
    assert list(np.load(path, allow_pickle=True).item()) == ["keys", "cam", "scales", "size", "whole"]
    found, name = read_cam_file(path)
    assert name == "compact"
    assert found.class_ids.tolist() == KEYS[:count].tolist()
    assert np.array_equal(found.cam, cam)
    assert np.array_equal(found.high_res_cam, full_size_cam(tensors, size, whole=whole).numpy())
    assert found.high_res_cam.shape == (count, *size)
