"""Which samples make up the batches of each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from irn_pipeline.engine.optimisation import Schedule
from irn_pipeline.engine.ranks import ALONE, Ranks

SampleKey = tuple[int, int]
"""(epoch, index): a data set makes its random choices from these two and the seed alone, so that neither the number
of workers nor an interruption changes them."""


class EpochSampler(Sampler[SampleKey]):
    """Every index at most once an epoch, shuffled from (seed, epoch), in whole batches.

    What is left over at the end of an epoch is dropped, as the original does; a set smaller than one batch is repeated
    until it fills one. Of several processes, each gets its part of every batch: together they see the batches that
    one would see. `batch_size` is that of all processes together.
    """

    def __init__(self, count: int, batch_size: int, seed: int, ranks: Ranks = ALONE) -> None:
        self.count, self.batch_size, self.seed, self.ranks = count, batch_size, seed, ranks
        self.wanted = max(count // batch_size, 1) * batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.wanted // self.ranks.count

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        order *= -(-self.wanted // self.count)
        part = self.batch_size // self.ranks.count
        mine = range(self.ranks.rank * part, self.wanted, self.batch_size)
        return iter([(self.epoch, index) for start in mine for index in order[start : start + part]])


class Batches(Sampler[list[SampleKey]]):
    """The batches of an epoch, as large as its phase wants them; `epoch` is set before each pass.

    Attributes:
        phase_steps: steps of each phase of the schedule.
    """

    def __init__(self, count: int, schedule: Schedule, seed: int, ranks: Ranks = ALONE) -> None:
        self._schedule = schedule
        self._samplers = [EpochSampler(count, phase.batch_size, seed, ranks) for phase in schedule.phases]
        lengths = [sampler.wanted // sampler.batch_size for sampler in self._samplers]
        self.phase_steps = [
            phase.epochs * length for phase, length in zip(schedule.phases, lengths, strict=True)
        ]
        self._lengths = lengths
        self.epoch = 0

    def steps_before(self, epoch: int) -> int:
        """Steps of all epochs before one."""
        return sum(self._lengths[self._schedule.phase_at(earlier)] for earlier in range(epoch))

    def __len__(self) -> int:
        return self._lengths[self._schedule.phase_at(self.epoch)]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        sampler = self._samplers[self._schedule.phase_at(self.epoch)]
        sampler.epoch = self.epoch
        keys = list(sampler)
        part = len(keys) // len(self)
        return iter([keys[start : start + part] for start in range(0, len(keys), part)])
