"""Whole models: choose versions and inputs, chain blocks, add what exporters leave behind."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxcomp.target import supported
from onnxcomp.testing.models import branching, convolutions, linear, pointwise, recurrent, shaping
from onnxcomp.testing.models.building import BATCH, BLOCKS, Block, Builder, ModelState, Value
from onnxcomp.testing.models.choosing import Chooser, RandomChooser, chance, choice
from onnxcomp.testing.models.storage import random_weight

BLOCK_MODULES = (branching, convolutions, linear, pointwise, recurrent, shaping)
FIRST_OPSET, NEWER_OPSETS, LAST_OPSET = 9, 23, 28
POOLED_FROM = 256

# opset -> the IR version that came with it
IR_VERSIONS = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}
IR_VERSIONS |= {21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 13, 28: 14}

START_SHAPES: list[tuple[int, ...]] = [
    (BATCH, 3, 8, 8),
    (BATCH, 16),
    (BATCH, 6, 8),
    (BATCH, 8, 8, 3),
    (BATCH, 2, 4, 4, 4),
    (BATCH, 4, 7, 5),
    (BATCH, 5, 12),
    (BATCH, 48),
]


def build_model(chooser: Chooser, *, first_block: str | None = None, blocks: int | None = None) -> onnx.ModelProto:
    """Build the model that `chooser`'s answers describe; `first_block` names the block it starts with."""
    opset = _opset(chooser, BLOCKS[first_block] if first_block else None)
    state = ModelState(
        chooser=chooser,
        random=np.random.default_rng(chooser.integer(0, 2**32 - 1)),
        opset=opset,
        ir_version=_ir_version(chooser, opset),
        symbolic_batch=chance(chooser, 50),
    )
    if first_block is not None:
        state.ir_version = max(state.ir_version, BLOCKS[first_block].ir_version)
    b = Builder(state)
    x = _start(b, BLOCKS[first_block].ranks if first_block else (2, 3, 4, 5))
    if first_block is not None:
        x = BLOCKS[first_block].extend(b, x)
    for _ in range(chooser.integer(0 if first_block else 1, 5) if blocks is None else blocks):
        x = _extend(b, x)
    return _finish(b, x)


def _opset(chooser: Chooser, first: Block | None) -> int:
    """Choose an opset: the newer ones, which differ in few operators, together as often as one of the others."""
    opset = chooser.integer(max(FIRST_OPSET, first.opset if first else 0), NEWER_OPSETS)
    last = min(LAST_OPSET, supported()[0], first.last_opset if first else LAST_OPSET)
    return opset if opset < NEWER_OPSETS else chooser.integer(NEWER_OPSETS, last)


def _ir_version(chooser: Chooser, opset: int) -> int:
    """Choose IR 3 for a few old models, else the opset's own version or a newer one."""
    if opset <= 12 and chance(chooser, 20):
        return 3
    return choice(chooser, [IR_VERSIONS[opset], max(IR_VERSIONS[opset], 11)])


def _start(b: Builder, ranks: tuple[int, ...]) -> Value:
    """Add the first input: floats, or the indices of an embedding table."""
    if 3 in ranks and b.chance(15):
        indices = b.input((BATCH, 6), TensorProto.INT64, stem="tokens")
        table = random_weight(b, (b.choice([linear.VOCABULARY, 60]), 20), fan_in=4)
        return Value(b.node("Gather", [table, indices.name]), (BATCH, 6, 20))
    return b.input(b.choice([shape for shape in START_SHAPES if len(shape) in ranks]))


def _extend(b: Builder, x: Value) -> Value:
    """Append a block that fits."""
    return b.choice([block for block in BLOCKS.values() if block.fits(b, x)]).extend(b, x)


def _finish(b: Builder, x: Value) -> onnx.ModelProto:
    state = b.state
    if not b.nodes:
        x = Value(b.node("Identity", [x.name]), x.shape)
    if b.chance(25):
        x = linear.gemm(b, linear.flattened(b, _pooled(b, x)), columns=10)
        x = Value(b.node("Softmax", [x.name], axis=1), x.shape)
    _leave_behind(b)
    graph = b.graph(b.choice(["main", "torch_jit", "tf2onnx"]), [b.declare(v) for v in (*b.outputs, x)])
    opsets = [helper.make_opsetid("", state.opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(state.domains)]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=state.ir_version,
        functions=state.functions,
        producer_name="tests",
    )
    if b.chance(30) and not b.sparse_initializers:  # inference gives the readers of a sparse tensor no type
        model = onnx.shape_inference.infer_shapes(model)
    if b.chance(40):
        _annotate(model)
    return model


def _pooled(b: Builder, x: Value) -> Value:
    """The mean of each channel where a sample is large: passes that go column by column take seconds for long rows."""
    if x.rank == 2 or x.sample_size <= POOLED_FROM:
        return x
    return Value(b.node("GlobalAveragePool", [x.name]), (*x.shape[:2], *[1] * (x.rank - 2)))


def _leave_behind(b: Builder) -> None:
    """Add an initializer and a node that nothing reads."""
    if b.chance(20):
        b.initializer(b.normal((7, 5)))
    if b.chance(15):
        b.node("Neg", [b.constant([1.0, 2.0], np.float32)])


def _annotate(model: onnx.ModelProto) -> None:
    """Write doc strings and metadata wherever the IR version has a place for them."""
    model.doc_string = "drawn by onnxcomp.testing"
    model.domain, model.model_version, model.producer_version = "org.example", 3, "1.0"
    model.metadata_props.add(key="author", value="nobody")
    model.graph.doc_string = "a graph"
    for node in model.graph.node:
        node.doc_string = f"exported from line {len(node.input)}"
        if model.ir_version >= 10:
            node.metadata_props.add(key="namespace", value="/model/layer")
    for value in model.graph.input:
        value.doc_string = "an input"
    if model.ir_version >= 10:
        model.graph.metadata_props.add(key="split", value="0")


def draw_models(count: int, seed: int = 0) -> list[onnx.ModelProto]:
    """Return `count` models, the same for the same seed; every block in turn comes first in one of them."""
    names = sorted(BLOCKS)
    return [
        build_model(RandomChooser(seed * 1_000_003 + index), first_block=names[index % len(names)])
        for index in range(count)
    ]
