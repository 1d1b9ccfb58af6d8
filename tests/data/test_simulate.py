"""The simulator's laws: what each effect does, what depends on what, and what never changes."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.simulate import (
    CHANNELS,
    EFFECT_TYPES,
    CellConfig,
    EffectConfig,
    LayoutConfig,
    Levels,
    MechanismConfig,
    OpticsConfig,
    SimulationConfig,
    demo_screen,
    effect_screen,
    effects,
    grid_screen,
    layout,
    render,
    simulate,
    tiny_screen,
)
from evenfield.data.simulation import noise
from evenfield.data.simulation.cells import edge_weight, fields_of, sample
from evenfield.data.simulation.optics import bleed, blur, digitise, vignette
from evenfield.data.simulation.phenotypes import MECHANISMS, TRAITS, hill
from evenfield.data.simulation.plan import WELLS
from evenfield.data.store import Screen
from evenfield.errors import InputError

STILL = EffectConfig(
    **{f.name: Levels() for f in fields(EffectConfig) if f.name != "channel_correlation"}
)
DMSO = SimulationConfig(
    size=32,
    pixel_size_um=3.0,
    effects=STILL,
    layout=LayoutConfig(
        num_batches=1, num_plates=1, num_mechanisms=0, num_dmso=48, num_poscon=0, num_sites=1
    ),
)


def images(config: SimulationConfig, **changed: float) -> np.ndarray:
    """The screen's fields, with some parameters of all plates set by hand."""
    table = effects(config)
    for name, value in changed.items():
        columns = [c for c in table if c == name or c.startswith(f"{name}_")]
        assert columns, name
        table[columns] = value
    return render(config, layout(config), table, slice(None)).numpy().astype(float)


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    table = pd.crosstab(a, b).to_numpy(float)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi2 / table.sum() / (min(table.shape) - 1)))


# Layout


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(0, 20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_layout_is_a_384_well_plate(
    sources: int,
    batches: int,
    mechanisms: int,
    replicates: int,
    dmso: int,
    place: float,
    mix: float,
) -> None:
    plan = LayoutConfig(
        num_sources=sources,
        num_batches=batches,
        num_mechanisms=mechanisms,
        replicates=replicates,
        num_dmso=dmso,
        position_confound=place,
        batch_confound=mix,
    )
    table = layout(SimulationConfig(layout=plan))
    per_plate = plan.num_treated + plan.num_dmso + plan.num_poscon
    assert set(table["Metadata_Well"]) <= set(WELLS)
    assert table.groupby("Metadata_Plate")["Metadata_Well"].nunique().eq(per_plate).all()
    key = ["Metadata_Source", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    assert not table.duplicated(key).any()
    assert len(table) == sources * batches * plan.num_plates * per_plate * plan.num_sites
    controls = table["Metadata_ControlType"]
    assert (controls == "negcon").sum() == dmso * 2 * plan.num_plates * batches * sources
    assert table["Metadata_Label"].isna().eq(controls == "negcon").all()
    assert (table["Metadata_Concentration"] > 0).eq(controls != "negcon").all()


def test_wells_run_from_a01_to_p24() -> None:
    assert len(set(WELLS)) == 384
    assert (min(WELLS), max(WELLS)) == ("A01", "P24")
    assert edge_weight("P24") == edge_weight("H01") == 1.0


def test_confounds_come_on_request_only() -> None:
    plan = LayoutConfig(num_batches=4, num_plates=2, num_mechanisms=4, replicates=8, num_sites=1)

    def association(**confound: float) -> tuple[float, float]:
        table = layout(SimulationConfig(layout=replace(plan, **confound)))
        table = table[table["Metadata_ControlType"] == "trt"]
        column = table["Metadata_Well"].str[1:].astype(int) // 4
        label = table["Metadata_Label"]
        return cramers_v(label, table["Metadata_Batch"]), cramers_v(label, column)

    by_batch, by_place = association()
    assert by_batch == 0
    assert by_place < 0.15
    assert association(batch_confound=1.0)[0] == pytest.approx(1.0)
    assert 0.3 < association(batch_confound=0.5)[0] < 0.9
    assert association(position_confound=1.0)[1] > 0.8
    assert by_place < association(position_confound=0.6)[1] < association(position_confound=1.0)[1]


def test_same_layout_is_shared() -> None:
    plan = LayoutConfig(num_batches=2, num_plates=1, num_sites=1)
    for same in (True, False):
        table = layout(SimulationConfig(layout=replace(plan, same_layout=same)))
        one, two = (
            part.set_index("Metadata_Well")["Metadata_Treatment"]
            for _, part in table.groupby("Metadata_Plate")
        )
        assert one.equals(two) == same


@pytest.mark.parametrize(
    "bad",
    [
        {"layout": LayoutConfig(replicates=40)},
        {"layout": LayoutConfig(num_mechanisms=13, replicates=1)},
        {"layout": LayoutConfig(batch_confound=1.5)},
        {"layout": LayoutConfig(num_mechanisms=0)},
        {"layout": LayoutConfig(doses_um=(1.0, 1.0))},
        {"optics": OpticsConfig(bit_depths=(17,))},
        {"effects": EffectConfig(gain=Levels(batch=-1.0))},
        {"cells": CellConfig(radius_um=0.0)},
        {"strength": -0.1},
        {"size": 4},
    ],
)
def test_impossible_screens_are_refused(bad: dict) -> None:
    with pytest.raises(InputError, match="What to do"):
        layout(SimulationConfig(**bad))


def test_cell_types_follow_batches() -> None:
    plan = LayoutConfig(num_batches=4, num_cell_types=2)
    table = layout(SimulationConfig(layout=plan))
    types = table.groupby("Metadata_Batch")["Metadata_CellType"].unique().map(list)
    assert types.tolist() == [["type-1"], ["type-2"]] * 2


# Known effects


def test_strength_scales_every_effect() -> None:
    base = SimulationConfig(effects=replace(EffectConfig(), channel_correlation=0.3))
    numbers = effects(base).columns[3:].drop("bit_depth")
    none, half, full = (effects(replace(base, strength=s))[numbers] for s in (0.0, 0.5, 1.0))
    assert none.nunique().eq(1).all()
    linear = ["edge"]
    ratio = np.log(half / none).drop(columns=[*linear, "vignetting_y", "vignetting_x"])
    whole = np.log(full / none).drop(columns=[*linear, "vignetting_y", "vignetting_x"])
    np.testing.assert_allclose(2 * ratio, whole, atol=1e-12)
    np.testing.assert_allclose(2 * half["edge"], full["edge"])


def test_effects_have_their_level_and_depend_on_their_unit_only() -> None:
    plan = LayoutConfig(num_sources=2, num_batches=3, num_plates=2)
    for level, unit in (("source", "Source"), ("batch", "Batch"), ("plate", "Plate")):
        levels = replace(STILL, gain=Levels(**{level: 0.4}))
        table = effects(SimulationConfig(layout=plan, effects=levels))
        assert table.groupby(f"Metadata_{unit}")["gain_ER"].nunique().eq(1).all()
        assert table["gain_ER"].nunique() == table[f"Metadata_{unit}"].nunique()
        fewer = effects(
            SimulationConfig(layout=replace(plan, num_batches=2, num_plates=1), effects=levels)
        )
        both = fewer.merge(table, on="Metadata_Plate")
        assert both["gain_ER_x"].equals(both["gain_ER_y"])


def test_effects_have_the_stated_spread_and_correlation() -> None:
    plan = LayoutConfig(num_batches=400, num_plates=1)
    levels = replace(STILL, gain=Levels(batch=0.3), channel_correlation=0.5)
    gain = np.log(effects(SimulationConfig(layout=plan, effects=levels)).filter(like="gain_"))
    np.testing.assert_allclose(gain.std(), 0.3, rtol=0.1)
    off = gain.corr().to_numpy()[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off, 0.5, atol=0.15)


# Determinism


def test_bits_do_not_depend_on_companions() -> None:
    config = tiny_screen(3)
    table, known = layout(config), effects(config)
    whole = render(config, table, known, slice(None))
    order = np.random.default_rng(0).permutation(len(table))[:40]
    assert torch.equal(render(config, table, known, order), whole[order])
    alone = torch.cat([render(config, table, known, [int(row)]) for row in order[:6]])
    assert torch.equal(alone, whole[order[:6]])
    assert render(config, table, known, []).shape == (0, 5, 32, 32)


def test_seed_decides() -> None:
    first, again, other = (images(tiny_screen(seed))[:8] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_fields_differ_between_sites_wells_and_plates() -> None:
    config = tiny_screen()
    fields_ = images(replace(config, strength=0.0))
    flat = fields_.reshape(len(fields_), -1)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_counter_noise_is_uniform_and_normal() -> None:
    key = torch.arange(50) * 7919
    draws = noise.uniform(key, 3, 2000)
    assert 0 <= float(draws.min()) <= float(draws.max()) < 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(draws.var()) == pytest.approx(1 / 12, rel=0.02)
    for normal in (noise.normal(key, 1, 2000), noise.grain(key, 1, 2000)):
        assert float(normal.mean()) == pytest.approx(0, abs=0.02)
        assert float(normal.std()) == pytest.approx(1, rel=0.02)
        lag = (normal[:, 1:] * normal[:, :-1]).mean()
        across = (normal[1:] * normal[:-1]).mean()
        assert abs(float(lag)) < 0.02
        assert abs(float(across)) < 0.02


# What each effect does to the pixels


def test_gain_scales_the_signal_above_background() -> None:
    bright, dim = images(DMSO, gain=1.0, noise=0.0), images(DMSO, gain=0.5, noise=0.0)
    dark = images(DMSO, gain=0.0, noise=0.0)
    for channel in range(5):
        signal, half = (a[:, channel].mean() - dark[:, channel].mean() for a in (bright, dim))
        assert half == pytest.approx(signal / 2, rel=0.03)


def test_background_shifts_without_scaling() -> None:
    low, high = images(DMSO, background=0.05, noise=0.0), images(DMSO, background=0.15, noise=0.0)
    shift = np.median(high - low, axis=(0, 2, 3))
    np.testing.assert_allclose(shift, 0.1 * 255, atol=2.5)
    assert high.min() > low.min()


def test_gamma_bends_the_middle() -> None:
    straight, bent = images(DMSO, gamma=1.0, noise=0.0), images(DMSO, gamma=1.4, noise=0.0)
    np.testing.assert_allclose(bent, 255 * (straight / 255) ** 1.4, atol=1.6)


def test_blur_takes_high_frequencies() -> None:
    def high(sharpness: float) -> np.ndarray:
        window = np.outer(np.hanning(32), np.hanning(32))  # fields do not wrap around
        power = np.abs(np.fft.rfft2(window * images(DMSO, blur=sharpness, noise=0.0))) ** 2
        fy = np.abs(np.fft.fftfreq(32))[:, None]
        fx = np.fft.rfftfreq(32)[None]
        return power[..., np.hypot(fy, fx) > 0.2].mean((0, 2))

    assert (high(6.0) < 0.5 * high(3.0)).all()
    assert (high(3.0) < high(1.0)).all()


@settings(deadline=None, max_examples=10)
@given(st.floats(0.3, 2.0))
def test_blur_keeps_light_and_widens_by_its_sigma(sigma: float) -> None:
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1
    sigma = float(np.float32(sigma))  # a tap lies within three widths, or not
    seen = blur(point, torch.full((1, 1, 1, 1), sigma))[0, 0].double()
    place = torch.arange(33).double() - 16
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)
    variance = float((seen.sum(0) * place**2).sum())
    weights = [np.exp(-0.5 * (i / sigma) ** 2) for i in range(int(3 * sigma) + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    oracle = 2 * sum(w * i * i for i, w in enumerate(weights)) / total
    assert variance == pytest.approx(oracle, abs=1e-4)
    torch.testing.assert_close(seen, seen.T)


def test_blur_does_not_know_its_companions() -> None:
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.6, 2.0]).view(2, 1, 1, 1)
    assert torch.equal(blur(image, sigma)[:1], blur(image[:1], sigma[:1]))


def test_noise_grows_with_its_factor_and_with_the_signal() -> None:
    clean, noisy, loud = (images(DMSO, noise=f) for f in (0.0, 1.0, 3.0))
    residual, louder = noisy - clean, loud - clean
    assert louder.std() > 2 * residual.std()
    bright = clean > np.quantile(clean, 0.95)
    assert residual[bright].std() > residual[clean < np.median(clean)].std()


def test_vignetting_darkens_corners() -> None:
    shade = vignette(32, *(torch.tensor(v).view(1, 1, 1, 1) for v in (0.4, 0.0, 0.0)))[0, 0]
    assert float(shade[0, 0]) == pytest.approx(0.6, abs=0.03)
    assert float(shade.max()) > 0.995
    moved = vignette(32, *(torch.tensor(v).view(1, 1, 1, 1) for v in (0.4, 0.5, 0.0)))[0, 0]
    assert int(moved.argmax()) // 32 > 16
    with_it, without = images(DMSO, vignetting=0.5), images(DMSO, vignetting=0.0)
    ratio = with_it.mean((0, 1)) / without.mean((0, 1))
    assert ratio[:4, :4].mean() < ratio[14:18, 14:18].mean() - 0.3


def test_bleed_through_mixes_neighbours() -> None:
    light = torch.zeros(1, 5, 8, 8)
    light[:, 1] = 1
    share = torch.full((1, 1, 1, 1), 0.2)
    mixed = bleed(light, {("ER", "RNA"): share, ("RNA", "ER"): share})
    np.testing.assert_allclose(mixed[0].mean((1, 2)), [0, 1, 0.2, 0, 0], atol=1e-6)

    def correlation(fraction: float) -> float:
        fields_ = images(DMSO, bleed=fraction, noise=0.0)
        return float(np.corrcoef(fields_[:, 0].ravel(), fields_[:, 1].ravel())[0, 1])

    assert correlation(0.0) < correlation(0.3) < correlation(0.8)


def num_cells(config: SimulationConfig, **changed: float) -> tuple[float, float]:
    """Mean number and mean radius in pixels."""
    table = layout(config)
    plate = effects(config).iloc[[0] * len(table)].reset_index(drop=True)
    for name, value in changed.items():
        plate[name] = value
    cells = sample(config, fields_of(config, table, plate, torch.device("cpu")))
    return float(cells.alive.sum(1).float().mean()), float(cells.radius[cells.alive].mean())


def test_density_size_and_pixel_size_of_cells() -> None:
    count, radius = num_cells(DMSO)
    assert num_cells(DMSO, cell_density=2.0)[0] == pytest.approx(2 * count, rel=0.1)
    assert num_cells(DMSO, cell_size=1.2)[1] == pytest.approx(1.2 * radius, rel=0.03)
    assert num_cells(DMSO, pixel_size_um=1.5)[1] == pytest.approx(2 * radius, rel=0.03)
    covered, more = (
        (images(DMSO, noise=0.0, cell_density=d)[:, 1] > 40).mean() for d in (0.5, 1.5)
    )
    assert more > covered


def test_edge_effect_follows_the_distance_from_the_edge() -> None:
    table = layout(DMSO)
    weight = np.array([edge_weight(well) for well in table["Metadata_Well"]])
    plain, strong = images(DMSO, noise=0.0), images(DMSO, noise=0.0, edge=-0.6)
    change = strong.mean((1, 2, 3)) / plain.mean((1, 2, 3))
    assert change[weight == 1].mean() < change[weight == 0.5].mean() < change[weight < 0.1].mean()
    assert change[weight < 0.02].mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("bits", [2, 6, 12, 16])
def test_bit_depth_bounds_levels(bits: int) -> None:
    signal = torch.linspace(0, 1, 4096).view(1, 1, 64, 64)
    depth = torch.full((1, 1, 1, 1), float(bits))
    wide = digitise(signal, depth, "uint16").int()
    assert (int(wide.min()), int(wide.max())) == (0, 2**bits - 1)
    narrow = digitise(signal, depth, "uint8").int()
    assert (int(narrow.min()), int(narrow.max())) == (0, 255)
    assert len(torch.unique(narrow)) == 2 ** min(bits, 8)


def test_uint16_screen_and_bit_depths_of_sources() -> None:
    plan = LayoutConfig(
        num_sources=2, num_batches=1, num_plates=1, num_dmso=8, num_poscon=0, num_mechanisms=0
    )
    config = replace(DMSO, dtype="uint16", layout=plan, optics=OpticsConfig(bit_depths=(10, 16)))
    table, known = layout(config), effects(config)
    pixels = render(config, table, known, slice(None))
    assert pixels.dtype == torch.uint16
    first = (table["Metadata_Source"] == "source-1").to_numpy()
    values = pixels.numpy().astype(int)
    assert values[first].max() <= 1023 < values[~first].mean()


def test_no_strength_makes_plates_exchangeable() -> None:
    def spread(strength: float) -> float:
        config = replace(
            tiny_screen(), strength=strength, mechanisms=MechanismConfig(effect_size=0)
        )
        means = images(config).mean((2, 3))
        plate = layout(config)["Metadata_Plate"]
        groups = [means[plate == name] for name in plate.unique()]
        between = np.var([g.mean(0) for g in groups], axis=0)
        within = np.mean([g.var(0) / len(g) for g in groups], axis=0)
        return float((between / within).mean())

    assert spread(0.0) < 2.0
    assert spread(1.0) > 10.0


# Mechanisms


def test_hill_is_monotone_and_halves_at_its_ec50() -> None:
    doses = [0.01, 0.1, 1.0, 10.0, 100.0]
    effect = [hill(dose, 1.0, 1.7) for dose in doses]
    assert effect == sorted(effect)
    assert effect[2] == 0.5
    assert hill(0.0, 1.0, 1.7) == 0.0


def test_mechanisms_name_known_traits_and_all_grades() -> None:
    assert len(MECHANISMS) >= 8
    assert {m.grade for m in MECHANISMS.values()} == {"easy", "medium", "hard"}
    assert {m.grade for m in list(MECHANISMS.values())[:8]} >= {"easy", "medium"}
    for mechanism in MECHANISMS.values():
        assert set(mechanism.targets) <= set(TRAITS)


def test_effect_grows_with_the_dose_and_dmso_has_none() -> None:
    config = replace(
        DMSO,
        cells=CellConfig(size_spread=0.0, intensity_spread=0.0, well_spread=0.0),
        mechanisms=MechanismConfig(responders=1.0),
        layout=LayoutConfig(
            num_batches=1,
            num_plates=1,
            num_mechanisms=7,
            num_compounds=1,
            doses_um=(0.05, 0.5, 4.0),
            replicates=8,
            num_dmso=16,
            num_poscon=0,
            num_sites=1,
        ),
    )
    table = layout(config)
    plate = effects(config).iloc[[0] * len(table)].reset_index(drop=True)
    known = fields_of(config, table, plate, torch.device("cpu"))
    assert (known.effect.numpy()[table["Metadata_ControlType"] == "negcon"] == 0).all()
    cells = sample(config, known)
    damage = table[table["Metadata_Label"] == "DNA damage"]
    radius = [
        float(cells.radius[rows][cells.alive[rows]].mean())
        for rows in damage.groupby("Metadata_Concentration").groups.values()
    ]
    assert radius == sorted(radius)
    assert radius[-1] > 1.1 * radius[0]
    idle = render(
        replace(config, mechanisms=MechanismConfig(effect_size=0.0)), table, plate[:1], slice(None)
    )
    treated = render(config, table, plate[:1], slice(None))
    same = (idle == treated).flatten(1).all(1).numpy()
    np.testing.assert_array_equal(same, table["Metadata_ControlType"] == "negcon")


# Presets and the screen on the disk


def test_presets_hold_what_they_promise() -> None:
    demo = layout(demo_screen())
    assert 2500 <= len(demo) <= 4000
    assert demo["Metadata_Batch"].nunique() == 9
    grid = layout(grid_screen())
    counts = grid.groupby(["Metadata_Plate", "Metadata_ControlType"]).size().unstack()
    assert (counts["negcon"] >= 128).all()
    labels = grid.groupby(["Metadata_Plate", "Metadata_Label"]).size()
    assert (labels >= 72).all()
    assert grid["Metadata_Batch"].nunique() == 12


def test_simulate_resumes_to_the_same_screen(tmp_path, monkeypatch) -> None:
    whole = simulate(tiny_screen(), tmp_path / "whole", num_workers=1)
    import evenfield.data.simulate as module

    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 16 * 32 * 32)
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError("killed")
        return render(*args, **kwargs)

    monkeypatch.setattr(module, "render", failing)
    with pytest.raises(RuntimeError, match="killed"):
        simulate(tiny_screen(), tmp_path / "again", num_workers=1)
    assert not (tmp_path / "again").exists()
    calls.clear()
    monkeypatch.setattr(module, "render", render)
    screen = simulate(tiny_screen(), tmp_path / "again", num_workers=2)
    assert screen.fingerprint == whole.fingerprint
    opened = Screen.open(tmp_path / "again")
    assert opened.channels == CHANNELS
    assert opened.num_images == len(layout(tiny_screen()))
    known = pd.read_parquet(tmp_path / "again" / "effects.parquet")
    pd.testing.assert_frame_equal(known, effects(tiny_screen()))
    with pytest.raises(InputError, match="exists"):
        simulate(tiny_screen(), tmp_path / "again")


def test_unknown_plate_is_named() -> None:
    config = tiny_screen()
    with pytest.raises(InputError, match="b04-p2"):
        render(config, layout(config), effects(config)[:-1], slice(None))


@pytest.mark.parametrize("kind", list(EFFECT_TYPES))
def test_an_effect_screen_varies_what_it_names_and_nothing_else(kind):
    truth = effects(effect_screen(kind)).select_dtypes("number")
    varies = {name.split("_")[0] for name in truth if truth[name].nunique() > 1}
    named = {
        "stain": {"gain", "background", "bleed", "gamma"},
        "optics": {"blur", "noise", "vignetting"},
        "cells": {"cell", "edge"},
    }
    named["all"] = set.union(*named.values())
    assert varies == named[kind]
