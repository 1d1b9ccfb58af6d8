"""Image quality against formulas written out, and their limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from evenfield.errors import InputError
from evenfield.metrics.images import correlation, frechet_distance, ssim
from evenfield.seeds import numpy_generator


def literal_ssim(a, b, span):
    """Wang et al. 2004, equations 6, 13 and 14 to 16, window by window."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis**2) / (2 * 1.5**2))
    weight = np.outer(window, window) / np.outer(window, window).sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (i[top : top + 11, left : left + 11] for i in (a, b))
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            cov = (weight * (x - mx) * (y - my)).sum()
            values.append(
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    return np.mean(values)


def test_ssim_equals_the_paper():
    rng = numpy_generator(0, "ssim")
    a = rng.random((2, 3, 16, 19))
    b = np.clip(a + 0.3 * rng.normal(size=a.shape), 0, 1)
    for span in (1.0, 4.0):
        expected = [
            np.mean([literal_ssim(a[n, c], b[n, c], span) for c in range(3)]) for n in range(2)
        ]
        np.testing.assert_allclose(ssim(a, b, span=span), expected, rtol=1e-9)


def test_ssim_of_equal_and_of_inverted_images():
    a = numpy_generator(0, "ssim").random((2, 1, 24, 24))
    np.testing.assert_allclose(ssim(a, a), 1)
    assert (ssim(a, 1 - a) < 0).all()
    np.testing.assert_allclose(ssim(a, np.sqrt(a)), ssim(np.sqrt(a), a))
    with pytest.raises(InputError, match="11 pixels or more"):
        ssim(a[..., :10], a[..., :10])
    with pytest.raises(InputError, match="equal shapes"):
        ssim(a, a[:1])


def test_correlation_is_numpys():
    rng = numpy_generator(0, "correlation")
    a, b = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 3, 5))
    expected = [np.corrcoef(a[n].ravel(), b[n].ravel())[0, 1] for n in range(4)]
    np.testing.assert_allclose(correlation(a, b), expected)
    np.testing.assert_allclose(correlation(a, 3 - 2 * a), -1)
    assert correlation(a, np.ones_like(a)).tolist() == [0, 0, 0, 0]


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_frechet_distance_equals_the_formula(n, m, d, seed):
    rng = numpy_generator(seed, "frechet")
    a, b = rng.normal(size=(n, d)), 2 * rng.normal(size=(m, d)) + 1
    ca, cb = (np.cov(x, rowvar=False).reshape(d, d) for x in (a, b))
    root = np.sqrt(np.linalg.eigvals(ca @ cb).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_frechet_distance_equals_scipys_root():
    rng = numpy_generator(0, "frechet")
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_distance_at_its_limits():
    a = numpy_generator(0, "frechet").normal(size=(20, 40))  # fewer samples than features
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(40 * 4)
    with pytest.raises(InputError, match="two samples"):
        frechet_distance(a[:1], a)
