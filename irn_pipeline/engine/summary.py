"""What is said when a stage has ended: what was skipped, how much was done, where the time went."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from irn_pipeline.engine.clock import told_shares
from irn_pipeline.engine.declaration import Job, Produced, Stage

logger = logging.getLogger(__name__)


def add_workers_time(job: Job[Any, Any], spent: Mapping[str, float], waited: float) -> None:
    """Count what the worker processes spent, as seconds of the wall clock."""
    at_once: float = job.execution.worker_count
    if job.execution.backend == "dask" and waited > 0:
        # Workers come and go: as many as were busy, in the mean, while this process waited for them.
        at_once = max(sum(spent.values()) / waited, 1.0)
    for name, seconds in spent.items():
        job.clock.add(name, seconds / at_once)


def log_counted(stage: Stage[Any], problems: Sequence[Produced], formats: Counter[str]) -> None:
    """Say once what many pictures share: why they were skipped, and what their input files were recognised as."""
    common = [produced for produced in problems if produced.common]
    if common:
        first = common[0]
        logger.warning(
            "%s: %d images skipped, the first is %s: %s",
            stage.name,
            len(common),
            first.image_id,
            first.problem,
        )
    if formats:
        told = ", ".join(f"{count} files: {name}" for name, count in formats.most_common())
        logger.info("%s: %s", stage.name, told)


def log_summary(stage: Stage[Any], job: Job[Any, Any], counts: dict[str, int], seconds: float) -> None:
    """One line: pictures, seconds, rate, shares of the time, and where the results are."""
    images = counts.get("images", 0)
    rate = f", {images / seconds:.2f} images/s" if seconds > 0 and images else ""
    extra = "".join(
        f", {counts[k]} {text}"
        for k, text in (("kept", "already there"), ("skipped", "skipped"))
        if counts.get(k)
    )
    shares = told_shares(job.clock.seconds, seconds)
    logger.info(
        "%s: %d images in %.1f s%s%s%s -> %s",
        stage.name,
        images,
        seconds,
        rate,
        f" ({shares})" if shares else "",
        extra,
        job.run.stage_dir(stage.folder(job.params)),
    )
