import numpy as np
import pytest

from evenfield.data.illumination import PlateLight, enlarge, reduce_field
from evenfield.data.process import Process, apply
from evenfield.errors import InputError


def vignetted(num=6, side=384, seed=0):
    """Flat random fields under one vignette, (num, 1, side, side), and the vignette."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    light = np.exp(-0.6 * (x**2 + y**2))
    rng = np.random.default_rng(seed)
    fields = rng.gamma(20.0, 500.0, (num, 1, side, side)) * light
    return np.rint(fields).astype(np.uint16), light


def function_of(fields):
    plate = PlateLight()
    for image in fields:
        plate.add(reduce_field(image))
    return plate.function()


def test_it_flattens_a_vignette():
    fields, light = vignetted()
    smooth, _ = function_of(fields)
    illumination = enlarge(smooth, 384, 384)
    assert illumination.min() >= 1
    ratio = illumination[0] / light
    assert np.std(ratio) / np.mean(ratio) < 0.05 < np.std(light) / np.mean(light)
    flat = np.mean([apply(f, Process(), illumination=illumination)[0, 0] for f in fields], 0)
    corner, centre = flat[:40, :40].mean(), flat[172:212, 172:212].mean()
    raw = fields.mean((0, 1))
    assert (
        abs(corner / centre - 1)
        < 0.1
        < abs(raw[:40, :40].mean() / raw[172:212, 172:212].mean() - 1)
    )


def test_formula_letter_by_letter():
    """DeepProfiler's `prepare`, plainly, on a size where nothing is resampled unevenly."""
    fields, _ = vignetted(num=3, side=64)
    smooth, cap = function_of(fields)
    mean = fields.astype(float).reshape(3, 1, 16, 4, 16, 4).mean((0, 3, 5)).astype(np.uint16)
    expected = np.empty((16, 16), np.uint16)
    padded = np.pad(mean[0], 16, mode="symmetric")
    for i in range(16):
        for j in range(16):
            values = [
                padded[16 + i + a, 16 + j + b]
                for a in range(-12, 13)
                for b in range(-12, 13)
                if a * a + b * b <= 144
            ]
            expected[i, j] = sorted(values)[len(values) // 2]
    np.testing.assert_array_equal(smooth[0], expected)
    top = np.quantile(fields, 0.9999, method="inverted_cdf")
    assert cap.tolist() == [top]
    small = enlarge(smooth, 16, 16)
    floor = np.percentile(expected, 2)
    np.testing.assert_allclose(small[0], np.maximum(expected, floor) / floor, rtol=1e-6)


def test_a_flat_plate_has_a_flat_function():
    fields = np.full((2, 1, 32, 32), 700, np.uint16)
    np.testing.assert_allclose(enlarge(function_of(fields)[0], 32, 32), 1)


def test_sizes_and_types_that_do_not_fit():
    plate = PlateLight()
    plate.add(reduce_field(np.ones((1, 32, 32), np.uint8)))
    with pytest.raises(InputError, match="others of its plate"):
        plate.add(reduce_field(np.ones((1, 33, 32), np.uint8)))
    with pytest.raises(InputError, match="not float32"):
        reduce_field(np.ones((1, 32, 32), np.float32))
