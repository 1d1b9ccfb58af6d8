"""Vision transformers for any number of channels: image patches and one class token, as tokens.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, https://arxiv.org/abs/2010.11929;
sizes and initial weights of DeiT: Touvron et al., ICML 2021, https://arxiv.org/abs/2012.12877.

Names and shapes of the state are those of timm and DeiT, so that published files load. Stochastic
depth (Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382) is no property of the network:
who trains it says when, how much, and with which generator (`dropping`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.errors import InputError


class ViT(nn.Module):
    """Images (n, c, h, w) to the class token's features (n, d); `tokens` gives all of them.

    The defaults are DeiT-S/16: 21,665,664 parameters for 3 channels, without a classifier.

    Args:
        channels: Number of image channels.
        patch: Side of a patch in pixels.
        side: Side of the images that the position embeddings are made for, in pixels; for others
            they are interpolated.
        width: Number of features of a token.
        depth: Number of blocks.
        heads: Number of attention heads; they share the width.
        ratio: Width of a block's hidden layer over `width`.
    """

    places: ClassVar[dict[str, str]] = {"stem": "patch_embed.proj"}

    def __init__(
        self,
        channels: int,
        *,
        patch: int = 16,
        side: int = 224,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        self.patch, self.num_features = patch, width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._drop: tuple[float, torch.Generator] | None = None
        for weight in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The class token after the last norm."""
        return self.tokens(image)[:, 0]

    def tokens(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        """All tokens after the last norm: the class token, then the patches row by row.

        Raises:
            InputError: A side is no multiple of the patch: what is left over would not be seen.
        """
        return self.encode(self.embed(image))

    def embed(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        """The class token and the patches with their position embeddings: what block 1 reads."""
        h, w = image.shape[2:]
        if h % self.patch or w % self.patch:
            raise InputError(
                f"an image of {h} x {w} pixels cannot be cut into patches of {self.patch}",
                fix=f"set --view.crop (and the sides of --view.crops) to multiples of {self.patch}",
            )
        patches = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        start = self.cls_token.expand(len(image), -1, -1)
        return torch.cat([start, patches], 1) + positions(
            self.pos_embed, h // self.patch, w // self.patch
        )

    def encode(self, token_ntd: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """All blocks and the last norm on tokens from anywhere (an adapter, another network)."""
        keep = self._keep(len(token_ntd), token_ntd.device)
        for number, block in enumerate(self.blocks):
            token_ntd = block(token_ntd, None if keep is None else keep[number])
        return self.norm(token_ntd)

    def _keep(self, n: int, device: torch.device) -> Float[Tensor, "depth 2 n 1 1"] | None:
        """Factors of the residual branches: 0, or 1 / (1 - rate); rates rise linearly from 0."""
        if self._drop is None or not self.training:
            return None
        rate, generator = self._drop
        rates = torch.linspace(0, rate, len(self.blocks))[:, None, None]
        drawn = torch.rand(len(self.blocks), 2, n, generator=generator)
        return ((drawn >= rates) / (1 - rates))[..., None, None].to(device)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": linear(width, ratio * width), "fc2": linear(ratio * width, width)}
        )

    def forward(
        self, x: Float[Tensor, "n t d"], keep: Float[Tensor, "2 n 1 1"] | None = None
    ) -> Float[Tensor, "n t d"]:
        """Tokens to tokens; `keep` multiplies the two branches of each image."""
        x = x + scaled(self.attn(self.norm1(x)), keep, 0)
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + scaled(self.mlp["fc2"](hidden), keep, 1)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(width / heads)) V in each head, then a linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Tokens to tokens."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear layer with DeiT's initial weights: truncated normal (0.02), no offset."""
    layer = nn.Linear(d_in, d_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def scaled(branch: Tensor, keep: Tensor | None, number: int) -> Tensor:
    """A residual branch times its images' factors."""
    return branch if keep is None else branch * keep[number].to(branch.dtype)


def positions(embedding: Float[Tensor, "1 t d"], rows: int, columns: int) -> Float[Tensor, "1 u d"]:
    """Position embeddings for another grid of patches (bicubic); the class token's is kept.

    >>> same = torch.arange(10.0).reshape(1, 5, 2)  # a class token and 2 x 2 patches
    >>> positions(same, 2, 2) is same, positions(same, 3, 1).shape
    (True, torch.Size([1, 4, 2]))
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if (rows, columns) == (side, side):
        return embedding
    grid = embedding[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False)
    grid = grid.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :1], grid], 1)


@contextmanager
def dropping(backbone: nn.Module, rate: float, generator: torch.Generator) -> Iterator[None]:
    """Inside the block, vision transformers in train mode leave residual branches out at random.

    Other networks are left as they are.

    Args:
        backbone: A network with any number of vision transformers in it.
        rate: Of the last block; it rises linearly from 0 at the first.
        generator: What they draw from, on the CPU.
    """
    found = [module for module in backbone.modules() if isinstance(module, ViT)] if rate else []
    for vit in found:
        vit._drop = (rate, generator)
    try:
        yield
    finally:
        for vit in found:
            vit._drop = None
