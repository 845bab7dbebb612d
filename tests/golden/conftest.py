"""Outputs of the original implementation on made inputs; `data/README.md` describes every file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden() -> Callable[[str], np.lib.npyio.NpzFile]:
    """Function from a file's name without suffix to its arrays; `GOLDEN_DIR` overrides the folder."""
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "data")

    def load(name: str) -> np.lib.npyio.NpzFile:
        return np.load(folder / f"{name}.npz", allow_pickle=False)

    return load
