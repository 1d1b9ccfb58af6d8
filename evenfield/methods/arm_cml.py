"""ARM-CML: a context network tells the classifier, in extra channels, what a plate looks like.

Zhang et al., "Adaptive risk minimization: learning to adapt to domain shift", NeurIPS 2021,
https://arxiv.org/abs/2007.02931 (contextual meta-learning), with plates as domains.

Where this file departs from the paper, and why:
    channels       k = 12 context channels, as in the comparison of CS-ARM-BN (the paper's own
                   experiments use 1 to 12 by data set).
    episodes       The cross-entropy is the mean over all labelled images of a batch, which may
                   hold any number of episodes of any size; contexts never mix.
    controls       Negative controls take no part, neither in the context nor in the loss.
    batch norm     With `adapt_bn` off, all episodes of a batch share one pass, and running
                   statistics serve at test. Where a batch is a single episode (the sampler's
                   choice), training sees one plate's statistics and test an average over plates'.
    no context     Without one, an image is its own context (the paper's groups of one image).
    selection      The context network is part of the predictor: it is saved, restored and switched
                   to eval mode with it (the comparison's code forgets all three).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.methods.base import (
    METHODS,
    Method,
    cross_entropy,
    episode_mean,
    images_to_condition_on,
)
from evenfield.nn.backbones import channels_last
from evenfield.nn.norm import normalising, settle_rule, union_rule
from evenfield.nn.predictor import Predictor
from evenfield.types import Batch, Context, Losses, Needs


class ContextPredictor(Predictor):
    """A predictor that sees, beside an image, the mean of a context network over a plate.

    Attributes:
        context_net: Images (n, c, h, w) to maps (n, k, h, w).
        context_map: (k, h, w), the mean map of the plate; None until conditioned.
    """

    context_map: Tensor | None

    def __init__(
        self, backbone: nn.Module, head: nn.Module, context_net: nn.Module, *, adapt_bn: bool
    ) -> None:
        super().__init__(backbone, head)
        self.context_net = context_net
        self.adapt_bn = adapt_bn
        self.register_buffer("context_map", None)

    def features(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features, given the plate's map; without one, each image's own."""
        if self.context_map is None:
            return self.backbone(torch.cat([image, self.context_net(image)], 1))
        if self.context_map.shape[1:] != image.shape[2:]:
            raise InputError(
                f"images of {tuple(image.shape[2:])} pixels meet a context of "
                f"{tuple(self.context_map.shape[1:])}",
                fix="condition and predict with images of one size",
            )
        maps = self.context_map.to(image.dtype).expand(len(image), -1, -1, -1)
        return self.backbone(torch.cat([image, maps], 1))

    def in_groups(
        self, image: Float[Tensor, "n c h w"], group: Int[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """Logits of images, each in the context of those that share its group."""
        maps = group_mean(self.context_net(image), group)
        return self.head(self.backbone(torch.cat([image, maps.to(image.dtype)], 1)))

    def condition(self, context: Context) -> ContextPredictor:
        """A copy that holds the mean map over the context's perturbed images.

        With `adapt_bn` the copy's BatchNorm layers also hold the context's statistics, of one
        joint pass. Without a perturbed image the controls serve, with a warning; an empty context
        changes nothing.
        """
        with torch.inference_mode(False), torch.no_grad():  # a copy of plain tensors
            conditioned = copy.deepcopy(self)
            if not len(context.image):
                return conditioned
            image = images_to_condition_on(context, "arm-cml")
            if self.adapt_bn:
                with normalising(conditioned, settle_rule):
                    conditioned.context_map = conditioned.context_net(image).mean(0)
                    conditioned(image)
            else:
                parts = [conditioned.context_net(part).sum(0) for part in image.split(64)]
                conditioned.context_map = torch.stack(parts).sum(0) / len(image)
        return conditioned


@METHODS.register("arm-cml")
class ARMCML(Method):
    """Cross-entropy of a classifier that is told its plate by a learned context."""

    needs: ClassVar[Needs] = Needs(one_context=True)
    predictor: ContextPredictor

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of ARM-CML.

        Attributes:
            num_context_channels: Channels of the context, k of the paper.
            hidden: Channels of the context network's two hidden layers.
            adapt_bn: Whether BatchNorm layers also take each plate's own statistics.
        """

        num_context_channels: int = 12
        hidden: int = 64
        adapt_bn: bool = False

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        net = context_network(c, config.hidden, config.num_context_channels)
        head = self.predictor.head
        self.predictor = ContextPredictor(backbone, head, net, adapt_bn=config.adapt_bn)

    @classmethod
    def extra_channels(cls, config: Any) -> int:
        """The context's channels."""
        return config.num_context_channels

    @property
    def native(self) -> str:
        """The mean context of the new plate's images."""
        return "condition"

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean cross-entropy over the labelled images (`adapt_bn`: its mean over episodes)."""
        del progress
        batch = batch[~batch.is_control]
        risk = (
            episode_mean(batch, self._adapted_risk) if self.config.adapt_bn else self._risk(batch)
        )
        return Losses(total=risk, parts={"risk": risk})

    def _risk(self, batch: Batch) -> Tensor:
        return cross_entropy(self.predictor.in_groups(batch.image, batch.context), batch.label)

    def _adapted_risk(self, episode: Batch) -> Tensor:
        with normalising(self.predictor, union_rule):
            return self._risk(episode)


def context_network(c: int, hidden: int, k: int) -> nn.Sequential:
    """Three convolutions 5x5 that keep the size: c to hidden to hidden to k channels."""
    net = nn.Sequential(
        nn.Conv2d(c, hidden, 5, padding=2),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 5, padding=2),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, k, 5, padding=2),
    )
    return channels_last(net)


def group_mean(
    map_nkhw: Float[Tensor, "n k h w"], group: Int[Tensor, " n"]
) -> Float[Tensor, "n k h w"]:
    """Each image's map replaced by the mean over its group.

    >>> maps = torch.tensor([1.0, 3.0, 10.0]).reshape(3, 1, 1, 1)
    >>> group_mean(maps, torch.tensor([7, 7, 8])).flatten()
    tensor([ 2.,  2., 10.])
    """
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    total = map_nkhw.new_zeros(len(count), *map_nkhw.shape[1:]).index_add(0, index, map_nkhw)
    return (total / count.to(total.dtype).reshape(-1, 1, 1, 1))[index]
