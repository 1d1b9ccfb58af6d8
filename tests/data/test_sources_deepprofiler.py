from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile

from evenfield.data.ingest import ingest
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest
from evenfield.data.process import Process
from evenfield.data.sources import SOURCES
from evenfield.data.sources.deepprofiler import replicate_split
from evenfield.errors import EvenfieldWarning, InputError

Config = SOURCES["deepprofiler"].Config
CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
SIDE = 24
CENTRES = {  # x, y in pixels: the second one's crop of 8 leaves the image
    "B01-1": [(10.2, 7.9), (2.0, 12.0), (20.0, 20.0)],
    "B01-2": [(12.0, 4.0)],
    "B02-1": [],
}
SITES = [("B01", "1"), ("B01", "2"), ("B02", "1")]


def field(row):
    rng = np.random.default_rng(row)
    return rng.integers(0, 250, (5, SIDE, SIDE)).astype(np.uint16)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two plates of three sites, raw and compressed, with locations."""
    root = tmp_path_factory.mktemp("project")
    rows = []
    for plate in ("0012", "SQ00015168"):
        for well, site in SITES:
            line = {
                "Metadata_Plate": plate,
                "Metadata_Well": well,
                "Metadata_Site": site,
                "Metadata_broad_sample": "DMSO" if well == "B02" else "BRD-1",
                "Metadata_moa": "" if well == "B02" else "NA",
                "Treatment_Replicate": "3" if plate == "0012" else "5",
            }
            for channel, image in zip(CHANNELS, field(len(rows)), strict=True):
                name = f"{plate}/r02c{well[1:]}f0{site}-{channel}"
                raw = root / "inputs" / "images" / f"{name}.tiff"
                raw.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(raw, image)
                png = root / "outputs" / "compressed" / "images" / f"{name}.png"
                png.parent.mkdir(parents=True, exist_ok=True)
                png.write_bytes(imagecodecs.png_encode(image.astype(np.uint8)))
                # An index that extends load_data: the file alone, and the file with its folder.
                line[f"FileName_Orig{channel}"] = name.split("/")[1] + ".tiff"
                line[f"path_FileName_Orig{channel}"] = f"{name}.tiff"
            folder = root / "inputs" / "locations" / plate
            folder.mkdir(parents=True, exist_ok=True)
            centres = pd.DataFrame(
                CENTRES[f"{well}-{site}"],
                columns=["Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"],
            )
            centres.to_csv(folder / f"{well}-{site}-Nuclei.csv", index=False)
            rows.append(line)
    (root / "inputs" / "metadata").mkdir()
    pd.DataFrame(rows).to_csv(root / "inputs" / "metadata" / "index.csv", index=False)
    return root


def listing(project, **options):
    config = {"folder": project, "treatment": "Metadata_broad_sample", "label": "Metadata_moa"}
    return SOURCES["deepprofiler"](Config(**{**config, **options})).listing()


def index_in(tmp_path, project, change):
    path = project / "inputs" / "metadata" / "index.csv"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(
        tmp_path / "index.csv", index=False
    )
    return tmp_path / "index.csv"


@pytest.mark.parametrize("images", ["raw", "compressed"])
def test_sites_of_both_trees(project, images):
    found = listing(project, images=images)
    manifest = prepare_manifest(found.manifest)
    assert found.channels == CHANNELS
    assert manifest.Metadata_Plate.tolist() == ["0012"] * 3 + ["SQ00015168"] * 3
    assert manifest.Metadata_Treatment.tolist() == ["BRD-1", "BRD-1", "DMSO"] * 2
    assert manifest.Metadata_ControlType.tolist() == ["trt", "trt", "negcon"] * 2
    for row in range(6):
        np.testing.assert_array_equal(found.read(row), field(row))
    assert found.read(0).dtype == (np.uint16 if images == "raw" else np.uint8)
    assert [f for f in check_manifest(manifest, Roles()) if f.severity == "error"] == []


def test_channels_go_by_name_or_by_column(project, tmp_path):
    found = listing(project, channels=("Mito", "Hoechst"))
    np.testing.assert_array_equal(found.read(1), field(1)[[4, 0]])
    one = listing(project, channels=("stain",), columns=("path_FileName_OrigER",))
    np.testing.assert_array_equal(one.read(2), field(2)[[2]])
    with pytest.raises(InputError, match="has no channel Golgi"):
        listing(project, channels=("Golgi",))
    with pytest.raises(InputError, match="has no column nothing"):
        listing(project, channels=("DNA",), columns=("nothing",))
    with pytest.raises(InputError, match="1 columns of files for 5 channels"):
        listing(project, columns=("path_FileName_OrigER",))
    # CPG0004: one column a channel, called as the channel.
    names = {f"path_FileName_Orig{c}": c for c in CHANNELS}
    index = index_in(
        tmp_path,
        project,
        lambda t: t.drop(columns=[f"FileName_Orig{c}" for c in CHANNELS]).rename(columns=names),
    )
    np.testing.assert_array_equal(listing(project, index=index).read(3), field(3))


@pytest.mark.parametrize("edge", ["skip", "zero"])
def test_crops_of_cells_pixel_by_pixel(project, edge):
    found = listing(project, crops="cells", box=8, edge=edge)
    expected = [
        (row, number, x, y)
        for row, (well, site) in enumerate(2 * SITES)
        for number, (x, y) in enumerate(CENTRES[f"{well}-{site}"])
        if edge == "zero" or number != 1
    ]
    manifest = prepare_manifest(found.manifest)
    assert manifest.Metadata_Object.tolist() == [str(number) for _, number, *_ in expected]
    assert manifest.Metadata_Location_X.tolist() == [x for *_, x, _ in expected]
    for row, (site, _, x, y) in enumerate(expected):
        wide = np.pad(field(site), ((0, 0), (8, 8), (8, 8)))
        left, top = round(x) - 4 + 8, round(y) - 4 + 8
        crop = wide[:, top : top + 8, left : left + 8]
        np.testing.assert_array_equal(found.read(row), crop)
    lost = any("2 of 8 cells lie too near to an edge for 8 pixels" in n for n in found.notes)
    assert lost == (edge == "skip")
    assert [f for f in check_manifest(manifest, Roles()) if f.severity == "error"] == []


def test_a_field_is_decoded_once_for_its_cells(project, monkeypatch):
    read, seen = [], "evenfield.data.sources.base.Files.read"

    def counted(self, row):
        read.append(row)
        return field(row)

    monkeypatch.setattr(seen, counted)
    found = listing(project, crops="cells", box=8, edge="zero")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(found.read, range(len(found.manifest))))
    assert sorted(read) == [0, 1, 3, 4]


def test_cells_become_a_screen(project, tmp_path):
    config = Config(
        folder=project,
        treatment="Metadata_broad_sample",
        images="compressed",
        crops="cells",
        box=8,
        edge="zero",
    )
    screen = ingest("deepprofiler", config, tmp_path / "cells", workers=2)
    assert screen.shape == (5, 8, 8)
    assert screen.num_images == 8


def test_sites_without_locations_give_no_cell_and_are_told(project, tmp_path):
    bare = tmp_path / "project"
    (bare / "inputs").mkdir(parents=True)
    for name in ("images", "metadata"):
        (bare / "inputs" / name).symlink_to(project / "inputs" / name)
    with pytest.raises(InputError, match="no cell of these 6 sites has a location"):
        listing(bare, crops="cells", box=8)
    folder = bare / "inputs" / "locations" / "0012"
    folder.mkdir(parents=True)
    centres = (project / "inputs" / "locations" / "0012" / "B01-1-Nuclei.csv").read_text()
    (folder / "B01-1-Nuclei.csv").write_text(centres)
    found = listing(bare, crops="cells", box=8)
    assert any("5 of 6 sites have no file of locations" in note for note in found.notes)
    with pytest.raises(InputError, match="no crop of 100 pixels around a cell fits"):
        listing(bare, crops="cells", box=100)
    (folder / "B01-1-Nuclei.csv").write_text(centres.replace("12.0", "900"))
    outside = listing(bare, crops="cells", box=8, edge="zero")
    with pytest.raises(InputError, match=r"cell 1 of .*lies outside of its image of 24 x 24"):
        outside.read(1)
    (folder / "B01-1-Nuclei.csv").write_text(centres.replace("12.0", "here"))
    with pytest.raises(InputError, match="holds a centre that is no number"):
        listing(bare, crops="cells", box=8)
    (folder / "B01-1-Nuclei.csv").write_text(centres.replace("Center_Y", "Y"))
    with pytest.raises(InputError, match="lacks Nuclei_Location_Center_Y"):
        listing(bare, crops="cells", box=8)


def test_the_split_of_cpg0004_by_the_plates_median_replicate(project, tmp_path):
    found = listing(project, replicate="Treatment_Replicate")
    assert found.manifest.Metadata_Split.tolist() == ["train"] * 3 + ["test"] * 3
    index = index_in(
        tmp_path,
        project,
        lambda t: t.assign(Treatment_Replicate=["3", "4", "5", "3", "3", "9"]),
    )
    mixed = listing(project, index=index, replicate="Treatment_Replicate")
    assert mixed.manifest.Metadata_Split.tolist() == ["val"] * 3 + ["train"] * 3
    fourth = listing(project, index=index, replicate="Treatment_Replicate", fold=4)
    assert fourth.manifest.Metadata_Split.tolist() == ["train"] * 3 + ["test"] * 3
    with pytest.raises(InputError, match="no column Replicate"):
        listing(project, replicate="Replicate")
    with pytest.raises(InputError, match="is no number on plates 0012, SQ00015168"):
        listing(project, replicate="Metadata_broad_sample")


@pytest.mark.parametrize(
    ("fold", "train", "val", "test"),
    [(1, "123", "4", "5"), (2, "234", "5", "1"), (3, "345", "1", "2"), (4, "145", "2", "3"),
     (5, "125", "3", "4")],
)  # fmt: skip
def test_the_five_folds_of_cpg0004(fold, train, val, test):
    table = pd.DataFrame({"Metadata_Plate": [*"abcde"], "Replicate": [*"12345"]})
    expected = ["train" if n in train else "val" if n == val else "test" for n in "12345"]
    assert expected.count("test") == 1
    assert expected["12345".index(test)] == "test"
    assert replicate_split(table, "Replicate", fold).tolist() == expected


def test_a_missing_image_drops_its_site(project, tmp_path):
    index = index_in(
        tmp_path,
        project,
        lambda t: t.replace({"path_FileName_OrigRNA": {"0012/r02c01f02-RNA.tiff": "0012/no.tiff"}}),
    )
    found = listing(project, index=index, missing="skip")
    assert len(found.manifest) == 5
    assert any("1 of 6 fields were left out, their files are missing: no.tiff" in n
               for n in found.notes)  # fmt: skip
    np.testing.assert_array_equal(found.read(1), field(2))


def test_an_index_that_is_none(project, tmp_path):
    index = index_in(tmp_path, project, lambda t: pd.concat([t, t[:1]]))
    with pytest.raises(InputError, match="repeats 1 sites: 0012/B01/1"):
        listing(project, index=index)
    index = index_in(tmp_path, project, lambda t: t.drop(columns="Metadata_Site"))
    with pytest.raises(InputError, match="lacks Metadata_Site"):
        listing(project, index=index)
    with pytest.raises(InputError, match="has no column Metadata_dose"):
        listing(project, treatment="Metadata_dose")


def test_compressed_images_are_eight_bit_and_cells_carry_no_illumination(project, tmp_path):
    deep = tmp_path / "outputs" / "compressed" / "images" / "0012"
    deep.mkdir(parents=True)
    for channel, image in zip(CHANNELS, field(0), strict=True):
        raw = imagecodecs.png_encode(image * 200)
        (deep / f"r02c01f01-{channel}.png").write_bytes(raw)
    index = project / "inputs" / "metadata" / "index.csv"
    with pytest.raises(InputError, match="uint16, compressed images are 8 bit"):
        listing(tmp_path, index=index, images="compressed").read(0)
    with pytest.raises(InputError, match="cannot be made from crops of cells"):
        Config(folder=project, crops="cells", process=Process(illumination=True))
    with pytest.raises(InputError, match="a box of 0 pixels"):
        Config(folder=project, box=0)


def test_sites_without_cells_warn_at_ingest(project, tmp_path):
    config = Config(folder=project, treatment="Metadata_broad_sample", crops="cells", box=8)
    with pytest.warns(EvenfieldWarning, match="too near to an edge"):
        screen = ingest("deepprofiler", config, tmp_path / "cells", workers=1)
    assert screen.num_images == 6
