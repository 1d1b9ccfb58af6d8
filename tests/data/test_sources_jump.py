import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gallery_miniature import (
    BUCKET,
    CHANNELS,
    DISK,
    DMSO,
    LAYOUT,
    only,
    pixel,
    sites,
    write_gallery,
    write_light,
    write_tables,
)

from evenfield.cli import run
from evenfield.data.ingest import ingest
from evenfield.data.jump_tables import read_jump_tables
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest
from evenfield.data.mechanisms import mechanism_classes, read_hub
from evenfield.data.process import Process
from evenfield.data.screen import Screen
from evenfield.data.sources import SOURCES
from evenfield.data.tree import Tree
from evenfield.errors import EvenfieldWarning, InputError

Config = SOURCES["jump"].Config


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    root = tmp_path_factory.mktemp("gallery")
    return write_gallery(root / "cpg0016-jump"), write_tables(root / "metadata")


def config(gallery, **options):
    folder, tables = gallery
    return Config(
        **{
            "folder": str(folder),
            "tables": tables,
            "check_layout": False,
            "illumination": "off",
            **options,
        }
    )


def listing(gallery, **options):
    return SOURCES["jump"](config(gallery, **options)).listing()


def test_both_forms_of_load_data_and_the_joins(gallery):
    found = listing(gallery)
    manifest = prepare_manifest(found.manifest)
    assert len(manifest) == 3 * len(sites())  # the COMPOUND plate is not chosen
    assert manifest.Metadata_Plate.unique().tolist() == ["JCPQC016", "JCPQC017", "A1166127"]
    assert manifest.Metadata_Batch.unique().tolist() == ["CP_25", "CP_26", "J3"]
    for row, (well, site) in enumerate(3 * sites()):
        line = manifest.iloc[row]
        assert (line.Metadata_Well, line.Metadata_Site) == (well, str(site))
        assert line.Metadata_JCP2022 == line.Metadata_Compound == LAYOUT[well]
        kind = {"A01": "trt", "A02": "negcon", "B01": "poscon", "B02": "empty"}[well]
        assert line.Metadata_ControlType == kind
        assert line.Metadata_Label == ("" if kind in ("negcon", "empty") else LAYOUT[well])
        number = {0: 0, 1: 1, 2: 3}[row // len(sites())]
        expected = [pixel(number, row % len(sites()), channel) for channel in range(5)]
        assert found.read(row)[:, 0, 0].tolist() == expected
    assert manifest.Metadata_InChIKey[0] == "A" * 14 + "-UHFFFAOYSA-N"
    assert set(manifest.Metadata_InChIKey[manifest.Metadata_Well == "B02"]) == {""}
    assert set(manifest.Metadata_Microscope) == {"Opera Phenix", "ImageXpress Micro Confocal"}
    errors = [f for f in check_manifest(manifest, Roles()) if f.severity == "error"]
    assert errors == []


def test_the_url_form_equals_the_classic_one(gallery, tmp_path):
    folder, tables = gallery
    one = listing(gallery, plates=("JCPQC016",))
    name = "source_3/workspace/load_data_csv/CP_25/JCPQC016"
    table = pd.read_csv(folder / name / "load_data.csv.gz", dtype=str)
    for channel in CHANNELS:
        path, file = table.pop(f"PathName_Orig{channel}"), table.pop(f"FileName_Orig{channel}")
        table[f"URL_Orig{channel}"] = path.str.replace(DISK, BUCKET) + file
    (tmp_path / name).mkdir(parents=True)
    table.to_parquet(tmp_path / name / "load_data.parquet")
    (tmp_path / "source_3" / "images").symlink_to(folder / "source_3" / "images")
    two = listing((tmp_path, tables), plates=("JCPQC016",))
    pd.testing.assert_frame_equal(prepare_manifest(one.manifest), prepare_manifest(two.manifest))
    for row in (0, 7):
        np.testing.assert_array_equal(one.read(row), two.read(row))


def test_choice_of_plates(gallery):
    assert set(listing(gallery, plate_type="COMPOUND").manifest.Metadata_Plate) == {"0123"}
    every = listing(gallery, plate_type="").manifest
    assert every.Metadata_Plate.nunique() == 4
    assert set(listing(gallery, sources=("source_8",)).manifest.Metadata_Batch) == {"J3"}
    assert set(listing(gallery, batches=("CP_26",)).manifest.Metadata_Plate) == {"JCPQC017"}
    with pytest.raises(InputError, match=r"no Source source_9(.|\n)*source_3, source_8"):
        listing(gallery, sources=("source_9",))
    with pytest.raises(InputError, match="no plate is of type COMPOUND, source source_8"):
        listing(gallery, plate_type="COMPOUND", sources=("source_8",))


def test_channels_go_by_name(gallery):
    found = listing(gallery, channels=("Mito", "Hoechst"))
    assert found.channels == ("Mito", "Hoechst")
    assert found.read(0)[:, 0, 0].tolist() == [pixel(0, 0, 4), pixel(0, 0, 0)]
    with pytest.raises(InputError, match=r"no channel Golgi(.|\n)*DNA, ER, RNA, AGP, Mito"):
        listing(gallery, channels=("DNA", "Golgi"))


def test_from_afar(gallery, tmp_path):
    """The same through fsspec: a bucket in memory, with the addresses that load_data names."""
    fsspec = pytest.importorskip("fsspec")
    folder, _ = gallery
    memory = fsspec.filesystem("memory")
    root = "memory://gallery/cpg0016-jump"
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    here = ingest("jump", config(gallery, sources=("source_3",)), tmp_path / "a", workers=1)
    afar = ingest(
        "jump",
        config(gallery, folder=root, sources=("source_3",), subset="present", missing="skip"),
        tmp_path / "b",
        workers=2,
    )
    assert afar.fingerprint == here.fingerprint
    memory.rm(f"{root}/source_3/images", recursive=True)
    with pytest.raises(InputError, match="no image of these plates lies in memory://"):
        listing(gallery, folder=root, sources=("source_3",), subset="present")
    with pytest.raises(InputError, match=r"memory://.*r01c01f01p01-ch1\.tiff"):
        listing(gallery, folder=root, sources=("source_3",)).read(0)


def test_an_address_that_nothing_reaches_names_the_extra(monkeypatch):
    def absent(name):
        raise ImportError(f"Install {name}")

    monkeypatch.setattr("evenfield.data.tree.import_module", absent)
    with pytest.raises(InputError, match=r"evenfield\[s3\]"):
        Tree(BUCKET)


def test_published_illumination(tmp_path):
    gallery = write_gallery(tmp_path / "g"), write_tables(tmp_path / "m")
    options = {"sources": ("source_8",)}
    raw = listing(gallery, **options).read(0)
    dark = listing(gallery, **options, illumination="present")
    assert any("1 of 1 plates lack illumination functions" in note for note in dark.notes)
    np.testing.assert_array_equal(dark.read(0), raw)
    with pytest.raises(InputError, match="lack illumination functions: source_8/A1166127"):
        listing(gallery, **options, illumination="require")
    folder = write_light(gallery[0])
    flat = listing(gallery, **options, illumination="present")
    assert flat.notes == dark.notes[:-1]
    np.testing.assert_array_equal(flat.read(0), np.rint(raw / 2).astype(np.uint16))
    np.save(folder / "A1166127_IllumER.npy", np.zeros((8, 8)))
    with pytest.raises(InputError, match=r"IllumER\.npy.*is no illumination function"):
        listing(gallery, **options, illumination="present").read(0)
    for name in CHANNELS:
        np.save(folder / f"A1166127_Illum{name}.npy", np.ones((4, 8)))
    with pytest.raises(InputError, match="is 8 x 8, its illumination function 4 x 8"):
        listing(gallery, **options, illumination="present").read(0)
    with pytest.raises(InputError, match="would both be divided by"):
        config(gallery, illumination="present", process=Process(illumination=True))


def test_missing_files(tmp_path):
    gallery = write_gallery(tmp_path / "g"), write_tables(tmp_path / "m")
    images = sorted((gallery[0] / "source_3/images/CP_25").rglob("*ch5.tiff"))
    images[0].unlink()
    skipped = listing(gallery, missing="skip")
    assert len(skipped.manifest) == 3 * len(sites()) - 1
    assert any("1 of 24 fields were left out" in note for note in skipped.notes)
    only(gallery[0], "source_3")
    present = listing(gallery, subset="present", missing="skip")
    assert set(present.manifest.Metadata_Source) == {"source_3"}
    for path in gallery[0].glob("source_8/workspace/*/*/*/*"):
        path.unlink()
    with pytest.raises(InputError, match="1 of 3 plates have no load_data"):
        listing(gallery)
    present = listing(gallery, subset="present", missing="skip")
    assert any("1 of 3 plates have no load_data and are left out" in n for n in present.notes)


def test_microscopes_with_other_pixels(gallery, tmp_path):
    with pytest.warns(EvenfieldWarning, match=r"0\.500 to 1\.000 um wide"):
        ingest(
            "jump",
            config(gallery, process=Process(crop=8)),
            tmp_path / "as-is",
            workers=1,
        )
    process = Process(pixel_size_um=1.0, crop=8)
    screen = ingest("jump", config(gallery, process=process), tmp_path / "even", workers=1)
    assert screen.pixel_size_um == 1.0
    assert screen.shape == (5, 8, 8)
    fine = listing(gallery).read(0).astype(float)
    mean = fine.reshape(5, 8, 2, 8, 2).mean((2, 4))
    np.testing.assert_array_equal(screen.pixels[0], np.rint(mean))
    one = listing(gallery, sources=("source_8",))
    assert one.pixel_size_um == 1.0


def test_mechanisms_are_the_label_where_given(gallery, tmp_path):
    table = tmp_path / "classes.csv"
    pd.DataFrame(
        {"Metadata_InChIKey": ["A" * 14 + "-UHFFFAOYSA-N"], "Metadata_moa": ["CDK inhibitor"]}
    ).to_csv(table, index=False)
    manifest = prepare_manifest(listing(gallery, mechanisms=table).manifest)
    expected = {"A01": "CDK inhibitor", "A02": "", "B01": "", "B02": ""}
    assert manifest.Metadata_Label.tolist() == [expected[w] for w in manifest.Metadata_Well]
    assert manifest.Metadata_Treatment.tolist() == [LAYOUT[w] for w in manifest.Metadata_Well]


def rewrite(path: Path, change):
    """A table, changed and written back."""
    packed = path.suffix == ".gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    text = change(table).to_csv(index=False).encode()
    path.write_bytes(gzip.compress(text) if packed else text)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plate", lambda t: pd.concat([t, t[:1]]), "repeats 1 of its keys.*source_3/JCPQC016"),
        ("well", lambda t: pd.concat([t, t[:2]]), r"repeats 2 .*source_3/JCPQC016/A01"),
        (
            "well",  # one well under two spellings
            lambda t: pd.concat([t, t[:1].assign(Metadata_Well="a1")]),
            "repeats 1 of its keys",
        ),
        ("compound", lambda t: pd.concat([t, t[:1]]), "repeats 1 .*JCP2022_000001"),
        ("perturbation_control", lambda t: pd.concat([t, t[1:2]]), f"repeats 1 .*{DMSO}"),
        ("plate", lambda t: t.drop(columns="Metadata_PlateType"), "lacks Metadata_PlateType"),
        (
            "plate",
            lambda t: t.assign(Metadata_Batch="other"),
            "no load_data below",
        ),
    ],
)
def test_a_key_that_would_multiply_images_is_refused(gallery, tmp_path, name, change, message):
    tables = write_tables(tmp_path / "m")
    (path,) = tables.glob(f"{name}.csv*")
    rewrite(path, change)
    with pytest.raises(InputError, match=message):
        listing((gallery[0], tables))


def test_wells_and_perturbations_that_no_table_knows_are_named_not_lost(gallery, tmp_path):
    tables = write_tables(tmp_path / "m")
    rewrite(
        tables / "well.csv.gz",
        lambda t: t[(t.Metadata_Plate != "A1166127")].drop(index=1),
    )
    rewrite(tables / "compound.csv.gz", lambda t: t[1:])
    found = listing((gallery[0], tables))
    assert len(found.manifest) == 3 * len(sites())
    text = " | ".join(found.notes)
    assert "lacks 1 plates (source_8/A1166127)" in text
    assert "lacks 1 wells (JCPQC016/A02)" in text
    assert "1 perturbations are in no table: JCP2022_000001" in text
    unknown = found.manifest[found.manifest.Metadata_Source == "source_8"]
    assert set(unknown.Metadata_Label) == {""}


def test_load_data_of_another_plate_is_refused_of_another_batch_told(tmp_path):
    gallery = write_gallery(tmp_path / "g"), write_tables(tmp_path / "m")
    path = gallery[0] / "source_3/workspace/load_data_csv/CP_25/JCPQC016/load_data.csv.gz"
    rewrite(path, lambda t: t.assign(Metadata_Batch="CP_24"))
    found = listing(gallery)
    assert any("load_data of 1 plates names another batch" in note for note in found.notes)
    assert found.manifest.Metadata_Batch[0] == "CP_25"
    rewrite(path, lambda t: t.assign(Metadata_Plate="JCPQC017"))
    with pytest.raises(InputError, match="is about plate JCPQC017, not JCPQC016"):
        listing(gallery)
    rewrite(path, lambda t: t.drop(columns="Metadata_Well"))
    with pytest.raises(InputError, match="lacks Metadata_Well"):
        listing(gallery)


def test_files_elsewhere_need_a_rule(tmp_path):
    gallery = write_gallery(tmp_path / "g"), write_tables(tmp_path / "m")
    path = gallery[0] / "source_3/workspace/load_data_csv/CP_25/JCPQC016/load_data.csv.gz"
    folder = next((gallery[0] / "source_3/images/CP_25").rglob("Images"))
    rewrite(path, lambda t: t.assign(**{f"PathName_Orig{c}": "D:\\plates" for c in CHANNELS}))
    with pytest.raises(InputError, match="does not lie below source_3/images/ or CP_25/images/"):
        listing(gallery, plates=("JCPQC016",))
    found = listing(gallery, plates=("JCPQC016",), replace=(f"D:/plates={folder}",))
    assert found.read(3)[2, 0, 0] == pixel(0, 3, 2)
    disk = f"/mnt/production/CP_25/images/{folder.parent.name}/Images"  # no source in it
    rewrite(path, lambda t: t.assign(**{f"PathName_Orig{c}": disk for c in CHANNELS}))
    assert listing(gallery, plates=("JCPQC016",)).read(3)[2, 0, 0] == pixel(0, 3, 2)
    with pytest.raises(InputError, match="write old=new"):
        config(gallery, replace=("D:/plates",))


def test_layout_of_target2_plates_is_checked(gallery):
    found = listing(gallery, check_layout=True)
    assert any("3 of 3 Target-2 plates have not 384 wells" in note for note in found.notes)
    assert any("source_3/JCPQC016 (4, 1)" in note for note in found.notes)


def test_from_the_hub_to_labels_by_the_command_line(gallery, tmp_path):
    """What docs/jump.md says, in small: hub files, classes, one command."""
    (tmp_path / "drugs.txt").write_text("!\npert_iname\tmoa\na\tCDK inhibitor\nb\tCDK inhibitor\n")
    keys = {letter: f"{letter.upper() * 14}-SALT-N" for letter in "ab"}
    lines = [f"{name}\t{key}\n" for name, key in keys.items()]
    (tmp_path / "samples.txt").write_text("!\npert_iname\tInChIKey\n" + "".join(lines))
    hub = read_hub(tmp_path / "drugs.txt", tmp_path / "samples.txt")
    library = read_jump_tables(gallery[1]).perturbations["compound"].Metadata_InChIKey
    mechanism_classes(library, hub).to_csv(tmp_path / "classes.csv", index=False)
    command = ["ingest", "jump", str(tmp_path / "screen"), "--folder", str(gallery[0]), "--tables"]
    command += [str(gallery[1]), "--mechanisms", str(tmp_path / "classes.csv"), "--quiet"]
    command += ["--sources", "source_3", "--illumination", "off", "--no-check-layout"]
    assert run(command) == 0
    manifest = Screen.open(tmp_path / "screen").manifest
    label = dict(zip(manifest.Metadata_Well, manifest.Metadata_Label, strict=True))
    assert label == {"A01": "CDK inhibitor", "A02": "", "B01": "CDK inhibitor", "B02": ""}
