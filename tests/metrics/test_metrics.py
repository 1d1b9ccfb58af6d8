import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from evenfield.errors import InputError
from evenfield.metrics.base import METRICS, evaluate
from evenfield.metrics.calibration import NUM_BINS
from evenfield.metrics.wells import to_wells, well_labels
from evenfield.seeds import numpy_generator

NAMES = ["accuracy", "balanced_accuracy", "ece", "macro_f1", "nll"]


def scored(seed: int, n: int = 60, k: int = 5, present: int | None = None):
    rng = numpy_generator(seed, "test")
    logits = rng.normal(size=(n, k)) * 2
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_probs, rng.integers(present or k, size=n)


def test_registry_holds_the_family():
    assert list(METRICS) == NAMES
    for name in METRICS:
        metric = METRICS[name]
        assert metric.direction in {"higher", "lower"}
        assert metric.needs in {"labels", "probabilities"}
        assert metric.__doc__


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("present", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn(seed, present):
    log_probs, labels = scored(seed, present=present)
    predicted = log_probs.argmax(1)
    found = evaluate(log_probs, labels)
    classes = np.unique(labels)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        oracle.balanced_accuracy_score(labels, predicted)
    )
    assert found["macro_f1"] == pytest.approx(
        oracle.f1_score(labels, predicted, labels=classes, average="macro")
    )
    assert found["nll"] == pytest.approx(
        oracle.log_loss(labels, np.exp(log_probs), labels=np.arange(5))
    )


def test_ece_letter_by_letter():
    log_probs, labels = scored(4, n=200, k=3)
    total = 0.0
    for m in range(1, NUM_BINS + 1):
        inside = [
            i for i in range(200) if (m - 1) / NUM_BINS < np.exp(log_probs[i].max()) <= m / NUM_BINS
        ]
        if inside:
            acc = np.mean([log_probs[i].argmax() == labels[i] for i in inside])
            conf = np.mean([np.exp(log_probs[i].max()) for i in inside])
            total += len(inside) / 200 * abs(acc - conf)
    assert METRICS["ece"]()(log_probs, labels) == pytest.approx(total)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6))
def test_laws(seed, n, k):
    log_probs, labels = scored(seed, n, k)
    order = numpy_generator(seed, "order").permutation(n)
    renamed = numpy_generator(seed, "classes").permutation(k)
    for name in METRICS:
        metric = METRICS[name]()
        value = metric(log_probs, labels)
        assert metric.bounds[0] <= value <= metric.bounds[1]
        assert value == pytest.approx(metric(log_probs[order], labels[order]))
        assert value == pytest.approx(metric(log_probs[:, renamed], np.argsort(renamed)[labels]))
        assert metric.bounds[0] <= metric.chance(labels) <= metric.bounds[1]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_ends(labels_list):
    labels = np.array(labels_list)
    with np.errstate(divide="ignore"):
        perfect = np.log(np.eye(4)[labels])
        worst = np.log(np.eye(4)[(labels + 1) % 4])
    good, bad = evaluate(perfect, labels), evaluate(worst, labels)
    assert good == {"accuracy": 1, "balanced_accuracy": 1, "macro_f1": 1, "nll": 0, "ece": 0}
    assert bad["accuracy"] == bad["balanced_accuracy"] == bad["macro_f1"] == 0
    assert bad["ece"] == 1
    assert bad["nll"] == pytest.approx(METRICS["nll"].bounds[1])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_chance_is_what_the_best_constant_reaches(labels_list):
    labels = np.array(labels_list)
    with np.errstate(divide="ignore"):
        shares = np.log(np.bincount(labels, minlength=4) / len(labels))
    found = evaluate(np.tile(shares, (len(labels), 1)), labels)
    for name, value in found.items():
        assert METRICS[name].chance(labels) == pytest.approx(value, abs=1e-12)


def test_equal_probabilities():
    labels = np.array([0, 1, 2, 3])
    found = evaluate(np.full((4, 4), np.log(0.25)), labels)
    assert found["ece"] == pytest.approx(0)
    assert found["nll"] == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    ("log_probs", "labels", "words"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "nothing to score"),
        (np.full((2, 2), np.nan), np.zeros(2, int), "NaN"),
        (np.zeros((2, 2)), np.zeros(2, int), "not log-probabilities"),
        (np.log([[0.5, 0.5]]), np.array([-1]), "unknown"),
        (np.log([[0.5, 0.5]]), np.array([2]), "code 2"),
        (np.log([[0.5, 0.5]]), np.array([0, 1]), "meet labels"),
        (np.log([[0.5, 0.5]]), np.array([0.0]), "not integers"),
    ],
)
def test_errors_say_what_is_wrong(log_probs, labels, words):
    for name in METRICS:
        with pytest.raises(InputError, match=words):
            METRICS[name]()(log_probs, labels)


def test_wells_average_probabilities():
    log_probs, labels = scored(7, n=12)
    codes = np.array([5, 5, 2, 2, 2, 9, 9, 9, 9, 9, 2, 5])
    wells, names = to_wells(log_probs, codes)
    assert names.tolist() == [2, 5, 9]
    for row, code in zip(wells, names, strict=True):
        assert np.allclose(np.exp(row), np.exp(log_probs[codes == code]).mean(0))
    assert np.allclose(np.exp(wells).sum(1), 1)
    assert well_labels(codes * 0 + codes % 3, codes).tolist() == [2, 2, 0]
    with pytest.raises(InputError, match="two labels"):
        well_labels(np.arange(12), codes)
    with pytest.raises(InputError, match="no well"):
        to_wells(log_probs, codes - 5)
    del labels
