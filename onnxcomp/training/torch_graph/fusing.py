"""Chains that torch has as one operator: fewer values are kept, and the step of a transformer is a tenth shorter.

    x / √2 -> Erf -> + 1 -> · x -> · 0.5        becomes        Gelu(x)
    MatMul(a, b) -> + c                         becomes        a b + c, at once where c is a bias
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.program import NOTHING, Frame, NodeStep
from onnxcomp.training.torch_graph.rule import Call, Tensor, TorchRule

CLOSE = 1e-3  # how far a constant may be off: it may have been a short float


def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x)


def _product_and_sum(call: Call, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    is_bias = b.dim() == 2 and a.dim() > 1 and c.shape == b.shape[1:] and c.dtype.is_floating_point
    return F.linear(a, b.t(), c) if is_bias else torch.matmul(a, b) + c


class ChainFuser:
    """The steps of one graph: who reads what, and which places hold constants."""

    def __init__(self, steps: Sequence[NodeStep], start: Frame, constant: Collection[int], kept: Sequence[int]) -> None:
        self._steps = steps
        self._start = start
        self._constant = constant
        self._readers = Counter(place for step in steps for place in step.reads())
        self._readers.update(kept)  # what is given out is read
        self._next = {place: step for step in steps for place in step.reads()}

    def fused(self) -> list[NodeStep]:
        """The steps with each chain as its last step."""
        dropped: set[int] = set()
        made: dict[int, NodeStep] = {}
        for step in self._steps:
            chain = self._gelu_from(step)
            if chain:
                dropped.update(id(each) for each in chain[:-1])
                x = chain[0].inputs[0] if chain[0].inputs[0] not in self._constant else chain[0].inputs[1]
                made[id(chain[-1])] = replace(chain[-1], rule=TorchRule(_gelu), inputs=(x,))
            plus = self._only_reader(step) if _is(step, "MatMul") else None
            if plus is not None and _is(plus, "Add") and id(plus) not in made:  # not both terms of a sum of products
                dropped.add(id(step))
                (other,) = (each for each in plus.inputs if each != step.outputs[0])
                made[id(plus)] = replace(plus, rule=TorchRule(_product_and_sum), inputs=(*step.inputs, other))
        return [made.get(id(each), each) for each in self._steps if id(each) not in dropped]

    def _gelu_from(self, first: NodeStep) -> list[NodeStep]:
        """The chain that begins with this step; nothing where it is another."""
        x = self._scaled(first, "Div", math.sqrt(2)) or self._scaled(first, "Mul", math.sqrt(0.5))
        erf = self._only_reader(first)
        if not x or erf is None or not _is(erf, "Erf"):
            return []
        plus = self._only_reader(erf)
        times = None if plus is None or not self._scaled(plus, "Add", 1.0) else self._only_reader(plus)
        if plus is None or times is None or not _is(times, "Mul") or set(times.inputs) != {x, plus.outputs[0]}:
            return []
        half = self._only_reader(times)
        if half is None or not self._scaled(half, "Mul", 0.5):
            return []
        return [first, erf, plus, times, half]

    def _only_reader(self, step: NodeStep) -> NodeStep | None:
        (place, *more) = step.outputs
        return self._next[place] if not more and self._readers[place] == 1 and place in self._next else None

    def _scaled(self, step: NodeStep, op: str, value: float) -> int:
        """The place of the other operand of a step with this constant; 0 where it is another."""
        if not _is(step, op) or len(step.inputs) != 2:
            return NOTHING
        a, b = step.inputs
        if a in self._constant and op != "Div":
            a, b = b, a
        held = self._start[b] if b in self._constant else None
        if a in self._constant or not isinstance(held, torch.Tensor) or held.numel() != 1 or held.dim() > 1:
            return NOTHING
        return a if math.isclose(held.item(), value, rel_tol=CLOSE) else NOTHING


def _is(step: NodeStep, op: str) -> bool:
    return step.call.node.op_type == op and not step.call.domain and step.call.opset >= 7
