"""What the baselines share: the method and ERM from the same weights, trained side by side."""

import torch

from evenfield.data.fake import fake_batch
from evenfield.methods import METHODS
from evenfield.types import Needs

TWO = Needs(domains=2)


def build(name, backbone, **switches):
    """A method on a backbone, with a seeded head."""
    cls = METHODS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.Config(**switches), backbone=backbone, d=4, k=3, c=3)


def assert_follows_erm(name, make_backbone, steps, *, num_domains=2, **switches):
    """Step by step the predictor is that of ERM."""
    batches = [fake_batch(seed=seed, num_contexts=num_domains) for seed in range(4)]
    method, erm = build(name, make_backbone(), **switches), build("erm", make_backbone())
    for ours, theirs in zip(
        steps(method, batches, lr=1e-3), steps(erm, batches, lr=1e-3), strict=True
    ):
        torch.testing.assert_close(ours.parts["risk"], theirs.parts["risk"], rtol=1e-5, atol=1e-6)
        for p, q in zip(
            method.predictor.state_dict().values(),
            erm.predictor.state_dict().values(),
            strict=True,
        ):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def generator(seed):
    return torch.Generator().manual_seed(seed)
