"""Flags and YAML keys are the same fields of the same dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from irn_pipeline.engine.options import (
    add_options,
    field_meanings,
    flat_config,
    from_namespace,
    nearest,
    new_parser,
    parse,
)
from irn_pipeline.errors import ConfigError
from irn_pipeline.files.yaml_text import read_yaml
from tests.engine.samples import UpperParams


def parsed(*flags: str, config: dict[str, Any] | None = None) -> UpperParams:
    parser = new_parser("test", "A test.")
    add_options(parser, UpperParams)
    return from_namespace(UpperParams, parse(parser, flags, config or {}))


def test_defaults_are_the_dataclass_own() -> None:
    assert parsed() == UpperParams()


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        (["--repeat", "3"], {"repeat": 3}),
        (["--scales", "2.0", "0.25", "1"], {"scales": [2.0, 0.25, 1]}),
        (["--scales", "1.5"], {"scales": [1.5]}),
        (["--mark", "dash"], {"mark": "dash"}),
        (["--loud"], {"loud": True}),
        (["--repeat=2", "--mark=dash"], {"repeat": 2, "mark": "dash"}),
    ],
)
def test_flags_equal_yaml(flags: list[str], config: dict[str, Any]) -> None:
    assert parsed(*flags) == parsed(config=config)
    assert parsed(*flags) != UpperParams()


def test_a_flag_wins_over_the_file() -> None:
    found = parsed("--repeat", "5", config={"repeat": 2, "mark": "dash"})
    assert (found.repeat, found.mark) == (5, "dash")


@pytest.mark.parametrize(
    ("flags", "config", "named"),
    [
        (["--repeat", "many"], {}, "repeat"),
        (["--scales", "big"], {}, "scales"),
        (["--mark", "comma"], {}, "argument --mark: invalid choice: 'comma' (choose from"),
        (
            ["--scales", "1", "--scales=2"],
            {},
            "--scales is given 2 times; write all values after one --scales",
        ),
        ([], {"repeat": "many"}, "repeat"),
        ([], {"repeat": 1.5}, "repeat"),
        ([], {"scales": {"a": 1}}, "scales"),
        ([], {"mark": "comma"}, "\"mark\": 'comma' not among choices ('dot', 'dash')"),
        ([], {"loud": "perhaps"}, "loud"),
        (["--repeat", "0"], {}, "repeat is 0; it must be 1 or more"),
        (["--repeet", "2"], {}, "unknown flag --repeet; did you mean 'repeat'?"),
    ],
)
def test_wrong_values_are_one_line_that_names_them(
    flags: list[str], config: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(*flags, config=config)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prefixed_options_do_not_meet() -> None:
    parser = new_parser("test", "A test.")
    for name in ("a", "b"):
        add_options(parser, UpperParams, prefix=f"{name}.")
    values = parse(parser, ["--b.repeat", "4"], {"a.repeat": 2, "b.scales": [3.0]})
    assert from_namespace(UpperParams, values, prefix="a.") == UpperParams(repeat=2)
    assert from_namespace(UpperParams, values, prefix="b.") == UpperParams(repeat=4, scales=(3.0,))


def test_help_holds_every_meaning_and_default() -> None:
    parser = new_parser("test", "A test.")
    add_options(parser, UpperParams, title="Copy")
    text = " ".join(parser.format_help().split())
    assert field_meanings(UpperParams)["mark"] == "What ends a word."
    for part in ("Copy", "How many times.", "What ends a word.", "default: 1", "default: dot"):
        assert part in text


@dataclass(frozen=True)
class _LongerParams(UpperParams):
    """Parameters with one more."""

    more: int = 1
    """One more."""


def test_inherited_fields_have_their_meaning() -> None:
    meanings = field_meanings(_LongerParams)
    assert (meanings["mark"], meanings["more"]) == ("What ends a word.", "One more.")


@dataclass(frozen=True)
class _Common:
    voc_root: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Cam:
    scales: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class _Nothing:
    pass


def flat(content: dict[str, Any]) -> dict[str, Any]:
    return flat_config(content, [("", _Common), ("make_cam", _Cam), ("evaluate", _Nothing)], "x.yaml")


def test_sections_become_dotted_names() -> None:
    content = {"voc-root": "a", "seed": 1, "make_cam": {"scales": [1.0]}, "evaluate": None}
    assert flat(content) == {"voc_root": "a", "seed": 1, "make_cam.scales": [1.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"voc_rot": "a"}, "x.yaml: unknown key 'voc_rot'; did you mean 'voc_root'?"),
        ({"make_cm": {}}, "x.yaml: unknown key 'make_cm'; did you mean 'make_cam'?"),
        ({"make_cam": {"scale": 1}}, "x.yaml: unknown key 'scale' in make_cam; did you mean 'scales'?"),
        ({"zzzz": 1}, "known are voc_root, seed, make_cam, evaluate"),
        ({3: 1}, "unknown key '3'"),
    ],
)
def test_unknown_keys_name_the_nearest(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flat(content)
    assert message in str(caught.value)


def test_nearest_lists_all_when_none_is_near() -> None:
    assert nearest("scals", ["scales", "seed"]) == "; did you mean 'scales'?"
    assert nearest("qqq", ["scales", "seed"]) == "; known are scales, seed"


@pytest.mark.parametrize(
    "content", ["- a\n- b\n", "a: [1\n", "a: !!python/object/apply:os.system ['true']\n", "text"]
)
def test_files_that_are_no_mapping_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_yaml(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        read_yaml(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        read_yaml(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@dataclass(frozen=True)
class Lengths:
    """One number or several."""

    epochs: int | tuple[int, ...] | None = None
    """Passes."""


@pytest.mark.parametrize(
    ("flags", "config", "value"),
    [
        ([], {}, None),
        (["--epochs", "3"], {"epochs": 3}, 3),
        (["--epochs", "3", "4"], {"epochs": [3, 4]}, (3, 4)),
        (["--epochs", "3"], {"epochs": [3]}, 3),
        ([], {"epochs": None}, None),
    ],
)
def test_a_field_can_take_one_value_or_several(
    flags: list[str], config: dict[str, Any], value: object
) -> None:
    for words, content in ((flags, {}), ([], config)):
        parser = new_parser("test", "A test.")
        add_options(parser, Lengths)
        found = parse(parser, words, content)
        assert from_namespace(Lengths, found).epochs == (value if words or content else None)


def test_a_wrong_value_in_the_place_of_one_or_several_is_told() -> None:
    for words, content in (
        (["--epochs", "many"], {}),
        ([], {"epochs": "many"}),
        ([], {"epochs": [1, "many"]}),
    ):
        parser = new_parser("test", "A test.")
        add_options(parser, Lengths)
        with pytest.raises(ConfigError, match="epochs"):
            parse(parser, words, content)
