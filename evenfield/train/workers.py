"""Several processes train one model: each takes its share of the passes of every step.

The passes of a step (`accumulate`) are dealt out in turn, and their gradients are summed, so that a
step is the one that a single process would take, up to the order of a sum. Running statistics and
other buffers are averaged after each step: all processes hold the same model all the time. The
first process alone validates and writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenfield.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # the others wait while the first validates


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The processes of a run; one, unless `torchrun` started more.

    Attributes:
        rank: Number of this process.
        num: How many there are.
    """

    rank: int = 0
    num: int = 1

    @property
    def first(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def share(self, passes: int) -> int:
        """How many of the passes of a step are this process's.

        Raises:
            InputError: They cannot be dealt out evenly.
        """
        if passes % self.num:
            raise InputError(
                f"{passes} passes a step cannot be dealt out to {self.num} processes",
                fix="set --train.accumulate to a multiple of the number of processes (and "
                "--train.num-perturbed to the images of one pass)",
            )
        return passes // self.num

    @torch.no_grad()
    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all gradients; none where no process has one."""
        if self.num == 1:
            return
        there = torch.tensor([w.grad is not None for w in weights], device=weights[0].device)
        [there] = reduced([there], dist.ReduceOp.MAX)
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        totals = reduced(gradients, dist.ReduceOp.SUM)
        for weight, gradient, total, has in zip(
            weights, gradients, totals, there.tolist(), strict=True
        ):
            weight.grad = gradient.copy_(total) if has else None

    @torch.no_grad()
    def merge_buffers(self, module: nn.Module) -> None:
        """Give every process the mean of numbers, and the largest of counts and flags."""
        if self.num == 1:
            return
        for real in (True, False):
            buffers = [b for b in module.buffers() if b.is_floating_point() == real and b.numel()]
            operation = dist.ReduceOp.SUM if real else dist.ReduceOp.MAX
            for buffer, total in zip(buffers, reduced(buffers, operation), strict=True):
                buffer.copy_(total / self.num if real else total)

    def gather(self, value: T) -> list[T]:
        """The value of every process."""
        if self.num == 1:
            return [value]
        values: list[T] = [value] * self.num
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait."""
        return self.gather(make() if self.first else None)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)


def reduced(tensors: Sequence[Tensor], operation: dist.ReduceOp.RedOpType) -> list[Tensor]:
    """Tensors of one kind (numbers, or counts and flags), reduced over all processes in one go."""
    if not tensors:
        return []
    kind = torch.float32 if tensors[0].is_floating_point() else torch.int64
    flat = torch.cat([tensor.detach().flatten().to(kind) for tensor in tensors])
    dist.all_reduce(flat, op=operation)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [p.view(t.shape).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]


@contextmanager
def workers(device: str) -> Iterator[Workers]:
    """The processes that `torchrun` started, joined while the block lasts.

    Args:
        device: `auto` gives each process a GPU of its own where there are GPUs.
    """
    num = int(os.environ.get("WORLD_SIZE", "1"))
    if num == 1:
        yield Workers()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Workers(rank=dist.get_rank(), num=num)
    finally:
        dist.destroy_process_group()
