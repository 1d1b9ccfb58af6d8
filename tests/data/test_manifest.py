import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.manifest import (
    KEY,
    Roles,
    check_manifest,
    normalise_well,
    prepare_manifest,
    require,
)
from evenfield.data.names import is_well, map_control
from evenfield.errors import InputError


def plates(num_plates=2, wells=("A01", "A02", "A03", "A04"), sites=4):
    """Two classes, half of the wells DMSO, every plate its own batch."""
    rows = [
        {
            "Metadata_Plate": f"P{plate}",
            "Metadata_Batch": f"B{plate}",
            "Metadata_Well": well,
            "Metadata_Site": site,
            "Metadata_Compound": "DMSO" if index % 2 == 0 else f"c{index}",
            "Metadata_Label": "" if index % 2 == 0 else f"m{index}",
            "Metadata_ControlType": "negcon" if index % 2 == 0 else "trt",
        }
        for plate in range(num_plates)
        for index, well in enumerate(wells)
        for site in range(sites)
    ]
    return prepare_manifest(pd.DataFrame(rows))


def checks(manifest, severity=None):
    found = check_manifest(manifest, Roles())
    return {f.check: f for f in found if severity in (None, f.severity)}


@pytest.mark.parametrize(
    ("text", "well"),
    [("a1", "A01"), ("B_3", "B03"), ("A/1", "A01"), ("A01", "A01"), ("AF48", "AF48"),
     ("h-12", "H12"), ("C001", "C01")],
)  # fmt: skip
def test_spellings_of_one_well(text, well):
    assert normalise_well(text) == well


@pytest.mark.parametrize("text", ["A0", "", "1A", "AG01", "A49", "A", "12", None, "nan"])
def test_what_is_no_well_is_refused(text):
    with pytest.raises(InputError, match="not the name of a well"):
        normalise_well(text)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=6))
def test_normalising_is_idempotent_or_refuses(text):
    if is_well(text):
        assert normalise_well(normalise_well(text)) == normalise_well(text)
    else:
        with pytest.raises(InputError):
            normalise_well(text)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {
                "pert_type": ["control", "control", "trt", "trt"],
                "control_type": ["negcon", "poscon_cp", "NA", ""],
            },
            ["negcon", "poscon", "trt", "trt"],
        ),
        (
            {"Metadata_pert_type": ["negcon", "poscon", "trt", "empty"]},
            ["negcon", "poscon", "trt", "empty"],
        ),
        (
            {"well_type": ["negative_control", "positive_control", "treatment", "treatment"]},
            ["negcon", "poscon", "trt", "trt"],
        ),
        ({"Metadata_Control": [True, False, True, False]}, ["negcon", "trt", "negcon", "trt"]),
        (
            {"Metadata_ControlType": ["negcon_x", "poscon_orf", "trt", None]},
            ["negcon", "poscon", "trt", "trt"],
        ),
    ],
)
def test_control_vocabularies(columns, expected):
    table = pd.DataFrame({"Metadata_Plate": 1, "Metadata_Well": ["A1", "A2", "A3", "A4"]})
    assert prepare_manifest(table.assign(**columns)).Metadata_ControlType.tolist() == expected


def test_identifiers_are_strings_and_defaults_are_filled():
    table = pd.DataFrame(
        {"Metadata_Plate": [7.0, 8.0], "Metadata_Well": ["a1", "B02"], "extra": [1, 2]}
    )
    manifest = prepare_manifest(table)
    assert manifest.Metadata_Plate.tolist() == ["7", "8"] == manifest.Metadata_Batch.tolist()
    assert manifest.Metadata_WellOriginal.tolist() == ["a1", "B02"]
    assert manifest.Metadata_Well.tolist() == ["A01", "B02"]
    assert set(KEY) <= set(manifest)
    assert manifest.extra.tolist() == [1, 2]
    pd.testing.assert_frame_equal(prepare_manifest(manifest), manifest)


def test_treatment_is_compound_and_dose_and_controls_have_no_label():
    manifest = prepare_manifest(
        pd.DataFrame(
            {
                "Metadata_Plate": "p",
                "Metadata_Well": ["A1", "A2", "A3"],
                "Metadata_Compound": ["taxol", "DMSO", "x"],
                "Metadata_Concentration": ["0.30", "0", ""],
                "Metadata_Label": ["a", "DMSO", "b"],
                "Metadata_ControlType": ["trt", "negcon", "trt"],
            }
        )
    )
    assert manifest.Metadata_Treatment.tolist() == ["taxol@0.3", "DMSO", "x"]
    assert manifest.Metadata_Label.tolist() == ["a", "", "b"]


@pytest.mark.parametrize("drop", ["Metadata_Plate", "Metadata_Well"])
def test_plate_and_well_are_required(drop):
    with pytest.raises(InputError, match=drop):
        prepare_manifest(plates().drop(columns=drop))


def test_a_good_table_has_only_the_confound_it_was_built_with():
    manifest = plates(wells=("A01", "A02", "A03", "A04"))
    assert set(checks(manifest)) == set()


def test_every_error_names_its_rows():
    manifest = plates()
    manifest.loc[1, list(KEY)] = manifest.loc[0, list(KEY)]
    manifest.loc[5, "Metadata_Well"] = "Z99"
    manifest.loc[[6, 7], "Metadata_ControlType"] = "vehicle"
    manifest.loc[9, "Metadata_Plate"] = ""
    errors = checks(manifest, "error")
    assert errors["repeated-key"].rows == (0, 1)
    assert errors["unparsable-well"].rows == (5,)
    assert errors["unknown-control"].rows == (6, 7)
    assert "'vehicle' (2 rows)" in errors["unknown-control"].message
    assert errors["empty-name"].rows == (9,)
    with pytest.raises(InputError, match="vehicle"):
        require(check_manifest(manifest, Roles()))


def test_a_well_with_two_treatments_is_an_error():
    manifest = plates()
    manifest.loc[4, "Metadata_Treatment"] = "other"
    assert checks(manifest, "error")["duplicate-well"].rows == (4, 5, 6, 7)


def test_a_role_without_a_column_is_an_error():
    (finding,) = check_manifest(plates(), Roles(label="Metadata_Mechanism"))
    assert finding.check == "missing-role"
    assert finding.units == ("Metadata_Mechanism",)


def test_plates_without_and_with_few_controls():
    manifest = plates(num_plates=3)
    manifest.loc[manifest.Metadata_Plate == "P0", "Metadata_ControlType"] = "trt"
    first = manifest.query("Metadata_Plate == 'P1' and Metadata_ControlType == 'negcon'").index[3:]
    manifest = manifest.drop(first).reset_index(drop=True)
    warned = checks(manifest, "warning")
    assert warned["no-controls"].units == ("P0",)
    assert warned["few-controls"].units == ("P1",)
    assert (manifest.loc[list(warned["no-controls"].rows), "Metadata_Plate"] == "P0").all()


def test_missing_wells_and_lonely_labels():
    manifest = plates(num_plates=3)
    manifest = manifest.query("not (Metadata_Plate == 'P2' and Metadata_Well == 'A02')")
    manifest = manifest.reset_index(drop=True)
    manifest.loc[manifest.Metadata_Batch != "B0", "Metadata_Label"] = manifest[
        "Metadata_Label"
    ].replace("m3", "m1")
    warned = checks(manifest, "warning")
    assert warned["missing-wells"].units == ("P2",)
    assert warned["label-in-one-domain"].units == ("m3",)


def test_labels_that_go_with_batches_are_confounded():
    table = pd.DataFrame(
        {
            "Metadata_Batch": np.repeat(["B1", "B2"], 40),
            "Metadata_Plate": np.repeat(["P1", "P2"], 40),
            "Metadata_Well": [f"{'ABCD'[i % 4]}{i % 40 // 4 + 1:02d}" for i in range(80)],
            "Metadata_Label": ["m1", "m2"] * 40,
            "Metadata_ControlType": "trt",
        }
    )
    assert "label-confounded-with-domain" not in checks(prepare_manifest(table), "warning")
    table.loc[:33, "Metadata_Label"] = "m1"
    table.loc[46:, "Metadata_Label"] = "m2"
    found = checks(prepare_manifest(table), "warning")["label-confounded-with-domain"]
    assert found.units == ("B1", "B2")


def test_one_class_and_a_plate_in_two_batches():
    manifest = plates()
    manifest["Metadata_Label"] = manifest.Metadata_Label.replace({"m3": "m1"})
    manifest.loc[0:7, "Metadata_Batch"] = "B1"
    warned = checks(manifest, "warning")
    assert warned["one-class"].units == ("m1",)
    assert warned["context-spans"].units == ("P0",)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["p1", "p2", "", None, 3, 3.0]),
            st.sampled_from(["A1", "a01", "Z99", "", None, 5]),
            st.sampled_from(["negcon", "trt", "DMSO", None, True, 0.5]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_bad_tables_are_told_never_crash(rows):
    table = pd.DataFrame(
        rows, columns=["Metadata_Plate", "Metadata_Well", "Metadata_ControlType"], dtype=object
    )
    manifest = prepare_manifest(table)
    found = check_manifest(manifest, Roles())
    keys = manifest[list(KEY)]
    bad = (
        keys.duplicated().any()
        or (keys == "").any(axis=None)
        or not all(is_well(well) for well in keys.Metadata_Well)
        or not {map_control(v) for v in table.Metadata_ControlType} <= {"negcon", "trt"}
    )
    errors = [finding for finding in found if finding.severity == "error"]
    assert bool(errors) >= bool(bad)
    for finding in found:
        assert all(0 <= row < len(table) for row in finding.rows)
        assert finding.message
        assert finding.breaks
        assert finding.fix


def test_mixed_columns_get_one_type():
    table = plates().assign(note=np.array([1, "a"] * 16, dtype=object))
    assert set(map(type, prepare_manifest(table).note)) == {str}
