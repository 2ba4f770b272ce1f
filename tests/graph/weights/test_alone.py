"""A weight by itself is to passes what it is in its model, wherever it is kept, and after any journey."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context, Needs, Outcome, parameters
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.stored.opening import is_stored, open_plain
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.matrix_form import matrix_form
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass, pass_names
from onnxcomp.testing import drawn
from onnxcomp.testing.applying import variants
from tests.graph.weighted import PLACES, matrix, model_with
from tests.passes.exactly import model as from_text

WEIGHT_PASSES = [name for name in pass_names() if issubclass(get_pass(name), WeightPass)]
CONTEXT = Context(seed=7, max_opset=21)
EARLIER = {  # what leaves encodings and decoders behind
    "pruned": [("prune-weights", {"sparsity": 0.6})],
    "rounded": [("quantize-weights", {"bits": 4})],
    "clustered": [("cluster-weights", {"bits": 3})],
    "stored": [("cluster-weights", {"bits": 3}), ("store-compact", {})],
}


def facts(weight: Weight) -> dict[str, Any]:
    """All that a pass can see of a weight, but for its shape and values."""
    return {
        "name": weight.name,
        "dtype": weight.dtype,
        "encoding": None if weight.encoding is None else json.dumps(weight.encoding.to_dict()),
        "kinds": weight.kinds,
        "axes": (weight.channel_axis, weight.input_axis),
        "nodes": weight.node_names,
        "roles": [
            (each.kind, each.input_index, each.channel_axis, each.input_axis, each.direct, each.axes)
            for each in weight.roles
        ],
        "readers": [
            (each.node.op, each.node.domain, {name: str(value) for name, value in each.node.attrs.items()
                                              if not name.endswith(("branch", "body"))})
            for each in weight.roles
        ],
    }  # fmt: skip


def sent(weight: Weight) -> LoneWeight:
    """The weight by itself in another process."""
    found: LoneWeight = pickle.loads(pickle.dumps(LoneWeight.of(weight)))
    return found


def rewritten(source: onnx.ModelProto, steps: list[tuple[str, dict[str, Any]]]) -> Model:
    model = load(source)
    for name, fields in steps:
        model, _ = apply_pass(model, get_pass(name)(**fields), CONTEXT)
    return model


def assert_the_same(model: Model, where: object) -> Iterator[Weight]:
    for weight in weights(open_plain(model)):
        own = sent(weight).opened()
        assert facts(own) == facts(weight), (where, weight.name)
        assert matrix_form(own) == matrix_form(weight), (where, weight.name)
        assert own.shape == weight.shape
        assert np.asarray(own.values).tobytes() == np.asarray(weight.values).tobytes(), (where, weight.name)
        yield weight


def test_drawn_weights_are_what_they_are_in_their_models() -> None:
    seen = [each for sample in drawn() for each in assert_the_same(load(sample.proto), sample.name)]
    kinds = {kind for each in seen for kind in each.kinds}
    assert kinds >= {"conv", "conv_transpose", "linear", "embedding", "recurrent", "other"}
    assert {each.scope.kind for each in seen} == {"main", "subgraph", "function"}
    assert {str(each.dtype) for each in seen} >= {"float32", "float64"}
    assert any(len(each.roles) > 1 for each in seen)
    assert any(each.tensor.as_node for each in seen)
    assert any(is_stored(each.tensor) for each in seen)
    attributes = [role.node.attrs for each in seen for role in each.roles]
    assert any(each.get("group", 1) != 1 for each in attributes)
    behind = {maker.op for each in seen for role in each.roles for maker in role.node.inputs[role.input_index].inputs}
    assert behind >= {"Transpose", "Reshape", "Cast", "Identity"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("earlier", EARLIER)
def test_weights_of_every_place_are_what_earlier_passes_made_them(place: str, earlier: str) -> None:
    model = rewritten(model_with(matrix("tail"), place=place), EARLIER[earlier])
    seen = list(assert_the_same(model, place))
    assert seen
    assert all(each.encoding is not None or is_stored(each.tensor) for each in seen)


def short(dtype: str) -> onnx.ModelProto:
    """A matrix that is read as what it is stored as, once directly and once behind a Cast."""
    proto = from_text(
        f"g ({dtype}[N, 96] x) => ({dtype} y, float z) <{dtype}[96, 140] w = {{0}}> "
        "{ y = MatMul(x, w) c = Cast <to = 1> (x) t = Cast <to = 1> (w) z = MatMul(c, t) }"
    )
    values = matrix("tail").astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(dtype.upper())))
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    return proto


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_short_floats_are_what_they_are_in_their_models(dtype: str) -> None:
    (weight,) = assert_the_same(load(short(dtype)), dtype)
    assert str(weight.dtype) == dtype.replace("double", "float64")
    assert [each.direct for each in weight.roles] == [True, False]


def test_a_lone_weight_is_small_beside_its_values() -> None:
    (weight,) = weights(open_plain(load(model_with(matrix("tail")))))
    assert len(LoneWeight.of(weight).structure) < 200


def test_changes_stay_in_what_was_opened() -> None:
    (weight,) = weights(open_plain(load(model_with(matrix("tail")))))
    lone, before = sent(weight), np.array(weight.values)
    own = lone.opened()
    own.set(np.zeros_like(before))
    assert not np.any(own.values)
    assert np.array_equal(lone.opened().values, before)
    with pytest.raises(ValueError, match="read-only"):
        lone.opened().values[0] = 1


# --- what passes make of it ----------------------------------------------------------------------------


def strengths(name: str) -> Iterator[WeightPass]:
    """Each choice and switch of a pass, and each strength."""
    kind = get_pass(name)
    made = [*variants(kind), *(kind(**{one.name: each}) for one in parameters(kind) for each in one.strengths or ())]
    for each in made:
        assert isinstance(each, WeightPass)
        if each.composes() and each.needed() is Needs.NOTHING:
            yield each


def edited(weight: Weight, rewrite: WeightPass) -> tuple[Weight, list[Any]]:
    own, outcome = sent(weight).opened(), Outcome()
    reason = rewrite.obstacle(own)
    if reason is None:
        rewrite.edit(own, None, Context(seed=CONTEXT.seed, max_opset=CONTEXT.max_opset), outcome)
    else:
        outcome.skip(own.name, reason)
    return own, [*outcome.changed, *outcome.skipped]


def assert_edits_are_the_same(model: Model, rewrite: WeightPass) -> int:
    """The number of weights that were changed."""
    after, outcome = apply_pass(model, rewrite, CONTEXT)
    expected = {each.name: each for each in weights(open_plain(after))}
    said = {each.name: each for each in (*outcome.changed, *outcome.skipped)}
    for weight in weights(open_plain(model)):
        if not np.isfinite(np.asarray(weight.values, np.float64)).all():
            continue
        own, told = edited(weight, rewrite)
        there = expected[weight.name]
        assert told == [said[weight.name]], (rewrite, weight.name)
        assert np.asarray(own.values).tobytes() == np.asarray(there.values).tobytes(), (rewrite, weight.name)
        if not is_stored(there.tensor):  # what a decoder makes is known by that
            assert facts(own)["encoding"] == facts(there)["encoding"], (rewrite, weight.name)
    return len(outcome.changed)


@pytest.mark.parametrize("name", WEIGHT_PASSES)
def test_a_pass_makes_the_same_of_a_lone_weight(name: str) -> None:
    changed = 0
    for at, rewrite in enumerate(strengths(name)):
        changed += sum(assert_edits_are_the_same(load(sample.proto), rewrite) for sample in drawn()[at % 22 :: 22])
    assert changed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
@pytest.mark.parametrize("name", WEIGHT_PASSES)
def test_a_pass_makes_the_same_of_short_floats(name: str, dtype: str) -> None:
    for rewrite in strengths(name):
        assert_edits_are_the_same(load(short(dtype)), rewrite)


@pytest.mark.parametrize("earlier", EARLIER)
@pytest.mark.parametrize("name", WEIGHT_PASSES)
def test_a_pass_makes_the_same_of_what_was_changed_before(name: str, earlier: str) -> None:
    model = rewritten(model_with(matrix("tail"), place="outside a branch"), EARLIER[earlier])
    for rewrite in strengths(name):
        assert_edits_are_the_same(model, rewrite)


# --- samples -------------------------------------------------------------------------------------------

READERS = {  # the weight's shape, where its channels are, and what reads it
    "matrix": ((64, 400), 1, "y = MatMul(x, w)"),
    "turned matrix": ((400, 64), 0, "t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)"),
    "rows": ((400, 64), 0, "y = Gemm <transB = 1> (x, w)"),
    "table": ((400, 64), 0, "y = Gather(w, i)"),
    "kernel": ((200, 32, 3, 3), 0, "y = Conv(x, w)"),
    "grouped kernel": ((200, 32, 3, 3), 0, "y = Conv <group = 25> (x, w)"),
    "turned kernel": ((32, 200, 3, 3), 1, "y = ConvTranspose(x, w)"),
    "gates": ((1, 400, 64), 1, "y = LSTM <hidden_size = 100> (x, w, r)"),
    "left": ((400, 64), 0, "y = MatMul(w, x)"),
    "batches": ((4, 16, 400), 2, "y = MatMul(x, w)"),
}


def weight_of(shape: tuple[int, ...], reader: str) -> Weight:
    text = f"g (float x, float r, int64 i) => (float y) <float[{', '.join(map(str, shape))}] w = {{0}}> {{ {reader} }}"
    proto = from_text(text)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    (found,) = weights(open_plain(load(proto)))
    return found


@pytest.mark.parametrize(("shape", "axis", "reader"), READERS.values(), ids=READERS)
def test_a_sample_is_of_whole_channels_evenly_spread(shape: tuple[int, ...], axis: int, reader: str) -> None:
    weight = weight_of(shape, reader)
    assert weight.channel_axis == axis
    sample = sent(weight).sample(4096)
    count = sample.values.shape[axis]
    assert 16 <= count < shape[axis]
    channels = np.moveaxis(weight.values, axis, 0).reshape(shape[axis], -1)
    taken = np.moveaxis(sample.values, axis, 0).reshape(count, -1)
    places = [int(np.flatnonzero((channels == each).all(axis=1))[0]) for each in taken]
    assert max(np.diff(places)) - min(np.diff(places)) <= 1, places
    assert abs(places[0] - (shape[axis] - 1 - places[-1])) <= 1, "as far from the first channel as from the last"
    assert sample.share == count / shape[axis]
    own = sample.opened()
    assert facts(own) == facts(weight)
    assert own.shape == sample.values.shape
    assert (matrix_form(own) is None) == (matrix_form(weight) is None)


def test_a_sample_has_as_many_channels_of_each_group() -> None:
    shape, _, reader = READERS["grouped kernel"]
    weight = weight_of(shape, reader)
    sample = sent(weight).sample(8192)
    form, whole = matrix_form(sample.opened()), matrix_form(weight)
    assert form is not None and whole is not None and form.groups == whole.groups == 25
    for own, every in zip(form.pack(sample.values), whole.pack(np.asarray(weight.values)), strict=True):
        assert {tuple(each) for each in own} <= {tuple(each) for each in every}


def test_small_weights_and_those_without_channels_are_their_own_samples() -> None:
    lone = sent(weight_of((64, 400), "y = MatMul(x, w)"))
    assert lone.sample(64 * 400) is lone
    assert lone.sample(10).values.shape == (64, 16)
    both = sent(weight_of((64, 64), "z = MatMul(x, w) y = MatMul(w, z)"))
    assert both.channel_axis is None
    assert both.sample(1000) is both


@pytest.mark.parametrize("earlier", ["pruned", "rounded", "clustered"])
def test_what_has_levels_already_is_its_own_sample(earlier: str) -> None:
    (weight,) = weights(open_plain(rewritten(model_with(matrix("tail")), EARLIER[earlier])))
    lone = sent(weight)
    assert lone.sample(1000) is lone
