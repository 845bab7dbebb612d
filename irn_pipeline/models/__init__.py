"""The segmentation models of the last stages: their parameters, their recipes, and how one is built.

Nothing here imports torch before a model is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from irn_pipeline.engine.optimisation import MILESTONES, OptimizerName, Phase, ScheduleName
from irn_pipeline.errors import ConfigError
from irn_pipeline.models.base import Model, Recipe
from irn_pipeline.variants import bases_of, load_variants, unused_by

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter

ModelName = Literal["mask_rcnn", "semiconv_mask_rcnn", "spatial_embeddings", "metric_embeddings", "deeplabv3"]
"""All models; each is declared by the module of its name in this package."""
MODELS = load_variants("irn_pipeline.models", Model, get_args(ModelName))
_FIRST_RATE = 4.0
"""Learning rate of the plain Mask R-CNN beside that of its semi-convolutional form: 0.01 and 0.0025 as published."""
ON_TRUTH = "-on-truth"
"""Ending of the folder of a model that was trained on true masks."""


@dataclass(frozen=True)
class CommonParams:
    """Parameters of all models."""

    model: ModelName = "mask_rcnn"
    """Model to train."""
    labels: Literal["synthesized", "truth"] = "synthesized"
    """Train on the synthesized labels, or on the ground-truth masks of the data set (an upper bound)."""
    backbone: str = "resnet50"
    """resnet18, resnet34, resnet50 or resnet101 (torchvision), a timm network, or erfnet (spatial_embeddings
    only)."""
    backbone_weights: str = "imagenet"
    """Initial weights: imagenet (installed or downloaded), installed (never downloaded), a file, cam (from
    train_cam), or none (random)."""
    frozen_stages: int = field(default=0, metadata={"fingerprint": "unless default"})
    """Number of backbone stages to freeze, 0 to 5; 3 freezes conv1, layer1 and layer2. Faster; useful with few
    labels."""
    epochs: int | tuple[int, ...] | None = None
    """Passes over the image list; with --crops one number for each phase. Default: the model's recipe."""
    batch_size: int | None = None
    """Images per step. Default: the model's recipe."""
    lr: float | None = None
    """Learning rate. Default: the model's recipe."""
    optimizer: OptimizerName | None = None
    """sgd, adamw or adam. Default: the model's recipe."""
    schedule: ScheduleName | None = field(default=None, metadata={"fingerprint": "unless default"})
    """How the learning rate falls: poly (steadily), steps (by 10 at milestones) or constant. Default: the model's
    recipe."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """Weight decay (L2 penalty)."""
    warmup_steps: int = 500
    """Steps of linear learning-rate warm-up; at most a tenth of the training."""
    max_gradient_norm: float = 10.0
    """Clip gradients to this norm; 0 disables clipping."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 disables it."""
    validate_list: str | None = None
    """Images with ground-truth masks on which AP is measured during training; same format as --image-list."""
    validate_every: int = 1
    """Epochs between two validations."""
    patience: float = field(default=0.0, metadata={"fingerprint": "unless default"})
    """Stop when AP on --validate-list (mIoU if there are no object masks) has not improved for this fraction of the
    steps, such as 0.2, and keep the best weights. 0: never stop early."""

    def __post_init__(self) -> None:
        if not 0 <= self.patience <= 1:
            raise ConfigError(f"patience is {self.patience}; it must be a fraction of the steps, 0 to 1")
        if self.patience and self.validate_list is None:
            raise ConfigError(
                "--patience needs --validate-list, images with true masks on which AP is measured"
            )


@dataclass(frozen=True)
class SegmenterParams(*bases_of([model.params for model in MODELS.values()]), CommonParams):  # type: ignore[misc]
    """Parameters of the segmentation model and its training; none means the model's own recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        epochs, crops = self.phase_epochs, self.phase_crops
        if len(epochs) != len(crops):
            told = f"--crops has {len(crops)} phases, --epochs {len(epochs)}"
            raise ConfigError(
                f"{told}; give one number for each phase, as in --crops 500 1024 --epochs 150 50"
            )
        if not all(value > 0 for value in (*crops, *epochs)):
            raise ConfigError("crops and epochs of phases must be above 0")

    @property
    def phase_crops(self) -> tuple[int, ...]:
        """Sides of the crops of each phase; none where the training has no phases."""
        model = MODELS.get(self.model)
        return () if model is None or model.phased is None else tuple(self.crops)

    @property
    def phase_epochs(self) -> tuple[int, ...]:
        """Epochs of each phase; none where the training has no phases."""
        if self.epochs is None or (isinstance(self.epochs, int) and not self.phase_crops):
            return ()
        return (self.epochs,) if isinstance(self.epochs, int) else tuple(self.epochs)


@dataclass(frozen=True)
class AskedParams(*bases_of([model.asked for model in MODELS.values()])):  # type: ignore[misc]
    """How trained models are asked for masks."""


def recipe_of(params: SegmenterParams) -> Recipe:
    """The model's recipe, with whatever the parameters that it uses give in its place; of phases, the first's."""
    model, unused = MODELS[params.model], unused_parameters(params)
    recipe = model.phased if params.phase_crops and model.phased is not None else model.recipe
    names = {f.name for f in fields(recipe)} & {f.name for f in fields(params)} - unused.keys()
    given = {name: getattr(params, name) for name in names}
    if params.phase_crops:
        given |= {"epochs": params.phase_epochs[0], "crop": params.phase_crops[0]}
    if params.schedule is not None:
        given["milestones"] = (recipe.milestones or MILESTONES) if params.schedule == "steps" else None
        recipe = replace(recipe, milestones=(), power=0.0 if params.schedule == "constant" else recipe.power)
    return replace(recipe, **{name: value for name, value in given.items() if value not in (None, ())})


def later_phases(params: SegmenterParams, processes: int = 1) -> tuple[Phase, ...]:
    """The phases of a training with `crops` behind the first, as the paper of SpatialEmbeddings has them.

    A batch has about as many pixels as in the first phase: 16 crops of 500 are followed by 4 of 1024.

    Args:
        params: of the training.
        processes: that share a batch.
    """
    first = recipe_of(params)
    return tuple(
        Phase(
            epochs,
            max(round(first.batch_size * (first.crop / crop) ** 2 / processes), 1) * processes,
            lr_factor=0.1,
            fixed_norms=True,
        )
        for epochs, crop in zip(params.phase_epochs[1:], params.phase_crops[1:], strict=True)
    )


def start_of(params: SegmenterParams) -> str | None:
    """The trained network that all weights come from, if one is named and the model can start from one."""
    name: str | None = None if "start_from" in unused_parameters(params) else params.start_from
    return name


def first_of(params: SegmenterParams) -> SegmenterParams | None:
    """The training of the plain Mask R-CNN that comes before this one, if there is one."""
    if "first_epochs" in unused_parameters(params) or not params.first_epochs:
        return None
    values = {"model": "mask_rcnn", "epochs": params.first_epochs, "first_epochs": 0, "kernel": "laplacian"}
    return replace(params, lr=_FIRST_RATE * recipe_of(params).lr, **values)


def original_of(params: SegmenterParams) -> str | None:
    """The authors' checkpoint that replaces the training, if one is named and the model can take one."""
    name: str | None = (
        None if "original_checkpoint" in unused_parameters(params) else params.original_checkpoint
    )
    return name


def weights_of(params: SegmenterParams) -> str:
    """What the backbone starts from: as `backbone_weights`, or "none" where that has no effect."""
    return "none" if "backbone_weights" in unused_parameters(params) else params.backbone_weights


def unused_parameters(params: SegmenterParams) -> Mapping[str, str]:
    """Parameters that have no effect on this training -> why."""
    model = MODELS[params.model]
    found = unused_by([params.model], {name: one.params for name, one in MODELS.items()})
    if not model.has_backbone:
        names = ("backbone", "backbone_weights", "frozen_stages")
        found |= dict.fromkeys(names, f"has no effect with {params.model}, which has no backbone to choose")
    if params.labels == "truth":
        found.setdefault("ignore_band", "ground-truth masks are learned from up to their edges")
    recipe = model.phased if params.phase_crops and model.phased is not None else model.recipe
    if (optimizer := params.optimizer or recipe.optimizer) != "sgd":
        found["momentum"] = f"{optimizer} has its own momentum; it is for sgd"
    if params.phase_crops:
        found["crop"] = "--crops names the sides of the crops"
        found["warmup_steps"] = "phases, which --crops names, start at the full rate, as in the paper"
    if "start_from" not in found and params.start_from is not None:
        found["backbone_weights"] = "all weights come from --start-from"
    if "original_checkpoint" not in found and params.original_checkpoint is not None:
        used = {"model", "original_checkpoint", "bandwidth", *(f.name for f in fields(model.asked))}
        replaced = {f.name for f in fields(params)} - used - found.keys()
        found |= dict.fromkeys(replaced, "--original-checkpoint replaces the training")
    if params.validate_list is None:
        found["validate_every"] = "nothing is measured without --validate-list"
    return found


def variant_of(params: SegmenterParams) -> str:
    """Name of the folder below `train_segmenter` that the model's files go to."""
    return params.model + (ON_TRUTH if params.labels == "truth" else "")


def build_segmenter(
    params: SegmenterParams, num_classes: int, asked: AskedParams | None = None, channels: int = 3
) -> Segmenter:
    """The model that the parameters describe, untrained, for pictures of so many channels.

    Raises:
        ConfigError: it cannot be built on this backbone, or does not have so many stages to freeze.
    """
    model = MODELS[params.model]
    for name, other in MODELS.items():
        if other is not model and params.backbone in other.own_backbones:
            raise ConfigError(f"--backbone {params.backbone} is for {name}; {params.model} needs another")
    values = {f.name: getattr(asked, f.name) for f in fields(model.asked)} if asked is not None else {}
    if channels != 3 and params.backbone in model.own_backbones:
        raise ConfigError(
            f"--backbone {params.backbone} sees RGB only, these pictures have {channels} channels"
        )
    network = model.build(params, num_classes, **values)
    network.take_channels(channels)
    network.freeze_stages(params.frozen_stages)
    return network


def require_asked(variants: Sequence[str], asked: AskedParams) -> None:
    """Refuse what is set and none of the models has.

    Raises:
        ConfigError: the message names the flag, and the models that have it.
    """
    models = [name.removesuffix(ON_TRUTH) for name in variants]
    unused = unused_by(models, {name: model.asked for name, model in MODELS.items()})
    for entry in fields(AskedParams):
        if models and entry.name in unused and getattr(asked, entry.name) != entry.default:
            raise ConfigError(f"--{entry.name.replace('_', '-')}: {unused[entry.name]}")
