"""DINO: the student's view of any crop must say what the teacher says of another crop.

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021,
https://arxiv.org/abs/2104.14294, Algorithm 1. With pairs of images (the same treatment on another
plate, `--train.pairs plate`) it is the pretraining of CODA: Fredin Haslum et al., WACV 2024,
https://arxiv.org/abs/2311.12623, whose values are the defaults.

Where this file departs from the paper, or from the codes of DINO and CODA, and why:
    crops           Come with the batch: what an image may look like is the view's business
                    (`--view.crops.*`), whose partner it is the sampler's (`--train.pairs`).
    any encoder     Convolutional networks, too: the teacher's running statistics of BatchNorm are
                    its own, of the views that it has seen.
    schedules       By the share of the training that is done, not by epochs. The learning rate
                    starts at and goes to 0 (the codes keep floors of about 1e-6).
    centre          Follows once a step of the optimiser, over all its passes; in eval mode never.
    last layer      Frozen by taking it as a constant: it gets no gradient, no weight decay, and no
                    share in the clipped norm.
    probe           The house's addition: a linear classifier on detached teacher features of the
                    first global view, so that the model can be judged at once. Nothing of it
                    reaches the encoder. What is deployed is the teacher's backbone and this probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.methods.base import METHODS, Method, cross_entropy
from evenfield.nn.dino_head import head_for
from evenfield.nn.distillation import (
    Settings,
    StudentTeacher,
    cross_entropies,
    decay_groups,
    different_views,
    probe_group,
)
from evenfield.nn.predictor import Predictor
from evenfield.seeds import generator
from evenfield.types import Batch, Losses, Needs


@METHODS.register("dino")
class DINO(Method):
    """Self-distillation between crops, without labels; the teacher's backbone is what stays.

    Attributes:
        networks: Student and teacher, backbones and heads.
        centre: (k,) running mean of the teacher's outputs.
    """

    needs: ClassVar[Needs] = Needs(views=True, local_views=True)
    learns_to: ClassVar[float] = 0.9
    # A moving centre flattens the targets, so that the loss of a fixed batch may rise.
    tested_with: ClassVar[dict[str, Any]] = {
        "num_outputs": 16,
        "hidden": 16,
        "bottleneck": 8,
        "centre_momentum": 1.0,
    }
    centre: Tensor

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Settings, Method.Config):
        """The hyper-parameters of DINO."""

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        nn.Module.__init__(self)
        del c
        self.config = config
        self.networks = StudentTeacher(backbone, head_for(config, d))
        self.predictor = Predictor(self.networks.teacher, nn.Linear(d, k))
        self.register_buffer("centre", torch.zeros(config.num_outputs))
        self._seen: list[Tensor] = []

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """The mean over pairs of views of H(softmax((t - C) / tau_t), softmax(s / tau_s))."""
        config, views = self.config, batch.views
        z, t = self.networks.teach(views[0])
        s = self.networks.learn(
            views,
            drop_path=config.drop_path,
            generator=generator(batch.seed, "drop path"),
            frozen_last=progress < config.freeze_last,
        )
        if self.training:
            self._seen.append(t.mean((0, 1)))
        q = ((t - self.centre) / config.temperature(progress)).softmax(-1)
        pairs = different_views(t.shape[1], s.shape[1]).to(t.device)
        dino = cross_entropies(q, s, config.tau_student)[pairs].mean()
        probe = cross_entropy(self.predictor.head(z[:, 0]), batch.label)
        return Losses(total=dino + probe, parts={"dino": dino, "probe": probe})

    def groups(self) -> list[dict[str, Any]]:
        """Matrices, biases, and the probe apart."""
        config, networks = self.config, [self.networks.student, self.networks.student_head]
        return [
            *decay_groups(networks, config.weight_decay_end),
            probe_group(self.predictor.head, config.probe_lr, config.probe_decay),
        ]

    def after_step(self, progress: float) -> None:
        """The teacher follows the student, the centre the teacher's outputs."""
        self.networks.follow(self.config.momentum(progress))
        if self._seen:
            mean = torch.stack(self._seen).mean(0)
            self.centre.copy_(followed(self.centre, mean, self.config.centre_momentum))
            self._seen = []


def followed(
    centre: Float[Tensor, " k"], mean: Float[Tensor, " k"], momentum: float
) -> Float[Tensor, " k"]:
    """C <- m C + (1 - m) mean.

    >>> followed(torch.tensor([0.0]), torch.tensor([1.0]), 0.9)
    tensor([0.1000])
    """
    return momentum * centre + (1 - momentum) * mean
