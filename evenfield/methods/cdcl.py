"""CDCL: DINO on two images of one treatment from different domains, with a centre for each domain.

Fredin Haslum, Matsoukas, Leuchowius, Müllers and Smith, "Metadata-guided consistency learning for
high content images", MIDL 2023, https://arxiv.org/abs/2212.11595. The equations follow a
description of the authors' released code, which may differ from the paper's text.

Where this file departs from the code, and why:
    centre speed    For a domain of more than 10 times its expected share the code's step is larger
                    than 1, and the old centre gets a negative weight: it is clamped to 1
                    (`clamp_centre` off = as released).
    correlation     Computed from (n, n) products instead of (K, K) matrices where n < K (`barlow`):
                    the same numbers; `full` is the definition.
    shares          Of the domains among the training images, which the loop tells before the
                    first step; until then (in a notebook) those of the batch.
    several passes  The centres follow once a step of the optimiser, over all its passes. Several
                    processes average their centres.
    new domains     A domain that was never trained on has the centre 0, as all have at the start.
                    It matters for the validation's loss alone, which selects nothing.
    what DINO does  See `dino`: crops and pairs come with the batch, schedules go by the share of
                    the training, the probe, any encoder. The probe's rate is its own, its optimiser
                    and its schedule the run's (the code: Adam with warm restarts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.dino_head import head_for
from evenfield.nn.distillation import (
    Settings,
    StudentTeacher,
    check_settings,
    cross_entropies,
    decay_groups,
    different_views,
    probe_group,
)
from evenfield.nn.predictor import Predictor
from evenfield.nn.redundancy import redundancy, standardised
from evenfield.seeds import generator
from evenfield.types import Batch, Losses, Needs

OFF_SCALE = 0.01


@METHODS.register("cdcl")
class CDCL(Method):
    """Self-distillation across domains, by treatment; the teacher's backbone is what stays.

    Attributes:
        networks: Student and teacher, backbones and heads.
        centre: (num_domains, K) running means of the teacher's outputs, one a domain.
        share: (num_domains,) of each domain among the training images; 0 = not told.
    """

    needs: ClassVar[Needs] = Needs(views=True, local_views=True, pairs=True)
    learns_to: ClassVar[float] = 0.9
    # A moving centre flattens the targets, so that the loss of a fixed batch may rise.
    tested_with: ClassVar[dict[str, Any]] = {
        "num_outputs": 16,
        "hidden": 16,
        "bottleneck": 8,
        "centre_momentum": 1.0,
        "num_domains": 8,
    }
    centre: Tensor
    share: Tensor

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Settings, Method.Config):
        """The hyper-parameters of CDCL; defaults are the released ones of RxRx1.

        Attributes:
            w: Weight of the correlation term, from 0 to 1; the rest is DINO's.
            off_diagonal: Weight of the correlations between outputs within that term, lambda.
            compare: `all` pairs of different views (14), or those `across` the two images only (8).
            clamp_centre: Whether a centre moves at most to the mean of its batch.
            barlow: How the correlations are computed: from `gram` matrices, in `full`, or `auto`,
                in the way that is cheaper for the batch.
            num_domains: Most domains that centres are kept for.
        """

        hidden: int = 1024
        bottleneck: int = 512
        tau_warmup: float = 0.05
        momentum_start: float = 0.995
        momentum_end: float = 0.9996
        freeze_last: float = 0.005
        w: float = 0.75
        off_diagonal: float = 0.95
        compare: Literal["all", "across"] = "all"
        clamp_centre: bool = True
        barlow: Literal["auto", "gram", "full"] = "auto"
        num_domains: int = 256

        def __post_init__(self) -> None:
            check_settings(self)
            check_range("w", self.w, 0, 1)
            check_range("off_diagonal", self.off_diagonal, 0, 1)
            check_range("num_domains", self.num_domains, 1)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        nn.Module.__init__(self)
        del c
        self.config = config
        self.networks = StudentTeacher(backbone, head_for(config, d))
        self.predictor = Predictor(self.networks.teacher, nn.Linear(d, k))
        self.register_buffer("centre", torch.zeros(config.num_domains, config.num_outputs))
        self.register_buffer("share", torch.zeros(config.num_domains))
        self._seen: list[tuple[Tensor, Tensor]] = []

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """(1 - w) L_dino + w L_bar, over pairs of views.

        Raises:
            InputError: The code of a domain is beyond `num_domains`.
        """
        config, views = self.config, batch.views
        assert batch.partner_domain is not None
        domain = torch.stack([batch.domain, batch.partner_domain], 1)  # behind each teacher view
        self._check(domain)
        z, t = self.networks.teach(views[0])
        s = self.networks.learn(
            views,
            drop_path=config.drop_path,
            generator=generator(batch.seed, "drop path"),
            frozen_last=progress < config.freeze_last,
        )
        if self.training:
            self._seen.append((t.flatten(0, 1), domain.flatten()))
        u = (t - self.centre[domain]) / config.temperature(progress)
        pairs = self._pairs(t.shape[1], s.shape[1]).to(t.device)
        dino = cross_entropies(u.softmax(-1), s, config.tau_student)[pairs].mean()
        dino = dino / math.log(config.num_outputs)
        with torch.autocast(t.device.type, enabled=False):
            correlate = redundancy(config.barlow, len(s), s.shape[2])
            on, off = correlate(standardised(u), standardised(s / config.tau_student))
            barlow = weighted(on[pairs].mean(), off[pairs].mean(), config.off_diagonal)
        probe = cross_entropy(self.predictor.head(z[:, 0]), batch.label)
        total = (1 - config.w) * dino + config.w * barlow + probe
        return Losses(total=total, parts={"dino": dino, "barlow": barlow, "probe": probe})

    def groups(self) -> list[dict[str, Any]]:
        """Matrices, biases, and the probe apart."""
        config, networks = self.config, [self.networks.student, self.networks.student_head]
        return [
            *decay_groups(networks, config.weight_decay_end),
            probe_group(self.predictor.head, config.probe_lr, config.probe_decay),
        ]

    def learn_design(self, domain: Int[Tensor, " n"]) -> None:
        """Take in the domain of every training image: p, the domains' shares."""
        self._check(domain)
        count = domain.to(self.share.device).bincount(minlength=len(self.share))
        self.share.copy_(count / max(1, len(domain)))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The teacher follows the student, each centre the teacher's outputs of its domain."""
        self.networks.follow(self.config.momentum(progress))
        if not self._seen:
            return
        t, domain = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        self.centre.copy_(
            moved(
                self.centre,
                t,
                domain,
                self.share,
                momentum=self.config.centre_momentum,
                clamp=self.config.clamp_centre,
            )
        )

    def _pairs(self, num_teacher: int, num_student: int) -> Bool[Tensor, "g v"]:
        pairs = different_views(num_teacher, num_student)
        if self.config.compare == "across":
            pairs &= image_of(num_teacher, num_student)[:, None] != image_of(
                num_student, num_student
            )
        return pairs

    def _check(self, domain: Int[Tensor, "*n"]) -> None:
        if (highest := int(domain.max())) >= len(self.share):
            raise InputError(
                f"cdcl: centres are kept for {len(self.share)} domains, and there is a domain of "
                f"code {highest}",
                fix=f"train with --options.num-domains {highest + 1} or more",
            )


def image_of(num: int, num_views: int) -> Int[Tensor, " num"]:
    """Which image (0 or 1) each of the first views shows: one global view and half the local ones.

    >>> image_of(8, 8).tolist()
    [0, 1, 0, 0, 0, 1, 1, 1]
    """
    half = (num_views - 2) // 2
    return torch.tensor([0, 1, *[0] * half, *[1] * half])[:num]


def weighted(
    on: Float[Tensor, ""], off: Float[Tensor, ""], off_diagonal: float
) -> Float[Tensor, ""]:
    """((1 - lambda) on + lambda off) / ((1 - lambda) + 0.01 lambda).

    >>> weighted(torch.tensor(1.0), torch.tensor(0.01), 0.95)
    tensor(1.)
    """
    scale = (1 - off_diagonal) + OFF_SCALE * off_diagonal
    return ((1 - off_diagonal) * on + off_diagonal * off) / scale


def moved(
    centre_dk: Float[Tensor, "d k"],
    t_mk: Float[Tensor, "m k"],
    domain: Int[Tensor, " m"],
    share: Float[Tensor, " d"],
    *,
    momentum: float,
    clamp: bool,
) -> Float[Tensor, "d k"]:
    """C_d <- (1 - alpha_d) C_d + alpha_d b_d, with alpha_d = (1 - momentum) (n_d / n) / p_d.

    b_d is the mean of the rows of domain d and n_d their number. A domain without a row, or without
    a share, keeps its centre bit for bit.

    Args:
        centre_dk: C.
        t_mk: Raw outputs of the teacher.
        domain: Of each row.
        share: p; all 0 = as in the rows, which makes every alpha 1 - momentum.
        momentum: Of a domain with its expected share of the rows.
        clamp: Whether alpha is at most 1.

    >>> c = moved(torch.zeros(3, 1), torch.tensor([[2.0], [4.0]]), torch.tensor([1, 1]),
    ...           torch.tensor([0.5, 0.5, 0.0]), momentum=0.9, clamp=True)
    >>> c.flatten()  # domain 1 has twice its share: alpha = 0.2, of a mean of 3
    tensor([0.0000, 0.6000, 0.0000])
    """
    count = domain.bincount(minlength=len(centre_dk)).to(centre_dk.dtype)
    total = torch.zeros_like(centre_dk).index_add(0, domain, t_mk.to(centre_dk.dtype))
    mean = total / count.clamp(min=1)[:, None]
    here = count / len(domain)
    expected = share if bool(share.any()) else here
    alpha = (1 - momentum) * here / expected.where(expected > 0, torch.inf)
    alpha = (alpha.clamp(max=1) if clamp else alpha)[:, None]
    return torch.where(alpha > 0, (1 - alpha) * centre_dk + alpha * mean, centre_dk)
