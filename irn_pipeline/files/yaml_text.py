"""YAML files of plain values; no tag in them is obeyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from irn_pipeline.errors import ConfigError
from irn_pipeline.files.regular import regular_bytes

_LONGEST = 1 << 20
"""Bytes of a configuration file."""


class _PlainLoader(yaml.SafeLoader):
    """Values only: an alias may stand for a billion values, which a message about it would write out."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write out the value")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one.

    Raises:
        ConfigError: the file is missing, no YAML, or no mapping.
    """
    try:
        data = regular_bytes(path)
        if len(data) > _LONGEST:
            raise ValueError(f"it has {len(data)} bytes; expected at most {_LONGEST}")
        content = yaml.load(data.decode("utf-8-sig"), _PlainLoader)  # a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file to --config") from error
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # PyYAML lets through what int, datetime and its own tables raise for odd values
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(content).__name__}")
    return content
