"""Networks for pictures that do not have three channels."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


def adapted_weights(weights: Tensor, channels: int) -> Tensor:
    """Weights of a first convolution for another number of channels (the rule of timm's `adapt_input_conv`).

    For one channel those of red, green and blue are summed, which is what the network makes of a grey picture. For
    others they are repeated in turn and multiplied by 3 / channels, so that sums keep their size.

    Args:
        weights: (O, 3, h, w).
        channels: wanted.

    Returns:
        (O, channels, h, w).
    """
    if channels == 1:
        return weights.sum(1, keepdim=True)
    return weights[:, torch.arange(channels) % 3] * (3 / channels)


def take_channels(network: N, channels: int) -> N:
    """Let a network see pictures of another number of channels than three, in place.

    Args:
        network: its first convolution that sees three channels is the one that sees pictures.
        channels: of the pictures.

    Returns:
        The network.
    """
    if channels != 3:
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
        learns, weights = first.weight.requires_grad, adapted_weights(first.weight.detach(), channels)
        first.weight, first.in_channels = nn.Parameter(weights, requires_grad=learns), channels
    return network
