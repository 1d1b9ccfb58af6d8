import errno
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.ingest import ingest
from evenfield.data.process import Process
from evenfield.data.sources import SOURCES
from evenfield.data.store import Screen, ScreenWriter
from evenfield.errors import EvenfieldWarning, InputError, StorageError

CHANNELS = ("DNA", "ER")
TEMPLATE = "{Metadata_Plate}_{Metadata_Well}_s{Metadata_Site}_{channel}.tif"
Config = SOURCES["table"].Config


def index():
    """Two plates in two batches, four wells (half of them DMSO), two sites: 16 fields."""
    rows = [
        (f"P{p}", f"B{p}", f"A{w:02d}", str(s), "DMSO" if w < 3 else f"c{w}")
        for p in (1, 2)
        for w in (1, 2, 3, 4)
        for s in (1, 2)
    ]
    names = ["Plate", "Batch", "Well", "Site", "Compound"]
    table = pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in names])
    return table.assign(Metadata_Label=table.Metadata_Compound)


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 60000, (16, 2, 16, 12)).astype(np.uint16)


def path_of(folder, row, channel):
    values = index().iloc[row].to_dict()
    return folder / TEMPLATE.format(channel=channel, **values)


def plates(folder, table=None, images=None):
    """The files and the table of a small screen; a config that reads it."""
    for row, image in enumerate(pixels() if images is None else images):
        for channel, plane in zip(CHANNELS, image, strict=True):
            tifffile.imwrite(path_of(folder, row, channel), plane, compression="deflate")
    (index() if table is None else table).to_csv(folder / "index.csv", index=False)
    return config(folder)


def config(folder, **options):
    return Config(table=folder / "index.csv", channels=CHANNELS, template=TEMPLATE, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("screen"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "plates"
    folder.mkdir()
    plates(folder)
    return folder


def test_plates_become_a_screen(source, tmp_path):
    screen = ingest("table", config(source, pixel_size_um=0.5), tmp_path / "screen", workers=2)
    np.testing.assert_array_equal(screen.pixels, pixels())
    assert screen.channels == CHANNELS
    assert screen.pixel_size_um == 0.5
    assert screen.manifest.Metadata_Label.tolist()[4:8] == ["c3", "c3", "c4", "c4"]
    assert set(screen.statistics.subset) == {"all", "controls"}
    assert screen.info["provenance"]["settings"]["template"] == TEMPLATE
    assert left_behind(tmp_path) == ["screen"]


def test_more_workers_give_the_same_bytes(source, tmp_path):
    process = Process(illumination=True, eight_bit="deepprofiler", resize=(8, 6), grid=(2, 1))
    for name, workers in (("one", 1), ("four", 4)):
        ingest("table", config(source, process=process), tmp_path / name, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def test_processing_makes_one_row_per_crop(source, tmp_path):
    process = Process(resize=(8, 6), grid=(2, 3), eight_bit="cs-arm-bn")
    settings = config(source, process=process, pixel_size_um=0.5)
    screen = ingest("table", settings, tmp_path / "screen")
    assert screen.shape == (2, 4, 2)
    assert screen.dtype == np.uint8
    assert screen.pixel_size_um == 1.0
    assert screen.num_images == 16 * 6
    assert screen.manifest.Metadata_Object.tolist()[:7] == ["1", "2", "3", "4", "5", "6", "1"]
    assert screen.manifest.Metadata_Site.tolist()[:7] == ["1"] * 6 + ["2"]


def truncate(folder):
    path = path_of(folder, 3, "ER")
    path.write_bytes(path.read_bytes()[:-60])
    return [3]


def remove(folder):
    path_of(folder, 5, "DNA").unlink()
    return [5]


def empty(folder):
    tifffile.imwrite(path_of(folder, 6, "ER"), np.full((16, 12), 7, np.uint16))
    return [6]


def not_finite(folder):
    image = np.ones((16, 12), np.float32)
    image[3, 3] = np.nan
    for channel in CHANNELS:
        tifffile.imwrite(path_of(folder, 7, channel), image)
    return [7]


def other_size(folder):
    for channel in CHANNELS:
        tifffile.imwrite(path_of(folder, 9, channel), pixels()[9, 0, :14])
    return [9]


def one_channel_smaller(folder):
    tifffile.imwrite(path_of(folder, 10, "ER"), pixels()[10, 0, :14])
    return [10]


def other_depth(folder):
    for channel in CHANNELS:
        tifffile.imwrite(path_of(folder, 11, channel), (pixels()[11, 0] >> 8).astype(np.uint8))
    return [11]


def several_channels(folder):
    tifffile.imwrite(
        path_of(folder, 12, "DNA"), pixels()[12].repeat(2, 0), photometric="minisblack"
    )
    return [12]


def every_first(folder):
    truncate(folder)
    path = path_of(folder, 0, "DNA")
    path.write_bytes(b"")
    return [0, 3]


FAULTS = [truncate, remove, empty, not_finite, other_size, one_channel_smaller, other_depth,
          several_channels, every_first]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("illumination", [False, True])
def test_a_faulty_image_is_named_and_no_screen_appears(source, tmp_path, fault, illumination):
    rows = fault(source)
    settings = config(source, process=Process(illumination=illumination))
    with pytest.raises(InputError, match=f"{len(rows)} of 16 images cannot be used") as caught:
        ingest("table", settings, tmp_path / "screen")
    told = re.findall(r"row (\d+): (\S+)", str(caught.value))
    assert [int(row) for row, _ in told] == rows
    assert "What to do" in str(caught.value)
    assert not (tmp_path / "screen").exists()


def test_all_faults_are_told_together_and_mending_resumes(source, tmp_path):
    rows = sorted(truncate(source) + remove(source) + empty(source) + other_size(source))
    with pytest.raises(InputError, match="4 of 16") as caught:
        ingest("table", config(source), tmp_path / "screen")
    assert [int(row) for row in re.findall(r"row (\d+):", str(caught.value))] == rows
    plates(source)
    screen = ingest("table", config(source), tmp_path / "screen")
    np.testing.assert_array_equal(screen.pixels, pixels())
    ingest("table", config(source), tmp_path / "whole")
    assert contents(tmp_path / "screen") == contents(tmp_path / "whole")


def test_at_most_twenty_are_named(source, tmp_path, monkeypatch):
    for row in range(16):
        path_of(source, row, "ER").unlink()
    monkeypatch.setattr("evenfield.data.ingest.NUM_NAMED", 5)
    with pytest.raises(InputError, match="16 of 16") as caught:
        ingest("table", config(source), tmp_path / "screen")
    assert str(caught.value).count("row ") == 5
    assert "and 11 more" in str(caught.value)
    assert left_behind(tmp_path) == []


@settings(deadline=None, max_examples=12)
@given(rows=st.sets(st.integers(0, 15), min_size=1, max_size=16), keep=st.floats(0, 0.9))
def test_any_truncation_is_told_and_leaves_no_screen(tmp_path_factory, rows, keep):
    folder = tmp_path_factory.mktemp("plates")
    plates(folder)
    for row in rows:
        path = path_of(folder, row, "DNA")
        raw = path.read_bytes()
        path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(InputError, match=f"{len(rows)} of 16 images"):
        ingest("table", config(folder), folder / "screen", workers=2)
    assert not (folder / "screen").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Metadata_Site": "1"}, "share 8 keys"),
        ({"Metadata_Well": ["A01"] * 8 + ["??"] * 8}, "do not parse: '\\?\\?'"),
        ({"Metadata_ControlType": ["vehicle"] * 16}, r"'vehicle' \(16 rows\)"),
        ({"Metadata_Plate": ""}, "no Metadata_Plate"),
        ({"Metadata_Label": [str(i) for i in range(16)]}, "more than one Metadata_Label"),
    ],
)
def test_a_bad_table_is_refused_before_a_pixel_is_read(source, tmp_path, change, text):
    plates(source, table=index().assign(**change))
    settings = Config(table=source / "index.csv", channels=CHANNELS, template="none_{channel}.tif")
    with pytest.raises(InputError, match=text):
        ingest("table", settings, tmp_path / "screen")
    assert left_behind(tmp_path) == []


def test_a_plate_without_dmso_is_a_stored_warning(source, tmp_path):
    table = index()
    table.loc[table.Metadata_Plate == "P2", "Metadata_Compound"] = "x"
    table.loc[table.Metadata_Plate == "P2", "Metadata_Label"] = "x"
    plates(source, table=table)
    screen = ingest("table", config(source), tmp_path / "screen")
    found = {finding["check"]: finding for finding in screen.info["findings"]}
    assert found["no-controls"]["units"] == ["P2"]
    assert found["no-controls"]["num_rows"] == 8
    assert found["few-controls"]["units"] == ["P1"]
    controls = screen.statistics.query("subset == 'controls'")
    assert set(controls.Metadata_Plate) == {"P1"}


def test_missing_files_may_be_skipped_aloud(source, tmp_path):
    remove(source)
    with pytest.warns(EvenfieldWarning, match=r"P1_A03_s2_DNA\.tif"):
        screen = ingest("table", config(source, missing="skip"), tmp_path / "screen")
    np.testing.assert_array_equal(screen.pixels, np.delete(pixels(), 5, 0))


def test_an_existing_folder_is_refused(source, tmp_path):
    (tmp_path / "screen").mkdir()
    with pytest.raises(InputError, match="exists already"):
        ingest("table", config(source), tmp_path / "screen")
    with pytest.raises(InputError, match="is not a screen"):
        ingest("table", config(source), tmp_path / "screen", overwrite=True)
    (tmp_path / "screen").rmdir()
    ingest("table", config(source), tmp_path / "screen")
    plates(source, images=pixels(seed=1))
    screen = ingest("table", config(source), tmp_path / "screen", overwrite=True)
    np.testing.assert_array_equal(screen.pixels, pixels(seed=1))


@pytest.mark.parametrize("after", [0, 5])
def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch, after):
    real, calls = os.pwrite, []

    def full(*args):
        calls.append(1)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        ingest("table", config(source), tmp_path / "screen")
    assert caught.value.exit_code == 3
    assert left_behind(tmp_path) == []


def test_a_killed_ingest_resumes_to_the_same_bytes(source, tmp_path):
    program = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        import test_ingest as t
        from evenfield.data import store
        store.ScreenWriter.sync_seconds = 0.0
        write, count = store.ScreenWriter.write, []
        def dying(self, rows, images):
            write(self, rows, images)
            count.append(1)
            if len(count) == 6:
                os.kill(os.getpid(), 9)
        store.ScreenWriter.write = dying
        t.ingest("table", t.config(t.Path(sys.argv[2])), sys.argv[3], workers=1)
    """
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), Path(__file__).parent, source,
         tmp_path / "screen"],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
    )  # fmt: skip
    assert died.returncode == -9, died.stderr.decode()
    assert left_behind(tmp_path) == ["screen.partial"]
    with pytest.raises(InputError, match="not a screen"):
        Screen.open(tmp_path / "screen.partial")
    written = []
    with pytest.MonkeyPatch.context() as patch:
        write = ScreenWriter.write
        patch.setattr(
            ScreenWriter,
            "write",
            lambda self, rows, images: (written.extend(rows), write(self, rows, images)),
        )
        ingest("table", config(source), tmp_path / "screen", workers=1)
    assert written == list(range(6, 16))
    ingest("table", config(source), tmp_path / "whole", workers=1)
    assert contents(tmp_path / "screen") == contents(tmp_path / "whole")


def test_what_the_disk_refuses_is_told(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        ingest("table", config(source), tmp_path / "file" / "screen")
