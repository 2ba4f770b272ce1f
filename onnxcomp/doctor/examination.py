"""A model as it ran: what ONNX Runtime made of it, where the time went, and the same with something done about it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Pass
from onnxcomp.errors import TargetError
from onnxcomp.graph.report.profile_segments import with_names
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.costs import on_disk, session_options
from onnxcomp.runtime import ExecutedNode, Feeds, Latency, measure_latency, optimized, profile_kernels
from onnxcomp.target import Target

CALIBRATED_SAMPLES = 4
PROFILED_RUNS = 20
MEASURED_S = 1.0  # of all forms in turns, each time
FEWEST_RUNS = 11
LARGEST_TRIED_BYTES = 500 * 10**6  # of a model of which other forms are made and measured


@dataclass(frozen=True)
class Examination:
    """One model on one target with one sample.

    data: where the sample comes from. kernels: what ran. graph: what ONNX Runtime made of the model, without the data
    of constants, or the model's own where the provider does not show it.
    """

    model: Model
    target: Target
    data: CalibrationData
    feeds: Feeds
    kernels: tuple[ExecutedNode, ...]
    graph: GraphProto

    @classmethod
    def of(cls, model: Model, target: Target, data: CalibrationData) -> Examination:
        """Run it. Raises TargetError or VerificationError where it does not load or run."""
        feeds = data.first_sample()
        options = session_options(target)
        with on_disk({"": with_names(model)}) as paths:
            kernels = profile_kernels(paths[""], feeds, runs=PROFILED_RUNS, **options)
            try:
                graph = optimized(paths[""], provider=target.provider, custom_ops=target.custom_ops).graph
            except TargetError:  # a provider that compiles nodes: what it made cannot be written down
                graph = model.proto.graph
        return cls(model, target, data, feeds, tuple(kernels), graph)

    @functools.cached_property
    def seconds(self) -> float:
        """Of one run, by its kernels."""
        return max(sum(each.seconds for each in self.kernels), 1e-12)

    def share(self, kernels: Collection[ExecutedNode]) -> float:
        """How much of a run some kernels take."""
        return sum(each.seconds for each in kernels) / self.seconds

    def of_operators(self, *operators: str) -> list[ExecutedNode]:
        """The kernels of these operators."""
        return [each for each in self.kernels if each.operator in operators]

    def nodes(self) -> Iterator[NodeProto]:
        """Every node that ONNX Runtime left, those of bodies too."""
        return nodes_of(self.graph)

    @functools.cached_property
    def constants(self) -> frozenset[str]:
        """Names of initializers, and of what nodes compute from them alone."""
        known = {each.name for graph in graphs_of(self.graph) for each in graph.initializer}
        for node in self.nodes():
            if node.input and all(not name or name in known for name in node.input) and not _has_bodies(node):
                known |= set(node.output)
        return frozenset(known)

    def seconds_by_name(self) -> dict[str, float]:
        """Of each kernel, by the name of its node."""
        return {each.name: each.seconds for each in self.kernels}


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of a graph and of its bodies."""
    for each in graphs_of(graph):
        yield from each.node


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and its bodies, outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)


def treated(seen: Examination, passes: Sequence[Pass]) -> Model | None:
    """The model after some passes; None where the last of them finds nothing to do. What is calibrated is so on a few
    samples, which latency does not depend on."""
    data, target, model = seen.data.first(CALIBRATED_SAMPLES), seen.target, seen.model
    context = Context(target=target, calibration=data, max_opset=target.supported_opset)
    changed = False
    for each in passes:
        model, outcome = apply_pass(model, each, context)
        changed |= bool(outcome.changed)
        if each is passes[-1] and not each.effect.is_exact and not outcome.changed:
            return None
    return model if changed else None


def with_sizes(proto: ModelProto, feeds: Feeds) -> ModelProto | None:
    """The model with the sizes of its inputs as they are in ``feeds``; None where none was open."""
    made = ModelProto()
    made.CopyFrom(proto)
    is_open = False
    for info in made.graph.input:
        shape = getattr(feeds.get(info.name), "shape", None)
        tensor = info.type.tensor_type
        if shape is None or not tensor.HasField("shape") or len(tensor.shape.dim) != len(shape):
            continue
        for dim, size in zip(tensor.shape.dim, shape, strict=True):
            is_open |= dim.WhichOneof("value") != "dim_value"
            dim.dim_value = size
    if not is_open:
        return None
    del made.graph.value_info[:]
    for info in made.graph.output:
        info.type.tensor_type.ClearField("shape")
    return made


def latencies(models: Mapping[str, Model], target: Target, feeds: Feeds) -> dict[str, Latency]:
    """Of some models in turns on one sample."""
    options: dict[str, Any] = session_options(target)
    with on_disk(models) as paths:
        return measure_latency(paths, feeds, runs=FEWEST_RUNS, seconds=MEASURED_S, warm=True, **options)


def counted(operators: Sequence[str]) -> str:
    """``9 Conv, 4 Add``, most first."""
    return ", ".join(f"{number} {name}" for name, number in Counter(operators).most_common())


def _has_bodies(node: NodeProto) -> bool:
    return any(each.HasField("g") for each in node.attribute)
