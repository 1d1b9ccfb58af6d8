"""How an adaptation goes, seen without a label: agreement between views, and drift of controls.

This is the house's own rule: CODA adapts for a fixed number of epochs and keeps the last state.

    agreement   The mutual information (nats) of the classes that the frozen classifier gives to two
                views of the same treatment: between 0 and ln K. Views that disagree lower it, and
                so does a collapse, in which every image gets the same class. (Ji, Henriques and
                Vedaldi, "Invariant information clustering", ICCV 2019, train with it.)
    drift       How far the plate's controls lie from those of the training plates, in standard
                deviations between training plates (`calibrate.shift_score`).

Neither is accuracy. A model that agrees with itself on a wrong answer looks well to the first, and
controls at home say little of perturbed wells that have moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.data.dataset import Reader
from evenfield.nn.predictor import Predictor
from evenfield.train.calibrate import mean_features, shift_score
from evenfield.train.online_config import OnlineConfig

CHUNK = 128


@dataclass(slots=True, kw_only=True)
class Watch:
    """What has been seen so far; saved with the weights.

    Attributes:
        best: Highest agreement of a look that did not drift.
        best_step: When.
        waited: Looks since.
        first_drift: Drift before the adaptation; None where there are no controls to compare.
        stopped: Why the rule ended the adaptation; empty = it did not.
        looks: Step, agreement and drift of every look.
    """

    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    first_drift: float | None = None
    stopped: str = ""
    looks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: int, agreement: float, drift: float | None, config: OnlineConfig) -> bool:
        """Take in a look; whether its state is the best so far.

        >>> watch, config = Watch(), OnlineConfig(patience=2, drift=3.0)
        >>> looks = [(0, 0.5, 1.0), (9, 0.7, 2.0), (18, 0.9, 4.0)]
        >>> [watch.add(step, agrees, drift, config) for step, agrees, drift in looks]
        [True, True, False]
        >>> watch.best_step, watch.stopped
        (9, 'drift')
        """
        if not self.looks:
            self.first_drift = drift
        self.looks.append({"step": step, "agreement": agreement, "drift": drift})
        if self._too_far(drift, config):
            self.stopped = "drift"
            return False
        if agreement > self.best:
            self.best, self.best_step, self.waited = agreement, step, 0
            return True
        self.waited += 1
        if config.patience and self.waited >= config.patience:
            self.stopped = "agreement"
        return False

    def _too_far(self, drift: float | None, config: OnlineConfig) -> bool:
        """Beyond `drift` times what it was; below 1 it is what training plates do themselves."""
        if config.drift is None or drift is None or self.first_drift is None:
            return False
        return drift > config.drift * max(self.first_drift, 1.0)


def mutual_information(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """I = sum_ab J_ab ln(J_ab / (J_a. J_.b)) with J = mean of p q^T, in nats.

    >>> both = torch.eye(2)
    >>> mutual_information(both, both), mutual_information(both, both[[0, 0]])
    (tensor(0.6931), tensor(0.))
    """
    joint = torch.einsum("na,nb->ab", p, q) / len(p)
    alone = joint.sum(1)[:, None] * joint.sum(0)
    return (joint * (joint.clamp(min=1e-12) / alone.clamp(min=1e-12)).log()).sum()


@torch.no_grad()
def agreement(
    predictor: Predictor, reader: Reader, rows: np.ndarray, partner: np.ndarray, seed: int
) -> float:
    """Mutual information of the classes of images and of their partners.

    The partner of an image without one is a random view of itself.

    Args:
        predictor: In eval mode.
        reader: With the view in which the predictor is deployed.
        rows: (n,) images.
        partner: (n,) their partners.
        seed: Of the random views.
    """
    first = probabilities(predictor, reader, rows)
    second = probabilities(predictor, reader, partner)
    alone = torch.from_numpy(rows == partner)
    if alone.any():
        second[alone] = probabilities(predictor, reader, rows[rows == partner], seed=seed)
    return float(mutual_information(first, second))


def probabilities(
    predictor: Predictor, reader: Reader, rows: np.ndarray, *, seed: int | None = None
) -> Float[Tensor, "n k"]:
    """Softmax of the logits, of images as deployed or, with a seed, as they are trained on."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        image = reader.images(part) if seed is None else reader.images(part, seed=seed, train=True)
        parts.append(predictor(image).float().softmax(1).cpu())
    return torch.cat(parts)


def control_drift(
    predictor: Predictor, reader: Reader, controls: np.ndarray, reference: dict[str, Tensor]
) -> float | None:
    """Shift score of the controls; None without controls, or without controls in the training."""
    if not len(controls):
        return None
    return shift_score(mean_features(predictor, reader, controls), reference)
