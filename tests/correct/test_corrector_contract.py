"""What every corrector must do; a new file in `evenfield/correct/` is tested with no new line."""

import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from corrector_cases import controls_of, fake_profiles, of, treated_of, with_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.config import from_dict, to_dict
from evenfield.correct import CORRECTORS, Pipeline, apply, load, save
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator

CLOSE = {"rtol": 2e-3, "atol": 2e-3}


@pytest.fixture(params=list(CORRECTORS))
def corrector(request):
    return CORRECTORS[request.param]()


@pytest.fixture(scope="module")
def profiles():
    return fake_profiles()


@pytest.fixture(scope="module")
def new_batch():
    """A batch that `fit` does not see: other plates, another offset."""
    found = of(fake_profiles(num_batches=4, seed=0), "Metadata_Batch", "b3")
    return found


def assert_same(a, b, **tolerance):
    assert a.names == b.names
    np.testing.assert_allclose(a.features, b.features, **tolerance)


def test_maps_rows_to_finite_rows_and_leaves_the_input_alone(corrector, profiles):
    before = profiles.features.copy()
    out = corrector.fit_transform(profiles)
    assert np.array_equal(profiles.features, before)
    assert len(out) == len(profiles)
    assert out.metadata.equals(profiles.metadata)
    assert out.features.shape == (len(profiles), len(out.names))
    assert len(set(out.names)) == len(out.names)
    assert np.isfinite(out.features).all()
    assert out.features.dtype == np.float32


def test_float64_stays_float64(corrector):
    wide = fake_profiles(dtype=np.float64)
    assert corrector.fit_transform(wide).features.dtype == np.float64


def test_fit_transform_is_fit_and_transform(corrector, profiles):
    assert_same(corrector.fit_transform(profiles), corrector.fit(profiles).transform(profiles))


def test_the_order_of_rows_is_irrelevant(corrector, profiles):
    order = numpy_generator(1, "order").permutation(len(profiles))
    plain = corrector.fit_transform(profiles)
    mixed = CORRECTORS[corrector.name]().fit_transform(profiles[order])
    assert_same(mixed, plain[order], **CLOSE)


def test_the_names_of_batches_and_plates_are_irrelevant(corrector, profiles):
    told = profiles.metadata
    renamed = with_metadata(
        profiles,
        Metadata_Batch=told.Metadata_Batch.map({"b0": "zeta", "b1": "007", "b2": "7"}),
        Metadata_Plate=[name[::-1] for name in told.Metadata_Plate],
    )
    plain = corrector.fit_transform(profiles)
    assert_same(CORRECTORS[corrector.name]().fit_transform(renamed), plain, **CLOSE)


def test_features_are_matched_by_name(corrector, profiles):
    corrector.fit(profiles)
    order = [3, 0, 5, 1, 4, 2]
    moved = profiles.with_features(
        profiles.features[:, order], tuple(profiles.names[i] for i in order)
    )
    assert_same(corrector.transform(moved), corrector.transform(profiles))


@pytest.mark.parametrize("change", ["lacks", "adds", "renames"])
def test_other_features_are_refused_by_name(corrector, profiles, change):
    corrector.fit(profiles)
    x, names = profiles.features, profiles.names
    other = {
        "lacks": profiles.with_features(x[:, 1:], names[1:]),
        "adds": profiles.with_features(np.hstack([x, x[:, :1]]), (*names, "extra")),
        "renames": profiles.with_features(x, ("other", *names[1:])),
    }[change]
    with pytest.raises(InputError, match="f0" if change != "adds" else "extra"):
        corrector.transform(other)


def test_a_seen_row_does_not_depend_on_its_company(corrector, profiles):
    whole = corrector.fit_transform(profiles)
    some = np.array([3, 40, 41, 200])
    assert_same(corrector.transform(profiles[some]), whole[some], rtol=1e-4, atol=1e-4)


def test_unfitted_is_refused(corrector, profiles, tmp_path):
    with pytest.raises(InputError, match="not fitted"):
        corrector.transform(profiles)
    with pytest.raises(InputError, match="not fitted"):
        corrector.save(tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_pickles_and_saves(corrector, profiles, new_batch, tmp_path):
    corrector.fit(profiles)
    expected = corrector.transform(new_batch)
    assert_same(pickle.loads(pickle.dumps(corrector)).transform(new_batch), expected)
    save(corrector, tmp_path / "a.npz")
    again = load(tmp_path / "a.npz")
    assert type(again) is type(corrector)
    assert again.config == corrector.config
    assert again.num_rows == len(profiles)
    assert_same(again.transform(new_batch), expected)
    assert_same(apply(tmp_path / "a.npz", new_batch), expected)
    CORRECTORS[corrector.name]().fit(profiles).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert all(arrays[name] is not None for name in arrays.files)


def test_scikit_learn_clones_it(corrector, profiles):
    sklearn = pytest.importorskip("sklearn.base")
    corrector.fit(profiles)
    twin = sklearn.clone(corrector)
    assert twin.get_params() == corrector.get_params()
    assert not twin.state
    assert_same(twin.fit_transform(profiles), corrector.transform(profiles))


def test_scikit_learn_chains_it(corrector, profiles):
    pipeline = pytest.importorskip("sklearn.pipeline")
    chain = pipeline.make_pipeline(CORRECTORS["standardise"](), corrector)
    ours = Pipeline([CORRECTORS["standardise"](), CORRECTORS[corrector.name]()])
    assert_same(chain.fit(profiles).transform(profiles), ours.fit_transform(profiles))


def test_settings_are_json_and_unknown_ones_are_refused(corrector, profiles):
    config = corrector.config
    assert from_dict(type(config), to_dict(config)) == config
    with pytest.raises(InputError, match="no setting 'colour'"):
        type(corrector)(colour="blue")
    corrector.fit(profiles)
    name = next(iter(corrector.get_params()))
    corrector.set_params(**{name: corrector.get_params()[name]})
    assert not corrector.state  # learned with the old settings


def test_says_what_it_does_with_new_domains(corrector):
    assert corrector.unseen in ("same", "controls", "rows")
    assert "never seen" in type(corrector).__doc__
    told = " ".join(cls.__doc__ or "" for cls in type(corrector.config).__mro__)
    assert not [name for name in corrector.get_params() if f"{name}: " not in told]


def test_the_rule_for_a_new_batch_is_kept(corrector, profiles, new_batch):
    """`same` looks at nothing, `controls` at the controls only, `rows` at all rows."""
    corrector.fit(profiles)
    whole = corrector.transform(new_batch)
    treated = (new_batch.metadata.Metadata_ControlType == "trt").to_numpy()
    picked = ~treated | (np.arange(len(new_batch)) % 3 == 0)
    if corrector.unseen == "same":
        one = new_batch[np.array([len(new_batch) - 1])]
        assert_same(corrector.transform(one), whole[np.array([-1])], rtol=1e-4, atol=1e-4)
    elif corrector.unseen == "controls":
        assert_same(corrector.transform(new_batch[picked]), whole[picked], rtol=1e-4, atol=1e-4)
        with pytest.raises(InputError, match="no negative control"):
            corrector.transform(treated_of(new_batch))
    else:
        assert len(corrector.transform(treated_of(new_batch))) == treated.sum()


def test_a_new_batch_beside_a_seen_one(corrector, profiles, new_batch):
    """Seen and new rows in one table are treated as each alone."""
    corrector.fit(profiles)
    both = replace(
        profiles,
        features=np.concatenate([profiles.features, new_batch.features]),
        metadata=pd.concat([profiles.metadata, new_batch.metadata], ignore_index=True),
    )
    out = corrector.transform(both)
    n = len(profiles)
    assert_same(out[:n], corrector.transform(profiles), rtol=1e-4, atol=1e-4)
    assert_same(out[n:], corrector.transform(new_batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_is_refused_by_name(corrector, profiles, value):
    if corrector.accepts_nan:
        pytest.skip("takes NaN by its own rule")
    bad = profiles.features.copy()
    bad[5, 2] = value
    broken = profiles.with_features(bad)
    with pytest.raises(InputError, match=r"1 row\(s\) hold NaN.*f2"):
        corrector.fit(broken)
    corrector.fit(profiles)
    with pytest.raises(InputError, match="f2"):
        corrector.transform(broken)


def test_a_table_without_a_column_is_refused_by_name(corrector, profiles):
    for column in ("domain", "control"):
        name = corrector.get_params().get(column)
        if name is None:
            continue
        lacking = replace(profiles, metadata=profiles.metadata.drop(columns=name))
        if column == "control" and corrector.get_params()["reference"] == "all":
            continue
        with pytest.raises(InputError, match=name):
            CORRECTORS[corrector.name]().fit(lacking)


def test_rows_without_a_domain_are_refused(corrector, profiles):
    name = corrector.get_params().get("domain")
    if name is None:
        pytest.skip("knows no domains")
    values = profiles.metadata[name].to_list()
    values[7] = None
    with pytest.raises(InputError, match=rf"1 row\(s\) have no {name}"):
        corrector.fit(with_metadata(profiles, **{name: values}))


def test_empty_tables_are_refused(corrector, profiles):
    with pytest.raises(InputError, match="at least one row"):
        corrector.fit(profiles[np.zeros(0, dtype=int)])
    with pytest.raises(InputError, match="at least one row"):
        corrector.fit(profiles.with_features(profiles.features[:, :0], ()))


def attempt(corrector, table):
    """Corrected profiles, or the named error; stated fallbacks may warn, numpy may not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvenfieldWarning)
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return corrector.fit_transform(table), None
        except InputError as error:
            return None, error


hard = {
    "constant": lambda p: p.with_features(
        np.hstack([p.features, np.full((len(p), 1), 3.3, np.float32)]), (*p.names, "flat")
    ),
    "twin": lambda p: p.with_features(
        np.hstack([p.features, p.features[:, :1]]), (*p.names, "twin")
    ),
    "one control a plate": lambda p: p[
        (
            (p.metadata.Metadata_ControlType == "trt") | (p.metadata.Metadata_Well == "A01")
        ).to_numpy()
    ],
    "one control in all": lambda p: p[
        ((p.metadata.Metadata_ControlType == "trt") | (np.arange(len(p)) == 0)).to_numpy()
    ],
    "no control": treated_of,
    "controls only": controls_of,
    "one batch": lambda p: of(p, "Metadata_Batch", "b1"),
    "one row": lambda p: p[np.array([0])],
    "two rows": lambda p: p[np.array([0, 70])],
    "each row a batch": lambda p: with_metadata(p, Metadata_Batch=[f"x{i}" for i in range(len(p))]),
    "equal rows": lambda p: p.with_features(np.ones_like(p.features)),
    "more features than rows": lambda p: fake_profiles(controls=3, treated=6, d=80),
    "huge offset": lambda p: p.with_features(p.features + np.float32(1e4)),
    "tiny values": lambda p: p.with_features(p.features * np.float32(1e-12)),
    "huge values": lambda p: p.with_features(p.features * np.float32(1e12)),
}


@pytest.mark.parametrize("case", hard)
def test_hard_tables_give_finite_rows_or_a_named_error(corrector, profiles, case):
    table = hard[case](profiles)
    out, error = attempt(corrector, table)
    if out is None:
        assert corrector.name in str(error)
        assert error.fix
        return
    assert np.isfinite(out.features).all()
    assert np.abs(out.features).max() < 1e4 * max(1.0, float(np.abs(table.features).max()))


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_small_table_gives_finite_rows_or_a_named_error(data):
    name = data.draw(st.sampled_from(list(CORRECTORS)))
    n, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    table = fake_profiles(num_batches=1, plates=1, controls=n, treated=n, d=d)
    rng = numpy_generator(data.draw(st.integers(0, 99)), "table")
    x = np.round(rng.normal(size=(2 * n, d)), data.draw(st.integers(0, 2))).astype(np.float32)
    letters = np.array(["a", "b", "c"])
    table = with_metadata(
        table.with_features(x),
        Metadata_Batch=letters[rng.integers(0, 3, 2 * n)],
        Metadata_Plate=letters[rng.integers(0, 2, 2 * n)],
        Metadata_ControlType=np.array(["trt", "negcon"])[rng.integers(0, 2, 2 * n)],
    )
    out, error = attempt(CORRECTORS[name](), table)
    assert np.isfinite(out.features).all() if out is not None else error.fix


def test_importing_the_room_loads_no_torch():
    code = "import sys, evenfield.correct as c; list(c.CORRECTORS); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
