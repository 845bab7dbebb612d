"""Weights that a training starts from, and the original's checkpoint in place of a training: which files are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Protocol

from irn_pipeline.artifacts import CAM_NETWORK
from irn_pipeline.engine.declaration import Files, Job
from irn_pipeline.errors import ConfigError
from irn_pipeline.nn.imagenet import network_for

_NO_FILE = ("imagenet", "installed", "none", "cam")
"""Values of `backbone_weights` that are no path; published ImageNet weights are known by their hash."""


class WithOriginal(Protocol):
    """Parameters of a stage whose training the original's checkpoint can replace."""

    @property
    def backbone_weights(self) -> str:
        """imagenet, installed, none, cam, or a path."""
        ...

    @property
    def original_checkpoint(self) -> str | None:
        """A checkpoint of the original implementation instead of a training."""
        ...


def is_trained(params: WithOriginal) -> bool:
    """Whether there is a training at all."""
    return params.original_checkpoint is None


def weight_files(job: Job[Any, Any]) -> Mapping[str, tuple[Files, ...]]:
    """The checkpoint that replaces the training, or else the weights that it starts from, where they are a file."""
    params: WithOriginal = job.params
    if params.original_checkpoint is not None:
        return {"original_checkpoint": (Files.one(params.original_checkpoint),)}
    return backbone_files(params.backbone_weights)


def backbone_files(weights: str) -> Mapping[str, tuple[Files, ...]]:
    """The file that `backbone_weights` names, if it names one."""
    return {} if weights in _NO_FILE else {"backbone_weights": (Files.one(weights),)}


def starting_point(job: Job[Any, Any]) -> tuple[str, str]:
    """The network that a training builds, and the weights that it loads into it.

    Returns:
        Name of the backbone, which the weights may decide (`imagenet.network_for`), and `backbone_weights` with the
        path of the CAM network in place of "cam".

    Raises:
        ConfigError: the CAM network is another one.
    """
    name, weights = job.params.backbone, job.params.backbone_weights
    if weights != "cam":
        return network_for(name, weights), weights
    found = job.run.read(CAM_NETWORK).backbone
    if found not in (name, network_for(name, "imagenet")):
        raise ConfigError(
            f"--backbone-weights cam: the CAM network is a {found}, this one a {name}; give --backbone {found}"
        )
    return found, str(job.run.path(CAM_NETWORK))


def without_training(params: WithOriginal, used: Collection[str]) -> Mapping[str, str]:
    """Parameters that have no effect where a checkpoint replaces the training: all but the `used` ones."""
    if is_trained(params):
        return {}
    kept = {"original_checkpoint", *used}
    names = [field.name for field in fields(params) if field.name not in kept]  # type: ignore[arg-type]
    return dict.fromkeys(names, "--original-checkpoint replaces the training")
