"""What a graph that is run in stages computes from, as digests: equal ones, equal tensors for the same samples."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.dataflow.segments import Segment, Stage
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.writer import ProtoWriter

BYTES = 16  # of a digest


class Contents:
    """The constants and nodes of a graph's stages; values that were looked at once are looked at again only where
    they were replaced."""

    def __init__(self, graph: Graph, stages: Sequence[Stage]) -> None:
        self._graph, self._stages = graph, stages
        self._known: dict[Constant, tuple[Any, bytes]] = {}
        self._constants = [each for stage in stages for each in stage.advance.constants]
        self._stage_of = [at for at, stage in enumerate(stages) for _ in stage.advance.constants]
        self._held: list[Any] = []
        self._chain: list[bytes] = []

    def left(self) -> Sequence[bytes]:
        """For each stage a digest of what is left after it is computed from, until a constant is replaced. It is
        computed when it is asked for: of thousands of stages, each changes all that come after it."""
        held = [each._values for each in self._constants]
        if self._held and any(map(operator.is_not, held, self._held)):
            first = next(at for at, (now, before) in enumerate(zip(held, self._held, strict=True)) if now is not before)
            del self._chain[self._stage_of[first] :]
        self._held = held
        return _States(self._state, len(self._stages))

    def _state(self, index: int) -> bytes:
        while len(self._chain) <= index:
            before = self._chain[-1] if self._chain else self._elsewhere
            self._chain.append(digest_of(before, self._of_segment(self._stages[len(self._chain)].advance)))
        return self._chain[index]

    def wanted(self, index: int) -> bytes:
        """A digest of all that what is wanted in a stage is computed from."""
        return digest_of(self.left()[index], self._of_segment(self._stages[index].ahead))

    @functools.cached_property
    def _elsewhere(self) -> bytes:
        """A digest of the nodes with all that is in them, and of what is not in the main graph."""
        graph, found = self._graph, hashlib.blake2b(digest_size=BYTES)
        writer = ProtoWriter(graph)
        for stage in self._stages:
            for part in (stage.advance, stage.ahead):
                found.update(repr((part.feeds, part.outputs)).encode())
                for node in part.nodes:
                    found.update(writer._node(node).SerializeToString(deterministic=True))
        for scope in graph.scopes[1:]:
            for constant in scope.constants:
                found.update(self._of(constant))
        for each in (*graph.main.overridable, *graph.model.proto.functions):
            found.update(each.SerializeToString(deterministic=True))
        return found.digest()

    def _of_segment(self, segment: Segment) -> bytes:
        return b"".join(self._of(each) for each in segment.constants)

    def _of(self, constant: Constant) -> bytes:
        held = constant._values
        known = self._known.get(constant)
        if known is None or known[0] is not held:
            known = held, content_digest(constant.values)
            self._known[constant] = known
        return known[1]


@dataclass(frozen=True)
class _States(Sequence[bytes]):
    """Digests that are computed when they are asked for."""

    of: Callable[[int], bytes]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        places = range(self.length)[index]
        return self.of(places) if isinstance(places, int) else [self.of(each) for each in places]


def content_digest(values: Array) -> bytes:
    """A digest of an array's type, shape and bytes."""
    found = hashlib.blake2b(f"{values.dtype} {values.shape}".encode(), digest_size=BYTES)
    if values.dtype == object:
        found.update(repr(values.tolist()).encode())
    else:
        found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return found.digest()


def digest_of(*parts: bytes) -> bytes:
    """A digest of some."""
    return hashlib.blake2b(b"".join(parts), digest_size=BYTES).digest()
