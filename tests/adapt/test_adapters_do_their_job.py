"""A net trained on many plates meets new ones: which statistics serve, and when.

The toy of `docs/adaptation.md`: class = texture + channel offset, controls carry none, a plate is a
random gain and bias per channel.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evenfield.adapt import ADAPTERS
from evenfield.errors import EvenfieldWarning
from evenfield.nn.predictor import Predictor
from evenfield.seeds import generator
from evenfield.types import Context

K, SIDE, SHIFT = 8, 12, 1.2


class Toy:
    """Draws images of a class on a plate."""

    def __init__(self) -> None:
        rng = generator(0, "toy")
        self.texture = torch.randn(K, 3, SIDE, SIDE, generator=rng)
        self.texture -= self.texture.mean((2, 3), keepdim=True)
        self.offset = 0.5 * torch.randn(K, 3, 1, 1, generator=rng)
        self.offset -= self.offset.mean(0)

    def images(self, label: Tensor, plate: int, draw: int) -> Tensor:
        """(n, 3, side, side); label -1 is a control."""
        rng = generator(plate, "plate")
        gain = torch.exp(0.3 * SHIFT * torch.randn(3, 1, 1, generator=rng))
        bias = SHIFT * torch.randn(3, 1, 1, generator=rng)
        noise = generator(draw, "noise", plate)
        x = 1.0 * torch.randn(len(label), 3, SIDE, SIDE, generator=noise)
        known = label >= 0
        x[known] += 0.3 * self.texture[label[known]] + self.offset[label[known]]
        return gain * x + bias


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module")
def erm(toy: Toy) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for c_in, c_out in [(3, 12), (12, 16), (16, 32)]:
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        model = Predictor(nn.Sequential(*layers, nn.Flatten()), nn.Linear(32, K))
    adam = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(100):
        rng = generator(step, "batch")
        plates = torch.randint(0, 40, (8,), generator=rng).tolist()
        label = torch.randint(0, K, (8, 8), generator=rng)
        x = torch.cat([toy.images(y, plate, step) for y, plate in zip(label, plates, strict=True)])
        adam.zero_grad()
        F.cross_entropy(model(x), label.flatten()).backward()
        adam.step()
    return model.eval()


def accuracy(toy: Toy, model: Predictor, name: str, shares: str, num_images: int) -> float:
    """Mean over new plates with a context of `num_images` images and 64 controls."""
    right = total = 0
    for plate in range(100, 112):
        for draw in range(1 if num_images > 1 else 4):
            rng = generator(plate, "labels", draw)
            if shares == "balanced":
                label = torch.randperm(max(num_images, K), generator=rng)[:num_images] % K
            else:  # one class dominates: what Dirichlet(0.01) gives
                label = torch.full((num_images,), int(torch.randint(0, K, (1,), generator=rng)))
            x = toy.images(label, plate, 1000 + draw)
            controls = toy.images(torch.full((64,), -1), plate, 2000)
            context = Context(
                image=torch.cat([x, controls]),
                is_control=torch.arange(num_images + 64) >= num_images,
            )
            predicted = ADAPTERS[name]().fit(model, context).predict(x).argmax(1)
            right += int((predicted == label).sum())
            total += num_images
    return right / total


def test_balanced_plates(toy: Toy, erm: Predictor) -> None:
    source = accuracy(toy, erm, "source", "balanced", 32)
    for name in ("batch", "union", "controls"):
        assert accuracy(toy, erm, name, "balanced", 32) > source + 0.1, name


def test_one_class_on_the_plate(toy: Toy, erm: Predictor) -> None:
    batch = accuracy(toy, erm, "batch", "one class", 32)
    for name in ("union", "controls"):
        assert accuracy(toy, erm, name, "one class", 32) > batch + 0.1, name


@pytest.mark.filterwarnings(f"ignore::{EvenfieldWarning.__module__}.EvenfieldWarning")
def test_one_image_on_the_plate(toy: Toy, erm: Predictor) -> None:
    batch = accuracy(toy, erm, "batch", "balanced", 1)
    for name in ("union", "controls"):
        assert accuracy(toy, erm, name, "balanced", 1) > batch + 0.1, name
