"""Changing features at a place, and going on from features that are known."""

import pytest
import torch

from evenfield.nn.backbones import build_backbone
from evenfield.nn.norm import normalising, union_rule
from evenfield.nn.places import changing, places, resuming


@pytest.mark.parametrize("name", ["cnn-small", "resnet18", "densenet121"])
def test_going_on_from_a_place_gives_what_the_whole_pass_gives(name):
    backbone, _ = build_backbone(name, 3)
    backbone.eval()
    image, other = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for place in ("stem", "2"):
        kept = []
        with torch.no_grad():
            with changing(backbone, {place: lambda x, kept=kept: (kept.append(x), x)[1]}):
                whole = backbone(image)
            with resuming(backbone, place, kept[0]):
                assert torch.equal(backbone(other), whole)  # the image plays no part any more
                with changing(backbone, {place: lambda x: x + 1}):
                    changed = backbone(other)
            with changing(backbone, {place: lambda x: x + 1}):
                assert torch.equal(backbone(image), changed)


def test_it_stands_in_for_the_module_and_for_what_stood_in_before(backbone):
    image, x = torch.randn(2, 3, 16, 16), torch.ones(2, 8, 8, 8)
    backbone.places = {"norm": "1"}
    with normalising(backbone, union_rule):
        patched = backbone[1].forward
        with resuming(backbone, "norm", x):
            assert backbone[1](image) is x
        assert backbone[1].forward is patched
    assert "forward" not in backbone[1].__dict__
    assert list(places(backbone)) == ["norm"]
