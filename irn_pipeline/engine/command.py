"""The command line of a pipeline: one command a stage, one that runs a range of stages."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from irn_pipeline.engine.dask_backend import require_dask
from irn_pipeline.engine.execution import Execution, set_up_logging
from irn_pipeline.engine.options import (
    OptionParser,
    add_options,
    flatten_config,
    from_namespace,
    given_flags,
    nearest,
    new_parser,
    parse,
    read_yaml,
    removed_options,
    require_lists,
)
from irn_pipeline.engine.ranks import OtherProcessFailed, join_ranks
from irn_pipeline.engine.stage import Data, Job, Stage, run_stage
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError, IrnError
from irn_pipeline.files.text import plain_line

logger = logging.getLogger(__name__)
S = TypeVar("S")


@dataclass(frozen=True)
class RunOptions:
    """Where results go and where values come from."""

    run_dir: str = "runs/default"
    """Run folder: every stage reads and writes below it."""
    config: str | None = None
    """YAML file with the same keys as the flags, one section a stage; flags win."""
    preset: str | None = None
    """Values that another project publishes (advcam, rib_voc ...: configs/presets); --config and flags win."""


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
    """

    numbered: tuple[Stage[Any], ...]
    closing: tuple[Stage[Any], ...]
    source: type[S]
    load: Callable[[S], Data]
    no_data: Data
    tools: tuple[Stage[Any], ...] = ()
    presets: Path | None = None
    names: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage[Any], ...]:
        """Those that a run without a range goes through, in order."""
        return self.numbered + self.closing

    def stage_named(self, name: str) -> Stage[Any]:
        """The stage of that name.

        Raises:
            ConfigError: there is none; the nearest is named.
        """
        known = self.stages + self.tools
        for stage in known:
            if stage.name == name:
                return stage
        raise ConfigError(f"no stage '{name}'{nearest(name, [s.name for s in known])}")

    def run_one(self, name: str, arguments: Sequence[str]) -> None:
        """One stage's own command."""
        stage = self.stage_named(name)
        parser = self._parser(f"python -m stages.{name}", stage.summary)
        add_options(parser, stage.params, title="Parameters of the result")
        config = self._config(arguments)
        own = {
            k.removeprefix(f"{name}."): v
            for k, v in config.items()
            if "." not in k or k.startswith(f"{name}.")
        }
        values = parse(parser, arguments, own)
        params = from_namespace(stage.params, values)
        require_effect(stage, params, given_flags(arguments), own)
        self._run([(stage, params)], values)

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
        parser = self._parser("run_all.sh [RANGE]", "Run stages in order: 2-5, 3, 4-, -5, names, or all.")
        for stage in self.stages + self.tools:
            add_options(parser, stage.params, prefix=f"{stage.name}.", title=f"{stage.name}: {stage.summary}")
        config = self._config(arguments) if config is None else self._with_preset(dict(config), None)
        values = parse(parser, arguments, config)
        # All parameters are checked before the first stage starts.
        params = {s.name: from_namespace(s.params, values, prefix=f"{s.name}.") for s in self.stages}
        params |= {s.name: from_namespace(s.params, values, prefix=f"{s.name}.") for s in stages}
        for stage in stages:
            require_effect(stage, params[stage.name], given_flags(arguments), config, f"{stage.name}.")
        self._run([(stage, params[stage.name]) for stage in stages], values)

    def select(self, chosen: Sequence[str]) -> list[Stage[Any]]:
        """The stages that words such as "2-5", "4-", "-5", "3" or names stand for, in pipeline order.

        Raises:
            ConfigError: a word stands for no stage.
        """
        if not chosen:
            return list(self.stages)
        names: set[str] = set()
        for word in chosen:
            names.update(stage.name for stage in self._select_word(word))
        return [stage for stage in self.stages + self.tools if stage.name in names]

    def _select_word(self, word: str) -> Sequence[Stage[Any]]:
        match = re.fullmatch(r"(\d*)(-?)(\d*)", word)
        if match is None:
            return [self.stage_named(word)]
        first, dash, last = match.groups()
        start = int(first) if first else 1
        end = int(last) if last else (len(self.numbered) if dash else start)
        if not (1 <= start <= end <= len(self.numbered)) or word in ("", "-"):
            raise ConfigError(
                f"stage range '{word}' is impossible: stages are numbered 1 to {len(self.numbered)}; "
                "write 2-5, 3, 4-, -5 or names"
            )
        selected = self.numbered[start - 1 : end]
        return selected + self.closing if dash and not last else selected

    def _parser(self, prog: str, description: str) -> OptionParser:
        parser = new_parser(prog, description)
        add_options(parser, RunOptions, title="Run")
        add_options(parser, self.source, title="Data set")
        add_options(parser, Execution, title="Execution (of these, only seed and precision change results)")
        return parser

    def _config(self, arguments: Sequence[str]) -> dict[str, Any]:
        path = flag_value(arguments, "--config", "the path of a YAML file")
        config = {} if path is None else self._read(Path(path))
        return self._with_preset(config, flag_value(arguments, "--preset", "the name of a preset"))

    def _with_preset(self, config: dict[str, Any], named: str | None) -> dict[str, Any]:
        preset = config.get("preset") if named is None else named
        return config if preset is None else {**self._read(self._preset_path(str(preset))), **config}

    def _read(self, path: Path) -> dict[str, Any]:
        own = {stage.name for stage in self.stages + self.tools}
        content = {k: v for k, v in read_yaml(path).items() if k in own or k not in self.names}
        flat = self.flatten(content, str(path))
        require_lists(flat, self.option_groups(), str(path))
        return flat

    def option_groups(self) -> list[tuple[str, type[Any]]]:
        """Dataclasses of all options: (stage, or "" for those at the top; dataclass)."""
        common = [("", kind) for kind in (RunOptions, self.source, Execution)]
        return [*common, *((stage.name, stage.params) for stage in self.stages + self.tools)]

    def flatten(self, content: Mapping[str, Any], origin: str) -> dict[str, Any]:
        """Nested values by "key" or "stage.key".

        Raises:
            ConfigError: a key is unknown; the message names `origin` and the nearest key.
        """
        groups = self.option_groups()
        common = [entry.name for name, kind in groups if not name for entry in fields(kind)]
        stages = {name: [entry.name for entry in fields(kind)] for name, kind in groups if name}
        removed = {
            k: v for name, kind in groups if name for k, v in removed_options(kind, f"{name}.").items()
        }
        return flatten_config(content, common, stages, origin, removed)

    def _preset_path(self, name: str) -> Path:
        found = {} if self.presets is None else {path.stem: path for path in self.presets.glob("*.yaml")}
        if name not in found:
            raise ConfigError(f"--preset {name}: no such preset{nearest(name, sorted(found))}")
        return found[name]

    def _run(self, work: Sequence[tuple[Stage[Any], Any]], values: Any) -> None:
        execution = from_namespace(Execution, values)
        options = from_namespace(RunOptions, values)
        set_up_logging(quiet=execution.quiet)
        execution.torch_device()
        if execution.backend == "dask":
            require_dask()
        ranks, execution = join_ranks(execution)
        if not ranks.is_first:
            set_up_logging(quiet=True)
        needs_data = any(stage.needs_data for stage, _ in work)
        source = from_namespace(self.source, values)
        named = source != self.source()
        data = self.load(source) if needs_data or named else self.no_data
        run, reported = RunFolder(Path(options.run_dir)), set[tuple[str, str]]()
        for stage, params in work:
            run_stage(stage, Job(run, params, data, execution, ranks=ranks, reported=reported))


def require_effect(
    stage: Stage[Any], params: Any, flags: Collection[str], config: Mapping[str, Any], prefix: str = ""
) -> None:
    """Refuse flags that have no effect beside the others; tell of values of a configuration that have none.

    A section of a configuration may serve several models, so there they are no error.

    Args:
        stage: the stage.
        params: its parameters.
        flags: destinations of the flags that were given.
        config: destination -> value of the configuration.
        prefix: of the stage's destinations.

    Raises:
        ConfigError: a flag has no effect; the message says why.
    """
    unused = stage.unused(params) if stage.unused is not None else {}
    for name, why in unused.items():
        if f"{prefix}{name}" in flags:
            written = f"{prefix}{name}" if prefix else name.replace("_", "-")
            raise ConfigError(f"--{written}: {why}")
    # Compared as a configuration has it: lists for tuples.
    defaults = {entry.name: entry.default for entry in fields(stage.params)}
    named = {name: config[f"{prefix}{name}"] for name in unused if f"{prefix}{name}" in config}
    told = [
        name
        for name, value in named.items()
        if (tuple(value) if isinstance(value, list) else value) != defaults[name]
    ]
    if told:
        set_up_logging(quiet=False)
        logger.warning(
            "%s: set in the configuration, but of no effect here: %s", stage.name, ", ".join(sorted(told))
        )


def flag_value(arguments: Sequence[str], flag: str, meaning: str) -> str | None:
    """The value that a flag is first given on a command line; None where it is not there.

    Raises:
        ConfigError: the flag is the last word; it needs what `meaning` says.
    """
    for position, word in enumerate(arguments):
        if word == flag:
            if position + 1 == len(arguments):
                raise ConfigError(f"{flag} needs {meaning}")
            return arguments[position + 1]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return None


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
        sys.stderr.write("interrupted: what is finished is kept; the same command goes on from there\n")
        return 130
    return 0
