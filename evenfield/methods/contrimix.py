"""ContriMix: the content of one image under the stain of another, from the same mini-batch.

Nguyen et al., "ContriMix: scalable stain color augmentation for domain generalization without
domain labels in digital pathology", PMLR 254:121-130 (COMPAYL at MICCAI 2024); as arXiv 2306.04527
since June 2023, under two titles. Written from a description; no line of the code was used.

Where this file departs from the paper or from the authors' code, and why:
    channels        Any number of them; the authors have three. `absorbance` off is fluorescence.
    one pass        One encoder pass over the originals, one over all mixes, one generator call and
                    one call of the classifier. The authors send the originals through twice, update
                    BatchNorm twice, and compute the classifier in `encoders` mode for nothing.
    evaluation      No mixes, no draw: the loss is that of the image as `test_input` shows it. The
                    authors draw donors, rotations and flips in evaluation, too.
    aggregate       Maximum and variance are over the versions of one image. The authors reshape
                    losses in the wrong order, over different images (`legacy_order` does so).
    post_mix        It runs where it is asked for. The authors' code of October 2023 and later drops
                    it unnoticed. Noise is followed by a clip to 0 to 1 (not published).
    cutmix          Boxes come from the images before any box was pasted.
    ce_warmup       A share of the training, where the authors have one epoch.
    labels          Every image lends its attribute and teaches the encoders; only those with a
                    known label are classified.
    classifier      Any method of this library may take the place of plain cross-entropy.
    weight decay    Whatever the loop is told; the authors' setting does not reach their optimiser.
    left out        A weight for "content correlation" has no term in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.config import from_dict
from evenfield.errors import InputError
from evenfield.methods.base import METHODS, Method, check_range
from evenfield.nn.absorbance import Signal
from evenfield.nn.boxes import cut_mixed
from evenfield.nn.norm import sum_of
from evenfield.nn.reconstruction import Reconstructing
from evenfield.nn.turning import turned_alike
from evenfield.nn.unmixing import (
    SMALLEST_SIDE,
    AttributeEncoder,
    ContentEncoder,
    chunk_donors,
    generate,
    load_part,
)
from evenfield.nn.unmixing_losses import similarity, worst_error
from evenfield.seeds import derive, generator
from evenfield.types import UNKNOWN, Batch, Losses, Needs

UNMIXING = ("recon", "attribute", "content", "similarity")


@METHODS.register("contrimix")
class ContriMix(Method):
    """Reconstruction and consistency of the encoders; a classifier that learns from the mixes."""

    needs: ClassVar[Needs] = Needs(smallest_side=SMALLEST_SIDE, unit=True)
    tested_with: ClassVar[dict[str, Any]] = {"num_mixes": 1, "width": 0.25}
    predictor: Reconstructing

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The switches of ContriMix; the defaults are those of the published model (2024).

        Attributes:
            mode: What learns: encoders and classifier `jointly`, the `encoders` alone, or the
                classifier (`backbone`) behind frozen encoders.
            weights: A finished run of `contrimix` (its folder) whose encoders to start from.
            num_attributes: S, content maps and columns of the attribute matrix.
            num_mixes: M, mixes made of each image in training.
            absorbance: Whether images are brightfield and are mixed in absorbance; off for
                fluorescence.
            mixing: Whose attributes an image borrows: those of `random` images of the batch, or of
                the M others of its chunk (`within_chunk`; M + 1 images in a row).
            recon: The reconstruction error: `q90_max` (the worst image's 90 % quantile counts,
                too), or `mean_l1` as in May 2023.
            weight_recon: Weight of the reconstruction.
            weight_attribute: Weight of the attribute consistency.
            weight_content: Weight of the content consistency.
            weight_similarity: Weight of the similarity of the attributes of an image's mixes.
            weight_risk: Weight of the classifier's loss.
            aggregate: An image's loss over its versions: their `mean`, their `max`, or their mean
                plus 10 times their variance (`augreg`).
            legacy_order: Aggregate over different images, as the released code does.
            ce_input: The unmixed version in training: `self_recon` or `original`.
            test_input: What is classified at test: `self_recon` or `original`.
            normalise: What the classifier sees: pixels as they are (`none`), or of mean 0 and
                standard deviation 1 in each `image` and channel.
            cutmix: Paste boxes of other images before the classifier, with soft labels.
            post_mix: Turn and mirror all versions of a batch alike before the classifier.
            post_mix_noise: Standard deviation of the noise that `post_mix` adds.
            ce_warmup: Share of the training in which the classifier does not learn yet.
            ce_warmup_sum: What the other weights sum to meanwhile.
            down_block_act: Whether the attribute encoder has its inner LeakyReLU (May 2023: off).
            extra_linear: Whether a second linear layer follows the head (May 2023: on).
            width: Factor of the attribute encoder's width; 1 = as released.
            classifier: The method that learns from the mixes, a name of `METHODS`.
            classifier_options: Its settings.
        """

        mode: Literal["jointly", "encoders", "backbone"] = "jointly"
        weights: Path | None = None
        num_attributes: int = 4
        num_mixes: int = 4
        absorbance: bool = True
        mixing: Literal["random", "within_chunk"] = "random"
        recon: Literal["q90_max", "mean_l1"] = "q90_max"
        weight_recon: float = 0.1
        weight_attribute: float = 0.1
        weight_content: float = 0.3
        weight_similarity: float = 0.0
        weight_risk: float = 0.5
        aggregate: Literal["mean", "max", "augreg"] = "mean"
        legacy_order: bool = False
        ce_input: Literal["self_recon", "original"] = "self_recon"
        test_input: Literal["self_recon", "original"] = "self_recon"
        normalise: Literal["none", "image"] = "none"
        cutmix: bool = False
        post_mix: bool = False
        post_mix_noise: float = 0.0
        ce_warmup: float = 0.0
        ce_warmup_sum: float = 1.0
        down_block_act: bool = True
        extra_linear: bool = False
        width: float = 1.0
        classifier: str = "erm"
        classifier_options: dict[str, int | float | bool | str] = field(default_factory=dict)

        def __post_init__(self) -> None:
            check_range("num_attributes", self.num_attributes, 1)
            check_range("num_mixes", self.num_mixes, 0)
            check_range("ce_warmup", self.ce_warmup, 0, 1)
            check_range("width", self.width, 1 / 16)
            for name in ("recon", "attribute", "content", "similarity", "risk"):
                check_range(f"weight_{name}", getattr(self, f"weight_{name}"), 0)
            for progress in (0.0, 1.0):
                if not any(weights_at(self, progress).values()):
                    raise InputError(
                        f"all weights of the mode {self.mode!r} are 0"
                        + (" in the warm-up" if progress < self.ce_warmup else ""),
                        fix="give one of its terms a weight",
                    )
            single = [
                name
                for name, on in (
                    (f"aggregate {self.aggregate}", self.aggregate != "mean"),
                    ("cutmix", self.cutmix),
                    ("extra_linear", self.extra_linear),
                )
                if on and self.classifier != "erm"
            ]
            if single or self.classifier == "contrimix":
                raise InputError(
                    f"contrimix with the classifier {self.classifier!r}"
                    + (f" and {' and '.join(single)}" if single else ""),
                    fix="take the classifier erm, whose loss is known image by image"
                    if single
                    else "choose another method as the classifier",
                )

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        if METHODS[config.classifier].needs.views:
            raise InputError(
                f"contrimix with {config.classifier!r}, no classifier but self-supervision",
                fix="choose a method that learns from labels, e.g. erm or abra",
            )
        # The classifier first: it then starts from the weights that it has without ContriMix.
        inner = METHODS[config.classifier](inner_config(config), backbone=backbone, d=d, k=k, c=c)
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        if config.extra_linear:
            inner.predictor.head = nn.Sequential(inner.predictor.head, nn.Linear(k, k))
        self.classifier = inner
        s, width, act = config.num_attributes, config.width, config.down_block_act
        self.predictor = Reconstructing(
            inner.predictor,
            ContentEncoder(c, s),
            AttributeEncoder(c, s, width=width, act=act),
            signal=Signal(config.absorbance),
            test_input=config.test_input,
            normalise=config.normalise,
        )
        for name in ("content", "attribute"):
            encoder = self.predictor.get_submodule(name)
            if config.weights is not None:
                load_part(encoder, config.weights, f"predictor.{name}.")
            encoder.requires_grad_(config.mode != "backbone")
        if config.mode == "encoders":
            inner.requires_grad_(False)
        side = max(SMALLEST_SIDE, inner.needs.smallest_side)
        self.needs = replace(inner.needs, smallest_side=side, unit=True)  # type: ignore[misc]

    @classmethod
    def extra_channels(cls, config: Any) -> int:
        """Those of the classifier."""
        return METHODS[config.classifier].extra_channels(inner_config(config))

    @property
    def native(self) -> str:
        """The classifier's own adapter."""
        return self.classifier.native

    @property
    def reset_at(self) -> float | None:
        """Where the classifier asks for it."""
        return self.classifier.reset_at

    @property
    def classifies(self) -> bool:
        """Not while the encoders are trained alone."""
        return self.config.mode != "encoders"

    def learn_design(self, domain: Tensor) -> None:
        """Hear the domains; called before a training, and at no other time.

        Raises:
            InputError: The encoders are to stay as they are, and nobody has trained them.
        """
        if self.config.mode == "backbone" and self.config.weights is None:
            raise InputError(
                "contrimix in the mode 'backbone' would keep encoders of random weights",
                fix="give --options.weights RUN, a finished run with --options.mode encoders",
            )
        self.classifier.learn_design(domain)

    def groups(self) -> list[dict[str, Any]]:
        """The classifier's groups and the encoders."""
        encoders = [*self.predictor.content.parameters(), *self.predictor.attribute.parameters()]
        groups = [*self.classifier.groups(), {"params": encoders}]
        learning = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in groups]
        return [group for group in learning if group["params"]]

    def after_step(self, progress: float) -> None:
        """What the classifier does."""
        self.classifier.after_step(progress)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Weighted sum of the four terms of the encoders and the classifier's own loss."""
        config, predictor = self.config, self.predictor
        predictor.signal.check(batch.image)
        weight = weights_at(config, progress)
        first = config.ce_input if self.training else config.test_input
        donor = self._donors(batch)
        teaches = any(weight[name] for name in UNMIXING)
        versions, parts = batch.image[None], {}
        if teaches or len(donor) > 1 or first == "self_recon":
            signal = predictor.signal.enter(batch.image)
            content, attribute = predictor.content(signal), predictor.attribute(signal)[donor]
            mix = generate(attribute, content)  # (m, n, c, h, w), the own attribute first
            made = predictor.signal.leave(mix)
            if teaches:
                parts = self._unmixing(weight, batch.image, content, attribute, mix, made)
            versions = made if first == "self_recon" else torch.cat([versions, made[1:]])
        terms = [weight[name] * part for name, part in parts.items()]
        if teaches:  # a log: encoders whose attributes are all alike have nothing to mix
            parts["attribute_spread"] = attribute[0].detach().std(0, correction=0).mean()
        if weight["risk"]:
            classified = self._classified(batch, versions, progress)
            parts |= classified.parts
            terms.append(weight["risk"] * classified.total)
        return Losses(total=sum_of(terms), parts=parts)

    def _donors(self, batch: Batch) -> Int[Tensor, "m n"]:
        """Whose attribute each version has: the own one first, then (in training) M donors."""
        n, num_mixes = len(batch), self.config.num_mixes if self.training else 0
        own = torch.arange(n)
        if num_mixes == 0:
            donor = own[None]
        elif self.config.mixing == "within_chunk":
            donor = chunk_donors(n, num_mixes)
        else:
            random = generator(batch.seed, "contrimix donors")
            donor = torch.cat([own[None], torch.randint(n, (num_mixes, n), generator=random)])
        return donor.to(batch.image.device)

    def _unmixing(
        self,
        weight: dict[str, float],
        image: Float[Tensor, "n c h w"],
        content: Float[Tensor, "n s h w"],
        attribute: Float[Tensor, "m n c s"],
        mix: Float[Tensor, "m n c h w"],
        made: Float[Tensor, "m n c h w"],
    ) -> dict[str, Tensor]:
        """The terms of the encoders whose weight is not 0; gradients flow through their targets."""
        predictor, parts = self.predictor, {}
        if weight["recon"]:
            if self.config.recon == "q90_max":
                parts["recon"] = worst_error(made[0] - image)
            else:
                parts["recon"] = (predictor.signal.leave(mix[0], clip=False) - image).abs().mean()
        mixes = laid_out_as(image, mix.flatten(0, 1))
        if weight["attribute"]:
            again = predictor.attribute(mixes).reshape(attribute.shape)
            parts["attribute"] = (again - attribute).abs().mean()
        if weight["content"]:
            again = predictor.content(mixes).unflatten(0, mix.shape[:2])
            parts["content"] = (again.float() - content.float()).abs().mean()
        if weight["similarity"]:
            parts["similarity"] = similarity(attribute)
        return parts

    def _classified(
        self, batch: Batch, versions: Float[Tensor, "m n c h w"], progress: float
    ) -> Losses:
        """The classifier's losses over all versions of all images, in one pass."""
        config, m, seed = self.config, len(versions), derive(batch.seed, "contrimix classifier")
        image = laid_out_as(batch.image, versions.flatten(0, 1))
        if config.post_mix and self.training:
            image = turned_alike(image, config.post_mix_noise, generator(seed, "post mix"))
        if config.aggregate == "mean" and not config.cutmix:
            image = self.predictor.shown(image)
            return self.classifier.losses(repeated(batch, m, image, seed), progress=progress)
        label = other = batch.label.repeat(m)
        kept = torch.ones(len(image), device=image.device)
        if config.cutmix and self.training:
            image, other, kept = cut_mixed(image, label, generator(seed, "cutmix"))
        logits = self.classifier.predictor(self.predictor.shown(image)).float()
        own, pasted = (
            F.cross_entropy(logits, y, ignore_index=UNKNOWN, reduction="none")
            for y in (label, other)
        )
        each = (kept * own + (1 - kept) * pasted).unflatten(0, (m, -1))[:, batch.label != UNKNOWN]
        of_image = aggregated(each, config.aggregate, legacy_order=config.legacy_order)
        risk = of_image.sum() / max(len(of_image), 1)
        return Losses(total=risk, parts={"risk": risk})


def inner_config(config: ContriMix.Config) -> Any:
    """The settings of the classifier behind."""
    where = "contrimix.classifier_options."
    return from_dict(METHODS[config.classifier].Config, config.classifier_options, where=where)


def weights_at(config: ContriMix.Config, progress: float) -> dict[str, float]:
    """The weight of each term at a point of the training.

    >>> weights_at(ContriMix.Config(ce_warmup=0.1), 0.0)["content"]  # 0.3 of 0.1 + 0.1 + 0.3
    0.6
    """
    weight = {name: getattr(config, f"weight_{name}") for name in (*UNMIXING, "risk")}
    if config.mode == "encoders":
        weight["risk"] = 0.0
    if config.mode == "backbone":
        weight |= dict.fromkeys(UNMIXING, 0.0)
    if progress < config.ce_warmup:
        factor = config.ce_warmup_sum / (sum(weight[name] for name in UNMIXING) or 1.0)
        weight = {name: value * factor for name, value in weight.items()} | {"risk": 0.0}
    return weight


def aggregated(
    each_mn: Float[Tensor, "m n"], how: str, *, legacy_order: bool = False
) -> Float[Tensor, " n"]:
    """One loss an image from those of its versions.

    >>> aggregated(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), "augreg")  # 2 + 10 * 1
    tensor([12.,  0.])
    """
    if legacy_order:
        each_mn = each_mn.flatten().reshape(-1, len(each_mn)).T
    if how == "max":
        return each_mn.amax(0)
    mean = each_mn.mean(0)
    return mean if how == "mean" else mean + 10 * (each_mn - mean).square().mean(0)


def laid_out_as(image: Float[Tensor, "n c h w"], made: Tensor) -> Tensor:
    """Images made of others, in their memory format (channels-last is mostly the quicker one)."""
    last = torch.channels_last
    return made.contiguous(memory_format=last) if image.is_contiguous(memory_format=last) else made


def repeated(batch: Batch, m: int, image: Float[Tensor, "mn c h w"], seed: int) -> Batch:
    """A batch of m versions of every item, all that is known of it repeated."""
    slim = replace(batch, image=batch.image.new_empty(len(batch), 0))
    return replace(slim[torch.arange(len(batch)).repeat(m)], image=image, seed=seed)
