"""The command line of a pipeline: one command a stage, one that runs a range of stages."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.invocation import Invocation, RunOptions
from irn_pipeline.engine.options import (
    Options,
    add_options,
    flat_config,
    nearest,
    new_parser,
)
from irn_pipeline.engine.planner import Planner
from irn_pipeline.engine.ranks import OtherProcessFailed
from irn_pipeline.engine.stage import Data, Stage
from irn_pipeline.errors import ConfigError, IrnError
from irn_pipeline.files.text import plain_line
from irn_pipeline.files.yaml_text import read_yaml

logger = logging.getLogger(__name__)
S = TypeVar("S")


@dataclass(frozen=True)
class Pipeline(Generic[S]):
    """The stages of a program in order, and how its data set is described and read.

    Attributes:
        numbered: stages a range may name by number, from 1.
        closing: stages that follow when a range is open at its end, and by name.
        source: dataclass that describes the data set.
        load: source -> data set, and the stage's warnings are logged by it.
        no_data: the data set of stages that need none.
        tools: stages that run by name only.
        presets: folder of the YAML files that --preset names.
        names: stages that a YAML file may have sections for; those of stages that are not here are passed over.
        planner: how values are chosen that nobody gives.
        in_run: data set, run folder, execution, ranks, and whether to write -> the data set as all commands on the run
            folder read it.
        in_order: source, names of classes -> the source with its classes in that order, or as it was.
    """

    numbered: tuple[Stage[Any], ...]
    closing: tuple[Stage[Any], ...]
    source: type[S]
    load: Callable[[S], Data]
    no_data: Data
    tools: tuple[Stage[Any], ...] = ()
    presets: Path | None = None
    names: tuple[str, ...] = ()
    planner: Planner | None = None
    in_run: Callable[..., Data] | None = None
    in_order: Callable[[S, Sequence[str]], S] | None = None

    @property
    def stages(self) -> tuple[Stage[Any], ...]:
        """Those that a run without a range goes through, in order."""
        return self.numbered + self.closing

    @property
    def options(self) -> list[Options]:
        """All options: those at the top, then a section for each stage."""
        common = [("", kind) for kind in (RunOptions, self.source, Execution)]
        return [*common, *((stage.name, stage.params) for stage in self.stages + self.tools)]

    def stage_named(self, name: str) -> Stage[Any]:
        """The stage of that name.

        Raises:
            ConfigError: there is none; the nearest is named.
        """
        known = {stage.name: stage for stage in self.stages + self.tools}
        if name not in known:
            raise ConfigError(f"no stage '{name}'{nearest(name, list(known))}")
        return known[name]

    def run_one(self, name: str, arguments: Sequence[str]) -> None:
        """One stage's own command: its flags have no prefix."""
        stage = self.stage_named(name)
        about = (f"python -m stages.{name}", stage.summary)
        self._command(about, [stage], {name: ""}, arguments, self._config(arguments))

    def run_range(
        self, chosen: Sequence[str], arguments: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        """The command that runs a range of stages.

        Args:
            chosen: words as for `select`.
            arguments: flags.
            config: "key" or "stage.key" -> value, with the keys checked, in place of the file that --config names.
        """
        stages = self.select(chosen)
        values = self._config(arguments) if config is None else self._with_preset(config, None)
        about = ("run_all.sh [RANGE]", "Run stages in order: 2-5, 3, 4-, -5, names, or all.")
        self._command(about, stages, self._prefixes, arguments, values)

    def show_plan(self, arguments: Sequence[str]) -> None:
        """The command that shows the plan of a run and how long its stages will take, and writes nothing."""
        about = (
            "python -m stages.plan",
            "Show the values that follow from the data set, and how long stages take.",
        )
        self._command(about, [], self._prefixes, arguments, self._config(arguments))

    @property
    def _prefixes(self) -> dict[str, str]:
        return {stage.name: f"{stage.name}." for stage in self.stages + self.tools}

    def select(self, chosen: Sequence[str]) -> list[Stage[Any]]:
        """The stages that words such as "2-5", "4-", "-5", "3" or names stand for, in pipeline order.

        Raises:
            ConfigError: a word stands for no stage.
        """
        names = {stage.name for word in chosen for stage in self._select_word(word)}
        stages = self.stages + self.tools if chosen else self.stages
        return [stage for stage in stages if not chosen or stage.name in names]

    def _select_word(self, word: str) -> Sequence[Stage[Any]]:
        match = re.fullmatch(r"(\d*)(-?)(\d*)", word)
        if match is None:
            return [self.stage_named(word)]
        first, dash, last = match.groups()
        count = len(self.numbered)
        start = int(first or 1)
        end = int(last) if last else (count if dash else start)
        if not (1 <= start <= end <= count) or word in ("", "-"):
            raise ConfigError(
                f"stage range '{word}' is impossible: stages are numbered 1 to {count}; write 2-5, 3, 4-, -5 or names"
            )
        selected = self.numbered[start - 1 : end]
        return selected + self.closing if dash and not last else selected

    def taken(self, prefixes: Mapping[str, str]) -> set[str]:
        """Flags of the data set that a stage's own command has another use for: there the run folder tells them."""
        own = {
            f.name
            for name, prefix in prefixes.items()
            if not prefix
            for f in fields(self.stage_named(name).params)
        }
        return own & {entry.name for entry in fields(self.source)}  # type: ignore[arg-type]

    def _config(self, arguments: Sequence[str]) -> dict[str, Any]:
        path = flag_value(arguments, "--config", "the path of a YAML file")
        config = {} if path is None else self.read(Path(path))
        return self._with_preset(config, flag_value(arguments, "--preset", "the name of a preset"))

    def _with_preset(self, config: Mapping[str, Any], named: str | None) -> dict[str, Any]:
        name = config.get("preset") if named is None else named
        if name is None:
            return dict(config)
        found = {} if self.presets is None else {path.stem: path for path in self.presets.glob("*.yaml")}
        if name not in found:
            raise ConfigError(f"--preset {name}: no such preset{nearest(str(name), sorted(found))}")
        return {**self.read(found[name]), **config}

    def read(self, path: Path) -> dict[str, Any]:
        """Values of a YAML file by "key" or "stage.key".

        Raises:
            ConfigError: it cannot be read, or a key is unknown.
        """
        own = {stage.name for stage in self.stages + self.tools}
        content = {k: v for k, v in read_yaml(path).items() if k in own or k not in self.names}
        return flat_config(content, self.options, str(path))

    def _command(
        self,
        about: tuple[str, str],
        stages: Sequence[Stage[Any]],
        prefixes: Mapping[str, str],
        arguments: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        """Parse everything before the first stage starts, then run the stages.

        Args:
            about: name of the command and what it does.
            stages: what is run; without any, the plan is shown.
            prefixes: names of the stages whose options there are -> what their flags begin with.
            arguments: flags; they win over `config`.
            config: "key" or "stage.key" -> value.
        """
        parser = new_parser(*about)
        explain = not {"-h", "--help"}.isdisjoint(arguments)
        add_options(parser, RunOptions, title="Run", explain=explain)
        taken = self.taken(prefixes)
        add_options(parser, self.source, title="Data set", explain=explain, taken=taken)
        title = "Execution (of these, only seed and precision change results)"
        add_options(parser, Execution, title=title, explain=explain)
        for name, prefix in prefixes.items():
            stage = self.stage_named(name)
            title = f"{name}: {stage.summary}" if prefix else "Parameters of the result"
            add_options(parser, stage.params, prefix=prefix, title=title, explain=explain)
        invocation = Invocation(self, parser, stages, prefixes, arguments, config)
        invocation.settle()
        invocation.require_effect()
        invocation.run()


def flag_value(arguments: Sequence[str], flag: str, meaning: str) -> str | None:
    """The value that a flag is last given on a command line; None where it is not there.

    Raises:
        ConfigError: the flag is the last word; it needs what `meaning` says.
    """
    found = None
    for place, word in enumerate(arguments, start=1):
        if word == flag and place == len(arguments):
            raise ConfigError(f"{flag} needs {meaning}")
        if word == flag:
            found = arguments[place]
        elif word.startswith(f"{flag}="):
            found = word.split("=", 1)[1]
    return found


def run_command(command: Callable[[], None]) -> int:
    """Run a command; what a user can mend becomes one line on standard error.

    Returns:
        0, or 1 for an error that was explained, or 130 when interrupted.
    """
    try:
        command()
    except OtherProcessFailed:
        return 1
    except IrnError as error:
        sys.stderr.write(f"error: {plain_line(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: finished work is kept; the same command continues from there\n")
        return 130
    return 0
