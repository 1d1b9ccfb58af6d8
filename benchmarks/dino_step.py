"""What does a DINO step cost, in units of the same step in plain float32? And drawing its pairs?

    python benchmarks/dino_step.py [--backbone deit-small] [--batch 8] [--rounds 5] [--device cpu]

Both steps have the same network (a ViT-S/16 unless told otherwise), 2 global and 6 local crops of
each item, 4,096 outputs, AdamW and the same equations. `ours` is the loop's own step. `plain` is
the style of the released codes: float32, one forward pass a crop size, attention written out, a
loop over the 14 pairs of views, an optimiser and a moving average that go parameter by parameter.
The goal for ours / plain is 0.45, with bfloat16 in the processor.

The second question is asked of 100,000 images of 1,139 treatments on 33 batches: one batch of 92
anchors with partners from other batches, and with other positions, too. The goal is 0.1 ms. Prints
two lines of JSON and appends them to `benchmarks/records/dino_step.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from turns import in_turns, keep, ratio

from evenfield.config import TrainConfig
from evenfield.data.pairs import Others, Pairs
from evenfield.data.sampler import Shuffled
from evenfield.methods import METHODS
from evenfield.methods.base import Method
from evenfield.nn.backbones import build_backbone
from evenfield.nn.vit import Attention
from evenfield.seeds import generator, numpy_generator
from evenfield.train.loop import autocast_dtype, optimise
from evenfield.train.optimiser import optimiser_for
from evenfield.types import Batch

CHANNELS, CLASSES = 5, 8
TREATMENTS, BATCHES, POSITIONS = 1139, 33, 384
DRAWS = 200


def random_batch(n: int, large: int, small: int) -> Batch:
    """Two global and six local crops of each item."""
    random = generator(0, "benchmark", "dino")
    crops = [
        torch.randn(n, num, side, side, CHANNELS, generator=random).permute(0, 1, 4, 2, 3)
        for num, side in ((2, large), (6, small))
    ]
    index = torch.arange(n)
    return Batch(
        image=crops[0][:, 0],
        label=index % CLASSES,
        is_control=torch.zeros(n, dtype=torch.bool),
        context=index * 0,
        domain=index * 0,
        row=index,
        global_views=crops[0],
        local_views=crops[1],
        partner=index,
        partner_domain=index * 0,
    )


def build(backbone: str, outputs: int) -> Method:
    """The method with weights that are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, d = build_backbone(backbone, CHANNELS)
        cls = METHODS["dino"]
        config: Any = cls.Config(num_outputs=outputs, drop_path=0.0)
        return cls(config, backbone=encoder, d=d, k=CLASSES, c=CHANNELS)


def our_step(method: Method, batch: Batch, dtype: torch.dtype | None) -> Callable[[], object]:
    """The loop's step, late in the training."""
    optimiser = optimiser_for(method, TrainConfig(optimiser="adamw", lr=1e-4))
    step = {"total": 10, "start": 9, "dtype": dtype, "clip": 3.0}
    return lambda: list(optimise(method, optimiser, [batch], **step))


def written_out(self: Attention, x: Tensor) -> Tensor:
    """Attention with its (t, t) matrices in memory."""
    q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    weight = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
    return self.proj((weight @ v).transpose(1, 2).flatten(2))


def plain_step(method: Any, batch: Batch) -> Callable[[], object]:
    """The same step in float32, as released codes write it."""
    networks, config, progress = method.networks, method.config, 0.9
    for module in networks.modules():
        if isinstance(module, Attention):
            module.forward = written_out.__get__(module)  # type: ignore[method-assign]
    weights = [p for p in method.parameters() if p.requires_grad]
    student = [*networks.student.parameters(), *networks.student_head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, foreach=False, fused=False)
    n = len(batch)

    def through(net: Any, head: Any, views: Sequence[Tensor]) -> list[Tensor]:
        z = [net(x.transpose(0, 1).flatten(0, 1).contiguous()) for x in views]
        return list(head(torch.cat(z)).split(n))

    def step() -> None:
        with torch.no_grad():
            t = through(networks.teacher, networks.teacher_head, batch.views[:1])
            z = networks.teacher(batch.views[0][:, 0].contiguous())
        s = through(networks.student, networks.student_head, batch.views)
        total, pairs = torch.zeros((), device=z.device), 0
        for k, target in enumerate(t):
            q = F.softmax((target - method.centre) / config.temperature(progress), -1)
            for j, out in enumerate(s):
                if j != k:
                    total = total - (q * F.log_softmax(out / config.tau_student, -1)).sum(-1).mean()
                    pairs += 1
        probe = F.cross_entropy(method.predictor.head(z), batch.label)
        optimiser.zero_grad()
        (total / pairs + probe).backward()
        torch.nn.utils.clip_grad_norm_(student, 3.0, foreach=False)
        optimiser.step()
        with torch.no_grad():
            m = config.momentum(progress)
            for ours, theirs in (
                (networks.teacher, networks.student),
                (networks.teacher_head, networks.student_head),
            ):
                for mean, weight in zip(ours.parameters(), theirs.parameters(), strict=True):
                    mean.mul_(m).add_(weight, alpha=1 - m)
            method.centre.mul_(0.9).add_(torch.cat(t).mean(0), alpha=0.1)

    return step


def pair_samplers(num: int, size: int) -> dict[str, Pairs]:
    """Pairs by treatment from other batches; with other positions, too."""
    random = numpy_generator(0, "benchmark", "pairs")
    rows = np.arange(num)
    treatment, batch, place = (random.integers(0, k, num) for k in (TREATMENTS, BATCHES, POSITIONS))
    anchors = Shuffled(rows, size=size, seed=0)
    return {
        "pairs": Pairs(anchors, Others(rows, treatment, batch), None, seed=0),
        "pairs, other positions": Pairs(
            anchors, Others(rows, treatment, batch, place), None, seed=0
        ),
        "anchors alone": anchors,  # type: ignore[dict-item]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="Time of a DINO step against plain float32.")
    parser.add_argument("--backbone", default="deit-small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--global-side", type=int, default=224)
    parser.add_argument("--local-side", type=int, default=96)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=92)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    dtype = autocast_dtype("auto", device)
    batch = random_batch(given.batch, given.global_side, given.local_side).to(device)
    ours, plain = (build(given.backbone, given.outputs).to(device).train() for _ in range(2))
    times = in_turns(
        {"ours": our_step(ours, batch, dtype), "plain": plain_step(plain, batch)},
        rounds=given.rounds,
        device=device.type,
    )
    values = {
        "question": "step",
        **{k: v for k, v in vars(given).items() if k not in ("rows", "size", "rounds")},
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "ratio": round(ratio(times, "ours", "plain"), 4),
        "goal": 0.45,
    }
    print(json.dumps(values))
    keep("dino_step", values, times)

    calls = {}
    for name, sampler in pair_samplers(given.rows, given.size).items():
        step = count()
        sampler.rows(0)  # the epoch's order is drawn once, not by the batch
        calls[name] = lambda s=sampler, i=step: [s.rows(next(i)) for _ in range(DRAWS)]
    drawing = in_turns(calls, rounds=given.rounds)
    each = {name: round(1000 * median(t) / DRAWS, 4) for name, t in drawing.items()}
    values = {
        "question": "pairs",
        "rows": given.rows,
        "size": given.size,
        "ms_a_batch": each,
        "goal_ms": 0.1,
    }
    print(json.dumps(values))
    keep("dino_step", values, drawing)


if __name__ == "__main__":
    main()
