"""Whether probabilities mean what they say: negative log-likelihood, expected calibration error."""

from __future__ import annotations

import numpy as np

from evenfield.metrics.base import METRICS, Labels, LogProbs, Metric

NUM_BINS = 15
LEAST_LOG_PROB = float(np.log(np.finfo(np.float32).tiny))
"""Where a log-probability is cut (-87.3), so that one zero does not make a mean infinite."""


@METRICS.register("nll")
class NegativeLogLikelihood(Metric):
    """Mean of -log p(label), in nats."""

    direction = "lower"
    bounds = (0.0, -LEAST_LOG_PROB)
    needs = "probabilities"

    @staticmethod
    def compute(log_probs: LogProbs, labels: Labels) -> float:
        """Mean negative log-probability of the label, each at most 87.3.

        >>> round(NegativeLogLikelihood.compute(np.log([[0.5, 0.5]]), np.array([1])), 4)
        0.6931
        """
        picked = log_probs[np.arange(len(labels)), labels]
        return float(-picked.clip(LEAST_LOG_PROB, 0.0).mean()) + 0.0  # no negative zero

    @staticmethod
    def chance(labels: Labels) -> float:
        """The entropy of the class shares."""
        share = np.bincount(labels) / len(labels)
        share = share[share > 0]
        return float(-(share * np.log(share)).sum()) + 0.0


@METRICS.register("ece")
class ExpectedCalibrationError(Metric):
    """Mean gap between confidence and accuracy over 15 equal-width bins of confidence.

    Guo et al. 2017 (On Calibration of Modern Neural Networks), equation 3, with the confidence of
    the predicted class and bins ((m - 1)/15, m/15].
    """

    direction = "lower"
    needs = "probabilities"

    @staticmethod
    def compute(log_probs: LogProbs, labels: Labels) -> float:
        """sum_m |B_m|/n |acc(B_m) - conf(B_m)|.

        >>> round(ExpectedCalibrationError.compute(np.log([[0.8, 0.2]] * 2), np.array([0, 1])), 4)
        0.3
        """
        confidence = np.exp(log_probs.max(1)).clip(max=1.0)
        right = log_probs.argmax(1) == labels
        bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        excess = np.bincount(bins, weights=confidence - right, minlength=NUM_BINS)
        return float(np.abs(excess).sum() / len(labels))

    @staticmethod
    def chance(labels: Labels) -> float:
        """0: predicting the class shares is calibrated, so ECE never stands alone."""
        del labels
        return 0.0
