import math
from dataclasses import replace

import pytest
import torch
from gradients import PROBE, STUDENT, reached
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.methods.cdcl import image_of, moved, weighted
from evenfield.nn.redundancy import redundancy_full, redundancy_gram, standardised

SMALL = {"num_outputs": 12, "hidden": 16, "bottleneck": 8, "num_domains": 5}


def build(make_backbone, name="cdcl", **options):
    cls = METHODS[name]
    known = SMALL | options
    if name == "dino":
        known.pop("num_domains")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.Config(**known), backbone=make_backbone(3), d=4, k=3, c=3)


def pairs_batch(n=12, **fields):
    return fake_batch(METHODS["cdcl"].needs, n=n, **fields)


def doubled(batch):
    named = ("image", "global_views", "local_views")
    return replace(batch, **{name: getattr(batch, name).double() for name in named})


def normal(x):
    """BatchNorm of a matrix (list of rows) over its rows, letter by letter."""
    n = len(x)
    found = [[0.0] * len(x[0]) for _ in x]
    for c in range(len(x[0])):
        mean = sum(row[c] for row in x) / n
        variance = sum((row[c] - mean) ** 2 for row in x) / n
        for r in range(n):
            found[r][c] = (x[r][c] - mean) / math.sqrt(variance + 1e-5)
    return found


@pytest.mark.parametrize("compare", ["all", "across"])
def test_the_loss_equals_the_formula_written_out(make_backbone, compare):
    n, size = 6, 12
    method = build(make_backbone, compare=compare).double()
    batch = doubled(pairs_batch(n=n, num_contexts=2))
    method.centre.copy_(torch.randn(5, size, generator=torch.Generator().manual_seed(1)) * 0.1)
    t = method.networks.teach(batch.global_views)[1].tolist()
    s = method.networks.learn(batch.views).tolist()
    centre = method.centre.tolist()
    domain = [batch.domain.tolist(), batch.partner_domain.tolist()]
    assert domain[0] != domain[1]
    shows = [0, 1, 0, 0, 0, 1, 1, 1]
    pairs = [(k, j) for k in range(2) for j in range(8) if j != k]
    if compare == "across":
        pairs = [(k, j) for k, j in pairs if shows[j] != k]
    assert len(pairs) == {"all": 14, "across": 8}[compare]
    dino = bar = 0.0
    for k, j in pairs:
        u = [[(t[i][k][c] - centre[domain[k][i]][c]) / 0.07 for c in range(size)] for i in range(n)]
        v = [[s[i][j][c] / 0.1 for c in range(size)] for i in range(n)]
        for i in range(n):
            q = [math.exp(x) / sum(map(math.exp, u[i])) for x in u[i]]
            log_p = [x - math.log(sum(map(math.exp, v[i]))) for x in v[i]]
            dino -= sum(a * b for a, b in zip(q, log_p, strict=True)) / n
        a, b = normal(u), normal(v)
        m = [
            [sum(a[i][x] * b[i][y] for i in range(n)) / n for y in range(size)] for x in range(size)
        ]
        on = sum((m[x][x] - 1) ** 2 for x in range(size)) / size
        off = sum(m[x][y] ** 2 for x in range(size) for y in range(size) if x != y)
        bar += 0.05 * on + 0.95 * off / (size * (size - 1))
    dino, bar = dino / len(pairs) / math.log(size), bar / len(pairs) / (0.05 + 0.95 * 0.01)
    found = method.losses(batch, progress=0.5)
    assert found.parts["dino"].item() == pytest.approx(dino, rel=1e-9)
    assert found.parts["barlow"].item() == pytest.approx(bar, rel=1e-7)
    expected = 0.25 * dino + 0.75 * bar + found.parts["probe"].item()
    assert found.total.item() == pytest.approx(expected, rel=1e-9)


def test_one_domain_without_correlations_is_dino_over_log_k(make_backbone):
    """And its centre follows 0.9 / 0.1."""
    options = {"momentum_start": 0.9, "momentum_end": 1.0, "tau_warmup": 0.1, "freeze_last": 0.0}
    ours = build(make_backbone, w=0.0, **options)
    theirs = build(make_backbone, "dino", **options)
    ours.learn_design(torch.zeros(10, dtype=torch.int64))
    batch = pairs_batch()
    zero = torch.zeros_like(batch.domain)
    batch = replace(batch, domain=zero, partner_domain=zero)
    for progress in (0.0, 0.3, 0.6):
        one, two = (m.losses(batch, progress=progress) for m in (ours, theirs))
        torch.testing.assert_close(one.parts["dino"], two.parts["dino"] / math.log(12))
        for method in (ours, theirs):
            method.after_step(progress)
        torch.testing.assert_close(ours.centre[0], theirs.centre)
    assert theirs.centre.abs().sum() > 0
    assert torch.equal(ours.centre[1:], torch.zeros(4, 12))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_centres_move_by_the_formula(seed, clamp):
    g = torch.Generator().manual_seed(seed)
    rows, size, d = int(torch.randint(1, 20, (), generator=g)), 4, 5
    centre = torch.randn(d, size, dtype=torch.float64, generator=g)
    t = torch.randn(rows, size, dtype=torch.float64, generator=g)
    domain = torch.randint(0, d, (rows,), generator=g)
    share = torch.rand(d, dtype=torch.float64, generator=g).square()
    share = share / share.sum()
    found = moved(centre, t, domain, share, momentum=0.9, clamp=clamp)
    for code in range(d):
        own = t[domain == code]
        if not len(own):
            assert torch.equal(found[code], centre[code])
            continue
        w = len(own) / rows / share[code]
        alpha = min(1.0, 0.1 * w) if clamp else 0.1 * w
        expected = (1 - alpha) * centre[code] + alpha * own.mean(0)
        torch.testing.assert_close(found[code], expected)


def test_equal_shares_give_plain_momentum_and_a_rare_domain_is_clamped():
    centre, t = torch.ones(3, 2), torch.zeros(4, 2)
    domain = torch.tensor([0, 0, 1, 1])
    even = moved(centre, t, domain, torch.tensor([0.5, 0.5, 0.0]), momentum=0.9, clamp=True)
    torch.testing.assert_close(even, torch.tensor([[0.9, 0.9], [0.9, 0.9], [1.0, 1.0]]))
    rare = torch.tensor([0.01, 0.98, 0.01])  # domain 0: 50 times its share, alpha = 5
    clamped = moved(centre, t, domain, rare, momentum=0.9, clamp=True)
    assert torch.equal(clamped[0], torch.zeros(2))
    released = moved(centre, t, domain, rare, momentum=0.9, clamp=False)
    torch.testing.assert_close(released[0], torch.full((2,), -4.0))


def test_untold_shares_are_those_of_the_batch_and_swapped_codes_swap_the_centres(make_backbone):
    batch = pairs_batch(num_contexts=2)
    swapped = replace(batch, domain=1 - batch.domain, partner_domain=1 - batch.partner_domain)
    one, two = build(make_backbone), build(make_backbone)
    for method, part in ((one, batch), (two, swapped)):
        method.losses(part, progress=0)
        method.after_step(0)
    torch.testing.assert_close(one.centre[[1, 0]], two.centre[:2])
    domain = torch.stack([batch.domain, batch.partner_domain], 1)
    fresh = build(make_backbone)
    t = fresh.networks.teach(batch.global_views)[1]
    torch.testing.assert_close(one.centre[0], 0.1 * t[domain == 0].mean(0))


def test_a_constant_centre_changes_nothing_and_a_common_one_only_the_dino_part(make_backbone):
    """Softmax forgets a shift of the row, BatchNorm a shift of the column."""
    method, batch = build(make_backbone).double(), doubled(pairs_batch(num_contexts=2))
    plain = method.losses(batch, progress=0.5).parts
    method.centre.fill_(0.3)
    shifted = method.losses(batch, progress=0.5).parts
    for name in ("dino", "barlow"):
        torch.testing.assert_close(shifted[name], plain[name], rtol=1e-9, atol=1e-9)
    method.centre.copy_(torch.linspace(-0.3, 0.3, 12).expand(5, 12))
    common = method.losses(batch, progress=0.5).parts
    torch.testing.assert_close(common["barlow"], plain["barlow"], rtol=1e-9, atol=1e-9)
    assert abs(common["dino"] - plain["dino"]) > 1e-3


@pytest.mark.parametrize(("n", "size"), [(5, 40), (40, 6)])
def test_gram_equals_full(n, size):
    a, b = (
        torch.randn(n, 2, size, dtype=torch.float64),
        torch.randn(n, 8, size, dtype=torch.float64),
    )
    for one, two in zip(redundancy_gram(a, b), redundancy_full(a, b), strict=True):
        assert one.shape == (2, 8)
        torch.testing.assert_close(one, two)
    a, b = a.float(), b.float()
    for one, two in zip(redundancy_gram(a, b), redundancy_full(a, b), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "expected"), [(100, 1.010), (92, 1.025)])
def test_independent_outputs_give_the_expected_correlations(n, expected):
    g = torch.Generator().manual_seed(0)
    a, b = (standardised(torch.randn(n, 4, 300, generator=g)) for _ in range(2))
    on, off = redundancy_gram(a, b)
    assert on.mean().item() == pytest.approx(1 + 1 / (n - 1), rel=0.01)
    assert off.mean().item() == pytest.approx(1 / (n - 1), rel=0.02)
    assert weighted(on.mean(), off.mean(), 0.95).item() == pytest.approx(expected, abs=0.01)


def test_equal_inputs_have_no_on_diagonal_loss():
    a = standardised(torch.randn(50, 1, 30))
    assert redundancy_gram(a, a).on.item() < 1e-6
    assert redundancy_full(a, a).off.item() > 0


def test_which_views_are_compared(make_backbone):
    assert image_of(8, 8).tolist() == [0, 1, 0, 0, 0, 1, 1, 1]
    assert image_of(2, 2).tolist() == [0, 1]
    across = build(make_backbone, compare="across")._pairs(2, 8)
    assert across.tolist() == [
        [False, True, False, False, False, True, True, True],
        [True, False, True, True, True, False, False, False],
    ]
    assert build(make_backbone)._pairs(2, 8).sum() == 14


def test_gradients_reach_the_student_alone_and_the_probe_only_its_own(make_backbone):
    method, batch = build(make_backbone), pairs_batch()
    parts = method.losses(batch, progress=0.5).parts
    for loss in (parts["dino"], parts["barlow"]):
        got = reached(method, loss)
        assert all(name.startswith(STUDENT) for name in got)
        assert "networks.student_head.directions" in got
    assert reached(method, parts["probe"]) == PROBE


def test_a_checkpoint_holds_centres_and_shares(make_backbone, steps):
    one, two = build(make_backbone), build(make_backbone)
    one.learn_design(torch.tensor([0, 0, 1]))
    batches = [pairs_batch(seed=seed) for seed in range(3)]
    list(steps(one, batches, lr=1e-3))
    assert one.centre.abs().sum() > 0
    two.load_state_dict(one.state_dict())
    for method in (one, two):
        method.eval()
    assert torch.equal(*(m.losses(batches[0], progress=0.5).total for m in (one, two)))
    assert torch.equal(two.share, torch.tensor([2 / 3, 1 / 3, 0, 0, 0]))


def test_a_code_beyond_the_centres_is_named(make_backbone):
    method, batch = build(make_backbone), pairs_batch()
    with pytest.raises(InputError, match=r"5 domains, .* code 7"):
        method.losses(replace(batch, partner_domain=torch.full_like(batch.domain, 7)), progress=0)
    with pytest.raises(InputError, match="num-domains 10"):
        method.learn_design(torch.tensor([1, 9]))


def test_centres_of_domains_take_the_domain_out_of_the_targets(make_backbone):
    """Its job: what the teacher asks for says less and less of the domain; one centre leaves it."""
    batch = pairs_batch(n=30, num_contexts=2, seed=3)
    domain = torch.stack([batch.domain, batch.partner_domain], 1)
    said = {}
    for name in ("cdcl", "dino"):
        method = build(make_backbone, name)
        t = method.networks.teach(batch.global_views)[1]
        gaps = []
        for number in range(60):
            centre = method.centre[domain] if name == "cdcl" else method.centre
            q = ((t - centre) / 0.07).softmax(-1)
            gaps.append((q[domain == 0].mean(0) - q[domain == 1].mean(0)).abs().sum().item())
            method.losses(batch, progress=number / 60)
            method.after_step(1.0)  # no optimiser step: student and teacher stay equal
        said[name] = gaps[-1] / gaps[0]
    assert said["cdcl"] < 0.5
    assert said["cdcl"] < 0.5 * said["dino"]


def test_correlations_of_outputs_fall_in_the_training(make_backbone, steps):
    method = build(make_backbone, w=1.0, centre_momentum=1.0)
    history = [x.parts["barlow"].item() for x in steps(method, [pairs_batch(n=24)] * 40, lr=5e-3)]
    assert history[-1] < 0.7 * history[0]
