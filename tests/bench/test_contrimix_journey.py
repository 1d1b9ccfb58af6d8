"""ContriMix from a screen to a report: training, the figure, its numbers, prediction."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from evenfield import api, records
from evenfield.bench.deploy import reader_for
from evenfield.bench.grid import AdapterChoice, Arm, GridConfig, run_grid
from evenfield.bench.mixes import mixes, mixes_of_run, others, scores
from evenfield.bench.presets.contrimix import recipe
from evenfield.cli import run
from evenfield.config import RunConfig, SplitConfig, TrainConfig, View
from evenfield.data.simulate import simulate, tiny_screen
from evenfield.data.store import Screen
from evenfield.errors import InputError
from evenfield.metrics.images import correlation, ssim
from evenfield.nn.absorbance import Signal
from evenfield.nn.predictor import Predictor
from evenfield.nn.reconstruction import Reconstructing
from evenfield.nn.unmixing import AttributeEncoder, ContentEncoder
from evenfield.report.page import build
from evenfield.seeds import generator
from evenfield.train import checkpoint
from evenfield.train.run import fit

TRAIN = TrainConfig(num_perturbed=6, accumulate=1, epochs=1)
SPLIT = SplitConfig(test=("b03",), select_on="wells")
UNIT = View(normalise="unit")
OPTIONS = {"absorbance": False, "num_attributes": 2, "num_mixes": 1, "width": 0.0625}


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """3 batches of 1 plate, 78 fields of 64 pixels."""
    plan = tiny_screen()
    layout = replace(
        plan.layout, num_batches=3, num_plates=1, replicates=6, num_dmso=8, num_poscon=0
    )
    folder = tmp_path_factory.mktemp("mixes") / "screen"
    simulate(replace(plan, size=64, pixel_size_um=1.5, layout=layout), folder)
    return Screen.open(folder)


@pytest.fixture(scope="module")
def trained(screen, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "contrimix"
    return api.train(
        "contrimix", screen.folder, out, options=OPTIONS, view=UNIT, split=SPLIT, train=TRAIN
    )


def test_the_wrong_view_is_refused_before_anything_is_trained(screen, tmp_path):
    with pytest.raises(InputError, match=r"pixels in 0 to 1.*'dataset'\n.*--view.normalise unit"):
        api.train("contrimix", screen.folder, tmp_path / "x", options=OPTIONS, train=TRAIN)
    small = View(normalise="unit", crop=48)
    with pytest.raises(InputError, match="64 pixels or more"):
        api.train("contrimix", screen.folder, tmp_path / "y", view=small, train=TRAIN)


def test_predictions_are_the_same_twice(screen, trained, tmp_path):
    """Bug 8, from the door."""
    one = api.predict(trained, screen.folder, tmp_path / "1.parquet")
    two = api.predict(trained, screen.folder, tmp_path / "2.parquet")
    pd.testing.assert_frame_equal(one, two)


def test_adaptation_after_it(screen, trained, tmp_path):
    """`context` learns from training plates what it needs about the classifier behind."""
    model = checkpoint.open_model(trained)
    assert model.method.predictor.calibration
    assert all(name.startswith("inner.") for name in model.method.predictor.calibration)
    rows = api.evaluate(trained, screen.folder, tmp_path, adapters=("source", "context", "union"))
    assert {row.adapter for row in rows} == {"source", "context", "union"}


def test_a_resumed_run_ends_with_the_same_weights(screen, tmp_path):
    weights = []
    for name, stops in (("whole", 0), ("cut", 1)):
        out = tmp_path / name
        arguments = {"options": OPTIONS, "view": UNIT, "split": SPLIT}
        settings = replace(TRAIN, epochs=2, checkpoint_seconds=0.0)
        if stops:
            seen = []

            def stop(note, seen=seen):
                seen.append(note)
                if len(seen) == 3:
                    raise KeyboardInterrupt

            config = RunConfig(method="contrimix", train=settings, **arguments)
            with pytest.raises(KeyboardInterrupt):
                fit(screen, config, out, on_progress=stop)
        api.train("contrimix", screen.folder, out, train=settings, **arguments)
        weights.append(torch.load(out / "best.pt", weights_only=True)["method"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_stages(screen, trained, tmp_path):
    """A classifier behind the frozen encoders of another run, which need not outlive it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "best.pt").write_bytes((trained / "best.pt").read_bytes())
    options = {**OPTIONS, "mode": "backbone", "weights": str(source)}
    out = api.train(
        "contrimix", screen.folder, tmp_path / "b", options=options, view=UNIT, split=SPLIT,
        train=TRAIN,
    )  # fmt: skip
    first = torch.load(source / "best.pt", weights_only=True)["method"]
    (source / "best.pt").unlink()
    second = checkpoint.open_model(out).method.state_dict()
    encoders = [key for key in first if key.startswith(("predictor.content", "predictor.attrib"))]
    assert encoders
    assert all(torch.equal(first[key], second[key]) for key in encoders)


def test_accuracy_selects_no_encoders(screen, tmp_path):
    options = {**OPTIONS, "mode": "encoders"}
    with pytest.raises(InputError, match="'accuracy' cannot select"):
        api.train(
            "contrimix", screen.folder, tmp_path / "e", options=options, view=UNIT, split=SPLIT,
            train=replace(TRAIN, select_by="accuracy"),
        )  # fmt: skip
    assert recipe("rxrx1-enc").run.train.select_by == "loss"


def test_the_figure_of_a_run(screen, trained):
    model = checkpoint.open_model(trained)
    found = mixes_of_run(model, screen)
    assert found.title.tolist() == ["b01", "b02", "b03 (held out)"]
    assert found.image.shape == (3, 64, 64, 3)
    assert found.content.shape == (3, 2, 64, 64)
    assert found.mix.shape == (3, 3, 64, 64, 3)
    assert found.content.min(axis=(0, 2, 3)).tolist() == [0] * 2
    again = mixes_of_run(model, screen)
    assert found.npz() == again.npz()
    with np.load(io.BytesIO(found.npz()), allow_pickle=False) as file:
        assert set(file) == {"image", "content", "mix", "title", "score_name", "score"}
    assert not np.array_equal(mixes_of_run(model, screen, seed=1).image, found.image)


def test_mixes_shows_who_lends_what(screen, trained):
    """Entry [i, j] is the content of i under the attribute of j, coloured alike."""
    model = checkpoint.open_model(trained)
    predictor = model.method.predictor
    images = reader_for(model, screen).images(np.arange(4))
    found = mixes(predictor, images, list("abcd"), images, images.roll(1, 0))
    high = np.percentile(images[:, :3].numpy(), 99.7)
    with torch.no_grad():
        made = predictor.mix(images[1:2], images[3:4])[0].numpy()
    expected = (np.clip(made[:3] / high, 0, 1) * 255).transpose(1, 2, 0)[..., ::-1]
    assert np.abs(found.mix[1, 3].astype(float) - expected).max() <= 1.01


def brightfield():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
        return Reconstructing(
            Predictor(backbone, torch.nn.Linear(48, 2)),
            ContentEncoder(3, 2),
            AttributeEncoder(3, 2, width=0.1),
            signal=Signal(True),
            test_input="original",
            normalise="none",
        ).eval()


def test_brightfield_keeps_its_colours():
    predictor = brightfield()
    images = torch.rand(5, 3, 64, 64, generator=generator(0, "test"))
    found = mixes(predictor, images[:2], ["a", "b"], images, images.flip(0))
    expected = (images[:2].permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    assert np.array_equal(found.image, expected.numpy())


def test_scores_are_what_they_say():
    predictor = brightfield()
    images = torch.rand(20, 3, 64, 64, generator=generator(0, "test"))
    donor = images.roll(1, 0)
    found = scores(predictor, images, donor)
    with torch.no_grad():
        mixed = predictor.mix(images, donor)
        content, original = (predictor.content(predictor.signal.enter(x)) for x in (mixed, images))
    assert found["ssim mix"] == pytest.approx(ssim(mixed.numpy(), images.numpy()).mean())
    expected = correlation(content.numpy(), original.numpy()).mean()
    assert found["content mix"] == pytest.approx(expected, rel=1e-5)

    class Perfect(Reconstructing):
        def mix(self, image, donor):
            return image

    predictor.__class__ = Perfect
    for name, value in scores(predictor, images, donor).items():
        limit = 0 if name.startswith("features") else 1
        assert value == pytest.approx(limit, abs=1e-6), name


def test_donors_are_of_other_domains_where_there_are_any():
    assert others(np.arange(4), np.array([0, 1, 0, 2]), 2).tolist() == [1, 3]
    assert others(np.arange(3), np.zeros(3), 1).tolist() == [0, 1, 2]


def test_what_cannot_be_mixed_is_refused(screen, trained, tmp_path):
    model = checkpoint.open_model(trained)
    images = torch.rand(2, 5, 64, 64)
    with pytest.raises(InputError, match=r"no encoders.*\n.*contrimix"):
        mixes(model.method.predictor.inner, images, ["a", "b"], images, images)
    with pytest.raises(InputError, match="1 images"):
        scores(model.method.predictor, images[:1], images[:1])
    with pytest.raises(InputError, match=r"ends in \.svg"):
        api.mixes(trained, screen.folder, tmp_path / "mixes.png")


def test_the_verb_draws_and_says_the_numbers(screen, trained, tmp_path, capsys):
    out = tmp_path / "mixes.svg"
    assert run(["mixes", str(trained), str(screen.folder), str(out)]) == 0
    said = capsys.readouterr().out
    assert "structural similarity to the original: 0." in said
    assert out.read_text().count("<image") == 3 * (1 + 2 + 3)
    before = out.read_bytes()
    assert run(["mixes", str(trained), str(screen.folder), str(out), "-q"]) == 0
    assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_benchmark_puts_the_figure_into_its_report(screen, tmp_path):
    pictured = (AdapterChoice(name="source", pictures=True),)
    arms = (
        Arm(label="erm", method="erm", train=TRAIN, adapters=pictured),
        Arm(
            label="contrimix", method="contrimix", options=OPTIONS, view=UNIT, train=TRAIN,
            adapters=pictured,
        ),
    )  # fmt: skip
    grid = GridConfig(
        arms=arms, folds=(("b03",),), seeds=(0,), split=SplitConfig(select_on="wells")
    )
    out = tmp_path / "results"
    run_grid(screen, grid, out)
    drawn = [record for record in records.read(out) if record.metric == "mixes"]
    assert [record.method for record in drawn] == ["contrimix"]
    assert (out / drawn[0].path).exists()
    page = build(out, tmp_path / "report.html").read_text()
    assert '<section id="mixes">' in page
    assert "content of b01, attribute of b03 (held out)" in page
