"""What methods of self-distillation share: a student, its teacher, and their cross-entropy.

Caron et al., "Emerging properties in self-supervised vision transformers" (DINO), ICCV 2021,
https://arxiv.org/abs/2104.14294, Algorithm 1. The student sees all views, the teacher the global
ones; the teacher's weights are a running mean of the student's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from evenfield.errors import InputError
from evenfield.nn.vit import dropping

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that methods of self-distillation share.

    Attributes:
        num_outputs: Outputs of the heads, K.
        hidden: Width of the hidden layers of the heads.
        bottleneck: Dimension of the sphere in the heads.
        head_norm: BatchNorm in the hidden layers of the heads; without it a small network's images
            start so alike that, centred, all get one answer.
        tau_student: Temperature of the student.
        tau_start: Temperature of the teacher at the start.
        tau_teacher: Temperature of the teacher after its warm-up.
        tau_warmup: Share of the training over which it rises linearly.
        momentum_start: Share of the teacher's weights that stays in a step, at the start.
        momentum_end: The same at the end; a cosine lies between.
        centre_momentum: Share of the centre that stays in a step.
        freeze_last: Share of the training, from its start, in which the heads' last layer stays.
        drop_path: Stochastic depth of the student's last block (vision transformers only).
        weight_decay_end: Weight decay at the end, a cosine after `--train.weight-decay`; none = it
            stays.
        probe_lr: Learning rate of the linear probe that predicts labels.
        probe_decay: Weight decay of the linear probe.
    """

    num_outputs: int = 4096
    hidden: int = 2048
    bottleneck: int = 256
    head_norm: bool = False
    tau_student: float = 0.1
    tau_start: float = 0.04
    tau_teacher: float = 0.07
    tau_warmup: float = 0.1
    momentum_start: float = 0.996
    momentum_end: float = 1.0
    centre_momentum: float = 0.9
    freeze_last: float = 0.0034
    drop_path: float = 0.1
    weight_decay_end: float | None = None
    probe_lr: float = 1e-3
    probe_decay: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def temperature(self, progress: float) -> float:
        """Of the teacher: linear from `tau_start` to `tau_teacher` over `tau_warmup`, then flat.

        >>> [round(Settings().temperature(p), 3) for p in (0.0, 0.05, 0.1, 1.0)]
        [0.04, 0.055, 0.07, 0.07]
        """
        share = min(1.0, progress / self.tau_warmup) if self.tau_warmup > 0 else 1.0
        return self.tau_start + share * (self.tau_teacher - self.tau_start)

    def momentum(self, progress: float) -> float:
        """Of the teacher: a cosine from `momentum_start` to `momentum_end`.

        >>> [round(Settings().momentum(p), 4) for p in (0.0, 0.5, 1.0)]
        [0.996, 0.998, 1.0]
        """
        return cosine_between(self.momentum_start, self.momentum_end, progress)


def check_settings(settings: Settings) -> None:
    """Refuse settings that cannot be trained with.

    Raises:
        InputError: One lies outside its range.
    """
    shares = ("tau_warmup", "momentum_start", "momentum_end", "centre_momentum", "freeze_last")
    for name in shares:
        if not 0 <= (value := getattr(settings, name)) <= 1:
            raise InputError(f"{name} is {value}", fix="give 0 to 1")
    for name in ("num_outputs", "hidden", "bottleneck", "tau_student", "tau_start", "tau_teacher"):
        if not (value := getattr(settings, name)) > 0:
            raise InputError(f"{name} is {value}", fix="give more than 0")
    for name in ("probe_lr", "probe_decay", "weight_decay_end"):
        if (value := getattr(settings, name)) is not None and value < 0:
            raise InputError(f"{name} is {value}", fix="give 0 or more")
    if not 0 <= settings.drop_path < 1:
        raise InputError(f"drop_path is {settings.drop_path}", fix="give 0 to less than 1")


def cosine_between(start: float, end: float, progress: float) -> float:
    """A cosine: end + (start - end) (1 + cos(pi progress)) / 2.

    >>> [round(cosine_between(0.0, 2.0, p), 2) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.29, 1.0, 2.0]
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


class StudentTeacher(nn.Module):
    """Two equal networks: gradients train the student, the teacher follows it slowly.

    Args:
        backbone: Becomes the student's; the teacher starts as a copy.
        head: The student's head; the teacher starts with a copy.

    Attributes:
        student: Images (n, c, h, w) to features (n, d).
        student_head: Features to the outputs that are compared.
        teacher: The same, without gradient.
        teacher_head: The same, without gradient.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.student, self.student_head = backbone, head
        self.teacher, self.teacher_head = frozen(backbone), frozen(head)

    @torch.no_grad()
    def teach(
        self, global_views: Float[Tensor, "n v c h w"]
    ) -> tuple[Float[Tensor, "n v d"], Float[Tensor, "n v k"]]:
        """The teacher's features and outputs, constants to every gradient."""
        z = encode(self.teacher, [global_views])
        return z, outputs(self.teacher_head, z)

    def learn(
        self,
        views: Sequence[Float[Tensor, "n _ c _ _"]],
        *,
        drop_path: float = 0.0,
        generator: torch.Generator | None = None,
        **for_head: Any,
    ) -> Float[Tensor, "n v k"]:
        """The student's outputs for all views: one forward pass for each size of crops.

        Args:
            views: Of one size each.
            drop_path: Stochastic depth of vision transformers in train mode.
            generator: What that draws from.
            for_head: Options of the head's forward pass.
        """
        if generator is None or drop_path == 0:
            z = encode(self.student, views)
        else:
            with dropping(self.student, drop_path, generator):
                z = encode(self.student, views)
        return outputs(self.student_head, z, **for_head)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher: momentum teacher + (1 - momentum) student, parameter by parameter.

        Running statistics (BatchNorm) are each network's own, of what it has seen.
        """
        ours = [*self.teacher.parameters(), *self.teacher_head.parameters()]
        theirs = [*self.student.parameters(), *self.student_head.parameters()]
        if ours:
            get_ema_multi_avg_fn(momentum)(ours, theirs, 0)


def frozen(network: Net) -> Net:
    """A copy that asks for no gradient."""
    return copy.deepcopy(network).requires_grad_(False)


def encode(
    backbone: nn.Module, views: Iterable[Float[Tensor, "n _ c _ _"]]
) -> Float[Tensor, "n v d"]:
    """Features of all views, those of one size in one pass."""
    found = [backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in views]
    return torch.cat(found, 1)


def outputs(head: nn.Module, z: Float[Tensor, "n v d"], **options: Any) -> Float[Tensor, "n v k"]:
    """A head on the features of all views together."""
    return head(z.flatten(0, 1), **options).unflatten(0, z.shape[:2])


def different_views(num_teacher: int, num_student: int) -> Bool[Tensor, "g v"]:
    """Which pairs (teacher view, student view) are compared: all but a view with itself.

    >>> int(different_views(2, 8).sum())
    14
    """
    return ~torch.eye(num_teacher, num_student, dtype=torch.bool)


def cross_entropies(
    q: Float[Tensor, "n g k"], s: Float[Tensor, "n v k"], tau: float
) -> Float[Tensor, "g v"]:
    """Mean over the items of - sum_c q_c log softmax(s / tau)_c, for every pair of views.

    >>> cross_entropies(torch.tensor([[[0.5, 0.5]]]), torch.zeros(1, 2, 2), 0.1)
    tensor([[0.6931, 0.6931]])
    """
    return -torch.einsum("ngk,nvk->gv", q, F.log_softmax(s / tau, -1)) / len(q)


def decay_groups(networks: Iterable[nn.Module], end: float | None) -> list[dict[str, Any]]:
    """Parameter groups: matrices with the run's weight decay, biases and vectors without any.

    Args:
        networks: What gradients train.
        end: Weight decay at the end of the run; None = it stays.
    """
    weights = [p for network in networks for p in network.parameters() if p.requires_grad]
    matrices = {"params": [p for p in weights if p.ndim > 1]}
    vectors = {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}
    return [matrices if end is None else matrices | {"weight_decay_end": end}, vectors]


def probe_group(probe: nn.Module, lr: float, decay: float) -> dict[str, Any]:
    """A group for a probe on detached features; its gradient plays no part in clipping."""
    return {
        "params": list(probe.parameters()),
        "lr": lr,
        "weight_decay": decay,
        "clip": False,
    }
