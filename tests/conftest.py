"""What every test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_at_start() -> Iterator[None]:
    """A command that a test or a shared fixture runs sets the package's level; no test must inherit it."""
    logging.getLogger("irn_pipeline").setLevel(logging.NOTSET)
    yield
