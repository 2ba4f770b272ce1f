"""Where the target has no float16 kernels, what is between inputs and outputs is computed in float32.

    x: float16 -> Conv(w: float16) -> y    becomes    x -> Cast -> Conv(w: float16 -> Cast) -> Cast -> y

Such a target casts to float32 and back at every operator anyway. Weights stay float16 in the file, and ONNX Runtime
folds their Casts when it opens the model, so that neither bytes nor results suffer; and passes for float32, those that
quantize among them, see a float32 model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.infer.element_types import ElementTypes
from onnxcomp.graph.infer.op_schemas import FLOAT
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.precision.casts import write_casts
from onnxcomp.graph.precision.units import float_units
from onnxcomp.graph.provenance import Origin
from onnxcomp.target.asking import asking
from onnxcomp.target.short_floats import computes_in

HALF = int(TensorProto.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class RaiseFloat16(Pass):
    """Compute float16 models in float32 between Casts where the target has no float16 kernels.

    Inputs and outputs keep their types. What float16 would have rounded or driven to infinity between two nodes is
    rounded no more. Left alone are calls of local functions, nodes between quantizing ones and what the target does not
    load in float32; and everything on targets that compute in float16.
    """

    effect = Effect(shrinks=("latency",), exact=Exact.OUTPUTS, rounding=True)
    prepared_by = ("inline-functions",)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        name = "cpu" if context.target is None else context.target.name
        if computes_in(name, "float16"):
            outcome.skip(graph.model.name, f"{name} computes in float16")
            return outcome
        types = ElementTypes(graph, infer_shapes(graph), asking(context.target, graph.model))
        units = float_units(graph, types, FLOAT, types.loads, present=HALF)
        changed = {each for each in units.found if context.selects(*each.names)}
        write_casts(graph, changed, "float32", present=np.dtype(np.float16).name)
        done = dict.fromkeys(each.key for each in units.found if each in changed)
        outcome.origins |= {unit.scope.key(each.name): Origin(None) for unit in changed for each in unit.tensors}
        for key in done:
            outcome.change(key, "computes in float32")
        for key, why in units.left.items():
            if key not in done and context.selects(key):
                outcome.skip(key, why)
        return outcome
