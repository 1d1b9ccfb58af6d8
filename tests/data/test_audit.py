"""The audit: each finding on a screen or table that has the fault, and none on one that has not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenfield.cli import run
from evenfield.data.audit import audit_profiles, audit_screen
from evenfield.data.checks import check_manifest
from evenfield.data.design import check_design
from evenfield.data.image_checks import fine_structure
from evenfield.data.manifest import Roles, prepare_manifest
from evenfield.data.profiles import read_profiles, write_profiles
from evenfield.data.simulation.config import LayoutConfig, SimulationConfig
from evenfield.data.simulation.plan import layout
from evenfield.data.store import Screen, ScreenWriter
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles


def table(num_batches=3, plates=2, copies=4, seed=0):
    """Plates of 8 controls and 3 treatments in `copies` wells each, at random places."""
    rng = numpy_generator(seed, "audit layout")
    names = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]
    rows = []
    for batch in range(num_batches):
        for plate in range(plates):
            content = ["DMSO"] * 8 + ["a", "b", "c"] * copies
            wells = rng.permutation(names)[: len(content)]
            rows += [
                {
                    "Metadata_Batch": f"B{batch}",
                    "Metadata_Plate": f"B{batch}P{plate}",
                    "Metadata_Well": str(well),
                    "Metadata_Treatment": what,
                    "Metadata_Label": what.upper(),
                    "Metadata_ControlType": "negcon" if what == "DMSO" else "trt",
                }
                for well, what in zip(wells, content, strict=True)
            ]
    return pd.DataFrame(rows)


def design(frame):
    return {f.check: f for f in check_design(prepare_manifest(frame), Roles())}


def images(frame, seed=1):
    """Noise, (n, 2, 12, 12) uint8."""
    noise = numpy_generator(seed, "images").normal(55, 8, (len(frame), 2, 12, 12))
    return noise.clip(1, 99).astype(np.uint8)


def screen_of(frame, pixels, folder):
    with ScreenWriter(
        folder, frame, channels=("DNA", "ER"), shape=pixels.shape[1:], dtype=pixels.dtype,
        provenance={},
    ) as writer:  # fmt: skip
        writer.write(range(len(frame)), pixels)
    return Screen.open(folder)


def audited(frame, pixels, folder):
    found = audit_screen(screen_of(frame, pixels, folder), Roles())
    assert [f.severity for f in found] == sorted(
        (f.severity for f in found), key=["error", "warning", "info"].index
    )
    assert all(f.breaks and f.fix and f.message for f in found)
    return {f.check: f for f in found}


def test_a_sound_screen_has_no_finding(tmp_path):
    assert not audited(table(), images(table()), tmp_path / "s")


def test_unused_wells_of_random_layouts_are_not_missing():
    for replicates in (2, 5):
        plan = LayoutConfig(num_batches=4, num_plates=3, replicates=replicates, num_dmso=24)
        manifest = prepare_manifest(layout(SimulationConfig(layout=plan)))
        assert "missing-wells" not in {f.check for f in check_manifest(manifest, Roles())}
    nearly_full = table(num_batches=4, copies=5)  # 23 of 24 wells on each plate
    manifest = prepare_manifest(nearly_full)
    assert "missing-wells" not in {f.check for f in check_manifest(manifest, Roles())}
    lost = manifest.drop(manifest.query("Metadata_Plate == 'B1P0'").index[:3]).reset_index()
    (found,) = (f for f in check_manifest(lost, Roles()) if f.check == "missing-wells")
    assert found.units == ("B1P0",)
    assert "(3)" in found.message or "(2)" in found.message


def test_treatments_of_one_batch_and_of_one_well():
    frame = table()
    frame.loc[(frame.Metadata_Batch != "B1") & (frame.Metadata_Treatment == "c"),
              "Metadata_Treatment"] = "b"  # fmt: skip
    frame.loc[frame.index[frame.Metadata_Treatment == "a"][0], "Metadata_Treatment"] = "z"
    found = design(frame)
    assert found["treatment-in-one-domain"].units == ("c", "z")
    assert found["one-well-treatments"].units == ("z",)
    rows = list(found["treatment-in-one-domain"].rows)
    assert set(frame.loc[rows, "Metadata_Treatment"]) == {"c", "z"}


def test_the_same_wells_on_every_plate_are_told():
    one = table(num_batches=1, plates=1)
    frame = pd.concat(
        [one.assign(Metadata_Plate=f"P{i}", Metadata_Batch=f"B{i}") for i in range(3)]
    )
    assert design(frame)["treatment-tied-to-position"].units == ("a", "b", "c")
    assert "treatment-tied-to-position" not in design(table())


def test_labels_in_columns_are_told():
    frame = table()
    treated = frame.Metadata_Treatment != "DMSO"
    column = frame.loc[treated, "Metadata_Well"].str[1:].astype(int)
    frame.loc[treated, "Metadata_Label"] = np.array(["A", "B", "C"])[(column - 1) // 2]
    assert design(frame)["label-tied-to-position"].units == ("column",)
    assert "label-tied-to-position" not in design(table())


@pytest.mark.parametrize("ordered", [True, False])
def test_doses_along_a_row_are_told(ordered):
    rng = numpy_generator(3, "doses")
    rows = []
    for plate in range(4):
        for number, row in enumerate("ABCD"):
            doses = np.array([0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
            doses = doses if ordered else rng.permutation(doses)
            rows += [
                {
                    "Metadata_Batch": f"B{plate % 2}",
                    "Metadata_Plate": f"P{plate}",
                    "Metadata_Well": f"{row}{column + 1:02d}",
                    "Metadata_Compound": f"c{number}",
                    "Metadata_Concentration": dose,
                }
                for column, dose in enumerate(doses)
            ]
    found = design(pd.DataFrame(rows))
    assert ("dose-tied-to-position" in found) == ordered


def test_classes_of_unequal_size_are_told():
    frame = table(copies=5)
    label = frame.Metadata_Label.where(frame.Metadata_Label != "C", "B")
    label[frame.index[frame.Metadata_Label == "C"][0]] = "C"
    found = design(frame.assign(Metadata_Label=label))
    assert found["class-imbalance"].units == ("B", "C")
    assert found["one-well-classes"].units == ("C",)
    assert "class-imbalance" not in design(frame)


def test_copied_images_within_and_across_what_is_held_out(tmp_path):
    frame = table()
    pixels = images(frame)
    place = {name: np.flatnonzero(frame.Metadata_Plate == name) for name in ("B0P0", "B0P1")}
    label = frame.Metadata_Label
    first = place["B0P0"][label[place["B0P0"]] == "A"][:2]
    other_label = place["B0P1"][label[place["B0P1"]] == "B"][0]
    pixels[first[1]] = pixels[first[0]]  # inside: a well copied to another of its plate
    pixels[other_label] = pixels[place["B0P0"][label[place["B0P0"]] == "C"][0]]
    a_late = np.flatnonzero((frame.Metadata_Batch == "B2") & (label == "A"))[0]
    a_early = np.flatnonzero((frame.Metadata_Batch == "B1") & (label == "A"))[0]
    pixels[a_late] = pixels[a_early]
    found = audited(frame, pixels, tmp_path / "s")
    assert found["copies-across-splits"].severity == "error"
    assert set(found["copies-across-splits"].rows) == {a_early, a_late}
    assert other_label in found["copies-with-two-labels"].rows
    assert set(found["copies"].rows) == set(first)
    assert found["copies"].severity == "warning"


def test_images_without_contrast_are_empty_and_no_copies(tmp_path):
    frame = table()
    pixels = images(frame)
    gone = np.flatnonzero(frame.Metadata_Plate == "B1P0")
    pixels[gone, 1] = 7
    pixels[[0, 1]] = 5  # two empty images are no copies
    screen = screen_of(frame, pixels, tmp_path / "s")
    found = [f for f in audit_screen(screen, Roles()) if f.check == "empty-channel"]
    assert {(f.severity, len(f.rows)) for f in found} == {("error", len(gone)), ("warning", 2)}
    assert not [f for f in audit_screen(screen, Roles()) if f.check.startswith("copies")]


def test_saturated_images_are_told_and_single_bright_pixels_are_not(tmp_path):
    frame = table()
    pixels = images(frame)
    pixels[:, :, 0, 0] = 255
    assert "saturated-channel" not in audited(frame, pixels, tmp_path / "a")
    pixels[5, 0, :2] = 255
    assert audited(frame, pixels, tmp_path / "b")["saturated-channel"].rows == (5,)


def test_focus_falls_with_blur_and_not_with_gain():
    rng = numpy_generator(0, "focus")
    image = rng.normal(size=(1, 64, 64))
    blurred = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2)) / 3
    np.testing.assert_allclose(fine_structure(7 * image + 3), fine_structure(image), rtol=1e-3)
    np.testing.assert_allclose(fine_structure(image), 20, rtol=0.1)
    assert fine_structure(blurred) < 0.7 * fine_structure(image)
    assert np.isnan(fine_structure(np.ones((1, 5, 5)))).all()


def test_plates_of_other_intensity_and_focus_are_told(tmp_path):
    frame = table()
    pixels = images(frame)
    bright = np.flatnonzero(frame.Metadata_Plate == "B2P1")
    pixels[bright, 0] = pixels[bright, 0] // 2 * 5
    soft = np.flatnonzero(frame.Metadata_Plate == "B0P0")
    smooth = pixels[soft, 1].astype(float)
    for axis in (1, 2):
        for step in (1, 2):
            smooth = (smooth + np.roll(smooth, step, axis)) / 2
    pixels[soft, 1] = smooth
    found = audited(frame, pixels, tmp_path / "s")
    assert found["plates-of-other-intensity"].units == ("B2P1",)
    assert "DNA" in found["plates-of-other-intensity"].message
    assert found["plates-out-of-focus"].units == ("B0P0",)


def test_controls_that_drift_with_time_are_told(tmp_path):
    frame = table(num_batches=6)
    pixels = images(frame)
    number = pd.factorize(frame.Metadata_Plate)[0]
    pixels[:, 0] = pixels[:, 0] + (5 * number).astype(np.uint8)[:, None, None]
    found = audited(frame, pixels, tmp_path / "a")
    assert found["control-drift"].severity == "info"  # no column says when
    backwards = frame.assign(Metadata_Date=[f"2026-03-{28 - n:02d}" for n in number])
    found = audited(backwards, pixels, tmp_path / "b")
    assert found["control-drift"].severity == "warning"
    assert "falls" in found["control-drift"].message
    assert "Metadata_Date" in found["control-drift"].message


def profiles_of(frame, d=6, seed=2):
    x = numpy_generator(seed, "values").normal(size=(len(frame), d))
    return Profiles(features=x, names=tuple(f"f{i}" for i in range(d)), metadata=frame)


def test_a_sound_table_has_no_finding():
    assert not audit_profiles(profiles_of(table()), Roles())


def test_faults_of_a_table_are_told():
    profiles = profiles_of(table())
    x = profiles.features
    x[3, 1] = np.nan
    x[(profiles.metadata.Metadata_Plate == "B1P1").to_numpy()] += 30
    x[:, 4] = 1.0
    x[10] = x[11]
    found = {f.check: f for f in audit_profiles(profiles, Roles())}
    assert found["not-finite"].rows == (3,)
    assert found["not-finite"].units == ("f1",)
    assert found["constant-features"].units == ("f4",)
    assert "f4" in found["no-spread-in-controls"].units
    assert found["control-plates-apart"].units == ("B1P1",)
    assert {10, 11} <= {row for name, f in found.items() if "copies" in name for row in f.rows}


def test_repeated_wells_and_treatment_tables():
    frame = table()
    frame.loc[1, ["Metadata_Plate", "Metadata_Well"]] = frame.loc[
        0, ["Metadata_Plate", "Metadata_Well"]
    ]
    found = {f.check: f for f in audit_profiles(profiles_of(frame), Roles())}
    assert found["repeated-key"].rows == (0, 1)
    treatments = profiles_of(table()[["Metadata_Treatment"]])
    assert [f.check for f in audit_profiles(treatments, Roles())] == ["no-wells"]
    no_role = audit_profiles(profiles_of(table()), replace(Roles(), label="Metadata_MOA"))
    assert no_role[0].check == "missing-role"


def test_the_exit_code_follows_the_severity(tmp_path, capsys):
    sound, faulty = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_profiles(profiles_of(table()), sound)
    profiles = profiles_of(table())
    profiles.features[:, 2] = 0.5
    write_profiles(profiles, faulty)
    assert run(["audit", str(sound)]) == 0
    assert "nothing to complain about" in capsys.readouterr().out
    assert run(["audit", str(faulty)]) == 0
    assert (
        run(["audit", str(faulty), "--fail-on", "warning", "--out", str(tmp_path / "f.json")]) == 1
    )
    told = pd.read_json(tmp_path / "f.json")
    assert "constant-features" in set(told["check"])
    assert "What to do" in capsys.readouterr().out
    assert run(["audit", str(tmp_path / "none.parquet")]) == 2


@pytest.mark.real
def test_what_is_known_of_bbbc021_is_found():
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "bbbc021_profiles"
    if not folder.is_dir():
        pytest.skip("the profiles of BBBC021 do not lie beside the checkout")
    profiles = read_profiles(folder / "bbbc021_wells.parquet", positions="keep")
    found = {f.check: f for f in audit_profiles(profiles, replace(Roles(), label="Metadata_MoA"))}
    # Every treatment was made in one week, always in the same wells, doses in a row.
    assert "103 of 103 treatments" in found["treatment-in-one-domain"].message
    assert len(found["treatment-in-one-domain"].rows) == 302
    assert "103 of 103 treatments" in found["treatment-tied-to-position"].message
    assert "dose-tied-to-position" in found
    assert len(found["few-controls"].units) == 55  # 6 wells on each plate
    assert "copies" not in found
