"""What several test files share: a tiny network, a plain training loop."""

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import nn

from evenfield.data.simulate import simulate, tiny_screen
from evenfield.data.store import Screen
from evenfield.methods.base import Method
from evenfield.types import Batch, Losses


def tiny_backbone(channels: int = 3, d: int = 4) -> nn.Sequential:
    """Two convolutions with BatchNorm: (n, channels, h, w) to (n, d); seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, d, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(d),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    net.places = {"stem": "2", "1": "3", "2": "5"}  # type: ignore[assignment]
    return net


def adam_steps(method: Method, batches: Iterable[Batch], *, lr: float) -> Iterator[Losses]:
    """Plain Adam, one batch a step; yields the losses before each step."""
    batches = list(batches)
    optimiser = torch.optim.Adam(method.groups(), lr=lr)
    for number, batch in enumerate(batches):
        progress = number / len(batches)
        losses = method.losses(batch, progress=progress)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(progress)
        yield losses


@pytest.fixture
def backbone() -> nn.Sequential:
    return tiny_backbone()


@pytest.fixture
def make_backbone() -> Callable[..., nn.Sequential]:
    return tiny_backbone


@pytest.fixture
def steps() -> Callable[..., Iterator[Losses]]:
    return adam_steps


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """A simulated screen: 4 batches (b01 to b04) of 2 plates, 288 fields of 32 pixels."""
    folder = tmp_path_factory.mktemp("simulated") / "tiny"
    simulate(tiny_screen(), folder)
    return Screen.open(folder)
