"""The networks of ContriMix: an image is unmixed into content maps and an attribute matrix.

Sizes are those of the released models (down-sampling factor 1, weights as torch draws them). All
convolutions pad by reflection and have a bias; instance normalisation has no affine part.

Where this file departs from the authors' code, and why:
    pooling    A 3x3 convolution and the average pool behind it are one 4x4 convolution of stride 2
               with the summed kernel: the same map up to rounding for 4/9 of the multiplications.
    precision  The layer normalisation is computed in float32 under autocast, the generator, too: in
               half precision the former easily gives NaN, and the latter makes what is classified.
    width      The attribute encoder may be narrower, so that a CPU trains it.
    softmax    The option of a softmax over content maps is not built: no released model uses it.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.errors import InputError

SMALLEST_SIDE = 64
STEM = 8
FIRST, NUM_BLOCKS = 16, 5


def conv(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that pads one pixel by reflection."""
    return nn.Conv2d(before, after, size, stride, 1, padding_mode="reflect")


class ContentBlock(nn.Module):
    """Two convolutions 3x3 with instance normalisation around the identity."""

    def __init__(self, s: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(s, s), conv(s, s)

    def forward(self, x: Float[Tensor, "n s h w"]) -> Float[Tensor, "n s h w"]:
        """The next map."""
        y = F.leaky_relu(F.instance_norm(self.conv1(x)))
        return x + F.instance_norm(self.conv2(y))


class ContentEncoder(nn.Module):
    """Where which stain or structure lies: s maps of the image's size.

    Args:
        channels: Number of image channels.
        s: Number of content maps.
    """

    def __init__(self, channels: int, s: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, STEM), conv(STEM, s)
        self.blocks = nn.Sequential(ContentBlock(s), ContentBlock(s))

    def forward(self, signal: Float[Tensor, "n c h w"]) -> Float[Tensor, "n s h w"]:
        """Content maps of signals."""
        x = F.leaky_relu(self.conv1(signal))
        x = F.leaky_relu(F.instance_norm(self.conv2(x)))
        return F.leaky_relu(self.blocks(x))


class DownBlock(nn.Module):
    """A residual block that halves the map and changes its width.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        act: Whether the LeakyReLU(0.2) between the convolutions is there.
    """

    def __init__(self, before: int, after: int, *, act: bool) -> None:
        super().__init__()
        self.act = act
        self.conv1, self.conv2 = conv(before, before), conv(before, after)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e i j"]:
        """The next map, of half the size."""
        y = self.conv1(x)
        if self.act:
            y = F.leaky_relu(y, 0.2)
        y = F.pad(y, (1, 1, 1, 1), mode="reflect")
        y = F.conv2d(y, pooled(self.conv2.weight), self.conv2.bias, stride=2)
        return y + self.skip(F.avg_pool2d(x, 2))


class AttributeEncoder(nn.Module):
    """How every content map is coloured: a matrix of channels by maps for each image.

    Args:
        channels: Number of image channels, c.
        s: Number of content maps.
        width: Factor of the number of feature maps; 1 = as released (16 to 512).
        act: Whether the blocks have their LeakyReLU; without it all but the last layers are linear.
    """

    def __init__(self, channels: int, s: int, *, width: float = 1.0, act: bool = True) -> None:
        super().__init__()
        self.channels, self.s = channels, s
        first = max(1, round(FIRST * width))
        widths = [first * 2**block for block in range(NUM_BLOCKS + 1)]
        self.conv1 = conv(channels, first, 4, 2)
        self.blocks = nn.Sequential(*(DownBlock(a, b, act=act) for a, b in pairwise(widths)))
        self.last = nn.Conv2d(widths[-1], channels * s, 1)
        self.norm = nn.LayerNorm(channels * s)

    def forward(self, signal: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s"]:
        """Attribute matrices of signals, float32.

        Raises:
            InputError: A side is below 64 pixels: the last block would have nothing to reflect.
        """
        side = min(signal.shape[2:])
        if side < SMALLEST_SIDE:
            raise InputError(
                f"an image with a side of {side} pixels is too small for the attribute encoder",
                fix=f"give images (or crops) of {SMALLEST_SIDE} pixels or more",
            )
        x = self.blocks(self.conv1(signal)).mean((2, 3), keepdim=True)
        x = self.last(x).flatten(1).float()
        with torch.autocast(x.device.type, enabled=False):
            x = F.leaky_relu(self.norm(x))
        return x.reshape(-1, self.channels, self.s)


def pooled(weight_ocij: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "o c 4 4"]:
    """The kernel of stride 2 that equals a 3x3 kernel and an average over 2x2 behind it.

    >>> pooled(torch.ones(1, 1, 3, 3)).mul(4).int()[0, 0].tolist()
    [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]
    """
    one = torch.eye(3, device=weight_ocij.device)
    both = (F.pad(one, (0, 1)) + F.pad(one, (1, 0))) / 2  # (3, 4): a value goes to two neighbours
    table = torch.kron(both, both)  # (9, 16); one product is far quicker than sums of padded copies
    o, c = weight_ocij.shape[:2]
    return (weight_ocij.reshape(o * c, 9) @ table).reshape(o, c, 4, 4)


def generate(
    attribute: Float[Tensor, "*m n c s"], content: Float[Tensor, "n s h w"]
) -> Float[Tensor, "*m n c h w"]:
    """G: the signal that has this content under this attribute, a product without parameters.

    >>> generate(torch.tensor([[[2.0, 1.0]]]), torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1))
    tensor([[[[11.]]]])
    """
    with torch.autocast(content.device.type, enabled=False):
        return torch.einsum("...bcs,bshw->...bchw", attribute.float(), content.float())


def chunk_donors(n: int, num_mixes: int) -> Int[Tensor, "m n"]:
    """Each image mixes with all others of its chunk of consecutive images, in turn.

    Raises:
        InputError: The batch is not made of whole chunks.

    >>> chunk_donors(6, 2).tolist()
    [[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3], [2, 0, 1, 5, 3, 4]]
    """
    chunk = num_mixes + 1
    if n % chunk:
        raise InputError(
            f"a batch of {n} images is not made of chunks of {chunk} (mixing within_chunk)",
            fix=f"give --train.sampler chunks --train.chunk {chunk} and a multiple of {chunk} as "
            "--train.num-perturbed",
        )
    place = torch.arange(n)
    start, within = place - place % chunk, place % chunk
    return start + (within + torch.arange(chunk)[:, None]) % chunk


def load_part(module: nn.Module, path: Path, prefix: str) -> None:
    """Give a module the weights that a run's checkpoint holds under a prefix.

    Args:
        module: Changed in place.
        path: A run's folder, or one of its checkpoint files.
        prefix: What stands before the module's own names, e.g. `predictor.content.`.

    Raises:
        InputError: The file cannot be read, or holds no such weights.
    """
    file = path / "best.pt" if path.is_dir() else path
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)["method"]
        part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        module.load_state_dict(part)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{file} holds no weights for {prefix}* of this size ({error})",
            fix="give the folder of a finished run of `contrimix` with as many channels and "
            "attributes",
        ) from error
