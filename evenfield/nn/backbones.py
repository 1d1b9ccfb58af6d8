"""The encoders that a configuration may name, and weights that were trained elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.nn.cnn import SmallCNN
from evenfield.nn.densenet import DenseNet, modern_key
from evenfield.nn.resnet import BasicBlock, Bottleneck, ResNet

Encoder = SmallCNN | ResNet | DenseNet
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
}
"""Builders by name; each takes the number of input channels."""


def build_backbone(name: str, channels: int) -> tuple[nn.Module, int]:
    """An encoder of images (n, channels, h, w) to features (n, d), and d.

    The weights lie channels-last in memory, in which convolutions are fastest; keys and shapes of
    its state are those of torchvision for `resnet18`, `resnet50` and the DenseNets, those of the
    authors for the IBN variants. Initial weights come from torch's current random state, which the
    caller seeds.

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


def load_weights(backbone: nn.Module, path: Path | str, channels: int) -> None:
    """Load a state in torchvision's format into a backbone of any number of channels.

    A classifier (`fc.*`, `classifier.*`) in the file is left out, and names of torch 0.3 in a
    DenseNet's file (`norm.1`) are read as today's (`norm1`). If the file's first convolution has
    another number of channels than `channels`, each of ours gets the mean over the file's, times
    the file's number over ours: an image with equal channels then gives what it gave before.

    Args:
        backbone: Built by `build_backbone(name, channels)`; changed in place.
        path: A local `.pth` file with a state dict.
        channels: Number of image channels of the backbone.

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
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise InputError(
            f"{path} holds no state dict", fix="save `model.state_dict()`, not the model itself"
        )
    state = {
        modern_key(key): value
        for key, value in state.items()
        if not key.startswith(("fc.", "classifier."))
    }
    stem = next(key for key, value in wanted.items() if value.ndim == 4)
    if stem in state and state[stem].ndim == 4 and state[stem].shape[1] != channels:
        state[stem] = adapt_stem(state[stem], channels)
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


def adapt_stem(
    weight_ocij: Float[Tensor, "o c i j"], channels: int
) -> Float[Tensor, "o channels i j"]:
    """A first convolution for another number of channels: the mean, with its gain kept.

    >>> adapt_stem(torch.tensor([[[[1.0]], [[2.0]], [[6.0]]]]), 2).flatten()
    tensor([4.5000, 4.5000])
    """
    gain = weight_ocij.shape[1] / channels
    return (weight_ocij.mean(1, keepdim=True) * gain).repeat(1, channels, 1, 1)
