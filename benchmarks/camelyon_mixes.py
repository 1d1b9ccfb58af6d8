"""Do ContriMix's mixes hide the hospital and keep the tissue? On 25 real tiles of five hospitals.

    python benchmarks/camelyon_mixes.py ../shared/data/camelyon17_5centres mixes.jsonl

CAMELYON17, H&E, CC0. Of each hospital's five tiles one is held out, another one for each seed, so
that five seeds judge every tile once. The others train the encoders (random crops, in absorbance)
and two small classifiers of hospitals, one of the crops themselves and one of their reconstructions
(what a ContriMix classifier sees). The held-out patches (128 px, side by side) are judged as they
are, reconstructed, mixed with a held-out patch of another hospital, and, as a yardstick, with that
patch's mean and standard deviation of red, green and blue. One row of JSON a seed, classifier and
version; about 8 minutes of one core:

    own, donor      share of patches that the classifier assigns to the content's own hospital, and
                    to the donor's (for originals and reconstructions: of a donor that is not used)
    own_if_known, donor_if_known
                    the same among the patches whose own original (reconstruction for the classifier
                    of those), or whose donor's, it assigns rightly: some tiles are unlike the
                    others of their hospital
    entropy         of the classifier's probabilities, 0 (certain) to 1 (no idea)
    frechet_own, frechet_donor
                    Frechet distance of the classifier's features from those of the originals
                    (reconstructions), and of the donors'
    ssim            structural similarity of the luminance (mean absorbance, standardised) with the
                    original's
    luminance       correlation of that luminance with the original's
    content         correlation of the content maps with the original's
    found, found_by_content
                    share of patches whose nearest original of all, by blurred luminance or by
                    content maps, is their own
    error           mean absolute difference to the original, in 0 to 1

The figure (docs/images/camelyon_mixes.png) shows the first seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from evenfield.bench.mixes import Mixes, mixes
from evenfield.files import whole
from evenfield.methods.base import Method
from evenfield.methods.contrimix import ContriMix
from evenfield.methods.erm import ERM
from evenfield.metrics.images import correlation, frechet_distance, ssim
from evenfield.nn.absorbance import to_absorbance
from evenfield.nn.backbones import build_backbone
from evenfield.nn.predictor import Predictor
from evenfield.nn.reconstruction import Reconstructing
from evenfield.seeds import derive, generator
from evenfield.types import Batch

PATCH, NUM_HOSPITALS = 128, 5
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "camelyon_mixes.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained and for how long.

    Attributes:
        seeds: Number of seeds, at most 5: each holds out other tiles.
        quick_steps: Steps of the encoders without the consistency terms, which cost two thirds of
            a step.
        steps: Steps of the encoders with all terms, after those.
        crop: Side of their crops in pixels.
        per_hospital: Crops of each hospital in a batch.
        classifier_steps: Steps of each classifier of hospitals.
        judged: At most so many patches of a held-out tile are judged.
        contrimix: The settings of the encoders.
    """

    seeds: int = 5
    quick_steps: int = 500
    steps: int = 80
    crop: int = 64
    per_hospital: int = 2
    classifier_steps: int = 250
    judged: int = 16
    contrimix: ContriMix.Config = ContriMix.Config(  # noqa: RUF009
        mode="encoders",
        num_mixes=1,
        width=0.25,
        recon="mean_l1",
        weight_recon=1.0,
        weight_attribute=0.1,
        weight_content=0.1,
        weight_similarity=0.1,
    )


TINY = Plan(seeds=1, quick_steps=1, steps=1, per_hospital=1, classifier_steps=2, judged=4)


def read_tiles(folder: Path) -> Float[Tensor, "5 5 3 h w"]:
    """Tiles by hospital, in 0 to 1."""
    hospitals = []
    for hospital in range(NUM_HOSPITALS):
        paths = sorted((folder / "tiles").glob(f"domain_{hospital}_*.png"))
        tiles = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in paths]
        hospitals.append(torch.stack(tiles))
    return torch.stack(hospitals).permute(0, 1, 4, 2, 3).float() / 255


def crops(
    tiles: Float[Tensor, "5 t 3 h w"], side: int, per_hospital: int, seed: int
) -> tuple[Float[Tensor, "n 3 side side"], Int[Tensor, " n"]]:
    """Random crops, turned and mirrored, equally many of each hospital, and their hospital."""
    random = generator(seed, "crops")
    hospital = torch.arange(NUM_HOSPITALS).repeat_interleave(per_hospital)
    room = min(tiles.shape[3:]) - side + 1
    found = []
    for code in hospital:
        tile, top, left, turns, mirror = (
            int(torch.randint(high, (1,), generator=random))
            for high in (tiles.shape[1], room, room, 4, 2)
        )
        part = tiles[code, tile, :, top : top + side, left : left + side].rot90(turns, (1, 2))
        found.append(part.flip(2) if mirror else part)
    return torch.stack(found), hospital


def batch_of(image: Tensor, hospital: Tensor, seed: int) -> Batch:
    return Batch(
        image=image,
        label=hospital,
        is_control=torch.zeros(len(hospital), dtype=torch.bool),
        context=hospital,
        domain=hospital,
        row=torch.arange(len(hospital)),
        seed=seed,
    )


def descend(method: Method, batches: Iterable[Batch], total: int, lr: float) -> dict[str, float]:
    """Adam, its rate falling linearly to a tenth; the last named losses."""
    adam = torch.optim.Adam(method.groups(), lr=lr)
    last: dict[str, float] = {}
    for step, batch in enumerate(batches):
        adam.param_groups[0]["lr"] = lr * (1 - 0.9 * step / total)
        losses = method.losses(batch, progress=step / total)
        adam.zero_grad()
        losses.total.backward()
        adam.step()
        last = {name: part.item() for name, part in losses.parts.items()}
    return last


def train_encoders(tiles: Tensor, plan: Plan, seed: int) -> tuple[Reconstructing, dict[str, float]]:
    """Encoders and the last losses."""
    torch.manual_seed(derive(seed, "encoders") % 2**32)
    idle = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the classifier has no part in it
    method = ContriMix(plan.contrimix, backbone=idle, d=3, k=NUM_HOSPITALS, c=3).train()
    last: dict[str, float] = {}
    quick = replace(plan.contrimix, weight_attribute=0.0, weight_content=0.0)
    for config, total, lr in ((quick, plan.quick_steps, 5e-3), (plan.contrimix, plan.steps, 1e-3)):
        method.config = config
        seeds = [derive(seed, "step", total, step) for step in range(total)]
        batches = (
            batch_of(*crops(tiles, plan.crop, plan.per_hospital, step), step) for step in seeds
        )
        last = descend(method, batches, total, lr)
    return method.eval().predictor, last


def train_classifier(
    tiles: Tensor, plan: Plan, seed: int, view: Callable[[Tensor], Tensor]
) -> Predictor:
    """A small classifier of hospitals, on a view of real crops."""
    torch.manual_seed(derive(seed, "classifier") % 2**32)
    backbone, d = build_backbone("cnn-small", 3)
    method = ERM(ERM.Config(), backbone=backbone, d=d, k=NUM_HOSPITALS, c=3).train()
    seeds = [derive(seed, "classifier step", step) for step in range(plan.classifier_steps)]
    cut = (crops(tiles, plan.crop, 4, step) for step in seeds)
    batches = (batch_of(view(image), hospital, 0) for image, hospital in cut)
    descend(method, batches, plan.classifier_steps, 2e-3)
    return method.eval().predictor


def patches(tiles: Float[Tensor, "5 3 h w"]) -> tuple[Float[Tensor, "n 3 p p"], Int[Tensor, " n"]]:
    """Patches side by side of one tile a hospital, and their hospital."""
    cut = tiles.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (5, 3, rows, columns, p, p)
    cut = cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    hospital = torch.arange(NUM_HOSPITALS).repeat_interleave(cut.shape[1])
    return cut.flatten(0, 1).contiguous(), hospital


def colour_transfer(
    image: Float[Tensor, "n 3 h w"], donor: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, "n 3 h w"]:
    """Each channel with the donor's mean and standard deviation, clipped to 0 to 1."""
    (std, mean), (std_d, mean_d) = (torch.std_mean(x, (2, 3), keepdim=True) for x in (image, donor))
    return ((image - mean) / std.clamp(min=1e-6) * std_d + mean_d).clamp(0, 1)


def luminance(image: Float[Tensor, "n 3 h w"]) -> Float[np.ndarray, "n 1 h w"]:
    """Mean absorbance of the channels with mean 0 and standard deviation 1: structure, no stain.

    Absorbance is cut at 2, which keeps black pixels from ruling the mean.
    """
    light = to_absorbance(image).clamp(max=2).mean(1, keepdim=True)
    std, mean = torch.std_mean(light, (1, 2, 3), keepdim=True)
    return ((light - mean) / std.clamp(min=1e-6)).numpy()


def share(hit: Tensor) -> float | None:
    """The share of hits; none where nothing was tried."""
    return float(hit.float().mean()) if len(hit) else None


def nearest_is_own(a: np.ndarray, b: np.ndarray) -> float:
    """Share of rows of `a` whose most correlated row of `b` has the same number (ties are lost)."""
    a, b = (
        F.normalize(torch.from_numpy(x.reshape(len(x), -1)).float().sub(float(x.mean())), dim=1)
        for x in (a, b)
    )
    near = a @ b.T
    own = near.diagonal().clone()
    near.fill_diagonal_(-2)
    return float((own > near.amax(1)).float().mean())


@torch.no_grad()
def judge(
    predictor: Reconstructing,
    classifiers: dict[str, Predictor],
    image: Tensor,
    hospital: Tensor,
    seed: int,
) -> list[dict[str, object]]:
    """One row for each classifier and version of the held-out patches.

    Args:
        predictor: The encoders.
        classifiers: By the version that they were trained on.
        image: The patches.
        hospital: Whose they are.
        seed: Draws the donors, each from another hospital.
    """
    random = generator(seed, "donors")
    donor = torch.tensor(
        [
            int(other[torch.randint(len(other), (1,), generator=random)])
            for code in hospital
            for other in [(hospital != code).nonzero()[:, 0]]
        ]
    )
    pairs = list(zip(image.split(16), image[donor].split(16), strict=True))
    made = {
        "original": image,
        "reconstruction": torch.cat([predictor.reconstruct(x) for x, _ in pairs]),
        "mix": torch.cat([predictor.mix(x, z) for x, z in pairs]),
        "colour transfer": colour_transfer(image, image[donor]),
    }
    kept = {version: structure(predictor, x, image) for version, x in made.items()}
    rows: list[dict[str, object]] = []
    for home, classifier in classifiers.items():
        features = {version: classifier.features(x) for version, x in made.items()}
        log_p = {version: classifier.head(z).log_softmax(1) for version, z in features.items()}
        known = log_p[home].argmax(1) == hospital
        own = features[home].numpy()
        for version, p in log_p.items():
            answer, z = p.argmax(1), features[version].numpy()
            row = {
                "classifier": home,
                "version": version,
                "own": share(answer == hospital),
                "donor": share(answer == hospital[donor]),
                "own_if_known": share((answer == hospital)[known]),
                "donor_if_known": share((answer == hospital[donor])[known[donor]]),
                "entropy": float(-(p.exp() * p).sum(1).mean() / np.log(NUM_HOSPITALS)),
                "frechet_own": frechet_distance(z, own),
                "frechet_donor": frechet_distance(z, own[donor.numpy()]),
            }
            rows.append({**row, **kept[version]})
    return rows


def structure(predictor: Reconstructing, made: Tensor, image: Tensor) -> dict[str, float]:
    """How much of the tissue a version keeps."""

    def content(x: Tensor) -> np.ndarray:
        parts = [predictor.content(predictor.signal.enter(part)) for part in x.split(16)]
        return torch.cat(parts).numpy()

    def coarse(x: np.ndarray) -> np.ndarray:
        return F.avg_pool2d(torch.from_numpy(x), 8).numpy()

    light, original_light = luminance(made), luminance(image)
    maps, original_maps = content(made), content(image)
    return {
        "ssim": float(ssim(light, original_light, span=6.0).mean()),
        "luminance": float(correlation(light, original_light).mean()),
        "content": float(correlation(maps, original_maps).mean()),
        "found": nearest_is_own(coarse(light), coarse(original_light)),
        "found_by_content": nearest_is_own(coarse(maps), coarse(original_maps)),
        "error": float((made - image).abs().mean()),
    }


def run_seed(tiles: Tensor, plan: Plan, seed: int) -> tuple[list[dict[str, object]], Mixes]:
    """The rows of one seed, and the figure's images."""
    started = time.perf_counter()
    held_out = seed % tiles.shape[1]
    training = tiles[:, [tile for tile in range(tiles.shape[1]) if tile != held_out]]
    predictor, last = train_encoders(training, plan, seed)
    views = {"original": lambda x: x, "reconstruction": torch.no_grad()(predictor.reconstruct)}
    classifiers = {
        name: train_classifier(training, plan, seed, view) for name, view in views.items()
    }
    image, hospital = (
        x.unflatten(0, (NUM_HOSPITALS, -1))[:, : plan.judged].flatten(0, 1)
        for x in patches(tiles[:, held_out])
    )
    found = judge(predictor, classifiers, image, hospital, seed)
    about = {"seed": seed, "steps": plan.quick_steps + plan.steps, "num": len(image), "last": last}
    about["seconds"] = round(time.perf_counter() - started, 1)
    shown = image.unflatten(0, (NUM_HOSPITALS, -1))[:, min(5, plan.judged - 1)]
    title = [f"hospital {code}" for code in range(NUM_HOSPITALS)]
    return [{**about, **row} for row in found], mixes(
        predictor, shown, title, shown, shown.roll(1, 0)
    )


def draw(found: Mixes, path: Path) -> None:
    """The figure as PNG: image, content maps, mixes."""
    k, s = found.content.shape[:2]
    figure, axes = plt.subplots(k, 1 + s + k, figsize=(1.0 * (1 + s + k), 1.06 * k + 0.3))
    for i in range(k):
        row = [found.image[i], *found.content[i], *found.mix[i]]
        for axis, image in zip(axes[i], row, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
        axes[i, 0].set_ylabel(found.title[i], fontsize=7)
        axes[0, 1 + s + i].set_title(f"as {found.title[i]}", fontsize=7, pad=3)
    axes[0, 0].set_title("image", fontsize=7, pad=3)
    for number in range(s):
        axes[0, 1 + number].set_title(f"content {number + 1}", fontsize=7, pad=3)
    figure.subplots_adjust(0.03, 0.005, 0.998, 0.95, 0.04, 0.04)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)


def main(folder: Path, out: Path, plan: Plan, figure: Path) -> list[dict[str, object]]:
    tiles = read_tiles(folder)
    rows: list[dict[str, object]] = []
    for seed in range(plan.seeds):
        found, drawn = run_seed(tiles, plan, seed)
        rows += found
        for row in found:
            print(json.dumps(row))
        if seed == 0:
            draw(drawn, figure)
    with whole(out) as file:
        file.write("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the tiles")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    for name in ("seeds", "quick_steps", "steps", "crop", "per_hospital", "classifier_steps"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=asdict(Plan())[name])
    given = vars(parser.parse_args())
    paths = [given.pop(name) for name in ("folder", "out", "figure")]
    main(paths[0], paths[1], replace(Plan(), **given), paths[2])
