"""What we write is read by the field's software, unchanged."""

import numpy as np
import pandas as pd
import pytest

from evenfield.data.profiles import from_anndata, read_profiles, write_profiles
from evenfield.errors import InputError
from evenfield.profile.aggregate import aggregate
from evenfield.profile.anndata import to_anndata
from evenfield.profile.export import FEATURES, export_profiles
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles


def wells(num_plates=2, per_plate=8, d=5, seed=0, **columns):
    rng = numpy_generator(seed, "wells")
    num = num_plates * per_plate
    well = [f"{'AB'[i % 2]}{i % per_plate // 2 + 1:02d}" for i in range(num)]
    treatment = [["DMSO", "x", "y", "z"][i % per_plate // 2] for i in range(num)]
    metadata = pd.DataFrame(
        {
            "Metadata_Source": "7",
            "Metadata_Batch": "b1",
            "Metadata_Plate": np.repeat([f"00{i}" for i in range(num_plates)], per_plate),
            "Metadata_Well": well,
            "Metadata_Treatment": treatment,
            "Metadata_ControlType": ["negcon" if t == "DMSO" else "trt" for t in treatment],
            "Metadata_Label": [None if t == "DMSO" else f"m-{t}" for t in treatment],
            "Metadata_Concentration": [np.nan if t == "DMSO" else 0.3 for t in treatment],
            "Metadata_CellCount": rng.integers(50, 90, num),
        }
    ).assign(**columns)
    x = rng.normal(size=(num, d)).astype(np.float32)
    x[:, 0] += np.array([ord(t[0]) for t in treatment], dtype=np.float32)
    return Profiles(features=x, names=tuple(f"erm_{i}" for i in range(d)), metadata=metadata)


def cells(profiles):
    """Two sites of two cells from each well's row."""
    four = profiles[np.repeat(np.arange(len(profiles)), 4)]
    place = np.arange(len(four))
    metadata = four.metadata.assign(
        Metadata_Site=(place % 4 // 2 + 1).astype(str), Metadata_Object=(place % 2 + 1).astype(str)
    )
    noise = np.linspace(0, 1, len(four), dtype=np.float32)[:, None]
    return Profiles(features=four.features + noise, names=four.names, metadata=metadata)


def same(a, b):
    """Equal features, bit for bit, and equal values of the columns that both have."""
    assert a.names == b.names
    np.testing.assert_array_equal(a.features, b.features.astype(np.float32))  # text is read wide
    for column in a.metadata:
        left = a.metadata[column].fillna("") if a.metadata[column].dtype == object else None
        if left is None:
            np.testing.assert_array_equal(a.metadata[column], b.metadata[column])
        else:
            assert list(left) == list(b.metadata[column].fillna(""))


@pytest.mark.parametrize("suffix", ["parquet", "csv.gz", "h5ad", "zarr"])
@pytest.mark.parametrize("layout", ["mantispy", "cell-painting-io"])
def test_what_was_written_is_read_back(suffix, layout, tmp_path):
    if layout != "mantispy" and suffix in ("parquet", "csv.gz"):
        pytest.skip("these know one layout")
    profiles = wells()
    out = tmp_path / f"p.{suffix}"
    export_profiles(profiles, out, layout=layout)
    same(profiles, read_profiles(out))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(InputError, match="exists"):
        export_profiles(profiles, out)


def test_the_wide_table_is_metadata_first_and_float32(tmp_path):
    export_profiles(wells(), tmp_path / "p.parquet")
    table = pd.read_parquet(tmp_path / "p.parquet")
    is_told = [c.startswith("Metadata_") for c in table]
    assert is_told == sorted(is_told, reverse=True)
    assert {table[c].dtype for c in table if c.startswith("erm_")} == {np.dtype("float32")}
    assert list(table["Metadata_Plate"].unique()) == ["000", "001"]


def test_pycytominer_takes_the_table_with_the_line_that_we_print(tmp_path):
    pycytominer = pytest.importorskip("pycytominer")
    hint = export_profiles(wells(), tmp_path / "p.parquet")
    assert FEATURES in hint
    profiles = pd.read_parquet(tmp_path / "p.parquet")
    found = pycytominer.normalize(
        profiles, samples="Metadata_ControlType == 'negcon'", method="standardize",
        **eval(f"dict({FEATURES})", {"profiles": profiles}),
    )  # fmt: skip
    told = [c for c in profiles if c.startswith("Metadata_")]
    pd.testing.assert_frame_equal(found[told], profiles[told])
    x = profiles.filter(like="erm_").to_numpy()
    control = (profiles["Metadata_ControlType"] == "negcon").to_numpy()
    expected = (x - x[control].mean(0)) / x[control].std(0)
    np.testing.assert_allclose(found.filter(like="erm_"), expected, rtol=1e-4)


def test_copairs_takes_the_table(tmp_path):
    copairs_map = pytest.importorskip("copairs.map")
    export_profiles(wells(), tmp_path / "p.parquet")
    table = pd.read_parquet(tmp_path / "p.parquet")
    treated = table[table["Metadata_ControlType"] == "trt"].reset_index(drop=True)
    found = copairs_map.average_precision(
        treated.filter(like="Metadata_"),
        treated.filter(like="erm_").to_numpy(),
        pos_sameby=["Metadata_Treatment"],
        pos_diffby=[],
        neg_sameby=[],
        neg_diffby=["Metadata_Treatment"],
    )
    assert len(found) == len(treated)
    assert (found["Metadata_Well"].to_numpy() == treated["Metadata_Well"].to_numpy()).all()


def test_scanpy_takes_the_file_and_its_types_are_those_of_mantispy(tmp_path):
    scanpy = pytest.importorskip("scanpy")
    profiles = wells()
    export_profiles(profiles, tmp_path / "p.h5ad", mechanism="Metadata_Label")
    data = scanpy.read_h5ad(tmp_path / "p.h5ad")
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, profiles.features)
    assert data.obs.index.name == "well"
    assert data.obs_names[0] == "000:A01"
    assert data.obs_names.is_unique
    assert data.var.index.name is None
    assert list(data.var.columns) == [
        "object", "feature_group", "feature", "channel", "radial_bin", "params",
        "scale", "angle", "gray_levels", "is_feature", "feature_kind",
    ]  # fmt: skip
    for column in data.var.columns[:6]:
        assert isinstance(data.var[column].dtype, pd.CategoricalDtype)
        assert data.var[column].isna().all()
    assert data.var["is_feature"].dtype == bool
    assert data.var["is_feature"].all()
    assert set(data.var["feature_kind"]) == {"embedding"}
    stamp = data.uns["mantispy"]
    assert (stamp["schema_version"], stamp["resolution"]) == ("2.0", "well")
    assert list(stamp["grouped_by"]) == ["Metadata_Plate", "Metadata_Well"]
    assert stamp["perturbation"] == {"column": "Metadata_Perturbation"}
    assert set(data.obs["Metadata_Control_Type"]) == {"negcon", "treatment"}
    control = data.obs["Metadata_Control"]
    assert control.dtype == bool
    assert (control == (profiles.metadata["Metadata_ControlType"] == "negcon").to_numpy()).all()
    assert list(data.obs["Metadata_Perturbation"]) == list(profiles.metadata["Metadata_Treatment"])
    assert data.obs["Metadata_MOA"].iloc[2] == "m-x"
    scanpy.pp.pca(data, n_comps=2)


@pytest.mark.parametrize("level", ["cell", "well", "treatment"])
def test_mantispy_validates_the_layout(level):
    validate = pytest.importorskip("mantispy.io", reason="needs Python 3.12").validate
    profiles = {
        "cell": cells(wells()), "well": wells(), "treatment": aggregate(wells(), "treatment"),
    }[level]  # fmt: skip
    found = validate(to_anndata(profiles, mechanism="Metadata_Label"))
    assert not found.errors
    assert not found.warnings


def test_the_layout_of_cell_painting_io():
    data = to_anndata(wells(), layout="cell-painting-io")
    assert {"Plate", "Well", "Treatment"} <= set(data.obs.columns)
    assert not any(c.startswith("Metadata_") for c in data.obs)
    assert isinstance(data.obs["Plate"].dtype, pd.StringDtype)
    assert data.var.index.name == "feature"
    assert data.obs.index.name == "well"
    assert list(data.var.columns) == [
        "compartment", "family", "channel", "channel_2", "n_channels",
    ]  # fmt: skip
    assert data.var["n_channels"].dtype == np.int8
    assert not data.uns


@pytest.mark.parametrize("layout", ["mantispy", "cell-painting-io"])
def test_anndata_in_memory_comes_back(layout):
    profiles = wells()
    same(profiles, from_anndata(to_anndata(profiles, layout=layout)))
    bare = to_anndata(profiles, layout=layout)
    bare.obs = bare.obs[[]]
    with pytest.raises(InputError, match="names neither plate and well nor a treatment"):
        from_anndata(bare)


def test_rows_are_named_by_what_they_are():
    some = cells(wells())
    assert to_anndata(some).obs_names[1] == "000:A01:1:2"
    assert to_anndata(some).uns["mantispy"]["resolution"] == "object"
    image = to_anndata(some).obs[["Metadata_ImageID", "Metadata_ObjectNumber"]]
    assert not image.duplicated().any()
    sites = some[(some.metadata["Metadata_Object"] == "1").to_numpy()]
    sites.metadata["Metadata_Object"] = "0"
    assert to_anndata(sites).obs_names[1] == "000:A01:2"
    treatments = wells()[np.array([0, 2, 4])]
    treatments = Profiles(
        features=treatments.features, names=treatments.names,
        metadata=treatments.metadata[["Metadata_Treatment"]],
    )  # fmt: skip
    data = to_anndata(treatments)
    assert list(data.obs_names) == ["DMSO", "x", "y"]
    assert data.uns["mantispy"]["resolution"] == "aggregate"
    assert data.uns["mantispy"]["grouped_by"] == ["Metadata_Perturbation"]
    two = wells(Metadata_Source=["1"] * 8 + ["2"] * 8, Metadata_Plate="p")
    assert to_anndata(two).obs_names[8] == "2:p:A01"
    with pytest.raises(InputError, match=r"8 name\(s\) of rows are not unique: 1:p:A01"):
        to_anndata(wells(Metadata_Plate="p", Metadata_Source="1"))


def test_mixed_words_and_numbers_survive(tmp_path):
    profiles = wells(Metadata_Note=[3, "b", None, True] * 4, Metadata_Flag=[True, None] * 8)
    export_profiles(profiles, tmp_path / "p.h5ad")
    found = read_profiles(tmp_path / "p.h5ad").metadata
    assert list(found["Metadata_Note"][:3]) == ["3", "b", ""]


def test_deep_profilers_folders_are_read_by_us_and_by_pycytominer(tmp_path):
    some = cells(wells())
    export_profiles(some, tmp_path / "deep", format="deepprofiler")
    path = tmp_path / "deep" / "000" / "A01" / "1.npz"
    again = read_profiles(tmp_path / "deep")
    assert len(again) == len(some)
    own = (
        (some.metadata["Metadata_Plate"] == "000")
        & (some.metadata["Metadata_Well"] == "A01")
        & (some.metadata["Metadata_Site"] == "1")
    ).to_numpy()
    load = pytest.importorskip("pycytominer.cyto_utils").load_npz_features
    np.testing.assert_array_equal(load(str(path)).to_numpy(), some.features[own])


def test_folders_of_the_gallery(tmp_path):
    with pytest.raises(InputError, match="--identifier"):
        export_profiles(wells(), tmp_path / "g", format="gallery")
    export_profiles(wells(), tmp_path / "g", format="gallery", identifier="erm_s_1a2b")
    file = tmp_path / "g/workspace_dl/profiles/erm_s_1a2b/b1/001/001.parquet"
    same(wells()[slice(8, 16)], read_profiles(file))
    export_profiles(cells(wells()), tmp_path / "c", format="gallery", identifier="erm_s_1a2b")
    folder = tmp_path / "c/workspace_dl/embeddings/erm_s_1a2b/b1/000"
    assert len(read_profiles(folder / "A01-2" / "embedding.parquet")) == 2


def test_names_cannot_leave_the_folder(tmp_path):
    with pytest.raises(InputError, match="cannot name a folder"):
        export_profiles(
            wells(Metadata_Batch="../.."), tmp_path / "g", format="gallery", identifier="a_b_c"
        )
    assert not list(tmp_path.iterdir())


def test_what_a_format_needs_is_named(tmp_path):
    with pytest.raises(InputError, match="says no format"):
        export_profiles(wells(), tmp_path / "p.txt")
    with pytest.raises(InputError, match="no column Metadata_Site"):
        export_profiles(wells(), tmp_path / "d", format="deepprofiler")
    with pytest.raises(InputError, match="no column Metadata_MOA"):
        export_profiles(wells(), tmp_path / "p.h5ad", mechanism="Metadata_MOA")
    write_profiles(wells(), tmp_path / "p.parquet")


def test_anndata_without_the_columns_is_refused(tmp_path):
    anndata = pytest.importorskip("anndata")
    data = anndata.AnnData(X=np.ones((3, 2), np.float32))
    data.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError, match="names neither plate and well nor a treatment"):
        read_profiles(tmp_path / "p.h5ad")
