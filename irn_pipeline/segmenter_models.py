"""Which segmentation models the last stages train and run: their parameters, how one is built and found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, get_args

from irn_pipeline.artifacts import SEGMENTER, Checkpoint, restore_network
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.optimisation import OptimizerName
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import ArtifactError, ConfigError
from irn_pipeline.nn.segmenters.base import Segmenter

ModelName = Literal["mask_rcnn", "semiconv_mask_rcnn", "spatial_embeddings", "metric_embeddings", "deeplabv3"]
MODELS: tuple[str, ...] = get_args(ModelName)
ON_TRUTH = "-on-truth"
"""Ending of the folder of a model that was trained on true masks."""


@dataclass(frozen=True)
class SegmenterParams:
    """Parameters of the segmentation model and its training; none means the model's own recipe."""

    model: ModelName = "mask_rcnn"
    """Which model."""
    labels: Literal["synthesized", "truth"] = "synthesized"
    """Learn from the synthesized labels, or from the data set's true masks (an upper bound)."""
    backbone: str = "resnet50"
    """torchvision's resnet18, 34, 50, 101, a network of timm, or erfnet (spatial_embeddings only)."""
    backbone_weights: str = "imagenet"
    """Start from: imagenet (installed or downloaded), installed, a file's path, none, or cam (of train_cam)."""
    frozen_stages: int = field(default=0, metadata={"fingerprint": "unless default"})
    """Stages of the backbone that do not learn, 0 to 5: 3 is conv1, layer1 and layer2; faster, for few labels."""
    start_from: str | None = None
    """For semiconv_mask_rcnn: path of a trained mask_rcnn's network.pt to attach the new branch to."""
    epochs: int | None = None
    """Passes over the list."""
    batch_size: int | None = None
    """Pictures a step."""
    crop: int | None = None
    """Side of the training crops, pixels; the Mask R-CNNs take whole pictures."""
    rescale: tuple[float, ...] = ()
    """Smallest and largest random scale; the Mask R-CNNs resize every picture to short_side instead."""
    ignore_band: int = 3
    """Width in pixels of the unsure band along the edges of synthesized instances; mask_rcnn learns from all pixels."""
    short_side: int = 512
    """The Mask R-CNNs resize pictures to this short side, pixels."""
    long_side: int = 800
    """And at most to this long side, pixels."""
    boxes_per_image: int = 512
    """Sampled boxes a picture in the training of the Mask R-CNNs."""
    channels: int = 256
    """Channels of the Mask R-CNNs' pyramid and heads."""
    bandwidth: Literal["circular", "elliptical"] = "elliptical"
    """spatial_embeddings: one bandwidth an object, or one an axis."""
    to_center: bool = False
    """spatial_embeddings: objects gather at their centroid, instead of at their mean embedding."""
    lr: float | None = None
    """Learning rate."""
    optimizer: OptimizerName | None = None
    """sgd or adamw."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    warmup_steps: int = 500
    """The learning rate rises over this many steps, at most a tenth of the training."""
    max_gradient_norm: float = 10.0
    """Longer gradients are shortened to this norm; 0 for never."""
    ema_decay: float = 0.0
    """Of the exponential moving average of the weights; 0 for none."""
    validate_list: str | None = None
    """Pictures with true masks, as for --image-list, on which AP is measured during training."""
    validate_every: int = 1
    """Epochs between these measurements."""


@dataclass(frozen=True)
class AskedParams:
    """How trained models are asked for masks; only deeplabv3 has a choice."""

    crf: bool = False
    """For deeplabv3: refine the labels with the dense CRF, which takes seconds a picture."""
    test_scales: tuple[float, ...] = ()
    """For deeplabv3: average the probabilities over these relative picture sizes, such as 0.5 1.0 1.5."""

    def __post_init__(self) -> None:
        if not all(0 < scale < float("inf") for scale in self.test_scales):
            raise ConfigError(f"test_scales are {list(self.test_scales)}; they must be numbers above 0")


@dataclass(frozen=True)
class Recipe:
    """What of a model differs from the other models.

    Attributes:
        epochs, batch_size, crop, rescale, lr, optimizer, milestones: its training, where the parameters do not say.
        uses: those of `SegmenterParams` that not every model has, and this one has.
        asked: those of `AskedParams` that it has.
    """

    epochs: int
    batch_size: int
    crop: int
    rescale: tuple[float, ...]
    lr: float
    optimizer: OptimizerName
    milestones: tuple[float, ...] = ()
    uses: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


_SAMPLES = ("crop", "rescale", "ignore_band")
_DETECTOR = ("short_side", "long_side", "boxes_per_image", "channels")
RECIPES: dict[str, Recipe] = {
    # 18,000 iterations of 4 pictures on VOC's 10,582, steps at 12,000 and 16,000 (spec: interop, recipes).
    "mask_rcnn": Recipe(7, 4, 0, (1.0, 1.0), 0.01, "sgd", (2 / 3, 8 / 9), uses=_DETECTOR),
    "semiconv_mask_rcnn": Recipe(
        7, 4, 0, (1.0, 1.0), 0.0025, "sgd", (0.5,), uses=(*_DETECTOR, "ignore_band", "start_from")
    ),
    "spatial_embeddings": Recipe(
        50, 16, 512, (0.5, 1.5), 5e-4, "adamw", uses=(*_SAMPLES, "bandwidth", "to_center")
    ),
    "metric_embeddings": Recipe(30, 16, 416, (0.5, 1.5), 5e-3, "sgd", uses=_SAMPLES),
    # 30,000 iterations of 10 pictures on 10,582.
    "deeplabv3": Recipe(28, 10, 321, (0.5, 2.0), 2.5e-4, "sgd", uses=_SAMPLES, asked=("crf", "test_scales")),
}


def recipe_of(params: SegmenterParams) -> Recipe:
    """The model's recipe, with whatever the parameters that it uses give in its place."""
    recipe, unused = RECIPES[params.model], unused_parameters(params)
    names = {f.name for f in fields(recipe)} & {f.name for f in fields(params)} - unused.keys()
    given = {name: getattr(params, name) for name in names}
    return replace(recipe, **{name: value for name, value in given.items() if value not in (None, ())})


def unused_parameters(params: SegmenterParams) -> Mapping[str, str]:
    """Parameters that have no effect on this training -> why."""
    model, optimizer = params.model, params.optimizer or RECIPES[params.model].optimizer
    owned = {name for recipe in RECIPES.values() for name in recipe.uses}
    found = {name: _not_used(model, name) for name in sorted(owned) if name not in RECIPES[model].uses}
    if params.labels == "truth":
        found.setdefault("ignore_band", "true masks are learned from up to their edges")
    if optimizer == "adamw":
        found["momentum"] = "adamw has a momentum of its own; it is for sgd"
    if params.start_from is not None:
        found.setdefault("backbone_weights", "all weights come from --start-from")
    if params.validate_list is None:
        found["validate_every"] = "nothing is measured without --validate-list"
    return found


def _not_used(model: str, name: str) -> str:
    others = [other for other, recipe in RECIPES.items() if name in (*recipe.uses, *recipe.asked)]
    return f"of no effect on {model}; it is for {' and '.join(others)}"


def variant_of(params: SegmenterParams) -> str:
    """Name of the folder below `train_segmenter` that the model's files go to."""
    return params.model + (ON_TRUTH if params.labels == "truth" else "")


def segmenter_artifact(variant: str) -> Artifact[Checkpoint]:
    """The checkpoint of one variant."""
    return replace(SEGMENTER, stage=f"{SEGMENTER.stage}/{variant}")


def trained_variants(run: RunFolder) -> tuple[str, ...]:
    """The variants that this run folder holds, in the order of `MODELS`."""
    names = (model + ending for model in MODELS for ending in ("", ON_TRUTH))
    return tuple(name for name in names if run.has(segmenter_artifact(name)))


def build_segmenter(params: SegmenterParams, num_classes: int, asked: AskedParams | None = None) -> Segmenter:
    """The model that the parameters describe, untrained."""
    model = _untrained(params, num_classes, asked or AskedParams())
    model.freeze_stages(params.frozen_stages)
    return model


def _untrained(params: SegmenterParams, num_classes: int, asked: AskedParams) -> Segmenter:
    # Not above: they need torchvision, which takes longer to import than the rest of the program.
    from irn_pipeline.nn.segmenters.deeplab import DeepLabV3
    from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
    from irn_pipeline.nn.segmenters.metric_embeddings import MetricEmbeddings
    from irn_pipeline.nn.segmenters.semiconv_mask_rcnn import SemiconvMaskRcnn
    from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings

    if params.model == "spatial_embeddings":
        return SpatialEmbeddings(
            num_classes=num_classes,
            backbone=params.backbone,
            bandwidth=params.bandwidth,
            to_center=params.to_center,
        )
    backbone = params.backbone
    if backbone == "erfnet":
        raise ConfigError(f"--backbone erfnet is for spatial_embeddings; {params.model} needs another")
    if params.model == "metric_embeddings":
        return MetricEmbeddings(num_classes=num_classes, backbone=backbone)
    if params.model == "deeplabv3":
        scales = asked.test_scales or (1.0,)
        return DeepLabV3(num_classes=num_classes, backbone=backbone, crf=asked.crf, test_scales=scales)
    kind = SemiconvMaskRcnn if params.model == "semiconv_mask_rcnn" else MaskRcnnSegmenter
    return kind(
        num_classes=num_classes,
        backbone=backbone,
        short_side=params.short_side,
        long_side=params.long_side,
        boxes_per_image=params.boxes_per_image,
        channels=params.channels,
    )


def require_asked(variants: Sequence[str], asked: AskedParams) -> None:
    """Refuse what is set and none of the models has.

    Raises:
        ConfigError: the message names the flag, and the models that have it.
    """
    models = [name.removesuffix(ON_TRUTH) for name in variants]
    for name in (f.name for f in fields(AskedParams) if getattr(asked, f.name) != f.default):
        if models and not any(name in RECIPES[model].asked for model in models if model in RECIPES):
            raise ConfigError(f"--{name.replace('_', '-')}: {_not_used(' and '.join(models), name)}")


def load_segmenter(
    run: RunFolder, variant: str, execution: Execution, asked: AskedParams | None = None
) -> tuple[Segmenter, Checkpoint]:
    """A trained model, ready to predict on the execution's device, and its checkpoint.

    Args:
        run: the run folder.
        variant: name of the model's folder in it.
        execution: the device.
        asked: how the model will be asked; what it does not have is left out (see `require_asked`).

    Raises:
        ArtifactError: it is not in the run folder; the message names those that are.
        CheckpointError: its file is damaged or of another model.
    """
    artifact = segmenter_artifact(variant)
    path = run.path(artifact)
    record = run.record(artifact.stage)
    if not run.has(artifact) or record is None:
        there = ", ".join(trained_variants(run)) or "none"
        raise ArtifactError(
            f"{path}: no trained model here (trained in {run.root}: {there}); run stage {SEGMENTER.stage} "
            f"with --model {variant.removesuffix(ON_TRUTH)} first"
        )
    checkpoint = run.read(artifact)
    known = {f.name for f in fields(SegmenterParams)}
    values: dict[str, Any] = {k: v for k, v in record.params.items() if k in known}
    # The weights decide about the network where the parameters leave it open (`imagenet.network_for`).
    params = replace(SegmenterParams(**values), backbone=checkpoint.backbone)
    build = partial(build_segmenter, params, len(checkpoint.class_names), asked)
    model = restore_network(path, checkpoint, params.model, build)
    return model.eval().to(execution.torch_device()), checkpoint
