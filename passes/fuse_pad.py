"""A Pad by zeros goes into the convolutions that read it.

    y = Conv<pads=p>(Pad<q>(x))        becomes        y = Conv<pads=p+q>(x)

TensorFlow's padding is uneven and comes as Pad nodes. ONNX Runtime fuses them in float models itself, but not
where they stand between a Conv and its QuantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import constant_value, given, has_references, ints, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import bypass
from onnxcomp.graph.ir.topology import ordered

Pads = list[int]


@dataclass(frozen=True, kw_only=True)
class FusePad(Pass):
    """Fuse the zeros that a Pad adds into the convolutions after it."""

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.TENSORS, rounding=True)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for scope in graph.scopes:
            for node in ordered(scope.graph.nodes):
                if is_onnx(node, "Pad") and context.selects(node_key(scope, node)):
                    _fuse(graph, scope, node, outcome)
        return outcome


def _fuse(graph: Graph, scope: Scope, pad: Node, outcome: Outcome) -> None:
    key = node_key(scope, pad)
    readers = list(pad.outputs[0].outputs)
    pads = _zeros_added(pad)
    reason = None
    if pads is None:
        reason = "it does not add a constant number of zeros"
    elif graph.is_output(pad.outputs[0]) or not readers:
        reason = "its output is an output of the model"
    else:
        reason = next((why for each in readers if (why := _unfit(each, pad, pads)) is not None), None)
    if reason or pads is None:
        outcome.skip(key, reason or "")
        return
    rank = len(pads) // 2
    for reader in readers:
        own = reader.attrs.get("pads") or [0] * (2 * (rank - 2))
        reader.attrs["pads"] = [a + b for a, b in zip(own, [*pads[2:rank], *pads[rank + 2 :]], strict=True)]
        reader.attrs.pop("auto_pad", None)
    bypass(graph, scope, pad, pad.inputs[0])
    outcome.change(key, "fused Pad", into=[each.name or each.outputs[0].name for each in readers])


def _zeros_added(pad: Node) -> Pads | None:
    """How many zeros the node adds before and after each axis, None where it does something else."""
    if pad.attrs.get("mode", "constant") != "constant" or has_references(pad) or given(pad, 3) is not None:
        return None
    value = pad.attrs.get("value", 0.0)
    if given(pad, 2) is not None:
        constant = constant_value(given(pad, 2))
        value = 1.0 if constant is None or constant.any() else 0.0
    pads = pad.attrs.get("pads") if given(pad, 1) is None else ints(given(pad, 1))
    return None if value or pads is None else [int(each) for each in pads]


def _unfit(reader: Node, pad: Node, pads: Pads) -> str | None:
    rank = len(pads) // 2
    if not is_onnx(reader, "Conv") or has_references(reader):
        return f"it is also read by {reader.op} {reader.name}".rstrip()
    if any(each is pad.outputs[0] for each in reader.inputs[1:]):
        return f"{reader.name or reader.op} reads it as a weight"
    if min(pads) < 0 or any(pads[:2]) or any(pads[rank : rank + 2]):
        return "it pads the batch or the channels, or cuts"
    if reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{reader.name or reader.op} finds its own padding"
    return None
