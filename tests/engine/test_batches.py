"""Items of one kind go together, none waits for ever, and a batch that memory does not suffice for is taken apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.faults import MemoryExhausted
from irn_pipeline.engine.parallel import batches, together
from irn_pipeline.errors import ConfigError


def test_items_of_one_kind_go_together() -> None:
    found = list(batches(["a1", "b1", "a2", "a3", "b2", "c1"], lambda item: item[0], 2))
    assert found == [["a1", "a2"], ["b1", "b2"], ["a3"], ["c1"]]


@given(items=st.lists(st.integers(0, 50)), kinds=st.integers(1, 20), size=st.integers(1, 5))
def test_every_item_comes_once_after_few_others(items: list[int], kinds: int, size: int) -> None:
    read: list[tuple[int, int]] = []

    def reading() -> object:
        for numbered in enumerate(items):
            read.append(numbered)
            yield numbered

    given_out = 0
    for group in batches(reading(), lambda item: item[1] % kinds, size):  # type: ignore[arg-type]
        given_out += len(group)
        assert 1 <= len(group) <= size
        assert len({item[1] % kinds for item in group}) == 1
        assert len(read) - given_out <= 4 * size
        assert size > 1 or group == [read[-1]]
    assert given_out == len(items)


def test_a_batch_without_enough_memory_goes_one_by_one() -> None:
    seen: list[Sequence[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        seen.append(items)
        if len(items) > 1:
            raise RuntimeError("CUDA out of memory")
        return [10 * item for item in items]

    assert together(work, [1, 2]) == [10, 20]
    assert seen == [[1, 2], [1], [2]]


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError("not for one either")])
def test_other_errors_pass(error: Exception) -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise error

    with pytest.raises(type(error)):
        together(work, [1, 2])
    with pytest.raises(type(error)):
        together(work, [1])
    assert not isinstance(error, MemoryExhausted)


def test_the_number_is_one_on_a_cpu_and_what_is_asked_for() -> None:
    assert Execution(device="cpu").batch == 1
    assert Execution(device="cpu", images_at_once=3).batch == 3
    with pytest.raises(ConfigError, match="--images-at-once -1"):
        Execution(images_at_once=-1)
