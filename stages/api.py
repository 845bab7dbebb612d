"""The pipeline from Python: stages run by name, labels and masks come back as arrays, errors are exceptions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.runtime.command import Pipeline, RunOptions
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.options import flatten_config, read_yaml, removed_options
from irn_pipeline.runtime.store import RunFolder
from irn_pipeline.structures import Instances, LabelArray
from stages._segmenter import (
    AskedParams,
    load_segmenter,
    require_asked,
    segmenter_artifact,
    trained_variants,
)


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
    from stages.__main__ import PIPELINE

    words = _words(PIPELINE, [stages] if isinstance(stages, str) else list(stages))
    config = settings.pop("config", None)
    given = {} if config is None else _flat(PIPELINE, read_yaml(Path(str(config))), str(config))
    given |= _flat(PIPELINE, {**settings, "run_dir": run_dir}, "run_stages()")
    # The command line reads values from a file; so they are checked and explained in one place.
    with tempfile.TemporaryDirectory() as folder, _logging_put_back():
        path = Path(folder) / "settings.yaml"
        path.write_text(_as_yaml(given), encoding="utf-8")
        PIPELINE.run_range(words, ["--config", str(path)])
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


def predict_masks(
    run_dir: str | Path,
    model: str,
    image: LabelArray | str | Path,
    *,
    min_score: float = 0.5,
    crf: bool = False,
    test_scales: Sequence[float] = (),
    device: str = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
) -> Instances:
    """Objects that a trained model finds in one picture.

    Every call reads the model from disk; for a folder of pictures, run stage predict:
    `run_stages("predict", run_dir=..., predict={"model": ..., "images": "new"})`.

    Args:
        run_dir: run folder that stage train_segmenter has worked in.
        model: as given to train_segmenter: mask_rcnn, deeplabv3 ...
        image: path of a picture, or its pixels, (H, W, 3) uint8 RGB.
        min_score: instances below it are left out.
        crf: refine deeplabv3's labels with the dense CRF.
        test_scales: average deeplabv3's probabilities over these relative sizes.
        device: auto, cpu, cuda or cuda:N.
        precision: of the network pass, as for the stages.

    Returns:
        The instances, best first; `class_ids` count the names of `class_names` from 0.

    Raises:
        ArtifactError: the model is not in the run folder; those that are there are named.
        ConfigError: the model has no CRF or no scales.
        DataError: the file cannot be read.
        ShapeError: the array is no RGB picture of 8 bits.
    """
    if isinstance(image, str | Path):
        image = read_image(Path(image))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"a picture must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    execution = Execution(device=device, precision=precision)
    asked = AskedParams(crf, tuple(test_scales))
    require_asked((model,), asked)
    segmenter, _ = load_segmenter(RunFolder(Path(run_dir)), model, execution, asked)
    pixels = to_unit_tensor(image).to(execution.torch_device())
    with execution.autocast():
        found = segmenter.predict(pixels)
    return found.select(found.scores >= min_score)


def class_names(run_dir: str | Path) -> tuple[str, ...]:
    """Names of the classes that a run folder's networks were trained for, in the order of their class ids.

    Raises:
        ArtifactError: no network that knows classes is there.
    """
    run = RunFolder(Path(run_dir))
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


def _flat(pipeline: Pipeline[Any], content: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Values by "key" or "stage.key", with the keys checked, as YAML can hold them."""
    stages = {stage.name: stage.params for stage in pipeline.stages + pipeline.tools}
    for name in stages.keys() & content.keys():
        if not isinstance(content[name], Mapping | None):
            raise ConfigError(f"{origin}: {name} must be a dictionary of parameters, got {content[name]!r}")
    common = {
        entry.name: entry for kind in (RunOptions, pipeline.source, Execution) for entry in fields(kind)
    }
    parameters = {name: {entry.name: entry for entry in fields(kind)} for name, kind in stages.items()}
    removed = {k: v for name, kind in stages.items() for k, v in removed_options(kind, f"{name}.").items()}
    flat = flatten_config(content, list(common), {k: list(v) for k, v in parameters.items()}, origin, removed)
    known = common | {
        f"{name}.{key}": entry for name, own in parameters.items() for key, entry in own.items()
    }
    return {key: _plain(value, known[key].default) for key, value in flat.items()}


def _plain(value: object, default: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple | list):
        return [_plain(one, None) for one in value]
    # One value stands for a list of one.
    return [value] if isinstance(default, tuple) else value


def _as_yaml(flat: Mapping[str, object]) -> str:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return yaml.safe_dump(nested, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"run_stages(): values must be numbers, texts, lists or paths: {' '.join(map(str, error.args))}"
        ) from error


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
