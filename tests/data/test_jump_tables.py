"""The genuine tables of JUMP-CP and the Repurposing Hub, and the traps of their joins."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenfield.data.jump_tables import (
    DMSO,
    EMPTY,
    check_target2,
    join_tables,
    read_jump_tables,
    select_plates,
    target_platemap,
)
from evenfield.data.mechanisms import (
    join_mechanisms,
    mechanism_classes,
    mechanisms,
    read_hub,
)
from evenfield.errors import InputError

REAL = Path(__file__).parents[2].parent / "shared" / "data"
TARGET = REAL / "jump_metadata" / "JUMP-Target"
HUB = REAL / "lincs_metadata" / "metadata" / "moa" / "repurposing_info.tsv"
PLATES = {2: 10, 3: 25, 4: 22, 5: 24, 6: 21, 7: 7, 8: 4, 9: 9, 10: 6, 11: 7, 13: 6}
BATCHES = {2: 10, 3: 13, 4: 13, 5: 23, 6: 13, 7: 7, 8: 4, 9: 9, 10: 6, 11: 4, 13: 5}


def target(folder, wells, compounds):
    wells.to_csv(folder / "map.tsv", sep="\t", index=False)
    compounds.to_csv(folder / "compounds.tsv", sep="\t", index=False)
    return target_platemap(folder / "map.tsv", folder / "compounds.tsv")


def small_target():
    wells = pd.DataFrame(
        {"well_position": ["A1", "A02", "b03"], "broad_sample": ["BRD-1", "", "BRD-1"]}
    )
    compounds = pd.DataFrame(
        [
            ("BRD-1", "AAAAAAAAAAAAAA-B-N", "one", "poscon_cp"),
            ("BRD-1", "AAAAAAAAAAAAAA-B-N", "one", "poscon_cp"),  # listed twice
            ("NA", "NA", "DMSO", "negcon"),  # the solvent
        ],
        columns=["broad_sample", "InChIKey", "pert_iname", "control_type"],
    )
    return wells, compounds


def test_both_traps_of_jump_target(tmp_path):
    found = target(tmp_path, *small_target())
    assert found.Metadata_Well.tolist() == ["A01", "A02", "B03"]
    assert found.Metadata_broad_sample.tolist() == ["BRD-1", "DMSO", "BRD-1"]
    assert found.Metadata_InChIKey.tolist() == ["AAAAAAAAAAAAAA-B-N", "", "AAAAAAAAAAAAAA-B-N"]
    assert found.Metadata_ControlType.tolist() == ["poscon", "negcon", "poscon"]


def test_tables_of_jump_target_that_do_not_fit(tmp_path):
    wells, compounds = small_target()
    with pytest.raises(InputError, match="rows of BRD-1 differ"):
        target(tmp_path, wells, compounds.assign(pert_iname=["one", "two", "DMSO"]))
    with pytest.raises(InputError, match="lacks BRD-1"):
        target(tmp_path, wells, compounds[2:])
    with pytest.raises(InputError, match="lacks InChIKey"):
        target(tmp_path, wells, compounds.drop(columns="InChIKey"))


def hub_files(folder):
    head = "! Repurposing Hub\n!\n"
    (folder / "drugs.txt").write_text(
        head + "pert_iname\tmoa\ttarget\none\tx inhibitor\tA\ntwo\tx inhibitor|y agonist\tB\n"
        "thr\xe9e\tx inhibitor\tC\nfour\t\tD\nfive\tz blocker\tE\n",
        encoding="latin-1",
    )
    keys = {"one": "A", "two": "B", "thr\xe9e": "C", "four": "D", "five": "E"}
    lines = [f"BRD-{k}\t{name}\t{k * 14}-UHFFFAOYSA-N\n" for name, k in reversed(keys.items())]
    (folder / "samples.txt").write_text(
        head + "broad_id\tpert_iname\tInChIKey\n" + "".join(lines), encoding="latin-1"
    )
    return folder / "samples.txt", folder / "drugs.txt"


def test_the_hub_as_it_is_published(tmp_path):
    """Comment lines, latin-1, two files, several mechanisms of one compound."""
    hub = read_hub(*hub_files(tmp_path))
    assert hub.pert_iname.tolist() == ["one", "two", "thr\xe9e", "four", "five"]
    library = [f"{k * 14}-SALT-N" for k in "ABCDEZ"] + ["", "A" * 14 + "-SALT-N"]
    single = mechanism_classes(library, hub, "recon_a").set_index("Metadata_InChIKey")
    assert single.Metadata_moa.tolist() == ["x inhibitor", "", "x inhibitor", "", "", ""]
    assert single.Metadata_moa_id.tolist() == [0, -1, 0, -1, -1, -1]
    twins = [*library, "B" * 14 + "-OTHER-N"]
    # Two salts of one skeleton are one compound: `x|y` stays a class of one, whatever the rule.
    assert set(mechanism_classes(twins, hub, "recon_b").Metadata_moa) == {"", "x inhibitor"}
    with pytest.raises(InputError, match="no recipe 'a'"):
        mechanism_classes(library, hub, "a")
    with pytest.raises(InputError, match="no mechanism has 2 of these 1 compounds"):
        mechanism_classes(library[:1], hub)


def test_hub_files_that_are_none(tmp_path):
    samples, drugs = hub_files(tmp_path)
    with pytest.raises(InputError, match="lacks moa"):
        read_hub(samples)
    with pytest.raises(InputError, match="have no column InChIKey"):
        read_hub(drugs, drugs)
    with pytest.raises(InputError, match="0 files"):
        read_hub()
    drugs.write_text("a\tb\n1\n")
    with pytest.raises(InputError, match="no tab-separated table"):
        read_hub(samples, drugs)


def test_the_first_sample_of_a_skeleton_decides():
    """Enantiomers share a skeleton and may have other mechanisms (quinidine, quinine)."""
    keys = ["LOUPRKONTZGTKE-LHHVKLHASA-N", "LOUPRKONTZGTKE-WZBLMQSHSA-N", ""]
    hub = pd.DataFrame({"InChIKey": keys, "moa": ["sodium channel blocker", "other", "none"]})
    assert mechanisms(hub) == {"LOUPRKONTZGTKE": "sodium channel blocker"}


def test_join_of_mechanisms():
    table = pd.DataFrame({"Metadata_JCP2022": ["1", "2", "1"], "Metadata_InChIKey": ["", "B", "A"]})
    classes = pd.DataFrame({"Metadata_InChIKey": ["A", ""], "Metadata_moa": ["m", "solvent"]})
    assert join_mechanisms(table, classes, "t").tolist() == ["", "", "m"]
    by_jcp = pd.DataFrame({"Metadata_JCP2022": ["1"], "Metadata_moa": ["m"]})
    assert join_mechanisms(table, by_jcp, "t").tolist() == ["m", "", "m"]
    with pytest.raises(InputError, match="gives two mechanisms to A"):
        join_mechanisms(table, pd.concat([classes, classes.assign(Metadata_moa="n")]), "t")
    with pytest.raises(InputError, match="t cannot be joined"):
        join_mechanisms(table, by_jcp[["Metadata_moa"]], "t")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The public tables; the well table is an older one, compound.csv.gz is not at hand."""
    folder = tmp_path_factory.mktemp("metadata")
    for path in (REAL / "jump_metadata" / "metadata").iterdir():
        (folder / path.name.replace("well_older", "well")).symlink_to(path)
    return read_jump_tables(folder)


@pytest.fixture(scope="module")
def joined(tables):
    """Every well of the Target-2 plates that the well table lists, four sites each."""
    plates = select_plates(tables)
    keys = ["Metadata_Source", "Metadata_Plate"]
    wells = tables.well.merge(plates[keys], on=keys)[[*keys, "Metadata_Well"]]
    sites = wells.loc[wells.index.repeat(4)].reset_index(drop=True)
    table, notes = join_tables(sites, tables)
    assert len(table) == len(sites)  # no row is multiplied or lost
    pd.testing.assert_frame_equal(table[sites.columns], sites)
    return table, notes


@pytest.mark.real
@pytest.mark.skipif(not TARGET.is_dir(), reason="no real JUMP tables beside the checkout")
class TestReal:
    def test_plates(self, tables):
        plates = select_plates(tables)
        assert len(tables.plate) == 2525
        assert len(plates) == 141
        number = plates.Metadata_Source.str.removeprefix("source_").astype(int)
        assert number.value_counts().to_dict() == PLATES
        assert plates.groupby(number).Metadata_Batch.nunique().to_dict() == BATCHES
        kinds = tables.plate.Metadata_PlateType.value_counts().to_dict()
        assert kinds == {
            "COMPOUND": 1876, "ORF": 251, "CRISPR": 148, "TARGET2": 141, "DMSO": 77,
            "COMPOUND_EMPTY": 20, "POSCON8": 8, "TARGET1": 4,
        }  # fmt: skip
        four = ("source_3", "source_5", "source_8", "source_11")
        assert len(select_plates(tables, sources=four)) == 25 + 24 + 4 + 7
        # As batch and plate names are unique, they can be contexts and domains as they are.
        assert tables.plate.Metadata_Plate.is_unique
        pairs = tables.plate[["Metadata_Source", "Metadata_Batch"]].drop_duplicates()
        assert pairs.Metadata_Batch.is_unique

    def test_validation_plates_of_coda(self, tables):
        plates = select_plates(tables).set_index("Metadata_Plate")
        assert plates.Metadata_Batch["JCPQC016"] == plates.Metadata_Batch["JCPQC017"]
        assert plates.Metadata_Source[["ACPJUM012", "A1166127", "EC103-132LM2"]].tolist() == [
            "source_5", "source_8", "source_11"
        ]  # fmt: skip

    def test_every_listed_well_has_one_perturbation(self, joined):
        table, notes = joined
        assert table.Metadata_JCP2022.nunique() == 302
        assert (table.Metadata_JCP2022 != "").all()
        assert not (table.Metadata_JCP2022 == EMPTY).any()
        plates = table.groupby(["Metadata_Source", "Metadata_Plate"])
        assert plates.ngroups == 119
        wells = plates.Metadata_Well.nunique()
        assert (wells.min(), wells.max()) == (378, 384)
        negcon = table[table.Metadata_ControlType == "negcon"]
        assert set(negcon.Metadata_JCP2022) == {DMSO}
        poscon = table[table.Metadata_ControlType == "poscon"]
        assert poscon.Metadata_JCP2022.nunique() == 8
        assert len(notes) == 1
        assert "no compound.csv.gz" in notes[0]

    def test_dmso_wells_and_what_is_told_of_odd_plates(self, joined):
        table, _ = joined
        wells = table.drop_duplicates(["Metadata_Plate", "Metadata_Well"])
        dmso = (
            (wells.Metadata_JCP2022 == DMSO)
            .groupby([wells.Metadata_Source, wells.Metadata_Plate])
            .sum()
        )
        odd = dmso[dmso != 64]
        assert set(odd.index.get_level_values(0)) == {"source_2", "source_6"}
        assert (odd.min(), odd.max()) == (65, 68)
        (note,) = check_target2(table)
        short = wells.groupby("Metadata_Plate").size() != 384
        named = set(short.index[short]) | set(odd.index.get_level_values(1))
        assert note.startswith(f"{len(named)} of 119 Target-2 plates have not 384 wells")
        assert check_target2(table[table.Metadata_Source == "source_8"]) == ()

    def test_one_layout_on_all_plates(self, joined):
        table, _ = joined
        sources = [f"source_{number}" for number in (3, 4, 5, 8, 10, 11)]
        part = table[table.Metadata_Source.isin(sources)]
        part = part.drop_duplicates(["Metadata_Plate", "Metadata_Well"])
        assert len(part) == 33777
        assert part.groupby("Metadata_Well").Metadata_JCP2022.nunique().max() == 1

    def test_a_plate_without_wells_is_named(self, tables):
        plates = select_plates(tables, sources=("source_7",))
        sites = plates[["Metadata_Source", "Metadata_Plate"]].assign(Metadata_Well="A01")
        table, notes = join_tables(sites, tables)
        assert len(table) == 7
        assert notes[0].startswith("the well table lacks 7 plates (source_7/")

    def test_controls_of_all_modalities(self, tables):
        kinds = tables.control.set_index("Metadata_Name").Metadata_pert_type
        assert kinds[["eGFP", "BFP", "no-guide", "Empty", "DMSO"]].tolist() == [
            "poscon", "negcon", "negcon", "empty", "negcon"
        ]  # fmt: skip
        keys = ["Metadata_Source", "Metadata_Plate"]
        plates = tables.plate[tables.plate.Metadata_PlateType == "ORF"][keys]
        wells = tables.well.merge(plates, on=keys)
        wells = wells[wells.Metadata_Plate.isin(wells.Metadata_Plate.unique()[:2])]
        table, _ = join_tables(wells.drop(columns="Metadata_JCP2022"), tables)
        assert table.Metadata_JCP2022.tolist() == wells.Metadata_JCP2022.tolist()
        symbols = table.groupby("Metadata_ControlType").Metadata_Symbol.agg(set)
        assert symbols["negcon"] == {"BFP", "HcRed", "LUCIFERASE", "LacZ"}
        assert "eGFP" in symbols["poscon"]
        assert symbols["empty"] == {""}

    def test_microscopes(self, tables):
        assert tables.pixel_size_um["source_8"] == 0.7032
        assert tables.pixel_size_um["source_3"] == tables.pixel_size_um["source_11"] == 0.597976
        assert len(set(tables.microscope.values())) == 5

    def target2(self):
        return target_platemap(
            TARGET / "JUMP-Target-2_compound_platemap.tsv",
            TARGET / "JUMP-Target-2_compound_metadata.tsv",
        )

    def test_target2_plate_map(self):
        found = self.target2()
        assert len(found) == 384
        assert found.Metadata_broad_sample.nunique() == 307
        assert (found.Metadata_broad_sample == "DMSO").sum() == 64
        assert (found.Metadata_ControlType == "negcon").sum() == 64
        compounds = found[found.Metadata_ControlType != "negcon"]
        wells = compounds.groupby("Metadata_InChIKey").size()
        assert wells.value_counts().to_dict() == {1: 282, 2: 19}
        kinds = compounds.drop_duplicates("Metadata_broad_sample").Metadata_control_type
        assert kinds[kinds != ""].value_counts().to_dict() == {
            "poscon_cp": 26, "poscon_diverse": 14, "poscon_orf": 6
        }  # fmt: skip

    def test_plate_map_and_well_table_name_one_layout(self, joined):
        """302 JCP2022 numbers are the 301 InChIKeys and the solvent, one to one, well by well."""
        table, _ = joined
        plate = table[table.Metadata_Source == "source_8"].drop_duplicates("Metadata_Well")
        both = plate[["Metadata_Well", "Metadata_JCP2022"]].merge(
            self.target2(), on="Metadata_Well"
        )
        pairs = both[["Metadata_JCP2022", "Metadata_InChIKey"]].drop_duplicates()
        assert len(both) == 384
        assert len(pairs) == pairs.Metadata_JCP2022.nunique() == 302
        assert pairs.Metadata_InChIKey.nunique() == 302

    @pytest.mark.skipif(not HUB.is_file(), reason="no real Repurposing Hub table")
    def test_the_54_classes(self):
        wells = self.target2()
        library = wells.Metadata_InChIKey[wells.Metadata_ControlType != "negcon"]
        classes = mechanism_classes(library, read_hub(HUB), "recon_a")
        assert len(classes) == 301
        known = classes[classes.Metadata_moa != ""]
        assert known.Metadata_moa.nunique() == 54
        assert len(known) == 129
        sizes = known.Metadata_moa.value_counts()
        assert (sizes.min(), sizes.max(), sizes.idxmax()) == (2, 5, "CDK inhibitor")
        assert not known.Metadata_moa.str.contains("|", regex=False).any()
        assert sorted(known.Metadata_moa_id.unique()) == list(range(54))
        label = join_mechanisms(wells, classes, "classes")
        assert (label != "").sum() == 136
        assert (label[wells.Metadata_broad_sample == "DMSO"] == "").all()
        names = np.array(sorted(known.Metadata_moa.unique()))
        assert (names[known.Metadata_moa_id] == known.Metadata_moa).all()
