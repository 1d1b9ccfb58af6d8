"""Right or wrong: accuracy, balanced accuracy, macro F1.

Chance is the best constant answer: the class that is most frequent among the scored rows.
"""

from __future__ import annotations

import numpy as np

from evenfield.metrics.base import METRICS, Labels, LogProbs, Metric


@METRICS.register("accuracy")
class Accuracy(Metric):
    """Share of rows whose most probable class is the label."""

    @staticmethod
    def compute(log_probs: LogProbs, labels: Labels) -> float:
        """Mean of 1[argmax_k p = y]; of equal probabilities the first class counts.

        >>> Accuracy.compute(np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
        0.5
        """
        return float((log_probs.argmax(1) == labels).mean())

    @staticmethod
    def chance(labels: Labels) -> float:
        """The share of the largest class."""
        return float(np.bincount(labels).max() / len(labels))


@METRICS.register("balanced_accuracy")
class BalancedAccuracy(Metric):
    """Mean over the classes present in the scored rows of the share of their rows that is right."""

    @staticmethod
    def compute(log_probs: LogProbs, labels: Labels) -> float:
        """Mean recall; a class that no scored row belongs to does not enter.

        >>> BalancedAccuracy.compute(np.log([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1]))
        0.5
        """
        true = np.bincount(labels)
        right = np.bincount(labels[log_probs.argmax(1) == labels], minlength=len(true))
        present = true > 0
        return float((right[present] / true[present]).mean())

    @staticmethod
    def chance(labels: Labels) -> float:
        """One over the number of classes present."""
        return 1.0 / len(np.unique(labels))


@METRICS.register("macro_f1")
class MacroF1(Metric):
    """Mean over the classes present in the scored rows of 2 TP / (2 TP + FP + FN)."""

    @staticmethod
    def compute(log_probs: LogProbs, labels: Labels) -> float:
        """Macro F1; what is predicted as a class that is absent is a miss of the true class.

        >>> round(MacroF1.compute(np.log([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1])), 4)
        0.4286
        """
        k = log_probs.shape[1]
        predicted = log_probs.argmax(1)
        true, called = np.bincount(labels, minlength=k), np.bincount(predicted, minlength=k)
        right = np.bincount(labels[predicted == labels], minlength=k)
        present = true > 0
        return float((2 * right[present] / (true + called)[present]).mean())

    @staticmethod
    def chance(labels: Labels) -> float:
        """The largest class alone, with share p, has 2p / (1 + p); the others have 0."""
        share = np.bincount(labels).max() / len(labels)
        return float(2 * share / (1 + share) / len(np.unique(labels)))
