"""Why a model is slower than it need be: what was seen where it ran, what it costs, and what mends it.

Each cause is a function of an examination. It names the passes that should mend it; whether they do is measured
afterwards (``diagnosis``), and what does not help is not advised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import Pass
from onnxcomp.doctor.examination import Examination, counted
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import IntegerGain
from onnxcomp.target.short_floats import computes_in

WORTH_TRYING = 1.2  # times as fast: what integers gain on the machine
SHARE_WORTH_TRYING = 0.2  # of the time of a run: that of products in float32
WORTH_SAYING = 0.02  # of the time of a run
REORDERING = ("ReorderInput", "ReorderOutput")  # into and out of ONNX Runtime's blocks of channels
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedGemm", "FusedMatMul", "Conv", "FusedConv"})
AT_ENDS = (
    "those at inputs and outputs go only with another export (`python -m tf2onnx.convert` has --inputs-as-nchw and "
    "--outputs-as-nchw)"
)
LARGEST_FOLDED = 2**30  # bytes: what is larger ONNX Runtime does not compute beforehand


@dataclass(frozen=True)
class Cause:
    """Something that takes time.

    share: of a run, 0 where that cannot be said. ways: what should mend it, each some passes in turn; command: how the
    user has the best of them applied, without the model; "" where nothing does. is_guess: it is a fault only where
    mending it gains. advice: what else there is to say.
    """

    name: str
    what: str
    share: float = 0.0
    command: str = ""
    ways: tuple[tuple[Pass, ...], ...] = ()
    advice: str = ""
    is_guess: bool = False


def causes_of(seen: Examination, gains: Sequence[IntegerGain]) -> list[Cause]:
    """All causes found, the one that takes most time first."""
    looks: tuple[Callable[[Examination], Cause | None], ...] = (
        _falling_back, _idle_pairs, _computed_weights, _short_floats, _transposes, _unfolded,
    )  # fmt: skip
    found = [cause for look in looks if (cause := look(seen)) is not None]
    floats = _floats(seen, gains)
    return sorted([*found, *([] if floats is None else [floats])], key=lambda each: -each.share)


def _falling_back(seen: Examination) -> Cause | None:
    """Nodes that another provider runs than the one that was asked for."""
    others = [each for each in seen.kernels if each.provider and each.provider != seen.target.provider]
    if not others:
        return None
    return Cause(
        "other provider",
        f"{seen.target.name} does not run {counted([each.operator for each in others])}: they run on "
        f"{', '.join(sorted({each.provider for each in others}))}, and what they read is copied there and back",
        seen.share(others),
        advice="`onnxcomp bench MODEL --ep cpu` says whether all of it is faster there; what has to stay wants other "
        "operators from the exporter",
    )


def _idle_pairs(seen: Examination) -> Cause | None:
    """Conversions between floats and codes that no integer kernel took in, ends of the model aside."""
    inputs, outputs = ({each.name for each in ends} for ends in (seen.graph.input, seen.graph.output))
    took = seen.seconds_by_name()
    decoded: set[str] = set()
    idle, spent = [], 0.0
    for node in seen.nodes():
        if node.op_type == "DequantizeLinear" and node.input[0] not in seen.constants:
            decoded |= set(node.output)
        is_end = bool(inputs.intersection(node.input[:1])) or bool(outputs.intersection(node.output))
        if node.op_type in CONVERSIONS and not is_end:
            spent += took.get(node.name, 0.0)
    for node in seen.nodes():
        if node.op_type not in CONVERSIONS and decoded.intersection(node.input):
            idle.append(node.op_type)
    share = spent / seen.seconds
    if not idle or share < WORTH_SAYING:
        return None
    return Cause(
        "idle Q/DQ pairs",
        f"{counted(idle)} compute in floats between DequantizeLinear and QuantizeLinear: {seen.target.name} has no "
        "integer kernel for them as they are quantized",
        share,
        "run drop-quantization",
        ((get_pass("drop-quantization")(),),),
        "`onnxcomp optimize MODEL --recipe fast --calib-data SAMPLES` quantizes anew, in a form that has kernels here",
    )


def _computed_weights(seen: Examination) -> Cause | None:
    """Nodes that depend on constants alone and run all the same, at every run."""
    took = seen.seconds_by_name()
    repeated = [
        node
        for node in seen.nodes()
        if node.name in took and node.input and all(not each or each in seen.constants for each in node.input)
    ]
    share = sum(took[each.name] for each in repeated) / seen.seconds
    if not repeated or share < WORTH_SAYING:
        return None
    decodes = any(each.op_type == "DequantizeLinear" for each in repeated)
    passes: list[Pass] = [get_pass("drop-quantization")()] if decodes else []
    folding: Any = get_pass("fold-constants")
    command = "run drop-quantization"
    if not decodes:
        passes, command = [folding(growth_bytes=LARGEST_FOLDED)], f"run fold-constants --growth-bytes {LARGEST_FOLDED}"
    return Cause(
        "weights computed at every run",
        f"{counted([each.op_type for each in repeated])} depend on constants alone, and ONNX Runtime does not compute "
        "them beforehand",
        share,
        command,
        (tuple(passes),),
        "the file grows by what the codes saved" if decodes else "",
    )


def _short_floats(seen: Examination) -> Cause | None:
    """float16 where there are no kernels for it: Casts on all sides."""
    short = [each for each in seen.model.proto.graph.input if each.type.tensor_type.elem_type == 10]
    halves = any(each.data_type == 10 for each in seen.model.proto.graph.initializer) or bool(short)
    if not halves or computes_in(seen.target.name, "float16"):
        return None
    casts = seen.of_operators("Cast")
    return Cause(
        "float16 without kernels",
        f"{seen.target.name} computes float16 in float32, between {len(casts)} Casts",
        seen.share(casts),
        "run raise-float16",
        ((get_pass("raise-float16")(),),),
        "weights stay float16 in the file",
    )


def _transposes(seen: Examination) -> Cause | None:
    """Transposes that ONNX Runtime could not move into each other."""
    found = seen.of_operators("Transpose", *REORDERING)
    share = seen.share(found)
    if share < WORTH_SAYING:
        return None
    ends = {each.name for each in seen.graph.input} | {each.name for each in seen.graph.output}
    took = seen.seconds_by_name()
    turns = [node for node in seen.nodes() if node.op_type == "Transpose" and node.name in took]
    at_ends = sum(bool(ends.intersection((*node.input, *node.output))) for node in turns)
    where = f", {at_ends} of them at inputs and outputs of the model" if at_ends else ""
    return Cause(
        "Transposes",
        f"{counted([each.operator for each in found])} move activations between layouts{where}",
        share,
        "optimize --recipe lossless",
        (_exact_passes(),),
        AT_ENDS if at_ends else "",
    )


def _unfolded(seen: Examination) -> Cause | None:
    """What exact rewriting leaves out: of any model, so that the gain alone decides."""
    return Cause(
        "what can be left out",
        "constants to fold, normalizations and paddings to fuse, chains to merge",
        0.0,
        "optimize --recipe lossless",
        (_exact_passes(),),
        is_guess=True,
    )


def _floats(seen: Examination, gains: Sequence[IntegerGain]) -> Cause | None:
    """Products in float32 where integers are faster."""
    found = [each for each in seen.kernels if each.operator in PRODUCTS and _is_float(each.reads)]
    share = seen.share(found)
    faster = min((each.times_faster for each in gains), default=1.0)
    if faster < WORTH_TRYING or share < SHARE_WORTH_TRYING:
        return None
    return Cause(
        "products in float32",
        f"{counted([each.operator for each in found])} compute in float32; in 8 bits they are up to {faster:.1f} times "
        "as fast on this processor",
        share,
        "optimize --recipe fast --calib-data SAMPLES",
        tuple((*_exact_passes(), get_pass(name)()) for name in ("quantize-static", "quantize-dynamic")),
        "whether the accuracy bears it, that command finds out; latency was measured of all of it in 8 bits",
        is_guess=True,
    )


def _is_float(reads: Sequence[tuple[str, tuple[int, ...]]]) -> bool:
    return all(kind == "float" for kind, shape in reads if np.prod(shape) > 1)


def _exact_passes() -> tuple[Pass, ...]:
    """Those of the recipe lossless that change the graph; how constants are stored changes no latency."""
    return tuple(each for each in Recipe.load("lossless").passes if not each.stores_encodings)
