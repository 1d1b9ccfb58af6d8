"""ARM-LL: one gradient step on a learned loss, which needs no labels, fits the model to a plate.

Zhang et al., "Adaptive risk minimization: learning to adapt to domain shift", NeurIPS 2021,
https://arxiv.org/abs/2007.02931 (learned loss), with plates as domains. Gradients are of second
order: the outer loss is differentiated through the inner step.

Where this file departs from the paper, and why:
    episodes       Losses are summed over the episodes of a batch, as in the paper's code, each the
                   mean over its labelled images; episodes may have any size.
    controls       Negative controls take no part.
    support        The learned loss is a norm over images, so that the size of the step grows with
                   their number: at test no more than `support` images, evenly spaced, are used.
    statistics     BatchNorm takes the statistics of the pass, in both passes, whatever the mode;
                   a conditioned copy keeps those of the pass after the step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from evenfield.methods.base import (
    METHODS,
    Method,
    cross_entropy,
    episodes,
    images_to_condition_on,
)
from evenfield.nn.norm import normalising, settle_rule, sum_of, union_rule
from evenfield.nn.predictor import Predictor
from evenfield.types import UNKNOWN, Batch, Context, Losses, Needs


class LearnedLossPredictor(Predictor):
    """A predictor with the loss that it has learned to adapt by.

    Attributes:
        learned_loss: Logits (n, k) to one number an image (n, 1), phi of the paper.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        learned_loss: nn.Module,
        *,
        inner_lr: float,
        support: int,
    ) -> None:
        super().__init__(backbone, head)
        self.learned_loss = learned_loss
        self.inner_lr = inner_lr
        self.support = support

    def theta(self) -> dict[str, nn.Parameter]:
        """The parameters that the inner step moves: those of backbone and head that learn."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("learned_loss.")
        }

    def inner_step(
        self, image: Float[Tensor, "n c h w"], *, create_graph: bool
    ) -> dict[str, Tensor]:
        """`theta' = theta - inner_lr * grad |learned_loss(logits)|_2`, over the images given.

        To be called inside `normalising`, which says whose statistics are used.
        """
        theta = self.theta()
        loss = torch.linalg.vector_norm(self.learned_loss(self(image)).float())
        grads = torch.autograd.grad(
            loss, list(theta.values()), create_graph=create_graph, materialize_grads=True
        )
        return {
            name: parameter - self.inner_lr * grad
            for (name, parameter), grad in zip(theta.items(), grads, strict=True)
        }

    def condition(self, context: Context) -> LearnedLossPredictor:
        """A copy after one inner step on the context's perturbed images, with their statistics.

        Without a perturbed image the controls serve, with a warning; an empty context changes
        nothing.
        """
        # Inside `torch.inference_mode` the copy's tensors could not be learned on.
        with torch.inference_mode(False), torch.enable_grad():
            conditioned = copy.deepcopy(self)
            if not len(context.image):
                return conditioned
            image = images_to_condition_on(context, "arm-ll")
            support = image[:: -(-len(image) // self.support)].clone()
            with normalising(conditioned, union_rule):
                moved = conditioned.inner_step(support, create_graph=False)
            with torch.no_grad():
                for name, parameter in conditioned.theta().items():
                    parameter.copy_(moved[name])
                with normalising(conditioned, settle_rule):
                    conditioned(support)
        return conditioned


@METHODS.register("arm-ll")
class ARMLL(Method):
    """Cross-entropy after one step on a learned loss, learned through that step."""

    needs: ClassVar[Needs] = Needs(one_context=True)
    predictor: LearnedLossPredictor

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of ARM-LL.

        Attributes:
            inner_lr: Size of the inner step, alpha of the paper.
            hidden: Width of the learned loss's three hidden layers.
            support: Most images of a plate that the inner step uses at test.
        """

        inner_lr: float = 0.1
        hidden: int = 32
        support: int = 64

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        self.predictor = LearnedLossPredictor(
            backbone,
            self.predictor.head,
            learned_loss(k, config.hidden),
            inner_lr=config.inner_lr,
            support=config.support,
        )

    @property
    def native(self) -> str:
        """The inner step on the new plate's images."""
        return "condition"

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Sum over episodes of the mean cross-entropy after each one's inner step."""
        del progress
        cut = episodes(batch[~batch.is_control])
        labelled = [episode for episode in cut if bool((episode.label != UNKNOWN).any())]
        risk = sum_of(self._risk(episode) for episode in labelled or cut)
        return Losses(total=risk, parts={"risk": risk})

    def _risk(self, episode: Batch) -> Tensor:
        outer = torch.is_grad_enabled()  # validation wants the loss only, the step needs a gradient
        with normalising(self.predictor, union_rule):
            with torch.enable_grad():
                moved = self.predictor.inner_step(episode.image, create_graph=outer)
            logits = functional_call(self.predictor, moved, (episode.image,))
        return cross_entropy(logits, episode.label)


def learned_loss(k: int, hidden: int) -> nn.Sequential:
    """The network phi: k to hidden, three times with ReLU, to one number an image."""
    return nn.Sequential(
        nn.Linear(k, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
    )
