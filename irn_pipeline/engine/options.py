"""Frozen dataclasses as command-line flags and YAML keys: the same fields, the same meaning, one place."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from irn_pipeline.errors import ConfigError

T = TypeVar("T")
Options = tuple[str, type[Any]]
"""A section ("" for what all stages share, else a stage's name) and a dataclass of its options."""


class OptionParser(ArgumentParser):
    """A parser that raises its errors as one line.

    Attributes:
        removed: flags of earlier versions, by destination -> what to write instead.
    """

    removed: dict[str, str]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        text = " ".join(message.split())
        if "nrecognized arguments" in text:
            words = text.split(":", 1)[-1].split()
            flag = next((word for word in words if word.startswith("--")), "").split("=")[0]
            name = flag.lstrip("-").replace("-", "_")
            if name in self.removed:
                raise ConfigError(f"{flag} was removed: {self.removed[name]}")
            if name:
                known = [action.dest for action in self._actions if action.dest != "help"]
                raise ConfigError(f"unknown flag {flag}{nearest(name, known)} (--help lists every flag)")
        raise ConfigError(f"{text} (--help lists every flag)")


def new_parser(prog: str, description: str) -> OptionParser:
    """An empty parser for one command."""
    parser = OptionParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.removed = {}
    return parser


def add_options(
    parser: OptionParser,
    options: type[Any],
    *,
    prefix: str = "",
    title: str = "",
    explain: bool = True,
    taken: Collection[str] = (),
) -> None:
    """Add one flag for each field of a dataclass; its help is the string below the field.

    jsonargparse's own groups of a dataclass have no lists without brackets and no flags without a value.

    Args:
        parser: gets the flags.
        options: a frozen dataclass with a default for every field.
        prefix: put before the names, as in `--make_cam.scales`.
        title: heading of the group in `--help`.
        explain: look up the help texts, which takes a while.
        taken: fields whose names are flags of something else in this command.
    """
    parser.removed |= {f"{prefix}{name}": remedy for name, remedy in getattr(options, "REMOVED", {}).items()}
    group = parser.add_argument_group(title or options.__name__)
    hints = get_type_hints(options)
    meanings = field_meanings(options) if explain else {}
    for entry in (one for one in fields(options) if one.name not in taken):
        flags = [f"--{prefix}{entry.name}"]
        if not prefix and "_" in entry.name:
            flags.insert(0, f"--{entry.name.replace('_', '-')}")
        hint, meaning = hints[entry.name], meanings.get(entry.name, "")
        default: Any = entry.default
        if hint is bool and default is False:
            group.add_argument(*flags, action="store_true", help=meaning)
        elif get_origin(hint) is tuple:
            kind = get_args(hint)[0]
            group.add_argument(*flags, type=kind, nargs="+", default=list(default), help=meaning)
        elif _is_one_or_more(hint):
            group.add_argument(*flags, type=get_args(hint)[0], nargs="+", default=default, help=meaning)
        elif get_origin(hint) is Literal:
            group.add_argument(*flags, choices=get_args(hint), default=default, help=meaning)
        else:
            group.add_argument(*flags, type=hint, default=default, help=meaning)


def _is_one_or_more(hint: Any) -> bool:
    """Whether a field takes a value or several, as in `int | tuple[int, ...] | None`."""
    return any(get_origin(kind) is tuple for kind in get_args(hint))


def field_meanings(options: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, on one line."""
    # A parsed class shows its own fields only, and a dataclass may inherit some.
    docs = [entry for kind in reversed(options.__mro__[:-1]) for entry in parse_from_object(kind).params]
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in docs}


def parse(parser: OptionParser, arguments: Sequence[str], config: Mapping[str, Any]) -> Namespace:
    """Parse flags over the values of a configuration ("voc_root", "make_cam.scales" -> value) over the defaults.

    Raises:
        ConfigError: an unknown flag (the nearest known one is named), a value of the wrong type, or a list of values
            in two places.
    """
    lists = {flag for action in parser._actions if action.nargs == "+" for flag in action.option_strings}
    for flag, count in Counter(word.split("=")[0] for word in arguments).items():
        if flag in lists and count > 1:
            raise ConfigError(f"{flag} is given {count} times; write all values after one {flag}")
    # One value of a field that takes several is no list in YAML; `from_namespace` takes it out again.
    several = {action.dest for action in parser._actions if action.nargs == "+" and action.default is None}
    config = {
        key: [value] if key in several and isinstance(value, int | float | str) else value
        for key, value in config.items()
    }
    try:
        if config:
            checked = parser.parse_object(_nested(config), defaults=False)
            parser.set_defaults({key: checked[key] for key in config})
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        parser.error(str(error))


def from_namespace(
    options: type[T], values: Namespace, *, prefix: str = "", taken: Collection[str] = ()
) -> T:
    """The dataclass that parsed flags describe; fields that are `taken` (see `add_options`) have their defaults.

    Raises:
        ConfigError: the dataclass itself refuses the values.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(options)
    for entry in (one for one in fields(options) if one.name not in taken):  # type: ignore[arg-type]
        value = values[f"{prefix}{entry.name}"]
        # A flag without a value has no type that the parser could check in a YAML file.
        if hints[entry.name] is bool and not isinstance(value, bool):
            raise ConfigError(f"{prefix}{entry.name} is {value!r}; it must be true or false")
        if isinstance(value, list):
            value = value[0] if _is_one_or_more(hints[entry.name]) and len(value) == 1 else tuple(value)
        found[entry.name] = value
    try:
        return options(**found)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def flat_config(content: Mapping[str, Any], options: Iterable[Options], source: str) -> dict[str, Any]:
    """Check the keys of a configuration, as read from YAML, and write those of a stage as "stage.key".

    Raises:
        ConfigError: a key is unknown or removed (the nearest known one, or the remedy, is named), or one value stands
            where a list belongs.
    """
    sections: dict[str, dict[str, Any]] = {"": {}}
    removed: dict[str, str] = {}
    for section, kind in options:
        defaults = {entry.name: entry.default for entry in fields(kind)}
        sections[section] = {**sections.get(section, {}), **defaults}
        removed |= {f"{section}.{name}": remedy for name, remedy in getattr(kind, "REMOVED", {}).items()}
    common = sections.pop("")
    flat: dict[str, Any] = {}
    for raw, value in content.items():
        key = str(raw).replace("-", "_")
        if key in common:
            flat[key] = _listed(key, value, common[key], source)
        elif key not in sections:
            raise ConfigError(f"{source}: unknown key '{raw}'{nearest(key, [*common, *sections])}")
        elif isinstance(value, Mapping):
            for raw_inner, inner in value.items():
                name = str(raw_inner).replace("-", "_")
                full = f"{key}.{name}"
                if full in removed:
                    raise ConfigError(f"{source}: {full} was removed: {removed[full]}")
                if name not in sections[key]:
                    hint = nearest(name, list(sections[key]))
                    raise ConfigError(f"{source}: unknown key '{raw_inner}' in {key}{hint}")
                flat[full] = _listed(full, inner, sections[key][name], source)
        elif value is not None:
            raise ConfigError(
                f"{source}: section '{key}' must hold 'key: value' lines, found {type(value).__name__} "
                f"{str(value)[:80]!r}"
            )
    return flat


def _listed(key: str, value: Any, default: Any, source: str) -> Any:
    """The value; one in the place of a list is refused, for the parser's own message names neither file nor key."""
    if isinstance(default, tuple) and not isinstance(value, list):
        found = "nothing" if value is None else repr(value)
        inside = value if isinstance(value, str | int | float) else "A, B"
        name = key.rsplit(".", 1)[-1]
        raise ConfigError(f"{source}: {key} must be a list, found {found}; write '{name}: [{inside}]'")
    return value


def nearest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' with the nearest known name, or the list of all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested
