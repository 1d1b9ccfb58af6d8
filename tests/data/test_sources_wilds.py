import numpy as np
import pandas as pd
import pytest
from public_miniatures import wilds_camelyon17, wilds_rxrx1

from evenfield.config import SplitConfig
from evenfield.data.ingest import ingest
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest
from evenfield.data.sources import SOURCES
from evenfield.data.sources.wilds_camelyon17 import _uneven
from evenfield.data.split import make_split, units
from evenfield.errors import InputError


def listing(name, folder, **options):
    cls = SOURCES[name]
    return cls(cls.Config(folder=folder, check_sizes=False, **options)).listing()


def change(folder, name, **columns):
    """Rewrite a value in the first row of a release's table."""
    path = folder / f"{name}_v1.0" / "metadata.csv"
    table = pd.read_csv(path, dtype=str, index_col=0 if name == "camelyon17" else None)
    for column, value in columns.items():
        table.iloc[0, table.columns.get_loc(column)] = value
    table.to_csv(path, index=name == "camelyon17")


@pytest.fixture(scope="module")
def rxrx1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wilds-rxrx1")
    return folder, wilds_rxrx1(folder)


@pytest.fixture(scope="module")
def camelyon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wilds-camelyon17")
    return folder, wilds_camelyon17(folder)


def test_rxrx1_rows_files_and_split(rxrx1):
    folder, table = rxrx1
    found = listing("wilds-rxrx1", folder)
    manifest = prepare_manifest(found.manifest)
    split = table.dataset.where(~((table.dataset == "train") & (table.site == 2)), "id_test")
    assert manifest.Metadata_Split.tolist() == split.tolist()
    assert manifest.Metadata_Label.tolist() == table.sirna_id.astype(str).tolist()
    assert found.channels == ("DNA", "ER", "Actin")
    for row in (0, len(table) - 1):
        line = table.iloc[row]
        expected = f"{line.experiment}/Plate{line.plate}/{line.well}_s{line.site}.png"
        assert found.name(row).endswith(f"rxrx1_v1.0/images/{expected}")
        assert found.read(row).shape == (3, 16, 16)
    assert [f for f in check_manifest(manifest, Roles()) if f.severity == "error"] == []
    assert found.provenance["groups"] == "Metadata_CellType"


def test_rxrx1_counts_the_untreated_wells_unless_told_otherwise(rxrx1):
    folder, table = rxrx1
    negative = (table.sirna_id == 1138).to_numpy()
    official = units(prepare_manifest(listing("wilds-rxrx1", folder).manifest), Roles())
    assert (official.label[negative] >= 0).all()
    assert not official.is_control.any()
    controls = listing("wilds-rxrx1", folder, negative_is_class=False)
    coded = units(prepare_manifest(controls.manifest), Roles())
    assert (coded.label[negative] == -1).all()
    np.testing.assert_array_equal(coded.is_control, negative)


def test_rxrx1_to_the_split_of_a_run(rxrx1, tmp_path):
    folder, table = rxrx1
    config = SOURCES["wilds-rxrx1"].Config(folder=folder / "rxrx1_v1.0", check_sizes=False)
    screen = ingest("wilds-rxrx1", config, tmp_path / "s", workers=1)
    coded = units(screen.manifest, screen.roles, column="Metadata_Split")
    split = make_split(coded, SplitConfig(column="Metadata_Split"))
    assert split.test_units == ("HEPG2-09", "U2OS-05")
    assert split.validation_units == ("HEPG2-08",)
    train = (table.dataset == "train").to_numpy()
    np.testing.assert_array_equal(
        np.sort(np.concatenate([split.train, split.in_domain])), np.flatnonzero(train)
    )
    assert set(coded.well[split.in_domain]) == set(coded.well[split.train])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"dataset": "valid"}, "dataset is 'valid', not train, val or test"),
        ({"site": "3"}, "site is '3', not 1 or 2"),
        ({"sirna_id": "1139"}, "sirna_id reaches 1139"),
        ({"sirna_id": "1.0"}, r"sirna_id is \['1\.0'\]"),
        ({"cell_type": "RPE"}, "cell type of .* is not the one in its name"),
        ({"experiment": "U2OS-05", "dataset": "val", "cell_type": "U2OS"}, "U2OS-05 lies in two"),
    ],
)
def test_rxrx1_names_the_first_broken_rule(columns, message, tmp_path):
    wilds_rxrx1(tmp_path, num_classes=2)
    change(tmp_path, "rxrx1", **columns)
    with pytest.raises(InputError, match=message):
        listing("wilds-rxrx1", tmp_path)


def test_releases_are_whole_or_called_parts(rxrx1, camelyon, tmp_path):
    for name, (folder, _), message in (
        ("wilds-rxrx1", rxrx1, "the split train has 36 images, not 40612"),
        ("wilds-camelyon17", camelyon, "the split train has 36 images, not 302436"),
    ):
        cls = SOURCES[name]
        with pytest.raises(InputError, match=message):
            cls(cls.Config(folder=folder)).listing()
        with pytest.raises(InputError, match=r"no .*RELEASE_v1\.0\.txt"):
            listing(name, tmp_path)
    (tmp_path / "RELEASE_v1.0.txt").touch()
    with pytest.raises(InputError, match=r"metadata\.csv cannot be read"):
        listing("wilds-rxrx1", tmp_path)
    (tmp_path / "metadata.csv").write_text("dataset,experiment\n")
    with pytest.raises(InputError, match="lacks plate, well, site, cell_type, sirna_id"):
        listing("wilds-rxrx1", tmp_path)


def test_camelyon_rows_files_and_split(camelyon):
    folder, table = camelyon
    found = listing("wilds-camelyon17", folder)
    manifest = prepare_manifest(found.manifest)
    by_center = {0: None, 1: "val", 2: "test", 3: None, 4: None}
    expected = [
        by_center[center] or ("id_val" if split else "train")
        for center, split in zip(table.center, table.split, strict=True)
    ]
    assert manifest.Metadata_Split.tolist() == expected
    assert manifest.Metadata_Label.tolist() == table.tumor.astype(str).tolist()
    assert manifest.Metadata_Patient.tolist() == table.patient.tolist()  # "004" stays text
    assert manifest.Metadata_Batch.tolist() == [f"center{c}" for c in table.center]
    assert manifest.Metadata_Plate[0] == "slide00"
    findings = check_manifest(manifest, Roles())
    assert [f.check for f in findings if f.severity == "error"] == []
    assert "missing-wells" not in {f.check for f in findings}
    name = "patches/patient_004_node_0/patch_patient_004_node_0_x_3328_y_21792.png"
    assert found.name(0).endswith(name)


def test_camelyon_patches_are_rgba_and_become_rgb(camelyon, tmp_path):
    folder, table = camelyon
    config = SOURCES["wilds-camelyon17"].Config(folder=folder, check_sizes=False)
    screen = ingest("wilds-camelyon17", config, tmp_path / "s", workers=1)
    assert screen.shape == (3, 16, 16)
    rng = np.random.default_rng(0)
    for row in range(len(table)):
        drawn = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
        np.testing.assert_array_equal(screen.pixels[row], np.moveaxis(drawn[..., :3], 2, 0))
    coded = units(screen.manifest, screen.roles, column="Metadata_Split")
    split = make_split(coded, SplitConfig(column="Metadata_Split"))
    assert (split.validation_units, split.test_units) == (("center1",), ("center2",))
    assert len(np.unique(coded.well)) == len(table)  # every patch is its own


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"patient": "4"}, "patient '4' has lost its zeros"),
        ({"center": "1"}, "slide 0 is not of the hospital slide // 10"),
        ({"x_coord": "12.0"}, r"x_coord is \['12\.0'\]"),
        ({"tumor": "2"}, r"tumor is \['2'\]"),
        ({"node": "3"}, r"there is no .*patient_004_node_3"),
    ],
)
def test_camelyon_names_the_first_broken_rule(columns, message, tmp_path):
    wilds_camelyon17(tmp_path, per_slide=2)
    change(tmp_path, "camelyon17", **columns)
    with pytest.raises(InputError, match=message):
        listing("wilds-camelyon17", tmp_path)


def test_an_uneven_split_is_told():
    tumour = pd.Series([True] * 53 + [False] * 47 + [True, False] * 10)
    split = pd.Series(["train"] * 100 + ["test"] * 20)
    (note,) = _uneven(tumour, split)
    assert note.startswith("53.0 % of the split train are tumour")


def test_pictures_of_another_size_are_refused(camelyon):
    from evenfield.data.wilds import Pictures

    folder, _ = camelyon
    file = "patches/patient_004_node_0/patch_patient_004_node_0_x_3328_y_21792.png"
    pictures = Pictures(folder / "camelyon17_v1.0", pd.Series([file, "gone.png"]), 96)
    with pytest.raises(InputError, match="16 x 16 uint8, not 96 x 96 uint8"):
        pictures.read(0)
    with pytest.raises(InputError, match="No such file"):
        pictures.read(1)


def test_whole_releases_pass(rxrx1, camelyon, monkeypatch):
    """The path of a whole release, with the miniatures' numbers in place of the published ones."""
    from evenfield.data.sources import wilds_camelyon17 as c
    from evenfield.data.sources import wilds_rxrx1 as r

    assert sum(r.COUNTS.values()) == 125510
    assert sum(c.COUNTS.values()) == 455954
    found = {"train": 36, "val": 12, "test": 24, "id_test": 36}
    monkeypatch.setattr(r, "COUNTS", found)
    monkeypatch.setattr(r, "EXPERIMENTS", {"train": 6, "val": 1, "test": 2})
    with pytest.raises(InputError, match="there are 3 siRNAs, not 1139"):
        r.WildsRxRx1(r.WildsRxRx1.Config(folder=rxrx1[0])).listing()
    monkeypatch.setattr(r, "NUM_CLASSES", 3)
    monkeypatch.setattr(r, "_check", lambda _: None)  # which says that 1138 is the last class
    whole = r.WildsRxRx1(r.WildsRxRx1.Config(folder=rxrx1[0])).listing()
    assert len(whole.manifest) == 108
    with pytest.raises(InputError, match="16 x 16 uint8, not 256 x 256"):
        whole.read(0)
    monkeypatch.setattr(c, "COUNTS", {"train": 36, "id_val": 12, "val": 16, "test": 16})
    monkeypatch.setattr(c, "SLIDES", {"train": 6, "id_val": 6, "val": 2, "test": 2})
    listed = c.WildsCamelyon17(c.WildsCamelyon17.Config(folder=camelyon[0])).listing()
    assert listed.notes == ()
    with pytest.raises(InputError, match="16 x 16 uint8, not 96 x 96"):
        listed.read(0)
    monkeypatch.setattr(c, "SLIDES", {"train": 7, "id_val": 6, "val": 2, "test": 2})
    with pytest.raises(InputError, match="the split train has 6 slides, not 7"):
        c.WildsCamelyon17(c.WildsCamelyon17.Config(folder=camelyon[0])).listing()
