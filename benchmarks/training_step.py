"""What does a training step cost, in units of plain float32 code with the same network?

    python benchmarks/training_step.py [--backbones resnet18 resnet50] [--batch 32] [--rounds 5]

`plain` is the step as it is mostly written: float32, NCHW, torch's default Adam. `erm` is ours: the
loop's own step, channels-last, fused Adam, automatic mixed precision where the processor computes
in bfloat16 (`erm-float32`: without). `cs-arm-bn` is a step of that method on as many images, one
third of them perturbed. Goals for `erm` / `plain`: ResNet-50 0.45 in bfloat16, 0.75 in float32;
ResNet-18 0.50 and 0.85; `cs-arm-bn` / `erm` at most 1.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from turns import in_turns, keep, ratio

from evenfield.config import TrainConfig
from evenfield.methods import METHODS
from evenfield.nn.backbones import build_backbone
from evenfield.seeds import generator
from evenfield.train.loop import autocast_dtype, optimise
from evenfield.train.optimiser import optimiser_for
from evenfield.types import UNKNOWN, Batch

CHANNELS, CLASSES = 6, 8


def plain_step(backbone: str, batch: Batch) -> Callable[[], object]:
    """A step of float32 NCHW code."""
    encoder, d = build_backbone(backbone, CHANNELS)
    model = nn.Sequential(encoder, nn.Linear(d, CLASSES)).to(batch.image.device)
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    image = batch.image.contiguous()
    label = torch.arange(len(batch), device=image.device) % CLASSES

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(image), label).backward()
        optimiser.step()

    return step


def our_step(
    name: str, backbone: str, batch: Batch, dtype: torch.dtype | None
) -> Callable[[], object]:
    """A step of the loop with one of the methods."""
    encoder, d = build_backbone(backbone, CHANNELS)
    cls = METHODS[name]
    method = cls(cls.Config(), backbone=encoder, d=d, k=CLASSES, c=CHANNELS)
    method = method.to(batch.image.device).train()
    optimiser = optimiser_for(method, TrainConfig())
    return lambda: list(optimise(method, optimiser, [batch], total=1, dtype=dtype))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="Time of a training step.")
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype = autocast_dtype("auto", device)

    random = generator(0, "benchmark", "training step")
    image = torch.randn(given.batch, CHANNELS, given.side, given.side, generator=random)
    index = torch.arange(given.batch)
    is_control = index >= given.batch // 3
    erm = Batch(
        image=image.contiguous(memory_format=torch.channels_last),
        label=index % CLASSES,
        is_control=torch.zeros_like(is_control),
        context=torch.zeros_like(index),
        domain=torch.zeros_like(index),
        row=index,
    ).to(device)
    episode = Batch(
        image=erm.image,
        label=torch.where(is_control, UNKNOWN, index % CLASSES).to(device),
        is_control=is_control.to(device),
        context=erm.context,
        domain=erm.domain,
        row=erm.row,
    )
    for backbone in given.backbones:
        calls = {"plain": plain_step(backbone, erm), "erm": our_step("erm", backbone, erm, dtype)}
        if dtype is not None:
            calls["erm-float32"] = our_step("erm", backbone, erm, None)
        calls["cs-arm-bn"] = our_step("cs-arm-bn", backbone, episode, dtype)
        times = in_turns(calls, rounds=given.rounds, device=device.type)
        ratios = {
            f"{name} / plain": round(ratio(times, name, "plain"), 3)
            for name in calls
            if name.startswith("erm")
        }
        ratios["cs-arm-bn / erm"] = round(ratio(times, "cs-arm-bn", "erm"), 3)
        precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        print(f"{backbone}, {tuple(image.shape)}, {device}, erm in {precision}")
        for name, spent in times.items():
            print(f"  {name:12s} {given.batch / min(spent):8.1f} images/s")
        for name, value in ratios.items():
            print(f"  {name}: {value:.3f}")
        values = {"backbone": backbone, "precision": precision, "ratios": ratios}
        keep(
            "training_step",
            values | {k: v for k, v in vars(given).items() if k != "backbones"},
            times,
        )


if __name__ == "__main__":
    main()
