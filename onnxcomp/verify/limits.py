"""Metrics by name, and how much worse each may get where the user does not say."""

from __future__ import annotations

from onnxcomp.budget import Drop

# The one default threshold for all models and lenses (docs/decisions/0003-default-metric.md).
DEFAULT_MAX_DIVERGENCE = 0.03
SEARCHED_SHARE_OF_EMBEDDINGS = 0.5
# On random inputs, which license nothing, only breakage is looked for. int8 weights per channel reach 0.25 on
# noise (efficientnet_lite0), 3-bit ones 0.2 (LeNet-5, which noise cannot tell) to 31.
BREAKAGE_DIVERGENCE = 20 * DEFAULT_MAX_DIVERGENCE
# Outputs hardly vary from noise to noise, so errors are held against a tenth of their size instead.
NOISE_FLOOR = 0.1
DEFAULT_LIMITS = {
    "auto": Drop(DEFAULT_MAX_DIVERGENCE),
    "divergence": Drop(DEFAULT_MAX_DIVERGENCE),
    "accuracy": Drop(0.005),
    "top1": Drop(0.02),
    "kl": Drop(0.01),
    "cosine": Drop(0.01),
    "sqnr": Drop(0.01),
    "score": Drop(0.01, is_relative=True),
}
METRICS = ("auto", "divergence", "kl", "cosine", "sqnr", "mse", "top1")
COUNTED = ("accuracy", "top1")  # shares of samples: few samples cannot resolve small drops of these
