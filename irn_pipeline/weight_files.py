"""Parameters that trainings share, the weights that they start from, and the original's checkpoint in their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from irn_pipeline.artifacts import CAM_NETWORK
from irn_pipeline.engine.optimisation import OptimizerName, Schedule
from irn_pipeline.engine.stage import Files, Job
from irn_pipeline.errors import ConfigError

_NO_FILE = ("imagenet", "installed", "none", "cam")
"""Values of `backbone_weights` that are no path; published ImageNet weights are known by their hash."""


@dataclass(frozen=True)
class TrainingParams:
    """Parameters of the trainings of the classifier and of IRNet, which the original's checkpoints can replace."""

    backbone: str = "resnet50"
    """resnet18, resnet34, resnet50 or resnet101 (torchvision), or a timm network such as efficientnet_lite0."""
    backbone_weights: str = "imagenet"
    """Initial weights: imagenet (installed or downloaded), installed (never downloaded), a file, or none (random)."""
    original_checkpoint: str | None = None
    """Use this checkpoint of the original implementation (res50_cam.pth, res50_irn.pth) instead of training."""
    epochs: int = 5
    """Passes over the image list."""
    batch_size: int = 16
    """Images per step."""
    crop: int = 512
    """Side of the random crop, in pixels; for train_irn a multiple of 4."""
    lr: float = 0.1
    """Learning rate. The classifier of train_cam and the displacement branch of train_irn multiply it by a factor."""
    optimizer: OptimizerName = "sgd"
    """sgd (published) or adamw (recommended for training from scratch; ignores momentum)."""
    momentum: float = 1e-4
    """SGD momentum. The default is the original's effective value."""
    weight_decay: float = 1e-4
    """Weight decay (L2 penalty)."""
    max_gradient_norm: float = 0.0
    """Clip gradients to this norm; 0 disables clipping."""

    @property
    def schedule(self) -> Schedule:
        """How long and how fast the network learns."""
        return Schedule(
            self.epochs, self.batch_size, self.momentum, self.weight_decay,
            max_gradient_norm=self.max_gradient_norm,
            optimizer=self.optimizer,
        )  # fmt: skip


def is_trained(params: TrainingParams) -> bool:
    """Whether there is a training at all."""
    return params.original_checkpoint is None


def weight_files(job: Job[Any, Any]) -> Mapping[str, tuple[Files, ...]]:
    """The checkpoint that replaces the training, or else the weights that it starts from, where they are a file."""
    params: TrainingParams = job.params
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
    # Not above: with it comes torch.
    from irn_pipeline.nn.imagenet import network_for

    name, weights = job.params.backbone, job.params.backbone_weights
    if weights != "cam":
        return network_for(name, weights), weights
    found = job.run.read(CAM_NETWORK).backbone
    if found not in (name, network_for(name, "imagenet")):
        raise ConfigError(
            f"--backbone-weights cam: the CAM network is a {found}, this one a {name}; give --backbone {found}"
        )
    return found, str(job.run.path(CAM_NETWORK))


def without_training(params: TrainingParams, used: Collection[str]) -> Mapping[str, str]:
    """Parameters that have no effect where a checkpoint replaces the training: all but the `used` ones."""
    if is_trained(params):
        return {}
    kept = {"original_checkpoint", *used}
    names = [field.name for field in fields(params) if field.name not in kept]
    return dict.fromkeys(names, "--original-checkpoint replaces the training")
