from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from public_miniatures import (
    rxrx1_kaggle,
    rxrx1_official,
    rxrx1_pixel,
    rxrx1_table,
)

from evenfield.data.ingest import ingest
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest
from evenfield.data.rxrx1_tables import check_sizes, treatment_groups
from evenfield.data.sources import SOURCES
from evenfield.errors import EvenfieldWarning, InputError

Config = SOURCES["rxrx1"].Config
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "rxrx1"
SMALL = {"check_sizes": False, "exclude_leak": False}


def listing(folder, **options):
    return SOURCES["rxrx1"](Config(folder=folder, **{**SMALL, **options})).listing()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rxrx1")
    return folder, rxrx1_official(folder)


def test_official_layout(official):
    folder, table = official
    found = listing(folder)
    manifest = prepare_manifest(found.manifest)
    assert found.channels == ("DNA", "ER", "Actin", "RNA", "Mito", "Golgi")
    assert len(manifest) == len(table)
    for row in (0, 17, len(table) - 1):
        image = found.read(row)
        assert image.shape == (6, 8, 8)
        assert image[:, 0, 0].tolist() == [rxrx1_pixel(row, channel) for channel in range(1, 7)]
    assert manifest.Metadata_Batch.tolist() == table.experiment.tolist()
    plate = table.experiment + "_" + table.plate.astype(str)
    assert manifest.Metadata_Plate.tolist() == plate.tolist()
    assert manifest.Metadata_CellType.tolist() == table.cell_type.tolist()
    assert manifest.Metadata_Split.tolist() == table.dataset.tolist()
    negative = table.sirna_id == 1138
    label = table.sirna_id.astype(str).where(~negative, "")
    assert manifest.Metadata_Label.tolist() == label.tolist()
    assert manifest.Metadata_Treatment.tolist() == table.sirna_id.astype(str).tolist()
    kind = table.well_type.map(
        {"treatment": "trt", "positive_control": "poscon", "negative_control": "negcon"}
    )
    assert manifest.Metadata_ControlType.tolist() == kind.tolist()
    assert [f for f in check_manifest(manifest, Roles()) if f.severity == "error"] == []


def test_untreated_wells_can_be_a_class(official):
    folder, table = official
    manifest = prepare_manifest(listing(folder, negative_is_class=True).manifest)
    negative = (table.sirna_id == 1138).to_numpy()
    assert set(manifest.Metadata_Label[negative]) == {"1138"}
    assert set(manifest.Metadata_ControlType[negative]) == {"trt"}


def test_groups_travel_together_whatever_the_plate(official):
    folder, table = official
    manifest = listing(folder).manifest
    treated = (table.well_type == "treatment").to_numpy()
    assert set(manifest.Metadata_Group[~treated]) == {""}
    expected = (table.sirna_id // 2).astype(str)[treated]
    assert manifest.Metadata_Group[treated].tolist() == expected.tolist()


def test_groups_of_incomplete_and_unlabelled_plates():
    table = rxrx1_table().astype(str).assign(kind="trt")
    table.loc[table.experiment == "HUVEC-18", "sirna_id"] = ""
    table = table[~((table.experiment == "HUVEC-02") & (table.sirna_id.isin(["2", "3"])))]
    table = table[table.sirna_id.isin(["", *map(str, range(8))])]
    group = treatment_groups(table)
    known = (table.sirna_id != "").to_numpy()
    assert set(group[~known]) == {""}
    numbers = table.sirna_id[known].astype(int) // 2
    np.testing.assert_array_equal(group[known], numbers.astype(str))


def test_the_leak_is_left_out_by_name(official):
    folder, table = official
    kept = listing(folder, exclude_leak=True)
    assert "HUVEC-18" not in set(kept.manifest.Metadata_Batch)
    assert any("HUVEC-18 is left out (32 images)" in note for note in kept.notes)
    # What makes it a leak: its wells are those of RPE-03, one plate on.
    wells = table[table.site == 1].set_index(["experiment", "plate", "well"]).sirna_id
    leak, known = wells["HUVEC-18"], wells["RPE-03"]
    assert all(leak[plate, well] == known[(plate - 2) % 4 + 1, well] for plate, well in leak.index)


def test_sites(official):
    folder, table = official
    first, joined = listing(folder, sites="1"), listing(folder, sites="join")
    assert set(first.manifest.Metadata_Site) == {"1"}
    assert len(first.manifest) == len(joined.manifest) == len(table) // 2
    assert set(joined.manifest.Metadata_Site) == {"1+2"}
    each = listing(folder)
    for well in (0, 5):
        both = [each.read(2 * well), each.read(2 * well + 1)]
        np.testing.assert_array_equal(joined.read(well), np.concatenate(both, axis=2))


def test_channels_go_by_name(official):
    folder, _ = official
    some = listing(folder, channels=("Golgi", "DNA"))
    assert some.channels == ("Golgi", "DNA")
    assert some.read(3)[:, 0, 0].tolist() == [rxrx1_pixel(3, 6), rxrx1_pixel(3, 1)]
    with pytest.raises(InputError, match="no channel Tubulin"):
        Config(folder=folder, channels=("DNA", "Tubulin"))


def test_kaggle_layout_equals_the_official_one_but_for_test_labels(official, tmp_path):
    folder, _ = official
    rxrx1_kaggle(tmp_path)
    one, two = listing(folder), listing(tmp_path)
    key = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    ours = one.manifest.assign(row=range(len(one.manifest)))
    merged = two.manifest.merge(ours, on=key, suffixes=("", "_o"), validate="1:1")
    assert len(merged) == len(ours)
    hidden = (merged.Metadata_Split == "test") & (merged.Metadata_ControlType == "trt")
    assert hidden.any()
    assert set(merged.Metadata_Label[hidden]) == {""}
    for column in ("Label", "ControlType", "CellType", "Group", "Split", "Batch"):
        name = f"Metadata_{column}"
        assert (merged[name] == merged[f"{name}_o"])[~hidden].all()
    for row in (0, len(merged) - 1):
        np.testing.assert_array_equal(two.read(row), one.read(int(merged.row[row])))


def without_two_channels(folder):
    rxrx1_official(folder, experiments={"HUVEC-01": 0})
    for path in folder.glob("images/*/*/*_s2_w[56].png"):
        path.unlink()


def test_missing_channels(tmp_path):
    without_two_channels(tmp_path)
    options = {**SMALL, "folder": tmp_path}
    with pytest.raises(InputError, match=r"16 of 32 images.*\n.*B02_s2_w5"):
        ingest("rxrx1", Config(**options), tmp_path / "a", workers=1)
    four = ingest(
        "rxrx1", Config(**options, channels=("DNA", "ER", "Actin", "RNA")), tmp_path / "b"
    )
    assert four.num_images == 32
    with pytest.warns(EvenfieldWarning, match=r"16 of 32 fields lack channels \(Mito 16, Golgi"):
        skipped = ingest("rxrx1", Config(**options, missing="skip"), tmp_path / "c")
    assert set(skipped.manifest.Metadata_Site) == {"1"}
    with pytest.warns(EvenfieldWarning, match="stored as 0"):
        zero = ingest("rxrx1", Config(**options, missing="zero"), tmp_path / "d")
    second = zero.manifest.Metadata_Site == "2"
    assert set(zero.manifest.Metadata_MissingChannels[second]) == {"Mito+Golgi"}
    assert set(zero.manifest.Metadata_MissingChannels[~second]) == {""}
    assert (zero.pixels[second.to_numpy()][:, 4:] == 0).all()
    assert zero.pixels[second.to_numpy()][:, :4].any(axis=(2, 3)).all()
    assert zero.pixels[~second.to_numpy()].any(axis=(2, 3)).all()
    with pytest.warns(EvenfieldWarning, match="16 of 16"):
        joined = ingest("rxrx1", Config(**options, missing="zero", sites="join"), tmp_path / "e")
    sides = np.split(np.asarray(joined.pixels[3]), 2, axis=2)
    np.testing.assert_array_equal(sides[0][:4], zero.pixels[6][:4])
    np.testing.assert_array_equal(sides[1][:4], zero.pixels[7][:4])
    assert not joined.pixels[:, 4:].any()  # one site lacks them, so the well does


def test_a_part_of_the_files(tmp_path):
    without_two_channels(tmp_path)
    for path in tmp_path.glob("images/*/Plate[34]/*"):
        path.unlink()
    found = listing(tmp_path, subset="present")
    assert set(found.manifest.Metadata_Plate) == {"HUVEC-01_1", "HUVEC-01_2"}
    with pytest.raises(InputError, match="no image of RxRx1 lies in"):
        listing(tmp_path / "images" / "HUVEC-01", tables=tmp_path, subset="present")


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (0, "sirna_id", 1108, "plate 1 well B02 site 1, siRNA 1108, has a well_type that does not"),
        (0, "sirna_id", 1139, "does not fit its siRNA"),
        (0, "well_type", "dmso", "has an unknown well_type"),
        (0, "cell_type", "RPE", "has another cell type"),
        (0, "plate", 5, "is on no plate from 1 to 4"),
        (0, "site", 3, "is no site 1 or 2"),
        (0, "well", "A02", "lies outside of B02 to O23"),
        (0, "well", "B24", "lies outside of B02 to O23"),
        (1, "site", 1, "is a repeated site"),
        (8, "sirna_id", 0, "repeats a treatment in its experiment"),
    ],
)
def test_the_first_broken_rule_is_named(row, column, value, message, tmp_path):
    table = rxrx1_table()
    table.loc[row, column] = value
    if column == "well":
        table.loc[row + 1, column] = value
    table.to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(InputError, match=message):
        listing(tmp_path)


def test_a_treatment_on_a_plate_of_another_group_is_named(tmp_path):
    table = rxrx1_table()
    second = (table.experiment == "HUVEC-02") & table.sirna_id.isin([0, 2])
    table.loc[second, "sirna_id"] = table.sirna_id[second].map({0: 2, 2: 0})
    table.to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(InputError, match="HUVEC-02 plate 1: siRNA"):
        listing(tmp_path)


@pytest.mark.parametrize(
    ("num_sirnas", "num_experiments", "num_plates", "message"),
    [
        (1138, 51, 4, "name 1138 siRNAs, not 1139"),
        (1139, 50, 4, "name 50 experiments, not 51"),
        (1139, 51, 3, "E00 has 3 plates, not 4"),
    ],
)
def test_counts_of_the_whole_data_set(num_sirnas, num_experiments, num_plates, message):
    number = np.arange(6000)
    table = pd.DataFrame(
        {
            "sirna_id": (number % num_sirnas).astype(str),
            "experiment": [f"E{n % num_experiments:02d}" for n in number],
            "plate": [str(n // num_experiments % num_plates + 1) for n in number],
        }
    )
    with pytest.raises(InputError, match=message):
        check_sizes(table)


def test_a_part_of_the_data_set_must_be_called_one(official):
    folder, _ = official
    with pytest.raises(InputError, match=r"name 10 siRNAs.*\n.*set check_sizes to False"):
        listing(folder, check_sizes=True)


def test_tables_that_are_not_there_and_files_that_are_not_right(official, tmp_path):
    folder, table = official
    with pytest.raises(InputError, match=r"neither metadata\.csv nor train\.csv"):
        listing(tmp_path)
    table.drop(columns="sirna_id").to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(InputError, match="lacks sirna_id"):
        listing(tmp_path)
    reader = SOURCES["rxrx1"]
    whole = reader(Config(folder=folder, check_sizes=False, exclude_leak=False)).listing()
    first = Path(whole.name(0))
    kept = first.read_bytes()
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for image, message in (
        (deep, "8 x 8 uint16, not 8 x 8 uint8"),
        (deep[:4].astype(np.uint8), "2 sizes"),
    ):
        first.write_bytes(imagecodecs.png_encode(image))
        with pytest.raises(InputError, match=message):
            whole.read(0)
    first.write_bytes(kept)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real RxRx1 data beside the checkout")
class TestReal:
    def config(self, **options):
        return Config(folder=REAL / "images", tables=REAL / "metadata", subset="present", **options)

    def test_eighteen_complete_sites(self, tmp_path):
        with pytest.warns(EvenfieldWarning, match="18 of 36 fields lack channels"):
            screen = ingest("rxrx1", self.config(missing="skip"), tmp_path / "s", workers=1)
        assert screen.shape == (6, 512, 512)
        assert screen.num_images == 18
        listed = pd.read_csv(REAL / "images.csv").set_index("file")["mean"]
        for row in range(18):
            line = screen.manifest.iloc[row]
            folder = f"images/{line.Metadata_Split}/{line.Metadata_Batch}"
            plate = f"Plate{line.Metadata_Plate.rsplit('_')[-1]}"
            for channel in range(6):
                file = f"{folder}/{plate}/{line.Metadata_Well}_s1_w{channel + 1}.png"
                assert abs(screen.pixels[row, channel].mean() - listed[file]) < 0.006
        assert set(screen.manifest.Metadata_CellType) == {"HEPG2", "HUVEC", "RPE", "U2OS"}
        assert set(screen.manifest.Metadata_ControlType) == {"negcon"}

    def test_site_two_has_four_channels(self):
        found = SOURCES["rxrx1"](self.config(missing="zero")).listing()
        second = np.flatnonzero(found.manifest.Metadata_Site == "2")
        assert len(second) == 18
        assert set(found.manifest.Metadata_MissingChannels.iloc[second]) == {"Mito+Golgi"}
        image = found.read(int(second[0]))
        assert image[:4].any(axis=(1, 2)).all()
        assert not image[4:].any()
        (note,) = found.notes
        assert note.startswith("18 of 36 fields lack channels (Mito 18, Golgi 18): stored as 0")

    def test_the_official_tables_hold_every_rule(self):
        found = SOURCES["rxrx1"](
            Config(folder=REAL / "images", tables=REAL / "metadata", exclude_leak=False)
        ).listing()
        manifest = found.manifest
        assert len(manifest) == 125510
        assert manifest.Metadata_Batch.nunique() == 51
        assert manifest.Metadata_Plate.nunique() == 204
        groups = manifest[manifest.Metadata_Group != ""].groupby("Metadata_Group")
        assert groups.Metadata_Label.nunique().to_dict() == dict.fromkeys("0123", 277)
        first = manifest[manifest.Metadata_Group != ""].drop_duplicates("Metadata_Plate")
        turns = first.groupby("Metadata_Batch").Metadata_Group.agg("".join).value_counts()
        assert turns.to_dict() == {"0123": 22, "2301": 7, "1230": 4}  # cyclic, as is known
