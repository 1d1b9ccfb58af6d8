import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evenfield.errors import InputError
from evenfield.nn.backbones import build_backbone, load_weights, tile_stem
from evenfield.nn.vit import Attention, ViT, dropping, positions


def small(channels=3, side=16, depth=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViT(channels, patch=4, side=side, width=16, depth=depth, heads=4)


def deit_state(depth=12, width=384, patch=16, side=224, channels=3):
    """Keys and shapes of a published file, written out from the names of DeiT and timm."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (side // patch) ** 2, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }
    for block in range(depth):
        for key, shape in {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            shapes[f"blocks.{block}.{key}.weight"] = shape
            shapes[f"blocks.{block}.{key}.bias"] = shape[:1]
    g = torch.Generator().manual_seed(0)
    return {key: 0.1 * torch.randn(*shape, generator=g) for key, shape in shapes.items()}


def test_deit_small_has_the_published_size_names_and_shapes():
    with torch.device("meta"):
        backbone, d = build_backbone("deit-small", 3)
    assert d == 384
    assert sum(p.numel() for p in backbone.parameters()) == 21_665_664
    ours = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    theirs = {key: tuple(v.shape) for key, v in deit_state().items() if "head" not in key}
    assert ours == theirs


@pytest.mark.parametrize(("side", "tokens"), [(224, 197), (96, 37), (112, 50)])
def test_tokens_of_each_crop_size(side, tokens):
    backbone, image = ViT(5, depth=1), torch.randn(2, 5, side, side)
    assert backbone.tokens(image).shape == (2, tokens, 384)
    assert backbone(image).shape == (2, 384)


def test_attention_equals_torchs_own():
    ours = Attention(16, 4).double()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = (
        ours.qkv.weight.data,
        torch.randn(48).double(),
    )
    ours.qkv.bias.data = theirs.in_proj_bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = (
        ours.proj.weight.data,
        ours.proj.bias.data,
    )
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_forward_equals_the_formula_written_out():
    """Patches by hand, blocks by torch's own functions, in float64."""
    vit = small(channels=2, side=8, depth=2).double()
    image = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    weight = vit.patch_embed["proj"].weight.flatten(1)
    patches = torch.stack(
        [
            image[:, :, r : r + 4, c : c + 4].flatten(1) @ weight.T + vit.patch_embed["proj"].bias
            for r in (0, 4)
            for c in (0, 4)
        ],
        1,
    )
    x = torch.cat([vit.cls_token.expand(3, 1, -1), patches], 1) + vit.pos_embed
    for block in vit.blocks:
        x = x + block.attn(F.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias, 1e-6))
        h = F.layer_norm(x, (16,), block.norm2.weight, block.norm2.bias, 1e-6)
        x = x + block.mlp["fc2"](F.gelu(block.mlp["fc1"](h)))
    x = F.layer_norm(x, (16,), vit.norm.weight, vit.norm.bias, 1e-6)
    torch.testing.assert_close(vit.tokens(image), x)
    torch.testing.assert_close(vit(image), x[:, 0])


def test_encode_bypasses_patches_class_token_and_positions():
    vit, image = small(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(vit.encode(vit.embed(image)), vit.tokens(image))
    assert vit.encode(torch.randn(2, 5, 16)).shape == (2, 5, 16)


def test_positions_of_the_own_size_are_untouched_and_others_interpolated():
    vit = small(side=16)
    assert positions(vit.pos_embed, 4, 4) is vit.pos_embed
    other = positions(vit.pos_embed, 2, 3)
    assert other.shape == (1, 7, 16)
    assert torch.equal(other[:, 0], vit.pos_embed[:, 0])
    constant = torch.ones(1, 17, 16)
    torch.testing.assert_close(positions(constant, 7, 5), torch.ones(1, 36, 16))
    assert vit(torch.randn(1, 3, 8, 12)).shape == (1, 16)
    vit(torch.randn(1, 3, 8, 8))[:, 0].sum().backward()
    assert vit.pos_embed.grad.abs().sum() > 0


def test_sides_that_are_no_multiple_of_the_patch_are_refused():
    with pytest.raises(InputError, match=r"18 x 16 pixels .* patches of 4"):
        small()(torch.randn(1, 3, 18, 16))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dropping_nothing_outside_its_block_nor_in_eval_mode():
    vit, image = small().train(), torch.randn(2, 3, 16, 16)
    plain = vit(image)
    with dropping(vit, 0.5, generator()):
        assert not torch.equal(vit(image), plain)
    assert torch.equal(vit(image), plain)
    vit.eval()
    with dropping(vit, 0.5, generator()):
        assert torch.equal(vit(image), plain)
    with dropping(nn.Sequential(nn.Flatten()), 0.5, generator()):
        pass


def test_dropping_follows_its_generator_and_rises_over_the_depth():
    vit, image = small(depth=3).train(), torch.randn(2, 3, 16, 16)

    def with_seed(seed):
        with dropping(vit, 0.5, generator(seed)):
            return vit(image)

    assert torch.equal(with_seed(1), with_seed(1))
    assert not torch.equal(with_seed(1), with_seed(2))
    vit._drop = (0.5, generator())
    keep = vit._keep(20_000, image.device)
    vit._drop = None
    shares = (keep > 0).float().mean((1, 2, 3, 4))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.75, 0.5]), atol=0.01, rtol=0)
    torch.testing.assert_close(keep.mean((1, 2, 3, 4)), torch.ones(3), atol=0.02, rtol=0)
    assert not vit._drop


def published(tmp_path, wrap=True):
    """A file as it is published, of a small network."""
    state = deit_state(depth=3, width=16, patch=4, side=16)
    torch.save({"model": state} if wrap else state, tmp_path / "deit.pth")
    return state


@pytest.mark.parametrize("wrap", [True, False])
def test_a_published_file_is_read_with_and_without_its_wrapping(tmp_path, wrap):
    state, vit = published(tmp_path, wrap), small()
    load_weights(vit, tmp_path / "deit.pth", 3)
    assert all(torch.equal(value, state[key]) for key, value in vit.state_dict().items())


def test_six_channels_that_hold_rgb_twice_answer_twice_when_repeated(tmp_path):
    published(tmp_path)
    three, six = small(3), small(6)
    load_weights(three, tmp_path / "deit.pth", 3)
    load_weights(six, tmp_path / "deit.pth", 6, stem="repeat")
    rgb = torch.randn(2, 3, 16, 16)
    proj = [vit.patch_embed["proj"] for vit in (three, six)]
    once = proj[0](rgb) - proj[0].bias[:, None, None]
    twice = proj[1](rgb.repeat(1, 2, 1, 1)) - proj[1].bias[:, None, None]
    torch.testing.assert_close(twice, 2 * once)
    assert tile_stem(proj[0].weight, 5).shape[1] == 5
    assert torch.equal(proj[0].bias, proj[1].bias)


def test_average_keeps_the_answer_to_grey_images(tmp_path):
    published(tmp_path)
    three, five = small(3), small(5)
    load_weights(three, tmp_path / "deit.pth", 3)
    load_weights(five, tmp_path / "deit.pth", 5)
    grey = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        ours, theirs = five(grey.expand(-1, 5, -1, -1)), three(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_positions_of_another_image_size_are_interpolated_on_loading(tmp_path):
    state, vit = published(tmp_path), small(side=32)
    load_weights(vit, tmp_path / "deit.pth", 3)
    torch.testing.assert_close(vit.pos_embed.data, positions(state["pos_embed"], 8, 8))


def test_a_distilled_or_other_file_is_refused(tmp_path):
    state, vit = deit_state(depth=3, width=16, patch=4, side=16), small()
    before = copy.deepcopy(vit.state_dict())
    distilled = state | {
        "dist_token": torch.zeros(1, 1, 16),
        "pos_embed": torch.zeros(1, 18, 16),
    }
    for content in (distilled, deit_state(depth=2, width=16, patch=4, side=16)):
        torch.save({"model": content}, tmp_path / "w.pth")
        with pytest.raises(InputError, match="does not fit"):
            load_weights(vit, tmp_path / "w.pth", 3)
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())


def test_channels_last_images_give_the_same_features():
    vit, image = small(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(vit(image.contiguous(memory_format=torch.channels_last)), vit(image))
