"""The pipeline from Python: stages run by name, labels and masks come back as arrays, errors are exceptions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from irn_pipeline.artifacts import CAM, CAM_NETWORK, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.engine.command import Pipeline
from irn_pipeline.engine.options import Options, flat_config
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import ConfigError
from irn_pipeline.structures import Instances, LabelArray
from irn_pipeline.trained_networks import segmenter_artifact, trained_variants


def run_stages(stages: str | Sequence[str], *, run_dir: str | Path, **settings: object) -> Path:
    """Run stages in order, as `./run_all.sh` does; what is done already is kept.

    Messages and progress bars go to standard error (`quiet=True` leaves warnings only); the handlers and levels of
    your own logging are put back afterwards.

    Args:
        stages: "1-5", "4-", "make_cam", "make_cam-train_irn", or several of these; () for all stages.
        run_dir: run folder; it is made if it is not there.
        settings: the flags by name (`image_dir=`, `label_csv=`, `device=`, `config=`, `preset=` ...), and for each
            stage a dictionary of its parameters (`train_cam={"epochs": 3}`), as in a YAML file. They win over
            `config`, and `config` over `preset`.

    Returns:
        The run folder.

    Raises:
        ConfigError: a name or a value is wrong; the nearest known name is told.
        IrnError: whatever the command line would tell in one line: missing data, other parameters ...

    Example:
        run_stages("1-5", image_dir="photos", label_csv="tags.csv", run_dir="runs/mine", train_cam={"epochs": 3})
    """
    from irn_pipeline.stages.catalogue import PIPELINE

    words = _words(PIPELINE, [stages] if isinstance(stages, str) else list(stages))
    config = settings.pop("config", None)
    given = {} if config is None else PIPELINE.read(Path(str(config)))
    given |= _flat({**settings, "run_dir": run_dir}, PIPELINE.options)
    with _logging_put_back():
        PIPELINE.run_range(words, config=given)
    return Path(run_dir)


def read_labels(
    run_dir: str | Path, image_id: str, *, keep_fragments: bool = False
) -> tuple[LabelArray, Instances]:
    """The synthesized labels of one picture.

    Args:
        run_dir: run folder that stage synthesize_labels has worked in.
        image_id: path of the picture below its folder, without the suffix; in a VOC folder the file's stem.
        keep_fragments: also return the instances of score 0, components too small to count.

    Returns:
        (H, W) uint8 semantic label, 0 for background, else class_id + 1; and the instances: masks (R, H, W) bool,
        scores (R,) float32, class_ids (R,) int64 from 0.

    Raises:
        ArtifactError: there are no labels of this picture, or they are damaged.

    Labels of rotated photographs that a version before 0.2 made are of the pixels as stored.
    """
    run = RunFolder(Path(run_dir))
    label, instances = run.read(SEMANTIC_LABEL, image_id), run.read(INSTANCE_LABEL, image_id)
    return label, instances if keep_fragments else instances.without_fragments()


def class_names(run_dir: str | Path) -> tuple[str, ...]:
    """Names of the classes of a run folder's maps, labels and networks, in the order of their class ids.

    Raises:
        ArtifactError: the folder holds nothing that has classes.
    """
    run = RunFolder(Path(run_dir))
    for record in map(run.record, (SEMANTIC_LABEL.stage, CAM.stage, CAM_NETWORK.stage)):
        if record is not None and record.class_names:
            return tuple(record.class_names)
    networks = (CAM_NETWORK, *map(segmenter_artifact, trained_variants(run)))
    return run.read(next((one for one in networks if run.has(one)), CAM_NETWORK)).class_names


def _words(pipeline: Pipeline[Any], stages: Sequence[str]) -> list[str]:
    """Words that a range of the command line is made of; FIRST-LAST by names is written out."""
    order = [stage.name for stage in pipeline.stages]
    words: list[str] = []
    for word in stages:
        first, _, last = word.partition("-")
        if first not in order or last not in order:
            words.append(word)
            continue
        start, end = order.index(first), order.index(last)
        if start > end:
            raise ConfigError(f"stage range '{word}' is impossible: {last} comes before {first}")
        words += order[start : end + 1]
    return words


def _flat(settings: Mapping[str, Any], options: Sequence[Options]) -> dict[str, Any]:
    """Values by "key" or "stage.key" with the keys checked; arrays, paths and tuples become what YAML can hold."""
    lists = {
        (name, entry.name)
        for name, kind in options
        for entry in fields(kind)
        if isinstance(entry.default, tuple)
    }
    content: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in dict(options) or not name:
            content[name] = _plain(value, ("", name) in lists)
        elif isinstance(value, Mapping | None):
            content[name] = {key: _plain(one, (name, key) in lists) for key, one in (value or {}).items()}
        else:
            raise ConfigError(f"run_stages(): {name} must be a dictionary of parameters, got {value!r}")
    return flat_config(content, options, "run_stages()")


def _plain(value: object, as_list: bool = False) -> object:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str | int | float | None):
        raise ConfigError(
            f"run_stages(): values must be numbers, texts, lists or paths, got {type(value).__name__}"
        )
    return [value] if as_list else value


@contextmanager
def _logging_put_back() -> Iterator[None]:
    """Commands set logging up anew, which closes the handlers that are there."""
    root, package = logging.getLogger(), logging.getLogger("irn_pipeline")
    handlers, levels = root.handlers[:], (root.level, package.level)
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        package.setLevel(levels[1])
