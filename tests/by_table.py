"""A clock that reads times off a table instead of running models: what is decided by it can be foreseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto

from onnxcomp.target import Target
from onnxcomp.target.node_times import Fed

Times = Callable[[NodeProto, list[tuple[int, ...]]], float]
"""Milliseconds of a node that reads constants of these shapes."""


@dataclass
class Table:
    """Times nodes by what they are and what constants they read; a model takes what its nodes do.

    asked: the models that were timed, each as the shapes of its constants.
    """

    times: Times
    asked: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)

    def __call__(self, models: Sequence[Fed], target: Target, seconds: float) -> list[float | None]:
        return [self._took(each.proto) for each, _ in models]

    def _took(self, proto: ModelProto) -> float:
        shapes = {each.name: tuple(each.dims) for each in proto.graph.initializer}
        if shapes:
            self.asked.append(tuple(shapes.values()))
        return sum(
            self.times(each, [shapes[name] for name in each.input if name in shapes]) for each in proto.graph.node
        )
