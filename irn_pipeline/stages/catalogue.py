"""All stages in order, and the command that runs a range of them: `python -m stages [run] [RANGE] ...`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from irn_pipeline.configs import config_folder
from irn_pipeline.datasets.synthetic import DEMO_CLASSES, generate_demo
from irn_pipeline.datasets.voc import read_class_names
from irn_pipeline.engine.command import flag_value, run_command
from irn_pipeline.engine.execution import set_up_logging
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import DataError
from irn_pipeline.stages import (
    evaluate,
    export_labels,
    export_model,
    make_cam,
    mine_relations,
    predict,
    report,
    status,
    sweep,
    synthesize_labels,
    train_cam,
    train_irn,
    train_segmenter,
)
from irn_pipeline.stages.command import pipeline_of

logger = logging.getLogger(__name__)
_NUMBERED = (
    train_cam.STAGE,
    make_cam.STAGE,
    mine_relations.STAGE,
    train_irn.STAGE,
    synthesize_labels.STAGE,
    train_segmenter.STAGE,
)
_CLOSING = (evaluate.STAGE, report.STAGE)
PIPELINE = pipeline_of(
    *_NUMBERED,
    closing=_CLOSING,
    tools=(
        predict.STAGE,
        export_labels.STAGE,
        export_model.STAGE,
        sweep.STAGE,
        status.stage_of((*_NUMBERED, *_CLOSING)),
    ),
)
DEMO_ROOT = Path("data/demo")
DATA_FLAGS = ("--voc", "--image-dir", "--image_dir", "--label", "--coco", "--config", "--help")
"""Beginnings of the flags that say that another data set is meant."""
DEMO_RUN = Path("runs/demo")
DEMO_PLAN = (
    "demo: draw 110 images into %s, train and apply every stage on them, and write a report. On our machine it took "
    "about two minutes (docs/RESULTS.md); existing results are kept. Results: %s"
)
DEMO_FLAGS = ("--voc-root", str(DEMO_ROOT), "--run-dir", str(DEMO_RUN))


def stage_main(name: str, arguments: Sequence[str] | None = None) -> int:
    """One stage's command; returns the exit code."""
    return run_command(partial(PIPELINE.run_one, name, sys.argv[1:] if arguments is None else arguments))


def run_main(arguments: Sequence[str]) -> int:
    """The command that runs a range of stages.

    Without a data set and a run folder it works on the generated demo set; in other run folders than the demo's a data
    set must be named.
    """
    return run_command(partial(_run_range, list(arguments)))


def plan_main() -> int:
    """The command that shows the plan of a run; returns the exit code."""
    return run_main(["plan", *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command: a stage's name and its flags, or a range and flags."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if (
        words
        and words[0] in {stage.name for stage in PIPELINE.stages + PIPELINE.tools}
        and not _is_range(words[1:2])
    ):
        return stage_main(words[0], words[1:])
    return run_main(words[1:] if words[:1] == ["run"] else words)


def _run_range(words: list[str]) -> None:
    chosen: list[str] = []
    plan_only = words[:1] == ["plan"]
    if plan_only:
        del words[0]
    while _is_range(words[:1]):
        chosen.append(words.pop(0))
    needs_data = any(stage.needs_data for stage in PIPELINE.select(chosen))
    demo = needs_data and not any(word.startswith(DATA_FLAGS) for word in words) and _is_demo_run(words)
    if demo:
        set_up_logging(quiet="--quiet" in words)
        if not chosen:
            logger.info(DEMO_PLAN, DEMO_ROOT, _run_dir(words))
        _make_demo_set()
        words = ["--config", str(config_folder() / "demo.yaml"), *DEMO_FLAGS, *words]
    if plan_only:
        PIPELINE.show_plan(words)
        return
    PIPELINE.run_range(chosen, words)
    if demo and not chosen:
        logger.info("the demo is finished; open %s", _run_dir(words) / report.STAGE.name / "report.html")


def _is_demo_run(words: Sequence[str]) -> bool:
    """Whether the run folder is the demo's: none is named, or its own, or one that holds results of the demo set."""
    folder = _run_dir(words)
    if folder.resolve() == DEMO_RUN.resolve():
        return True
    run = RunFolder(folder)
    origins = {record.data for name in run.folders() if (record := run.record(name)) is not None}
    # Records of earlier versions do not say, nor do those of tools that need no data set.
    return origins - {""} == {str(DEMO_ROOT)}


def _run_dir(words: Sequence[str]) -> Path:
    named = [flag_value(words, flag, "the path of a run folder") for flag in ("--run-dir", "--run_dir")]
    return next((Path(name) for name in named if name is not None), DEMO_RUN)


def _make_demo_set() -> None:
    # The lists are written last: where they are, the set is whole.
    if not (DEMO_ROOT / "ImageSets" / "Segmentation" / "val.txt").is_file():
        logger.info("drawing the demo set in %s", DEMO_ROOT)
        generate_demo(DEMO_ROOT)
    elif read_class_names(DEMO_ROOT / "class_names.txt") != DEMO_CLASSES:
        raise DataError(
            f"{DEMO_ROOT}: is the demo set of an earlier version, with other images; remove it and the results made "
            f"from it ({DEMO_RUN}), then give the same command again"
        )


def _is_range(words: Sequence[str]) -> bool:
    return bool(words) and (not words[0].startswith("-") or re.fullmatch(r"-\d*", words[0]) is not None)
