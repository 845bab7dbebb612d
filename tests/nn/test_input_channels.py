"""The first convolution for other numbers of channels: timm's rule, and grey pictures are what they were as RGB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irn_pipeline.nn.backbone import build_backbone, load_backbone_weights
from irn_pipeline.nn.input_channels import adapted_weights, take_channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_rule_is_that_of_timm(channels: int) -> None:
    manipulate = pytest.importorskip("timm.models._manipulate")
    weights = torch.randn(8, 3, 3, 3)
    torch.testing.assert_close(
        adapted_weights(weights, channels), manipulate.adapt_input_conv(channels, weights.clone())
    )


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_grey_pictures_give_the_features_that_they_give_as_rgb(name: str) -> None:
    if name != "resnet18":
        pytest.importorskip("timm")
    network = build_backbone(name).eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        as_rgb = network(grey.expand(1, 3, 64, 64))
        adapted = take_channels(network, 1)(grey)
    for found, expected in zip(adapted, as_rgb, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert sum(value.shape != state[key].shape for key, value in network.state_dict().items()) == 1


def test_files_of_three_channels_and_of_more_are_loaded(tmp_path: Path) -> None:
    rgb = build_backbone("resnet18")
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    network = take_channels(build_backbone("resnet18"), 5)
    load_backbone_weights(network, tmp_path / "rgb.pth")
    weights = network.state_dict()["conv1.weight"]
    assert weights.shape == (64, 5, 7, 7)
    torch.testing.assert_close(weights, adapted_weights(rgb.state_dict()["conv1.weight"], 5))
    torch.save(network.state_dict(), tmp_path / "five.pth")
    again = take_channels(build_backbone("resnet18"), 5)
    load_backbone_weights(again, tmp_path / "five.pth")
    torch.testing.assert_close(again.state_dict()["conv1.weight"], weights)


def test_a_frozen_first_convolution_stays_frozen() -> None:
    network = build_backbone("resnet18")
    network.freeze_stages(1)
    take_channels(network, 4)
    assert [p.requires_grad for p in network.stage_parameters(0)][:1] == [False]
