"""What every test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_at_start() -> Iterator[None]:
    """A command that a test runs sets the package's level; the next test must not inherit it."""
    logger = logging.getLogger("irn_pipeline")
    before = logger.level
    yield
    logger.setLevel(before)
