"""How far a model's outputs are from the original's.

``describe`` says what an output looks like and which lenses belong to it; every lens gives numbers a sample, whose
mean is a divergence on one scale for all; the worst lens counts.
"""

from onnxcomp.numerics.metrics.arrays import Floats, new_nonfinite, over_positions, per_element, shared_finite
from onnxcomp.numerics.metrics.class_scores import kl_and_entropy
from onnxcomp.numerics.metrics.intervals import Estimate, drop, estimate, samples_to_resolve, share
from onnxcomp.numerics.metrics.lenses import Lens, Pair, winners
from onnxcomp.numerics.metrics.looks import Batches, Seen
from onnxcomp.numerics.metrics.plain import cosine_distance, noise_to_signal, squared_error
from onnxcomp.numerics.metrics.readings import KINDS, Output, describe, of_state, steady
from onnxcomp.numerics.metrics.salience import LEAST_POSITIONS, Scores, positions, scores_of, where_salient
from onnxcomp.numerics.metrics.scales import CONSTANT_FLOOR

__all__ = [
    "CONSTANT_FLOOR",
    "KINDS",
    "LEAST_POSITIONS",
    "Batches",
    "Estimate",
    "Floats",
    "Lens",
    "Output",
    "Pair",
    "Scores",
    "Seen",
    "cosine_distance",
    "describe",
    "drop",
    "estimate",
    "kl_and_entropy",
    "new_nonfinite",
    "noise_to_signal",
    "of_state", "over_positions",
    "per_element",
    "positions",
    "samples_to_resolve",
    "scores_of",
    "share",
    "shared_finite",
    "squared_error",
    "steady",
    "where_salient",
    "winners",
]  # fmt: skip
