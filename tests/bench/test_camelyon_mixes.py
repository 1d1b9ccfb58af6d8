"""The real brightfield benchmark: its parts on made-up tiles, and a tiny run on the real ones."""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from evenfield.seeds import generator

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import camelyon_mixes as bench

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "camelyon17_5centres"


def rand(*shape):
    return torch.rand(*shape, generator=generator(0, "test"))


def test_crops_are_balanced_seeded_and_from_the_tiles_of_their_hospital():
    tiles = torch.arange(5.0).reshape(5, 1, 1, 1, 1).expand(5, 4, 3, 80, 80)
    image, hospital = bench.crops(tiles, 64, 3, seed=1)
    assert image.shape == (15, 3, 64, 64)
    assert hospital.bincount().tolist() == [3] * 5
    assert torch.equal(image[:, 0, 0, 0], hospital.float())
    again, _ = bench.crops(rand(5, 4, 3, 80, 80), 64, 3, seed=1)
    assert torch.equal(again, bench.crops(rand(5, 4, 3, 80, 80), 64, 3, seed=1)[0])


def test_patches_lie_side_by_side():
    tiles = rand(5, 3, 256, 256)
    image, hospital = bench.patches(tiles)
    assert image.shape == (20, 3, 128, 128)
    assert hospital.tolist() == [code for code in range(5) for _ in range(4)]
    assert torch.equal(image[6], tiles[1, :, 128:, :128])


def test_colour_transfer_takes_mean_and_deviation():
    image, donor = 0.4 + 0.1 * rand(2, 3, 32, 32), 0.5 + 0.2 * rand(2, 3, 32, 32).flip(0)
    moved = bench.colour_transfer(image, donor)
    for ours, theirs in zip(torch.std_mean(moved, (2, 3)), torch.std_mean(donor, (2, 3)),
                            strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_luminance_does_not_see_a_stronger_stain():
    image = 0.2 + 0.7 * rand(2, 3, 32, 32)
    np.testing.assert_allclose(bench.luminance(image), bench.luminance(image**1.5), atol=1e-4)


def test_nearest_is_own():
    a = rand(6, 2, 4, 4).numpy()
    assert bench.nearest_is_own(a + 0.01, a) == 1
    assert bench.nearest_is_own(np.roll(a, 1, axis=0), a) == 0
    assert bench.nearest_is_own(np.ones_like(a), a) == 0


def test_a_perfect_recolouring_is_seen_as_such():
    """Encoders that swap colours outright: the donor's name, the content's structure."""
    level = torch.tensor([0.2, 0.35, 0.5, 0.65, 0.8])
    hospital = torch.arange(5).repeat_interleave(4)
    image = level[hospital].reshape(-1, 1, 1, 1) + 0.1 * (rand(20, 1, 64, 64) - 0.5)
    image = image.expand(20, 3, 64, 64)

    class Swap:
        signal = bench.Reconstructing

        def reconstruct(self, x):
            return x

        def mix(self, x, z):
            return x + z.mean((1, 2, 3), keepdim=True) - x.mean((1, 2, 3), keepdim=True)

        def content(self, x):
            return x - x.mean((2, 3), keepdim=True)

    swap = Swap()
    swap.signal = type("Plain", (), {"enter": staticmethod(lambda x: x)})

    class Level(torch.nn.Module):
        def features(self, x):
            return -100 * (x.mean((1, 2, 3))[:, None] - level) ** 2

        def head(self, z):
            return z

    found = bench.judge(swap, {"original": Level()}, image, hospital, 0)
    rows = {row["version"]: row for row in found}
    assert rows["original"]["own"] == rows["original"]["own_if_known"] == 1
    assert rows["original"]["donor"] == 0
    assert rows["mix"]["donor"] == rows["mix"]["donor_if_known"] == 1
    assert rows["mix"]["own"] == 0
    assert rows["mix"]["content"] == pytest.approx(1, abs=1e-4)
    assert rows["mix"]["found"] == rows["mix"]["found_by_content"] == 1
    assert rows["mix"]["frechet_donor"] < 1e-3 * rows["mix"]["frechet_own"] + 1e-2
    assert rows["reconstruction"]["error"] == 0


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"the CAMELYON17 tiles are not in {REAL}")
def test_a_tiny_run_on_the_real_tiles(tmp_path):
    matplotlib.use("Agg")
    rows = bench.main(REAL, tmp_path / "rows.jsonl", bench.TINY, tmp_path / "figure.png")
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert written == rows
    versions = ["original", "reconstruction", "mix", "colour transfer"]
    assert [(row["classifier"], row["version"]) for row in rows] == [
        (classifier, version) for classifier in versions[:2] for version in versions
    ]
    assert all(row["num"] == 20 for row in rows)
    assert rows[0]["ssim"] == pytest.approx(1)
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 800
