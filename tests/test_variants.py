"""Variants: found by name, and what the chosen ones do not have is named."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from irn_pipeline.variants import load_variants, unused_by


@dataclass(frozen=True)
class Shared:
    size: int = 1


@dataclass(frozen=True)
class Cross(Shared):
    arms: int = 4


@dataclass(frozen=True)
class Disc(Shared):
    radius: float = 1.0


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Shape:
    params: type


PARAMS = {"cross": Cross, "disc": Disc, "nothing": Nothing}


@pytest.mark.parametrize(
    ("chosen", "unused"),
    [
        (["cross"], {"radius": "has no effect with cross; it is for disc"}),
        (["disc"], {"arms": "has no effect with disc; it is for cross"}),
        (["cross", "disc"], {}),
        (
            ["nothing"],
            {
                "arms": "has no effect with nothing; it is for cross",
                "radius": "has no effect with nothing; it is for disc",
                "size": "has no effect with nothing; it is for cross and disc",
            },
        ),
        (["cross", "nothing"], {"radius": "has no effect with cross and nothing; it is for disc"}),
    ],
)
def test_what_no_chosen_variant_has_is_named(chosen: list[str], unused: dict[str, str]) -> None:
    assert unused_by(chosen, PARAMS) == unused


def test_variants_are_found_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {}
    for name, kind in PARAMS.items():
        module = ModuleType(f"shapes.{name}")
        declared[name] = module.SHAPE = Shape(kind)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"shapes.{name}", module)
    monkeypatch.setitem(sys.modules, "shapes", ModuleType("shapes"))
    found = load_variants("shapes", Shape, ["nothing", "cross"])
    assert list(found.items()) == [("nothing", declared["nothing"]), ("cross", declared["cross"])]
