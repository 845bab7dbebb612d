"""The plan of a run folder on made-up stages: when it is made, that it is kept, and what wins over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from irn_pipeline.engine.command import Pipeline, run_command
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.planner import PLAN_NAME, Choice, Planner, plan_text
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.yaml_text import read_yaml
from tests.engine.samples import Source, Stages, Words, load


@dataclass
class Plans:
    """A planner that repeats each word as often as there are words, and what it was given."""

    given: list[dict[str, Any]] = field(default_factory=list)
    forecasts: list[tuple[int, list[str]]] = field(default_factory=list)

    def choose(self, data: Words, execution: Execution, given: Mapping[str, Any]) -> list[Choice]:
        self.given.append(dict(given))
        chosen = [
            Choice("count", "start", 5, "counted from five"),
            Choice("upper", "repeat", len(data.items), "as often as there are words"),
            Choice("upper", "scales", [0.25], "one is enough"),
            Choice("upper", "mark", "dash", "clearer"),
        ]
        return [choice for choice in chosen if choice.key not in given]

    def forecast(
        self, data: Words, execution: Execution, params: Mapping[str, Any], stages: Sequence[str]
    ) -> str:
        self.forecasts.append((params["upper"].repeat if "upper" in params else 0, list(stages)))
        return "a minute"


@pytest.fixture
def plans() -> Plans:
    return Plans()


@pytest.fixture
def pipeline(plans: Plans, tmp_path: Path) -> Pipeline[Source]:
    made = Stages()
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "loud.yaml").write_text("upper: {loud: true, repeat: 7}\n")
    return Pipeline(
        numbered=(made.count, made.upper),
        closing=(made.report,),
        source=Source,
        load=load,
        no_data=Words(()),
        presets=presets,
        planner=Planner(("count", "upper"), plans.choose, plans.forecast),
    )


def flags(folder: Path, *more: str) -> list[str]:
    return ["--run-dir", str(folder / "run"), "--words", "one two", "--device", "cpu", *more]


def params_of(folder: Path, stage: str) -> dict[str, Any]:
    record = RunFolder(folder / "run").record(stage)
    assert record is not None
    return record.params


def test_a_plan_is_made_before_the_first_stage_and_shown_with_reasons(
    pipeline: Pipeline[Source], plans: Plans, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run_range(["1-2"], flags(tmp_path))
    assert params_of(tmp_path, "count") == {"start": 5}
    assert params_of(tmp_path, "upper") == {"repeat": 2, "scales": [0.25], "mark": "dash", "loud": False}
    text = (tmp_path / "run" / PLAN_NAME).read_text()
    assert "  repeat: 2       # as often as there are words\n" in text
    assert read_yaml(tmp_path / "run" / PLAN_NAME) == {
        "count": {"start": 5},
        "upper": {"repeat": 2, "scales": [0.25], "mark": "dash"},
    }
    assert plans.forecasts == [(2, ["count", "upper"])]
    shown = capsys.readouterr().err
    assert "repeat: 2       # as often as there are words" in shown
    assert shown.index("a minute") < shown.index("count: ")


def test_later_commands_read_the_plan_and_make_no_other(
    pipeline: Pipeline[Source], plans: Plans, tmp_path: Path
) -> None:
    pipeline.run_one("count", flags(tmp_path))
    path = tmp_path / "run" / PLAN_NAME
    path.write_text(path.read_text().replace("repeat: 2", "repeat: 4"))
    pipeline.run_one("upper", flags(tmp_path))
    assert params_of(tmp_path, "upper")["repeat"] == 4
    assert "repeat: 4" in path.read_text()
    assert len(plans.given) == 1


@pytest.mark.parametrize(
    ("words", "config", "repeat"),
    [
        ([], None, 2),
        (["--preset", "loud"], None, 7),
        (["--preset", "loud"], "upper: {repeat: 8}\n", 8),
        (["--preset", "loud", "--upper.repeat", "9"], "upper: {repeat: 8}\n", 9),
        ([], "upper: {repeat: 8}\n", 8),
        (["--upper.repeat", "1"], None, 1),  # the default, but given
        (["--plan", "published"], None, 1),
        ([], "plan: published\n", 1),
        (["--plan", "auto"], "plan: published\n", 2),
    ],
)
def test_flag_over_file_over_preset_over_plan_over_default(
    pipeline: Pipeline[Source],
    plans: Plans,
    tmp_path: Path,
    words: list[str],
    config: str | None,
    repeat: int,
) -> None:
    if config is not None:
        (tmp_path / "c.yaml").write_text(config)
        words = [*words, "--config", str(tmp_path / "c.yaml")]
    pipeline.run_range(["1-2"], flags(tmp_path, *words))
    assert params_of(tmp_path, "upper")["repeat"] == repeat
    published = not plans.given
    assert (tmp_path / "run" / PLAN_NAME).is_file() is not published
    assert params_of(tmp_path, "count")["start"] == (0 if published else 5)
    # A second run finds the same values, and so has nothing to do.
    pipeline.run_range(["1-2"], flags(tmp_path, *words))


def test_the_planner_learns_what_was_given(pipeline: Pipeline[Source], plans: Plans, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("count: {start: 3}\n")
    pipeline.run_range(["1"], flags(tmp_path, "--config", str(tmp_path / "c.yaml"), "--upper.repeat=6"))
    pipeline.run_one("count", flags(tmp_path / "other", "--start", "6", "--preset", "loud"))
    assert {"count.start": 3, "upper.repeat": 6}.items() <= plans.given[0].items()
    assert {"count.start": 6, "upper.repeat": 7, "upper.loud": True}.items() <= plans.given[1].items()
    assert read_yaml(tmp_path / "run" / PLAN_NAME) == {"upper": {"scales": [0.25], "mark": "dash"}}


def test_a_run_folder_that_was_begun_without_a_plan_goes_on_without(
    pipeline: Pipeline[Source], plans: Plans, tmp_path: Path
) -> None:
    pipeline.run_one("count", flags(tmp_path, "--plan", "published"))
    pipeline.run_range(["1-2"], flags(tmp_path))
    assert params_of(tmp_path, "upper")["repeat"] == 1
    assert plans.given == []
    assert not (tmp_path / "run" / PLAN_NAME).exists()


def test_a_plan_that_nothing_was_made_with_is_dropped(
    pipeline: Pipeline[Source], plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="run stage count"):
        pipeline.run_one("upper", flags(tmp_path))
    assert not (tmp_path / "run").exists()
    # With results, an interruption leaves it.
    stages = Stages(fail_at="w1")
    with pytest.raises(KeyboardInterrupt):
        replace(pipeline, numbered=(stages.count, stages.upper)).run_range(["1-2"], flags(tmp_path))
    assert (tmp_path / "run" / PLAN_NAME).is_file()
    assert len(plans.given) == 2


def test_stages_without_a_plan_make_none(pipeline: Pipeline[Source], plans: Plans, tmp_path: Path) -> None:
    only_upper = replace(pipeline, planner=Planner(("upper",), plans.choose, plans.forecast))
    only_upper.run_range(["1"], flags(tmp_path))
    assert plans.given == []


def test_quiet_times_nothing(pipeline: Pipeline[Source], plans: Plans, tmp_path: Path) -> None:
    pipeline.run_range(["1-2"], flags(tmp_path, "--quiet"))
    assert params_of(tmp_path, "upper")["repeat"] == 2
    assert plans.forecasts == []


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([], "plan of "),
        (["count"], ", which later commands use:\n# Values"),
        (
            ["count", "--plan", "published"],
            "has results that were started without a plan: values that you do not give",
        ),
    ],
)
def test_the_plan_is_shown_and_nothing_is_written(
    pipeline: Pipeline[Source],
    plans: Plans,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: list[str],
    said: str,
) -> None:
    if before:
        pipeline.run_one(before[0], flags(tmp_path, "--quiet", *before[1:]))
    there = sorted(tmp_path.rglob("*"))
    pipeline.show_plan(flags(tmp_path, "--quiet", "--count.start", "1"))
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == there
    published = "--plan" in before
    assert plans.forecasts == [(1 if published else 2, ["count", "upper"])]


def test_a_damaged_plan_is_one_line(
    pipeline: Pipeline[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / PLAN_NAME
    path.parent.mkdir()
    for text, message in (
        ("upper: [", "cannot be read as YAML"),
        ("uper: {repeat: 1}\n", "did you mean 'upper'"),
    ):
        path.write_text(text)
        assert run_command(lambda: pipeline.run_range(["1"], flags(tmp_path))) == 1
        error = capsys.readouterr().err
        assert str(path) in error
        assert message in error
        assert path.read_text() == text


def test_reasons_stand_in_one_column() -> None:
    choices = [Choice("a", "long_name", [1, 2], "why"), Choice("a", "b", "x", "because")]
    assert plan_text(choices) == ('a:\n  long_name: [1, 2]  # why\n  b: "x"             # because\n')
