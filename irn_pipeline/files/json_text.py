"""JSON whose damage is always a ValueError, however it is nested."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 50
"""Lists in lists and objects in objects; what walks through the value calls itself no deeper."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Args:
        text: of a record of this program, so small; bytes are UTF-8.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested more than MAX_DEPTH deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
