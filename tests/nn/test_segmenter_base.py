"""What all models on labels have in common: stages of the ResNet that do not learn."""

from __future__ import annotations

import pytest
import torch

from irn_pipeline.errors import ConfigError
from irn_pipeline.models import MODELS, SegmenterParams, build_segmenter
from irn_pipeline.nn.segmenters.base import Segmenter


def build(model: str, backbone: str = "resnet18", frozen_stages: int = 0) -> Segmenter:
    params = SegmenterParams(
        model=model,  # type: ignore[arg-type]
        backbone=backbone,  # type: ignore[arg-type]
        frozen_stages=frozen_stages,
        short_side=64,
        long_side=96,
        channels=32,
    )
    return build_segmenter(params, 2)


def learning(network: Segmenter) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("model", MODELS)
def test_frozen_stages_are_the_first_ones(model: str) -> None:
    all_learn, some, none = (learning(build(model, frozen_stages=count)) for count in (0, 3, 5))
    given_up = all_learn - some
    assert any(".layer2." in name for name in given_up)
    assert not any(
        part in name for name in given_up for part in ("layer3", "layer4", "head", "fpn", "pyramid")
    )
    assert any(".layer3." in name for name in some) and any(".layer4." in name for name in some)
    assert none and not any(".layer" in name for name in none if "backbone.layer" in name or "body" in name)
    optimised = build(model, frozen_stages=3)
    grouped = {id(p) for group in optimised.param_groups(0.1) for p in group["params"]}
    assert grouped == {id(p) for p in optimised.parameters() if p.requires_grad}


def test_frozen_stages_get_no_gradient() -> None:
    network = build("deeplabv3", frozen_stages=4).train()
    network(torch.randn(1, 3, 32, 32)).sum().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
    assert any("layer4" in name for name in with_gradient)
    assert not any(part in name for name in with_gradient for part in ("backbone.conv1", "layer1", "layer3"))


def test_impossible_numbers_are_refused() -> None:
    for count in (-1, 6):
        with pytest.raises(ConfigError, match="frozen_stages must be 0 to 5"):
            build("deeplabv3", frozen_stages=count)
    with pytest.raises(ConfigError, match="built on a backbone"):
        build("spatial_embeddings", backbone="erfnet", frozen_stages=1)
