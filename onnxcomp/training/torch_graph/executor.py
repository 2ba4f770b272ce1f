"""A whole model as a program: what it feeds, what it gives, on which device and with how many threads."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from onnxcomp.graph.ir.functions import written_out
from onnxcomp.model import Model
from onnxcomp.training.torch_graph.compiling import Around, compile_graph
from onnxcomp.training.torch_graph.expansion import expanding_rule
from onnxcomp.training.torch_graph.program import Program
from onnxcomp.training.torch_graph.rule import Draws, NodeError, plain_domain
from onnxcomp.training.torch_graph.values import BELOW_A_BYTE, to_numpy, to_torch

Array = NDArray[Any]


class Executor:
    """A model compiled to run in torch.

    free: float initializers of the main graph whose values come with every run. device: as torch names it.
    threads: 0 leaves torch's own number.
    """

    def __init__(self, model: Model, *, free: Collection[str] = (), device: str = "cpu", threads: int = 0) -> None:
        proto = written_out(model).proto
        self.device = device
        self._threads = threads
        unknown = set(free) - {each.name for each in proto.graph.initializer}
        if unknown:
            raise NodeError(f"{min(unknown)!r} is no initializer of the main graph")
        self._draws = Draws(device)
        around = Around(model.read, device, self._draws, _kinds(proto), lambda node, opset: None)
        around = Around(
            model.read, device, self._draws, around.kinds, lambda node, opset: expanding_rule(node, opset, around)
        )
        opsets = {plain_domain(each.domain): each.version for each in proto.opset_import}
        with self.settings():
            self.program, scope = compile_graph(proto.graph, opsets, around, free=free)
        self.outputs = [each.name for each in proto.graph.output]
        self._output_kinds = [each.type.tensor_type.elem_type for each in proto.graph.output]
        self._places = dict(scope.places)
        self._parts: dict[tuple[str, ...], Program] = {}
        held = {each.name for each in (*proto.graph.initializer, *(s.values for s in proto.graph.sparse_initializer))}
        self._needed = {each.name for each in proto.graph.input} - held
        self._inputs = {each.name for each in proto.graph.input}

    def run(self, feeds: Mapping[str, Any], given: Mapping[str, Any], names: Sequence[str] | None = None) -> list[Any]:
        """The outputs called ``names`` (default all) as torch values; ``given``: tensors of the free initializers."""
        program = self.program if names is None else self._part(tuple(names))
        frame = list(program.start)
        missing = self._needed.difference(feeds)
        if missing:
            raise NodeError(f"the input {min(missing)!r} is not fed")
        for name, value in feeds.items():
            if name in self._inputs:
                frame[self._places[name]] = to_torch(value, self.device)
        for name, value in given.items():
            frame[self._places[name]] = value
        self._draws.begin()
        return program.run_frame(frame)

    def outputs_of(self, feeds: Mapping[str, Any], values: Mapping[str, Array]) -> dict[str, Any]:
        """The outputs by name, as arrays of their own."""
        with self.settings(), torch.no_grad():
            given = {name: to_torch(value, self.device) for name, value in values.items()}
            made = self.arrays(self.run(feeds, given))
        return {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in made.items()}

    def slopes_of(
        self, loss: str, feeds: Mapping[str, Any], values: Mapping[str, Array]
    ) -> tuple[float, dict[str, Array]]:
        """The loss, and its derivatives with respect to these values."""
        with self.settings(), torch.enable_grad():
            given = {name: to_torch(value, self.device).detach().requires_grad_() for name, value in values.items()}
            (made,) = self.run(feeds, given, [loss])
            if made.requires_grad:
                slopes = torch.autograd.grad(made.sum(), list(given.values()), allow_unused=True)
            else:
                slopes = (None,) * len(given)
        arrays: dict[str, Array] = {}
        taken: set[int] = set()
        for name, slope in zip(values, slopes, strict=True):
            array = np.zeros_like(values[name]) if slope is None else to_numpy(slope)
            start = array.__array_interface__["data"][0]
            arrays[name] = array.copy() if start in taken else array  # a sum's terms share their derivative
            taken.add(start)
        return float(made.detach()), arrays

    def arrays(self, values: Sequence[Any]) -> dict[str, Any]:
        """All outputs as arrays of the types that the model states, by name."""
        pairs = zip(self.outputs, values, self._output_kinds, strict=True)
        return {name: to_numpy(value, kind) for name, value, kind in pairs}

    def _part(self, names: tuple[str, ...]) -> Program:
        """The program of these outputs alone."""
        if names not in self._parts:
            self._parts[names] = self.program.towards([self._places[each] for each in names])
        return self._parts[names]

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """torch as the runs need it, and afterwards as it was: deterministic, on this many threads."""
        threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        warns, fills = torch.is_deterministic_algorithms_warn_only_enabled(), torch.utils.deterministic
        filled = fills.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True, warn_only=True)
        fills.fill_uninitialized_memory = False
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            fills.fill_uninitialized_memory = filled
            torch.set_num_threads(threads)


def _kinds(proto: ModelProto) -> dict[str, int]:
    """The element types below a byte, by name; nothing is inferred for a model that has none."""
    text = proto.graph
    stated = {each.data_type for each in text.initializer}
    stated |= {each.type.tensor_type.elem_type for each in (*text.input, *text.output, *text.value_info)}
    stated |= {each.i for node in text.node for each in node.attribute if each.name in ("to", "output_dtype")}
    stated |= {each.t.data_type for node in text.node for each in node.attribute if each.HasField("t")}
    if not stated & BELOW_A_BYTE.keys():
        return {}
    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {each.name: each.data_type for each in graph.initializer}
    found |= {each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.output, *graph.value_info)}
    return {name: kind for name, kind in found.items() if kind in BELOW_A_BYTE}
