import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.config import View
from evenfield.data.transforms import dihedral_codes, prepare, read, turn
from evenfield.errors import InputError

PLAIN = View(flips=False, rotations=False)


@pytest.fixture
def pixels(tmp_path):
    made = np.lib.format.open_memmap(
        tmp_path / "pixels.npy", mode="w+", dtype=np.uint16, shape=(6, 2, 12, 10)
    )
    made[:] = np.random.default_rng(0).integers(0, 65536, made.shape)
    made.flush()
    return np.load(tmp_path / "pixels.npy", mmap_mode="r")


def ones(n, c, scale=1.0, shift=0.0):
    return torch.full((n, c), scale), torch.full((n, c), shift)


def test_whole_images_are_read_as_they_are(pixels):
    rows = np.array([4, 0, 4])
    batch = read(pixels, rows, PLAIN, seed=0, train=True)
    assert batch.dtype == np.uint16
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, pixels[rows])


def test_evaluation_crops_are_central(pixels):
    batch = read(pixels, np.arange(6), View(crop=6), seed=0, train=False)
    np.testing.assert_array_equal(batch, pixels[:, :, 3:9, 2:8])


def test_training_crops_are_windows_drawn_evenly(pixels):
    rows = np.full(2000, 3)
    batch = read(pixels, rows, View(crop=9), seed=5, train=True)
    again = read(pixels, rows, View(crop=9), seed=5, train=True)
    other = read(pixels, rows, View(crop=9), seed=6, train=True)
    np.testing.assert_array_equal(batch, again)
    assert (batch != other).any()
    windows = {
        (top, left): pixels[3, :, top : top + 9, left : left + 9].tobytes()
        for top in range(4)
        for left in range(2)
    }
    seen = [item.tobytes() for item in batch]
    counts = np.array([seen.count(window) for window in windows.values()])
    assert counts.sum() == 2000
    assert counts.min() > 190  # 250 expected of each of 8, standard deviation 15


def test_output_can_be_given(pixels):
    out = np.zeros((8, 2, 6, 6), np.uint16)
    batch = read(pixels, np.array([1, 2]), View(crop=6), seed=0, train=False, out=out)
    assert batch.base is out
    assert out[2:].max() == 0
    with pytest.raises(ValueError, match="out holds"):
        read(pixels, np.array([1]), View(crop=5), seed=0, train=False, out=out)


@pytest.mark.parametrize("crop", [0, -1, 11])
def test_crops_that_do_not_fit_are_refused(pixels, crop):
    with pytest.raises(InputError, match="does not fit images of 12 x 10"):
        read(pixels, np.arange(2), View(crop=crop), seed=0, train=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_normalised_is_scale_times_pixel_plus_shift(dtype):
    raw = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (4, 3, 8, 8)).astype(dtype)
    scale, shift = torch.rand(4, 3), torch.randn(4, 3)
    kept = raw.copy()
    image = prepare(torch.from_numpy(raw), scale, shift, View(), seed=0, train=False)
    expected = raw * scale.numpy()[..., None, None] + shift.numpy()[..., None, None]
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-4)
    assert image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(raw, kept)


def test_floats_are_left_as_they_are():
    raw = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    kept = raw.clone()
    prepare(raw, *ones(2, 3, 2.0), View(), seed=0, train=True)
    assert torch.equal(raw, kept)


def symmetries(image):
    """All eight, written out with numpy."""
    turned = [np.rot90(image, k, (1, 2)) for k in range(4)]
    return turned + [np.rot90(image[:, :, ::-1], k, (1, 2)) for k in range(4)]


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), side=st.integers(2, 5), seed=st.integers(0, 99))
def test_turns_are_the_symmetries_of_the_square(n, side, seed):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 2, side, side, generator=g)
    code = torch.randint(8, (n,), generator=g)
    turned = image.clone()
    turn(turned, code)
    for before, after, element in zip(image.numpy(), turned.numpy(), code.tolist(), strict=True):
        np.testing.assert_array_equal(after, symmetries(before)[element])


@pytest.mark.parametrize(
    ("flips", "rotations", "number"),
    [(False, False, 1), (True, False, 4), (False, True, 4), (True, True, 8)],
)
def test_symmetries_are_drawn_evenly_from_those_allowed(flips, rotations, number):
    view = View(flips=flips, rotations=rotations)
    counts = dihedral_codes(8000, view, seed=1).bincount(minlength=8)
    assert (counts > 0).sum() == number
    assert counts[counts > 0].min() > 0.85 * 8000 / number
    if flips and not rotations:  # closed under both mirrors: never transposed
        mirrors = {symmetries(np.arange(6).reshape(1, 2, 3))[c].shape for c in (0, 2, 4, 6)}
        assert mirrors == {(1, 2, 3)}


def test_flips_work_on_oblong_images_and_rotations_say_why_not():
    raw = torch.zeros(16, 1, 4, 6, dtype=torch.uint8)
    prepare(raw, *ones(16, 1), View(rotations=False), seed=0, train=True)
    with pytest.raises(InputError, match="cannot be turned"):
        prepare(raw, *ones(16, 1), View(), seed=0, train=True)


def test_jitter_is_a_gain_and_an_offset_of_each_image_and_channel():
    raw = torch.randint(0, 256, (400, 2, 4, 4), dtype=torch.uint8)
    view = View(flips=False, rotations=False, jitter=0.2)
    scale, shift = ones(400, 2, 0.01, -1.0)
    plain = prepare(raw, scale, shift, view, seed=3, train=False)
    image = prepare(raw, scale, shift, view, seed=3, train=True)
    spread = plain.std((2, 3))
    gain = image.std((2, 3)) / spread
    offset = (image - gain[..., None, None] * plain).mean((2, 3))
    torch.testing.assert_close(
        image, gain[..., None, None] * plain + offset[..., None, None], rtol=1e-3, atol=1e-3
    )
    assert gain.log().std().item() == pytest.approx(0.2, rel=0.1)
    assert gain.log().mean().item() == pytest.approx(0.0, abs=0.03)
    assert offset.std().item() == pytest.approx(0.2, rel=0.1)
    assert abs(torch.corrcoef(gain.T)[0, 1].item()) < 0.15


def test_same_seed_same_bits():
    raw = torch.randint(0, 256, (9, 2, 8, 8), dtype=torch.uint8)
    view = View(jitter=0.1)
    one, two, other = (
        prepare(raw, *ones(9, 2, 0.01), view, seed=seed, train=True) for seed in (4, 4, 5)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_evaluation_is_never_augmented():
    raw = torch.randint(0, 256, (9, 2, 8, 8), dtype=torch.uint8)
    image = prepare(raw, *ones(9, 2), View(jitter=0.5), seed=0, train=False)
    assert torch.equal(image, raw.float())
