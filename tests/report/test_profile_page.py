from types import SimpleNamespace

import fake_profiles as fake
import numpy as np
import pandas as pd
import pytest
from browser import BROWSER, opened
from test_page import outline

from evenfield.data.store import ScreenWriter
from evenfield.errors import InputError
from evenfield.report.aligned import align
from evenfield.report.plane import planes
from evenfield.report.profile_page import build_profile_page
from evenfield.report.profile_wells import well_section
from evenfield.report.wells import Value, pictures


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    metadata = fake.tables()["before"].metadata.drop(columns="Metadata_CellCount")
    folder = tmp_path_factory.mktemp("pixels") / "screen"
    args = {"channels": ["DNA", "Actin"], "shape": (2, 40, 24), "dtype": "uint16"}
    with ScreenWriter(folder, metadata, **args, provenance={"simulated": True}) as writer:
        rng = np.random.Generator(np.random.PCG64(0))
        coarse = rng.integers(0, 900, size=(len(metadata), 2, 5, 3)).astype(np.uint16)
        pixels = coarse.repeat(8, axis=2).repeat(8, axis=3)
        writer.write(np.arange(len(metadata)), pixels)
    from evenfield.data.screen import Screen

    return Screen.open(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory, screen):
    out = tmp_path_factory.mktemp("pages") / "page.html"
    found = build_profile_page(fake.tables(), out, rule="pca", screen=screen)
    return SimpleNamespace(path=out, text=out.read_text(), found=found)


def test_the_same_wells_give_the_same_bytes_in_any_order(built, tmp_path, screen):
    rng = np.random.Generator(np.random.PCG64(1))
    mixed = {name: one[rng.permutation(len(one))] for name, one in fake.tables().items()}
    build_profile_page(mixed, tmp_path, rule="pca", screen=screen)
    again = (tmp_path / "compare.html").read_bytes()
    assert again == built.path.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_the_page_is_whole_and_loads_nothing(built):
    found = outline(built.text)
    sections = {"maps", "questions", "trade", "table", "verdicts", "plates", "caveats"}
    assert sections <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= {f"#{name}" for name in found.ids}
    assert "http://" not in built.text.replace("http://www.w3.org", "")
    assert "https://" not in built.text
    for tag, given in found.tags:
        assert "src" not in given or given["src"].startswith("data:")
        if tag == "svg":
            assert given.get("aria-label") or given.get("aria-hidden")


def test_metadata_of_wells_is_text(built):
    assert "<script>document" not in built.text
    assert "taxol</script>" not in built.text
    assert "taxol\\u003c/script\\u003e" in built.text
    assert "kind & <b>" not in built.text
    assert sum(tag == "script" for tag, _ in outline(built.text).tags) == 2


def test_it_names_the_table_that_keeps_biology(built):
    assert built.found.best == "clean"
    assert built.found.sentence.startswith(
        "clean helps: replicates on different batches find each other more often"
    )
    assert "The images are simulated" in built.text
    assert "PCA" in built.text


def test_wells_are_counted_against_a_cap(screen):
    metadata = align(fake.tables()).metadata
    every = pictures(screen, metadata)
    assert len(every.uris) == 96
    assert every.says.startswith("Every well has its image")
    few = pictures(screen, metadata, most=10)
    assert len(few.uris) == 10
    assert few.says.startswith("10 of 96 wells have an image")
    assert {metadata["Metadata_Plate"][row] for row in few.uris} == {"p1", "p2", "p3", "p4"}
    with pytest.raises(InputError, match="none of the 96 wells"):
        pictures(screen, metadata.assign(Metadata_Plate="elsewhere"))


def test_a_picture_is_the_well_s_own(screen):
    import base64

    from imagecodecs import jpeg8_decode

    metadata = align(fake.tables()).metadata
    found = pictures(screen, metadata)
    row = 5
    uri = found.uris[row]
    image = jpeg8_decode(base64.b64decode(uri.split(",")[1]))
    assert image.shape == (40, 24, 3)
    keys = ["Metadata_Plate", "Metadata_Well"]
    same = (screen.manifest[keys] == metadata.loc[row, keys].to_numpy()).all(axis=1)
    dna = screen.pixels[int(np.flatnonzero(same)[0])][0].astype(float)
    assert np.corrcoef(image[:, :, 2].ravel(), dna.ravel())[0, 1] > 0.9  # blue
    assert image[:, :, 0].mean() < image[:, :, 2].mean()  # there is no third channel


def test_five_thousand_wells_stay_below_five_megabytes():
    one = fake.tables()["before"]
    times = 53
    metadata = pd.concat(
        [one.metadata.assign(Metadata_Plate=f"{i}" + one.metadata["Metadata_Plate"])
         for i in range(times)], ignore_index=True,
    )  # fmt: skip
    names = tuple(f"table{i}" for i in range(7))
    num = len(metadata)
    assert num > 5000
    rng = np.random.Generator(np.random.PCG64(0))
    metadata = metadata.assign(Metadata_Source="1")
    aligned = SimpleNamespace(metadata=metadata, names=names, called={})
    numbers = [Value(name=f"v{i}", table="", number=rng.normal(size=num)) for i in range(14)]
    maps = SimpleNamespace(places=[rng.uniform(-1, 1, size=(num, 2)) for _ in names])
    found = well_section(aligned, numbers, maps, None, seed=0, shown=("table0", "table1"))
    size = sum(len(str(part["drawing"])) for part in [*found["maps"], *found["grids"]])
    assert found["num"] == 5000
    assert size + len(found["data"]) + 1_500_000 < 5_000_000  # with all the images there may be


def test_maps_without_umap_are_called_what_they_are(monkeypatch):
    tables = list(align(fake.tables()).tables)
    monkeypatch.setattr("evenfield.report.plane.find_spec", lambda name: None)
    made = planes(tables)
    assert made.rule == "PCA"
    assert "umap-learn is not installed" in made.says
    with pytest.raises(InputError, match="umap-learn is not installed"):
        planes(tables, rule="umap")


def test_principal_components_are_those_of_numpy(monkeypatch):
    tables = list(align(fake.tables()).tables)
    x = tables[0].features - tables[0].features.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    from evenfield.report.plane import principal_plane

    place, share = principal_plane(tables[0].features)
    assert np.allclose(np.abs(place), np.abs(u[:, :2] * s[:2]))
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum())
    wide, wide_share = principal_plane(np.tile(x, (1, 20))[:30])  # more features than rows
    assert wide.shape == (30, 2)
    assert 0 < wide_share <= 1


def test_every_table_is_mapped_with_the_same_settings_and_seed(monkeypatch):
    seen = []

    class FakeUMAP:
        def __init__(self, **settings):
            seen.append(settings)

        def fit_transform(self, x):
            return x[:, :2]

    monkeypatch.setitem(__import__("sys").modules, "umap", SimpleNamespace(UMAP=FakeUMAP))
    monkeypatch.setattr("evenfield.report.plane.find_spec", lambda name: object())
    made = planes(list(align(fake.tables()).tables), seed=7)
    assert made.rule == "UMAP"
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["random_state"] == 7
    assert seen[0]["n_jobs"] == 1


HOVER = """<script>
const at = (element) => { const b = element.getBoundingClientRect();
  return { clientX: b.left + b.width / 2, clientY: b.top + b.height / 2, bubbles: true }; };
const said = [], tipText = () => document.getElementById("tip").textContent;
const evil = data.fields.treatment.names.findIndex((name) => name.startsWith("taxol"));
document.querySelector("button[data-colour=label]").click();
const row = data.fields.treatment.codes.findIndex((code) => code === evil);
const dot = marks[0][row];
dot.dispatchEvent(new MouseEvent("mousemove", at(dot)));
said.push(!document.getElementById("tip").hidden, /plate p[1-4]/.test(tipText()));
const texts = [];
for (const circle of marks[0]) {
  circle.dispatchEvent(new MouseEvent("mousemove", at(circle)));
  texts.push(tipText());
}
said.push(texts.some((text) => text.includes("taxol<" + "/script><script>document")));
said.push(texts.some((text) => text.includes("kind & <b>0</b>")));
said.push(document.querySelectorAll("#tip img[src^='data:image/jpeg']").length === 1);
said.push(halos.every((halo) => halo.getAttribute("visibility") === "visible"));
const press = (key) => document.querySelector(".stage").dispatchEvent(
  new KeyboardEvent("keydown", { key }));
press("Escape");
said.push(document.getElementById("tip").hidden);
press("ArrowRight");
said.push(tipText().startsWith("A01 · plate p1"));
const pick = (s, i) => { const e = document.querySelector(s); e.selectedIndex = i;
  e.dispatchEvent(new Event("change")); };
const before = dot.getAttribute("cx");
pick("select[name=table1]", 2);
said.push(before !== dot.getAttribute("cx"));
document.querySelector("#legend button").click();
said.push(document.querySelectorAll(".well-map circle.off").length > 0);
pick("select[name=single]", 0);
const well = document.querySelector(".grid-of rect.well");
const mean = well.querySelector("title").textContent;
document.querySelector("button.goto").click();
well.dispatchEvent(new MouseEvent("mousemove", at(well)));
said.push(document.querySelector("select[name=plate]").value === "p4");
said.push(tipText().includes("A01 · plate p4"));
document.querySelectorAll("table.results thead button")[3].click();
document.body.dataset.acted = said.join(" ");
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_wells_answer_the_pointer_and_the_keys(built, tmp_path):
    shown = opened(built.text, HOVER, tmp_path)
    acted = shown.split('data-acted="')[1].split('"')[0].split()
    assert acted == ["true"] * 12
