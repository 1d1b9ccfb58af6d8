"""Dense networks: the formula, torchvision's names, files old and new, the smallest image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evenfield.errors import InputError
from evenfield.nn.backbones import build_backbone, load_weights
from evenfield.nn.densenet import DenseNet
from evenfield.nn.norm import batch_norms
from evenfield.nn.places import changing


def small(channels=2):
    return DenseNet(4, (2, 3, 1, 2), 8, channels)


def random_statistics(net):
    g = torch.Generator().manual_seed(0)
    for layer in batch_norms(net).values():
        layer.running_mean.copy_(torch.randn(layer.num_features, generator=g))
        layer.running_var.copy_(torch.rand(layer.num_features, generator=g) + 0.5)
        layer.weight.data.uniform_(0.5, 1.5, generator=g)
    return net


def norm_relu(x, state, key):
    parts = (state[f"{key}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
    mean, var, weight, bias = (p[:, None, None] for p in parts)
    return (weight * (x - mean) / (var + 1e-5).sqrt() + bias).clamp(min=0)


def test_it_is_the_network_of_the_paper():
    net = random_statistics(small()).eval().double()
    state = net.state_dict()
    x = torch.randn(3, 2, 64, 64, dtype=torch.float64)
    y = F.conv2d(x, state["features.conv0.weight"], stride=2, padding=3)
    y = F.max_pool2d(norm_relu(y, state, "features.norm0"), 3, 2, 1)
    for block, depth in enumerate((2, 3, 1, 2), start=1):
        maps = [y]
        for layer in range(1, depth + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            z = norm_relu(torch.cat(maps, 1), state, f"{at}.norm1")
            z = norm_relu(F.conv2d(z, state[f"{at}.conv1.weight"]), state, f"{at}.norm2")
            maps.append(F.conv2d(z, state[f"{at}.conv2.weight"], padding=1))
        y = torch.cat(maps, 1)
        if block < 4:
            at = f"features.transition{block}"
            y = F.conv2d(norm_relu(y, state, f"{at}.norm"), state[f"{at}.conv.weight"])
            y = F.avg_pool2d(y, 2)
    y = norm_relu(y, state, "features.norm5").mean((2, 3))
    torch.testing.assert_close(net(x), y)


def torchvision_shapes(growth, depths, stem, channels, *, old=False):
    """Names and shapes as torchvision writes them; `old` as in its published files."""
    dot = "." if old else ""
    shapes = {}

    def norm(key, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (width,)
        if not old:
            shapes[f"{key}.num_batches_tracked"] = ()

    shapes["features.conv0.weight"] = (stem, channels, 7, 7)
    norm("features.norm0", stem)
    maps = stem
    for block, depth in enumerate(depths, start=1):
        for layer in range(1, depth + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            norm(f"{at}.norm{dot}1", maps)
            shapes[f"{at}.conv{dot}1.weight"] = (4 * growth, maps, 1, 1)
            norm(f"{at}.norm{dot}2", 4 * growth)
            shapes[f"{at}.conv{dot}2.weight"] = (growth, 4 * growth, 3, 3)
            maps += growth
        if block < len(depths):
            norm(f"features.transition{block}.norm", maps)
            shapes[f"features.transition{block}.conv.weight"] = (maps // 2, maps, 1, 1)
            maps //= 2
    norm("features.norm5", maps)
    shapes["classifier.weight"], shapes["classifier.bias"] = (1000, maps), (1000,)
    return shapes


NETS = {"densenet121": (32, (6, 12, 24, 16), 64), "densenet161": (48, (6, 12, 36, 24), 96)}


@pytest.mark.parametrize("name", list(NETS))
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        net, _ = build_backbone(name, 3)
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    theirs = torchvision_shapes(*NETS[name], 3)
    assert ours == {k: shape for k, shape in theirs.items() if not k.startswith("classifier.")}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("channels", [3, 5])
def test_files_of_torchvision_are_read(tmp_path, old, channels):
    shapes = torchvision_shapes(4, (2, 3, 1, 2), 8, 3, old=old)
    g = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(shape, generator=g) + 0.1 if shape else torch.tensor(7)
        for key, shape in shapes.items()
    }
    torch.save(state, tmp_path / "w.pth")
    net = small(channels)
    load_weights(net, tmp_path / "w.pth", channels)
    loaded = net.state_dict()
    dot = "." if old else ""
    for ours, theirs in [
        ("denseblock2.denselayer3.norm1.running_var", f"denselayer3.norm{dot}1.running_var"),
        ("denseblock2.denselayer3.conv2.weight", f"denselayer3.conv{dot}2.weight"),
    ]:
        file_key = f"features.denseblock2.{theirs}"
        assert torch.equal(loaded[f"features.{ours}"], state[file_key])
    stem = loaded["features.conv0.weight"]
    torch.testing.assert_close(stem.sum(1), state["features.conv0.weight"].sum(1))
    assert torch.equal(stem, state["features.conv0.weight"]) == (channels == 3)


def test_files_of_another_network_are_refused(tmp_path):
    torch.save(DenseNet(4, (2, 3, 2, 2), 8, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="does not fit this backbone"):
        load_weights(small(), tmp_path / "w.pth", 2)


def test_the_smallest_image_and_the_one_below():
    net = small().eval()
    with torch.no_grad():
        assert net(torch.randn(1, 2, 29, 40)).shape == (1, net.num_features)
    with pytest.raises(InputError, match="28 x 40 pixels are too small"):
        net(torch.randn(1, 2, 28, 40))


def test_maps_stay_channels_last():
    net = small().to(memory_format=torch.channels_last)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, x, y: seen.append(
                    y.is_contiguous(memory_format=torch.channels_last)
                    and x[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
    net(torch.randn(3, 2, 64, 64).contiguous(memory_format=torch.channels_last))
    assert len(seen) == 1 + 2 * 8 + 3
    assert all(seen)


def test_gradients_survive_the_in_place_steps_and_changes_of_features():
    net = small()
    factor = {place: 1.0 + i for i, place in enumerate(net.places)}
    with changing(net, {place: lambda x, f=f: f * x for place, f in factor.items()}):
        net(torch.randn(4, 2, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
