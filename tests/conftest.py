"""What every test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_at_start() -> Iterator[None]:
    """A command that a test or a shared fixture runs sets up logging; no test must inherit its level or its stream."""
    logging.getLogger("irn_pipeline").setLevel(logging.NOTSET)
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    yield
