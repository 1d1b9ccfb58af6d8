"""The settings of an adaptation that goes on as plates arrive. No torch here: they are CLI help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenfield.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """How an encoder follows new plates; the defaults are the released values of CODA.

    Attributes:
        plates: Names of the plates in the order of their arrival; empty = all of the screen (of the
            training screen: those of held-out units).
        together: All plates arrive at once, and one state serves them all; otherwise one after the
            other, each with a state of its own.
        start: What the adaptation to an arrival starts from: the `source` model, or the `previous`
            arrival's state.
        pool: What it learns on: all plates that have `arrived`, or the `new` one alone.
        pairs: Where the second image of an item comes from: the same treatment on another `plate`,
            in another `batch` or `source` (CODA); `none` = all crops are of one image (ODA).
        missing_pairs: What becomes of an image without such a partner: both crops are of itself, as
            in `oda`, or the adaptation stops with an `error`.
        images: Learn on `perturbed` images, or on `all` but empty wells.
        epochs: Passes over the images of an arrival's pool.
        steps: Steps for an arrival, instead of epochs; none = by epochs.
        minutes: Stop an arrival's adaptation after so many minutes; none = no limit.
        size: Items in a step.
        lr: Learning rate; none = that of the pretraining.
        anchor: Weight of the squared distance of the student's features from those of the source
            encoder, which the classifier was trained on; 0 = off.
        keep_centre: Whether the centre of the pretraining is kept; otherwise it restarts at 0.
        check_every: Steps between two looks at agreement and controls.
        watched: Images that such a look compares.
        patience: Stop after so many looks without more agreement and keep the best state; 0 = keep
            the last state.
        drift: Stop where the controls lie this many times as far from those of the training as
            before the adaptation, and keep the best state before; none = never.
        checkpoint_seconds: Write what is needed to go on after a kill at least so often.
        device: `auto` takes the GPU where there is one.
        seed: The seed of batches and views.
    """

    plates: tuple[str, ...] = ()
    together: bool = False
    start: Literal["source", "previous"] = "source"
    pool: Literal["arrived", "new"] = "arrived"
    pairs: Literal["plate", "batch", "source", "none"] = "plate"
    missing_pairs: Literal["oda", "error"] = "oda"
    images: Literal["perturbed", "all"] = "perturbed"
    epochs: int = 300
    steps: int | None = None
    minutes: float | None = None
    size: int = 128
    lr: float | None = None
    anchor: float = 0.0
    keep_centre: bool = False
    check_every: int = 100
    watched: int = 256
    patience: int = 0
    drift: float | None = None
    checkpoint_seconds: float = 60.0
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "minutes", "size", "lr", "check_every", "watched", "drift"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} is {value}", fix="give more than 0")
        for name in ("anchor", "patience"):
            if not (value := getattr(self, name)) >= 0:
                raise InputError(f"{name} is {value}", fix="give 0 or more")

    @property
    def stops(self) -> bool:
        """Whether a rule may stop the adaptation and choose the state to keep."""
        return self.patience > 0 or self.drift is not None
