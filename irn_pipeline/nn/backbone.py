"""ResNet feature extractor shared by the CAM network and IRNet (paper, section 6.1: last stage at stride 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from irn_pipeline.errors import CheckpointError, ConfigError
from irn_pipeline.files.regular import open_regular
from irn_pipeline.files.torch_file import load_torch
from irn_pipeline.nn.imagenet import imagenet_weights

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
NUM_STAGES = 5
"""conv1..maxpool, then layer1 to layer4."""
LARGE_PICTURE = 2**20
"""Pixels above which pictures go through a network one by one."""


class Backbone(nn.Module):
    """Five feature maps of a torchvision ResNet whose last stage keeps stride 16.

    Parameter names are torchvision's, so its state dicts load as they are (without `fc`).

    Args:
        name: which ResNet.

    Raises:
        ConfigError: it is none of those.
    """

    def __init__(self, *, name: BackboneName = "resnet50") -> None:
        super().__init__()
        # The name may come from a file, and any function of torchvision.models would be called.
        if name not in get_args(BackboneName):
            raise ConfigError(
                f"no backbone is called '{name}'; known are {', '.join(get_args(BackboneName))}"
            )
        # torchvision takes longer to import than the rest of the program, and no help text needs it.
        from torchvision.models import get_model

        network = get_model(name, weights=None)
        _keep_last_stride(network.layer4)
        self.name = name
        self.conv1, self.bn1, self.relu, self.maxpool = (
            network.conv1,
            network.bn1,
            network.relu,
            network.maxpool,
        )
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        width = network.fc.in_features // 8
        self.channels: tuple[int, ...] = (64, width, 2 * width, 4 * width, 8 * width)

    def forward(self, images: Tensor, frozen_stages: int = 0) -> list[Tensor]:
        """Features of every stage.

        Args:
            images: (B, 3, H, W) normalised pictures.
            frozen_stages: the gradient is cut after this many stages; they run without recording a graph.

        Returns:
            Five maps (B, C_i, ceil(H / s), ceil(W / s)) at strides s = 4, 4, 8, 16, 16.
        """
        features: list[Tensor] = []
        x = images
        for index in range(NUM_STAGES):
            record = index >= frozen_stages and torch.is_grad_enabled()
            with torch.set_grad_enabled(record):
                x = self._stage(index, x)
            features.append(x)
        return features

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:
            return self.maxpool(self.relu(self.bn1(self.conv1(x))))
        layer: nn.Module = getattr(self, f"layer{index}")
        return layer(x)

    def stage_parameters(self, first: int) -> list[nn.Parameter]:
        """Parameters of the stages from `first` (0 = conv1) to the last."""
        modules: list[nn.Module] = [nn.ModuleList([self.conv1, self.bn1])]
        modules += [self.layer1, self.layer2, self.layer3, self.layer4]
        return [p for m in modules[first:] for p in m.parameters()]


def freeze_batch_norm_statistics(module: nn.Module) -> None:
    """Keep the running statistics of every batch norm; its scale and shift still learn (call after `train()`)."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()


def freeze_batch_norms(module: nn.Module) -> None:
    """Freeze every batch norm: running statistics, scale and shift (call after `train()`)."""
    freeze_batch_norm_statistics(module)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.requires_grad_(False)


def memory_batches(images: Tensor) -> tuple[Tensor, ...]:
    """(B, 3, H, W) pictures as one batch; each alone where they are large.

    A large picture fills any device by itself: a common pass would gain nothing and take B times the memory.
    """
    return images.split(1 if images.shape[-2] * images.shape[-1] > LARGE_PICTURE else len(images))


def fold_batch_norms(backbone: Backbone) -> Backbone:
    """Merge every batch norm into the convolution before it, in place; same function, less memory traffic.

    Only for inference: the batch norms must be in evaluation mode for good.
    """
    backbone.eval()
    for part in backbone.modules():  # the network itself, its stages, their blocks, the blocks' layers
        for index in (1, 2, 3):
            if hasattr(part, f"conv{index}"):
                _fold(part, f"conv{index}", f"bn{index}")
        shortcut = getattr(part, "downsample", None)
        if shortcut is not None:
            _fold(shortcut, "0", "1")
    return backbone


def load_backbone_weights(backbone: Backbone, weights: str | Path) -> None:
    """Fill a backbone with ImageNet weights, with a file's weights, or leave it at random.

    Args:
        backbone: the network to fill.
        weights: "imagenet" (torchvision's IMAGENET1K_V1, downloaded once, its hash checked whenever it is read),
            "none", or the path of a torchvision state dict; a checkpoint of the CAM network works too.

    Raises:
        CheckpointError: the file is missing, unreadable, or of another network; the download failed.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        weights = imagenet_weights(backbone.name)
    state = read_state_dict(Path(weights))
    source = str(weights)
    state = {k.removeprefix("backbone."): v for k, v in state.items()}
    own = backbone.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{source}: holds no {backbone.name} weights ({len(missing)} of {len(own)} tensors missing, the first is "
            f"'{missing[0]}'); name the network it was made for with --backbone, or another file"
        )
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            f"{source}: '{wrong[0]}' is {tuple(state[wrong[0]].shape)}, {backbone.name} needs "
            f"{tuple(own[wrong[0]].shape)}; name the network it was made for with --backbone"
        )
    backbone.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors without running anything it holds.

    A file of this package's own format ({"network": tensors, ...}) gives its tensors.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else than named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a torch state dict (.pth)")
    try:
        with open_regular(path) as stream:
            content = load_torch(stream)
    except MemoryError:
        raise
    except Exception as error:  # torch raises many types for damaged and for hostile files
        raise CheckpointError(
            f"{path}: is no readable file of weights ({' '.join(str(error).split())[:120]}); "
            "expected a torch state dict of plain tensors"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("network"), dict):
        content = content["network"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise CheckpointError(
            f"{path}: expected a state dict (names and tensors), found {type(content).__name__}"
        )
    return content


def _keep_last_stride(layer: nn.Sequential) -> None:
    block: Any = layer[0]
    # Which of the two has the stride depends on the kind of block.
    for conv in (block.conv1, block.conv2, block.downsample[0]):
        conv.stride = (1, 1)


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm))
    setattr(parent, conv, fused)
    setattr(parent, norm, nn.Identity())
