"""Whether predicted probabilities are what they say: calibration error, Brier score, likelihood, temperature.

Source: Guo et al., arXiv 1706.04599 (expected calibration error in 15 bins of equal width, temperature scaling); Brier
1950 (the sum over classes).
"""

import math
from typing import Any

import torch
from torch import Tensor

BINS = 15


def calibration(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compare the confidence of predictions with their accuracy.

    Args:
        probabilities: (M, C), rows sum to 1.
        labels: (M,), classes.

    Returns:
        ece: expected calibration error in percent: over `BINS` bins of confidence, each (i / BINS, (i + 1) / BINS],
            the mean distance between confidence and accuracy, weighted by images.
        brier: mean over images of the summed squared distance to the true class's 1 and the others' 0, in [0, 2].
        nll: mean negative log-likelihood in nats; None where a true class was given no probability.
        bins: of those with images: their ends, images, mean confidence and accuracy.
    """
    p = probabilities.double()
    confidence, predicted = p.max(1)
    right = (predicted == labels).double()
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    counts = torch.bincount(places, minlength=BINS)
    sums = [torch.bincount(places, values, minlength=BINS) for values in (confidence, right)]
    of_truth = p.gather(1, labels[:, None])[:, 0]
    nll = -float(of_truth.log().mean())
    return {
        "ece": 100 * float((sums[0] - sums[1]).abs().sum()) / len(labels),
        "brier": float((p.square().sum(1) - 2 * of_truth + 1).mean()),
        "nll": nll if math.isfinite(nll) else None,
        "bins": [
            {
                "above": i / BINS,
                "to": (i + 1) / BINS,
                "images": n,
                "confidence": float(sums[0][i]) / n,
                "accuracy": float(sums[1][i]) / n,
            }
            for i, n in enumerate(counts.tolist())
            if n
        ],
    }


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the T in [0.01, 100] by which scores (M, C) of held-out images are most likely: softmax(scores / T)."""
    s, low, high = scores.double(), math.log(1e-2), math.log(1e2)
    for _ in range(60):  # the likelihood is convex in 1 / T: halve where its slope changes sign
        middle = (low + high) / 2
        p = (s / math.exp(middle)).softmax(1)
        slope = float((s.gather(1, labels[:, None])[:, 0] - (p * s).sum(1)).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)  # sharper is likelier
    return math.exp((low + high) / 2)
