import pytest
import torch
from torch import nn

from evenfield.errors import InputError
from evenfield.nn.backbones import BACKBONES, adapt_stem, build_backbone, load_weights
from evenfield.nn.norm import batch_norms


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", list(BACKBONES))
def test_any_number_of_channels_and_the_promised_features(name):
    for channels in (1, 7):
        backbone, d = build_backbone(name, channels)
        backbone.eval()
        with torch.no_grad():
            assert backbone(torch.randn(2, channels, 64, 64)).shape == (2, d)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_channels_last_stays_channels_last(name):
    backbone, _ = build_backbone(name, 5)
    kernels = [p for p in backbone.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


def test_sizes_of_the_published_variant():
    backbone, d = build_backbone("resnet50-avgpool", 5)
    assert d == 2048
    assert len(batch_norms(backbone)) == 53
    assert all(isinstance(m, nn.BatchNorm2d) for m in batch_norms(backbone).values())
    with_head = num_parameters(backbone) + num_parameters(nn.Linear(d, 8))
    assert with_head == 23_530_696  # 23.53 M
    strides = [m.stride for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(2, 2)] + [(1, 1)] * (len(strides) - 1)


def test_small_network_is_small():
    backbone, d = build_backbone("cnn-small", 5)
    assert d == 128
    assert num_parameters(backbone) == 186_400


def test_published_sizes_without_classifier():
    """torchvision: 11,689,512 and 25,557,032 parameters, less the classifiers' 1,000 classes."""
    assert num_parameters(build_backbone("resnet18", 3)[0]) == 11_689_512 - 513_000
    assert num_parameters(build_backbone("resnet50", 3)[0]) == 25_557_032 - 2_049_000


def torchvision_state(name, channels=3):
    """Keys and shapes in torchvision's naming, written out from its documentation's structure."""
    depths, deep = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}[name]
    shapes = {}

    def norm(key, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (width,)
        shapes[f"{key}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, channels, 7, 7)
    norm("bn1", 64)
    before = 64
    for stage, depth in enumerate(depths, start=1):
        width = 64 * 2 ** (stage - 1)
        after = width * 4 if deep else width
        for block in range(depth):
            at = f"layer{stage}.{block}"
            kernels = (
                [(width, before, 1, 1), (width, width, 3, 3), (after, width, 1, 1)]
                if deep
                else [(width, before, 3, 3), (width, width, 3, 3)]
            )
            for index, shape in enumerate(kernels, start=1):
                shapes[f"{at}.conv{index}.weight"] = shape
                norm(f"{at}.bn{index}", shape[0])
            if block == 0 and before != after:
                shapes[f"{at}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{at}.downsample.1", after)
            before = after
    shapes["fc.weight"], shapes["fc.bias"] = (1000, before), (1000,)
    g = torch.Generator().manual_seed(0)
    return {
        key: torch.tensor(7) if shape == () else 0.05 * torch.rand(*shape, generator=g)
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_keys_and_shapes_are_those_of_torchvision(name):
    backbone, _ = build_backbone(name, 3)
    ours = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    theirs = torchvision_state(name).items()
    assert ours == {key: tuple(v.shape) for key, v in theirs if not key.startswith("fc.")}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_weights_from_a_file_fit_any_number_of_channels(tmp_path, channels):
    state = torchvision_state("resnet18")
    torch.save(state, tmp_path / "w.pth")
    backbone, _ = build_backbone("resnet18", channels)
    load_weights(backbone, tmp_path / "w.pth", channels)
    reference, _ = build_backbone("resnet18", 3)
    load_weights(reference, tmp_path / "w.pth", 3)
    loaded = backbone.state_dict()
    assert torch.equal(reference.state_dict()["conv1.weight"], state["conv1.weight"])
    assert torch.equal(loaded["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
    grey = torch.randn(2, 1, 32, 32)
    backbone.eval(), reference.eval()
    with torch.no_grad():
        ours, theirs = (
            backbone(grey.expand(-1, channels, -1, -1)),
            reference(grey.repeat(1, 3, 1, 1)),
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_files_without_counters_are_read(tmp_path):
    state = torchvision_state("resnet18")
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "w.pth")
    load_weights(build_backbone("resnet18", 3)[0], tmp_path / "w.pth", 3)


def test_wrong_weights_are_refused(tmp_path):
    backbone, _ = build_backbone("resnet18", 3)
    before = backbone.conv1.weight.clone()
    state = torchvision_state("resnet18")
    cases = {
        "missing.pth": {k: v for k, v in state.items() if not k.startswith("layer4")},
        "shape.pth": state | {"layer1.0.conv1.weight": torch.zeros(1, 1, 3, 3)},
        "other.pth": torchvision_state("resnet50"),
        "none.pth": [1, 2],
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=name):
            load_weights(backbone, tmp_path / name, 3)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "shape.pth").read_bytes()[:1000])
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("cut.pth", "text.pth", "absent.pth"):
        with pytest.raises(InputError, match=name):
            load_weights(backbone, tmp_path / name, 3)
    assert torch.equal(backbone.conv1.weight, before)


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(InputError, match="cnn-small"):
        build_backbone("resnet34", 3)
    with pytest.raises(InputError, match="0 input channels"):
        build_backbone("resnet18", 0)


def test_adapted_stem_keeps_the_gain():
    weight = torch.rand(4, 3, 7, 7)
    for channels in (1, 2, 6):
        torch.testing.assert_close(adapt_stem(weight, channels).sum(1), weight.sum(1))
