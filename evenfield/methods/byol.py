"""BYOL: one network predicts what its slow twin says of another view; nothing is pushed apart.

Grill et al., "Bootstrap your own latent", NeurIPS 2020, https://arxiv.org/abs/2006.07733,
equations 1 to 3. With pairs of images (the same treatment in another batch, `--train.pairs`) it is
the baseline BYOL-CB of CDCL (https://arxiv.org/abs/2212.11595).

Where this file departs from the paper, and why:
    views           The two global views of the batch; crops and their light are the view's business
                    (`--view.crops.*`), whose partner they show the sampler's. No local ones.
    BatchNorm       Both views go through each network in one pass, so that statistics of
                    BatchNorm are taken over both (the paper: over each view).
    schedule        The target's momentum follows the share of the training that is done.
    deployed        The online network's backbone, as in the paper, with a linear probe on detached
                    features (the house's addition: nothing of it reaches the encoder).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.distillation import (
    StudentTeacher,
    cosine_between,
    decay_groups,
    different_views,
    encode,
    outputs,
    probe_group,
)
from evenfield.nn.heads import precise
from evenfield.nn.predictor import Predictor
from evenfield.types import Batch, Losses, Needs


@METHODS.register("byol")
class BYOL(Method):
    """Prediction of a slow twin's view, without negatives; the online backbone is what stays.

    Attributes:
        networks: Online network (`student`) and target (`teacher`), each with its projector.
        guess: The predictor: online projections to target projections.
    """

    needs: ClassVar[Needs] = Needs(views=True)
    learns_to: ClassVar[float] = 0.9
    tested_with: ClassVar[dict[str, Any]] = {"hidden": 16, "projection": 8}

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of BYOL.

        Attributes:
            hidden: Width of the hidden layers of projector and predictor.
            projection: Dimension of the projections.
            momentum_start: Share of the target that stays in a step, at the start.
            momentum_end: The same at the end; a cosine lies between.
            weight_decay_end: Weight decay at the end, a cosine after `--train.weight-decay`; none =
                it stays.
            probe_lr: Learning rate of the linear probe that predicts labels.
            probe_decay: Weight decay of the linear probe.
        """

        hidden: int = 4096
        projection: int = 256
        momentum_start: float = 0.996
        momentum_end: float = 1.0
        weight_decay_end: float | None = None
        probe_lr: float = 1e-3
        probe_decay: float = 0.0

        def __post_init__(self) -> None:
            check_range("hidden", self.hidden, 1)
            check_range("projection", self.projection, 1)
            check_range("momentum_start", self.momentum_start, 0, 1)
            check_range("momentum_end", self.momentum_end, 0, 1)
            check_range("probe_lr", self.probe_lr, 0)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        nn.Module.__init__(self)
        del c
        self.config = config
        self.networks = StudentTeacher(backbone, perceptron(d, config.hidden, config.projection))
        self.guess = perceptron(config.projection, config.hidden, config.projection)
        self.predictor = Predictor(self.networks.student, nn.Linear(d, k))

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """The mean over both directions of |q(s_j) - t_k|^2 on the unit sphere, j != k."""
        del progress
        views = batch.views[:1]
        _, t = self.networks.teach(views[0])
        z = encode(self.networks.student, views)
        s = outputs(self.guess, outputs(self.networks.student_head, z))
        pairs = different_views(t.shape[1], s.shape[1]).to(t.device)
        byol = squared_distances(t, s)[pairs].mean()
        probe = cross_entropy(self.predictor.head(z[:, 0].detach()), batch.label)
        return Losses(total=byol + probe, parts={"byol": byol, "probe": probe})

    def groups(self) -> list[dict[str, Any]]:
        """Matrices, biases, and the probe apart."""
        online = [self.networks.student, self.networks.student_head, self.guess]
        return [
            *decay_groups(online, self.config.weight_decay_end),
            probe_group(self.predictor.head, self.config.probe_lr, self.config.probe_decay),
        ]

    def after_step(self, progress: float) -> None:
        """The target follows the online network."""
        config = self.config
        momentum = cosine_between(config.momentum_start, config.momentum_end, progress)
        self.networks.follow(momentum)


def perceptron(d: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, linear: projector and predictor of the paper."""
    return nn.Sequential(
        nn.Linear(d, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


def squared_distances(t: Float[Tensor, "n g k"], s: Float[Tensor, "n v k"]) -> Float[Tensor, "g v"]:
    """Mean over the items of 2 - 2 cos(t, s) for every pair of views, in float32 at least.

    >>> squared_distances(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))
    tensor([[0., 2.]])
    """
    with torch.autocast(t.device.type, enabled=False):
        t, s = F.normalize(precise(t), dim=2), F.normalize(precise(s), dim=2)
        return 2 - 2 * torch.einsum("ngk,nvk->gv", t, s) / len(t)
