"""Colour and stain jitter: oracles written out in float64, laws, draws, and what `prepare` does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.config import View
from evenfield.data.colour import (
    DARKEST,
    STAINS,
    deviations,
    jitter_contrast,
    jitter_saturation,
    jitter_stains,
    recolour,
)
from evenfield.data.transforms import dihedral_codes, prepare, turn
from evenfield.errors import InputError


def pixels(n=4, c=3, h=5, w=6, *, low=0.0, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    image = low + (1 - low) * torch.rand(n, c, h, w, generator=g, dtype=dtype)
    return image.contiguous(memory_format=torch.channels_last)


def factors(n, c, spread, seed=1):
    g = torch.Generator().manual_seed(seed)
    return 1 + spread * (2 * torch.rand(n, c, generator=g, dtype=torch.float64) - 1)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 4), c=st.integers(1, 6), seed=st.integers(0, 99))
def test_brightness_then_contrast_about_the_mean(n, c, seed):
    image, brightness, contrast = pixels(n, c, seed=seed), factors(n, c, 0.9), factors(n, c, 0.9, 2)
    expected = image.numpy().copy()
    for i in range(n):
        for j in range(c):
            bright = brightness[i, j].item() * expected[i, j]
            k = contrast[i, j].item()
            expected[i, j] = k * bright + (1 - k) * bright.mean()
    changed = jitter_contrast(image, brightness, contrast)
    np.testing.assert_allclose(changed, expected.clip(0, 1), atol=1e-12)


def test_saturation_blends_with_the_grey_of_television():
    rgb, factor = pixels(), torch.tensor([0.0, 0.5, 1.0, 1.6], dtype=torch.float64)
    x = rgb.numpy()
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    f = factor.numpy()[:, None, None, None]
    expected = (f * x + (1 - f) * grey).clip(0, 1)
    np.testing.assert_allclose(jitter_saturation(rgb, factor), expected, atol=1e-12)


def test_stains_as_scikit_image_computes_them():
    """rgb2hed, a gain and an offset, hed2rgb of scikit-image 0.26 (its unit is ln(1e6) of ours)."""
    rgb = [[0.5, 0.25, 0.6], [0.8, 0.45, 0.7], [0.35, 0.2, 0.4], [1.0, 1.0, 1.0]]
    expected = [
        [0.45009568387368737, 0.24054961108976988, 0.547933898281329],
        [0.7489270394040264, 0.43826838319218725, 0.6367790046313621],
        [0.295505356133139, 0.16425103148718984, 0.32581744216667463],
        [0.9640616829075641, 0.9412937690184057, 0.9757976889184073],
    ]
    image = torch.tensor(rgb, dtype=torch.float64).T.reshape(1, 3, 2, 2)
    changed = jitter_stains(
        image, torch.tensor([[1.1, 0.8, 1.3]]), torch.tensor([[0.05, 0.02, 0.01]])
    )
    torch.testing.assert_close(
        changed,
        torch.tensor(expected, dtype=torch.float64).T.reshape(1, 3, 2, 2),
        rtol=1e-6,
        atol=0,
    )


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 4), seed=st.integers(0, 99))
def test_stains_letter_by_letter(n, seed):
    rgb = pixels(n, seed=seed, low=0.02)
    gain, offset = factors(n, 3, 0.3, seed), factors(n, 3, 0.2, seed + 1) - 1
    stains = np.array(STAINS)
    amount = -np.log(rgb.numpy().transpose(0, 2, 3, 1)) @ np.linalg.inv(stains)
    amount = gain.numpy()[:, None, None] * amount + offset.numpy()[:, None, None]
    expected = np.exp(-amount @ stains).clip(0, 1).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(jitter_stains(rgb, gain, offset), expected, atol=1e-12)


def test_stain_changes_go_back_and_add_up():
    """Two changes after one another are one; a change and its inverse are none."""
    rgb = pixels(low=0.6)
    gain, none = factors(4, 3, 0.2), torch.zeros(4, 3, dtype=torch.float64)
    offset = torch.full((4, 3), 0.05, dtype=torch.float64)
    there = jitter_stains(rgb, gain, offset)
    inside = (there < 1).all(1)  # a clipped pixel cannot go back
    assert inside.double().mean() > 0.5
    back = jitter_stains(there, 1 / gain, -offset / gain)
    torch.testing.assert_close(back.movedim(1, 3)[inside], rgb.movedim(1, 3)[inside])
    once, twice = jitter_stains(rgb, gain.square(), none), jitter_stains(rgb, gain, none)
    whole = (twice < 1).all(1) & (once < 1).all(1)
    twice = jitter_stains(twice, gain, none)
    torch.testing.assert_close(once.movedim(1, 3)[whole], twice.movedim(1, 3)[whole])


def test_no_change_is_the_identity_to_the_last_bit():
    rgb = pixels(dtype=torch.float32)
    rgb[0, :, 0, 0] = torch.tensor([0.0, 1.0, 0.5])
    kept, one = rgb.clone(), torch.ones(4, 3)
    assert torch.equal(jitter_stains(rgb, one, torch.zeros(4, 3)), kept)
    assert torch.equal(jitter_saturation(rgb, torch.ones(4)), kept)
    assert torch.equal(recolour(rgb.clone(), View(), seed=0), kept)
    torch.testing.assert_close(jitter_contrast(rgb, one, one), kept)


def test_scaled_stains_leave_white_white_and_black_black():
    rgb = torch.zeros(2, 3, 1, 2, dtype=torch.float64)
    rgb[..., 1] = 1
    changed = jitter_stains(rgb, factors(2, 3, 0.5), torch.zeros(2, 3))
    torch.testing.assert_close(changed, rgb)
    dark = torch.full((1, 3, 1, 1), DARKEST / 10, dtype=torch.float64)
    gain = torch.tensor([[1.2, 1.2, 1.2]], dtype=torch.float64)
    ratio = jitter_stains(dark, gain, torch.zeros(1, 3)) / dark
    torch.testing.assert_close(ratio, torch.full_like(ratio, DARKEST**0.2))


def test_draws_are_even_and_of_each_image():
    drawn = deviations(0.3, (2, 5000, 3), seed=0, purpose="hed")
    assert drawn.abs().max() <= 0.3
    assert drawn.mean().abs() < 0.005
    assert drawn.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.02)
    assert not torch.equal(drawn, deviations(0.3, (2, 5000, 3), seed=1, purpose="hed"))
    assert not torch.equal(drawn, deviations(0.3, (2, 5000, 3), seed=0, purpose="colour"))


def test_strength_bounds_what_is_drawn():
    image = torch.full((2000, 2, 1, 1), 0.5)
    gain = recolour(image.clone(), View(colour=0.4), seed=0) / 0.5  # flat: contrast does nothing
    assert 0.6 <= gain.min() < 0.61
    assert 1.39 < gain.max() <= 1.4
    assert abs(torch.corrcoef(gain[..., 0, 0].T)[0, 1]) < 0.1  # channels have their own


PLAIN = {"flips": False, "rotations": False}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("hed", "colour"), [(0.1, 0.0), (0.0, 0.3), (0.1, 0.3)])
def test_prepare_recolours_before_it_normalises(dtype, hed, colour):
    largest = np.iinfo(dtype).max
    raw = np.random.default_rng(0).integers(0, largest + 1, (4, 3, 8, 8)).astype(dtype)
    kept = raw.copy()
    scale, shift = torch.rand(4, 3) / largest, torch.randn(4, 3)
    view = View(hed=hed, colour=colour)
    image = prepare(torch.from_numpy(raw), scale, shift, view, seed=5, train=True)
    unit = torch.from_numpy(raw.astype(np.float32) / largest)
    unit = recolour(unit, view, seed=5).contiguous()
    turn(unit, dihedral_codes(4, view, 5))
    expected = unit * (largest * scale)[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(image.contiguous(), expected, rtol=1e-4, atol=1e-5)
    assert image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(raw, kept)


def test_same_seed_same_bits_and_nothing_in_evaluation():
    raw = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    scale, shift = torch.full((9, 3), 0.01), torch.zeros(9, 3)
    view = View(hed=0.1, colour=0.3)
    one, two, other = (
        prepare(raw, scale, shift, view, seed=seed, train=True) for seed in (4, 4, 5)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    plain = prepare(raw, scale, shift, View(), seed=4, train=False)
    assert torch.equal(prepare(raw, scale, shift, view, seed=4, train=False), plain)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_colour_takes_any_number_of_channels_and_stains_only_three(channels):
    raw = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    scale, shift = torch.full((2, channels), 1 / 255), torch.zeros(2, channels)
    image = prepare(raw, scale, shift, View(colour=0.5, **PLAIN), seed=0, train=True)
    assert 0 <= image.min() < image.max() <= 1
    assert (image - raw / 255).abs().max() > 0.05
    with pytest.raises(InputError, match=f"images of {channels} channels"):
        prepare(raw, scale, shift, View(hed=0.1), seed=0, train=True)


@pytest.mark.parametrize("name", ["colour", "hed"])
@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_strengths_that_make_no_sense_are_refused(name, strength):
    raw = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match=f"the view's {name} is {strength}"):
        prepare(
            raw, torch.ones(1, 3), torch.zeros(1, 3), View(**{name: strength}), seed=0, train=True
        )
