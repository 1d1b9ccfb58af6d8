"""Estimates the statistics of every BatchNorm layer from one context, in chunks or layer by layer.

`fit_pooled` is one pass over the chunks: the moments of each layer are pooled, exact for the first
layer; deeper layers see inputs normalised chunk by chunk. `fit_exact` settles one layer a pass.
With a single chunk `fit_pooled` is the train-mode forward, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.nn.norm import (
    Moments,
    Rule,
    batch_norms,
    gather,
    image_moments,
    normalise,
    normalising,
    pool,
    set_statistics,
)
from evenfield.types import Context


@dataclass(frozen=True, slots=True)
class Seen:
    """What one layer saw of a context.

    Attributes:
        perturbed: Moments over the perturbed images, None if there are none.
        controls: Moments over the controls, None if there are none.
        num_pixels: Pixels of an image at this layer.
    """

    perturbed: Moments | None
    controls: Moments | None
    num_pixels: int

    @property
    def num_values(self) -> int:
        """Values per channel: a single one has no variance."""
        sides = (self.perturbed, self.controls)
        return self.num_pixels * sum(side.num_images for side in sides if side is not None)


Choose = Callable[[str, Seen], tuple[Tensor, Tensor]]


def see(x: Float[Tensor, "n c *pixels"], num_perturbed: int) -> Seen:
    """The moments of the perturbed images (they come first) and of the controls of one pass."""
    mean_nc, var_nc = image_moments(x)
    sides = (slice(num_perturbed), slice(num_perturbed, None))
    perturbed, controls = (
        gather(mean_nc[side], var_nc[side]) if len(mean_nc[side]) else None for side in sides
    )
    return Seen(perturbed, controls, x[0, 0].numel())


def pool_seen(parts: Iterable[Seen]) -> Seen:
    """What a layer saw in all chunks."""
    parts = list(parts)
    perturbed = [part.perturbed for part in parts if part.perturbed is not None]
    controls = [part.controls for part in parts if part.controls is not None]
    return Seen(
        pool(perturbed) if perturbed else None,
        pool(controls) if controls else None,
        parts[0].num_pixels,
    )


def fit_pooled(model: nn.Module, chunks: Iterable[Context], choose: Choose) -> None:
    """Write what `choose` says into the layers' buffers, after one pass over the chunks."""
    seen: dict[str, list[Seen]] = {}

    def rule_for(num_perturbed: int) -> Rule:
        def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
            part = see(x, num_perturbed)
            seen.setdefault(name, []).append(part)
            return normalise(layer, x, *choose(name, part))

        return rule

    device = device_of(model)
    with torch.inference_mode():
        for chunk in chunks:
            with normalising(model, rule_for(int((~chunk.is_control).sum()))):
                model(chunk.image.to(device))
    layers = batch_norms(model)
    for name, parts in seen.items():
        set_statistics(layers[name], *choose(name, pool_seen(parts)))


def fit_exact(model: nn.Module, chunks: Iterable[Context], choose: Choose) -> None:
    """The same, layer by layer: as many passes as layers, equal to one joint pass of any size."""
    chunks = list(chunks)
    layers = batch_norms(model)
    device = device_of(model)
    done: set[str] = set()
    fresh: dict[str, list[Seen]] = {}

    def rule_for(num_perturbed: int) -> Rule:
        def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
            if name not in done:
                fresh.setdefault(name, []).append(see(x, num_perturbed))
                raise _Reached
            return normalise(layer, x, *held_by(layer))

        return rule

    while True:
        fresh.clear()
        with torch.inference_mode():
            for chunk in chunks:
                with normalising(model, rule_for(int((~chunk.is_control).sum()))):
                    try:
                        model(chunk.image.to(device))
                    except _Reached:
                        continue
        if not fresh:
            return
        for name, parts in fresh.items():
            set_statistics(layers[name], *choose(name, pool_seen(parts)))
            done.add(name)


class _Reached(Exception):
    """Stops a pass at the first layer whose statistics are not settled."""


def held_by(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The running statistics of a layer that has them."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    return mean, var


def stratified_chunks(context: Context, chunk: int) -> Iterator[Context]:
    """Chunks of at most `chunk` images, each with the context's own mixture, perturbed first."""
    num_chunks = max(1, -(-len(context.image) // chunk))
    flags = context.is_control
    if num_chunks == 1 and not bool((flags[:-1] & ~flags[1:]).any()):
        yield context  # in order already: nothing is copied
        return
    order = torch.arange(len(context.image), device=flags.device)
    perturbed, controls = order[~flags], order[flags]
    for part in range(num_chunks):
        rows = torch.cat([perturbed[part::num_chunks], controls[part::num_chunks]])
        image = context.image[rows.to(context.image.device)]
        yield replace(context, image=image, is_control=flags[rows])


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters live."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
