import json

import numpy as np
import pandas as pd
import pytest

from evenfield.config import View
from evenfield.data import normalise
from evenfield.data.normalise import Normaliser, exact_sums, standard
from evenfield.data.screen import Screen
from evenfield.data.store import ScreenWriter
from evenfield.errors import EvenfieldWarning, InputError


def write(folder, pixels, controls, plates, channels=("DNA", "ER")):
    n = len(pixels)
    manifest = pd.DataFrame(
        {
            "Metadata_Source": "S",
            "Metadata_Batch": "B1",
            "Metadata_Plate": plates,
            "Metadata_Well": [f"A{i + 1:02d}" for i in range(n)],
            "Metadata_Site": "1",
            "Metadata_Object": "0",
            "Metadata_ControlType": ["negcon" if c else "trt" for c in controls],
            "Metadata_Label": ["" if c else "abc"[i % 3] for i, c in enumerate(controls)],
            "Metadata_Treatment": ["DMSO" if c else "abc"[i % 3] for i, c in enumerate(controls)],
        }
    )
    with ScreenWriter(
        folder,
        manifest,
        channels=channels,
        shape=pixels.shape[1:],
        dtype=pixels.dtype,
        provenance={"test": 1},
    ) as writer:
        writer.write(slice(0, n), pixels)
    return Screen.open(folder)


@pytest.fixture
def screen(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4000, (12, 2, 8, 6)).astype(np.uint16)
    pixels[:, 1] += 60000
    controls = [i % 3 == 0 for i in range(12)]
    plates = ["P1"] * 6 + ["P2"] * 6
    return write(tmp_path / "s", pixels, controls, plates)


def normalised(screen, rows, of):
    scale, shift = of.affine(screen, rows)
    assert scale.dtype == shift.dtype == np.float32
    assert scale.shape == shift.shape == (len(rows), 2)
    x = screen.pixels[rows].astype(np.float64)
    return x * scale[..., None, None] + shift[..., None, None]


def moments_of(x):
    return x.mean((0, 2, 3)), x.std((0, 2, 3))


def test_dataset_uses_perturbed_training_images_only(screen):
    rows = np.array([5, 1, 3, 0, 2])  # 3 and 0 are controls
    of = Normaliser.fit(screen, rows, View(normalise="dataset"))
    mean, std = moments_of(screen.pixels[[1, 2, 5]].astype(np.float64))
    np.testing.assert_allclose(of.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(of.std, std, rtol=1e-9)
    mean, std = moments_of(normalised(screen, np.array([1, 2, 5]), of))
    np.testing.assert_allclose(mean, 0, atol=1e-4)
    np.testing.assert_allclose(std, 1, rtol=1e-4)
    again = Normaliser.fit(screen, rows[::-1], View(normalise="dataset"))
    assert again.mean.tolist() == of.mean.tolist()


def test_image_makes_each_image_standard(screen):
    of = Normaliser.fit(screen, np.arange(3), View(normalise="image"))
    for rows in (np.array([4, 4, 9]), np.array([9, 0])):
        x = normalised(screen, rows, of)
        np.testing.assert_allclose(x.mean((2, 3)), 0, atol=1e-3)
        np.testing.assert_allclose(x.std((2, 3)), 1, rtol=1e-4)


def test_plate_and_controls_take_their_plates_table(screen):
    rows = np.arange(12)
    for name, keep in (("plate", rows % 3 >= 0), ("controls", rows % 3 == 0)):
        x = normalised(screen, rows, Normaliser.fit(screen, rows[:6], View(normalise=name)))
        for plate in (rows < 6, rows >= 6):
            mean, std = moments_of(x[plate & keep])
            np.testing.assert_allclose(mean, 0, atol=1e-3)
            np.testing.assert_allclose(std, 1, rtol=1e-3)


def test_a_plate_without_controls_falls_back_with_a_warning(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 99, (6, 2, 4, 4)).astype(np.uint8)
    screen = write(tmp_path / "s", pixels, [False] * 6, ["P1"] * 6)
    with pytest.warns(EvenfieldWarning, match="plate P1 of source S has no negative controls"):
        ours = normalised(screen, np.arange(6), Normaliser("controls", screen.channels))
    theirs = normalised(screen, np.arange(6), Normaliser("plate", screen.channels))
    np.testing.assert_array_equal(ours, theirs)


def test_a_channel_without_contrast_becomes_zero(tmp_path):
    pixels = np.full((4, 2, 4, 4), 7, np.uint8)
    pixels[:, 0] = np.arange(16).reshape(4, 4)
    screen = write(tmp_path / "s", pixels, [True, False, False, True], ["P1"] * 4)
    for name in ("image", "plate", "controls", "dataset"):
        of = Normaliser.fit(screen, np.arange(4), View(normalise=name))
        x = normalised(screen, np.arange(4), of)
        np.testing.assert_array_equal(x[:, 1], 0)
        assert np.isfinite(x).all()


def test_state_goes_through_json_bit_for_bit(screen):
    for name in ("image", "plate", "controls", "dataset"):
        of = Normaliser.fit(screen, np.arange(12), View(normalise=name))
        twin = Normaliser.from_dict(json.loads(json.dumps(of.to_dict())))
        ours, theirs = of.affine(screen, np.arange(5)), twin.affine(screen, np.arange(5))
        np.testing.assert_array_equal(ours, theirs)


def test_other_channels_and_controls_only_are_refused(screen):
    with pytest.raises(InputError, match="channels are DNA, ER"):
        Normaliser("image", ("ER", "DNA")).affine(screen, np.arange(2))
    with pytest.raises(InputError, match="none of the 2 training images"):
        Normaliser.fit(screen, np.array([0, 3]), View())
    with pytest.raises(InputError, match="no normalisation 'screen'"):
        Normaliser.fit(screen, np.arange(2), View(normalise="screen"))


@pytest.mark.parametrize("limit", [1, 5, 1 << 20])
def test_sums_are_exact_in_any_cut(monkeypatch, limit):
    monkeypatch.setattr(normalise, "EXACT_PIXELS", limit)
    x = np.full((3, 1, 4, 4), 65535, np.uint16)
    x[1, 0, 0, 0] = 65534
    parts = list(exact_sums(x, np.array([0, 1, 2])))
    assert sum(part[0] for part in parts) == 48
    sums = sum(part[1].sum() for part in parts)
    squares = sum(part[2].sum() for part in parts)
    assert (sums, squares) == (48 * 65535 - 1, 47 * 65535**2 + 65534**2)
    _, std = standard(48, np.array([sums]), np.array([squares]))
    assert std[0] == pytest.approx(np.sqrt(47) / 48, rel=1e-12)  # float sums would say 0 or nan
