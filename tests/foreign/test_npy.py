"""Hostile files are refused before anything they hold is run; files of this package and of the original are read."""

from __future__ import annotations

import builtins
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irn_pipeline.errors import ArtifactError
from irn_pipeline.foreign.npy import load_pickled_npy


class Calls:
    """Pickles into a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def save(path: Path, content: object) -> Path:
    with path.open("wb") as stream:
        np.save(stream, np.array(content, dtype=object), allow_pickle=True)
    return path


def with_pickle(path: Path, body: bytes) -> Path:
    """A .npy file whose header announces one object, followed by `body`."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(stream.getvalue() + body)
    return path


def touch_code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def hostile_objects(marker: Path) -> dict[str, object]:
    code = touch_code(marker)
    return {
        "os.system": Calls(os.system, f"touch '{marker}'"),
        "os.mkdir": Calls(os.mkdir, str(marker)),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "builtins.getattr": Calls(getattr, "text", "format"),
        "builtins.open": Calls(builtins.open, str(marker), "w"),
        "numpy.load": Calls(np.load, str(marker)),
        "numpy.save": Calls(np.save, str(marker), np.zeros(1)),
        "numpy.memmap": Calls(np.memmap, str(marker), "uint8", "w+", 0, (1,)),
        "numpy.testing": Calls(np.testing.assert_raises, ValueError, exec, code),
        "torch.save": Calls(torch.save, 1, str(marker)),
        "torch.hub": Calls(torch.hub.load, str(marker.parent), "x"),
    }


HOSTILE = sorted(hostile_objects(Path("x")))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_objects_are_refused_and_nothing_runs(tmp_path: Path, name: str, nested: bool) -> None:
    marker = tmp_path / "it_ran.npy"
    hostile = hostile_objects(marker)[name]
    path = save(tmp_path / "bad.npy", {"keys": np.zeros(1), "cam": [hostile]} if nested else hostile)
    with pytest.raises(ArtifactError, match="refused") as caught:
        load_pickled_npy(path)
    assert str(path) in str(caught.value)
    assert not marker.exists()


def test_the_marker_of_these_tests_does_appear_without_the_reader(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran.npy"
    path = save(tmp_path / "bad.npy", hostile_objects(marker)["builtins.exec"])
    np.load(path, allow_pickle=True)
    assert marker.exists()


def test_hostile_content_of_a_torch_storage_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    for zipped in (True, False):
        inner = io.BytesIO()
        torch.save(Calls(exec, touch_code(marker)), inner, _use_new_zipfile_serialization=zipped)
        path = save(tmp_path / "bad.npy", {"cam": Calls(torch.storage._load_from_bytes, inner.getvalue())})
        with pytest.raises(ArtifactError) as caught:
            load_pickled_npy(path)
        assert str(path) in str(caught.value)
        assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray.tofile"),
        ("numpy", "fromfile"),
        ("numpy.dtypes", "__loader__"),
        ("numpy.dtypes", "__builtins__"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "_reconstruct.__self__"),
        ("torch._utils", "_import_dotted_name"),
        ("collections", "namedtuple"),
        ("builtins", "__import__"),
    ],
)
def test_other_names_of_admitted_modules_are_refused(tmp_path: Path, module: str, name: str) -> None:
    body = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    body += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    path = with_pickle(tmp_path / "bad.npy", body)
    with pytest.raises(ArtifactError, match="not admitted") as caught:
        load_pickled_npy(path)
    assert str(path) in str(caught.value)


def test_persistent_ids_and_extension_codes_are_refused(tmp_path: Path) -> None:
    for body in (b"\x80\x02Pstorage\n.", b"\x80\x02\x82\x07.", b"\x80\x02X\x01\x00\x00\x00aQ."):
        with pytest.raises(ArtifactError, match=r"bad\.npy"):
            load_pickled_npy(with_pickle(tmp_path / "bad.npy", body))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_dictionary_of_arrays_comes_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "keys": np.array([3, 7]),
        "cam": np.linspace(0, 1, 12, dtype=np.float16).reshape(2, 2, 3),
        "high_res": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "mask": np.array([[True, False]]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float32(0.25),
        "count": np.int64(5),
        "names": ["a", ("b", None, 1.5)],
    }
    path = with_pickle(
        tmp_path / "good.npy", pickle.dumps(np.array(content, dtype=object), protocol=protocol)
    )
    found = load_pickled_npy(path)
    assert isinstance(found, dict)
    assert found.keys() == content.keys()
    for key in ("keys", "cam", "high_res", "mask", "fortran"):
        assert found[key].dtype == content[key].dtype  # type: ignore[attr-defined]
        assert np.array_equal(found[key], content[key])  # type: ignore[arg-type]
    assert (found["scalar"], found["count"], found["names"]) == (0.25, 5, ["a", ("b", None, 1.5)])


def test_torch_tensors_come_back(tmp_path: Path) -> None:
    content = {
        "keys": torch.tensor([0, 14]),
        "cam": torch.rand(2, 4, 5)[:, ::2],
        "half": torch.rand(3).half(),
        "high_res": np.ones((2, 13, 17), np.float32),
    }
    found = load_pickled_npy(save(tmp_path / "good.npy", content))
    assert isinstance(found, dict)
    for key in ("keys", "cam", "half"):
        assert torch.equal(found[key], content[key])  # type: ignore[arg-type]
        assert found[key].dtype == content[key].dtype  # type: ignore[attr-defined]
    assert np.array_equal(found["high_res"], content["high_res"])  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool", "uint8"])
def test_arrays_of_both_generations_of_numpy_come_back(tmp_path: Path, module: str, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    # Protocol 2 ends a module's name with a line break, so that another name may take its place.
    body = pickle.dumps(np.array({"cam": array, "one": array[1, 2]}, dtype=object), protocol=2)
    names = (b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
    assert any(name in body for name in names)
    for name in names:
        body = body.replace(name, b"c" + module.encode() + b".multiarray\n")
    found = load_pickled_npy(with_pickle(tmp_path / "good.npy", body))
    assert isinstance(found, dict)
    assert found["cam"].dtype == np.dtype(dtype)
    assert np.array_equal(found["cam"], array)
    assert found["one"] == array[1, 2]


class _Stored:
    """What a storage is written as in a torch.save file."""

    def __init__(self, kind: str, location: str, count: int) -> None:
        self.key = ("storage", getattr(torch, kind), "94023", location, count, None)


class _StoragePickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.key if isinstance(obj, _Stored) else None


def old_storage(array: np.ndarray[Any, Any], kind: str, location: str) -> bytes:
    """A storage as torch 1.0 to 1.5 wrote it: one pickle after another, then the length and the bytes."""
    stream = io.BytesIO()
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    for head in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(head, stream, protocol=2)
    _StoragePickler(stream, protocol=2).dump(_Stored(kind, location, array.size))
    pickle.dump(["94023"], stream, protocol=2)
    return stream.getvalue() + np.int64(array.size).tobytes() + array.tobytes()


class OldTensor:
    """Pickles as a tensor of torch 1.0 to 1.5 does inside numpy.save."""

    def __init__(
        self, storage: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
    ) -> None:
        self.arguments = (Calls(torch.storage._load_from_bytes, storage), offset, size, stride, False)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return torch._utils._rebuild_tensor_v2, (*self.arguments, OrderedDict())


@pytest.mark.parametrize("location", ["cpu", "cuda:0"])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("LongStorage", "int64"), ("FloatStorage", "float32"), ("HalfStorage", "float16")]
)
def test_tensors_of_old_torch_come_back(tmp_path: Path, kind: str, dtype: str, location: str) -> None:
    array = np.arange(12).astype(dtype)
    whole = OldTensor(old_storage(array, kind, location), (3, 4), (4, 1))
    part = OldTensor(old_storage(array, kind, location), (2, 2), (4, 1), 5)
    found = load_pickled_npy(save(tmp_path / "good.npy", {"cam": whole, "part": part}))
    assert isinstance(found, dict)
    assert str(found["cam"].dtype) == f"torch.{dtype}"
    assert found["cam"].tolist() == array.reshape(3, 4).tolist()
    assert found["part"].tolist() == [[5, 6], [9, 10]]


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((13,), (1,), 0), ((12,), (1,), 1), ((10**12,), (0,), 0), ((10**6, 10**6), (1, 1), 0), ((2,), (12,), 0)],
)
def test_tensors_larger_than_their_storage_are_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    storage = old_storage(np.arange(12.0, dtype=np.float32), "FloatStorage", "cpu")
    path = save(tmp_path / "bad.npy", {"cam": OldTensor(storage, size, stride, offset)})
    with pytest.raises(ArtifactError, match=r"bad\.npy: refused.*in a storage of 12"):
        load_pickled_npy(path)


def test_arrays_out_of_nothing_are_refused(tmp_path: Path) -> None:
    make = np.zeros(1).__reduce__()[0]
    for hostile in (Calls(make, np.ndarray, (10**12,), b"b"), Calls(np.ndarray, (10**12,))):
        with pytest.raises(ArtifactError, match=r"bad\.npy"):
            load_pickled_npy(save(tmp_path / "bad.npy", {"cam": hostile}))


def test_a_plain_array_needs_no_pickle(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.arange(6).reshape(2, 3))
    found = load_pickled_npy(tmp_path / "plain.npy")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_cut_files_are_damaged_at_every_length(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npy", {"keys": np.arange(3), "cam": np.ones((3, 2, 2))}).read_bytes()
    path = tmp_path / "cut.npy"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError) as caught:
            load_pickled_npy(path)
        assert str(path) in str(caught.value)


def test_missing_and_alien_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.npy: no such file"):
        load_pickled_npy(tmp_path / "gone.npy")
    (tmp_path / "text.npy").write_text("not an array")
    with pytest.raises(ArtifactError, match=r"text\.npy: is no readable"):
        load_pickled_npy(tmp_path / "text.npy")
