from dataclasses import replace

import pytest
import torch
from torch import nn

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.nn.backbones import BACKBONES, adapt_stem, build_backbone, load_weights
from evenfield.nn.norm import batch_norms
from evenfield.nn.places import places

CONVOLUTIONAL = [name for name in BACKBONES if name not in ("deit-small", "vit-tiny")]


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def shape_only(name, channels=3):
    """A backbone without numbers in it, for counts and names."""
    with torch.device("meta"):
        return build_backbone(name, channels)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_any_number_of_channels_the_promised_features_and_channels_last(name):
    backbone, d = build_backbone(name, 7)
    kernels = [p for p in backbone.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    backbone.eval()
    with torch.no_grad():  # 32 pixels is the smallest side that every backbone promises
        assert backbone(torch.randn(2, 7, 32, 32)).shape == (2, d)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_places_follow_one_another_and_maps_never_grow(name):
    backbone, _ = shape_only(name)
    sides = {}
    for place, module in places(backbone).items():
        module.register_forward_hook(lambda _, __, y, at=place: sides.update({at: y.shape[2]}))
    with torch.no_grad():
        backbone(torch.empty(2, 3, 64, 64, device="meta"))
    assert list(sides) == ["stem", "1", "2", "3", "4"][: len(sides)]
    assert list(sides) == list(places(backbone))
    assert sorted(sides.values(), reverse=True) == list(sides.values())


@pytest.mark.parametrize("name", ["dsu", "mixstyle", "efdmix", "abra"])
def test_features_of_a_transformer_change_at_the_stem(name):
    backbone, d = build_backbone("vit-tiny", 3)
    assert list(places(backbone)) == ["stem"]
    cls = METHODS[name]
    config = cls.Config(**{**cls.tested_with, "stages": ("stem",)})
    method = cls(config, backbone=backbone, d=d, k=3, c=3).train()
    image = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = replace(fake_batch(n=12), image=image)
    losses = {
        float(method.losses(replace(batch, seed=seed), progress=0.9).total.detach())
        for seed in range(8)
    }
    assert len(losses) > 1  # what is changed is drawn anew
    with pytest.raises(InputError, match="choose from: stem"):
        cls(cls.Config(**{**cls.tested_with, "stages": ("1",)}), backbone=backbone, d=d, k=3, c=3)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_statistics_can_be_taken_over_by_adapters(name):
    """Every running statistic belongs to a layer that `batch_norms` finds."""
    backbone, _ = shape_only(name)
    found = {f"{layer}.running_mean" for layer in batch_norms(backbone)}
    assert found == {key for key in backbone.state_dict() if key.endswith("running_mean")}
    assert found


def test_sizes_of_the_published_variant():
    backbone, d = shape_only("resnet50-avgpool", 5)
    assert d == 2048
    assert len(batch_norms(backbone)) == 53
    assert all(isinstance(m, nn.BatchNorm2d) for m in batch_norms(backbone).values())
    with_head = num_parameters(backbone) + num_parameters(nn.Linear(d, 8))
    assert with_head == 23_530_696  # 23.53 M
    strides = [m.stride for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(2, 2)] + [(1, 1)] * (len(strides) - 1)


def test_small_network_is_small():
    backbone, d = shape_only("cnn-small", 5)
    assert d == 128
    assert num_parameters(backbone) == 186_400


@pytest.mark.parametrize(
    ("name", "published", "d"),
    [
        ("resnet18", 11_689_512, 512),
        ("resnet50", 25_557_032, 2048),
        ("resnet18-ibn-a", 11_689_512, 512),  # scale and shift, whichever the norm
        ("resnet50-ibn-a", 25_557_032, 2048),
        ("resnet50-ibn-b", 25_557_032 + 2 * (256 + 512), 2048),  # two norms more
        ("densenet121", 7_978_856, 1024),
        ("densenet161", 28_681_000, 2208),
    ],
)
def test_published_sizes_with_a_classifier_of_a_thousand_classes(name, published, d):
    backbone, features = shape_only(name)
    assert features == d
    assert num_parameters(backbone) + 1000 * (d + 1) == published


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
    backbone, _ = shape_only(name)
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
