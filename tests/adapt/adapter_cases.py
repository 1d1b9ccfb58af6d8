"""A small network of each kind and contexts with a shift, for every test of this room."""

import torch
from torch import Tensor, nn

from evenfield.nn.predictor import Predictor
from evenfield.types import Context

K = 3


def images(num: int, *, seed: int = 0, offset: float = 1.5, c: int = 2) -> Tensor:
    """(n, c, 10, 10) images with a shift, each with its own brightness."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(num, c, 10, 10, generator=rng)
    return 1.7 * x + offset + torch.randn(num, c, 1, 1, generator=rng)


def context_of(num_perturbed: int, num_controls: int, *, seed: int = 0) -> Context:
    """Perturbed and controls in mixed order; controls are darker."""
    image = images(num_perturbed + num_controls, seed=seed)
    flags = torch.arange(num_perturbed + num_controls) < num_controls
    image[flags] -= 1.0
    order = torch.randperm(len(flags), generator=torch.Generator().manual_seed(seed))
    return Context(image=image[order], is_control=flags[order], name="P1")


def predictor(kind: str = "2d") -> Predictor:
    """A trained-looking predictor: running statistics, scale and shift are not the defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        stem = nn.Conv2d(2, 6, 3)
        if kind == "2d":
            tail = [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)]
            tail += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        elif kind == "1d":  # one value per image and channel: the degenerate layer of the issue
            tail = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8)]
            tail += [nn.BatchNorm1d(8), nn.ReLU()]
        elif kind == "3d":
            tail = [nn.Unflatten(1, (3, 2)), nn.BatchNorm3d(3), nn.ReLU()]
            tail += [nn.Conv3d(3, 8, (2, 3, 3)), nn.BatchNorm3d(8), nn.ReLU()]
            tail += [nn.AdaptiveAvgPool3d(1), nn.Flatten()]
        else:
            tail = [nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()]
            tail += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = Predictor(nn.Sequential(stem, *tail), nn.Linear(8, K))
        model.train()
        for step in range(4):
            model(images(16, seed=100 + step, offset=0.0))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model
