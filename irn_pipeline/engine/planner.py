"""Values that follow from the data set and the machine, made once for a run folder and kept in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.provenance import has_results
from irn_pipeline.engine.stage import Stage
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.files.atomic import atomic_path, require_own_folder

PLAN_NAME = "plan.yaml"
_HEAD = """\
# Values that follow from the data set and the machine, made before the first stage ran. Later commands on this run
# folder take them from here; a flag, --config and --preset win over them, and --plan published leaves them out.
"""


@dataclass(frozen=True)
class Choice:
    """A value of a parameter, and why.

    Attributes:
        stage: name of the stage.
        parameter: name of the parameter.
        value: as a YAML file would have it.
        reason: one plain line.
    """

    stage: str
    parameter: str
    value: Any
    reason: str

    @property
    def key(self) -> str:
        """`stage.parameter`."""
        return f"{self.stage}.{self.parameter}"


@dataclass(frozen=True)
class Planner:
    """How a program plans a run.

    Attributes:
        stages: names of the stages that there are plans for.
        choose: data set, execution and the values that the user gave ("stage.parameter" -> value) -> choices, those of
            a stage together; it logs what is odd about the data set.
        forecast: data set, execution, parameters by stage, and the stages that will be run -> a table of how long they
            will take.
    """

    stages: Sequence[str]
    choose: Callable[[Any, Execution, Mapping[str, Any]], Sequence[Choice]]
    forecast: Callable[[Any, Execution, Mapping[str, Any], Sequence[str]], str]


def plan_text(choices: Sequence[Choice]) -> str:
    """Choices in the form of a configuration file, the reason behind each value."""
    lines = []
    for stage, group in groupby(choices, key=lambda choice: choice.stage):
        lines.append((f"{stage}:", ""))
        lines += [(f"  {one.parameter}: {json.dumps(one.value)}", one.reason) for one in group]
    width = max((len(line) for line, reason in lines if reason), default=0)
    return "".join(f"{line:<{width}}  # {reason}\n" if reason else f"{line}\n" for line, reason in lines)


def write_plan(run: RunFolder, text: str) -> Path:
    """Write the text of a plan into a run folder.

    Raises:
        ArtifactError: the system refused the write.
    """
    path = run.root / PLAN_NAME
    require_own_folder(run.root, path)
    with atomic_path(path) as temporary:
        temporary.write_text(_HEAD + text, encoding="utf-8")
    return path


def drop_plan(run: RunFolder) -> None:
    """Remove a plan that nothing was made with, and the run folder if there is nothing else in it."""
    (run.root / PLAN_NAME).unlink(missing_ok=True)
    with suppress(OSError):
        run.root.rmdir()


def has_no_results(run: RunFolder, planned: Sequence[Stage[Any]]) -> bool:
    """Whether a run folder holds nothing that was made: records of planned stages without results do not count."""
    names = {stage.name for stage in planned}
    others = any(name not in names for name in run.folders())
    return not others and not any(has_results(stage, run.stage_dir(stage.name)) for stage in planned)
