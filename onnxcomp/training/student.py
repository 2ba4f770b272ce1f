"""The weights of a model that are trained, and a copy of the model in which each of them is a plain initializer.

graph (as passes see it)  ->  parts: constant + form          model -> private copy, weights by the same names
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.ir.scopes import inner_reads
from onnxcomp.graph.stored.opening import is_stored, open_plain, stored_bytes
from onnxcomp.graph.weights.bias import biases
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite, is_pruned
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.distinct_values import bits_of_values, distinct
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, Encoding, GridEncoding
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.numerics.trainable.coded import TrainedLevels, TrainedRounding
from onnxcomp.numerics.trainable.soft_rounding import TrainedChoice
from onnxcomp.numerics.trainable.tensor import (
    TrainedNonzeros,
    TrainedScale,
    TrainedTensor,
    TrainedUnderMask,
    TrainedValues,
    typical,
)
from onnxcomp.training.quantized import activation_scales, integer_biases, integer_weights, show_floats

KINDS = frozenset({"conv", "conv_transpose", "linear", "embedding", "recurrent"})
NORMALIZATIONS = ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
                  "SimplifiedLayerNormalization", "RMSNormalization")  # fmt: skip
ELEMENTWISE = ("Add", "Sub", "Mul", "PRelu")
MASKED_SHARE = 0.4  # of zeros: from here on they are what makes a weight small, and stay
MEANT_ZEROS = 0.65  # of zeros among levels: three levels have up to half of them by themselves
LEAST_OF_WEIGHTS = 0.5  # of the typical weight: what a vector near zero is moved relative to
FAR = 0.15  # squared error of rounding, relative to the weight: from here on (ternary) values harden slowly
NEAREST_SHARE = 0.9  # of the codes: fewer were not chosen by their values alone
SCALARS_LEVELS = 256
IN_CODES = "it is stored in codes whose levels differ from place to place: train it before it is stored"

ROUNDINGS = ("auto", "fixed", "straight-through", "blend", "adaround")
BLENDED = 0.5  # of the training, until values are rounded altogether

Selects = Callable[..., bool]


@dataclass(frozen=True, eq=False)
class TrainedPart:
    """One constant that is trained: its name in the private copy, how it is made, and how many nodes read it.

    shown: the name by which the user knows it, where that is another one: of the integers behind the floats.
    """

    name: str
    form: TrainedTensor
    readers: int = 1
    is_vector: bool = False
    shown: str = ""

    @property
    def known_as(self) -> str:
        """What it is called where it is told of."""
        return self.shown or self.name


@dataclass(frozen=True)
class PartFinder:
    """What of a model is trained, and how. rounding: one of ``ROUNDINGS``, for weights with levels. vectors: biases
    and the like, too. scales: of quantized activations, too. before: the values that a weight had, by its name, None
    where they are not known."""

    selects: Selects
    skip: Callable[[str, str], None]
    rounding: str = "auto"
    vectors: bool = True
    scales: bool = True
    before: Callable[[str], Array | None] = lambda name: None

    def parts(self, graph: Graph) -> list[TrainedPart]:
        """The constants of the main graph that are trained; others that could be are skipped with the reason."""
        found = [part for weight in weights(graph) if (part := self._of_weight(weight, graph)) is not None]
        found += self._of_integers(graph)
        if self.vectors:
            sizes = [float(typical(part.form.values(part.form.start()))) for part in found]
            least = LEAST_OF_WEIGHTS * float(np.median(sizes)) if sizes else 0.0
            taken = {part.name for part in found}
            vectors = [self._of_vector(each, least, graph) for each in self._vectors(graph)]
            found += [each for each in vectors if each.name not in taken]
            found += self._of_integer_biases(graph, least)
        if self.scales:
            found += self._of_scales(graph)
        return found

    def _of_integers(self, graph: Graph) -> Iterator[TrainedPart]:
        """Weights of small integers, as floats on their grid."""
        for weight in integer_weights(graph):
            if self.selects(weight.name, node_key(graph.main, weight.node)):
                form = self._levels(weight.encoding, weight.values, None, False)
                yield TrainedPart(weight.float_name, form, shown=weight.name)

    def _of_integer_biases(self, graph: Graph, least: float) -> Iterator[TrainedPart]:
        for bias in integer_biases(graph):
            if self.selects(bias.name, node_key(graph.main, bias.reader)):
                form = TrainedValues(bias.values, least=least)
                yield TrainedPart(bias.float_name, form, is_vector=True, shown=bias.name)

    def _of_scales(self, graph: Graph) -> Iterator[TrainedPart]:
        for scale in activation_scales(graph):
            nodes = [node_key(graph.main, node) for node, _ in scale.places]
            if self.selects(scale.name, *nodes) and all_finite(scale.constant.values):
                yield TrainedPart(scale.name, TrainedScale(np.asarray(scale.constant.values)))

    def _of_weight(self, weight: Weight, graph: Graph) -> TrainedPart | None:
        if not self.selects(weight.name, *weight.node_names) or not weight.kinds & KINDS:
            return None
        reason = self._obstacle(weight, graph)
        form = None if reason else self._form(weight)
        if form is None:
            self.skip(weight.name, reason or "its encoding does not make its values")
            return None
        return TrainedPart(weight.name, form, len(weight.roles))

    def _obstacle(self, weight: Weight, graph: Graph) -> str | None:
        if weight.scope is not graph.main:
            return "it stands in a subgraph or function"
        if weight.dtype != np.float32:
            return f"it is {weight.dtype}: only float32 is trained (raise-float16 makes it that)"
        if not all_finite(weight.values):
            return "it has values that are not finite"
        return IN_CODES if weight.encoding is None and is_in_codes(weight) and levels_of(weight) is None else None

    def _form(self, weight: Weight) -> TrainedTensor | None:
        values, encoding = np.asarray(weight.values), weight.encoding
        if encoding is None and is_in_codes(weight):
            encoding = levels_of(weight)
        zeros = float((values == 0).mean()) if values.size else 0.0
        if encoding is None or encoding.values_are_free:
            if is_pruned(weight) or zeros >= MASKED_SHARE:
                return TrainedNonzeros(values, TrainedValues(nonzeros(values)), encoding)
            return TrainedValues(values, encoding=encoding)
        if encoding.encode(values) is None:
            return None
        before = self.before(weight.name)
        fits = before is not None and before.shape == values.shape and bool(np.isfinite(before).all())
        return self._levels(encoding, values, before if fits else None, zeros >= MEANT_ZEROS)

    def _levels(self, encoding: Encoding, values: Array, before: Array | None, keep_zeros: bool) -> TrainedTensor:
        """keep_zeros: what is zero stays."""
        if keep_zeros and has_one_scale(encoding) and (inner := nonzeros(values)).size:
            known = None if before is None else before[values != 0]
            return TrainedNonzeros(values, self._levels(encoding, inner, known, False))
        if keep_zeros:
            return TrainedUnderMask(values, self._levels(encoding, values, before, False))
        in_order = encoding.level_count <= SCALARS_LEVELS and encoding.kind != "vector"
        if self.rounding == "fixed" or not in_order:
            return TrainedLevels(encoding, values)
        if self.rounding == "adaround":
            return TrainedChoice(encoding, values, before)
        is_far = before is not None and is_rounded(encoding, before, values) and relative_error(before, values) > FAR
        softness = BLENDED if self.rounding == "blend" or (self.rounding == "auto" and is_far) else 0.0
        return TrainedRounding(encoding, values, before, softness)

    def _of_vector(self, constant: Constant, least: float, graph: Graph) -> TrainedPart:
        form = TrainedValues(np.asarray(constant.values), least=least)
        return TrainedPart(graph.main.key(constant.name), form, len(constant.outputs), is_vector=True)

    def _vectors(self, graph: Graph) -> Iterator[Constant]:
        """Constants that are added to channels, or that these are multiplied with."""
        seen: set[Constant] = set()
        for constant, node in vectors(graph):
            names = (graph.main.key(constant.name), node_key(graph.main, node))
            if constant not in seen and self.selects(*names) and all_finite(constant.values):
                seen.add(constant)
                yield constant


def is_rounded(encoding: Encoding, before: Array, values: Array) -> bool:
    """Whether nearly all values are the levels nearest to those from before. Others were chosen by what the outputs
    lose: from the values before, rounded anew, nothing of that would be left."""
    return float(np.mean(encoding.nearest(before) == encoding.nearest(values))) >= NEAREST_SHARE


def is_in_codes(weight: Weight) -> bool:
    """Whether an earlier run stored it in fewer bytes than the values that are not zero take by themselves."""
    values = np.asarray(weight.values)
    free_bytes = np.count_nonzero(values) * values.dtype.itemsize
    return is_stored(weight.tensor) and bool(stored_bytes(weight.tensor) < free_bytes)


def levels_of(weight: Weight) -> CodebookEncoding | None:
    """Its distinct values as a codebook, None where they are many: they have scales of their own places."""
    values = np.asarray(weight.values)
    found = distinct(bits_of_values(values), SCALARS_LEVELS)
    if found is None:
        return None
    return CodebookEncoding(dtype=str(values.dtype), codebook=np.unique(found.view(values.dtype)))


def nonzeros(values: Array) -> Array:
    """(n,) the values that are not zero."""
    return np.asarray(values[values != 0])


def has_one_scale(encoding: Encoding) -> bool:
    """Whether the values stand for themselves wherever they are."""
    if not isinstance(encoding, CodebookEncoding | GridEncoding):
        return False
    return encoding.axis is None and (encoding.scale is None or np.ndim(encoding.scale) == 0)


def vectors(graph: Graph) -> Iterator[tuple[Constant, Node]]:
    """The float32 vectors of the main graph that are parameters by where they stand, with a node that reads each."""
    for place in biases(graph):
        tensor = place.tensor
        if isinstance(tensor, Constant) and _is_vector(tensor, graph):
            yield tensor, place.holder or place.node
    for node in graph.main.graph.nodes:
        if is_onnx(node, *NORMALIZATIONS) or node.op in NORMALIZATIONS:
            candidates = list(node.inputs[1:3])
        elif is_onnx(node, *ELEMENTWISE) and sum(isinstance(each, Constant) for each in node.inputs) == 1:
            candidates = list(node.inputs)
        else:
            continue
        yield from ((each, node) for each in candidates if _is_vector(each, graph))


def _is_vector(tensor: Any, graph: Graph) -> bool:
    """Whether it is a float32 constant of the main graph with one axis of more than one value, read there only."""
    if not isinstance(tensor, Constant) or tensor.data_type != TensorProto.FLOAT or graph.is_output(tensor):
        return False
    return tensor.size > 1 and max(tensor.shape, default=0) == tensor.size and graph.scope_of(tensor) is graph.main


def private_copy(model: Model, names: Iterable[str], edit: Callable[[Graph], Any] | None = None) -> Model:
    """The model with nothing stored behind decoders, the named constants as float initializers of the main graph."""
    graph = open_plain(model)
    graph.stored = None
    if edit is not None:
        edit(graph)
    wanted = set(names)
    show_floats(graph, wanted)
    for constant in graph.main.constants:
        if graph.main.key(constant.name) in wanted:
            constant.as_node = False
            constant.origin = None
    return close_graph(graph)


def untie(graph: Graph, names: Iterable[str]) -> dict[str, list[str]]:
    """Give every node that reads one of these constants its own copy; the new names by the old ones."""
    wanted = set(names)
    made: dict[str, list[str]] = {}
    inside = {each for node in graph.main.graph.nodes for each in inner_reads(node)}
    for constant in list(graph.main.constants):
        key = graph.main.key(constant.name)
        if key not in wanted or constant in inside:
            continue
        for reader in list(dict.fromkeys(constant.outputs))[1:]:
            copy = graph.constant(graph.main, constant.name, np.array(constant.values))
            for index, tensor in enumerate(list(reader.inputs)):
                if tensor is constant:
                    reader.inputs[index] = copy
            made.setdefault(key, []).append(graph.main.key(copy.name))
    return made


def values_of(
    parts: Iterable[TrainedPart], arrays: Mapping[str, Mapping[str, Array]], progress: float
) -> dict[str, Array]:
    """The values of all trained constants, by name."""
    return {each.name: each.form.values(arrays[each.name], progress) for each in parts}


def free_count(parts: Iterable[TrainedPart]) -> int:
    """How many numbers are trained."""
    return sum(math.prod(array.shape) for part in parts for array in part.form.start().values())
