"""The signal spaces, networks and terms of ContriMix, against the description, letter by letter."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.absorbance import Signal, to_absorbance, to_transmittance
from evenfield.nn.boxes import cut_mixed, draw_boxes
from evenfield.nn.reconstruction import standardised
from evenfield.nn.turning import turned_alike
from evenfield.nn.unmixing import AttributeEncoder, ContentEncoder, generate, load_part
from evenfield.nn.unmixing_losses import similarity, upper_quantile, worst_error
from evenfield.seeds import generator


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed, "test"))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_absorbance_and_back():
    x = torch.cat([rand(1000), torch.tensor([1e-6, 1e-3, 1.0, 1 / 255])])
    torch.testing.assert_close(to_transmittance(to_absorbance(x)), x, rtol=1e-4, atol=1e-9)
    a = torch.linspace(-0.2, 6, 100)
    torch.testing.assert_close(to_absorbance(to_transmittance(a)), a, rtol=1e-4, atol=1e-5)
    assert to_absorbance(torch.tensor(0.0)) == 6
    assert to_absorbance(torch.tensor(1 / 255)).item() == pytest.approx(2.41, abs=0.01)


def test_a_pixel_that_is_slightly_too_bright_has_a_gradient():
    a = torch.tensor([-0.1, -0.3], requires_grad=True)
    Signal(True).leave(a, clip=False).sum().backward()
    assert a.grad[0] != 0
    assert a.grad[1] == 0


def test_absorbance_stays_float32_under_autocast():
    x = rand(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for signal in (Signal(True), Signal(False)):
            assert signal.leave(signal.enter(x.bfloat16())).dtype == torch.float32


def test_fluorescence_is_left_alone_and_clipped():
    signal = Signal(False)
    x = torch.tensor([-0.5, 0.25, 1.5])
    assert torch.equal(signal.enter(x), x)
    assert signal.leave(x).tolist() == [0, 0.25, 1]
    assert torch.equal(signal.leave(x, clip=False), x)


def test_standardised_pixels_are_refused_and_dark_brightfield_is_warned_of():
    with pytest.raises(InputError, match=r"go from -3 to 0\.5.*\n.*--view.normalise unit"):
        Signal(False).check(torch.tensor([-3.0, 0.5]).reshape(1, 1, 1, 2))
    Signal(False).check(torch.full((1, 1, 2, 2), 0.05))
    with pytest.warns(EvenfieldWarning, match="no-absorbance"):
        Signal(True).check(torch.full((1, 1, 2, 2), 0.05))


@pytest.mark.parametrize(
    ("s", "content", "attribute"),
    [(4, 1108, 2541028), (5, 1509, 2542573), (10, 4594, 2550298), (16, 10672, 2559568)],
)
def test_parameters_of_the_released_networks(s, content, attribute):
    assert count(ContentEncoder(3, s)) == content
    assert count(AttributeEncoder(3, s)) == attribute


def test_shapes_for_any_number_of_channels():
    for c, s, width in ((1, 2, 0.1), (5, 3, 0.25)):
        image = rand(2, c, 64, 70)
        assert ContentEncoder(c, s)(image).shape == (2, s, 64, 70)
        assert AttributeEncoder(c, s, width=width)(image).shape == (2, c, s)


def test_images_below_64_pixels_are_refused():
    encoder = AttributeEncoder(3, 4, width=0.1)
    assert torch.isfinite(encoder(rand(1, 3, 64, 64))).all()
    for side in (48, 63):
        with pytest.raises(InputError, match="64 pixels or more"):
            encoder(rand(1, 3, side, 64))


def test_weights_start_as_torch_draws_them():
    """The authors' N(0, 0.02) never happened (bug 3)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        std = torch.cat([ContentEncoder(3, 4).conv1.weight.flatten() for _ in range(20)]).std()
    assert std.item() == pytest.approx(0.109, abs=0.005)


def literal_content(m, x):
    """Section 3 of the description, one operation a line."""

    def conv(layer, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)

    def norm(x):
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()

    def act(x):
        return torch.where(x > 0, x, 0.01 * x)

    x = act(conv(m.conv1, x))
    x = act(norm(conv(m.conv2, x)))
    for block in m.blocks:
        x = x + norm(conv(block.conv2, act(norm(conv(block.conv1, x)))))
    return act(x)


def literal_attribute(m, x, act):
    def conv(layer, x, stride=1):
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, layer.weight, layer.bias, stride)

    x = conv(m.conv1, x, 2)
    for block in m.blocks:
        y = conv(block.conv1, x)
        y = torch.where(y > 0, y, 0.2 * y) if act else y
        y = F.avg_pool2d(conv(block.conv2, y), 2)
        x = y + F.conv2d(F.avg_pool2d(x, 2), block.skip.weight, block.skip.bias)
    x = F.conv2d(x.mean((2, 3), keepdim=True), m.last.weight, m.last.bias)[:, :, 0, 0]
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    x = (x - mean) / (var + 1e-5).sqrt() * m.norm.weight + m.norm.bias
    return torch.where(x > 0, x, 0.01 * x).reshape(len(x), m.channels, m.s)


@pytest.mark.parametrize("side", [64, 71])
@pytest.mark.parametrize("act", [True, False])
def test_encoders_equal_the_description(side, act):
    content, attribute = ContentEncoder(2, 3), AttributeEncoder(2, 3, width=0.1, act=act)
    with torch.no_grad():
        for p in attribute.norm.parameters():
            p.add_(rand(*p.shape))
    x = rand(2, 2, side, side)
    ours = content(x), attribute(x)
    content, attribute, x = content.double(), attribute.double(), x.double()
    theirs = literal_content(content, x), literal_attribute(attribute, x, act)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_the_pooled_convolution_equals_the_plain_one():
    encoder = AttributeEncoder(2, 2, width=0.1)
    x = rand(2, 2, 64, 64)
    literal_attribute(encoder, x, True).square().sum().backward()
    plain = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    encoder(x).square().sum().backward()
    for p, expected in zip(encoder.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-2, atol=1e-4)


def test_images_do_not_see_each_other():
    x = rand(3, 2, 64, 64)
    for encoder in (ContentEncoder(2, 3), AttributeEncoder(2, 3, width=0.1)):
        one_by_one = torch.cat([encoder(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(encoder(x), one_by_one, rtol=1e-4, atol=1e-4)


def test_layer_norm_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert AttributeEncoder(2, 2, width=0.1)(rand(1, 2, 64, 64)).dtype == torch.float32
        assert generate(rand(1, 2, 3).bfloat16(), rand(1, 3, 4, 4)).dtype == torch.float32


def test_generator_equals_the_loop_and_is_linear():
    z, c = rand(4, 2, 3, 5), rand(2, 5, 6, 7, seed=1)
    made = generate(z, c)
    for m in range(4):
        for n in range(2):
            expected = (z[m, n] @ c[n].reshape(5, -1)).reshape(3, 6, 7)
            torch.testing.assert_close(made[m, n], expected)
    torch.testing.assert_close(generate(2 * z, c) + generate(z, c), generate(z, 3 * c))


def test_worst_error_by_sorting():
    error = rand(3, 2, 5, 7) - 0.5
    per_image = error.abs().reshape(3, -1).double()
    q90 = torch.quantile(per_image, 0.9, dim=1)
    expected = max(0.2 * q90[i] + 0.8 * per_image.mean() for i in range(3))
    torch.testing.assert_close(worst_error(error).double(), expected)
    assert worst_error(error) >= 0.8 * error.abs().mean()
    assert worst_error(torch.zeros(2, 1, 4, 4)) == 0


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_upper_quantile_is_torchs(d, share, seed):
    value = rand(3, d, seed=seed)
    torch.testing.assert_close(upper_quantile(value, share), torch.quantile(value, share, dim=1))


def test_upper_quantile_of_more_values_than_torch_takes():
    value = torch.arange(2.0**24 + 10)[None]  # torch.quantile refuses more than 2^24
    assert upper_quantile(value, 0.5).item() == pytest.approx((2**24 + 9) / 2, rel=1e-6)


def test_similarity_between_its_limits():
    same = rand(1, 2, 3, 5).expand(4, 2, 3, 5)
    assert similarity(same).item() == pytest.approx(3 / 4, abs=1e-4)
    far = 100 * torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 3, 5)
    assert similarity(far).item() == 0
    assert similarity(rand(1, 2, 3, 5)).item() == 0
    near = (0.02 * rand(3, 1, 2, 2)).requires_grad_()
    pairs = [
        (-torch.dist(near[i, 0] + 1e-6, near[j, 0]) / 0.1).exp()
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    torch.testing.assert_close(similarity(near), sum(pairs) / 9)
    similarity(near).backward()
    assert torch.isfinite(near.grad).all()


def test_standardised():
    image = rand(2, 3, 8, 8)
    image[0, 0] = 0.7
    seen = standardised(image)
    assert (seen[0, 0] == 0).all()
    torch.testing.assert_close(seen[1].mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1].std((1, 2), correction=0), torch.ones(3))


def test_boxes_keep_what_they_say():
    kept = torch.tensor([0.0, 0.25, 1.0]).repeat(200)
    box = draw_boxes(kept, 32, 48, generator(0, "test"))
    area = box.float().mean((1, 2, 3))
    assert (area[2::3] == 0).all()
    assert (area <= 1 - kept + 0.05).all()
    assert area[1::3].max() > 0.6  # a box that the border does not cut
    for mask in box[:30, 0]:  # a filled rectangle
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])


def test_cut_mixed_pastes_from_images_without_boxes():
    """Bug 10: boxes came from images that had got a box already, labels likewise."""
    n = 12
    image = torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 1, 16, 16)
    label = torch.arange(n) % 4
    label[3] = -1
    mixed, other, kept = cut_mixed(image, label, generator(0, "test"))
    for i in range(n):
        values = mixed[i].unique()
        own = (mixed[i] == i).float().mean()
        assert len(values) <= 2
        foreign = [int(v) for v in values if int(v) != i]
        if foreign:  # an image may be its own partner
            assert own.item() == pytest.approx(kept[i].item(), abs=1e-6)
        assert all(label[v] == other[i] for v in foreign)
        assert 3 not in foreign
    assert kept[3] == 1
    assert (kept < 1).sum() >= n // 2


def test_turned_alike_is_one_symmetry_for_all():
    x = rand(1, 1, 6, 6).expand(4, 2, 6, 6)
    seen = set()
    for seed in range(40):
        turned = turned_alike(x, 0.0, generator(seed, "t"))
        assert torch.equal(turned, turned[:1, :1].expand_as(turned))
        seen.add(tuple(turned[0, 0].flatten().tolist()))
    assert len(seen) == 8
    oblong = rand(2, 1, 4, 6)
    assert {turned_alike(oblong, 0.0, generator(s, "t")).shape for s in range(20)} == {oblong.shape}
    noisy = turned_alike(x, 0.1, generator(0, "t"))
    assert 0.02 < (noisy - turned_alike(x, 0.0, generator(0, "t"))).std() < 0.15
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_load_part_names_what_is_wrong(tmp_path):
    encoder = ContentEncoder(2, 3)
    state = {f"predictor.content.{k}": v + 1 for k, v in encoder.state_dict().items()}
    torch.save({"method": state}, tmp_path / "best.pt")
    load_part(encoder, tmp_path, "predictor.content.")
    assert torch.equal(encoder.conv1.weight, state["predictor.content.conv1.weight"])
    with pytest.raises(InputError, match=r"no weights for predictor\.attribute"):
        load_part(AttributeEncoder(2, 3, width=0.1), tmp_path, "predictor.attribute.")
    with pytest.raises(InputError, match="of this size"):
        load_part(ContentEncoder(2, 4), tmp_path / "best.pt", "predictor.content.")
    with pytest.raises(InputError, match="nowhere"):
        load_part(encoder, tmp_path / "nowhere", "predictor.content.")
