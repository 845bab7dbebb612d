import pytest
import torch
from torch import nn

from irn_pipeline.nn.segmenters.erfnet import DownsamplerBlock, ErfNetDecoder, ErfNetEncoder, NonBottleneck1d


def count(module):
    return sum(p.numel() for p in module.parameters())


def conv(inputs, outputs, cells):
    return inputs * outputs * cells + outputs


def residual(channels):
    """Four biased convolutions of three cells and two batch norms."""
    return 4 * conv(channels, channels, 3) + 2 * 2 * channels


def test_parameters_are_those_of_the_specification():
    encoder = conv(3, 13, 9) + 2 * 16 + conv(16, 48, 9) + 2 * 64 + 5 * residual(64)
    encoder += conv(64, 64, 9) + 2 * 128 + 8 * residual(128)
    decoder = conv(128, 64, 9) + 2 * 64 + 2 * residual(64) + conv(64, 16, 9) + 2 * 16 + 2 * residual(16)
    assert count(ErfNetEncoder()) == encoder
    assert count(ErfNetDecoder(3)) == decoder + conv(16, 3, 4)


@pytest.mark.parametrize("size", [(8, 8), (24, 40)])
def test_encoder_divides_by_eight_and_decoder_multiplies(size):
    features = ErfNetEncoder().eval()(torch.rand(2, 3, *size))
    assert features.shape == (2, 128, size[0] // 8, size[1] // 8)
    assert ErfNetDecoder(5).eval()(features).shape == (2, 5, *size)


def test_context_blocks_dilate_and_drop_as_specified():
    blocks = [m for m in ErfNetEncoder().modules() if isinstance(m, NonBottleneck1d)]
    dilations = [(b.conv3x1_2.dilation, b.conv1x3_2.dilation) for b in blocks]
    assert dilations == [((d, 1), (1, d)) for d in (1, 1, 1, 1, 1, 2, 4, 8, 16, 2, 4, 8, 16)]
    assert [b.dropout.p for b in blocks] == [0.03] * 5 + [0.3] * 8
    assert all(b.conv3x1_1.dilation == b.conv1x3_1.dilation == (1, 1) for b in blocks)
    assert {m.dropout.p for m in ErfNetDecoder(1).modules() if isinstance(m, NonBottleneck1d)} == {0.0}


def test_batch_norms_and_biases_are_those_of_the_specification():
    modules = [*ErfNetEncoder().modules(), *ErfNetDecoder(2).modules()]
    assert {m.eps for m in modules if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert all(m.bias is not None for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))


def test_downsampler_joins_convolution_and_maximum():
    block = DownsamplerBlock(1, 2).eval()
    nn.init.constant_(block.conv.weight, 1.0)
    nn.init.zeros_(block.conv.bias)
    block.bn.eps = 1e-12  # vanishes beside 1; torch 2.11 refuses 0
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert block(image).flatten().tolist() == [
        10.0,
        4.0,
    ]  # sum of the 3x3 window with its border, then the maximum


def test_residual_block_without_weights_is_a_relu():
    block = NonBottleneck1d(2, dropout=0.5, dilation=4).train()
    for p in block.parameters():
        nn.init.zeros_(p)
    x = torch.randn(1, 2, 5, 6)
    assert torch.equal(block(x), x.relu())


def test_residual_block_reaches_as_far_as_its_dilation():
    block = NonBottleneck1d(1, dilation=3).double().eval()
    x = torch.rand(1, 1, 31, 31, dtype=torch.double, requires_grad=True)
    for p in block.parameters():
        nn.init.constant_(p, 0.1)
    block(x)[0, 0, 15, 15].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (11, 19)  # 1 + 3 both ways
