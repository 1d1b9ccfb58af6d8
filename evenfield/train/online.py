"""CODA: the encoder's self-supervision goes on, on new plates, while the classifier stays.

Fredin Haslum et al., "Bridging generalization gaps in high content imaging through online
self-supervised domain adaptation", WACV 2024, https://arxiv.org/abs/2311.12623, step 3:

    theta_T = DINO(start = student, teacher and heads of the pretraining, images of T, pairs in T)
    y = argmax head(M(P(F_T(x)))),  F_T = the teacher's backbone; M, P and head as they were

No source image and no label is read: the reader refuses labels (`data.unlabelled`), and of the
source only weights are there. The treatment of a well is read for pairs (not by ODA, without them).

Where this file departs from the paper or from the authors' code, and why:
    anchor        The house's addition (`OnlineConfig.anchor`, off as released): nothing else holds
                  the encoder near the classifier, which was trained on the source's features.
    stopping      The house's addition, off as released: see `train.watch`.
    images        All perturbed ones; the code leaves out compounds without a mechanism, for which
                  it reads the labels.
    partners      An image without one is paired with itself, which is ODA; the code fails.
    schedules     By steps (see `methods.dino`); a limit in minutes cuts them short.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.config import TrainConfig
from evenfield.data.dataset import batches
from evenfield.data.pairs import Pairs, find_partners
from evenfield.data.sampler import Shuffled
from evenfield.data.unlabelled import Unlabelled
from evenfield.errors import InputError
from evenfield.methods.base import Method
from evenfield.nn.predictor import Predictor
from evenfield.nn.task_model import FrozenEncoder, TwoPart, tokens_of
from evenfield.seeds import numpy_generator
from evenfield.train import checkpoint
from evenfield.train.checkpoint import Model
from evenfield.train.loop import autocast_dtype, optimise
from evenfield.train.online_config import OnlineConfig
from evenfield.train.optimiser import optimiser_for, rate_share
from evenfield.train.watch import Watch, agreement, control_drift
from evenfield.types import Batch, Losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What an encoder adapts to.

    Attributes:
        name: Of the plates that arrived.
        rows: What is learned on.
        controls: Negative controls of the plates that arrived; they are watched.
    """

    name: str
    rows: np.ndarray
    controls: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An adapted encoder.

    Attributes:
        predictor: The classifier with this encoder, in eval mode.
        networks: State of the method: student, teacher, heads and centre.
        watch: What was seen on the way.
        step: Steps done.
    """

    predictor: Predictor
    networks: dict[str, Tensor]
    watch: Watch
    step: int


class Adapting(Method):
    """A self-supervised method that goes on, held by an anchor; the loss reads

        L_self + w mean_n |z(x_n) - z_0(x_n)|^2 / mean_n |z_0(x_n)|^2

    with z all tokens of the student for the first global view and z_0 those of the source encoder.
    """

    name = "coda"

    def __init__(self, own: Method, source: nn.Module, weight: float) -> None:
        nn.Module.__init__(self)
        self.own, self.weight = own, weight
        self.source = FrozenEncoder(copy.deepcopy(source))
        self.predictor = own.predictor

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """The method's own losses, and the anchor where it has weight."""
        found = self.own.losses(batch, progress=progress)
        if self.weight == 0:
            return found
        student: Any = self.own.networks
        held = distance(tokens_of(student.student, batch.image), self.source(batch.image))
        total = found.total + self.weight * held
        return Losses(total=total, parts=found.parts | {"anchor": held})

    def groups(self) -> list[dict[str, Any]]:
        """Those of the method, without its probe, which needs labels."""
        probe = {id(p) for p in self.predictor.head.parameters()}
        return [
            group for group in self.own.groups() if not probe & {id(p) for p in group["params"]}
        ]

    def after_step(self, progress: float) -> None:
        """The teacher and the centre follow."""
        self.own.after_step(progress)


def distance(z: Float[Tensor, "n t d"], z0: Float[Tensor, "n t d"]) -> Float[Tensor, ""]:
    """|z - z0|^2 / |z0|^2, sums over everything.

    >>> distance(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[2.0, 0.0]]]))
    tensor(0.2500)
    """
    z, z0 = z.float(), z0.float()
    return (z - z0).square().sum() / z0.square().sum().clamp(min=1e-12)


def started(
    pretrained: Model, networks: dict[str, Tensor] | None, *, keep_centre: bool = False
) -> Method:
    """The method of the pretraining, or of an arrival before, ready to go on; the centre at 0."""
    own = copy.deepcopy(pretrained.method)
    if networks is not None:
        own.load_state_dict(networks)
    if not keep_centre:
        centre: Any = own.centre
        centre.zero_()
    return own


def with_encoder(classifier: Predictor, encoder: nn.Module) -> Predictor:
    """A copy of the classifier on another encoder, in eval mode; its own stays as it is."""
    adapted = copy.deepcopy(classifier)
    backbone: Any = adapted.backbone
    backbone.encoder.network.load_state_dict(encoder.state_dict())
    return adapted.eval()


def check_fits(pretrained: Model, classifier: Model) -> None:
    """Make sure that the classifier was trained on the very encoder that was pretrained.

    Raises:
        InputError: It was not, or one of the two is no such run.
    """
    if pretrained.config.method != "dino":
        raise InputError(
            f"an adaptation goes on with dino, not with {pretrained.config.method}",
            fix="give the folder of a dino run as PRETRAINED",
        )
    backbone = classifier.method.predictor.backbone
    if not isinstance(backbone, TwoPart):
        raise InputError(
            f"{classifier.config.method} is no classifier on a frozen encoder",
            fix="train one: evenfield train frozen SCREEN RUN --train.weights PRETRAINED",
        )
    ours = backbone.encoder.network.state_dict()
    theirs = pretrained.method.predictor.backbone.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[n], theirs[n]) for n in ours):
        raise InputError(
            "the classifier was trained on another encoder than this pretraining's",
            fix="give the run that the classifier's --train.weights named",
        )


def adapt(
    own: Method,
    pretrained: Model,
    classifier: Model,
    arrival: Arrival,
    readers: tuple[Unlabelled, Unlabelled],
    config: OnlineConfig,
    partial: Path,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Outcome:
    """Adapt to an arrival, or go on where a killed call stopped.

    On the CPU a resumed adaptation gives the same weights as an uninterrupted one, unless minutes
    limit it.

    Args:
        own: Of `started`; changed in place.
        pretrained: Whose training settings hold.
        classifier: Is not changed.
        arrival: What has arrived.
        readers: For the views of the pretraining, and for images as the classifier reads them.
        config: The settings.
        partial: The file that a killed call goes on from; removed by the caller.
        on_step: Called after each step with (step, total, named losses).

    Raises:
        InputError: There is nothing to learn on, an image lacks a partner where that is an error,
            or the loss is not finite.
        StorageError: The disk is full.
    """
    train = settings(pretrained.config.train, config)
    views, images = readers
    method = Adapting(own, pretrained.method.predictor.backbone, config.anchor)
    method.to(views.device).train()
    optimiser = optimiser_for(method, train)
    elsewhere = pretrained.config.train.pair_positions == "other"
    sampler, watched = pairs_of(arrival, views, config, other_position=elsewhere)
    total = config.steps or config.epochs * sampler.passes_per_epoch
    networks: Any = own.networks
    watch, step, seconds, best = Watch(), 0, 0.0, None
    if partial.exists():
        content = checkpoint.load(partial)
        own.load_state_dict(content["networks"])
        optimiser.load_state_dict(content["optimiser"])
        about = json.loads(content["about"])
        watch, step, seconds = Watch(**about["watch"]), about["step"], about["seconds"]
        best = content["best"]

    def save() -> None:
        about = {"watch": asdict(watch), "step": step, "seconds": seconds}
        content = {
            "schema": checkpoint.SCHEMA,
            "about": json.dumps(about),
            "networks": own.state_dict(),
            "optimiser": optimiser.state_dict(),
            "best": best,
        }
        checkpoint.save(partial, content)

    def look() -> None:
        nonlocal best
        predictor = with_encoder(classifier.method.predictor, networks.teacher)
        agrees = agreement(predictor, images, *watched, config.seed)
        drift = control_drift(predictor, images, arrival.controls, classifier.reference)
        if watch.add(step, agrees, drift, config) and config.stops:
            best = {name: value.clone() for name, value in own.state_dict().items()}

    if not watch.looks:
        look()
    stream = batches(views, sampler, seed=config.seed, start=step)
    steps = optimise(
        method,
        optimiser,
        stream,
        total=total,
        dtype=autocast_dtype(train.precision, views.device),
        start=step,
        share_at=lambda progress: rate_share(train, progress),
        clip=train.clip,
    )
    before = saved = time.monotonic()
    late = config.minutes is not None and seconds >= 60 * config.minutes
    while step < total and not watch.stopped and not late:
        parts = next(steps)
        step += 1
        if not math.isfinite(parts["total"]):
            raise InputError(
                f"the loss is {parts['total']} at step {step} of {arrival.name}",
                fix="give a lower learning rate (--online.lr)",
            )
        now = time.monotonic()
        seconds, before = seconds + now - before, now
        late = config.minutes is not None and seconds >= 60 * config.minutes
        if step % config.check_every == 0 or step == total or late:
            look()
        if now - saved >= config.checkpoint_seconds:
            save()
            saved = now
        if on_step is not None:
            on_step(step, total, parts)
    steps.close()  # type: ignore[attr-defined]  # a generator: what reads ahead ends with it
    stream.close()  # type: ignore[attr-defined]
    if best is not None:
        own.load_state_dict(best)
    state = {name: value.detach().cpu().clone() for name, value in own.state_dict().items()}
    predictor = with_encoder(classifier.method.predictor, networks.teacher)
    return Outcome(predictor=predictor, networks=state, watch=watch, step=step)


def settings(pretraining: TrainConfig, config: OnlineConfig) -> TrainConfig:
    """The pretraining's settings for the optimiser and its schedules, with a learning rate."""
    return replace(
        pretraining, accumulate=1, meta_lr=None, average="none", lr=config.lr or pretraining.lr
    )


def pairs_of(
    arrival: Arrival, reader: Unlabelled, config: OnlineConfig, *, other_position: bool = False
) -> tuple[Pairs | Shuffled, tuple[np.ndarray, np.ndarray]]:
    """What draws the batches, and the (rows, partners) that are watched.

    Args:
        arrival: The plates.
        reader: Of their screen.
        config: The settings.
        other_position: Whether partners lie at another position on the plate.

    Raises:
        InputError: There is no image, or one without a partner where that is an error.
    """
    if not len(arrival.rows):
        raise InputError(
            f"{arrival.name} has no image to adapt to",
            fix="check Metadata_ControlType, or give --online.images all",
        )
    anchors = Shuffled(arrival.rows, size=config.size, seed=config.seed)
    random = numpy_generator(config.seed, "watched")
    chosen = min(config.watched, len(arrival.rows))
    rows = np.sort(random.choice(arrival.rows, chosen, replace=False))
    if config.pairs == "none":
        return anchors, (rows, rows)
    found = find_partners(
        reader.screen.manifest,
        arrival.rows,
        reader.roles,
        by=config.pairs,
        fallback="same-image",
        other_position=other_position,
    )
    if found.report.num_without and config.missing_pairs == "error":
        raise InputError(
            f"{arrival.name}: {found.report.num_without} of {len(arrival.rows)} images have no "
            f"image of their treatment in another {config.pairs}",
            fix="give --online.missing-pairs oda, or let more plates arrive together",
        )
    partner, has = rows.copy(), found.partners.num(rows) > 0
    if has.any():
        partner[has] = found.partners.draw(random, rows[has])
    return Pairs(anchors, found.partners, None, seed=config.seed), (rows, partner)
