"""How far a run folder has come: one line a stage, and the command to type next."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.stage import Job, ReduceStage, Stage
from irn_pipeline.engine.status import StageStatus, next_command, stage_statuses
from irn_pipeline.errors import ArtifactError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params:
    """Parameters of the status: none."""


def stage_of(stages: Sequence[Stage[Any]]) -> ReduceStage[Params]:
    """The tool that tells the state of these stages, which are in the order of the pipeline."""
    return ReduceStage(
        name="status",
        summary="Show which stages are done, partial, stale or missing, and what to do next.",
        params=Params,
        needs_data=False,
        run=partial(_run, stages),
        only_looks=True,
    )


def table(statuses: Sequence[StageStatus]) -> str:
    """One line a stage: folder, state, detail."""
    width = max(len(status.folder) for status in statuses)
    return "\n".join(
        f"{status.folder:<{width}}  {status.state:<8} {status.detail}".rstrip() for status in statuses
    )


def _run(stages: Sequence[Stage[Any]], job: Job[Params, DataSet]) -> int:
    if not job.run.root.is_dir():
        raise ArtifactError(
            f"{job.run.root}: no such run folder; name the --run-dir that the stages were given"
        )
    statuses = stage_statuses(job.run, stages)
    # At this level --quiet does not hide what was asked for.
    logger.warning("%s\nnext: %s", table(statuses), next_command(statuses, job.run.root))
    return len(statuses)
