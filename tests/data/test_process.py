import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evenfield.data.process import Process, apply, percentiles, resample, resize_area
from evenfield.errors import InputError


def field(shape=(2, 12, 10), dtype=np.uint16, high=60000):
    return np.random.default_rng(1).integers(0, high, shape).astype(dtype)


def area_by_hand(plane, height, width):
    """Overlap of each new pixel with each old one, pixel by pixel."""

    def weights(size, num):
        w = np.zeros((num, size))
        for i in range(num):
            for j in range(size):
                start, stop = i * size / num, (i + 1) * size / num
                w[i, j] = max(0.0, min(j + 1, stop) - max(j, start)) * num / size
        return w

    return weights(plane.shape[0], height) @ plane @ weights(plane.shape[1], width).T


@settings(deadline=None, max_examples=40)
@given(h=st.integers(1, 9), w=st.integers(1, 9), height=st.integers(1, 9), width=st.integers(1, 9))
def test_area_resize_equals_overlaps(h, w, height, width):
    image = field((2, h, w))
    got = resize_area(image, height, width)
    expected = [area_by_hand(plane.astype(float), height, width) for plane in image]
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(got.mean((1, 2)), image.mean((1, 2)), rtol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    st.lists(st.floats(0, 100), min_size=1, max_size=3),
)
def test_percentiles_equal_numpy(plane, points):
    np.testing.assert_allclose(percentiles(plane, tuple(points)), np.percentile(plane, points))


def test_nothing_asked_changes_nothing():
    for dtype, high in ((np.uint8, 256), (np.uint16, 60000)):
        out = apply(field(dtype=dtype, high=high), Process())
        assert out.dtype == dtype
        np.testing.assert_array_equal(out[0], field(dtype=dtype, high=high))


@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
def test_deepprofiler_eight_bit_letter_by_letter(dtype):
    image = field((2, 60, 50)).astype(dtype)
    got = apply(image, Process(eight_bit="deepprofiler"))[0]
    for plane, out in zip(image.astype(float), got, strict=True):
        vmin, vmax = np.percentile(plane, [0.05, 99.95])
        expected = (np.clip(plane, vmin, vmax) - vmin) / (vmax - vmin) * 255
        np.testing.assert_allclose(out, expected, atol=0.5 + 1e-6)
        assert (out.min(), out.max()) == (0, 255)


def test_cs_arm_bn_eight_bit_starts_at_zero():
    image = field((1, 60, 50)) // 2 + 20000
    got = apply(image, Process(eight_bit="cs-arm-bn"))[0, 0]
    top = np.percentile(image, 99.99)
    np.testing.assert_allclose(got, np.minimum(image[0] / top, 1) * 255, atol=0.5 + 1e-6)
    assert got.min() > 80


def test_no_stretch_above_the_plates_cap():
    image = field((1, 60, 50))
    got = apply(image, Process(eight_bit="deepprofiler"), cap=np.array([30000.0]))[0, 0]
    assert (got[image[0] >= 30000] == 255).all()
    low = apply(image, Process(eight_bit="deepprofiler"), cap=np.array([0.0]))
    assert (low[0, 0] == np.where(image[0] > np.percentile(image, 0.05), 255, 0)).all()


def test_grid_cuts_without_overlap_and_centres_what_is_left():
    image = field((1, 11, 13))
    out = apply(image, Process(grid=(2, 3)))
    assert out.shape == (6, 1, 5, 4)
    np.testing.assert_array_equal(out[0], image[:, 0:5, 0:4])
    np.testing.assert_array_equal(out[5], image[:, 5:10, 8:12])
    out = apply(image, Process(grid=(2, 3), crop=3))
    np.testing.assert_array_equal(out[1], image[:, 1:4, 4:7])
    with pytest.raises(InputError, match="do not fit"):
        apply(image, Process(grid=(2, 3), crop=5))
    with pytest.raises(InputError, match="must be positive"):
        Process(grid=(0, 1))


def test_illumination_divides_and_rounds():
    light = np.full((2, 12, 10), 2.0, np.float32)
    out = apply(field(), Process(), illumination=light)
    np.testing.assert_array_equal(out[0], np.rint(field() / 2).astype(np.uint16))


@pytest.mark.parametrize("bad", [-1.0, 0.5, 65536.0])
def test_what_does_not_fit_16_bits_is_refused(bad):
    image = field().astype(np.float64)
    np.testing.assert_array_equal(apply(image, Process())[0], field())
    image[0, 0, 0] = bad
    with pytest.raises(InputError, match="no 16-bit numbers"):
        apply(image, Process())


@settings(deadline=None, max_examples=30)
@given(h=st.integers(2, 9), w=st.integers(2, 9), scale=st.floats(0.3, 3))
def test_resampling_keeps_a_ramp_and_its_mean(h, w, scale):
    ramp = np.add.outer(np.arange(h) / h, np.arange(w) / w)[None]
    got = resample(ramp, scale)
    assert got.shape == (1, max(1, round(h * scale)), max(1, round(w * scale)))
    np.testing.assert_allclose(got.mean(), ramp.mean(), atol=1e-9)
    centre = (np.arange(got.shape[1]) + 0.5) / got.shape[1] - 0.5 / h
    if got.shape[1] >= h:  # between the outer centres linear interpolation gives the ramp back
        inside = (centre >= 0) & (centre <= (h - 1) / h)
        np.testing.assert_allclose(np.diff(got[0, inside, 0]), np.diff(centre[inside]), atol=1e-9)


def test_microscopes_agree_after_resampling():
    fine, coarse = field((1, 80, 80)), field((1, 68, 68))
    process = Process(pixel_size_um=0.65, crop=60)
    shapes = {
        apply(image, process, pixel_size_um=size).shape
        for image, size in ((fine, 0.597976), (coarse, 0.7032))
    }
    assert shapes == {(1, 1, 60, 60)}
    same = apply(fine, Process(pixel_size_um=0.65), pixel_size_um=0.65)
    np.testing.assert_array_equal(same[0], fine)
    with pytest.raises(InputError, match="size of its pixels is not known"):
        apply(fine, process)
    with pytest.raises(InputError, match="one of the two"):
        Process(pixel_size_um=0.65, resize=(8, 8))
