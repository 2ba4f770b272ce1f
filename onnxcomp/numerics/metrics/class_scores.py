"""KL divergence and entropy of class scores, however an output gives them.

probability    p along an axis, sum 1       KL = sum p log(p / q),  H = -sum p log p   (nats)
log            its logarithm                the same
logits         z, p = softmax(z)            the same
each           p of each element            the same over (p, 1 - p)
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.metrics.arrays import by_channel, per_element

Array = NDArray[Any]
Floats = NDArray[np.float64]
Form = Literal["probability", "log", "logits", "each"]

SKEW = 0.01


def kl_and_entropy(form: Form, axis: int | None, reference: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    """KL(p||q) and entropy of p in nats, (samples, positions) each; of "each" (samples, elements).

    q is mixed with a hundredth of p (skew divergence, https://aclanthology.org/P99-1004): a probability
    rounded to zero then costs at most log(100) times its weight, and small differences are not affected
    (after the division by 0.99^2, the mixture's effect to second order).
    """
    if form == "each":
        divergence, entropy = _bernoulli(reference, candidate)
        return per_element(divergence), per_element(entropy)
    left, right = by_channel(reference, axis or 0), by_channel(candidate, axis or 0)
    if form == "logits":
        p, q = np.exp(log_softmax(left)), np.exp(log_softmax(right))
    elif form == "log":
        p, q = np.exp(left), np.exp(np.minimum(right, 0))
    else:
        p, q = np.maximum(left, 0), np.maximum(right, 0)
    return _skewed(p, q).sum(axis=-1), _plogp(p).sum(axis=-1)


def _bernoulli(reference: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    p, q = np.clip(reference, 0, 1), np.clip(candidate, 0, 1)
    return _skewed(p, q) + _skewed(1 - p, 1 - q), _plogp(p) + _plogp(1 - p)


def _skewed(p: Floats, q: Floats) -> Floats:
    mixed = np.where(p == q, p, (1 - SKEW) * q + SKEW * p)
    ratio = np.divide(p, mixed, out=np.ones_like(p), where=p > 0)
    # p log(p/q) - p + q is the same when both sum to one, and never negative when rounding makes them not.
    return np.asarray((p * np.log(ratio) - p + mixed) / (1 - SKEW) ** 2)


def _plogp(p: Floats) -> Floats:
    return np.asarray(-p * np.log(np.where(p > 0, p, 1)))


def log_softmax(rows: Floats) -> Floats:
    """Of values (..., classes) the logarithm of their softmax."""
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
