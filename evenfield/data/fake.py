"""Small batches that a method can learn from: the food of tests, made in a millisecond."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.seeds import generator
from evenfield.types import UNKNOWN, Batch, Needs


def fake_batch(
    needs: Needs | None = None,
    *,
    seed: int = 0,
    n: int = 24,
    c: int = 3,
    side: int = 16,
    k: int = 3,
    num_contexts: int | None = None,
) -> Batch:
    """A batch that holds what `needs` asks for, with classes to be learned.

    A class is a stripe pattern and an offset, the same for every seed; a context (with its domain)
    is a gain and a bias for each channel, drawn by the seed; then there is noise. Where
    `needs.unit` asks for pixels in 0 to 1, a sigmoid puts them there. A view is the image with some
    noise (a local one, a window of it); a partner shows the same class in the next context.

    Args:
        needs: Of a method; none asks for nothing.
        seed: Of contexts and noise.
        n: Number of perturbed images, in turn of the k classes; half as many controls are added
            where they are needed.
        c: Number of channels.
        side: Height and width in pixels; `needs.smallest_side` if that is larger.
        k: Number of classes.
        num_contexts: Number of contexts; none for 1 if `needs.one_context`, else 2 or as many as
            there must be domains. A context is a domain here.
    """
    needs = needs or Needs()
    side = max(side, needs.smallest_side)
    if num_contexts is None:
        num_contexts = max(1 if needs.one_context else 2, needs.domains)
    num_controls = max(num_contexts, n // 2) if needs.controls else 0
    index = torch.arange(n + num_controls)
    is_control = index >= n
    label = torch.where(is_control, UNKNOWN, index % k)
    # Classes go round inside each context, so that none is known by its context alone.
    context = torch.where(is_control, index - n, index // k) % num_contexts
    random = generator(seed, "fake batch")
    gain = (0.4 * torch.randn(num_contexts, c, 1, 1, generator=random)).exp()
    bias = 0.5 * torch.randn(num_contexts, c, 1, 1, generator=random)
    noise = 0.3 * torch.randn(len(index), c, side, side, generator=random)
    clean = torch.cat([patterns(k, c, side), torch.zeros(1, c, side, side)])[label]
    image = (clean + noise) * gain[context] + bias[context]
    image = image.sigmoid() if needs.unit else image
    batch = Batch(
        image=image,
        label=label,
        is_control=is_control,
        context=context,
        domain=context.clone(),
        row=index,
        seed=seed,
    )
    return _with_views(batch, needs, k) if needs.views else batch


def _with_views(batch: Batch, needs: Needs, k: int) -> Batch:
    """The batch with two global views of each item, and six local ones where they are wanted."""
    n, side = len(batch), batch.image.shape[2]
    random = generator(batch.seed, "fake views")
    later = torch.roll(torch.arange(n), -k)  # the same class, one context on
    partner = torch.where(batch.label[later] == batch.label, later, torch.arange(n))
    partner = partner if needs.pairs else torch.arange(n)

    def noisy(image: Tensor, views: int) -> Tensor:
        noise = torch.randn(n, views, *image.shape[1:], generator=random)
        return image[:, None] + 0.1 * noise

    both = torch.cat([noisy(batch.image, 1), noisy(batch.image[partner], 1)], 1)
    small = max(needs.smallest_side, side // 2)
    start = (side - small) // 2
    window = (slice(None), slice(None), slice(start, start + small), slice(start, start + small))
    parts = [noisy(x[window], 3) for x in (batch.image, batch.image[partner])]
    return replace(
        batch,
        global_views=both,
        local_views=torch.cat(parts, 1) if needs.local_views else None,
        partner=batch.row[partner],
        partner_domain=batch.domain[partner],
    )


def patterns(k: int, c: int, side: int) -> Float[Tensor, "k c side side"]:
    """Stripes whose direction, period and offset say the class, shifted from channel to channel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = []
    for label in range(k):
        angle, period = math.pi * label / k, 4 + 2 * (label % 3)
        phase = 2 * math.pi / period * (math.cos(angle) * x + math.sin(angle) * y)
        stripes = [torch.sin(phase + channel) for channel in range(c)]
        images.append(torch.stack(stripes) + 0.5 * (label - (k - 1) / 2))
    return torch.stack(images)
