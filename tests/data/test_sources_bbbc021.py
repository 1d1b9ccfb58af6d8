from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from evenfield.data.ingest import ingest
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest
from evenfield.data.sources import SOURCES
from evenfield.errors import EvenfieldWarning, InputError

Config = SOURCES["bbbc021"].Config
REAL = Path(__file__).parents[2] / ".." / "shared" / "data"
CROPS = REAL / "bbbc021_cells_10weeks"
FIELDS = REAL / "bbbc021_fov" / "raw_tiff_Week2_24381_B02_DMSO"
TABLES = REAL / "bbbc021_profiles"
real = [
    pytest.mark.real,
    pytest.mark.skipif(not CROPS.is_dir(), reason="no real BBBC021 data beside the checkout"),
]


def listing(folder, **options):
    return SOURCES["bbbc021"](Config(folder=folder, **options)).listing()


def official(folder, num=4):
    """The official layout in small: two weeks, three compounds."""
    rows = []
    for i in range(num):
        week, well = f"Week{i % 2 + 1}", f"{'BC'[i // 2]}02"
        plate = f"{week}_221{i % 2}"
        row = {
            "TableNumber": 0,
            "ImageNumber": i,
            "Image_Metadata_Plate_DAPI": plate,
            "Image_Metadata_Well_DAPI": well,
            "Replicate": 1,
            "Image_Metadata_Compound": ["DMSO", "taxol", "taxol", "unknown"][i],
            "Image_Metadata_Concentration": [0, 0.3, 9, 0.1][i],
        }
        for number, channel in ((1, "DAPI"), (2, "Tubulin"), (4, "Actin")):
            name = f"{well}_s1_w{number}ABC{i}.tif"
            row |= {f"Image_FileName_{channel}": name, f"Image_PathName_{channel}": plate}
            (folder / plate).mkdir(parents=True, exist_ok=True)
            pixels = np.arange(30, dtype=np.uint16).reshape(5, 6) + 100 * number + i
            tifffile.imwrite(folder / plate / name, pixels)
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "BBBC021_v1_image.csv", index=False)
    moa = {"compound": ["taxol", "DMSO"], "concentration": ["0.300000", 0], "moa": ["Mt", "DMSO"]}
    pd.DataFrame(moa).to_csv(folder / "BBBC021_v1_moa.csv", index=False)


def test_official_layout(tmp_path):
    official(tmp_path)
    found = listing(tmp_path)
    manifest = prepare_manifest(found.manifest)
    assert found.channels == ("DAPI", "Tubulin", "Actin")
    assert [int(found.read(2)[c, 0, 0]) for c in range(3)] == [102, 202, 402]
    assert manifest.Metadata_Batch.tolist() == ["Week1", "Week2"] * 2
    assert manifest.Metadata_ControlType.tolist() == ["negcon", "poscon", "poscon", "trt"]
    assert manifest.Metadata_Label.tolist() == ["", "Mt", "", ""]
    assert manifest.Metadata_Treatment.tolist() == ["DMSO", "taxol@0.3", "taxol@9", "unknown@0.1"]
    assert manifest.Metadata_Site.tolist() == ["1"] * 4


def test_tables_that_are_not_there_or_not_official(tmp_path):
    with pytest.raises(InputError, match=r"no BBBC021_v1_image\.csv"):
        listing(tmp_path)
    official(tmp_path)
    (tmp_path / "BBBC021_v1_moa.csv").write_text("compound,moa\n")
    with pytest.raises(InputError, match="lacks concentration"):
        listing(tmp_path)


def archive(folder, num=6):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4000, (num, 8, 9, 3)).astype(np.uint16)
    np.savez_compressed(folder / "crops.npz", X=pixels)
    pd.DataFrame(
        {
            "index": range(num), "week": "Week1", "plate": "Week1_1", "well": "B02", "site": 1,
            "replicate": 1, "compound": "DMSO", "concentration": 0.0, "moa": "DMSO",
            "cell_in_image": range(num),
        }
    ).to_csv(folder / "metadata.csv", index=False)  # fmt: skip
    return pixels


def test_crop_archive_keeps_raw_values_and_goes_by_name(tmp_path):
    pixels = archive(tmp_path)
    found = listing(tmp_path)
    manifest = prepare_manifest(found.manifest)
    stored = np.stack([found.read(row) for row in range(6)])
    np.testing.assert_array_equal(stored, np.moveaxis(pixels[..., [0, 2, 1]], 3, 1))
    assert manifest.Metadata_Object.tolist() == list("012345")
    assert set(manifest.Metadata_Label) == {""}
    assert set(manifest.Metadata_ControlType) == {"negcon"}


def test_damaged_archives_are_told(tmp_path):
    archive(tmp_path)
    pd.read_csv(tmp_path / "metadata.csv")[:4].to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(InputError, match="expected 4 crops"):
        listing(tmp_path)
    whole = (tmp_path / "crops.npz").read_bytes()
    (tmp_path / "crops.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        listing(tmp_path)


class TestReal:
    pytestmark = real

    def test_crops_of_ten_weeks(self, tmp_path):
        screen = ingest("bbbc021", Config(folder=CROPS), tmp_path / "s", workers=1)
        manifest = screen.manifest
        assert screen.shape == (3, 68, 68)
        assert screen.dtype == np.uint16
        assert manifest.Metadata_Batch.nunique() == 10
        assert manifest.Metadata_Plate.nunique() == 55
        assert manifest.Metadata_Label.replace("", np.nan).nunique() == 12
        assert (manifest.Metadata_ControlType == "negcon").sum() == 127
        assert (manifest.Metadata_ControlType == "poscon").sum() == 867
        with np.load(CROPS / "crops.npz") as original:
            for row in (0, 1000, 2140):
                raw = np.moveaxis(original["X"][row], 2, 0)
                np.testing.assert_array_equal(screen.pixels[row], raw[[0, 2, 1]])
        found = {finding["check"]: finding["units"] for finding in screen.info["findings"]}
        assert found["label-in-one-domain"] == ["Cholesterol-lowering", "Kinase inhibitors"]
        assert len(found["no-controls"]) == 9

    def test_eight_raw_tiffs(self, tmp_path):
        config = Config(folder=FIELDS, tables=TABLES, subset="present")
        with pytest.raises(InputError, match=r"1 of 3 images.*\n.*B02_s3_w4"):
            ingest("bbbc021", config, tmp_path / "s", workers=1)
        assert not (tmp_path / "s").exists()
        config = Config(folder=FIELDS, tables=TABLES, subset="present", missing="skip")
        with pytest.warns(EvenfieldWarning, match="B02_s3_w4"):
            screen = ingest("bbbc021", config, tmp_path / "t", workers=1)
        assert screen.shape == (3, 1024, 1280)
        assert screen.manifest.Metadata_Site.tolist() == ["1", "2"]
        for channel, name in enumerate(("w1648", "w2B9D", "w4CE5")):
            (path,) = FIELDS.glob(f"*_s1_{name}*")
            np.testing.assert_array_equal(screen.pixels[0, channel], tifffile.imread(path))

    def test_official_tables_are_whole(self):
        found = listing(FIELDS, tables=TABLES)
        manifest = prepare_manifest(found.manifest)
        assert len(manifest) == 13200
        assert manifest.Metadata_Plate.nunique() == 55
        labelled = manifest[manifest.Metadata_Label != ""]
        assert labelled.Metadata_Treatment.nunique() == 103
        assert labelled.Metadata_Label.nunique() == 12
        assert (manifest.Metadata_ControlType == "negcon").sum() == 330 * 4
        errors = [f for f in check_manifest(manifest, Roles()) if f.severity == "error"]
        assert errors == []


@pytest.mark.real
@pytest.mark.skipif(not CROPS.is_dir(), reason="no real BBBC021 data beside the checkout")
def test_taxol_task_never_scores_a_control():
    whole, task = listing(CROPS), listing(CROPS, task="taxol")
    manifest = prepare_manifest(task.manifest)
    control = manifest["Metadata_ControlType"] == "negcon"
    assert set(manifest["Metadata_Label"][~control]) == {"taxol", "DMSO"}
    assert set(manifest["Metadata_Label"][control].fillna("")) == {""}
    assert (manifest["Metadata_Compound"][control] == "DMSO").all()
    key = ["Metadata_Plate", "Metadata_Well"]
    wells = [set(map(tuple, manifest.loc[side, key].to_numpy())) for side in (control, ~control)]
    assert not wells[0] & wells[1]
    for _, week in manifest.groupby("Metadata_Batch"):
        kind = week["Metadata_ControlType"] == "negcon"
        assert kind.any()
        assert ((week["Metadata_Label"] == "DMSO") & ~kind).any()
    taxol = np.flatnonzero(whole.manifest["Metadata_Compound"] == "taxol")
    first = int(np.flatnonzero(manifest["Metadata_Compound"] == "taxol")[0])
    np.testing.assert_array_equal(task.read(first), whole.read(int(taxol[0])))
