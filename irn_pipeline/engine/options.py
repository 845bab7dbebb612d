"""Frozen dataclasses as command-line flags and YAML keys: the same fields, the same meaning, one place."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from irn_pipeline.errors import ConfigError
from irn_pipeline.files.regular import regular_bytes

T = TypeVar("T")
_LONGEST = 1 << 20
"""Bytes of a configuration file."""


class _PlainLoader(yaml.SafeLoader):
    """Values only: an alias may stand for a billion values, which a message about it would write out."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not admitted; write the value out")
        return super().compose_node(parent, index)


class OptionParser(ArgumentParser):
    """A parser whose errors are one line.

    Attributes:
        removed: flags of earlier versions, by destination -> what to write instead.
    """

    removed: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise ConfigError(message)


def new_parser(prog: str, description: str) -> OptionParser:
    """An empty parser for one command."""
    return OptionParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)


def add_options(parser: OptionParser, options: type[Any], *, prefix: str = "", title: str = "") -> None:
    """Add one flag for each field of a dataclass; its help is the string below the field.

    Args:
        parser: gets the flags.
        options: a frozen dataclass with a default for every field.
        prefix: put before the names, as in `--make_cam.scales`.
        title: heading of the group in `--help`.
    """
    parser.removed = {**parser.removed, **removed_options(options, prefix)}
    group = parser.add_argument_group(title or options.__name__)
    hints = get_type_hints(options)
    meanings = field_meanings(options)
    for entry in fields(options):
        default: Any = entry.default
        hint = hints[entry.name]
        flag = f"--{prefix}{entry.name if prefix else entry.name.replace('_', '-')}"
        flags = [flag] if flag == f"--{prefix}{entry.name}" else [flag, f"--{entry.name}"]
        meaning = meanings.get(entry.name, "")
        if hint is bool and default is False:
            group.add_argument(*flags, action="store_true", help=meaning)
        elif get_origin(hint) is tuple:
            kind = get_args(hint)[0]
            group.add_argument(*flags, type=kind, nargs="+", default=list(default), help=meaning)
        else:
            group.add_argument(*flags, type=hint, default=default, help=meaning)


def removed_options(options: type[Any], prefix: str = "") -> dict[str, str]:
    """Fields that a dataclass had in earlier versions (its `REMOVED`) -> what to write instead."""
    return {f"{prefix}{name}": remedy for name, remedy in getattr(options, "REMOVED", {}).items()}


def field_meanings(options: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, on one line."""
    # A parsed class shows its own fields only, and a dataclass may inherit some.
    docs = [entry for kind in reversed(options.__mro__[:-1]) for entry in parse_from_object(kind).params]
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in docs}


def from_namespace(options: type[T], values: Namespace, *, prefix: str = "") -> T:
    """The dataclass that parsed flags describe.

    Raises:
        ConfigError: the dataclass itself refuses the values.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(options)
    for entry in fields(options):  # type: ignore[arg-type]
        value = values[f"{prefix}{entry.name}"]
        # A flag without a value has no type that the parser could check in a YAML file.
        if hints[entry.name] is bool and not isinstance(value, bool):
            raise ConfigError(f"{prefix}{entry.name} is {value!r}; it must be true or false")
        found[entry.name] = tuple(value) if isinstance(value, list) else value
    try:
        return options(**found)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def given_flags(arguments: Sequence[str]) -> set[str]:
    """Destinations ("voc_root", "make_cam.scales") of the flags on a command line."""
    flags = (word.split("=", 1)[0] for word in arguments if word.startswith("--"))
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


def parse(parser: OptionParser, arguments: Sequence[str], config: Mapping[str, Any]) -> Namespace:
    """Parse flags over the values of a configuration file over the defaults.

    Args:
        parser: with all its options added.
        arguments: the flags.
        config: destination ("voc_root", "make_cam.scales") -> value.

    Raises:
        ConfigError: an unknown flag (the nearest known one is named), a value of the wrong type, or a list of values
            in two places.
    """
    known = [action.dest for action in parser._actions if action.dest != "help"]
    lists = {flag for action in parser._actions if action.nargs == "+" for flag in action.option_strings}
    for flag, count in Counter(word.split("=")[0] for word in arguments).items():
        if flag in lists and count > 1:
            raise ConfigError(f"{flag} is given {count} times; write all values after one {flag}")
    try:
        if config:
            checked = parser.parse_object(_nest(config), defaults=False)
            parser.set_defaults({key: checked[key] for key in config})
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ConfigError(_one_line(error, known, parser.removed)) from error
    except ConfigError as error:
        raise ConfigError(_one_line(error, known, parser.removed)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain values; no tag in it is obeyed.

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


def flatten_config(
    content: Mapping[str, Any],
    common: Sequence[str],
    stages: Mapping[str, Sequence[str]],
    source: str,
    removed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Check the keys of a configuration and write nested ones with a dot.

    Args:
        content: as read from YAML: common keys at the top, one section a stage.
        common: known keys at the top.
        stages: stage name -> its known keys.
        source: named in errors.
        removed: "stage.key" of earlier versions -> what to write instead.

    Raises:
        ConfigError: a key is unknown or removed; the nearest known one, or the remedy, is named.
    """
    flat: dict[str, Any] = {}
    for raw, value in content.items():
        key = str(raw).replace("-", "_")
        if key in stages and isinstance(value, Mapping):
            for raw_inner, inner in value.items():
                name = str(raw_inner).replace("-", "_")
                if f"{key}.{name}" in removed:
                    raise ConfigError(f"{source}: {key}.{name} is gone: {removed[f'{key}.{name}']}")
                if name not in stages[key]:
                    raise ConfigError(
                        f"{source}: unknown key '{raw_inner}' in {key}{nearest(name, stages[key])}"
                    )
                flat[f"{key}.{name}"] = inner
        elif key in common:
            flat[key] = value
        elif key in stages and value is None:
            continue
        elif key in stages:
            raise ConfigError(
                f"{source}: section '{key}' must hold 'key: value' lines, found {type(value).__name__} "
                f"{str(value)[:80]!r}"
            )
        else:
            raise ConfigError(f"{source}: unknown key '{raw}'{nearest(key, [*common, *stages])}")
    return flat


def require_lists(flat: Mapping[str, Any], options: Sequence[tuple[str, type[Any]]], source: str) -> None:
    """Refuse one value where a list belongs: the parser's own message would name neither file nor key.

    Args:
        flat: "key" or "stage.key" -> value.
        options: (stage, or "" for common keys; dataclass with these keys).
        source: named in the error.

    Raises:
        ConfigError: a value is no list, but its field is a tuple.
    """
    lists = {
        f"{stage}.{entry.name}".lstrip(".")
        for stage, kind in options
        for entry in fields(kind)
        if isinstance(entry.default, tuple)
    }
    for key, value in flat.items():
        if key in lists and not isinstance(value, list):
            found = "nothing" if value is None else repr(value)
            inside = value if isinstance(value, str | int | float) else "A, B"
            name = key.rsplit(".", 1)[-1]
            raise ConfigError(f"{source}: {key} must be a list, found {found}; write '{name}: [{inside}]'")


def nearest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' with the nearest known name, or the list of all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return nested


def _one_line(error: Exception, known: Sequence[str], removed: Mapping[str, str]) -> str:
    text = " ".join(str(error).split())
    if "nrecognized arguments" in text:
        flag = next((word for word in text.split(":", 1)[-1].split() if word.startswith("--")), "")
        name = flag.lstrip("-").split("=")[0].replace("-", "_")
        if name in removed:
            return f"{flag.split('=')[0]} is gone: {removed[name]}"
        if name:
            return f"unknown flag {flag.split('=')[0]}{nearest(name, known)} (--help lists every flag)"
    return f"{text} (--help lists every flag)"
