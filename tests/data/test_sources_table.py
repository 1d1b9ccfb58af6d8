import os
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile

from evenfield.config import from_dict, to_dict
from evenfield.data.platemap import join_platemap
from evenfield.data.process import Process
from evenfield.data.sources import SOURCES
from evenfield.data.sources.table import canonical
from evenfield.errors import InputError

CHANNELS = ("DNA", "ER")
Config = SOURCES["table"].Config


def fields(num=4):
    return np.random.default_rng(7).integers(0, 60000, (num, 2, 12, 10)).astype(np.uint16)


def index(num=4):
    return pd.DataFrame(
        {
            "Metadata_Plate": ["0012"] * num,
            "Metadata_Well": [f"A{i // 2 + 1:02d}" for i in range(num)],
            "Metadata_Site": [str(i % 2 + 1) for i in range(num)],
            "Metadata_Compound": ["DMSO" if i < 2 else "taxol" for i in range(num)],
        }
    )


def tree(folder, pixels, table):
    for row, image in zip(table.itertuples(), pixels, strict=True):
        for channel, plane in zip(CHANNELS, image, strict=True):
            path = folder / row.Metadata_Plate / f"{row.Metadata_Well}_s{row.Metadata_Site}"
            path = path.with_name(f"{path.name}_{channel}.tif")
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, plane, compression="deflate")


def listing(**options):
    return SOURCES["table"](Config(**options)).listing()


def stack(found):
    return np.stack([found.read(row) for row in range(len(found.manifest))])


TEMPLATE = "{Metadata_Plate}/{Metadata_Well}_s{Metadata_Site}_{channel}.tif"


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet"])
def test_template_and_kinds_of_tables(tmp_path, kind):
    table, path = index(), tmp_path / f"index.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    tree(tmp_path, fields(), table)
    found = listing(table=path, channels=CHANNELS, template=TEMPLATE)
    np.testing.assert_array_equal(stack(found), fields())
    assert found.manifest.Metadata_Plate.tolist() == ["0012"] * 4
    assert found.manifest.Metadata_ControlType.tolist() == ["negcon"] * 2 + ["trt"] * 2


def test_channels_go_by_name(tmp_path):
    index().to_csv(tmp_path / "i.csv", index=False)
    tree(tmp_path, fields(), index())
    found = listing(table=tmp_path / "i.csv", channels=CHANNELS[::-1], template=TEMPLATE)
    np.testing.assert_array_equal(stack(found), fields()[:, ::-1])
    found = listing(
        table=tmp_path / "i.csv", channels=("e", "n"), tokens=("ER", "DNA"), template=TEMPLATE
    )
    np.testing.assert_array_equal(stack(found), fields()[:, ::-1])


@pytest.mark.parametrize("form", ["path", "url", "columns", "own", "absolute"])
def test_load_data_forms_give_the_same(tmp_path, form):
    table = index()
    tree(tmp_path, fields(), table)
    base = table.Metadata_Well + "_s" + table.Metadata_Site
    for channel in CHANNELS:
        file = base + f"_{channel}.tif"
        if form in ("path", "absolute"):
            table[f"FileName_Orig{channel}"] = file
            plate = table.Metadata_Plate
            table[f"PathName_Orig{channel}"] = (
                plate if form == "path" else str(tmp_path) + "/" + plate
            )
        elif form == "url":
            table[f"URL_Orig{channel}"] = "s3://bucket/" + table.Metadata_Plate + "/" + file
        else:
            table["my" * (form == "columns") + channel] = table.Metadata_Plate + "/" + file
    table = table.rename(columns={"Metadata_Well": "Image_Metadata_Well"})
    table.to_csv(tmp_path / "load_data.csv", index=False)
    options = {"columns": {"columns": ("myDNA", "myER"), "channels": CHANNELS},
               "own": {"channels": CHANNELS}}.get(form, {})  # fmt: skip
    found = listing(table=tmp_path / "load_data.csv", root=tmp_path, **options)
    assert found.channels == CHANNELS
    np.testing.assert_array_equal(stack(found), fields())
    assert "Metadata_Well" in found.manifest


@pytest.mark.parametrize("kind", ["CYX", "YXC", "separate", "png"])
def test_one_file_with_all_channels(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 12, 10)).astype(np.uint8)
    suffix = "png" if kind == "png" else "tif"
    for row, image in enumerate(pixels):
        path = tmp_path / f"f{row}.{suffix}"
        last = np.moveaxis(image, 0, 2)
        if kind == "png":
            path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(last)))
        elif kind == "YXC":
            tifffile.imwrite(path, last, photometric="rgb")
        elif kind == "separate":
            tifffile.imwrite(path, image, photometric="rgb", planarconfig="separate")
        else:
            tifffile.imwrite(path, image, metadata={"axes": "CYX"}, photometric="minisblack")
    index().assign(file=[f"f{row}.{suffix}" for row in range(4)]).to_csv(tmp_path / "i.csv")
    found = listing(table=tmp_path / "i.csv", channels=("a", "b", "c"), columns=("file",))
    np.testing.assert_array_equal(stack(found), pixels)
    found = listing(
        table=tmp_path / "i.csv", channels=("c", "a"), planes=("a", "b", "c"), columns=("file",)
    )
    np.testing.assert_array_equal(stack(found), pixels[:, [2, 0]])
    with pytest.raises(InputError, match="no channel x"):
        listing(table=tmp_path / "i.csv", channels=("x",), planes=("a", "b"), columns=("file",))
    found = listing(table=tmp_path / "i.csv", channels=("a", "b", "c", "d"), columns=("file",))
    with pytest.raises(InputError, match="does not hold 4 channels"):
        found.read(0)


def test_missing_files_are_an_error_or_named(tmp_path):
    index().to_csv(tmp_path / "i.csv", index=False)
    tree(tmp_path, fields(), index())
    os.unlink(tmp_path / "0012" / "A01_s2_ER.tif")
    options = {"table": tmp_path / "i.csv", "channels": CHANNELS, "template": TEMPLATE}
    found = listing(**options)
    with pytest.raises(InputError, match=r"A01_s2_ER\.tif: No such file"):
        found.read(1)
    found = listing(**options, missing="skip")
    assert len(found.manifest) == 3
    assert "A01_s2_ER.tif" in found.notes[0]
    np.testing.assert_array_equal(stack(found), fields()[[0, 2, 3]])
    with pytest.raises(InputError, match="no field has all its files"):
        listing(**options, missing="skip", root=tmp_path / "elsewhere")


def test_platemap_is_joined_many_to_one(tmp_path):
    table = index().drop(columns="Metadata_Compound")
    table.to_csv(tmp_path / "i.csv", index=False)
    pd.DataFrame({"well_position": ["a1", "A3"], "broad_sample": ["DMSO", "x"]}).to_csv(
        tmp_path / "map.txt", index=False, sep="\t"
    )
    found = listing(
        table=tmp_path / "i.csv",
        channels=CHANNELS,
        template=TEMPLATE,
        platemap=tmp_path / "map.txt",
        rename=("broad_sample=Metadata_Compound",),
    )
    assert found.manifest.Metadata_Compound.tolist() == ["DMSO", "DMSO", "", ""]
    assert "2 images of 1 wells found no row" in found.notes[0]


def test_a_repeated_well_in_a_platemap_is_refused():
    well = canonical(pd.DataFrame({"Well": ["A1", "a01", "B1"], "compound": list("xyz")}))
    with pytest.raises(InputError, match="repeats 1 wells: A01"):
        join_platemap(index().drop(columns="Metadata_Compound"), well, "map.csv")
    with pytest.raises(InputError, match="Metadata_Compound is in the table and in"):
        join_platemap(index(), well[1:], "map.csv")
    by_plate = well.assign(Metadata_Plate=["0012", "0013", "0012"])
    joined, _ = join_platemap(index().drop(columns="Metadata_Compound"), by_plate, "map.csv")
    assert joined.Metadata_Compound.tolist() == ["x", "x", "", ""]


def test_names_of_columns():
    table = pd.DataFrame(
        columns=["Image_Metadata_Plate", "Plate", "meta_well", "cell_type", "File", "metadata_dose"]
    )
    assert canonical(table).columns.tolist() == [
        "Metadata_Plate", "Plate", "Metadata_Well", "Metadata_CellType", "File", "Metadata_dose"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"table": "none.csv"}, "there is no table"),
        ({"channels": ("DNA", "RNA")}, "no column names the files of channel DNA"),
        ({"channels": ()}, "not named"),
        ({"channels": CHANNELS, "template": "{nothing}_{channel}.tif"}, "no column nothing"),
        ({"channels": CHANNELS, "template": TEMPLATE, "tokens": ("w1",)}, "1 tokens"),
        ({"channels": CHANNELS, "columns": ("a", "b", "c")}, "3 columns of files"),
        ({"channels": CHANNELS, "rename": ("x",)}, "not understood"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, options, text):
    index().to_csv(tmp_path / "i.csv", index=False)
    options = {"table": "i.csv", **options}
    with pytest.raises(InputError, match=text):
        listing(**{**options, "table": tmp_path / options["table"]})


def test_settings_survive_json():
    config = Config(table=Path("t.csv"), process=Process(resize=(4, 5), eight_bit="cs-arm-bn"))
    assert from_dict(Config, to_dict(config)) == config
