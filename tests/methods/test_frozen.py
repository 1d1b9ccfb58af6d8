"""Step 2 of CODA: a task model learns on an encoder that stays as it is."""

import copy
from dataclasses import replace

import pytest
import torch

from evenfield.config import Crops, RunConfig, SplitConfig, TrainConfig, View
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.nn.task_model import TaskTransformer, tokens_of
from evenfield.nn.vit import ViT
from evenfield.train import checkpoint
from evenfield.train.run import fit


def vit(seed=0, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViT(3, **{"patch": 4, "side": 16, "width": 16, "depth": 2, "heads": 4} | sizes)


def build(backbone, d, **options):
    cls = METHODS["frozen"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return cls(cls.Config(**options), backbone=backbone, d=d, k=3, c=3)


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_the_encoder_is_in_eval_mode_and_stays_bit_for_bit(make_backbone, steps, kind):
    network, d = (vit(), 16) if kind == "vit" else (make_backbone(3), 4)
    before = copy.deepcopy(network.state_dict())
    method = build(network, d, task="transformer" if kind == "vit" else "linear")
    modes = []
    network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    if kind == "vit":
        network.blocks[0].register_forward_pre_hook(lambda m, _: modes.append(m.training))
    method.train()
    list(steps(method, [fake_batch(n=12)] * 3, lr=1e-2))
    assert modes
    assert not any(modes)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def test_projector_second_transformer_and_head_all_get_gradients():
    method = build(vit(), 16)
    method.losses(fake_batch(n=12), progress=0.0).total.backward()
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    parts = {name.rpartition("task.")[2].split(".")[0] for name in named}
    assert parts == {"project", "blocks", "norm", "predictor"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())


def test_logits_are_head_of_the_class_token_of_m_of_p_of_all_tokens():
    encoder, image = vit(), torch.randn(2, 3, 16, 16)
    method = build(encoder, 16).eval()
    task = method.predictor.backbone.task
    tokens = encoder.tokens(image)
    assert tokens.shape == (2, 17, 16)
    x = tokens @ task.project.weight.T + task.project.bias
    for block in task.blocks:
        x = block(x)
    features = task.norm(x)[:, 0]
    logits = features @ method.predictor.head.weight.T + method.predictor.head.bias
    torch.testing.assert_close(method.predictor(image), logits)


def test_m_is_a_transformer_whose_patches_class_token_and_positions_are_bypassed(tmp_path):
    """On published weights, with the identity as the projector."""
    encoder, published = vit(), vit(seed=5)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    m = TaskTransformer(encoder, tmp_path / "published.pth")
    torch.nn.init.eye_(m.project.weight)
    torch.nn.init.zeros_(m.project.bias)
    tokens = torch.randn(3, 10, 16)
    torch.testing.assert_close(m(tokens), published.encode(tokens)[:, 0])
    assert len(m.blocks) == len(encoder.blocks)
    assert not [name for name, _ in m.named_parameters() if "embed" in name or "cls" in name]


def test_a_network_without_tokens_takes_the_linear_layer_only(make_backbone):
    with pytest.raises(InputError, match="gives no tokens") as error:
        build(make_backbone(3), 4)
    assert "--options.task linear" in error.value.fix
    image = torch.randn(2, 3, 16, 16)
    method = build(make_backbone(3), 4, task="linear").eval()
    network = make_backbone(3).eval()
    assert tokens_of(network, image).shape == (2, 1, 4)
    torch.testing.assert_close(method.predictor.features(image), network(image))


def test_the_encoder_of_a_run_is_taken_over(tiny, tmp_path):
    split = SplitConfig(test=("b04",), select_on="wells")
    train = TrainConfig(num_perturbed=8, accumulate=1, epochs=1)
    small = {"num_outputs": 12, "hidden": 16, "bottleneck": 8}
    view = View(crops=Crops(global_side=16, local_side=8, num_local=2))
    first = RunConfig(method="dino", options=small, view=view, split=split, train=train)
    dino = fit(tiny, first, tmp_path / "dino")
    teacher = dino.method.networks.teacher.state_dict()
    second = replace(
        first,
        method="frozen",
        options={"task": "linear"},
        train=replace(train, weights=tmp_path / "dino"),
    )
    fit(tiny, second, tmp_path / "frozen")
    model = checkpoint.open_model(tmp_path / "frozen")
    ours = model.method.predictor.backbone.encoder.network.state_dict()
    assert ours.keys() == teacher.keys()
    assert all(torch.equal(ours[name], teacher[name]) for name in teacher)
    other = replace(second, train=replace(second.train, backbone="resnet18"))
    with pytest.raises(InputError, match="do not fit"):
        fit(tiny, other, tmp_path / "other")
