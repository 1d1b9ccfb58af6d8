"""What does a robust method's training step cost, in units of an ERM step on the same images?

    python benchmarks/robust_steps.py [--methods contrimix abra dsu] [--batch 8] [--rounds 5]

All steps are the loop's own, with the same network, images and precision. `contrimix` trains
encoders and classifier jointly with 3 mixes of each image (released code: 12.2 ERM steps, measured
on this size: ResNet-50, 128 pixels); `abra` perturbs every batch after one inner step; `dsu`,
`mixstyle` and `efdmix` change the features of every batch at every one of their places, where their
default is every second. Goals for the ratio: 5.5, 3.2, and 1.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from turns import in_turns, keep, ratio

from evenfield.config import TrainConfig, from_dict
from evenfield.methods import METHODS
from evenfield.nn.backbones import build_backbone
from evenfield.seeds import generator
from evenfield.train.loop import autocast_dtype, optimise
from evenfield.train.optimiser import optimiser_for
from evenfield.types import Batch

CHANNELS, CLASSES, DOMAINS = 3, 8, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "erm": {},
    "contrimix": {"mode": "jointly", "num_mixes": 3},
    "abra": {"T": 1, "apply_prob": 1.0},
    "dsu": {"p": 1.0},
    "mixstyle": {"p": 1.0},
    "efdmix": {"p": 1.0},
}
GOALS = {"contrimix": 5.5, "abra": 3.2, "dsu": 1.1, "mixstyle": 1.1, "efdmix": 1.1}


def random_batch(n: int, side: int) -> Batch:
    """Images in 0 to 1 of several domains, all labelled."""
    image = torch.rand(n, CHANNELS, side, side, generator=generator(0, "benchmark", "robust"))
    index = torch.arange(n)
    return Batch(
        image=image.contiguous(memory_format=torch.channels_last),
        label=index % CLASSES,
        is_control=torch.zeros(n, dtype=torch.bool),
        context=index % DOMAINS,
        domain=index % DOMAINS,
        row=index,
    )


def step_of(
    name: str, backbone: str, batch: Batch, dtype: torch.dtype | None
) -> Callable[[], object]:
    """A step of a method late in its training, when every warm-up is over."""
    encoder, d = build_backbone(backbone, CHANNELS)
    cls = METHODS[name]
    options: Any = from_dict(cls.Config, OPTIONS[name], where=f"{name}.")
    method = cls(options, backbone=encoder, d=d, k=CLASSES, c=CHANNELS)
    method = method.to(batch.image.device).train()
    optimiser = optimiser_for(method, TrainConfig())
    return lambda: list(optimise(method, optimiser, [batch], total=10, start=9, dtype=dtype))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="Time of robust training steps against ERM's.")
    parser.add_argument("--methods", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype = autocast_dtype("auto", device)
    batch = random_batch(given.batch, given.side).to(device)
    names = ["erm", *given.methods]
    calls = {name: step_of(name, given.backbone, batch, dtype) for name in names}
    times = in_turns(calls, rounds=given.rounds, device=device.type)
    ratios = {f"{name} / erm": round(ratio(times, name, "erm"), 3) for name in given.methods}
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    print(f"{given.backbone}, {tuple(batch.image.shape)}, {device}, {precision}")
    for name in given.methods:
        print(f"  {name} / erm: {ratios[f'{name} / erm']:.3f} (goal: at most {GOALS[name]})")
    values: dict[str, object] = {"precision": precision, "ratios": ratios}
    values |= {"options": {name: OPTIONS[name] for name in given.methods}}
    keep("robust_steps", values | {k: v for k, v in vars(given).items() if k != "methods"}, times)


if __name__ == "__main__":
    main()
