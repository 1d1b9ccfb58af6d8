"""LAME and T3A against their equations, their limits, and whether they do their job."""

import pytest
import torch
import torch.nn.functional as F
from adapter_cases import K, context_of, images, predictor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evenfield.adapt import ADAPTERS
from evenfield.adapt.lame import Lame, Links, agreement, nearest, solve
from evenfield.adapt.t3a import T3A, prototypes
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.predictor import Predictor
from evenfield.types import Context


def lame(**config: object) -> Lame:
    return Lame(Lame.Config(**config))  # type: ignore[arg-type]


def t3a(**config: object) -> T3A:
    return T3A(T3A.Config(**config))  # type: ignore[arg-type]


def draw(n: int, d: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng, dtype=torch.float64)


def letters(p: Tensor, f: Tensor, k: int, rounds: int) -> Tensor:
    """Y <- softmax(log p + W Y) with a dense W of the k nearest neighbours without self."""
    n = len(f)
    unit = f / f.norm(dim=1, keepdim=True)
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        similar = sorted((j for j in range(n) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        w[i, similar[:k]] = 1
    y = p.clone()
    for _ in range(rounds):
        z = p.log() + w @ y
        y = z.exp() / z.exp().sum(1, keepdim=True)
    return y


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 9), st.integers(0, 6), st.integers(0, 5), st.integers(0, 99))
def test_lame_letter_by_letter(n: int, k: int, rounds: int, seed: int) -> None:
    f, log_p = draw(n, 4, seed), draw(n, 3, seed + 100).log_softmax(1)
    links = nearest(f, f, k)
    y = solve(log_p, links, max_rounds=rounds, tolerance=-1.0)
    torch.testing.assert_close(y, letters(log_p.exp(), f, k, rounds))
    torch.testing.assert_close(y.sum(1), torch.ones(n, dtype=torch.float64))


def test_lame_without_links_returns_p() -> None:
    log_p = draw(6, 3, 0).log_softmax(1)
    none = Links(torch.zeros(6, 0, dtype=torch.long), torch.zeros(6, 0, dtype=torch.bool))
    torch.testing.assert_close(solve(log_p, none), log_p.exp())
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    source = ADAPTERS["source"]().fit(model, context).predict(x)
    torch.testing.assert_close(lame(neighbours=0).fit(model, context).predict(x), source)


def test_lame_is_permutation_equivariant() -> None:
    f, log_p = draw(9, 4, 1), draw(9, 3, 2).log_softmax(1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    y = solve(log_p, nearest(f, f, 3))
    torch.testing.assert_close(solve(log_p[order], nearest(f[order], f[order], 3)), y[order])


def test_lame_neighbours_leave_out_the_image_itself_and_nothing_else() -> None:
    f = draw(6, 4, 3)
    itself = nearest(f * 2.0, f, 2)  # the same image: scale does not matter
    for row in range(6):
        assert row not in itself.index[row][itself.counts[row]].tolist()
    assert itself.counts.sum(1).tolist() == [2] * 6
    twins = nearest(torch.cat([f, f]), torch.cat([f, f]), 1)
    assert twins.counts.sum(1).tolist() == [1] * 12  # of two equal images one is a neighbour
    assert nearest(draw(2, 4, 9), f, 2).counts.sum(1).tolist() == [2, 2]


def test_lame_gives_context_images_what_the_joint_solution_gave_them() -> None:
    model, context = predictor(), context_of(14, 4)
    adapted = lame(max_rounds=500, tolerance=0.0).fit(model, context)
    features = model.eval().features(context.perturbed).detach().double()
    p = model(context.perturbed).softmax(1).detach().double()
    joint = letters(p, features, 5, 500)
    torch.testing.assert_close(
        adapted.predict(context.perturbed).exp().double(), joint, atol=1e-4, rtol=0
    )


def test_lame_new_image_is_softmax_of_its_own_and_its_neighbours() -> None:
    model, context, x = predictor(), context_of(12, 20), images(4, seed=8)
    adapted = lame().fit(model, context)
    unit = F.normalize(model.eval().features(x).detach(), dim=1)
    top = (unit.double() @ adapted.memory["unit_feature"].double().T).topk(5).indices
    z = model(x).detach().log_softmax(1) + adapted.memory["assignment"][top].sum(1)
    torch.testing.assert_close(adapted.predict(x), z.float().log_softmax(1), atol=1e-5, rtol=0)


def test_lame_does_its_job_when_few_classes_are_there() -> None:
    """Clusters with unsure outputs: neighbours outvote an image that sits on the wrong side."""
    label = torch.arange(60) % 2
    rng = torch.Generator().manual_seed(0)
    f = 4 * F.one_hot(label, 5).double() + draw(60, 5, 4) * 0.5
    logits = 1.0 * F.one_hot(label, 3).double()
    logits += torch.randn(60, 3, generator=rng, dtype=torch.float64)
    log_p = logits.log_softmax(1)
    before = (log_p.argmax(1) == label).double().mean()
    after = (solve(log_p, nearest(f, f, 5)).argmax(1) == label).double().mean()
    assert before < 0.8
    assert after > 0.95


@pytest.mark.parametrize("name", ["lame", "t3a"])
def test_without_perturbed_images_outputs_stay(name: str) -> None:
    model, context, x = predictor(), context_of(0, 20), images(5, seed=8)
    with pytest.warns(EvenfieldWarning, match="no perturbed image"):
        adapted = ADAPTERS[name]().fit(model, context)
    source = ADAPTERS["source"]().fit(model, context).predict(x)
    assert torch.equal(adapted.predict(x), source)


@pytest.mark.parametrize("name", ["lame", "t3a"])
def test_they_stand_on_the_chosen_statistics(name: str) -> None:
    model, context = predictor(), context_of(12, 20)
    config = ADAPTERS[name].Config(statistics="controls")
    adapted = ADAPTERS[name](config).fit(model, context)
    controls = ADAPTERS["controls"]().fit(model, context)
    for key, value in controls.model.state_dict().items():
        assert torch.equal(value, adapted.model.state_dict()[key])


@pytest.mark.parametrize("name", ["lame", "t3a"])
def test_features_do_not_depend_on_the_chunk(name: str) -> None:
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    small, large = (
        ADAPTERS[name](ADAPTERS[name].Config(chunk=chunk)).fit(model, context).predict(x)
        for chunk in (5, 512)
    )
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-5)


def t3a_letters(f: Tensor, head: Tensor, bias: Tensor, keep: int | None) -> Tensor:
    supports: list[list[tuple[float, Tensor]]] = [[] for _ in head]
    for row in torch.cat([head, f]):
        z = head @ row + bias
        p = z.exp() / z.exp().sum()
        supports[int(p.argmax())].append((float(-(p * p.log()).sum()), row / row.norm()))
    centres = []
    for code, mine in enumerate(supports):
        kept = [row for _, row in sorted(mine, key=lambda pair: pair[0])[:keep]]
        total = torch.stack(kept).sum(0) if kept else head[code]
        centres.append(total / total.norm())
    return torch.stack(centres)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 12), st.sampled_from([1, 2, 5, None]), st.integers(0, 99))
def test_t3a_letter_by_letter(n: int, keep: int | None, seed: int) -> None:
    f, head, bias = draw(n, 4, seed), draw(3, 4, seed + 1), draw(1, 3, seed + 2)[0]
    torch.testing.assert_close(prototypes(f, head, bias, keep), t3a_letters(f, head, bias, keep))


def test_t3a_without_supports_is_the_row_normalised_head() -> None:
    head = torch.eye(3, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None]
    centres = prototypes(torch.empty(0, 5), head, None, 20)
    torch.testing.assert_close(centres, F.normalize(head, dim=1))


def test_t3a_all_keeps_everything() -> None:
    f, head, bias = draw(12, 4, 1), draw(3, 4, 2), torch.zeros(3, dtype=torch.float64)
    everything = prototypes(f, head, bias, None)
    torch.testing.assert_close(prototypes(f, head, bias, 15), everything)
    assert (prototypes(f, head, bias, 1) - everything).abs().max() > 1e-3


def test_t3a_does_its_job_when_features_are_rotated_a_little() -> None:
    """Classes moved together on the new plate: prototypes move along, the head does not."""
    label = torch.arange(90) % 3
    head = 3 * torch.eye(3, 6, dtype=torch.float64)
    shift = torch.tensor([1.6, 0, 0, 0, 0, 0], dtype=torch.float64)
    f = 2 * F.one_hot(label, 6).double() + shift + 0.4 * draw(90, 6, 5)
    f[:, 3:] += 2 * F.one_hot(label, 3).double()  # what the head does not read
    bias = torch.zeros(3, dtype=torch.float64)
    before = ((f @ head.T).argmax(1) == label).double().mean()
    after = ((f @ prototypes(f, head, bias, 20).T).argmax(1) == label).double().mean()
    assert after > before + 0.02


def test_t3a_predicts_with_the_prototypes() -> None:
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    adapted = t3a(keep=None).fit(model, context)
    f = model.eval().features(context.perturbed).detach()
    centres = t3a_letters(f, model.head.weight.detach(), model.head.bias.detach(), None)
    expected = (model.features(x) @ centres.T).log_softmax(1).detach()
    torch.testing.assert_close(adapted.predict(x), expected, atol=1e-5, rtol=1e-5)
    assert set(adapted.state()) == {"memory.prototype"}


def test_t3a_needs_a_linear_head() -> None:
    model = Predictor(predictor().backbone, nn.Sequential(nn.Linear(8, K)))
    with pytest.raises(InputError, match="linear head"):
        t3a().fit(model, context_of(4, 4))


class Conditioned(Predictor):
    """A predictor with a rule of its own: it adds the mean of the context to its logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self.register_buffer("offset", None)

    def features(self, image: Tensor) -> Tensor:
        f = super().features(image)
        return f if self.offset is None else f + self.offset

    def condition(self, context: Context) -> "Conditioned":
        other = Conditioned(self.backbone, self.head)
        other.offset = context.image.mean()
        return other


def test_condition_calls_the_models_own_rule() -> None:
    plain = predictor()
    model, context, x = Conditioned(plain.backbone, plain.head), context_of(4, 4), images(5, seed=8)
    adapted = ADAPTERS["condition"]().fit(model, context)
    with torch.no_grad():
        expected = model.head(plain.eval().features(x) + context.image.mean()).log_softmax(1)
    torch.testing.assert_close(adapted.predict(x), expected)
    assert set(adapted.state()) == {"model.offset"}
    restored = ADAPTERS["condition"]().restore(model, adapted.state())
    assert torch.equal(restored.predict(x), adapted.predict(x))
    assert model.offset is None


@pytest.mark.parametrize(("shape", "text"), [((4, 4), "no rule"), ((0, 0), "no image")])
def test_condition_falls_back_to_the_source(shape: tuple[int, int], text: str) -> None:
    model, context, x = predictor(), context_of(*shape), images(5, seed=8)
    with pytest.warns(EvenfieldWarning, match=text):
        adapted = ADAPTERS["condition"]().fit(model, context)
    assert torch.equal(adapted.predict(x), ADAPTERS["source"]().fit(model, context).predict(x))


def test_agreement_counts_neighbours_only() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    links = Links(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[True, True], [True, False]]))
    assert agreement(y, links).tolist() == [[1.0, 1.0], [0.0, 1.0]]
