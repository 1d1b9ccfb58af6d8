# ruff: noqa: PT012, PT031  (what a writer does inside its block is what is tested)
import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.manifest import Roles
from evenfield.data.statistics import summarise
from evenfield.data.store import Screen, ScreenWriter
from evenfield.errors import EvenfieldWarning, InputError, StorageError

SHAPE = (2, 6, 5)


def table(num_plates=2, per_plate=9):
    """Plates interleaved, so that one plate's rows are not neighbours."""
    return pd.DataFrame(
        {
            "Metadata_Plate": f"P{i % num_plates}",
            "Metadata_Batch": f"B{i % num_plates}",
            "Metadata_Well": f"A{i // num_plates + 1:02d}",
            "Metadata_Label": f"m{i // num_plates % 3}",
            "Metadata_ControlType": "negcon" if i // num_plates % 3 == 0 else "trt",
        }
        for i in range(num_plates * per_plate)
    )


def images(num=18, dtype=np.uint16, seed=0):
    high = np.iinfo(dtype).max
    return (np.random.default_rng(seed).integers(0, high, (num, *SHAPE))).astype(dtype)


def writer(folder, manifest=None, dtype=np.uint16, **options):
    options = {"provenance": {"reader": "test"}, **options}
    manifest = table() if manifest is None else manifest
    return ScreenWriter(
        folder, manifest, channels=("DNA", "AGP"), shape=SHAPE, dtype=dtype, **options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read(tmp_path, dtype):
    pixels = images(dtype=dtype)
    with writer(tmp_path / "s", dtype=dtype, pixel_size_um=0.65) as out:
        out.write([3, 4, 5, 0], pixels[[3, 4, 5, 0]])
        out.write(slice(6, 18), pixels[6:])
        out.write(np.array([2, 1]), pixels[[2, 1]])
    screen = Screen.open(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    np.testing.assert_array_equal(screen.pixels, pixels)
    assert not screen.pixels.flags.writeable
    assert isinstance(screen.pixels, np.memmap)
    assert screen.channels == ("DNA", "AGP")
    assert screen.shape == SHAPE
    assert screen.dtype == dtype
    assert screen.pixel_size_um == 0.65
    assert screen.num_images == 18
    assert screen.manifest.index.tolist() == list(range(18))
    assert screen.roles == Roles()


def test_statistics_equal_the_formula(tmp_path):
    pixels = images()
    with writer(tmp_path / "s") as out:
        out.write(slice(None), pixels)
    screen = Screen.open(tmp_path / "s")
    assert len(screen.statistics) == 2 * 2 * 2
    manifest = screen.manifest
    for row in screen.statistics.itertuples():
        mask = (manifest.Metadata_Plate == row.Metadata_Plate).to_numpy()
        if row.subset == "controls":
            mask = mask & (manifest.Metadata_ControlType == "negcon").to_numpy()
        values = pixels[mask][:, screen.channels.index(row.channel)].astype(np.float64).ravel()
        assert row.num_images == mask.sum()
        assert row.mean == pytest.approx(values.mean(), rel=1e-12)
        assert row.std == pytest.approx(values.std(), rel=1e-12)
        assert (row.min, row.max) == (values.min(), values.max())
        quantiles = np.quantile(values, [0.001, 0.5, 0.999], method="inverted_cdf")
        assert [row.p001, row.p50, row.p999] == quantiles.tolist()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_summary_of_a_histogram(values):
    got = summarise(np.bincount(values, minlength=64))
    assert got["mean"] == pytest.approx(np.mean(values))
    assert got["std"] == pytest.approx(np.std(values), abs=1e-9)
    assert got["p50"] == np.quantile(values, 0.5, method="inverted_cdf")


def test_checksums_and_fingerprint_tell_content(tmp_path):
    pixels = images()
    prints = []
    for name, change in (("a", 0), ("b", 0), ("c", 1)):
        with writer(tmp_path / name) as out:
            out.write(slice(None), pixels ^ np.uint16(change))
        screen = Screen.open(tmp_path / name)
        prints.append(screen.fingerprint)
        digests = b"".join(hashlib.sha256(image).digest() for image in pixels ^ np.uint16(change))
        assert screen.info["checksums"]["pixels.npy"] == hashlib.sha256(digests).hexdigest()
    assert prints[0] == prints[1] != prints[2]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(ScreenWriter, "sync_seconds", 0.0)
    pixels = images()
    with writer(tmp_path / "whole") as out:
        out.write(slice(None), pixels)
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "cut") as out:
        out.write([4, 5, 17], pixels[[4, 5, 17]])
        raise KeyboardInterrupt
    assert not (tmp_path / "cut").exists()
    with writer(tmp_path / "cut") as out:
        assert out.todo.tolist() == [row for row in range(18) if row not in (4, 5, 17)]
        out.write(out.todo, pixels[out.todo])
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_killed_process_resumes(tmp_path):
    program = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        import test_store as t
        t.ScreenWriter.sync_seconds = 0.0
        with t.writer(sys.argv[1]) as out:
            out.write(slice(0, 7), t.images()[:7])
            os.kill(os.getpid(), 9)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "cut", Path(__file__).parent],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    pixels = images()
    assert not (tmp_path / "cut").exists()
    with writer(tmp_path / "cut") as out:
        assert out.todo.tolist() == list(range(7, 18))
        out.write(out.todo, pixels[out.todo])
    with writer(tmp_path / "whole") as out:
        out.write(slice(None), pixels)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_leftovers_of_another_job_are_dropped_and_told(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "s") as out:
        out.write([0], images()[:1])
        raise KeyboardInterrupt
    with (
        pytest.warns(EvenfieldWarning, match="1 images of another table"),
        writer(tmp_path / "s", provenance={"reader": "other"}) as out,
    ):
        assert len(out.todo) == 18
        out.write(slice(None), images())


def test_rows_never_written_are_an_error_and_stay_resumable(tmp_path):
    with pytest.raises(InputError, match="17 of 18"), writer(tmp_path / "s") as out:
        out.write([3], images()[:1])
    assert not (tmp_path / "s").exists()
    assert len(writer(tmp_path / "s").__enter__().todo) == 17


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("years")
    for overwrite, text in ((False, "exists already"), (True, "is not a screen")):
        with pytest.raises(InputError, match=text):
            writer(tmp_path / "s", overwrite=overwrite)
    assert (tmp_path / "s" / "thesis.tex").read_text() == "years"


def test_overwrite_replaces_only_when_complete(tmp_path):
    with writer(tmp_path / "s") as out:
        out.write(slice(None), images())
    before = contents(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "s", overwrite=True):
        raise KeyboardInterrupt
    assert contents(tmp_path / "s") == before
    with writer(tmp_path / "s", overwrite=True) as out:
        out.write(slice(None), images(seed=1))
    np.testing.assert_array_equal(Screen.open(tmp_path / "s").pixels, images(seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match="No space left"), writer(tmp_path / "s") as out:
        out.write(slice(None), images())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_the_work(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("evenfield.data.store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="GB needed"):
        writer(tmp_path / "s").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_broken_disk_keeps_what_it_has(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match="goes on from"),
        writer(tmp_path / "s") as out,
    ):
        out.write([0], images()[:1])
        patch.setattr(os, "pwrite", broken)
        out.write([1], images()[1:2])
    assert len(writer(tmp_path / "s").__enter__().todo) == 17


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(5, 7), st.integers(4, 6)),
    dtype=st.sampled_from(["u1", "u2", "i2", "f4"]),
    first=st.integers(-2, 18),
)
def test_images_that_do_not_fit_are_refused(tmp_path_factory, shape, dtype, first):
    rows = np.arange(first, first + shape[0])
    fits = shape[1:] == SHAPE and dtype == "u2"
    fits &= not len(rows) or (first >= 0 and rows[-1] < 18)
    out = writer(tmp_path_factory.mktemp("w") / "s").__enter__()
    if fits:
        out.write(rows, np.zeros(shape, dtype))
    else:
        with pytest.raises(InputError):
            out.write(rows, np.zeros(shape, dtype))
    out.__exit__(KeyboardInterrupt, None, None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "float32"}, "cannot be stored"),
        ({"channels": ("DNA",)}, "1 channel names"),
        ({"channels": ("DNA", "DNA")}, "repeat"),
        ({"shape": (2, 6)}, "shape"),
        ({"manifest": pd.concat([table(), table()])}, "share 18 keys"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, change, text):
    options = {"manifest": table(), "channels": ("DNA", "AGP"), "shape": SHAPE, "dtype": "uint8"}
    with pytest.raises(InputError, match=text):
        ScreenWriter(tmp_path / "s", provenance={}, **{**options, **change})
    assert list(tmp_path.iterdir()) == []


def small(tmp_path):
    with writer(tmp_path / "s") as out:
        out.write(slice(None), images())
    return Screen.open(tmp_path / "s")


def test_codes_and_roles(tmp_path):
    screen = small(tmp_path)
    codes, names = screen.codes("Metadata_Label")
    assert names == ["m1", "m2"]
    assert codes.dtype == np.int64
    labels = screen.manifest.Metadata_Label
    assert [names[code] if code >= 0 else "" for code in codes] == labels.tolist()
    assert (codes == -1).sum() == (labels == "").sum() > 0
    other = screen.with_roles(Roles(label="Metadata_Well"))
    assert other.roles.label == "Metadata_Well"
    assert screen.roles == Roles()
    for wrong in (lambda: screen.codes("x"), lambda: screen.with_roles(Roles(label="x"))):
        with pytest.raises(InputError, match="Metadata_Plate"):
            wrong()


def test_a_pickled_screen_carries_no_pixels(tmp_path):
    screen = small(tmp_path)
    assert screen.pixels.sum() > 0
    assert len(screen.statistics)
    copy = pickle.loads(pickle.dumps(screen))
    assert "pixels" not in copy.__dict__
    np.testing.assert_array_equal(copy.pixels, screen.pixels)


def test_another_schema_and_lost_or_damaged_parts(tmp_path):
    screen = small(tmp_path)
    path = screen.folder / "screen.json"
    good = path.read_text()
    path.write_text(json.dumps({**screen.info, "schema": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        Screen.open(screen.folder)
    path.write_text(good[:40])
    with pytest.raises(InputError, match="cannot be read"):
        Screen.open(screen.folder)
    path.write_text(good)
    pixels = screen.folder / "pixels.npy"
    os.truncate(pixels, 200)
    with pytest.raises(InputError, match="damaged"):
        _ = Screen.open(screen.folder).pixels
    pixels.unlink()
    with pytest.raises(InputError, match=r"lost its pixels\.npy"):
        Screen.open(screen.folder)
    with pytest.raises(InputError, match="not a screen"):
        Screen.open(tmp_path)
