"""The hand-written backward pass of statistics from a part of the images."""

import pytest
import torch
from torch import nn

from evenfield.nn.norm import subset_rule

KEEP = torch.tensor([False, True, False, True, True])


def by_autograd(layer, x, gradient):
    """The same normalisation in plain products, whose gradient autograd finds by itself."""
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *([1] * (x.ndim - 2)))
    with torch.set_grad_enabled(gradient):
        var, mean = torch.var_mean(x[KEEP], axes, correction=0)
    y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + layer.eps)
    return y * layer.weight.view(shape) + layer.bias.view(shape) if layer.affine else y


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(
    ("kind", "pixels"),
    [
        (nn.BatchNorm1d, ()),
        (nn.BatchNorm1d, (4,)),
        (nn.BatchNorm2d, (3, 4)),
        (nn.BatchNorm3d, (2, 3, 2)),
    ],
)
def test_equals_autograd(kind, pixels, gradient, affine):
    g = torch.Generator().manual_seed(0)
    layer = kind(3, affine=affine).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=g)
    x = (1 + 2 * torch.randn(5, 3, *pixels, generator=g, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(x.shape, generator=g, dtype=torch.float64)
    wanted = [x, *layer.parameters()]
    ours = subset_rule(KEEP, gradient=gradient)("", layer, x)
    theirs = by_autograd(layer, x, gradient)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_and_half_precision(dtype):
    layer = nn.BatchNorm2d(3)
    plain = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = plain.to(dtype).float().requires_grad_()
    last = plain.detach().to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    y = subset_rule(KEEP)("", layer, last)
    assert y.dtype == dtype
    (y * weight.to(dtype)).sum().backward()
    (by_autograd(layer, plain, True) * weight).sum().backward()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(last.grad.float(), plain.grad, rtol=tolerance, atol=tolerance)


def test_frozen_weights_and_frozen_images():
    layer = nn.BatchNorm2d(3).requires_grad_(False)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    subset_rule(KEEP)("", layer, x).square().sum().backward()
    assert x.grad is not None
    layer = nn.BatchNorm2d(3)
    subset_rule(KEEP)("", layer, x.detach()).square().sum().backward()
    assert layer.weight.grad is not None
