import pytest
import torch

from evenfield.data.fake import fake_batch
from evenfield.types import UNKNOWN, Needs


@pytest.mark.parametrize(
    "needs",
    [
        Needs(),
        Needs(domains=4),
        Needs(one_context=True),
        Needs(one_context=True, controls=True),
        Needs(controls=True, domains=3, smallest_side=32),
    ],
)
def test_it_holds_what_is_needed(needs):
    batch = fake_batch(needs)
    assert len(batch.domain.unique()) >= needs.domains
    assert len(batch.context.unique()) == 1 or not needs.one_context
    assert batch.is_control.any() == needs.controls
    assert min(batch.image.shape[2:]) >= needs.smallest_side
    assert (batch.label[batch.is_control] == UNKNOWN).all()
    for context in batch.context.unique():
        here = batch[batch.context == context]
        assert set(here.label[~here.is_control].tolist()) == {0, 1, 2}
        assert here.is_control.any() == needs.controls


def test_seeds_change_the_context_and_not_the_classes():
    one, same, other = fake_batch(seed=1), fake_batch(seed=1), fake_batch(seed=2)
    assert torch.equal(one.image, same.image)
    assert not torch.equal(one.image, other.image)
    assert torch.equal(one.label, other.label)
