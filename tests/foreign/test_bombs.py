"""Small files that would fill the memory or keep a reader for years: each is made, and each is refused at once."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import read_checkpoint, read_instances
from irn_pipeline.errors import ArtifactError, CheckpointError
from irn_pipeline.foreign import pickle_machine
from irn_pipeline.foreign.npy import load_pickled_npy
from irn_pipeline.nn.backbone import read_state_dict
from irn_pipeline.walked_scores import read_walked_scores
from tests.foreign.limits import MEBIBYTE, TooSlow, little, packed_zeros
from tests.fuzz.seeds import pickle_header

HEAD = b"\x80\x04"


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


EMPTY_ARRAY = (
    named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
)
OBJECTS = named("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
NO_BYTES = named("numpy", "dtype") + text("S0") + b"\x89\x88\x87R"
DOUBLING = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(100))
"""From the value of memo 0: pairs of pairs of pairs, all kept; the last one stands for 2^100 values."""
MEMO = HEAD + b"Nr\xff\xff\xff\x7f."
PICKLES = {
    "key that takes 2^100 steps to hash": HEAD + b"}(K\x01q\x00" + DOUBLING + b"tNs.",
    "lists in lists": HEAD + b"(]q\x00" + DOUBLING + b"t.",
    "keys of one hash": HEAD + b"}(" + b"".join(number((2**61 - 1) * n) + b"N" for n in range(1, 50)) + b"u.",
    "bytes that are not there": HEAD + b"\x8e" + (2**40).to_bytes(8, "little") + b".",
    "bytearray that is not there": HEAD + b"\x96" + (2**36).to_bytes(8, "little") + b".",
    "bytes by a call": HEAD + named("builtins", "bytes") + number(10**11) + b"\x85R.",
    "objects that are not there": HEAD + EMPTY_ARRAY + b"(K\x01" + number(10**6) + b"\x85" + OBJECTS + b"\x89]tb.",
    "elements without bytes": HEAD + EMPTY_ARRAY + b"(K\x01" + number(10**12) + b"\x85" + NO_BYTES + b"\x89C\x00tb.",
    "state of a function": HEAD + named("_codecs", "encode") + b"N}" + text("__defaults__") + b")s\x86b.",
    "state of a class": HEAD + named("collections", "OrderedDict") + b"}" + text("x") + b"Nsb.",
    "an array filled twice": HEAD + EMPTY_ARRAY + b"q\x07" + 2 * (b"(K\x01)" + OBJECTS + b"\x89]Natb") + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_small_pickles_that_are_large(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.npy"
    path.write_bytes(pickle_header() + PICKLES[name])
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npy: refused"):
        load_pickled_npy(path)


def test_a_memo_of_two_thousand_million_places_is_one_place(tmp_path: Path) -> None:
    (tmp_path / "bomb.npy").write_bytes(pickle_header() + MEMO)
    with little():
        assert load_pickled_npy(tmp_path / "bomb.npy") is None


def test_pythons_own_unpickler_does_take_the_years() -> None:
    # In a process of its own: while it hashes it looks at no signal but SIGKILL.
    code = f"import pickle; pickle.loads({PICKLES['key that takes 2^100 steps to hash']!r})"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=1, check=False)
    with pytest.raises(MemoryError), little():
        pickle.loads(MEMO)


def test_many_steps_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "_MOST_STEPS", 20_000)
    path = tmp_path / "bomb.npy"
    path.write_bytes(pickle_header() + HEAD + b"(" + b"N" * 3_000_000 + b"t.")
    with little(), pytest.raises(ArtifactError, match="steps"):
        load_pickled_npy(path)


def test_one_text_copied_many_times(tmp_path: Path) -> None:
    encode = named("_codecs", "encode") + b"q\x01"
    long = b"X" + struct.pack("<I", MEBIBYTE) + b"a" * MEBIBYTE + b"q\x02" + text("latin1") + b"q\x03"
    path = tmp_path / "bomb.npy"
    path.write_bytes(pickle_header() + HEAD + b"(" + encode + long + b"h\x01h\x02h\x03\x86R" * 4000 + b"t.")
    with little(), pytest.raises(ArtifactError, match="many times the length"):
        load_pickled_npy(path)


@pytest.mark.parametrize("dtype", ["<f8", "|S0", "|V0", "<M8[s]"])
def test_a_header_that_announces_a_terabyte(tmp_path: Path, dtype: str) -> None:
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(stream, header)
    (tmp_path / "bomb.npy").write_bytes(stream.getvalue() + b"x" * 8)
    for read in (load_pickled_npy, read_instances):
        with little(), pytest.raises(ArtifactError, match=r"bomb\.npy"):
            read(tmp_path / "bomb.npy")


def archive(path: Path, members: dict[str, tuple[bytes, int, int]]) -> None:
    """An archive of packed contents: name -> stream, its unpacked length, method."""
    body, directory = b"", b""
    for name, (stream, length, method) in members.items():
        fields = struct.pack("<HHHHIII", 0, method, 0, 0, 0, len(stream), length) + struct.pack(
            "<HH", len(name), 0
        )
        directory += b"PK\x01\x02" + struct.pack("<HH", 20, 20) + fields
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + struct.pack("<H", 20) + fields + name.encode() + stream
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)


def test_an_npz_that_unpacks_to_two_gigabytes(tmp_path: Path) -> None:
    path, gigabytes = tmp_path / "bomb.npz", 2
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f2", "fortran_order": False, "shape": (1, 2**15, gigabytes * 2**14)}
    )
    length = len(head.getvalue()) + (gigabytes << 30)
    bomb = (packed_zeros(gigabytes << 10, head.getvalue()), length, zipfile.ZIP_DEFLATED)
    small = {}
    for name, value in (("class_ids", np.array([0])), ("size", np.array([2**17, 2**17]))):
        stream = io.BytesIO()
        np.save(stream, value)
        small[f"{name}.npy"] = (stream.getvalue(), len(stream.getvalue()), zipfile.ZIP_STORED)
    archive(path, {**small, "maps.npy": bomb})
    assert path.stat().st_size < 4 << 20
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npz: .*unpacks to more than"):
        read_walked_scores(path)
    # A directory that tells less than there is: the reader stops where it says.
    archive(path, {**small, "maps.npy": (bomb[0], 200, bomb[2])})
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npz"):
        read_walked_scores(path)


def repacked(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Change the members of a checkpoint's archive."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in members.items():
            target.writestr(name, change(name, content))


def refused_checkpoint(path: Path, message: str = "") -> None:
    for read in (read_checkpoint, read_state_dict):
        with little(), pytest.raises(CheckpointError, match=rf"bomb\.pt.*{message}"):
            read(path)


def test_a_checkpoint_that_unpacks_to_much(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    repacked(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 13
    refused_checkpoint(path, "unpacks to more than the file")


STATE = {"a": torch.zeros(4)}
OLD = b"\x80\x02}X\x01\x00\x00\x00a"
CHECKPOINTS = {
    "bytearray": OLD + b"cbuiltins\nbytearray\n" + number(10**11) + b"\x85Rs.",
    "key that takes 2^100 steps to hash": b"\x80\x02}(K\x01q\x00" + DOUBLING + b"tNs.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_whose_pickle_is_a_bomb(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "bomb.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        repacked(path, lambda n, content: CHECKPOINTS[name] if n.endswith("data.pkl") else content)
    else:
        stream = io.BytesIO(path.read_bytes())
        for _ in range(3):
            pickle.load(stream)
        path.write_bytes(path.read_bytes()[: stream.tell()] + CHECKPOINTS[name])
    refused_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_and_tensors_larger_than_the_file(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "bomb.pt"
    # The count of the storage, then the size of the tensor; both are written as K\x04.
    for old, new in ((b"K\x04t", b"J\xff\xff\xff\x7ft"), (b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")):
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
        if zipped:
            repacked(path, lambda _, content, a=old, b=new: content.replace(a, b))  # type: ignore[misc]
        else:
            content = path.read_bytes()
            path.write_bytes(
                content.replace(old, new)
                if b"t" not in old
                else content.replace(b"K\x04N", b"J\xff\xff\xff\x7fN")
            )
        assert b"J\xff\xff\xff\x7f" in path.read_bytes()
        refused_checkpoint(path)


def test_the_limits_of_these_tests_do_stop_a_block() -> None:
    with pytest.raises(TooSlow), little(seconds=1):
        while True:
            pass
    with pytest.raises(MemoryError), little(megabytes=64):
        bytearray(128 << 20)
