"""The processes that run one command together, started by torchrun; Lightning Fabric connects them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from irn_pipeline.engine.execution import Execution
from irn_pipeline.errors import ConfigError, IrnError

if TYPE_CHECKING:  # imported when it is used: flags are refused without it
    from lightning_fabric import Fabric
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=7)
"""A process may wait this long for another at the end of a stage; torchrun notices one that died."""


class OtherProcessFailed(IrnError):
    """The first process could not go on and has said why; this one ends without a word."""


@dataclass(frozen=True)
class _Failure:
    message: str


class Ranks:
    """Which of the processes of one command this is, and what they do together.

    Without a launched Fabric there is one process: `share` gives everything, `mean` what it was given.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self._fabric = fabric if fabric is not None and fabric.world_size > 1 else None
        self.rank = 0 if self._fabric is None else self._fabric.global_rank
        self.count = 1 if self._fabric is None else self._fabric.world_size

    @property
    def is_first(self) -> bool:
        """Whether this process writes what belongs to the whole stage: records, networks, logs."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items that this process works on; it depends on nothing but the items and its rank."""
        return items if self.count == 1 else items[self.rank :: self.count]

    def from_first(self, function: Callable[[], T]) -> T:
        """What the first process's function returns, in all processes; only there it is called.

        Raises:
            OtherProcessFailed: it raised an IrnError there, which the first process raises itself.
        """
        if self._fabric is None:
            return function()
        result: T | _Failure | None = None
        if self.is_first:
            try:
                result = function()
            except IrnError as error:
                self._fabric.broadcast(_Failure(str(error)))
                raise
        result = self._fabric.broadcast(result)
        if isinstance(result, _Failure):
            raise OtherProcessFailed(result.message)
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; waits for all."""
        if self._fabric is None:
            return [value]
        import torch

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sums over all processes, by name; waits for all."""
        summed: Counter[str] = Counter()
        for part in self.gather(dict(counts)):
            summed.update(part)
        return dict(summed)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all processes of a tensor without gradient, in float64 on the way."""
        if self._fabric is None:
            return values
        import torch

        reduced: Any = self._fabric.all_reduce(values.detach().double(), reduce_op="mean")
        return reduced.to(values.dtype if values.is_floating_point() else torch.get_default_dtype())

    def parallel(self, module: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The module and its optimiser so wrapped that gradients are averaged over all processes."""
        if self._fabric is None:
            return module, optimizer
        if self._fabric.device.type == "cuda":
            from torch import nn

            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        wrapped, wrapped_optimizer = self._fabric.setup(module, optimizer)
        return wrapped, wrapped_optimizer  # type: ignore[return-value]

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        if self._fabric is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._fabric.backward(loss)


ALONE = Ranks()


def join_ranks(execution: Execution) -> tuple[Ranks, Execution]:
    """Meet the other processes of a torchrun; without it, this process is alone.

    Returns:
        The ranks, and the execution for this one of them: its device, its part of the machine's cores, one progress
        bar for all.

    Raises:
        ConfigError: Lightning Fabric is not installed, or there are fewer devices than processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if world == 1:
        return ALONE, execution
    import torch

    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError as error:
        raise ConfigError(
            "more than one process needs the package lightning-fabric, which is not installed: "
            "pip install 'irn_pipeline[distributed]'"
        ) from error
    here, local_rank = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    kind = execution.torch_device().type
    devices = torch.cuda.device_count()
    if kind == "cuda" and here > devices:
        raise ConfigError(
            f"{here} processes on a machine with {devices} CUDA devices: give torchrun --nproc-per-node {devices}, or "
            "use --device cpu"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Objects and counts travel on the CPU, gradients where they are. Detection heads may leave parameters unused in
    # a step without their class.
    strategy = DDPStrategy(
        process_group_backend="cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        timeout=_LONGEST_WAIT,
        find_unused_parameters=True,
    )
    fabric = Fabric(accelerator=kind, devices=here, num_nodes=world // here, strategy=strategy)
    fabric.launch()
    own = replace(
        execution,
        device=f"cuda:{local_rank}" if kind == "cuda" else kind,
        workers=execution.workers if execution.workers > 0 else max(execution.worker_count // here, 1),
        quiet=execution.quiet or fabric.global_rank > 0,
    )
    return Ranks(fabric), own
