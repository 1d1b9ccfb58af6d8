"""What an adapter is: `fit(model, context) -> adapted model`; the source model is never changed."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.estimate import (
    Seen,
    device_of,
    fit_exact,
    fit_pooled,
    held_by,
    stratified_chunks,
)
from evenfield.nn.norm import Moments, batch_norms
from evenfield.nn.predictor import Predictor
from evenfield.registry import Registry
from evenfield.types import Context


class Adapted(nn.Module):
    """A model that has taken in a context. Every prediction is independent of its companions.

    Attributes:
        model: The predictor, in eval mode.
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
        for name, layer in batch_norms(model).items():
            if layer.running_mean is None:
                raise InputError(
                    f"{adapter.name}: BatchNorm layer {name!r} has no running statistics, so its "
                    "predictions would depend on the other images of a batch",
                    fix="use a model with track_running_stats=True, or an adapter of statistics "
                    "with a non-empty context (union, controls, batch)",
                )
        self.adapter = adapter
        self.model = model.eval()
        self.memory = memory or {}
        self._source = (source,)  # in a tuple: not a submodule, its weights are not ours

    def predict(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Log-probabilities of any number of images; a row depends on nothing but its image."""
        with torch.inference_mode():
            features = self.model.features(image)
            logits = self.model.head(features).float()
        with torch.inference_mode(False), torch.no_grad():  # what is handed out is a plain tensor
            return self.adapter.output(features, logits, self.memory)

    def reset(self) -> Predictor:
        """The source model, bit for bit as it was."""
        return self._source[0]

    def state(self) -> dict[str, Tensor]:
        """What differs from the source model (`model.*`) and the memory (`memory.*`).

        Small: the statistics of a ResNet-18 are 40 kB. `torch.save` it, read it with
        `torch.load(weights_only=True)`, and give it to `Adapter.restore` with the same source.

        Raises:
            InputError: The conditioned model is of another class than the source.
        """
        source = self._source[0]
        if type(self.model) is not type(source):
            raise InputError(
                f"{self.adapter.name}: the adapted model is a {type(self.model).__name__}, its "
                f"source a {type(source).__name__}: the difference cannot be written",
                fix="let `Predictor.condition` return a copy of its own class, with what it has "
                "learned from the context in buffers or parameters",
            )
        before = source.state_dict()
        parts = {
            f"model.{name}": tensor.detach().cpu().clone()
            for name, tensor in self.model.state_dict().items()
            if name not in before or not same_bits(tensor, before[name])
        }
        return parts | {f"memory.{name}": t.detach().cpu() for name, t in self.memory.items()}


class Adapter(ABC):
    """The contract of an adapter.

    Controls never enter a loss and their labels are never read. Fallbacks are stated in the
    class's docstring and announced with an `EvenfieldWarning` that names the unit.
    """

    name: ClassVar[str]
    uses_controls: ClassVar[bool] = True
    uses_perturbed: ClassVar[bool] = True
    config: Any

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

    def restore(self, model: Predictor, state: dict[str, Tensor]) -> Adapted:
        """The adapted model from its source and its `Adapted.state`.

        Raises:
            InputError: The state belongs to another architecture.
        """
        adapted = copy_of(model)
        memory = {}
        device = device_of(model)
        for key, tensor in state.items():
            kind, _, path = key.partition(".")
            if kind == "memory":
                memory[path] = tensor.to(device)
                continue
            owner, leaf = path.rpartition(".")[::2]
            try:
                module = adapted.get_submodule(owner)
                held = module._parameters.get(leaf, module._buffers.get(leaf))
                if kind != "model" or (held is not None and held.shape != tensor.shape):
                    raise AttributeError(key)
            except AttributeError as error:
                raise InputError(
                    f"{self.name}: the state's {key!r} {tuple(tensor.shape)} has no place in this "
                    "model",
                    fix="restore with the very checkpoint that the plate was adapted with",
                ) from error
            if leaf in module._parameters and held is not None:
                held.data.copy_(tensor)
            else:
                module.register_buffer(leaf, tensor.to(device, copy=True))
        return Adapted(self, adapted, model, memory)

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

    A layer that sees a single value per channel (one image of one pixel) learns no variance and
    keeps the source's statistics. A model without BatchNorm keeps everything, with a warning.
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

    def fit(self, model: Predictor, context: Context) -> Adapted:
        """One pass (or one a layer) over the context; weights stay bit for bit."""
        context = self.select(checked(context))
        adapted = copy_of(model)
        if not batch_norms(adapted):
            self.warn(context, "the model has no BatchNorm layer: nothing is adapted")
        elif len(context.image):
            source = batch_norms(model)

            def choose(name: str, seen: Seen) -> tuple[Tensor, Tensor]:
                return self.chosen(model, name, source[name], seen)

            exact = self.config.exact and len(context.image) > self.config.chunk
            chunks = stratified_chunks(context, self.config.chunk)
            (fit_exact if exact else fit_pooled)(adapted, chunks, choose)
        return Adapted(self, adapted, model)

    def chosen(
        self, model: Predictor, name: str, layer: _BatchNorm, seen: Seen
    ) -> tuple[Tensor, Tensor]:
        """The statistics for what a layer saw of a context; the source's if so decided."""
        pair = None
        if seen.num_values > 1:
            pair = self.statistics(model, name, layer, seen.perturbed, seen.controls)
        if pair is not None:
            return pair
        if layer.running_mean is None:
            raise InputError(
                f"{self.name}: BatchNorm layer {name!r} has no statistics to fall back to",
                fix="give a larger context, or a model with track_running_stats=True",
            )
        return held_by(layer)


class PerturbedStatistics(StatisticsAdapter):
    """Moments of the perturbed images alone; controls are left out.

    Fallback: without a perturbed image the source's statistics stay.
    """

    uses_controls = False

    def select(self, context: Context) -> Context:
        """The perturbed images."""
        if not len(context.perturbed):
            self.warn(context, "no perturbed image: the source's statistics are kept")
        return side_of(context, controls=False)

    def statistics(
        self,
        model: Predictor,
        name: str,
        layer: _BatchNorm,
        perturbed: Moments | None,
        controls: Moments | None,
    ) -> tuple[Tensor, Tensor] | None:
        """mean_p, var_p."""
        del model, name, layer, controls
        return (perturbed.mean, perturbed.var) if perturbed else None


@torch.no_grad()
def perturbed_outputs(
    model: Predictor, context: Context, chunk: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Features and logits of the perturbed images, `chunk` images a pass."""
    features, logits = [], []
    with torch.inference_mode(False):
        for image in context.perturbed.split(chunk):
            features.append(model.features(image.to(device_of(model))).float())
            logits.append(model.head(features[-1]).float())
    return torch.cat(features), torch.cat(logits)


def side_of(context: Context, *, controls: bool) -> Context:
    """The controls of a context, or its perturbed images, alone."""
    keep = context.is_control if controls else ~context.is_control
    if bool(keep.all()):
        return context
    return replace(context, image=context.image[keep], is_control=context.is_control[keep])


def checked(context: Context) -> Context:
    """The context, if its flags fit its images and its pixels are numbers.

    Raises:
        InputError: They do not, or a pixel is NaN or infinite.
    """
    flags, image = context.is_control, context.image
    unit = f"plate {context.name}" if context.name else "a context"
    if flags.dtype != torch.bool or flags.shape != image.shape[:1]:
        raise InputError(
            f"the control flags of {unit} are {flags.dtype} {tuple(flags.shape)} for images "
            f"{tuple(image.shape)}",
            fix="give one bool for each image",
        )
    if not bool(image.sum(dtype=torch.float32).isfinite()):  # one cheap pass; the search if needed
        bad = (~image.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise InputError(
                f"{len(bad)} image(s) of {unit} hold NaN or infinite pixels: numbers {bad[:10]}",
                fix="leave these images out of the context",
            )
    return context


def copy_of(model: Predictor) -> Predictor:
    """A copy in eval mode; its tensors are plain ones, even inside `torch.inference_mode`."""
    with torch.inference_mode(False):
        return copy.deepcopy(model).eval()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise an `InputError` unless a setting is one of the allowed words."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}", fix=f"choose one of: {', '.join(allowed)}")
