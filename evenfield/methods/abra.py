"""ABRA: search for the batch effect in the features that hurts most, and learn to withstand it.

A reconstruction. Tong, Yao et al., "Adversarial batch representation augmentation for batch
correction in high-content cellular screening", https://arxiv.org/abs/2603.05622: only its abstract
was at hand. From there are the four parts: feature statistics as structured uncertainties, a
min-max search for the worst batch effect inside them, a strict angular margin, and an alignment of
distributions against collapse. Every equation and value is ours, and every open choice a setting.

Where this file had to choose, and why:
    spreads        They are taken from the clean pass and stay fixed during the search, so that a
                   shift at one place does not widen what is allowed at the next.
    scale          The intensities learn by gradient reversal in the one backward pass; the other
                   way, separate steps inside the loss, would make the loss change parameters.
    eval           With `eval` the search runs on running statistics; the pass that is learned from
                   takes batch statistics, without tracking them.
    low rank       The search moves the latent xi; the diagonal rest keeps its random draw.
    no domains     Where a batch holds one experiment, there is no spread between experiments; that
                   between images takes its place, with a warning.
    eval mode      The loss, which selects the model, is that of the deployed predictor: no
                   perturbation, no margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.ascent import Offsets, ascend, projected, rms, weights_held
from evenfield.nn.heads import (
    CosineHead,
    NeckPredictor,
    neck,
    warmed_up,
    with_margin,
)
from evenfield.nn.histogram import matched
from evenfield.nn.perturbed_norm import InnerNorm, PerturbedNorm
from evenfield.nn.places import changing, resuming
from evenfield.nn.restyle import (
    check_places,
    mixing_shares,
    partners,
    style_mixed,
    widths,
)
from evenfield.nn.uncertainty import Reference, Seen, Shifts, Uncertainties
from evenfield.nn.views import View, collapse, gap
from evenfield.seeds import numpy_generator
from evenfield.types import UNKNOWN, Batch, Losses

SEARCHED = ("offset", "hybrid", "random_direction")
LEARNED = ("scale", "hybrid")
MIXED = ("mix", "efd")
NOTES = ("adversarial", "alignment", "inner_before", "inner_after", "a_rms", "b_rms")
Changes = dict[str, Callable[[Tensor], Tensor]]


@METHODS.register("abra")
class ABRA(Method):
    """Margin loss of clean images and of their worst-case batch effect, both views aligned."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The switches of ABRA.

        Attributes:
            spread_ref: Whose statistics say how far a batch effect reaches: of the images of the
                mini-batch, of its experiments' means, or a running estimate of either.
            structure: Independent channels (`diag`), correlated ones (`lowrank`), or independent
                channels with one offset for each experiment (`shared_per_experiment`).
            rank: Most directions of `lowrank`.
            offset_sharing: One offset for each image, or for each experiment in the batch.
            adversary: What is maximised over: `offset` the shift itself; `scale` learned
                intensities of a Gaussian one; `hybrid` both; instead of an adversary `gauss` (DSU),
                `mix` (MixStyle), `efd` (EFDMix), `random_direction` (the search's step length, a
                random way) or `none`.
            constraint: Offsets of at most rho in each channel (`box`), or together (`ball`).
            T: Ascent steps of the search.
            eta: Length of a step: root mean square over channels, in spreads.
            rho: Radius of the search, in spreads.
            beta: Weight of the alignment in the search, which keeps the shift's meaning.
            floor: The least share of its own standard deviation that a channel keeps; none = no
                floor.
            reversal: Factor on the reversed gradient of the learned intensities.
            alpha: Of the Beta distribution of `mix` and `efd`.
            head: `arc` a margin head; `ce` a linear one; `arc0.2+ce0.8` both on one embedding,
                the linear one deployed.
            s: Scale of the margin head.
            m: Angular margin in radians.
            arc_factor: Factor on the margin loss in `arc0.2+ce0.8`, as published: a half.
            neck: Width of a neck between pooled features and head, which asks for two images or
                more in a batch; none = no neck.
            align: Distance of the two views: Jensen-Shannon or Kullback-Leibler divergence of the
                predictions, angle of the features (`feat`), CORAL or MMD of the feature sets.
            lambda_a: Weight of the perturbed view's loss.
            lambda_d: Weight of the alignment.
            stages: Places of the backbone that are perturbed.
            inner_bn: BatchNorm under perturbation: batch statistics that are not tracked
                (`frozen_buffers`), running ones in the search (`eval`), or a second set of layers
                (`dual`).
            apply_prob: Probability that a mini-batch is perturbed.
            adv_warmup: Share of the training before the first perturbation.
            margin_warmup: Share of the training over which the margin rises from 0.
            ema: Weight of the past in a running spread.
        """

        spread_ref: Reference = "minibatch"
        structure: Literal["diag", "lowrank", "shared_per_experiment"] = "diag"
        rank: int = 8
        offset_sharing: Literal["per_sample", "shared_per_experiment"] = "per_sample"
        adversary: Literal[
            "offset", "scale", "hybrid", "gauss", "mix", "efd", "random_direction", "none"
        ] = "offset"
        constraint: Literal["box", "ball"] = "box"
        T: int = 1
        eta: float = 0.5
        rho: float = 1.0
        beta: float = 0.1
        floor: float | None = 0.1
        reversal: float = 1.0
        alpha: float = 0.1
        head: Literal["arc", "ce", "arc0.2+ce0.8"] = "arc"
        s: float = 30.0
        m: float = 0.3
        arc_factor: float = 0.5
        neck: int | None = None
        align: Literal["js", "kl", "feat", "coral", "mmd", "js+coral", "none"] = "js"
        lambda_a: float = 1.0
        lambda_d: float = 1.0
        stages: tuple[str, ...] = ("stem", "1", "2")
        inner_bn: InnerNorm = "frozen_buffers"
        apply_prob: float = 0.5
        adv_warmup: float = 0.056
        margin_warmup: float = 0.11
        ema: float = 0.9

        def __post_init__(self) -> None:
            for name, low, high in (
                *((name, 1, math.inf) for name in ("rank", "T")),
                *((name, 1e-3, math.inf) for name in ("alpha", "s")),
                *((name, 0, 1) for name in ("apply_prob", "adv_warmup", "margin_warmup", "ema")),
                ("rho", 0, math.inf),
                ("m", 0, math.pi / 2),
            ):
                check_range(name, getattr(self, name), low, high)
            if not self.stages and self.adversary != "none":
                raise InputError(
                    "abra perturbs no place of the backbone", fix="give stages, or adversary 'none'"
                )
            if self.structure != "lowrank":
                return
            if self.adversary in LEARNED:
                raise InputError(
                    f"adversary {self.adversary!r} scales channels, structure 'lowrank' has none",
                    fix="use structure 'diag', or adversary 'offset'",
                )
            if self.spread_ref.startswith("ema"):
                raise InputError(
                    "a running spread keeps no directions for structure 'lowrank'",
                    fix="use spread_ref 'minibatch' or 'between_experiment', or structure 'diag'",
                )

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        check_places(backbone, config.stages)
        if config.neck is not None:
            self.predictor = NeckPredictor(
                backbone, neck(d, config.neck), nn.Linear(config.neck, k)
            )
        d = config.neck or d
        if config.head == "arc":
            self.predictor.head = CosineHead(d, k, s=config.s)
        self.arc = CosineHead(d, k, s=config.s) if config.head == "arc0.2+ce0.8" else None
        learned, running = config.adversary in LEARNED, config.spread_ref.startswith("ema")
        self.uncertainties = Uncertainties(
            widths(backbone, config.stages, c) if learned or running else {},
            reference=config.spread_ref,
            rank=config.rank if config.structure == "lowrank" else None,
            ema=config.ema,
            learned=learned,
        )
        self.norms = PerturbedNorm(self.predictor, config.inner_bn)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """L(z) + lambda_a L(z') + lambda_d D(z, z'), where z' is the view with the worst shift."""
        config = self.config
        if not self.training:
            risk = cross_entropy(self.predictor(batch.image), batch.label)
            return Losses(total=risk, parts={"risk": risk})
        random = numpy_generator(batch.seed, "abra")
        m = warmed_up(config.m, progress, config.margin_warmup)
        perturbed = (
            random.random() < config.apply_prob
            and progress >= config.adv_warmup
            and config.adversary != "none"
        )
        seen = Seen()
        wanted = self.uncertainties.running or (perturbed and config.adversary not in MIXED)
        places = config.stages if wanted else ()
        clean = self._view(batch, self.uncertainties.watch(places, batch.domain, seen))
        risk = self._risk(clean, batch, m)
        parts = {"risk": risk, "perturbed": risk.new_tensor(float(perturbed))}
        parts |= collapse(clean.z, batch.label)
        if not perturbed:
            return Losses(total=risk, parts=parts | dict.fromkeys(NOTES, risk.new_zeros(())))
        notes: dict[str, Tensor] = {}
        if config.adversary in MIXED:
            changes = self._mixing(batch, random)
        else:
            changes, notes = self._shifting(batch, clean, seen, m, random)
        with self.norms.during(self.predictor, searching=False), self._resuming(seen):
            adv = self._view(batch, changes)
        adversarial, alignment = self._risk(adv, batch, m), self._gap(clean, adv, batch)
        total = risk + config.lambda_a * adversarial + config.lambda_d * alignment
        after = (adversarial - config.beta * alignment).detach()
        said = {"adversarial": adversarial, "alignment": alignment, "inner_after": after}
        said |= {"inner_before": after, "a_rms": 0 * after, "b_rms": 0 * after} | notes
        return Losses(total=total, parts=parts | said)

    def after_step(self, progress: float) -> None:
        """Keep the learned intensities in their range."""
        del progress
        self.uncertainties.keep_in_range()

    def _view(self, batch: Batch, changes: Changes) -> View:
        with changing(self.predictor.backbone, changes):
            z = self.predictor.features(batch.image)
        return View(z, self.predictor.head(z))

    def _risk(self, output: View, batch: Batch, m: float) -> Tensor:
        """L: the head's loss over the labelled images."""
        config = self.config
        if config.head == "ce":
            return cross_entropy(output.logits, batch.label)
        cosine = output.logits / config.s if self.arc is None else self.arc.cosine(output.z)
        margin = cross_entropy(config.s * with_margin(cosine, batch.label, m), batch.label)
        if self.arc is None:
            return margin
        linear = cross_entropy(output.logits, batch.label)
        return 0.8 * linear + 0.2 * config.arc_factor * margin

    def _gap(self, clean: View, adv: View, batch: Batch) -> Tensor:
        """D: how far the views are apart, over the images that may enter a loss."""
        keep = ~batch.is_control | (batch.label != UNKNOWN)
        return gap(self.config.align, clean, adv, keep)

    def _mixing(self, batch: Batch, random: np.random.Generator) -> Changes:
        """MixStyle's or EFDMix's perturbation, which has no uncertainty."""
        change = style_mixed if self.config.adversary == "mix" else matched
        return {
            place: partial(
                change,
                share=mixing_shares(random, len(batch), self.config.alpha).to(batch.label.device),
                partner=partners(batch.domain, "random", random),
            )
            for place in self.config.stages
        }

    def _shifting(
        self,
        batch: Batch,
        clean: View,
        seen: Seen,
        m: float,
        random: np.random.Generator,
    ) -> tuple[Changes, dict[str, Tensor]]:
        """The inner problem: shifts of the statistics, drawn or searched for, and notes on them."""
        config, known = self.config, seen.known
        group, num_rows = self._sharing(batch)

        def normal(shape: Sequence[int]) -> Tensor:
            drawn = random.standard_normal((num_rows, *shape), np.float32)
            return torch.from_numpy(drawn).to(batch.label.device)

        offsets = {place: normal(u.latent) for place, u in known.items()}
        noise = {place: normal(u.rest.shape) for place, u in known.items() if u.rest is not None}
        notes: dict[str, Tensor] = {}
        if config.adversary != "gauss":
            limit = partial(projected, rho=config.rho, constraint=config.constraint)
            noise = {place: limit(value) for place, value in noise.items()}
            offsets = {
                place: limit(self.uncertainties.scaled(place, value, config.reversal))
                for place, value in offsets.items()
            }
        shifts = Shifts(known, noise, group, config.floor)
        if config.adversary in SEARCHED:
            still = clean.detach()

            def objective(offsets: Offsets) -> Tensor:
                """J(a, b) = L(z') - beta D(z, z'), with all weights held."""
                perturbed = self.norms.during(self.predictor, searching=True)
                with weights_held(self), perturbed, self._resuming(seen, detached=True):
                    adv = self._view(batch, shifts.changes(offsets))
                    return self._risk(adv, batch, m) - config.beta * self._gap(still, adv, batch)

            found, notes["inner_before"] = ascend(
                objective, offsets, steps=config.T, eta=config.eta, project=limit
            )
            moved = {place: found[place] - value.detach() for place, value in offsets.items()}
            if config.adversary == "random_direction":
                ways = {place: normal(value.shape[1:]) for place, value in moved.items()}
                moved = {p: ways[p] / rms(ways[p]) * rms(value) for p, value in moved.items()}
            offsets = {place: limit(value + moved[place]) for place, value in offsets.items()}
        a, b = shifts.size(offsets)
        return shifts.changes(offsets), notes | {"a_rms": a, "b_rms": b}

    def _resuming(self, seen: Seen, *, detached: bool = False) -> AbstractContextManager[None]:
        """A perturbed pass starts at its first place: before it, both passes see the same."""
        if seen.first is None or self.config.inner_bn != "frozen_buffers":
            return nullcontext()
        place, x = seen.first
        return resuming(self.predictor.backbone, place, x.detach() if detached else x)

    def _sharing(self, batch: Batch) -> tuple[Tensor, int]:
        """Which offset each image takes, and how many there are."""
        shared = "shared_per_experiment"
        if shared not in (self.config.structure, self.config.offset_sharing):
            return torch.arange(len(batch), device=batch.label.device), len(batch)
        codes, group = batch.domain.unique(return_inverse=True)
        return group, len(codes)


def ablation_rows() -> dict[str, dict[str, Any]]:
    """Options of `abra` for the nine rows of its ablation; all else by default.

    Rows 2 and 4 keep the clean branch of ABRA's loss: DSU and AdvStyle inside its frame.
    """
    plain = {"head": "ce", "align": "none"}
    return {
        "0-erm": {"adversary": "none", **plain},
        "1-arcface": {"adversary": "none", "align": "none"},
        "2-gauss": {"adversary": "gauss", **plain},
        "3-gauss-margin": {"adversary": "gauss", "align": "none"},
        "4-scale": {"adversary": "scale", **plain},
        "5-no-alignment": {"align": "none"},
        "6-full": {},
        "7-no-adversary": {"adversary": "gauss"},
        "8-random-direction": {"adversary": "random_direction"},
    }
