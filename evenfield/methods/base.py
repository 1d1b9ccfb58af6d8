"""What a training method is: a pure function of parameters and batch that returns named losses."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.places import changing
from evenfield.nn.predictor import Predictor
from evenfield.nn.restyle import check_places, chosen
from evenfield.registry import Registry
from evenfield.types import UNKNOWN, Batch, Context, Losses, Needs


class Method(nn.Module, ABC):
    """The contract of a method.

    A method makes no optimiser, moves nothing between devices, switches no mode and writes no
    file. It draws only from `seeds.generator(batch.seed, purpose)`.

    Attributes:
        needs: What a batch must hold.
        learns_to: How far the loss must fall on one fixed batch (contract suite), as a fraction.
        tested_with: The settings of the contract suite, where the defaults are slow on a CPU.
        predictor: What is kept of the training: the model that adapters and `predict` use.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    learns_to: ClassVar[float] = 0.5
    tested_with: ClassVar[dict[str, Any]] = {}

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """The hyper-parameters of a method."""

    predictor: Predictor
    config: Any

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        """Build heads on a backbone.

        Args:
            config: The method's own `Config`.
            backbone: (n, c + extra_channels, h, w) to (n, d).
            d: Number of features.
            k: Number of classes.
            c: Number of image channels.
        """
        super().__init__()
        del c
        self.config = config
        self.predictor = Predictor(backbone, nn.Linear(d, k))

    @classmethod
    def extra_channels(cls, config: Any) -> int:
        """How many input channels the method adds to those of the image (ARM-CML: k)."""
        del config
        return 0

    @property
    def reset_at(self) -> float | None:
        """The progress at which the loop clears the optimiser's state, once (IRM, V-REx)."""
        return None

    @property
    def native(self) -> str:
        """The adapter that the method was trained for; validation runs in this mode."""
        return "source"

    @abstractmethod
    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """The losses of a mini-batch.

        Args:
            batch: What `needs` asks for.
            progress: How much of the training is done, from 0 to 1.
        """

    @property
    def classifies(self) -> bool:
        """Whether the classifier learns; otherwise accuracy says nothing and selects nothing."""
        return True

    def learn_design(self, domain: Tensor) -> None:
        """Hear, once before the training, the domain (n,) of every image that is trained on."""
        del domain

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser.

        A group may hold, beside the optimiser's own settings, `weight_decay_end` (the weight decay
        follows a cosine to it) and `clip` (False: its gradient is neither clipped nor counted).
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, progress: float) -> None:
        """What follows an optimiser step (moving averages, group weights)."""


class Restyled(Method):
    """Cross-entropy of a network whose early features are changed at random, in training only.

    Its `Config` has `p`, the probability that a place is changed in a batch, and `stages`, the
    places of the backbone.
    """

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        check_places(backbone, config.stages)

    @abstractmethod
    def changed(self, x: Tensor, *, batch: Batch, random: np.random.Generator) -> Tensor:
        """The features (n, c, h, w) of a batch at one place, drawn from this place's generator."""

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean cross-entropy over the labelled images."""
        del progress
        config = self.config
        drawn = chosen(config.stages, config.p, batch.seed, self.name) if self.training else {}
        changes = {
            place: partial(self.changed, batch=batch, random=random)
            for place, random in drawn.items()
        }
        with changing(self.predictor.backbone, changes):
            logits = self.predictor(batch.image)
        risk = cross_entropy(logits, batch.label)
        return Losses(total=risk, parts={"risk": risk})


METHODS: Registry[Method] = Registry("method", package="evenfield.methods")


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over the items with a known label; 0 (with a gradient) if none."""
    known = label != UNKNOWN
    total = F.cross_entropy(logits.float(), label, ignore_index=UNKNOWN, reduction="sum")
    return total / known.sum().clamp(min=1)


def domain_risks(logits: Tensor, label: Tensor, domain: Tensor) -> Tensor:
    """(m,) mean cross-entropy of each domain that holds a known label, by code; (0,) if none.

    >>> z = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 0.0]])
    >>> domain_risks(z, torch.tensor([0, 0, 1]), torch.tensor([7, 7, 3]))
    tensor([0.6931, 0.3466])
    """
    known = label != UNKNOWN
    codes, place = domain[known].unique(return_inverse=True)
    each = F.cross_entropy(logits[known].float(), label[known], reduction="none")
    total = each.new_zeros(len(codes)).index_add(0, place, each)
    return total / place.bincount(minlength=len(codes))


def mean_of(x: Tensor) -> Tensor:
    """The mean; 0 (with a gradient) of nothing.

    >>> mean_of(torch.tensor([])), mean_of(torch.tensor([1.0, 3.0]))
    (tensor(0.), tensor(2.))
    """
    return x.sum() / max(1, x.numel())


def annealed(weight: float, *, at: float, progress: float) -> float:
    """A penalty's weight at a point of the training: at most 1 before the share `at`, then whole.

    >>> [annealed(100.0, at=0.1, progress=p) for p in (0.0, 0.09, 0.1)]
    [1.0, 1.0, 100.0]
    """
    return weight if progress >= at else min(weight, 1.0)


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise an `InputError` unless a setting lies in a closed range.

    >>> check_range("weight", -1.0, 0)
    Traceback (most recent call last):
    evenfield.errors.InputError: weight is -1.0
      What to do: give 0 or more
    """
    if not low <= value <= high:
        fix = f"give {low:g} or more" if high == math.inf else f"give {low:g} to {high:g}"
        raise InputError(f"{name} is {value}", fix=fix)


def episodes(batch: Batch) -> list[Batch]:
    """The batch cut by context, in the order of the codes; itself if there is only one."""
    codes = batch.context.unique()
    return [batch] if len(codes) <= 1 else [batch[batch.context == code] for code in codes]


def episode_mean(batch: Batch, risk: Callable[[Batch], Tensor]) -> Tensor:
    """The mean of a risk over the episodes that hold a labelled image; 0 (with a gradient) if none.

    Args:
        batch: One episode or several; controls are never counted as labelled.
        risk: The risk of one episode, a scalar: its statistics never mix with another's.
    """
    cut = episodes(batch)
    labelled = [e for e in cut if bool(e.scored.any())]
    return torch.stack([risk(episode) for episode in labelled or cut]).mean()


def images_to_condition_on(context: Context, method: str) -> Tensor:
    """The perturbed images, on which the learned rules were trained; else the controls, warned."""
    if len(context.perturbed):
        return context.perturbed
    warnings.warn(
        f"{method}: {f'plate {context.name}' if context.name else 'this context'}: no perturbed "
        "image, the controls condition the model instead",
        EvenfieldWarning,
        stacklevel=4,
    )
    return context.controls
