"""What an adapter is: `fit(model, context) -> adapted model`; the source model is never changed."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.errors import EvenfieldWarning
from evenfield.nn.norm import (
    Moments,
    batch_norms,
    moments,
    normalise,
    normalising,
    pool,
    set_statistics,
)
from evenfield.nn.predictor import Predictor
from evenfield.registry import Registry
from evenfield.types import Context


class Adapted(nn.Module):
    """A model that has taken in a context. Every prediction is independent of its companions.

    Attributes:
        model: The predictor, in eval mode, frozen.
        memory: What the output rule needs besides the model (support sets, prototypes).
    """

    def __init__(
        self,
        adapter: Adapter,
        model: Predictor,
        source: Predictor,
        memory: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.model = model.eval()
        self.memory = memory or {}
        self._source = (source,)  # in a tuple: not a submodule, its weights are not ours

    @torch.inference_mode()
    def predict(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Log-probabilities of any number of images; a row depends on nothing but its image."""
        features = self.model.features(image)
        return self.adapter.output(features, self.model.head(features).float(), self.memory)

    def reset(self) -> Predictor:
        """The source model, bit for bit as it was."""
        return self._source[0]


class Adapter(ABC):
    """The contract of an adapter.

    Controls never enter a loss and their labels are never read. Fallbacks are stated in the
    class's docstring and announced with an `EvenfieldWarning` that names the unit.
    """

    name: ClassVar[str]
    uses_controls: ClassVar[bool] = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """The settings of an adapter."""

    def __init__(self, config: Any = None) -> None:
        self.config = config if config is not None else type(self).Config()

    @abstractmethod
    def fit(self, model: Predictor, context: Context) -> Adapted:
        """Learn from the unlabelled images of one unit.

        Args:
            model: The source model; it is not changed.
            context: Images of one plate, perturbed and controls, without labels.
        """

    def output(
        self,
        features: Float[Tensor, "n d"],
        logits: Float[Tensor, "n k"],
        memory: dict[str, Tensor],
    ) -> Float[Tensor, "n k"]:
        """From features and logits to log-probabilities, row by row."""
        del features, memory
        return logits.log_softmax(1)

    def warn(self, context: Context, text: str) -> None:
        """Announce a fallback."""
        unit = f"plate {context.name}" if context.name else "this context"
        warnings.warn(f"{self.name}: {unit}: {text}", EvenfieldWarning, stacklevel=3)


ADAPTERS: Registry[Adapter] = Registry("adapter", package="evenfield.adapt")


class StatisticsAdapter(Adapter):
    """An adapter that only chooses the statistics of the normalisation layers.

    A subclass says, for one layer, which mean and variance to use, given the moments of the
    perturbed images and of the controls at that layer. A context of up to `chunk` images takes one
    joint pass, which equals the training-mode forward. A larger one is cut into chunks of equal
    composition and their moments are pooled (between-chunk variance counted): exact for the first
    layer; deeper layers see inputs normalised chunk by chunk. `exact` goes layer by layer instead,
    one pass a layer.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Adapter.Config):
        """The settings of an adapter of statistics.

        Attributes:
            chunk: How many images of a context go through the network in one pass.
            exact: Whether a context larger than a chunk is fitted layer by layer.
        """

        chunk: int = 512
        exact: bool = False

    @abstractmethod
    def statistics(
        self,
        model: Predictor,
        name: str,
        layer: _BatchNorm,
        perturbed: Moments | None,
        controls: Moments | None,
    ) -> tuple[Tensor, Tensor] | None:
        """Mean and variance (c,) of a layer; None keeps the source's.

        Args:
            model: The source model (for its calibration).
            name: The layer's name in the predictor.
            layer: The layer itself, with the source's running statistics.
            perturbed: Moments over the perturbed images, None if there are none.
            controls: Moments over the controls, None if there are none.
        """

    def select(self, context: Context) -> Context:
        """The part of the context that is used; here fallbacks are decided and announced."""
        return context

    @torch.inference_mode()
    def fit(self, model: Predictor, context: Context) -> Adapted:
        """One pass (or one a layer) over the context; weights stay bit for bit."""
        context = self.select(context)
        adapted = copy.deepcopy(model).eval()
        if len(context.image):
            chunks = list(stratified_chunks(context, self.config.chunk))
            if self.config.exact and len(chunks) > 1:
                self._fit_exact(model, adapted, chunks)
            else:
                self._fit_pooled(model, adapted, chunks)
        return Adapted(self, adapted, model)

    def _chosen(
        self, model: Predictor, name: str, layer: _BatchNorm, parts: list[Split]
    ) -> tuple[Tensor, Tensor]:
        """The statistics for the pooled moments of some chunks; the source's if so decided."""
        sides = [[part[side] for part in parts] for side in (0, 1)]
        perturbed, controls = (
            pool(m for m in side if m is not None) if any(m is not None for m in side) else None
            for side in sides
        )
        chosen = self.statistics(model, name, layer, perturbed, controls)
        if chosen is None:
            assert layer.running_mean is not None and layer.running_var is not None
            return layer.running_mean, layer.running_var
        return chosen

    def _fit_pooled(self, model: Predictor, adapted: Predictor, chunks: list[Context]) -> None:
        source = batch_norms(model)
        seen: dict[str, list[Split]] = {}

        def rule_for(context: Context) -> Any:
            def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
                part = split_moments(x, context.is_control)
                seen.setdefault(name, []).append(part)
                return normalise(layer, x, *self._chosen(model, name, source[name], [part]))

            return rule

        for chunk in chunks:
            with normalising(adapted, rule_for(chunk)):
                adapted(chunk.image)
        for name, layer in batch_norms(adapted).items():
            if name in seen:
                set_statistics(layer, *self._chosen(model, name, source[name], seen[name]))

    def _fit_exact(self, model: Predictor, adapted: Predictor, chunks: list[Context]) -> None:
        source = batch_norms(model)
        layers = batch_norms(adapted)
        done: set[str] = set()
        while True:
            fresh: dict[str, list[Split]] = {}

            def rule_for(context: Context, fresh: dict[str, list[Split]] = fresh) -> Any:
                def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
                    if name not in done:
                        fresh.setdefault(name, []).append(split_moments(x, context.is_control))
                        raise _Reached
                    assert layer.running_mean is not None and layer.running_var is not None
                    return normalise(layer, x, layer.running_mean, layer.running_var)

                return rule

            for chunk in chunks:
                with normalising(adapted, rule_for(chunk)):
                    try:
                        adapted(chunk.image)
                    except _Reached:
                        continue
            if not fresh:
                return
            for name, parts in fresh.items():
                set_statistics(layers[name], *self._chosen(model, name, source[name], parts))
                done.add(name)


class _Reached(Exception):
    """Stops a pass at the first layer whose statistics are not settled."""


Split = tuple[Moments | None, Moments | None]


def split_moments(x: Tensor, is_control: Tensor) -> Split:
    """The moments of the perturbed images and of the controls of one pass."""
    num_controls = int(is_control.sum())
    if num_controls == 0:
        return moments(x), None
    if num_controls == len(x):
        return None, moments(x)
    return moments(x[~is_control]), moments(x[is_control])


def stratified_chunks(context: Context, chunk: int) -> Iterator[Context]:
    """Cut a context into chunks of at most `chunk` images, each with the context's own mixture."""
    num_chunks = -(-len(context.image) // chunk)
    if num_chunks <= 1:
        yield context
        return
    order = torch.arange(len(context.image), device=context.image.device)
    perturbed, controls = order[~context.is_control], order[context.is_control]
    for part in range(num_chunks):
        rows = torch.cat([perturbed[part::num_chunks], controls[part::num_chunks]])
        yield replace(context, image=context.image[rows], is_control=context.is_control[rows])
