"""A network in two parts: an encoder that somebody else trains, and a model of the task on top.

Fredin Haslum et al., "Bridging generalization gaps in high content imaging through online
self-supervised domain adaptation" (CODA), WACV 2024, https://arxiv.org/abs/2311.12623: the encoder
can be exchanged for one that has been adapted to another laboratory, the task model stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.nn.backbones import load_weights
from evenfield.nn.vit import ViT


class TwoPart(nn.Module):
    """Images (n, c, h, w) to features (n, d), through the tokens of a frozen encoder.

    Attributes:
        encoder: Always in eval mode and without gradient, whatever the rest does.
        task: Tokens (n, t, d) to features (n, d).
    """

    def __init__(self, network: nn.Module, task: nn.Module) -> None:
        super().__init__()
        self.encoder = FrozenEncoder(network)
        self.task = task

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features that a linear classifier reads."""
        return self.task(self.encoder(image))


class FrozenEncoder(nn.Module):
    """A network that is used as it is: in eval mode at every forward, without gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode: running statistics must not follow the task's images."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        """All tokens."""
        return tokens_of(self.network, image)


class FirstToken(nn.Module):
    """The class token (or the only one) as it is: a linear classifier follows at once."""

    def forward(self, token_ntd: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """The first token."""
        return token_ntd[:, 0]


class TaskTransformer(nn.Module):
    """A linear projector of every token, then a second transformer that reads tokens directly.

    Without patches, a class token or position embeddings of its own. Its blocks are like those of
    the encoder, and as many.

    Args:
        encoder: Whose sizes it takes; its weights are not shared.
        weights: A local file of published weights (DeiT's or timm's) for blocks and norm; None =
            fresh ones, from torch's current random state.

    Raises:
        InputError: The encoder gives no tokens, or the file does not fit.
    """

    def __init__(self, encoder: nn.Module, weights: Path | None = None) -> None:
        super().__init__()
        if not isinstance(encoder, ViT):
            raise InputError(
                f"a transformer on top of a {type(encoder).__name__}, which gives no tokens",
                fix="give --options.task linear, or a vision transformer as --train.backbone",
            )
        patches: Any = encoder.patch_embed["proj"]
        whole = ViT(patches.in_channels, **sizes(encoder))
        if weights is not None:
            load_weights(whole, weights, patches.in_channels)
        self.project = nn.Linear(encoder.num_features, encoder.num_features)
        self.blocks, self.norm = whole.blocks, whole.norm

    def forward(self, token_ntd: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """norm(blocks(P token)) at the class token."""
        token_ntd = self.project(token_ntd)
        for block in self.blocks:
            token_ntd = block(token_ntd)
        return self.norm(token_ntd)[:, 0]


def sizes(vit: ViT) -> dict[str, Any]:
    """What a vision transformer of the same sizes is made with.

    >>> small = ViT(1, patch=4, side=16, width=8, depth=2, heads=2, ratio=3)
    >>> sizes(small)
    {'patch': 4, 'side': 16, 'width': 8, 'depth': 2, 'heads': 2, 'ratio': 3}
    """
    first: Any = vit.blocks[0]
    grid = round((vit.pos_embed.shape[1] - 1) ** 0.5)
    return {
        "patch": vit.patch,
        "side": grid * vit.patch,
        "width": vit.num_features,
        "depth": len(vit.blocks),
        "heads": first.attn.heads,
        "ratio": first.mlp["fc1"].out_features // vit.num_features,
    }


def tokens_of(network: nn.Module, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
    """All tokens of a vision transformer; of another network its features as the only one."""
    return network.tokens(image) if isinstance(network, ViT) else network(image)[:, None]
