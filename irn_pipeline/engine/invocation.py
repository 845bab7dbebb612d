"""One command line: the values of its stages from flags, files and the plan, and the run of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from irn_pipeline.engine.dask_backend import require_dask
from irn_pipeline.engine.execution import Execution, set_up_logging
from irn_pipeline.engine.options import OptionParser, from_namespace, parse
from irn_pipeline.engine.planner import PLAN_NAME, Planner, drop_plan, has_no_results, plan_text, write_plan
from irn_pipeline.engine.ranks import join_ranks
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import Data, Job, ReduceStage, Stage
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError
from irn_pipeline.files.regular import regular_bytes

if TYPE_CHECKING:
    from irn_pipeline.engine.command import Pipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """Where results go and where values come from."""

    run_dir: str = "runs/default"
    """Run folder that all stages read from and write to."""
    config: str | None = None
    """YAML file with the same keys as the flags, one section per stage. Flags override it."""
    preset: str | None = None
    """Use the values published by another project (advcam, rib_voc ...: see configs/presets). --config and flags
    override them."""
    plan: Literal["auto", "published"] = "auto"
    """Where values that you do not give come from: auto (chosen from the data set and the machine, stored in
    RUN/plan.yaml) or published (the paper)."""


class Invocation:
    """One command line: its values are settled when it is parsed, and once more when a plan is made.

    Args:
        pipeline: the program.
        parser: of all options that this command has.
        stages: what is run; without any, the plan is shown.
        prefixes: names of the stages whose options there are -> what their flags begin with.
        arguments: flags; they win over `config`.
        config: "key" or "stage.key" -> value.
    """

    def __init__(
        self,
        pipeline: Pipeline[Any],
        parser: OptionParser,
        stages: Sequence[Stage[Any]],
        prefixes: Mapping[str, str],
        arguments: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        self.pipeline, self.parser, self.stages, self.prefixes = pipeline, parser, stages, prefixes
        self.arguments, self.config = arguments, config
        self.values = Namespace()
        self.params: dict[str, Any] = {}

    def own(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the options that this command has, by destination."""
        found = {}
        for key, value in config.items():
            section, _, name = key.rpartition(".")
            if section in self.prefixes or not (section or name in self.pipeline.taken(self.prefixes)):
                found[f"{self.prefixes[section]}{name}" if section else name] = value
        return found

    def given(self) -> dict[str, Any]:
        """What flags and files give: "stage.parameter" -> value."""
        flags = {
            f"{stage}.{name.removeprefix(prefix)}": self.values[name]
            for name in _flag_names(self.arguments)
            for stage, prefix in self.prefixes.items()
            if name.startswith(prefix)
            and name.removeprefix(prefix) in _names(self.pipeline.stage_named(stage))
        }
        return {**self.config, **flags}

    def settle(self) -> None:
        """Values and parameters from the flags, the configuration and the plan that the run folder holds."""
        self._parse({})
        path = Path(self.values["run_dir"]) / PLAN_NAME
        if self.pipeline.planner is not None and self.values["plan"] == "auto" and path.is_file():
            self._parse(self.pipeline.read(path))

    def _parse(self, planned: Mapping[str, Any]) -> None:
        self.values = parse(self.parser, self.arguments, self.own({**planned, **self.config}))
        # Those of the numbered stages are checked even if only a few are run.
        checked = [stage for stage in self.pipeline.stages if stage.name in self.prefixes]
        self.params = {
            stage.name: from_namespace(stage.params, self.values, prefix=self.prefixes[stage.name])
            for stage in [*checked, *self.stages]
        }

    def require_effect(self) -> None:
        """Refuse flags without effect, and warn of such values of a configuration; see the function."""
        own = self.own(self.config)
        for stage in self.stages:
            require_effect(stage, self.params[stage.name], self.arguments, own, self.prefixes[stage.name])

    def run(self) -> None:
        """Run the stages; without any, show the plan."""
        execution = from_namespace(Execution, self.values)
        source = from_namespace(self.pipeline.source, self.values, taken=self.pipeline.taken(self.prefixes))
        set_up_logging(quiet=execution.quiet)
        if execution.backend == "dask":
            require_dask()
        only_looks = bool(self.stages)
        only_looks &= all(isinstance(one, ReduceStage) and one.only_looks for one in self.stages)
        if not only_looks:
            execution.torch_device()
        ranks, execution = join_ranks(execution)
        if not ranks.is_first:
            set_up_logging(quiet=True)
        needs_data = not self.stages or any(stage.needs_data for stage in self.stages)
        named = needs_data or source != self.pipeline.source()
        data = self._data(source) if named else self.pipeline.no_data
        run, reported = self.run_folder, set[tuple[str, str]]()
        if self.pipeline.in_run is not None and not only_looks:
            data = self.pipeline.in_run(data, run, execution, ranks, write=bool(self.stages))
        planner = self.pipeline.planner
        if planner is not None and not self.stages:
            self._show(planner, data, execution)
            return
        made = planner is not None and ranks.from_first(partial(self._plan, planner, data, execution))
        try:
            if made:
                self.settle()
            needed = self.needed()
            for stage in self.stages:
                params = self.params[stage.name]
                if stage not in needed:
                    logger.info("%s: skipped; no later stage of this command uses its results", stage.name)
                    continue
                run_stage(stage, Job(run, params, data, execution, ranks=ranks, reported=reported))
        finally:
            # What is mended after a failure may change the plan, as other weights do.
            if made and ranks.is_first and has_no_results(run, self._planned_stages):
                drop_plan(run)

    def needed(self) -> list[Stage[Any]]:
        """The stages to run, without those whose results later ones could read, but do not with these parameters."""
        kept: list[Stage[Any]] = []
        for place, stage in reversed([*enumerate(self.stages)]):
            could = {artifact for later in self.stages[place + 1 :] for artifact in later.reads}
            do = {artifact for later in kept for artifact in later.read(self.params[later.name])}
            if not could & set(stage.writes) or do & set(stage.writes):
                kept.insert(0, stage)
        return kept

    def _data(self, source: Any) -> Data:
        """The data set, its classes in the order of the run folder's results if only their order differs."""
        data, order = self.pipeline.load(source), self.run_folder.class_names()
        here = list(data.identity)
        if self.pipeline.in_order is None or order == here or sorted(order) != sorted(here):
            return data
        logger.info("classes in the order of %s: %s", self.run_folder.root, ", ".join(order))
        return self.pipeline.load(self.pipeline.in_order(source, order))

    @property
    def run_folder(self) -> RunFolder:
        """The run folder that is named."""
        return RunFolder(Path(self.values["run_dir"]))

    @property
    def _planned_stages(self) -> list[Stage[Any]]:
        planner = self.pipeline.planner
        return [
            stage for stage in self.pipeline.stages if planner is not None and stage.name in planner.stages
        ]

    @property
    def _planned(self) -> bool:
        return bool(self.values["plan"] == "auto")

    @property
    def _is_new(self) -> bool:
        """Whether the run folder has neither a plan nor results: those without a plan go on with the defaults."""
        run = self.run_folder
        return not (run.root / PLAN_NAME).is_file() and has_no_results(run, self._planned_stages)

    def _plan(self, planner: Planner, data: Data, execution: Execution) -> bool:
        """Whether a plan was made and written: before the first results of a run folder, if these stages have one."""
        run = self.run_folder
        ahead = [stage.name for stage in self.stages if stage.name in planner.stages]
        if not ahead or not self._planned or not self._is_new:
            return False
        text = plan_text(planner.choose(data, execution, self.given()))
        path = write_plan(run, text)
        logger.info("plan, kept in %s:\n%s", path, text)
        if not execution.quiet:
            self.settle()
            needed = {stage.name for stage in self.needed()}
            ahead = [name for name in ahead if name in needed]
            logger.info("%s", planner.forecast(data, execution, self.params, ahead))
        return True

    def _show(self, planner: Planner, data: Data, execution: Execution) -> None:
        """Tell what a run would do, at a level that --quiet does not hide."""
        path = self.run_folder.root / PLAN_NAME
        if self._planned and self._is_new:
            choices = planner.choose(data, execution, self.given())
            logger.warning("plan of %s:\n%s", self.run_folder.root, plan_text(choices))
            self._parse({one.key: one.value for one in choices})
        elif self._planned and path.is_file():
            text = regular_bytes(path).decode(errors="replace")
            logger.warning("%s, which later commands use:\n%s", path, text)
        else:
            why = (
                f"{path.parent} has results that were started without a plan"
                if self._planned
                else "--plan published"
            )
            logger.warning("%s: values that you do not give are the published ones", why)
        logger.warning("%s", planner.forecast(data, execution, self.params, planner.stages))


def require_effect(
    stage: Stage[Any], params: Any, arguments: Sequence[str], config: Mapping[str, Any], prefix: str
) -> None:
    """Refuse flags that have no effect beside the others, and warn of such values of a configuration.

    A section of a configuration may serve several models, so there they are no error.

    Raises:
        ConfigError: a flag has no effect; the message says why.
    """
    unused = stage.unused(params) if stage.unused is not None else {}
    given = _flag_names(arguments)
    for name, why in unused.items():
        if f"{prefix}{name}" in given:
            raise ConfigError(f"--{prefix}{name if prefix else name.replace('_', '-')}: {why}")
    defaults = {entry.name: entry.default for entry in fields(stage.params)}
    # A configuration has lists for tuples.
    values = {name: config.get(f"{prefix}{name}", defaults[name]) for name in unused}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    idle = sorted(name for name, value in values.items() if value != defaults[name])
    if idle:
        set_up_logging(quiet=False)
        logger.warning(
            "%s: set in the configuration, but without effect here: %s", stage.name, ", ".join(idle)
        )


def _flag_names(arguments: Sequence[str]) -> set[str]:
    """Destinations of the flags on a command line."""
    return {
        word.split("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")
    }


def _names(stage: Stage[Any]) -> set[str]:
    return {entry.name for entry in fields(stage.params)}
