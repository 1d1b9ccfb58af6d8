"""The encoders that a configuration may name, and weights that were trained elsewhere."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.nn.cnn import SmallCNN
from evenfield.nn.densenet import DenseNet, modern_key
from evenfield.nn.resnet import BasicBlock, Bottleneck, ResNet
from evenfield.nn.vit import ViT, positions

Encoder = SmallCNN | ResNet | DenseNet | ViT
Model = TypeVar("Model", bound=nn.Module)

BACKBONES: dict[str, Callable[[int], Encoder]] = {
    "cnn-small": SmallCNN,
    "resnet18": lambda channels: ResNet(BasicBlock, (2, 2, 2, 2), channels),
    "resnet50": lambda channels: ResNet(Bottleneck, (3, 4, 6, 3), channels),
    "resnet50-avgpool": lambda channels: ResNet(Bottleneck, (3, 4, 6, 3), channels, pooling=True),
    "resnet18-ibn-a": lambda channels: ResNet(BasicBlock, (2, 2, 2, 2), channels, ibn="a"),
    "resnet50-ibn-a": lambda channels: ResNet(Bottleneck, (3, 4, 6, 3), channels, ibn="a"),
    "resnet50-ibn-b": lambda channels: ResNet(Bottleneck, (3, 4, 6, 3), channels, ibn="b"),
    "densenet121": lambda channels: DenseNet(32, (6, 12, 24, 16), 64, channels),
    "densenet161": lambda channels: DenseNet(48, (6, 12, 36, 24), 96, channels),
    "deit-small": ViT,
    "vit-tiny": lambda channels: ViT(channels, patch=8, side=64, width=128, depth=6, heads=4),
}
"""Builders by name; each takes the number of input channels."""


def build_backbone(name: str, channels: int) -> tuple[nn.Module, int]:
    """An encoder of images (n, channels, h, w) to features (n, d), and d.

    The weights lie channels-last in memory, in which convolutions are fastest; keys and shapes of
    its state are those of torchvision for `resnet18`, `resnet50` and the DenseNets, those of the
    authors for the IBN variants, those of DeiT and timm for `deit-small`. Initial weights come from
    torch's current random state, which the caller seeds.

    Raises:
        InputError: There is no backbone of this name, or `channels` is below 1.
    """
    if name not in BACKBONES:
        raise InputError(
            f"there is no backbone called {name!r}", fix=f"choose one of: {', '.join(BACKBONES)}"
        )
    if channels < 1:
        raise InputError(
            f"a backbone of {channels} input channels", fix="give a screen with 1 channel or more"
        )
    encoder = BACKBONES[name](channels)
    num_features = encoder.num_features
    return channels_last(encoder), num_features


def channels_last(model: Model) -> Model:
    """The same model with its convolutions channels-last in memory."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def load_weights(
    backbone: nn.Module,
    path: Path | str,
    channels: int,
    *,
    stem: Literal["average", "repeat"] = "average",
) -> None:
    """Load a published state (torchvision's, DeiT's or timm's format) into a backbone.

    A classifier (`fc.*`, `classifier.*`, `head.*`) in the file is left out, a state within the key
    `model` is taken out of it, and names of torch 0.3 in a DenseNet's file (`norm.1`) are read as
    today's (`norm1`). Position embeddings of another image size are interpolated. The file's first
    convolution may have another number of channels than `channels`.

    Args:
        backbone: Built by `build_backbone(name, channels)`; changed in place.
        path: A local `.pth` file with a state dict.
        channels: Number of image channels of the backbone.
        stem: What a first convolution for other channels becomes: `average` (`adapt_stem`: an
            image with equal channels gives what it gave before), or `repeat` (`tile_stem`: the
            file's channels one after the other, again and again, not rescaled, as in CDCL).

    Raises:
        InputError: The file cannot be read as a state, lacks parameters, or has others.
    """
    wanted = backbone.state_dict()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} cannot be read as weights ({error})",
            fix="give a local .pth file that torch.save wrote from a state dict",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise InputError(
            f"{path} holds no state dict", fix="save `model.state_dict()`, not the model itself"
        )
    state = {
        modern_key(key): value
        for key, value in state.items()
        if not key.startswith(("fc.", "classifier.", "head."))
    }
    first = next(key for key, value in wanted.items() if value.ndim == 4)
    if first in state and state[first].ndim == 4 and state[first].shape[1] != channels:
        make = tile_stem if stem == "repeat" else adapt_stem
        state[first] = make(state[first], channels)
    if isinstance(backbone, ViT) and is_square_grid(state.get("pos_embed")):
        side = math.isqrt(wanted["pos_embed"].shape[1] - 1)
        state["pos_embed"] = positions(state["pos_embed"], side, side)
    # Files older than torch 0.4 have no counters; they play no part with a fixed momentum.
    counters = {key: v for key, v in wanted.items() if key.endswith("num_batches_tracked")}
    state = counters | state
    wrong = [
        key
        for key in sorted(wanted.keys() | state.keys())
        if key not in wanted or key not in state or wanted[key].shape != state[key].shape
    ]
    if wrong:
        shown = ", ".join(wrong[:4]) + (", ..." if len(wrong) > 4 else "")
        raise InputError(
            f"{path} does not fit this backbone: {len(wrong)} parameters are missing, unknown or "
            f"of another shape ({shown})",
            fix="name the backbone that the weights were trained with",
        )
    backbone.load_state_dict(state)


def is_square_grid(embedding: Tensor | None) -> bool:
    """Whether these are position embeddings (1, 1 + side^2, d) of a class token and a grid."""
    if embedding is None or embedding.ndim != 3:
        return False
    return math.isqrt(embedding.shape[1] - 1) ** 2 == embedding.shape[1] - 1


def adapt_stem(
    weight_ocij: Float[Tensor, "o c i j"], channels: int
) -> Float[Tensor, "o channels i j"]:
    """A first convolution for another number of channels: the mean, with its gain kept.

    >>> adapt_stem(torch.tensor([[[[1.0]], [[2.0]], [[6.0]]]]), 2).flatten()
    tensor([4.5000, 4.5000])
    """
    gain = weight_ocij.shape[1] / channels
    return (weight_ocij.mean(1, keepdim=True) * gain).repeat(1, channels, 1, 1)


def tile_stem(weight_ocij: Float[Tensor, "o c i j"], channels: int) -> Float[Tensor, "o k i j"]:
    """A first convolution for another number of channels: the file's in turn, not rescaled.

    >>> tile_stem(torch.tensor([[[[1.0]], [[2.0]], [[6.0]]]]), 5).flatten().tolist()
    [1.0, 2.0, 6.0, 1.0, 2.0]
    """
    times = -(-channels // weight_ocij.shape[1])
    return weight_ocij.repeat(1, times, 1, 1)[:, :channels]
