"""What the encoders of ContriMix do to images: content maps, mixes, and what mixing costs.

A mix that destroys biology must be visible, so that the numbers say how much of the structure is
kept and how far the features of the classifier move.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from evenfield.bench.composite import composite
from evenfield.bench.deploy import reader_for
from evenfield.data.dataset import Reader
from evenfield.data.split import make_split
from evenfield.data.store import Screen
from evenfield.errors import InputError
from evenfield.metrics.images import correlation, frechet_distance, ssim
from evenfield.nn.predictor import Predictor
from evenfield.nn.reconstruction import Reconstructing
from evenfield.seeds import numpy_generator
from evenfield.train.checkpoint import Model

NUM_SHOWN, MOST_SCORED, MOST_SIDE = 4, 128, 96
MOST_VALUES = 1 << 25
"""Pixel values that are held at once for the scores (128 MB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixes:
    """The figure of some images, and numbers over more of them.

    Attributes:
        image: (k, h, w, 3), the originals as red, green and blue.
        content: (k, s, h, w), their content maps; grey, one scale a map (its percentiles 1 to 99).
        mix: (k, k, h, w, 3), [i, j] is the content of i under the attribute of j.
        title: (k,) what the images are.
        score_name: (m,) names of the numbers.
        score: (m,) their values.
    """

    image: UInt8[np.ndarray, "k h w 3"]
    content: UInt8[np.ndarray, "k s h w"]
    mix: UInt8[np.ndarray, "k k h w 3"]
    title: np.ndarray
    score_name: np.ndarray
    score: Float[np.ndarray, " m"]

    def npz(self) -> bytes:
        """The arrays as a compressed npz file, without pickle."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        return buffer.getvalue()


@torch.inference_mode()
def mixes(
    predictor: Predictor,
    shown: Float[Tensor, "k c h w"],
    title: Sequence[str],
    scored: Float[Tensor, "n c h w"],
    donor: Float[Tensor, "n c h w"],
) -> Mixes:
    """The figure of `shown` images, all mixed with all, and the scores of `scored` images.

    Args:
        predictor: Of a `contrimix` run, in eval mode.
        shown: Images in 0 to 1; their central 96 pixels at most are drawn.
        title: What each of them is.
        scored: Images to compare with their reconstruction and with their mix.
        donor: Whose attribute each of the scored images gets.

    Raises:
        InputError: The predictor has no encoders to mix with, or there is nothing to score.
    """
    if not isinstance(predictor, Reconstructing):
        raise InputError(
            "this run has no encoders that mix images",
            fix="give a run of `contrimix`",
        )
    k, signal = len(shown), predictor.signal
    original = _array(shown)
    brightest = float(np.percentile(original[:, :3], 99.7))

    def rgb(images: np.ndarray) -> np.ndarray:
        return _rgb(images, brightest, brightfield=signal.absorbance)

    under = [rgb(_array(predictor.mix(shown, shown[[j] * k]))) for j in range(k)]
    content = _array(predictor.content(signal.enter(shown)))
    low, high = np.percentile(content, (1, 99), axis=(0, 2, 3), keepdims=True)
    grey = (np.clip((content - low) / np.maximum(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    score = scores(predictor, scored, donor)
    return Mixes(
        image=_centre(rgb(original), 1),
        content=_centre(grey, 2),
        mix=_centre(np.stack(under, axis=1), 2),
        title=np.array(list(title)),
        score_name=np.array(list(score)),
        score=np.array(list(score.values())),
    )


@torch.inference_mode()
def scores(
    predictor: Reconstructing, image: Float[Tensor, "n c h w"], donor: Float[Tensor, "n c h w"]
) -> dict[str, float]:
    """What reconstruction and mixing keep of images.

    `ssim` is the mean structural similarity to the original (its drop is wanted in colour, not in
    structure); `content` the mean correlation of the content maps of mix and original; `features`
    the Frechet distance of the classifier's features from those of the originals, in units of the
    originals' own variance.

    Raises:
        InputError: There are fewer than two images.
    """
    if len(image) < 2:
        raise InputError(
            f"{len(image)} images to score the mixes with", fix="give two images or more"
        )
    parts: dict[str, list[np.ndarray]] = {}
    for x, z in zip(image.split(16), donor.split(16), strict=True):
        made = {"original": x, "reconstruction": predictor.reconstruct(x)}
        made["mix"] = predictor.mix(x, z)
        original_maps = _array(predictor.content(predictor.signal.enter(x)))
        for name, y in made.items():
            maps = _array(predictor.content(predictor.signal.enter(y)))
            found = {
                "features": _array(predictor.inner.features(predictor.shown(y))),
                "ssim": ssim(_array(y), _array(x)),
                "content": correlation(maps, original_maps),
            }
            for what, values in found.items():
                parts.setdefault(f"{what} {name}", []).append(values)
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    original = whole["features original"]
    spread = max(float(original.var(0, ddof=1).sum()), 1e-12)
    result = {}
    for name in ("reconstruction", "mix"):
        result[f"ssim {name}"] = float(whole[f"ssim {name}"].mean())
        result[f"content {name}"] = float(whole[f"content {name}"].mean())
        result[f"features {name}"] = frechet_distance(whole[f"features {name}"], original) / spread
    return result


def mixes_of(
    predictor: Predictor,
    reader: Reader,
    rows: Int[np.ndarray, " n"],
    *,
    held_out: Sequence[str] = (),
    seed: int = 0,
) -> Mixes:
    """The figure and the scores of some rows of a screen: one image of each of up to four domains.

    Args:
        predictor: Of a `contrimix` run, in eval mode.
        reader: Of the screen; its view must leave pixels in 0 to 1.
        rows: Whose images may be shown and scored.
        held_out: Domains that the run has not seen: two of them are shown where there are two, and
            marked.
        seed: Draws rows and donors; a donor comes from another domain where there is one.

    Raises:
        InputError: There are fewer than two rows, or the run is not one of `contrimix`.
    """
    if len(rows) < 2:
        raise InputError(
            f"{len(rows)} images to mix", fix="give a screen (or hold out units) with two or more"
        )
    random = numpy_generator(seed, "mixes")
    rows = random.permutation(np.asarray(rows))
    names = np.array(reader.coded.domains)[reader.coded.domain[rows]]
    found = sorted(set(names.tolist()))
    new = [name for name in found if name in set(held_out)][: NUM_SHOWN // 2]
    old = [name for name in found if name not in set(held_out)][: NUM_SHOWN - len(new)]
    chosen = [*old, *new]
    first = [rows[np.flatnonzero(names == name)[0]] for name in chosen]
    scored = rows[: min(MOST_SCORED, max(16, MOST_VALUES // reader.images(rows[:1]).numel()))]
    domain = reader.coded.domain[scored]
    donor = np.array([random.choice(others(scored, domain, place)) for place in range(len(scored))])
    images = reader.images(np.concatenate([np.array(first), scored, donor]))
    shown, x, z = images.split([len(first), len(scored), len(donor)])
    title = [f"{name} (held out)" if name in new else name for name in chosen]
    return mixes(predictor, shown, title, x, z)


def mixes_of_run(model: Model, screen: Screen, *, seed: int = 0) -> Mixes:
    """The figure of a screen under a run; on the screen of its training, of images it has not seen.

    Raises:
        InputError: The screen does not fit the model; see `mixes_of`.
    """
    reader = reader_for(model, screen)
    if screen.fingerprint == model.screen:
        split = make_split(reader.coded, model.config.split)
        rows, tested = np.union1d(split.in_domain, split.test), split.test
    else:
        kind = screen.manifest[model.roles.control]
        rows = tested = np.flatnonzero((kind != "empty").to_numpy())
    held_out = set(np.array(reader.coded.domains)[reader.coded.domain[tested]].tolist())
    return mixes_of(model.method.predictor, reader, rows, held_out=sorted(held_out), seed=seed)


def others(
    rows: Int[np.ndarray, " n"], domain: Int[np.ndarray, " n"], place: int
) -> Int[np.ndarray, " m"]:
    """The rows of other domains than that of the one at a place; all rows where there are none.

    >>> others(np.array([10, 11, 12]), np.array([0, 0, 1]), 0).tolist()
    [12]
    """
    foreign = rows[domain != domain[place]]
    return foreign if len(foreign) else rows


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def _rgb(images: np.ndarray, high: float, *, brightfield: bool) -> np.ndarray:
    if brightfield and images.shape[1] == 3:
        return (images.transpose(0, 2, 3, 1) * 255).round().clip(0, 255).astype(np.uint8)
    return composite(images, 0.0, high)


def _centre(x: np.ndarray, axis: int) -> np.ndarray:
    """At most the central 96 pixels along an axis and the next."""
    for side in (axis, axis + 1):
        size = min(MOST_SIDE, x.shape[side])
        start = (x.shape[side] - size) // 2
        x = x.take(np.arange(start, start + size), axis=side)
    return x
