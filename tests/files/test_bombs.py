"""Small files that would fill the memory or keep a reader for years: each is made, and each is refused at once."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from irn_pipeline.artifacts import read_checkpoint, read_instances
from irn_pipeline.errors import ArtifactError, CheckpointError
from irn_pipeline.files.npy import load_pickled_npy
from irn_pipeline.nn.backbone import read_state_dict
from irn_pipeline.walked_scores import read_walked_scores
from tests.files.limits import MEBIBYTE, TooSlow, little, packed_zeros
from tests.fuzz.seeds import pickle_header

HEAD = b"\x80\x04"
DOUBLING = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(100))
"""From the value of memo 0: pairs of pairs of pairs, all kept; the last one stands for 2^100 values."""
PICKLES = {
    "key that takes 2^100 steps to hash": HEAD + b"}(K\x01q\x00" + DOUBLING + b"tNs.",
    "lists in lists": HEAD + b"(]q\x00" + DOUBLING + b"t.",
    "a place in the memo beyond the file": HEAD + b"Nr\xff\xff\xff\x7f.",
    "bytes that are not there": HEAD + b"\x8e" + (2**40).to_bytes(8, "little") + b".",
    "bytearray that is not there": HEAD + b"\x96" + (2**36).to_bytes(8, "little") + b".",
    "steps without end": HEAD + b"(" + b"N" * 3_000_000 + b"t.",
    "tuples in tuples": HEAD + b")" + b"\x85" * 1_000_000 + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_small_pickles_that_are_large(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.npy"
    path.write_bytes(pickle_header() + PICKLES[name])
    with little(), pytest.raises(ArtifactError, match=r"bomb\.npy: "):
        load_pickled_npy(path)


def test_one_text_copied_many_times(tmp_path: Path) -> None:
    encode = b"c_codecs\nencode\nq\x01"
    long = b"X" + struct.pack("<I", MEBIBYTE) + b"a" * MEBIBYTE + b"q\x02X\x06\x00\x00\x00latin1q\x03"
    path = tmp_path / "bomb.npy"
    path.write_bytes(pickle_header() + HEAD + b"(" + encode + long + b"h\x01h\x02h\x03\x86R" * 3000 + b"t.")
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"K\x04t", b"J\xff\xff\xff\x7ft", id="storage"),
        pytest.param(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85", id="tensor"),
    ],
)
def test_storages_and_tensors_larger_than_the_file(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(4)}, path)
    repacked(path, lambda _, content: content.replace(old, new))
    assert new in path.read_bytes()
    refused_checkpoint(path)


def test_the_limits_of_these_tests_do_stop_a_block() -> None:
    with pytest.raises(TooSlow), little(seconds=1):
        while True:
            pass
    with pytest.raises(MemoryError), little(megabytes=64):
        bytearray(1 << 30)  # more than what earlier tests have left to take again
