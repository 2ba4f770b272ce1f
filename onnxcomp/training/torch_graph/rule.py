"""How an operator is computed: a rule is a function of its node's ``Call`` and its inputs, in torch.

    @rule("LeakyRelu")
    def leaky_relu(call, x):
        return F.leaky_relu(x, call.get("alpha", 0.01))

Tensors are torch's; a sequence is a list, an empty optional and an omitted input are None. A rule gives one value, or a
tuple of as many as the node may have. Its derivative is what autograd makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import NodeProto

from onnxcomp.errors import PassError
from onnxcomp.operators import ONNX_DOMAINS

Tensor = torch.Tensor
Compute = Callable[..., Any]
Body = Callable[..., list[Any]]
"""A subgraph of a node: from its inputs to its outputs."""


class NodeError(PassError):
    """A node that could not be computed on what it was given."""


class Draws:
    """Random numbers: each node has a generator of its own, which starts anew with every run of the model."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._generators: dict[int, torch.Generator] = {}

    def begin(self) -> None:
        """Start a run."""
        self._generators.clear()

    def of(self, seed: int) -> torch.Generator:
        """The generator of the node with this seed."""
        if seed not in self._generators:
            self._generators[seed] = torch.Generator(self._device).manual_seed(seed)
        return self._generators[seed]


@dataclass
class Call:
    """What a rule knows of its node apart from the inputs.

    opset: the version of the operator's own domain. outputs: how many the node names. kinds, made: element types of
    inputs and outputs by ONNX's numbers, 0 where not looked for (only types below a byte are: torch has none of them).
    seed: of its random numbers. kept: what was prepared for inputs of these types and shapes.
    """

    node: NodeProto
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    device: str
    seed: int
    draws: Draws
    outputs: int
    kinds: tuple[int, ...] = ()
    made: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.kept: dict[Any, Any] = {}
        self.get: Callable[..., Any] = self.attributes.get  # called for every node of every step

    @property
    def name(self) -> str:
        """What messages call the node."""
        outputs = ", ".join(each for each in self.node.output if each)
        return f"{operator_name(self.node.op_type, self.domain)} {self.node.name or outputs!r}"

    def generator(self) -> torch.Generator:
        """Where the node's random numbers come from."""
        return self.draws.of(self.seed)


@dataclass(frozen=True)
class TorchRule:
    """compute: what computes the operator.

    is_discrete: the derivative is zero wherever there is one. is_random: two runs need not give the same.
    has_bodies: ``compute`` takes the node's subgraphs, ``{attribute: Body}``, before its inputs.
    reads_host: inputs whose values are read by Python: shapes, axes, conditions. They stay on the CPU.
    """

    compute: Compute
    is_discrete: bool = False
    is_random: bool = False
    has_bodies: bool = False
    reads_host: tuple[int, ...] = ()


RULES: dict[tuple[str, str], TorchRule] = {}
"""TorchRule by domain ("" for ONNX's own) and operator; filled by the modules of ``rules`` and ``microsoft``."""


def rule(
    *operators: str,
    domain: str = "",
    discrete: bool = False,
    random: bool = False,
    bodies: bool = False,
    host: tuple[int, ...] = (),
) -> Callable[[Compute], Compute]:
    """Make a function the rule of these operators (see ``TorchRule``)."""

    def register(compute: Compute) -> Compute:
        for each in operators:
            if (domain, each) in RULES:
                raise ValueError(f"{each} has two rules")
            RULES[domain, each] = TorchRule(compute, discrete, random, bodies, host)
        return compute

    return register


def plain_domain(domain: str) -> str:
    """The domain, without alias."""
    return "" if domain in ONNX_DOMAINS else domain


def operator_name(op: str, domain: str) -> str:
    """``Op``, or ``domain::Op`` outside the default domain."""
    return f"{domain}::{op}" if plain_domain(domain) else op
