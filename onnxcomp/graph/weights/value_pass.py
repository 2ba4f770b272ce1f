"""What value passes share: which weights they may change, and giving a weight the values of an encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.numerics.encodings.encoding import Encoding, MaskEncoding

CHUNK = 2**22
NO_CHANNELS = "its readers have no output channel axis in common"


def editable_weights(
    graph: Graph,
    *,
    selects: Callable[..., bool],
    skip: Callable[[str, str], None],
    progress: Callable[[int, int, str], None],
    obstacle: Callable[[Weight], str | None] | None = None,
) -> Iterator[Weight]:
    """The selected weights whose values are finite numbers; the others are skipped with the reason.

    selects, progress: of the pass's context. skip: of its outcome.
    obstacle: why the pass leaves a weight alone, or None; without it none is left alone.
    """
    found = [each for each in weights(graph) if selects(each.name, *each.node_names)]
    for index, weight in enumerate(found):
        progress(index, len(found), weight.name)
        reason = "it has values that are not finite" if not all_finite(weight.values) else obstacle and obstacle(weight)
        if reason:
            skip(weight.name, reason)
        else:
            yield weight


def all_finite(values: Array) -> bool:
    """Whether there is no NaN and no infinity, looked at piece by piece."""
    flat = values.reshape(-1)
    return all(bool(np.isfinite(flat[at : at + CHUNK]).all()) for at in range(0, flat.size, CHUNK))


def is_pruned(weight: Weight) -> bool:
    """Whether the weight's zeros are a mask that must stay."""
    return isinstance(weight.encoding, MaskEncoding)


def has_levels(weight: Weight, most: int) -> bool:
    """Whether an earlier pass left the weight at most so many levels."""
    encoding = weight.encoding
    return encoding is not None and not encoding.values_are_free and encoding.level_count <= most


def decoded(encoding: Encoding, values: Array) -> Array | None:
    """The values that the encoding makes of these, or None where its codes could not be found again.

    That is so where a short float type is too coarse for the scale, near its least numbers.
    """
    result = encoding.decode(encoding.nearest(values), values.shape)
    return None if encoding.encode(result) is None else result
