"""ERFNet (Romera et al., T-ITS 2018) as SpatialEmbeddings uses it: one encoder, any number of decoders.

Parameters have the names of the authors' PyTorch implementation; its unused encoder-only head is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ERFNET_CHANNELS = 128
"""Channels between the encoder and a decoder."""
ERFNET_STRIDE = 8
"""Pixels per cell between the encoder and a decoder; sides of a picture must be multiples of it."""

_EPSILON = 1e-3
"""Of every batch norm."""


class ErfNetEncoder(nn.Module):
    """(B, 3, H, W) pictures -> (B, 128, H / 8, W / 8); both sides must be multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.initial_block = DownsamplerBlock(3, 16)
        context = [NonBottleneck1d(128, dropout=0.3, dilation=d) for _ in range(2) for d in (2, 4, 8, 16)]
        self.layers = nn.Sequential(
            DownsamplerBlock(16, 64),
            *(NonBottleneck1d(64, dropout=0.03) for _ in range(5)),
            DownsamplerBlock(64, ERFNET_CHANNELS),
            *context,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features at stride 8."""
        features: Tensor = self.layers(self.initial_block(images))
        return features


class Decoder(nn.Module):
    """Layers that end in 16 channels at half the picture's resolution, then a transposed convolution.

    Args:
        layers: features -> (B, 16, H / 2, W / 2).
        out_channels: of the last transposed convolution, `output_conv`.
    """

    def __init__(self, layers: nn.Sequential, out_channels: int) -> None:
        super().__init__()
        self.layers = layers
        self.output_conv = nn.ConvTranspose2d(16, out_channels, 2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, out_channels, H, W) maps at the picture's resolution."""
        maps: Tensor = self.output_conv(self.layers(features))
        return maps


class ErfNetDecoder(Decoder):
    """(B, 128, h, w) features -> (B, out_channels, 8 h, 8 w)."""

    def __init__(self, out_channels: int) -> None:
        layers = nn.Sequential(
            UpsamplerBlock(ERFNET_CHANNELS, 64),
            NonBottleneck1d(64),
            NonBottleneck1d(64),
            UpsamplerBlock(64, 16),
            NonBottleneck1d(16),
            NonBottleneck1d(16),
        )
        super().__init__(layers, out_channels)


class DownsamplerBlock(nn.Module):
    """Half the resolution: a strided convolution beside a maximum, joined on channels.

    Args:
        in_channels: of the input, which the maximum keeps.
        out_channels: of the output; the convolution makes the rest.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h / 2, w / 2); h and w must be even."""
        return F.relu(self.bn(torch.cat([self.conv(x), self.pool(x)], 1)))


class NonBottleneck1d(nn.Module):
    """Residual block of four one-dimensional convolutions; the last two may be dilated.

    Args:
        channels: of input and output.
        dropout: share of channels that is dropped in training.
        dilation: of the second pair of convolutions.
    """

    def __init__(self, channels: int, *, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.bn1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        y = self.dropout(self.bn2(self.conv1x3_2(y)))
        return F.relu(y + x)


class UpsamplerBlock(nn.Module):
    """Twice the resolution.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, 2 h, 2 w)."""
        return F.relu(self.bn(self.conv(x)))
