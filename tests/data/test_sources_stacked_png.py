import imagecodecs
import numpy as np
import pandas as pd
import pytest

from evenfield.data.ingest import ingest
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest
from evenfield.data.sources import SOURCES
from evenfield.errors import EvenfieldWarning, InputError

Config = SOURCES["stacked-png"].Config
STACK = ["DNA", "AGP", "ER", "Mito", "RNA"]
WELLS = {"A01": ("JCP2022_000001", "CDK inhibitor"), "A02": ("JCP2022_033924", ""),
         "B01": ("JCP2022_000002", "")}  # fmt: skip


@pytest.fixture
def coda(tmp_path):
    """Two plates in CODA's layout: an index column first, one row a site."""
    rng, rows = np.random.default_rng(0), []
    for plate in ("JCPQC016", "0123"):
        for well, (jcp, moa) in WELLS.items():
            for site in (1, 2):
                parts = rng.integers(0, 256, (5, 6, 6)).astype(np.uint8)
                parts[:, 0, 0] = 10 * len(rows) + np.arange(5)
                (tmp_path / plate).mkdir(exist_ok=True)
                raw = imagecodecs.png_encode(np.concatenate(parts, axis=1))
                (tmp_path / plate / f"{well}_{site}.png").write_bytes(raw)
                rows.append(
                    {
                        "moa_id": 0 if moa else -1,
                        "Metadata_moa": moa,
                        "Metadata_Plate": plate,
                        "paths": f"{well}_{site}.png",
                        "split": "train",
                        "JCP2022_id": jcp,
                        "Metadata_Source": "source_3",
                        "Metadata_Batch": f"batch of {plate}",
                    }
                )
    pd.DataFrame(rows).to_csv(tmp_path / "sites.csv")
    return tmp_path


def listing(folder, **options):
    config = Config(folder=folder, table=folder / "sites.csv", **options)
    return SOURCES["stacked-png"](config).listing()


def test_stack_and_table(coda):
    found = listing(coda)
    manifest = prepare_manifest(found.manifest)
    assert found.channels == tuple(STACK)
    assert manifest.Metadata_Plate.tolist() == ["JCPQC016"] * 6 + ["0123"] * 6
    assert manifest.Metadata_Well.tolist() == ["A01", "A01", "A02", "A02", "B01", "B01"] * 2
    assert manifest.Metadata_Site.tolist() == ["1", "2"] * 6
    assert manifest.Metadata_Label.tolist() == (["CDK inhibitor"] * 2 + [""] * 4) * 2
    assert (
        manifest.Metadata_ControlType.tolist() == (["trt"] * 2 + ["negcon"] * 2 + ["trt"] * 2) * 2
    )
    assert manifest.Metadata_Treatment[0] == manifest.Metadata_JCP2022[0] == "JCP2022_000001"
    assert manifest.Metadata_Split[0] == "train"
    for row in (0, 7):
        assert found.read(row).shape == (5, 6, 6)
        assert found.read(row)[:, 0, 0].tolist() == (10 * row + np.arange(5)).tolist()
    assert [f for f in check_manifest(manifest, Roles()) if f.severity == "error"] == []


def test_the_three_channels_of_coda_go_by_name(coda):
    found = listing(coda, channels=("RNA", "Hoechst", "AGP"))
    assert found.channels == ("RNA", "Hoechst", "AGP")
    assert found.read(1)[:, 0, 0].tolist() == [14, 10, 11]
    with pytest.raises(InputError, match="the stack has no channel Golgi"):
        listing(coda, channels=("Golgi",))


def test_unannotated_sites_drop_as_in_coda(coda, tmp_path):
    config = Config(folder=coda, table=coda / "sites.csv", unannotated="drop")
    with pytest.warns(EvenfieldWarning, match="8 of 12 sites have no mechanism"):
        screen = ingest("stacked-png", config, tmp_path / "out", workers=1)
    assert set(screen.manifest.Metadata_Label) == {"CDK inhibitor"}
    np.testing.assert_array_equal(screen.pixels[3], listing(coda).read(7))


def test_a_mechanism_that_is_missing_in_a_parquet_table_is_no_class(coda):
    table = pd.read_csv(coda / "sites.csv", dtype=str, keep_default_na=False)
    bare = table["Metadata_moa"] == ""
    table.assign(Metadata_moa=table["Metadata_moa"].where(~bare, None)).to_parquet(
        coda / "sites.parquet"
    )
    config = Config(folder=coda, table=coda / "sites.parquet")
    found = SOURCES["stacked-png"](config).listing().manifest
    pd.testing.assert_frame_equal(found, listing(coda).manifest)


def test_a_table_of_wells_and_sites_needs_no_paths(coda):
    table = pd.read_csv(coda / "sites.csv", dtype=str, keep_default_na=False)
    whole = listing(coda).manifest
    table["Metadata_Well"], table["Metadata_Site"] = whole.Metadata_Well, whole.Metadata_Site
    table.drop(columns="paths").to_csv(coda / "sites.csv", index=False)
    assert listing(coda).read(5)[0, 0, 0] == 50
    table.drop(columns=["paths", "Metadata_Site"]).to_csv(coda / "sites.csv", index=False)
    with pytest.raises(InputError, match="names neither `paths` nor"):
        listing(coda)


def test_files_that_are_missing_or_no_stack(coda):
    with pytest.raises(InputError, match="30 pixels are no 4 images side by side"):
        listing(coda, stack=tuple(STACK[:4])).read(0)
    (coda / "0123" / "A01_1.png").unlink()
    with pytest.raises(InputError, match=r"A01_1\.png"):
        listing(coda).read(6)
    left = listing(coda, missing="skip")
    assert len(left.manifest) == 11
    assert left.read(6)[0, 0, 0] == 70
    table = pd.read_csv(coda / "sites.csv", dtype=str).assign(paths="A01.png")
    table.to_csv(coda / "sites.csv", index=False)
    with pytest.raises(InputError, match=r"12 files are not called WELL_SITE\.png"):
        listing(coda)
