"""Which weights samples reach, told of all at once: by one backward pass in place of some runs for each.

    s = 1/2 E sum (g w)^2,   g: the gradient of a random direction of the outputs (``training.influence``)

is the divergence that independent errors as large as a weight's values would make, as far as it grows with their
square. Where that is far above what counts for nothing, small errors of the weight show at the outputs. The other way
round it tells nothing: what has no gradient here may show once it is changed by much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcomp.contract.influence import LACKS, is_told
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.model import Model
from onnxcomp.training.engines import ORT
from onnxcomp.training.influence import GradientDraws, squared_gradients
from onnxcomp.verify import Verifier

SAMPLES = 4
SURE = 100.0  # times what counts for nothing: losses that are differentiated weigh outputs otherwise than verdicts do
LEAST_WEIGHTS = 8  # of fewer, running the model with each changed takes no longer


def reached_by_gradients(
    model: Model, asked: Mapping[str, Weight], judge: Verifier, counted: float, is_over: Callable[[], bool]
) -> frozenset[str]:
    """The weights, by name, of which a backward pass on a few samples shows that these reach them; none where the
    model has no gradients, or no memory is left for them. counted: the least divergence that counts."""
    if len(asked) < LEAST_WEIGHTS:
        return frozenset()
    graph = open_plain(model)
    by_name = {scope.key(each.name): each for scope in graph.scopes for each in scope.constants}
    names = [name for name in asked if name in by_name and is_told(graph, by_name[name])]
    target = judge.target
    draws = GradientDraws(
        model, names, judge.data.first(SAMPLES), target.session, ORT,
        seed=judge.seed, threads=target.threads, asked=judge.asked_outputs, is_over=is_over, passes=1,
    )  # fmt: skip
    try:
        squares = squared_gradients(draws)
    except LACKS:
        return frozenset()
    shown = {name: 0.5 * float(np.sum(each * np.square(asked[name].values))) for name, each in squares.items()}
    return frozenset(name for name, each in shown.items() if each > SURE * counted)
