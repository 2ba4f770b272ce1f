"""What a graph becomes: steps over a list of values, each value at a place of its own, dropped after its last use."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from onnxcomp.training.torch_graph.foreign import by_onnxruntime, holds_strings
from onnxcomp.training.torch_graph.rule import Call, Compute, NodeError, TorchRule

NOTHING = 0  # the place of inputs that a node omits: always None
# What torch, and rules that read their inputs, raise where these do not fit the operator.
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError)
# Types for which torch lacks many operators, and those in which it has them.
WIDER = {
    torch.uint16: torch.int64, torch.uint32: torch.int64, torch.uint64: torch.int64,
    torch.int8: torch.int32, torch.uint8: torch.int32, torch.int16: torch.int32,
    torch.float16: torch.float32, torch.bfloat16: torch.float32,
}  # fmt: skip

Frame = list[Any]


@dataclass
class NodeStep:
    """One node. inputs, outputs: places in the frame. freed: places that no later step reads."""

    call: Call
    rule: TorchRule
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bodies: Mapping[str, Program] = field(default_factory=dict)
    freed: tuple[int, ...] = ()

    def reads(self) -> Iterable[int]:
        """Every place that the node and its subgraphs read."""
        yield from self.inputs
        for body in self.bodies.values():
            yield from (outer for outer, _ in body.captured)

    def compute(self, frame: Frame) -> Any:
        """The node's value or values."""
        arguments = [frame[each] for each in self.inputs]
        if self.call.device != "cpu":
            arguments = placed(arguments, self.rule.reads_host, self.call.device)
        if self.rule.has_bodies:
            bound = {name: functools.partial(body.run, outer=frame) for name, body in self.bodies.items()}
            return self.rule.compute(self.call, bound, *arguments)
        try:
            return self.rule.compute(self.call, *arguments)
        except (RuntimeError, TypeError, AttributeError):
            if any(map(holds_strings, arguments)):
                return by_onnxruntime(self.call, *arguments)
            if not _narrow(arguments):
                raise
            return _widened(functools.partial(self.rule.compute, self.call), arguments)


@dataclass
class Program:
    """A compiled graph.

    start: the frame at the beginning, with the constants in their places. given: places of the inputs, in order.
    results: places of the outputs. captured: places in the frame around it -> places in this one.
    """

    steps: list[NodeStep]
    start: Frame
    given: tuple[int, ...]
    results: tuple[int, ...]
    captured: tuple[tuple[int, int], ...] = ()

    def run(self, *arguments: Any, outer: Frame | None = None) -> list[Any]:
        """The outputs for these inputs; inputs beyond the last argument keep what they have at the start.

        Raises NodeError for a node that cannot be computed.
        """
        frame = list(self.start)
        for place, value in zip(self.given, arguments, strict=False):
            frame[place] = value
        if outer is not None:
            for there, here in self.captured:
                frame[here] = outer[there]
        return self.run_frame(frame)

    def run_frame(self, frame: Frame) -> list[Any]:
        """The outputs of a frame whose inputs are in their places."""
        step = None
        try:
            for step in self.steps:
                made = step.compute(frame)
                if type(made) is tuple:
                    for place, value in zip(step.outputs, made, strict=False):
                        frame[place] = value
                else:
                    frame[step.outputs[0]] = made
                for place in step.freed:
                    frame[place] = None
        except REFUSALS as error:
            assert step is not None
            raise NodeError(f"{step.call.name} cannot be computed: {error}") from error
        return [frame[each] for each in self.results]

    def towards(self, results: Sequence[int]) -> Program:
        """The part that computes these places, with the same start."""
        needed, kept = set(results), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                kept.append(step)
                needed.update(step.reads())
        return Program(_freeing(kept[::-1], set(results)), self.start, self.given, tuple(results), self.captured)


def _freeing(steps: Sequence[NodeStep], kept: set[int]) -> list[NodeStep]:
    """The steps, each of which drops what nothing after it reads."""
    freed: list[tuple[int, ...]] = []
    seen = kept | {NOTHING}
    for step in reversed(steps):
        last = {*step.reads(), *step.outputs} - seen
        freed.append(tuple(sorted(last)))
        seen |= last
    return [
        NodeStep(each.call, each.rule, each.inputs, each.outputs, each.bodies, drops)
        for each, drops in zip(steps, freed[::-1], strict=True)
    ]


def finished(program: Program) -> Program:
    """The program without nodes that nothing needs, dropping values and constants as early as it can."""
    found = program.towards(program.results)
    used = {place for step in found.steps for place in step.reads()} | set(found.results)
    for place in range(len(found.start)):
        if place not in used:
            found.start[place] = None
    return found


def placed(arguments: Sequence[Any], host: Sequence[int], device: str) -> list[Any]:
    """The arguments where the rule wants them: what it reads itself on the CPU, the others on the device if one is.

    So shapes are computed on the CPU, and nothing waits for the device to know them.
    """
    on_device = any(
        isinstance(each, torch.Tensor) and each.device.type != "cpu"
        for place, each in enumerate(arguments)
        if place not in host
    )
    there = ["cpu" if place in host or not on_device else device for place in range(len(arguments))]
    return [
        each.to(where) if isinstance(each, torch.Tensor) else each for each, where in zip(arguments, there, strict=True)
    ]


def _narrow(arguments: Sequence[Any]) -> bool:
    return any(isinstance(each, torch.Tensor) and each.dtype in WIDER for each in arguments)


def _widened(compute: Compute, arguments: Sequence[Any]) -> Any:
    """What the rule gives in wider types, brought back to the first narrow type among the inputs."""
    narrow = next(each.dtype for each in arguments if isinstance(each, torch.Tensor) and each.dtype in WIDER)
    wide = [
        each.to(WIDER[each.dtype]) if isinstance(each, torch.Tensor) and each.dtype in WIDER else each
        for each in arguments
    ]
    made = compute(*wide)
    results = made if isinstance(made, tuple) else (made,)
    back = tuple(
        each.to(narrow) if isinstance(each, torch.Tensor) and each.dtype == WIDER[narrow] else each for each in results
    )
    return back if isinstance(made, tuple) else back[0]
