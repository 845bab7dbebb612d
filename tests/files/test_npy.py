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
from irn_pipeline.files.npy import load_pickled_npy


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
    with pytest.raises(ArtifactError, match="not allowed") as caught:
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


def test_torch_tensors_come_back_as_arrays(tmp_path: Path) -> None:
    content = {
        "keys": torch.tensor([0, 14]),
        "cam": torch.rand(2, 4, 5)[:, ::2],
        "half": torch.rand(3).half(),
        "brain": torch.rand(3).bfloat16(),
        "none": torch.zeros(0, 4),
        "high_res": np.ones((2, 13, 17), np.float32),
    }
    found = load_pickled_npy(save(tmp_path / "good.npy", content))
    assert isinstance(found, dict)
    for key in ("keys", "cam", "half", "none"):
        expected = content[key].numpy()  # type: ignore[attr-defined]
        assert type(found[key]) is np.ndarray
        assert found[key].dtype == expected.dtype
        assert np.array_equal(found[key], expected)
        assert found[key].flags.writeable
    assert found["brain"].dtype == np.float32
    assert found["brain"].tolist() == content["brain"].tolist()  # type: ignore[attr-defined]
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
def test_tensors_of_old_torch_come_back_as_arrays(
    tmp_path: Path, kind: str, dtype: str, location: str
) -> None:
    array = np.arange(12).astype(dtype)
    whole = OldTensor(old_storage(array, kind, location), (3, 4), (4, 1))
    part = OldTensor(old_storage(array, kind, location), (2, 2), (4, 1), 5)
    found = load_pickled_npy(save(tmp_path / "good.npy", {"cam": whole, "part": part}))
    assert isinstance(found, dict)
    assert str(found["cam"].dtype) == dtype
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


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def dtype(name: str, state: bytes = b"") -> bytes:
    return named("numpy", "dtype") + text(name) + b"\x89\x88\x87R" + state


RECONSTRUCT = named("numpy._core.multiarray", "_reconstruct")
EMPTY = RECONSTRUCT + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
FILL_WITH_OBJECT = b"(K\x01)" + dtype("O8") + b"\x89]Natb"
"""The state of an array without dimensions that holds None."""
SCALAR = named("numpy._core.multiarray", "scalar")
ATTRIBUTES = b"N}" + text("__defaults__") + b")s\x86b"
"""A state that Python's unpickler sets attributes from."""
STATES_AND_ARGUMENTS = {
    "attributes of a function": named("_codecs", "encode") + ATTRIBUTES,
    "attributes of numpy's function": RECONSTRUCT + ATTRIBUTES,
    "attributes of a class": named("numpy", "ndarray") + ATTRIBUTES,
    "attributes of a dictionary": named("collections", "OrderedDict") + b")R" + ATTRIBUTES,
    "attributes of a list": b"]" + ATTRIBUTES,
    "attributes of an array": EMPTY + ATTRIBUTES,
    "attributes of a dtype": dtype("f4") + ATTRIBUTES,
    "dtype with objects in its flags": dtype("f8", b"(K\x03" + text("<") + b"NNNK\x08K\x08K\x3ftb"),
    "dtype with fields": dtype("f8", b"(K\x03" + text("<") + b"N" + text("a") + b"\x85}K\x08K\x08K\x00tb"),
    "dtype with a state of one": dtype("f8", b"K\x03\x85b"),
    "dtype without a size": dtype("V8"),
    "dtype of dates": dtype("M8"),
    "dtype of a list": named("numpy", "dtype") + b"]\x85R",
    "dtype alone": dtype("f4"),
    "array of another class": RECONSTRUCT + named("collections", "OrderedDict") + b"K\x00\x85C\x01b\x87R",
    "array of a class that is a text": RECONSTRUCT + text("ndarray") + b"K\x00\x85C\x01b\x87R",
    "array by its class": named("numpy", "ndarray") + b"K\x08\x85\x85R",
    "array that is not filled": EMPTY,
    "array filled twice": EMPTY + FILL_WITH_OBJECT + FILL_WITH_OBJECT,
    "array of objects in a list": b"]" + EMPTY + FILL_WITH_OBJECT + b"a",
    "array of two objects": EMPTY + b"(K\x01K\x02\x85" + dtype("O8") + b"\x89](NNetb",
    "array of objects in bytes": EMPTY + b"(K\x01)" + dtype("O8") + b"\x89C\x08AAAAAAAAtb",
    "array of objects over bytes": (
        named("numpy._core.numeric", "_frombuffer") + b"(C\x08AAAAAAAA" + dtype("O8") + b")" + text("C") + b"tR"
    ),
    "number of objects": SCALAR + dtype("O8") + b"C\x08AAAAAAAA\x86R",
    "number of another length": SCALAR + dtype("f8") + b"C\x04AAAA\x86R",
    "number whose dtype is a text": SCALAR + text("f8") + b"C\x08AAAAAAAA\x86R",
    "array without its bytes": EMPTY + b"(K\x01" + number(10**12) + b"\x85" + dtype("f8") + b"\x89C\x00tb",
    "array of a negative size": EMPTY + b"(K\x01" + number(-1) + b"\x85" + dtype("f8") + b"\x89C\x00tb",
    "dictionary out of pairs": named("collections", "OrderedDict") + b"]\x85R",
    "bytes out of a number": named("builtins", "bytes") + number(10**11) + b"\x85R",
    "text in another encoding": named("_codecs", "encode") + text("a") + text("zip") + b"\x86R",
    "storage out of a text": named("torch.storage", "_load_from_bytes") + text("a") + b"\x85R",
    "tensor of a number": named("torch._utils", "_rebuild_tensor_v2") + b"(K\x00K\x00))\x89}tR",
    "function as a value": named("_codecs", "encode"),
    "function as a key": b"}" + named("_codecs", "encode") + b"Ns",
    "new object": named("collections", "OrderedDict") + b")\x81",
    "old instance": b"(i_codecs\nencode\n",
    "object": b"(" + named("_codecs", "encode") + b"o",
    "set": b"\x8f",
    "twice the top": b"]2a",
    "number that is called": b"K\x01)R",
    "text with a state": text("a") + b"}b",
}  # fmt: skip


@pytest.mark.parametrize("name", STATES_AND_ARGUMENTS)
def test_made_up_states_and_arguments_are_refused(tmp_path: Path, name: str) -> None:
    path = with_pickle(tmp_path / "bad.npy", b"\x80\x04" + STATES_AND_ARGUMENTS[name] + b".")
    with pytest.raises(ArtifactError, match=r"bad\.npy: (refused|is not a readable)"):
        load_pickled_npy(path)


def test_what_these_states_are_made_of_is_admitted(tmp_path: Path) -> None:
    filled = (
        EMPTY
        + b"(K\x01K\x02\x85"
        + dtype("f4", b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    )
    filled += b"\x89C\x08" + np.array([1, 2], ">f4").tobytes() + b"tb"
    found = load_pickled_npy(with_pickle(tmp_path / "good.npy", b"\x80\x04]" + filled + b"a."))
    assert isinstance(found, list)
    assert found[0].tolist() == [1, 2]
    scalar = SCALAR + dtype("f8") + b"C\x08" + np.float64(2.5).tobytes() + b"\x86R."
    assert load_pickled_npy(with_pickle(tmp_path / "good.npy", b"\x80\x04" + scalar)) == 2.5
    nothing = EMPTY + FILL_WITH_OBJECT + b"."
    assert load_pickled_npy(with_pickle(tmp_path / "good.npy", b"\x80\x04" + nothing)) is None


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
    with pytest.raises(ArtifactError, match=r"text\.npy: is not a readable"):
        load_pickled_npy(tmp_path / "text.npy")
