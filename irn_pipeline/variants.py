"""Variants of one step, such as the segmentation models: each is one module with its own parameters.

A stage's parameters inherit from those of all variants, so that flags and YAML keys are flat. A parameter that the
chosen variant does not have is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, TypeVar

V = TypeVar("V")


def load_variants(package: str, kind: type[V], names: Sequence[str]) -> dict[str, V]:
    """The variants of a package by name, in the order of `names`.

    Args:
        package: its module NAME declares a variant under the name of `kind` in capitals: `MODEL` for the class `Model`.
        kind: class of the declarations.
        names: of the modules.
    """
    return {name: getattr(import_module(f"{package}.{name}"), kind.__name__.upper()) for name in names}


class _ChecksOfAll:
    def __post_init__(self) -> None:
        kinds = type(self).__mro__
        for kind in kinds[kinds.index(_ChecksOfAll) + 1 :]:
            if "__post_init__" in vars(kind):
                kind.__post_init__(self)  # type: ignore[attr-defined]


def bases_of(params: Collection[type[Any]]) -> tuple[type[Any], ...]:
    """The bases of a dataclass with the parameters of all variants; it runs the `__post_init__` of each of them."""
    kinds = dict.fromkeys(params)
    return _ChecksOfAll, *(a for a in kinds if not any(issubclass(b, a) for b in kinds if b is not a))


def unused_by(chosen: Sequence[str], params: Mapping[str, type[Any]]) -> dict[str, str]:
    """Parameters that none of the chosen variants has -> why they have no effect.

    Args:
        chosen: names of variants.
        params: name of each variant -> dataclass of its parameters.
    """
    owners: dict[str, list[str]] = {}
    for variant, kind in params.items():
        for entry in fields(kind):
            owners.setdefault(entry.name, []).append(variant)
    return {
        name: f"has no effect with {' and '.join(chosen)}; it is for {' and '.join(having)}"
        for name, having in sorted(owners.items())
        if not set(having) & set(chosen)
    }
