"""What does adapting a plate cost, in units of one forward pass over the same images?

    python benchmarks/adaptation_speed.py [--backbone resnet18] [--images 192] [--side 64] ...

Prints, for each adapter of statistics, the time of `fit` on a plate (one third perturbed) over that
of a plain eval-mode forward pass over the whole plate, timed in turns; the goal is at most 1.15.
Then what one pooled pass in chunks costs in accuracy of the statistics: the largest and the mean
change of a log-probability against the exact, layer-by-layer fit of the same plate.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from turns import in_turns, keep, ratio

from evenfield.adapt import ADAPTERS
from evenfield.nn.backbones import build_backbone
from evenfield.nn.predictor import Predictor
from evenfield.seeds import generator
from evenfield.types import Context

RULES = ("batch", "controls", "union", "prior")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of adapting a plate in forward passes.")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--channels", type=int, default=5)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    device = torch.device(given.device)
    backbone, num_features = build_backbone(given.backbone, given.channels)
    model = Predictor(backbone, nn.Linear(num_features, 8)).eval().to(device)
    shape = (given.images, given.channels, given.side, given.side)
    image = torch.randn(shape, generator=generator(0, "speed")).to(device)
    image *= torch.linspace(0.5, 2, given.images, device=device)[:, None, None, None]
    image = image.contiguous(memory_format=torch.channels_last)
    is_control = (torch.arange(given.images) >= given.images // 3).to(device)
    plate = Context(image=image, is_control=is_control)

    @torch.inference_mode()
    def forward() -> object:
        return model(image)

    calls = {"forward": forward} | {
        rule: lambda rule=rule: ADAPTERS[rule]().fit(model, plate)  # type: ignore[misc]
        for rule in RULES
    }
    times = in_turns(calls, rounds=given.rounds, device=given.device)
    ratios = {rule: ratio(times, rule, "forward") for rule in RULES}
    print(f"{given.backbone}, {shape}, {device}, {torch.get_num_threads()} threads")
    for rule, value in ratios.items():
        print(f"{rule:10s} {value:.3f}")

    union = ADAPTERS["union"]
    chunk = max(8, given.images // 4)
    pooled, exact = (
        union(union.Config(chunk=chunk, exact=flag)).fit(model, plate).predict(image)
        for flag in (False, True)
    )
    change = (pooled - exact).abs()
    print(f"pooled in chunks of {chunk} against exact: log-probabilities change by at most"
          f" {change.max():.2g}, on average {change.mean():.2g}")  # fmt: skip
    values = {
        "backbone": given.backbone,
        "shape": list(shape),
        "device": given.device,
        "ratios": ratios,
        "pooled": {"chunk": chunk, "max": float(change.max()), "mean": float(change.mean())},
    }
    keep("adaptation_speed", values, times)


if __name__ == "__main__":
    main()
