"""SimCLR: two views of one item attract each other, all other views of the batch repel them.

Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020,
https://arxiv.org/abs/2002.05709, equation 1 (NT-Xent).

Where this file departs from the paper, and why:
    views           The two global views of the batch; crops and their light are the view's business
                    (`--view.crops.*`). With pairs (`--train.pairs`) the second one shows the same
                    treatment in another domain.
    same treatment  Other items of the batch with the same treatment count as negatives, as in the
                    paper, which knows no treatments: with few treatments and large batches that is
                    wrong of many of them.
    projector       Two layers with one hidden ReLU, without BatchNorm.
    deployed        The backbone, with a linear probe on detached features (the house's addition).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.distillation import decay_groups, encode, outputs, probe_group
from evenfield.nn.heads import unit
from evenfield.types import Batch, Losses, Needs


@METHODS.register("simclr")
class SimCLR(Method):
    """Contrast between items; the backbone is what stays.

    Attributes:
        projector: Features (n, d) to projections.
    """

    needs: ClassVar[Needs] = Needs(views=True)
    learns_to: ClassVar[float] = 0.9
    tested_with: ClassVar[dict[str, Any]] = {"hidden": 16, "projection": 8}

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of SimCLR.

        Attributes:
            tau: Temperature of the cosines.
            hidden: Width of the projector's hidden layer.
            projection: Dimension of the projections.
            weight_decay_end: Weight decay at the end, a cosine after `--train.weight-decay`; none =
                it stays.
            probe_lr: Learning rate of the linear probe that predicts labels.
            probe_decay: Weight decay of the linear probe.
        """

        tau: float = 0.1
        hidden: int = 2048
        projection: int = 128
        weight_decay_end: float | None = None
        probe_lr: float = 1e-3
        probe_decay: float = 0.0

        def __post_init__(self) -> None:
            check_range("tau", self.tau, 1e-6)
            check_range("hidden", self.hidden, 1)
            check_range("projection", self.projection, 1)
            check_range("probe_lr", self.probe_lr, 0)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        self.projector = nn.Sequential(
            nn.Linear(d, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.projection)
        )

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """The mean over all views i of -log softmax_j(cos(i, j) / tau) at i's partner, j != i."""
        del progress
        z = encode(self.predictor.backbone, batch.views[:1])
        simclr = nt_xent(outputs(self.projector, z), self.config.tau)
        probe = cross_entropy(self.predictor.head(z[:, 0].detach()), batch.label)
        return Losses(total=simclr + probe, parts={"simclr": simclr, "probe": probe})

    def groups(self) -> list[dict[str, Any]]:
        """Matrices, biases, and the probe apart."""
        config, networks = self.config, [self.predictor.backbone, self.projector]
        return [
            *decay_groups(networks, config.weight_decay_end),
            probe_group(self.predictor.head, config.probe_lr, config.probe_decay),
        ]


def nt_xent(p: Float[Tensor, "n 2 k"], tau: float) -> Float[Tensor, ""]:
    """The normalised, temperature-scaled cross-entropy over 2n views; equation 1, mean over i.

    >>> p = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> nt_xent(p, 1.0)  # -log(e / (e + 2))
    tensor(0.5514)
    """
    u = unit(torch.cat([p[:, 0], p[:, 1]]))
    with torch.autocast(u.device.type, enabled=False):
        cosine = (u @ u.T / tau).masked_fill(
            torch.eye(len(u), dtype=torch.bool, device=u.device), -torch.inf
        )
        partner = torch.arange(len(u), device=u.device).roll(len(p))
        return F.cross_entropy(cosine, partner)
