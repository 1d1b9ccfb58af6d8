"""The figure of ContriMix as SVG: whole, self-contained, the same bytes twice."""

import io
import shutil
from xml.etree import ElementTree

import fake_results as fake
import numpy as np
import pytest

from evenfield.errors import InputError
from evenfield.records import append
from evenfield.report.mixes import mix_file, score_lines
from evenfield.report.page import render
from evenfield.seeds import numpy_generator


def arrays(k=3, s=2, side=20):
    rng = numpy_generator(0, "mixes")
    names = [f"{what} {which}" for what in ("ssim", "content", "features") for which in
             ("reconstruction", "mix")]  # fmt: skip
    return {
        "image": rng.integers(0, 256, (k, side, side, 3)).astype(np.uint8),
        "content": rng.integers(0, 256, (k, s, side, side)).astype(np.uint8),
        "mix": rng.integers(0, 256, (k, k, side, side, 3)).astype(np.uint8),
        "title": np.array([f"b<{n}>" for n in range(k)]),
        "score_name": np.array(names),
        "score": np.array([0.9, 0.8, 0.99, 0.9, 0.01, 0.3]),
    }


def test_the_file_is_svg_that_needs_nothing_else():
    text = mix_file(arrays())
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    images = root.findall("{http://www.w3.org/2000/svg}image")
    assert len(images) == 3 * (1 + 2 + 3)
    assert all(image.get("href").startswith("data:image/png;base64,") for image in images)
    assert "structural similarity to the original: 0.900 reconstructed, 0.800 mixed" in text
    assert text.count("http") == 1  # the name space
    assert mix_file(arrays()) == text


def test_every_mix_stands_in_its_row_and_column():
    root = ElementTree.fromstring(mix_file(arrays()))
    space = "{http://www.w3.org/2000/svg}"
    place = {
        image.find(f"{space}title").text: (float(image.get("x")), float(image.get("y")))
        for image in root.findall(f"{space}image")
    }
    for i in range(3):
        for j in range(3):
            x, y = place[f"content of b<{i}>, attribute of b<{j}>"]
            assert y == place[f"b<{i}>"][1]
            assert x == place[f"content of b<0>, attribute of b<{j}>"][0]
    xs = [place[f"content of b<0>, attribute of b<{j}>"][0] for j in range(3)]
    assert xs == sorted(set(xs))


def test_scores_in_words():
    lines = dict(score_lines(arrays()))
    assert lines["correlation of the content maps"] == "0.990 reconstructed, 0.900 mixed"
    assert len(lines) == 3


def with_mixes(results, folder, **changes):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays(), **changes})
    shutil.copytree(results, folder)
    given = {"metric": "mixes", "method": "contrimix", "adapter": "source"}
    append(folder, [fake.write_artifact(folder, "mixes.npz", buffer.getvalue(), **given)])
    return folder


def test_the_page_shows_it_where_it_is_and_does_not_miss_it_elsewhere(results, page, tmp_path):
    shown = render(with_mixes(results, tmp_path / "with"))
    assert '<section id="mixes">' in shown
    assert '<a href="#mixes">' in shown
    assert shown.count("ContriMix") == 1
    assert "content of b&lt;0&gt;, attribute of b&lt;1&gt;" in shown
    assert "0.900 reconstructed, 0.800 mixed" in shown
    assert "#mixes" not in page
    assert "ContriMix" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": arrays()["mix"][:2]},
        {"image": arrays()["image"].astype(np.float32)},
        {"mix": arrays()["mix"][:, :2]},
    ],
)
def test_a_broken_artifact_is_named(results, tmp_path, changes):
    with pytest.raises(InputError, match=r"mixes\.npz cannot be read as mixes"):
        render(with_mixes(results, tmp_path / "broken", **changes))
