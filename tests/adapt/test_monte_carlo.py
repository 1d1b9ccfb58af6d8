"""The bias-variance account of controls, simulated: table, formulas, and where the order flips."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from evenfield.seeds import numpy_generator


def load() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "monte_carlo.py"
    spec = importlib.util.spec_from_file_location("monte_carlo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["monte_carlo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mc = load()

TABLE = {  # perturbed only, controls only, union: the specification of CS-ARM-BN, section 4.2
    (64, 128, "balanced"): (0.0203, 0.0080, 0.0058),
    (64, 128, "Dirichlet 1"): (0.0549, 0.0078, 0.0095),
    (64, 128, "Dirichlet 0.01"): (0.3039, 0.0074, 0.0373),
    (8, 128, "balanced"): (0.1657, 0.0080, 0.0077),
    (8, 128, "Dirichlet 0.01"): (0.4189, 0.0077, 0.0081),
    (64, 8, "balanced"): (0.0200, 0.1266, 0.0175),
    (64, 8, "Dirichlet 0.01"): (0.2971, 0.1271, 0.2363),
    (64, 64, "balanced"): (0.0204, 0.0154, 0.0090),
    (64, 64, "Dirichlet 0.01"): (0.3097, 0.0161, 0.0816),
}


@pytest.mark.parametrize("case", list(TABLE), ids=str)
def test_the_table_and_the_formulas(case: tuple[int, int, str]) -> None:
    simulated, expected = mc.row(*case, trials=6000, seed=0)
    np.testing.assert_allclose(simulated, expected, rtol=0.06)
    np.testing.assert_allclose(simulated, TABLE[case], rtol=0.12)


@pytest.mark.parametrize(("n_p", "n_c"), [(64, 128), (8, 128), (64, 8), (64, 64)])
def test_the_squared_bias_falls_by_the_square_of_the_share(n_p: int, n_c: int) -> None:
    rng = numpy_generator(1, "bias")
    offsets = np.repeat([[2.0, 1, 0, -1, -2, 0.5, -0.5, 0]], 6000, axis=0)
    shares = np.repeat([[0.9, 0.1, 0, 0, 0, 0, 0, 0]], 6000, axis=0)
    e = mc.simulate(rng, offsets, shares, n_p, n_c, 1.0)
    ratio = e.union.mean() ** 2 / e.perturbed.mean() ** 2
    assert ratio == pytest.approx((n_p / (n_p + n_c)) ** 2, rel=0.08, abs=3e-4)
    assert e.controls.mean() == pytest.approx(0, abs=0.03)


def test_the_order_flips_where_the_inequality_says() -> None:
    rng = numpy_generator(2, "flip")
    checked = {True: 0, False: 0}
    for n_p, n_c in [(64, 128), (16, 16), (64, 8)]:
        for share in (0.125, 0.2, 0.3, 0.4, 0.6, 0.9):
            shares = np.full((8000, 8), (1 - share) / 7)
            shares[:, 0] = share
            offsets = np.repeat([[0.875] + [-0.125] * 7], 8000, axis=0)
            e = mc.simulate(rng, offsets, shares, n_p, n_c, 1.0)
            _, controls, union = mc.formulas(e.delta, e.class_variance, n_p, n_c, 1.0)
            says = bool(mc.union_beats_controls(e.delta, e.class_variance, n_p, n_c, 1.0)[0])
            assert says == bool(union[0] < controls[0])
            if abs(union[0] / controls[0] - 1) > 0.15:  # a clear case: noise cannot decide it
                assert says == bool((e.union**2).mean() < (e.controls**2).mean())
                checked[says] += 1
    assert min(checked.values()) >= 3


def test_the_best_weight_is_the_best() -> None:
    rng = numpy_generator(3, "weight")
    offsets, shares = mc.draw_mix(rng, 1, 0.1)
    e = mc.simulate(rng, offsets.repeat(8000, 0), shares.repeat(8000, 0), 32, 16, 1.0)
    best = mc.best_weight(e.delta, e.class_variance, 32, 16, 1.0)[0]
    errors = {
        w: ((w * e.perturbed + (1 - w) * e.controls) ** 2).mean()
        for w in (0.0, best / 2, best, (1 + best) / 2, 1.0)
    }
    assert min(errors, key=lambda w: errors[w]) == best
