import pytest
import torch
import torch.nn.functional as F

from evenfield.nn.resnet import BasicBlock, Bottleneck, ResNet


def conv_bn(x, conv, bn, stride, padding):
    x = F.conv2d(x, conv.weight, stride=stride, padding=padding)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def test_average_pool_bottleneck_is_that_of_the_specification():
    block = Bottleneck(8, 4, 2, pooling=True).eval().double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = conv_bn(x, block.conv1, block.bn1, 1, 0).relu()
    y = conv_bn(y, block.conv2, block.bn2, 1, 1).relu()
    y = conv_bn(F.avg_pool2d(y, 2), block.conv3, block.bn3, 1, 0)
    short = conv_bn(F.avg_pool2d(x, 2), block.downsample[0], block.downsample[1], 1, 0)
    torch.testing.assert_close(block(x), (y + short).relu())


def test_plain_bottleneck_strides_in_its_middle():
    block = Bottleneck(8, 4, 2, pooling=False).eval().double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = conv_bn(x, block.conv1, block.bn1, 1, 0).relu()
    y = conv_bn(y, block.conv2, block.bn2, 2, 1).relu()
    y = conv_bn(y, block.conv3, block.bn3, 1, 0)
    short = conv_bn(x, block.downsample[0], block.downsample[1], 2, 0)
    torch.testing.assert_close(block(x), (y + short).relu())


def test_basic_block():
    block = BasicBlock(8, 8, 1, pooling=False).eval().double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = conv_bn(x, block.conv1, block.bn1, 1, 1).relu()
    torch.testing.assert_close(block(x), (conv_bn(y, block.conv2, block.bn2, 1, 1) + x).relu())


def test_published_head_weighs_the_centre_more():
    net = ResNet(BasicBlock, (1, 1, 1, 1), 2, pooling=True).eval()
    seen = {}
    net.layer4.register_forward_hook(lambda _, __, y: seen.update(y=y))
    with torch.no_grad():
        features = net(torch.randn(1, 2, 256, 256))
    assert seen["y"].shape[2:] == (8, 8)
    weight = torch.zeros(8, 8)
    for top in (0, 1):
        for left in (0, 1):
            weight[top : top + 7, left : left + 7] += 1 / 49 / 4
    torch.testing.assert_close(features[0], (seen["y"][0] * weight).sum((1, 2)))
    assert weight[4, 4] == 4 * weight[0, 0]


@pytest.mark.parametrize("pooling", [False, True])
def test_small_images_pass(pooling):
    net = ResNet(Bottleneck, (1, 1, 1, 1), 1, pooling=pooling).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 1, 32, 32)).shape == (1, 2048)


def test_gradients_survive_the_in_place_steps():
    net = ResNet(Bottleneck, (1, 1, 1, 1), 1, pooling=True)
    net(torch.randn(4, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
