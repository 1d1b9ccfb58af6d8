"""Tables of profiles: read from what the field writes, written for what the field reads."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.profiles import read_profiles, write_profiles
from evenfield.errors import EvenfieldWarning, InputError, StorageError
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def real(test):
    """A test on the tables that lie beside the checkout."""
    absent = not (REAL / "bbbc021_profiles").is_dir()
    skip = pytest.mark.skipif(absent, reason="no real tables beside the checkout")
    return pytest.mark.real(skip(test))


def wide(n=6, **columns):
    """A small table as CellProfiler and pycytominer leave it."""
    rng = numpy_generator(0, "wide")
    table = pd.DataFrame(
        {
            "Metadata_Plate": ["007"] * n,
            "Metadata_Well": [f"{'AB'[i % 2]}{i + 1}" for i in range(n)],
            "Metadata_pert_type": ["control" if i == 0 else "trt" for i in range(n)],
            "Metadata_control_type": ["negcon" if i == 0 else "" for i in range(n)],
            "Metadata_Concentration": np.linspace(0, 10, n),
            "Cells_AreaShape_Area": rng.normal(size=n),
            "Nuclei_Texture_Mean": rng.normal(size=n),
        }
    )
    return table.assign(**columns)


def written(folder, table, name="t.parquet"):
    path = folder / name
    if name.endswith(".parquet"):
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.tsv"])
def test_reads_tables_in_the_form_of_the_house(tmp_path, name):
    profiles = read_profiles(written(tmp_path, wide(), name))
    assert profiles.names == ("Cells_AreaShape_Area", "Nuclei_Texture_Mean")
    np.testing.assert_allclose(profiles.features, wide()[list(profiles.names)], rtol=1e-12)
    told = profiles.metadata
    assert told.Metadata_Plate.tolist() == ["007"] * 6
    assert told.Metadata_Well.tolist() == ["A01", "B02", "A03", "B04", "A05", "B06"]
    assert told.Metadata_WellOriginal[0] == "A1"
    assert told.Metadata_ControlType.tolist() == ["negcon", *["trt"] * 5]
    assert told.Metadata_Concentration.dtype == float
    assert told.Metadata_Concentration[5] == 10


def test_identifiers_stay_as_they_are_written(tmp_path):
    table = wide(
        Metadata_Plate=["1e5", "007", "7", "BR1", "", "3"],
        Metadata_Batch=[1, 1, 1, 2, 2, 2],
        Metadata_barcode=["001", "002", "003", "004", "005", "006"],
    )
    for name in ("t.csv", "t.parquet"):
        told = read_profiles(written(tmp_path, table, name), repeated="keep").metadata
        assert told.Metadata_Plate.tolist() == ["1e5", "007", "7", "BR1", "", "3"]
        assert told.Metadata_Batch.tolist() == ["1", "1", "1", "2", "2", "2"]
        assert told.Metadata_barcode.tolist()[0] == "001"


@pytest.mark.parametrize("prefix", ["Image_Metadata_", "metadata_", "meta_", "Metadata_"])
def test_other_prefixes_become_metadata(tmp_path, prefix):
    table = wide()
    names = {c: prefix + c[9:].replace("Plate", "plate") for c in table if c.startswith("Meta")}
    told = read_profiles(written(tmp_path, table.rename(columns=names))).metadata
    assert {"Metadata_Plate", "Metadata_Well", "Metadata_ControlType"} <= set(told.columns)


def test_one_column_in_two_spellings_must_say_the_same(tmp_path):
    table = wide(Image_Metadata_Plate=["007"] * 6)
    assert read_profiles(written(tmp_path, table)).metadata.Metadata_Plate[0] == "007"
    with pytest.raises(InputError, match="2 different columns that read as Metadata_Plate"):
        read_profiles(written(tmp_path, wide(Image_Metadata_Plate=["8"] * 6)))


def test_float32_stays_and_everything_else_is_float64(tmp_path):
    table = wide().astype({"Cells_AreaShape_Area": "f4", "Nuclei_Texture_Mean": "f4"})
    assert read_profiles(written(tmp_path, table)).features.dtype == np.float32
    mixed = wide(Cells_Count=np.arange(6)).astype({"Nuclei_Texture_Mean": "f4"})
    assert read_profiles(written(tmp_path, mixed)).features.dtype == np.float64


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_is_refused_by_name_or_kept(tmp_path, name, value):
    table = wide()
    table.loc[2, "Nuclei_Texture_Mean"] = value
    path = written(tmp_path, table, name)
    with pytest.raises(InputError, match=r"1 row\(s\) hold NaN .*1 feature.*Nuclei_Texture_Mean"):
        read_profiles(path)
    kept = read_profiles(path, missing="keep").features
    assert not np.isfinite(kept[2, 1])


def test_words_among_the_features_are_refused_by_name(tmp_path):
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(InputError, match=r"1 column\(s\) without Metadata_ .*smiles.*'CCO'"):
            read_profiles(written(tmp_path, wide(smiles=["CCO"] * 6), name))
    mixed = wide(Cells_Odd=["1.5", "2", "x", "4", "5", "6"])
    with pytest.raises(InputError, match="Cells_Odd"):
        read_profiles(written(tmp_path, mixed, "t.csv"))
    with pytest.raises(InputError, match="Cells_Flag"):
        read_profiles(written(tmp_path, wide(Cells_Flag=[True] * 6)))


def test_repeated_wells_are_refused_by_name_or_kept(tmp_path):
    path = written(tmp_path, wide(Metadata_Well=["A1", "A01", "A2", "A3", "A4", "A5"]))
    with pytest.raises(InputError, match=r"1 row\(s\) repeat the Plate, Well .*007, A01"):
        read_profiles(path)
    assert len(read_profiles(path, repeated="keep")) == 6
    sites = wide(Metadata_Well=["A1"] * 6, Metadata_Site=range(6))
    assert read_profiles(written(tmp_path, sites)).metadata.Metadata_Site.tolist()[5] == "5"


def test_a_name_that_is_no_well_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"1 name\(s\) in Metadata_Well are no wells: A0"):
        read_profiles(written(tmp_path, wide(Metadata_Well=["A0", *wide().Metadata_Well[1:]])))


@pytest.mark.parametrize(
    "table",
    [wide().iloc[:0], wide()[["Metadata_Plate", "Metadata_Well"]]],
    ids=["no row", "no feature"],
)
def test_tables_without_rows_or_features_are_refused(tmp_path, table):
    with pytest.raises(InputError, match=r"has \d rows and \d features"):
        read_profiles(written(tmp_path, table))


def test_positions_are_no_features(tmp_path):
    table = wide(
        Cells_Location_Center_X=1.0, Nuclei_AreaShape_BoundingBoxMaximum_Y=2.0, ImageNumber=3
    )
    path = written(tmp_path, table)
    with pytest.warns(EvenfieldWarning, match=r"3 column\(s\) tell positions"):
        profiles = read_profiles(path)
    assert profiles.names == ("Cells_AreaShape_Area", "Nuclei_Texture_Mean")
    assert profiles.metadata.Metadata_Cells_Location_Center_X[0] == 1
    write_profiles(profiles, tmp_path / "again.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once: what was written has none among its features
        assert read_profiles(tmp_path / "again.parquet").names == profiles.names
    kept = read_profiles(path, positions="keep")
    assert "ImageNumber" in kept.names


def test_the_row_numbers_that_pandas_writes_are_no_feature(tmp_path):
    wide().to_csv(tmp_path / "t.csv")
    with pytest.warns(EvenfieldWarning, match="Unnamed: 0"):
        assert len(read_profiles(tmp_path / "t.csv").names) == 2


def test_several_tables_are_joined_by_the_names_of_features(tmp_path):
    one = wide()
    two = wide(Metadata_Plate=["8"] * 6, Cells_Extra=1.0)[[*one.columns[::-1], "Cells_Extra"]]
    paths = [written(tmp_path, one, "one.csv"), written(tmp_path, two, "two.parquet")]
    with pytest.warns(EvenfieldWarning, match=r"1 feature\(s\) are not in all of them"):
        both = read_profiles(paths)
    assert len(both) == 12
    np.testing.assert_allclose(both.features[6:], both.features[:6])
    assert both.metadata.Metadata_Plate.tolist() == ["007"] * 6 + ["8"] * 6


@pytest.mark.parametrize("name", ["absent.parquet", "table.xlsx", "broken.parquet", "broken.h5ad"])
def test_what_cannot_be_read_is_said(tmp_path, name):
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=name.split(".")[0]):
        read_profiles(tmp_path / name)


def anndata_of(layout):
    """The two layouts that are in use: with the prefix in obs, and stripped of it."""
    anndata = pytest.importorskip("anndata")
    table = wide().astype({"Metadata_Plate": "category"})
    x = table[["Cells_AreaShape_Area", "Nuclei_Texture_Mean"]].to_numpy(np.float32)
    obs = table.drop(columns=["Cells_AreaShape_Area", "Nuclei_Texture_Mean"])
    index = [f"007:{well}" for well in obs.Metadata_Well]
    var = pd.DataFrame(index=["Cells_AreaShape_Area", "Nuclei_Texture_Mean"])
    if layout == "stripped":
        obs.columns = [c.removeprefix("Metadata_") for c in obs.columns]
        var.index.name = "feature"
    else:
        var["is_feature"] = [True, True]
    obs.index = pd.Index(index)
    return anndata.AnnData(x, obs=obs, var=var)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("layout", ["kept", "stripped"])
def test_reads_both_layouts_of_anndata(tmp_path, layout, suffix):
    data = anndata_of(layout)
    path = tmp_path / f"profiles{suffix}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(zarr|anndata).*")
        (data.write_h5ad if suffix == ".h5ad" else data.write_zarr)(path)
        profiles = read_profiles(path)
    plain = read_profiles(written(tmp_path, wide()))
    assert profiles.names == plain.names
    assert profiles.features.dtype == np.float32
    np.testing.assert_allclose(profiles.features, plain.features, rtol=1e-6)
    for column in ("Metadata_Plate", "Metadata_Well", "Metadata_ControlType"):
        assert profiles.metadata[column].tolist() == plain.metadata[column].tolist()


def test_anndata_marks_columns_that_are_no_features_and_may_be_sparse(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    data = anndata_of("kept")
    data.var["is_feature"] = [True, False]
    data.X = sparse.csr_matrix(data.X)
    data.write_h5ad(tmp_path / "p.h5ad")
    profiles = read_profiles(tmp_path / "p.h5ad")
    assert profiles.names == ("Cells_AreaShape_Area",)
    assert "Metadata_Nuclei_Texture_Mean" in profiles.metadata


def test_anndata_without_the_columns_is_refused(tmp_path):
    data = anndata_of("kept")
    data.obs = data.obs[["Metadata_Concentration"]]
    data.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError, match=r"neither plate and well .*Metadata_Concentration"):
        read_profiles(tmp_path / "p.h5ad")


@pytest.mark.parametrize("gallery", [False, True])
def test_reads_folders_of_deep_profiler(tmp_path, gallery):
    for plate, well, site, cells in (("P1", "A01", "1", 3), ("P1", "B02", "2", 2)):
        folder = tmp_path / ("batch7" if gallery else "") / plate / well
        path = folder / site / "embedding.npz" if gallery else folder / f"{site}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = np.full((cells, 4), float(site), dtype=np.float32)
        np.savez(path, features=x, metadata=np.array({"a": 1}, dtype=object))
    profiles = read_profiles(tmp_path)
    assert profiles.features.shape == (5, 4)
    assert profiles.names[3] == "DeepProfiler_3"
    told = profiles.metadata
    assert told.Metadata_Well.tolist() == ["A01"] * 3 + ["B02"] * 2
    assert told.Metadata_Object.tolist() == ["0", "1", "2", "0", "1"]
    assert told.Metadata_Site.tolist() == ["1"] * 3 + ["2"] * 2
    if gallery:
        assert set(told.Metadata_Batch) == {"batch7"}


def test_folders_without_profiles_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \.npz file"):
        read_profiles(tmp_path)
    np.savez(tmp_path / "lone.npz", features=np.ones((2, 2)))
    with pytest.raises(InputError, match=r"does not lie in plate/well/site\.npz"):
        read_profiles(tmp_path)


@pytest.mark.parametrize("name", ["out.parquet", "out.csv.gz"])
def test_what_is_written_reads_back(tmp_path, name):
    first = read_profiles(written(tmp_path, wide()))
    write_profiles(first, tmp_path / "deep" / name)
    again = read_profiles(tmp_path / "deep" / name)
    assert again.names == first.names
    np.testing.assert_array_equal(
        again.features.astype(np.float32), first.features.astype(np.float32)
    )
    pd.testing.assert_frame_equal(again.metadata, first.metadata, check_dtype=False)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [name]


def test_metadata_comes_first_and_features_are_float32(tmp_path):
    profiles = read_profiles(written(tmp_path, wide()))
    write_profiles(profiles, tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet")
    told = [column.startswith("Metadata_") for column in table]
    assert told == sorted(told, reverse=True)
    assert {str(table[name].dtype) for name in profiles.names} == {"float32"}


def test_equal_profiles_give_equal_csv_bytes(tmp_path):
    profiles = read_profiles(written(tmp_path, wide()))
    for name in ("a.csv.gz", "b.csv.gz"):
        write_profiles(profiles, tmp_path / name)
    texts = [gzip.decompress((tmp_path / f"{n}.csv.gz").read_bytes()) for n in "ab"]
    assert texts[0] == texts[1]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    profiles = read_profiles(written(tmp_path, wide()))
    with pytest.raises(InputError, match=r"out\.xlsx is no kind of table"):
        write_profiles(profiles, tmp_path / "out.xlsx")
    bad = Profiles(
        features=profiles.features,
        names=profiles.names,
        metadata=profiles.metadata.rename(columns={"Metadata_Plate": "Plate"}),
    )
    with pytest.raises(InputError, match="do not start with Metadata_: Plate"):
        write_profiles(bad, tmp_path / "out.parquet")
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(StorageError):
        write_profiles(profiles, tmp_path / "taken.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "taken.parquet"]


@settings(deadline=None, max_examples=15)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=5),
    plate=st.text("abc019_.-", min_size=1, max_size=5),
)
def test_any_float32_and_any_plate_survive_both_files(tmp_path_factory, values, plate):
    folder = tmp_path_factory.mktemp("any")
    n = len(values)
    metadata = pd.DataFrame(
        {"Metadata_Plate": [plate] * n, "Metadata_Well": [f"A{i + 1:02d}" for i in range(n)]}
    )
    x = np.array(values, dtype=np.float32)[:, None]
    profiles = Profiles(features=x, names=("Model_0",), metadata=metadata)
    for name in ("p.parquet", "p.csv.gz"):
        write_profiles(profiles, folder / name)
        again = read_profiles(folder / name)
        np.testing.assert_array_equal(again.features.astype(np.float32), x)
        assert again.metadata.Metadata_Plate.tolist() == [plate] * n


def test_pycytominer_reads_what_is_written(tmp_path):
    pycytominer = pytest.importorskip("pycytominer")
    profiles = read_profiles(written(tmp_path, wide()))
    write_profiles(profiles, tmp_path / "out.parquet")
    out = pycytominer.normalize(
        str(tmp_path / "out.parquet"),
        features=list(profiles.names),
        method="standardize",
    )
    x = profiles.features
    np.testing.assert_allclose(
        out[list(profiles.names)], (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5
    )


@real
@pytest.mark.parametrize("positions", ["leave", "keep"])
def test_the_real_table_of_bbbc021(positions):
    path = REAL / "bbbc021_profiles" / "bbbc021_wells.parquet"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvenfieldWarning)
        profiles = read_profiles(path, positions=positions)
    assert profiles.features.shape == (632, 516 if positions == "keep" else 462)
    assert (profiles.metadata.Metadata_ControlType == "negcon").sum() == 330
    assert profiles.metadata.Metadata_Plate.nunique() == 55


@real
def test_the_real_plates_of_cpjump1():
    paths = sorted((REAL / "cpjump1_profiles").glob("BR*.csv.gz"))[:2]
    profiles = read_profiles(paths, positions="keep")
    assert profiles.features.shape == (768, 904)
    assert profiles.metadata.Metadata_ControlType.value_counts()["negcon"] == 128
    assert profiles.metadata.Metadata_ControlType.value_counts()["poscon"] > 0
