"""Many rows to one, with counts, against pycytominer and by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.profile.aggregate import aggregate, grouped, pooled
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles


def sites(num_wells=6, num_sites=3, d=4, seed=0, dtype=np.float32, **columns):
    rng = numpy_generator(seed, "sites")
    num = num_wells * num_sites
    metadata = pd.DataFrame(
        {
            "Metadata_Batch": "b1",
            "Metadata_Plate": np.repeat([f"p{i // 3}" for i in range(num_wells)], num_sites),
            "Metadata_Well": np.repeat([f"A{i % 3 + 1:02d}" for i in range(num_wells)], num_sites),
            "Metadata_Site": [str(i % num_sites + 1) for i in range(num)],
            "Metadata_Treatment": np.repeat(["DMSO", "x", "y"] * (num_wells // 3), num_sites),
        }
    ).assign(**columns)
    x = rng.normal(size=(num, d)).astype(dtype)
    return Profiles(features=x, names=tuple(f"f_{i}" for i in range(d)), metadata=metadata)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.sampled_from(["mean", "median", "trimmed"]),
    st.integers(0, 9),
)
def test_each_group_is_computed_as_if_it_were_alone(group, function, seed):
    group = np.unique(group, return_inverse=True)[1]
    x = numpy_generator(seed, "x").normal(size=(len(group), 3))
    found = grouped(x, group, function=function, trim=0.2)
    for number in range(group.max() + 1):
        own = np.sort(x[group == number], axis=0)
        cut = int(0.2 * len(own))
        expected = {
            "mean": own.sum(0) / len(own),
            "median": (own[(len(own) - 1) // 2] + own[len(own) // 2]) / 2,
            "trimmed": own[cut : len(own) - cut].sum(0) / (len(own) - 2 * cut),
        }[function]
        np.testing.assert_allclose(found[number], expected, atol=1e-12)


@pytest.mark.parametrize("function", ["mean", "median"])
def test_wells_are_those_of_pycytominer(function):
    pycytominer = pytest.importorskip("pycytominer")
    profiles = sites(dtype=np.float64)
    ours = aggregate(profiles, "well", function=function)
    table = pd.concat(
        [profiles.metadata, pd.DataFrame(profiles.features, columns=profiles.names)], axis=1
    )
    theirs = pycytominer.aggregate(
        table,
        strata=["Metadata_Plate", "Metadata_Well"],
        features=list(profiles.names),
        operation=function,
        compute_object_count=False,
    ).set_index(["Metadata_Plate", "Metadata_Well"])
    order = pd.MultiIndex.from_frame(ours.metadata[["Metadata_Plate", "Metadata_Well"]])
    np.testing.assert_allclose(ours.features, theirs.loc[order].to_numpy(), atol=1e-12)


def test_treatments_are_made_of_wells_and_not_of_images():
    profiles = sites(num_wells=6, num_sites=2)
    keep = np.ones(len(profiles), dtype=bool)
    keep[2] = False  # the first well of x has one image left, the second two
    profiles = profiles[keep]
    found = aggregate(profiles, "treatment")
    x = profiles.features
    assert list(found.metadata["Metadata_Treatment"]) == ["DMSO", "x", "y"]
    np.testing.assert_allclose(found.features[1], (x[2] + (x[7] + x[8]) / 2) / 2, rtol=1e-5)
    assert list(found.metadata["Metadata_Count"]) == [4, 3, 4]
    assert list(found.metadata.columns) == [
        "Metadata_Batch",
        "Metadata_Treatment",
        "Metadata_Count",
    ]
    assert found.features.dtype == np.float32


def test_cells_are_counted_summed_over_sites_and_averaged_over_wells():
    told = sites(num_sites=2, Metadata_CellCount=range(12))
    wells = aggregate(told, "well").metadata
    assert list(wells["Metadata_CellCount"]) == [1, 5, 9, 13, 17, 21]
    assert list(aggregate(told, "treatment").metadata["Metadata_CellCount"]) == [7, 11, 15]
    joined = sites(num_sites=2, Metadata_CellCount=np.repeat([7, 9, 8, 7, 9, 8], 2))
    assert list(aggregate(joined, "well").metadata["Metadata_CellCount"]) == [7, 9, 8, 7, 9, 8]
    cells = sites(num_sites=4, Metadata_Site="1", Metadata_Object=["1", "2", "3", "4"] * 6)
    assert list(aggregate(cells, "well").metadata["Metadata_CellCount"]) == [4] * 6
    assert "Metadata_CellCount" not in aggregate(sites(), "well").metadata


def test_aggregating_twice_is_aggregating_once():
    once = aggregate(sites(), "treatment", function="median")
    twice = aggregate(aggregate(sites(), "well", function="median"), "treatment", function="median")
    np.testing.assert_array_equal(once.features, twice.features)
    pd.testing.assert_frame_equal(once.metadata, twice.metadata)


def test_wells_of_two_sources_with_one_plate_name_stay_apart():
    profiles = sites(Metadata_Source=["s1", "s2", "s1"] * 6)
    assert len(aggregate(profiles, "well")) == 12


def test_rows_without_a_treatment_are_left_out_and_told():
    profiles = sites(Metadata_Treatment=["", "x", "x"] * 6)
    with pytest.warns(EvenfieldWarning, match="6 of 18 rows have no Metadata_Treatment"):
        assert len(pooled(profiles, ("Metadata_Treatment",))) == 1


def test_bad_input_is_named():
    profiles = sites()
    with pytest.raises(InputError, match="no column Metadata_Well"):
        aggregate(
            Profiles(
                features=profiles.features,
                names=profiles.names,
                metadata=profiles.metadata.drop(columns="Metadata_Well"),
            ),
            "well",
        )
    with pytest.raises(InputError, match="no column Metadata_MOA"):
        aggregate(profiles, "treatment", treatment="Metadata_MOA")
    with pytest.raises(InputError, match=r"trim is 0\.5"):
        aggregate(profiles, "well", function="trimmed", trim=0.5)
    profiles.features[4, 1] = np.nan
    with pytest.raises(InputError, match=r"1 row\(s\) hold NaN .* f_1"):
        aggregate(profiles, "well")
