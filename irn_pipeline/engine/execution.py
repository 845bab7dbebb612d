"""How a stage runs, as against what it computes: devices, precision, workers, messages."""

from __future__ import annotations

import logging
import os
import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from irn_pipeline.errors import ConfigError
from irn_pipeline.files.shards import Layout
from irn_pipeline.files.text import plain_lines

if TYPE_CHECKING:  # imported when it is used: flags are refused without it
    import torch


@dataclass(frozen=True)
class Execution:
    """How a stage runs. Only the seed of a training and the precision of network passes change results."""

    device: str = "auto"
    """auto (CUDA if available, otherwise CPU), cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of network passes. auto uses bf16 where the hardware supports it. Losses, walk and CRF always use
    float32."""
    workers: int = 0
    """Number of processes for decoding and the CRF; 0 uses all cores."""
    backend: Literal["loky", "dask"] = "loky"
    """Where the CRF runs: loky (processes on this machine) or dask (a Dask cluster; needs the extra `dask`)."""
    scheduler: str | None = None
    """Address of the Dask scheduler, tcp://HOST:8786. Without it, --backend dask starts --workers processes on this
    machine."""
    images_at_once: int = 0
    """Number of images of one size that pass through a network together in make_cam and synthesize_labels. 0 chooses 8
    on a GPU, and 1 on a CPU, where more are not faster."""
    store: Layout = "files"
    """How make_cam, mine_relations and synthesize_labels store results: files (one per image) or shards (WebDataset tar
    files of 1 GB, for millions of images). Every stage reads both."""
    seed: int = 0
    """Random seed. Results of training stages depend on it."""
    overwrite: bool = False
    """Discard existing results and build them again."""
    tensorboard: bool = False
    """Also write TensorBoard event files during training (needs the extra `tensorboard`)."""
    quiet: bool = False
    """Show warnings and errors only, and no progress bars."""

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.backend != "dask":
            raise ConfigError(f"--scheduler {self.scheduler} needs --backend dask; give both or neither")
        if self.images_at_once < 0:
            raise ConfigError(
                f"--images-at-once {self.images_at_once}: give 1 or more, or 0 to let the device decide"
            )

    @property
    def worker_count(self) -> int:
        """Number of processes to use."""
        return self.workers if self.workers > 0 else available_cores()

    @property
    def batch(self) -> int:
        """Number of pictures of one size that pass through a network together."""
        return self.images_at_once or (8 if self.torch_device().type == "cuda" else 1)

    def torch_device(self) -> torch.device:
        """The device that `device` names.

        Raises:
            ConfigError: there is no such device here.
        """
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"--device {self.device}: unknown; use auto, cpu, cuda or cuda:N") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"--device {self.device}: {torch.cuda.device_count()} CUDA devices here; use --device cpu"
            )
        return device

    def uses_bf16(self) -> bool:
        """Whether network passes run in bfloat16."""
        return self.effective_precision == "bf16"

    @property
    def effective_precision(self) -> Literal["bf16", "float32"]:
        """The precision of network passes, auto resolved."""
        if self.precision == "auto":
            return "bf16" if has_fast_bf16(self.torch_device()) else "float32"
        return self.precision

    def autocast(self) -> AbstractContextManager[object]:
        """Context for network passes (never for losses)."""
        import torch

        return torch.autocast(self.torch_device().type, dtype=torch.bfloat16, enabled=self.uses_bf16())


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices natively (CUDA from Ampere on, AVX-512 BF16, AMX)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code may still use the legacy generator
    torch.manual_seed(seed)


class _PlainFormatter(logging.Formatter):
    """Tables keep their lines; what a file name could steer a terminal with does not pass."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain_lines(super().formatMessage(record))


def set_up_logging(*, quiet: bool) -> None:
    """Send the package's messages to standard error, plain."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(message)s"))
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.getLogger("irn_pipeline").setLevel(level)
