"""What does adapting a plate cost, in units of one forward pass over the same images?

    python benchmarks/adaptation_speed.py [--backbone resnet18] [--images 192] [--side 64] ...

Prints, for each adapter of statistics, the time of `fit` on a plate (one third perturbed) divided
by that of a plain eval-mode forward pass over the whole plate. Both are timed in turn, several
times; the ratio is that of the fastest turns, which other work on the machine disturbs least. The
goal is at most 1.15.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from evenfield.adapt import ADAPTERS
from evenfield.nn.backbones import build_backbone
from evenfield.nn.predictor import Predictor
from evenfield.seeds import generator
from evenfield.types import Context

RULES = ("batch", "controls", "union", "prior", "context")


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue included."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time of adapting a plate in forward passes.")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--channels", type=int, default=5)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rules", nargs="+", default=[rule for rule in RULES if rule in ADAPTERS])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    device = torch.device(given.device)
    backbone, num_features = build_backbone(given.backbone, given.channels)
    model = Predictor(backbone, nn.Linear(num_features, 8)).eval().to(device)
    shape = (given.images, given.channels, given.side, given.side)
    image = torch.randn(shape, generator=generator(0, "speed")).to(device)
    image = image.contiguous(memory_format=torch.channels_last)
    is_control = (torch.arange(given.images) >= given.images // 3).to(device)
    plate = Context(image=image, is_control=is_control)

    @torch.inference_mode()
    def forward() -> object:
        return model(image)

    calls = {"forward": forward} | {
        rule: lambda rule=rule: ADAPTERS[rule]().fit(model, plate)  # type: ignore[misc]
        for rule in given.rules
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(given.rounds + 1):
        for name, call in calls.items():
            spent = seconds(call, device)
            if turn:  # the first turn warms up
                times[name].append(spent)
    plain = min(times["forward"])
    print(f"{given.backbone}, {shape}, {device}, {torch.get_num_threads()} threads")
    print(f"one forward pass: {1e3 * plain:.1f} ms")
    for name in given.rules:
        print(f"{name:10s} {min(times[name]) / plain:.3f}")


if __name__ == "__main__":
    main()
