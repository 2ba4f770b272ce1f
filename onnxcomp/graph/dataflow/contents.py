"""What a graph that is run in stages computes from, as digests: equal ones, equal tensors for the same samples."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
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
        self._chain: list[tuple[bytes, tuple[Any, ...], bytes]] = []

    def left(self) -> list[bytes]:
        """For each stage a digest of what is left after it is computed from."""
        states: list[bytes] = []
        state = self._elsewhere
        for index, stage in enumerate(self._stages):
            held = tuple(each._values for each in stage.advance.constants)
            known = self._chain[index] if index < len(self._chain) else None
            if known is None or known[0] != state or any(a is not b for a, b in zip(known[1], held, strict=True)):
                known = state, held, digest_of(state, self._of_segment(stage.advance))
                self._chain[index : index + 1] = [known]
            state = known[2]
            states.append(state)
        return states

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
