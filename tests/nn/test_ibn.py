"""Instance and batch normalisation side by side: formula, places, names, what is forgotten."""

import pytest
import torch
from torch import nn

from evenfield.errors import InputError
from evenfield.nn.backbones import build_backbone, load_weights
from evenfield.nn.ibn import InstanceBatchNorm
from evenfield.nn.norm import batch_norms, normalising, union_rule
from evenfield.nn.resnet import BasicBlock, Bottleneck, ResNet


def standardised(x, axes):
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("channels", [6, 7])
def test_first_half_by_image_second_half_by_batch(channels):
    layer = InstanceBatchNorm(channels).double()
    for norm in (layer.IN, layer.BN):
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    x = 3 * torch.randn(5, channels, 4, 6, dtype=torch.float64) + 2
    a = standardised(x[:, :3], (2, 3)) * layer.IN.weight[:, None, None]
    b = standardised(x[:, 3:], (0, 2, 3)) * layer.BN.weight[:, None, None]
    expected = torch.cat([a + layer.IN.bias[:, None, None], b + layer.BN.bias[:, None, None]], 1)
    torch.testing.assert_close(layer(x), expected)


def instance_norms(net):
    return {name for name, layer in net.named_modules() if isinstance(layer, nn.InstanceNorm2d)}


@pytest.mark.parametrize(
    ("name", "depths"), [("resnet18-ibn-a", (2, 2, 2)), ("resnet50-ibn-a", (3, 4, 6))]
)
def test_variant_a_has_them_in_every_block_of_three_stages(name, depths):
    with torch.device("meta"):
        net, _ = build_backbone(name, 3)
    blocks = [f"layer{s}.{i}.bn1" for s, n in enumerate(depths, start=1) for i in range(n)]
    assert instance_norms(net) == {f"{block}.IN" for block in blocks}
    assert {f"{block}.BN" for block in blocks} <= set(batch_norms(net))
    for block in blocks:
        layer = net.get_submodule(block)
        assert layer.IN.num_features == layer.BN.num_features == 64 * 2 ** (int(block[5]) - 1) // 2


def test_variant_b_has_three():
    with torch.device("meta"):
        net, _ = build_backbone("resnet50-ibn-b", 3)
    assert instance_norms(net) == {"bn1", "layer1.2.IN", "layer2.3.IN"}
    assert net.layer1[2].IN.num_features == 256
    assert "bn1.weight" in net.state_dict()
    assert "bn1.running_mean" not in net.state_dict()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_variant_b_normalises_after_the_addition(block):
    made = block(8, 8 // block.expansion, 1, pooling=False, ibn="b").double().eval()
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    kept = x.clone()
    with torch.no_grad():
        y = made(x)
        made.IN = None
        summed = []
        last = made.bn2 if block is BasicBlock else made.bn3
        last.register_forward_hook(lambda _, __, z: summed.append(z.clone()))
        made(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(y, standardised(summed[0] + x, (2, 3)).clamp(min=0))


@pytest.mark.parametrize("ibn", ["a", "b"])
def test_gradients_reach_everything_and_adapters_the_rest(ibn):
    net = ResNet(Bottleneck, (1, 1, 1, 1), 2, ibn=ibn)
    x = torch.randn(4, 2, 64, 64)
    net(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    seen = []

    def rule(name, layer, y):
        seen.append(name)
        return union_rule(name, layer, y)

    net.eval()
    with torch.no_grad(), normalising(net, rule):
        net(x)
    assert sorted(seen) == sorted(batch_norms(net))


def test_the_contrast_of_an_image_is_forgotten_by_variant_b():
    """Its stem normalises every image alone: a factor of an image leaves no trace."""
    net = ResNet(BasicBlock, (1, 1, 1, 1), 1, ibn="b").eval()
    x = torch.randn(3, 1, 64, 64)
    gain = torch.tensor([0.5, 1.0, 3.0])[:, None, None, None]
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(gain * x), rtol=1e-3, atol=1e-4)
        plain = ResNet(BasicBlock, (1, 1, 1, 1), 1).eval()
        assert (plain(x) - plain(gain * x)).abs().max() > 0.01


def test_files_of_the_authors_are_read_and_plain_ones_refused(tmp_path):
    source, _ = build_backbone("resnet18-ibn-a", 3)
    state = source.state_dict() | {
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }
    torch.save(state, tmp_path / "ibn.pth")
    net, _ = build_backbone("resnet18-ibn-a", 4)
    load_weights(net, tmp_path / "ibn.pth", 4)
    key = "layer3.1.bn1.IN.weight"
    assert torch.equal(net.state_dict()[key], state[key])
    plain, _ = build_backbone("resnet18", 3)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(InputError, match="does not fit"):
        load_weights(net, tmp_path / "plain.pth", 4)
