"""The command line on made-up stages."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from irn_pipeline.engine.command import Pipeline, run_command
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError, IrnError
from tests.engine.samples import REPORT, UPPER, Source, Stages, Words, load


@pytest.fixture
def pipeline() -> Pipeline[Source]:
    made = Stages()
    tool = replace(made.report, name="tool", needs_data=False)
    return Pipeline(
        numbered=(made.count, made.upper),
        closing=(made.report,),
        source=Source,
        load=load,
        no_data=Words(()),
        tools=(tool,),
    )


def flags(folder: Path, *more: str) -> list[str]:
    return ["--run-dir", str(folder / "run"), "--words", "one two", "--quiet", "--device", "cpu", *more]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "count upper report"),
        (["1-2"], "count upper"),
        (["2"], "upper"),
        (["2-"], "upper report"),
        (["-1"], "count"),
        (["-2"], "count upper"),
        (["1-"], "count upper report"),
        (["report"], "report"),
        (["tool"], "tool"),
        (["report", "count"], "count report"),
        (["1", "upper"], "count upper"),
        (["1", "1-2"], "count upper"),
    ],
)
def test_ranges(pipeline: Pipeline[Source], words: list[str], expected: str) -> None:
    assert " ".join(stage.name for stage in pipeline.select(words)) == expected


@pytest.mark.parametrize("word", ["0", "3", "2-1", "1-3", "-", "0-", "-3", "", "--", "1-2-3", "uper"])
def test_impossible_ranges(pipeline: Pipeline[Source], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pipeline.select([word])
    assert f"'{word}'" in str(caught.value)


def test_a_misspelt_stage_names_the_nearest(pipeline: Pipeline[Source]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'upper'"):
        pipeline.select(["uper"])


def test_one_stage_and_a_range_make_the_same(pipeline: Pipeline[Source], tmp_path: Path) -> None:
    pipeline.run_range([], flags(tmp_path / "a", "--upper.repeat", "2"))
    pipeline.run_one("count", flags(tmp_path / "b"))
    pipeline.run_one("upper", flags(tmp_path / "b", "--repeat", "2"))
    pipeline.run_one("report", flags(tmp_path / "b"))
    texts = [RunFolder(tmp_path / name / "run").read(REPORT) for name in "ab"]
    assert texts == ["ONEONE TWOTWO"] * 2
    records = [RunFolder(tmp_path / name / "run").record("upper") for name in "ab"]
    assert records[0] is not None
    assert records[1] is not None
    assert records[0].fingerprint == records[1].fingerprint


def test_yaml_and_flags_make_the_same(pipeline: Pipeline[Source], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("quiet: true\nwords: one two\nupper:\n  repeat: 2\n  scales: [0.5]\n  loud: true\n")
    common = ["--device", "cpu", "--run-dir"]
    pipeline.run_range(["1-2"], ["--config", str(config), *common, str(tmp_path / "a")])
    pipeline.run_range(
        ["1-2"], flags(tmp_path, "--upper.repeat", "2", "--upper.scales", "0.5", "--upper.loud")
    )
    pipeline.run_one("count", [f"--config={config}", *common, str(tmp_path / "c")])
    pipeline.run_one("upper", [f"--config={config}", *common, str(tmp_path / "c")])
    found = [RunFolder(tmp_path / name).record("upper") for name in ("a", "run", "c")]
    assert all(record is not None for record in found)
    assert len({record.fingerprint for record in found if record is not None}) == 1
    assert found[0] is not None
    assert found[0].params == {"repeat": 2, "scales": [0.5], "mark": "dot", "loud": True}


def test_a_flag_wins_over_the_file(pipeline: Pipeline[Source], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("upper: {repeat: 2}\nwords: three\n")
    pipeline.run_range(["1-2"], ["--config", str(config), *flags(tmp_path), "--upper.repeat", "3"])
    assert RunFolder(tmp_path / "run").read(UPPER, "w0") == "ONEONEONE"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("upper: {scales: 0.5}\n", "upper.scales must be a list, found 0.5; write 'scales: [0.5]'"),
        ("upper:\n  scales:\n", "upper.scales must be a list, found nothing; write 'scales: [A, B]'"),
        ("upper: {scales: {a: 1}}\n", "upper.scales must be a list, found {'a': 1}; write 'scales: [A, B]'"),
    ],
)
def test_one_value_instead_of_a_list_names_file_and_remedy(
    pipeline: Pipeline[Source], tmp_path: Path, content: str, message: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(content)
    for run in (partial(pipeline.run_range, ["1-2"]), partial(pipeline.run_one, "upper")):
        with pytest.raises(ConfigError) as caught:
            run(["--config", str(config), *flags(tmp_path)])
        assert str(caught.value) == f"{config}: {message}"
    assert not (tmp_path / "run").exists()


def test_all_parameters_are_checked_before_the_first_stage(
    pipeline: Pipeline[Source], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="repeat is 0"):
        pipeline.run_range([], flags(tmp_path, "--upper.repeat", "0"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "abacus"], "--device abacus: unknown"),
        (["--device", "cuda:99"], "CUDA devices here"),
        (["--config"], "--config needs the path"),
        (["--config", "gone.yaml"], "gone.yaml: no such file"),
        (["--wrods", "x"], "did you mean 'words'"),
        (["--precision", "int4"], "precision"),
    ],
)
def test_wrong_flags(pipeline: Pipeline[Source], tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pipeline.run_one("count", flags(tmp_path, *more))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_data_set_is_one_line(
    pipeline: Pipeline[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert run_command(lambda: pipeline.run_one("count", arguments)) == 1
    assert capsys.readouterr().err == "error: no words: give --words\n"


def test_errors_are_put_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise IrnError("first\n  second")

    assert run_command(fail) == 1
    assert capsys.readouterr().err == "error: first second\n"


def test_an_interruption_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert run_command(stop) == 130
    assert "continues from there" in capsys.readouterr().err
    assert run_command(lambda: None) == 0


@pytest.mark.parametrize("name", ["count", "upper", "report"])
def test_help_lists_every_flag(
    pipeline: Pipeline[Source], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        pipeline.run_one(name, ["--help"])
    assert caught.value.code in (0, None)
    text = capsys.readouterr().out
    for flag in ("--run-dir", "--words", "--seed", "--overwrite", "--quiet", "--precision"):
        assert flag in text


def test_a_tool_needs_no_data_set(tmp_path: Path, pipeline: Pipeline[Source]) -> None:
    pipeline.run_range(["1-2"], flags(tmp_path))
    pipeline.run_one("tool", ["--run-dir", str(tmp_path / "run"), "--quiet", "--device", "cpu"])
    assert (tmp_path / "run" / "tool" / "stage.json").is_file()


def test_other_stages_need_one(tmp_path: Path, pipeline: Pipeline[Source]) -> None:
    with pytest.raises(IrnError, match="no words"):
        pipeline.run_one("count", ["--run-dir", str(tmp_path / "run"), "--quiet", "--device", "cpu"])


@pytest.fixture
def with_presets(pipeline: Pipeline[Source], tmp_path: Path) -> Pipeline[Source]:
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "threefold.yaml").write_text("upper: {repeat: 3, scales: [0.25]}\ncount: {start: 7}\n")
    (folder / "wrong.yaml").write_text("upper: {repaet: 3}\n")
    return replace(pipeline, presets=folder)


def made_with(pipeline: Pipeline[Source], folder: Path, *more: str) -> tuple[object, object]:
    pipeline.run_range(["1-2"], flags(folder, *more))
    record = RunFolder(folder / "run").record("upper")
    assert record is not None
    return record.params["repeat"], record.params["scales"]


def test_flags_win_over_the_file_over_the_preset_over_the_defaults(
    with_presets: Pipeline[Source], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("upper: {repeat: 2}\n")
    both = ("--preset", "threefold", "--config", str(config))
    assert made_with(with_presets, tmp_path / "a") == (1, [1.0, 0.5])
    assert made_with(with_presets, tmp_path / "b", "--preset=threefold") == (3, [0.25])
    assert made_with(with_presets, tmp_path / "c", *both) == (2, [0.25])
    assert made_with(with_presets, tmp_path / "d", *both, "--upper.repeat", "4") == (4, [0.25])
    config.write_text("preset: threefold\n")
    assert made_with(with_presets, tmp_path / "e", "--config", str(config)) == (3, [0.25])


def test_one_stage_takes_its_own_part_of_a_preset(with_presets: Pipeline[Source], tmp_path: Path) -> None:
    with_presets.run_one("count", flags(tmp_path, "--preset", "threefold"))
    record = RunFolder(tmp_path / "run").record("count")
    assert record is not None
    assert record.params == {"start": 7}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "threfold"], "--preset threfold: no such preset; did you mean 'threefold'?"),
        (["--preset", "zzz"], "known are threefold, wrong"),
        (["--preset", "../presets/threefold"], "no such preset"),
        (["--preset"], "--preset needs the name"),
        (["--preset", "wrong"], "wrong.yaml: unknown key 'repaet' in upper; did you mean 'repeat'?"),
    ],
)
def test_wrong_presets(with_presets: Pipeline[Source], tmp_path: Path, more: list[str], message: str) -> None:
    for command in (
        lambda: with_presets.run_one("count", flags(tmp_path, *more)),
        lambda: with_presets.run_range([], flags(tmp_path, *more)),
    ):
        with pytest.raises(ConfigError) as caught:
            command()
        assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
