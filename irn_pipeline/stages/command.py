"""The command of a single stage; it imports that stage and the data-set flags, no other stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from irn_pipeline.configs import config_folder
from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.source import Source, in_order, load_source, no_data_set
from irn_pipeline.engine.command import Pipeline, run_command
from irn_pipeline.engine.planner import Planner
from irn_pipeline.engine.stage import Stage
from irn_pipeline.forecast import forecast
from irn_pipeline.plan import PLANNED, choose
from irn_pipeline.stages import NAMES


def run_stage_command(stage: Stage[Any], arguments: Sequence[str] | None = None) -> int:
    """Run one stage as a command.

    Args:
        stage: the stage.
        arguments: flags; those of this process when None.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda: pipeline_of(stage).run_one(stage.name, words))


def pipeline_of(
    *numbered: Stage[Any], closing: tuple[Stage[Any], ...] = (), tools: tuple[Stage[Any], ...] = ()
) -> Pipeline[Source]:
    """These stages, on the data sets that the flags can describe.

    Args:
        numbered: stages that a range may name by number, in order.
        closing: stages that follow in a range that is open at its end.
        tools: stages that run by name only.

    Raises:
        ConfigError: the installation lacks its configuration files.
    """
    return Pipeline(
        numbered=numbered,
        closing=closing,
        source=Source,
        load=load_source,
        no_data=no_data_set(),
        tools=tools,
        presets=config_folder() / "presets",
        names=NAMES,
        planner=Planner(PLANNED, choose, forecast),
        in_run=DataSet.in_run,
        in_order=in_order,
    )
