"""Whatever bytes a file holds, its reader gives a value or one clear error, soon, in little memory.

More examples: FUZZ_EXAMPLES=20000 python -m pytest tests/foreign/test_any_bytes.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irn_pipeline.errors import IrnError
from tests.files.limits import little
from tests.fuzz.targets import TARGETS, surroundings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
SLOW = {"resume", "config", "checkpoint", "weights"}
"""Targets whose every example costs milliseconds: a third of the examples."""


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """A valid file of which some bytes were changed, removed, repeated or put in."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.integers(0, 12)), len(content))
        piece = draw(st.binary(max_size=8) | (st.sampled_from(words) if words else st.nothing()))
        change = draw(st.sampled_from(["replace", "flip", "repeat", "cut"]))
        if change == "replace":
            content[start:end] = piece
        elif change == "flip" and start < len(content):
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "repeat":
            content[start:end] *= draw(st.integers(2, 50))
        elif change == "cut":
            del content[start:]
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = surroundings(tmp_path_factory.mktemp("any"))
    for target in TARGETS.values():
        (place / target.file).parent.mkdir(parents=True, exist_ok=True)
    return place


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read(folder: Path, name: str) -> None:
    target = TARGETS[name]
    read = 0
    for seed in target.seeds():
        try:
            target.run(folder, seed)
            read += 1
        except IrnError:  # a target starts from files of its neighbours, too
            continue
    assert read


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_explained(folder: Path, name: str) -> None:
    target = TARGETS[name]
    _try(target.run, folder, st.binary(max_size=200), EXAMPLES // 3)
    examples = EXAMPLES // 3 if name in SLOW else EXAMPLES
    _try(target.run, folder, mutated(target.seeds(), target.words), examples)


def _try(
    run: Callable[[Path, bytes], object], folder: Path, contents: st.SearchStrategy[bytes], count: int
) -> None:
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(contents)
    def read_or_explained(content: bytes) -> None:
        try:
            run(folder, content)
        except IrnError as error:
            assert str(error)

    with little(seconds=300 + count):
        read_or_explained()
