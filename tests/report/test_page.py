import shutil
from dataclasses import replace
from html.parser import HTMLParser

import fake_results as fake
import numpy as np
import pytest
from browser import BROWSER, opened

from evenfield.errors import InputError
from evenfield.records import FILE, append, read
from evenfield.report.images import png
from evenfield.report.page import build, render
from evenfield.report.plates import FORMATS, plate_format, well_place

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Checks nesting and collects ids, tags and links."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text):
    found = Outline()
    found.feed(text)
    assert not found.open
    return found


def test_two_builds_are_equal_byte_for_byte(results, tmp_path):
    first = build(results, tmp_path / "a.html")
    elsewhere = shutil.copytree(results, tmp_path / "moved")
    second = build(elsewhere, tmp_path)
    assert second.name == "report.html"
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 3_000_000
    assert not list(tmp_path.glob("*.partial"))


def test_sections_are_there_and_nothing_is_loaded_from_outside(page):
    text = page
    found = outline(text)
    names = ("gap", "table", "regimes", "plates", "confusion", "fields", "drift", "embedding")
    assert {*names, "caveats", "verdict"} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= {f"#{name}" for name in found.ids}
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for tag, given in found.tags:
        assert "src" not in given or given["src"].startswith("data:")
        if tag == "img":
            assert given["alt"]
        if tag == "svg":
            assert given.get("aria-label") or given.get("aria-hidden")


def test_metadata_is_escaped(page):
    text = page
    assert "<script>document" not in text
    assert "P4-2&lt;script&gt;" in text
    assert sum(tag == "script" for tag, _ in outline(text).tags) == 2


def test_what_is_absent_is_said(tmp_path):
    append(tmp_path, fake.values())
    text = render(tmp_path)
    found = outline(text)
    assert {"gap", "table"} <= set(found.ids)
    assert not {"plates", "confusion", "fields", "drift", "embedding"} & set(found.ids)
    words = "plate maps, confusion matrices, example fields, control drift and embedding map"
    assert words in text
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / FILE).write_text("")
    assert "say nothing about new plates" in render(tmp_path / "empty")


def test_caveats(page):
    text = page
    assert "The data are simulated" in text
    assert "Statins lives in one batch only (B2)" in text
    assert "evenfield demo" in text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "artifacts/drift.parquet").write_bytes(b"x"), "SHA-256"),
        (lambda folder: (folder / "artifacts/drift.parquet").unlink(), "is missing"),
        (
            lambda folder: append(
                folder, [fake.write_artifact(folder, "bad.parquet", b"no", metric="predictions")]
            ),
            "cannot be read as predictions",
        ),
        (
            lambda folder: append(
                folder, [fake.write_artifact(folder, "odd.bin", b"no", metric="hologram")]
            ),
            "'hologram' is unknown",
        ),
        (
            lambda folder: append(
                folder,
                [fake.base(kind="artifact", metric="screen", path="../secret", sha256="0")],
            ),
            "lies outside",
        ),
        (
            lambda folder: append(folder, [replace(read(folder)[0], screen="another")]),
            "results of 2 screens",
        ),
    ],
)
def test_a_spoiled_folder_is_refused(results, tmp_path, spoil, words):
    folder = shutil.copytree(results, tmp_path / "results")
    spoil(folder)
    with pytest.raises(InputError, match=words):
        build(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_no_records(tmp_path):
    with pytest.raises(InputError, match="no records"):
        build(tmp_path, tmp_path / "page.html")


def test_png_is_what_a_reader_sees(tmp_path):
    from matplotlib.image import imread

    image = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2
    (tmp_path / "a.png").write_bytes(png(image))
    assert np.array_equal((imread(tmp_path / "a.png") * 255).round().astype(np.uint8), image)


def test_plate_formats():
    import pandas as pd

    assert plate_format(pd.Series(["A01", "H12"])) == FORMATS[0]
    assert plate_format(pd.Series(["A01", "P24", "?"])) == FORMATS[1]
    assert plate_format(pd.Series(["AF48"])) == FORMATS[2]
    assert well_place("AA01") == (26, 0)


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_the_page_runs_in_a_browser(page, tmp_path):
    # What a reader would do: choose a plate, a choice, a colour, sort; then report.
    act = """<script>
    const pick = (s, i) => { const e = document.querySelector(s); e.selectedIndex = i;
      e.dispatchEvent(new Event("change")); };
    const before = document.querySelector("figure[data-choice] .sum").textContent;
    pick("select[name=plate]", 2); pick("select[name=choice]", 1);
    document.querySelectorAll("thead button")[3].click();
    document.querySelector("button[data-colour=label]").click();
    document.querySelector(".legend.labels button").click();
    const after = document.querySelector("figure[data-choice] .sum").textContent;
    const rows = [...document.querySelectorAll(".results tbody tr:not([hidden])")];
    const means = rows.map((row) => Number(row.cells[3].dataset.value));
    document.body.dataset.acted = [before !== after,
      means.every((m, i) => i === 0 || m <= means[i - 1]), rows.length,
      document.getElementById("embedding").dataset.by].join(" ");
    </script></body>"""
    assert 'data-acted="true true 14 label"' in opened(page, act, tmp_path)
