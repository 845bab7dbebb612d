"""Feature extractors of every network here: torchvision's ResNets, and those of timm (`nn.timm_backbone`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from irn_pipeline.errors import CheckpointError, ConfigError, require_memory
from irn_pipeline.files.regular import open_regular
from irn_pipeline.files.torch_file import load_torch
from irn_pipeline.nn.input_channels import adapted_weights

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
"""The names that mean torchvision's networks; any other name is one of timm's."""
NUM_STAGES = 5
"""Maps of a backbone, at strides 4, 4, 8, 16 and 16; the parameters are divided in the same way."""
LARGE_PICTURE = 2**20
"""Pixels above which pictures go through a network one by one."""


class Backbone(nn.Module, ABC):
    """Feature maps of normalised pictures: five, or one of a network that has a single scale (a ViT).

    Attributes:
        name: as given to `build_backbone`.
        channels: of each map.
    """

    name: str
    channels: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of every stage.

        Args:
            images: (B, 3, H, W) pictures, normalised with ImageNet's mean and deviation (`datasets.transforms`); of C
                channels after `take_channels`.

        Returns:
            Five maps (B, C_i, ceil(H / s), ceil(W / s)) at strides s = 4, 4, 8, 16, 16; or the last one alone.
        """

    @abstractmethod
    def stage_parameters(self, first: int) -> list[nn.Parameter]:
        """Parameters of the stages from `first` (0 = the first convolution) to the last, NUM_STAGES - 1."""

    @abstractmethod
    def imagenet_state(self, *, download: bool) -> dict[str, Tensor]:
        """The tensors of the ImageNet weights that belong to this network.

        Args:
            download: fetch them where no installed package has them.

        Raises:
            CheckpointError: they cannot be had.
        """

    def own_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under the names that this network has for them."""
        return {name.removeprefix("backbone."): value for name, value in state.items()}

    def freeze_stages(self, count: int) -> None:
        """Let the first `count` stages learn nothing; no graph is recorded for them."""
        learning = {id(parameter) for parameter in self.stage_parameters(count)}
        for parameter in self.parameters():
            if id(parameter) not in learning:
                parameter.requires_grad_(False)

    def fold_batch_norms(self) -> None:
        """Merge batch norms into convolutions where that is known to be the same function (evaluation mode)."""


class ResNet(Backbone):
    """A torchvision ResNet whose last stage keeps stride 16 (paper, section 6.1), or its last two stride 8.

    Parameter names are torchvision's, so its state dicts load as they are (without `fc`). At stride 8, convolutions
    are dilated as in DeepLab, so that they see as far as at the stride 32 of their weights.

    Args:
        name: one of `RESNETS`.
        last_stride: 16 or 8.
    """

    def __init__(self, name: str, *, last_stride: int = 16) -> None:
        super().__init__()
        # torchvision takes longer to import than the rest of the program, and no help text needs it.
        from torchvision.models import get_model

        network = get_model(name, weights=None)
        if last_stride == 8:
            _dilate(network.layer3, 1, 2)
        _dilate(network.layer4, *((2, 4) if last_stride == 8 else (1, 1)))
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
        self.channels = (64, width, 2 * width, 4 * width, 8 * width)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Five maps, as described for the base class."""
        features = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features

    def stage_parameters(self, first: int) -> list[nn.Parameter]:
        """Parameters of the stages from `first` (0 = conv1) to the last."""
        modules: list[nn.Module] = [nn.ModuleList([self.conv1, self.bn1])]
        modules += [self.layer1, self.layer2, self.layer3, self.layer4]
        return [p for m in modules[first:] for p in m.parameters()]

    def imagenet_state(self, *, download: bool) -> dict[str, Tensor]:
        """The IMAGENET1K_V1 of torchvision, downloaded once, its hash checked whenever it is read."""
        if not download:
            raise CheckpointError(
                f"--backbone-weights installed: no installed package has weights for a {self.name}; give a file, or "
                "imagenet, which downloads torchvision's"
            )
        from irn_pipeline.nn.imagenet import imagenet_weights

        return read_state_dict(imagenet_weights(self.name))

    def fold_batch_norms(self) -> None:
        """Merge every batch norm into the convolution before it."""
        for part in self.modules():  # the network itself, its stages, their blocks, the blocks' layers
            for index in (1, 2, 3):
                if hasattr(part, f"conv{index}"):
                    _fold(part, f"conv{index}", f"bn{index}")
            shortcut = getattr(part, "downsample", None)
            if shortcut is not None:
                _fold(shortcut, "0", "1")


def build_backbone(name: str, *, pyramid: bool = False, last_stride: int = 16) -> Backbone:
    """The untrained backbone of a name.

    Args:
        name: one of `RESNETS` (torchvision's), or a network of timm, such as efficientnet_lite0; with a tag, such as
            resnet50.a1_in1k, it is timm's in any case, and the tag says which weights `imagenet` are.
        pyramid: whether all five maps are needed.
        last_stride: of the last map: 16; a detector that pools from several scales takes 32 (timm only), a model that
            decides pixel by pixel can take 8.

    Raises:
        ConfigError: there is no such network, it lacks the maps that are needed, or timm is not installed.
    """
    if name in RESNETS:
        return ResNet(name, last_stride=last_stride)
    # timm is an extra, and slow to import.
    from irn_pipeline.nn.timm_backbone import TimmBackbone

    backbone = TimmBackbone(name, last_stride=last_stride)
    if pyramid and len(backbone.channels) < NUM_STAGES:
        raise ConfigError(
            f"--backbone {name}: has features at one scale only, and this stage needs five; use it for train_cam only, "
            "and for this stage a backbone such as resnet50, efficientnet_lite0 or mobilenetv3_large_100"
        )
    if last_stride == 8 and len(backbone.channels) < NUM_STAGES:
        raise ConfigError(
            f"--backbone {name}: has features at stride 16 only; --output-stride 8 needs another"
        )
    return backbone


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
    """Merge batch norms into the convolutions before them, in place; same function, less memory traffic.

    Only for inference: the batch norms must be in evaluation mode for good.
    """
    backbone.eval()
    backbone.fold_batch_norms()
    return backbone


def load_backbone_weights(backbone: Backbone, weights: str | Path) -> None:
    """Fill a backbone with ImageNet weights, with a file's weights, or leave it at random.

    Args:
        backbone: the network to fill.
        weights: "imagenet" (from an installed package that has them, else downloaded), "installed" (never
            downloaded), "none", or the path of a state dict; a checkpoint of the CAM network works too.

    Raises:
        CheckpointError: the file is missing, unreadable, or of another network; the download failed.
    """
    if weights == "none":
        return
    if weights in ("imagenet", "installed"):
        state = backbone.imagenet_state(download=weights == "imagenet")
    else:
        state = backbone.own_state(read_state_dict(Path(weights)))
    source = str(weights)
    own = backbone.state_dict()
    for name, value in own.items():
        if value.ndim == 4 and name in state and state[name].shape[1:2] == (3,) != value.shape[1:2]:
            state[name] = adapted_weights(state[name], value.shape[1])
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
    """Read a file of named tensors, .pth or .safetensors, without running anything it holds.

    Tensors may lie one level down, as in this package's own files ("network") or in others' ("state_dict", ...).

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else than named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a torch state dict (.pth)")
    try:
        with open_regular(path) as stream:
            content = _read_safetensors(stream) if path.suffix == ".safetensors" else load_torch(stream)
    except Exception as error:  # torch raises many types for damaged and for hostile files
        require_memory(error, path)
        raise CheckpointError(
            f"{path}: is not a readable file of weights ({' '.join(str(error).split())[:120]}); "
            "expected a torch state dict of plain tensors"
        ) from error
    for key in ("network", "state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise CheckpointError(
            f"{path}: expected a state dict (names and tensors), found {type(content).__name__}"
        )
    return content


def _read_safetensors(stream: BinaryIO) -> dict[str, Tensor]:
    # Comes with timm.
    from safetensors.torch import load

    return load(stream.read())


def _dilate(layer: nn.Sequential, before: int, after: int) -> None:
    """Take a stage's stride away; its 3x3 convolutions get these dilations, up to the one that had it and behind it."""
    for conv in layer.modules():
        if isinstance(conv, nn.Conv2d):
            dilation = before if conv.stride != (1, 1) else after
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm))
    setattr(parent, conv, fused)
    setattr(parent, norm, nn.Identity())
