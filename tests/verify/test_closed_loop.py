"""onnxcomp.verify.closed_loop: models on their own states, against loops in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.errors import VerificationError
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.verify.closed_loop import ClosedLoop, closed_loop_for

CPU = Target.of("cpu")
MODELS = Path(__file__).parents[2] / "models"
RNG = np.random.default_rng(0)


def parsed(text: str, **values: Any) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return load(proto)


def accumulator(factor: float = 0.5, dims: str = "N, 1") -> Model:
    """hn = factor h + x, y = hn."""
    return parsed(
        f"g (float[{dims}] x, float[{dims}] h) => (float[{dims}] y, float[{dims}] hn)"
        " { a = Mul(h, factor) hn = Add(a, x) y = Identity(hn) }",
        factor=np.float32(factor),
    )


def opened(model: Model, folder: Path, **arrays: Any) -> CalibrationData:
    np.savez(folder / "c.npz", **arrays)
    session = Session(model.to_bytes())
    return CalibrationData.open(folder / "c.npz", session.inputs, run=session.run)


def outputs_of(loop: ClosedLoop, model: Model) -> Iterator[dict[str, Any]]:
    return loop.outputs(Session(model.to_bytes()))


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dims", ["N, 1", "1, 1"])
def test_each_model_goes_on_from_its_own_state(tmp_path: Path, dims: str) -> None:
    x, h = noise(512, 1), noise(512, 1)
    data = opened(accumulator(0.5, dims), tmp_path, x=x, h=h)
    loop, why = closed_loop_for(accumulator(0.5, dims), data, CPU)
    assert loop is not None and why is None
    assert (loop.sequences, loop.steps) == (16, 32)
    for factor, outputs in ((0.5, loop.reference), (0.25, outputs_of(loop, accumulator(0.25, dims)))):
        made = np.concatenate([each["hn"] for each in outputs]).ravel()
        expected = np.zeros((16, 32), np.float32)
        for lane in range(16):
            state = h[lane * 32, 0]
            for step in range(32):
                state = expected[lane, step] = np.float32(factor) * state + x[lane * 32 + step, 0]
        batched = expected.T if dims[0] == "N" else expected  # a model of one sample runs one sequence after another
        np.testing.assert_allclose(made, batched.ravel(), rtol=1e-6)


def test_its_batches_are_laid_out_as_any(tmp_path: Path) -> None:
    data = opened(accumulator(), tmp_path, x=noise(512, 1), h=noise(512, 1))
    loop = ClosedLoop(accumulator(), data, CPU)
    assert [layout.count for layout in loop.layouts] == [16] * 32
    assert {tuple(sorted(layout.axes.items())) for layout in loop.layouts} == {(("h", 0), ("x", 0))}
    assert [each["y"].shape for each in loop.reference] == [(16, 1)] * 32


def test_few_samples_take_part_in_several_sequences(tmp_path: Path) -> None:
    data = opened(accumulator(), tmp_path, x=noise(10, 1), h=noise(10, 1))
    loop = ClosedLoop(accumulator(), data, CPU)
    assert (loop.sequences, loop.steps) == (8, 32)


def test_short_sequences_follow_one_another(tmp_path: Path) -> None:
    x = noise(60, 5, 1)
    np.savez(tmp_path / "c.npz", x=x, h=noise(60, 5, 1))
    session = Session(accumulator().to_bytes())
    data = CalibrationData.open(Sequences(tmp_path / "c.npz", 1), session.inputs)
    loop = ClosedLoop(accumulator(), data, CPU)
    assert (loop.sequences, loop.steps) == (9, 32)


def test_long_sequences_are_run_in_their_order(tmp_path: Path) -> None:
    x, h = noise(20, 24, 1), noise(20, 24, 1)
    np.savez(tmp_path / "c.npz", x=x, h=h)
    session = Session(accumulator().to_bytes())
    data = CalibrationData.open(Sequences(tmp_path / "c.npz", 1), session.inputs)
    loop = ClosedLoop(accumulator(), data, CPU)
    assert (loop.sequences, loop.steps) == (16, 24)
    made = np.stack([each["hn"][:, 0] for each in loop.reference], axis=1)
    for own in made:
        [at] = np.flatnonzero(np.isclose(own[0], 0.5 * h[:, 0, 0] + x[:, 0, 0]))
        state = h[at, 0, 0]
        for step in range(24):
            state = 0.5 * state + x[at, step, 0]
            np.testing.assert_allclose(own[step], state, rtol=1e-5, atol=1e-6)


CACHE = (
    "g (float[N, S, 2] x, float[N, P, 2] past, int64[N, S] position_ids, int64[N, M] attention_mask)"
    " => (float[N, S, 2] y, float[N, T, 2] present) {"
    " k = Mul(x, factor) present = Concat<axis = 1>(past, k) seen = Cast<to = 1>(attention_mask)"
    " column = Unsqueeze(seen, two) kept = Mul(present, column) s = ReduceSum<keepdims = 1>(kept, one)"
    " at = Cast<to = 1>(position_ids) where = Unsqueeze(at, two) z = Add(x, where) y = Add(z, s) }"
)


def cache(factor: float) -> Model:
    """present = past and factor x; y = x + position + the sum of all rows that the mask shows."""
    return parsed(CACHE, factor=np.float32(factor), one=np.int64([1]), two=np.int64([2]))


@pytest.mark.parametrize("length", [0, 7])
def test_a_cache_is_the_models_own_from_the_first_row_on(tmp_path: Path, length: int) -> None:
    x = noise(512, 1, 2)
    data = opened(
        cache(1), tmp_path, x=x, past=noise(512, length, 2),
        position_ids=np.full((512, 1), length), attention_mask=np.ones((512, length + 1), np.int64),
    )  # fmt: skip
    loop = ClosedLoop(cache(1), data, CPU)
    assert (loop.sequences, loop.steps) == (16, 32)
    lanes = x.reshape(16, 32, 2)
    for step, outputs in enumerate(outputs_of(loop, cache(3))):
        np.testing.assert_array_equal(outputs["present"][:, 0], 3 * lanes[:, step])  # the new row only
        expected = lanes[:, step] + step + 3 * lanes[:, : step + 1].sum(axis=1)
        np.testing.assert_allclose(outputs["y"][:, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_mask_over_the_new_rows_only_is_left_alone(tmp_path: Path) -> None:
    model = parsed(  # of any other length it would make more rows than were fed
        "g (float[N, S, 2] x, float[N, P, 2] past, float[N, M, 1] attention_mask)"
        " => (float[N, S, 2] y, float[N, T, 2] present)"
        " { z = Mul(x, attention_mask) present = Concat<axis = 1>(past, z)"
        " s = ReduceSum<keepdims = 1>(present, one) y = Add(z, s) }",
        one=np.int64([1]),
    )
    x = noise(64, 1, 2)
    loop = ClosedLoop(
        model, opened(model, tmp_path, x=x, past=noise(64, 0, 2), attention_mask=np.ones((64, 1, 1), np.float32)), CPU
    )
    rows = [outputs["present"][0, 0] for outputs in loop.reference]
    np.testing.assert_array_equal(rows, x[:32, 0])


def test_a_merged_decoder_takes_its_cache_from_the_second_step_on(tmp_path: Path) -> None:
    x = noise(64, 1, 2)
    arrays = {"x": x, "past.0": noise(64, 3, 2), "use_cache": np.array([True])}
    loop = ClosedLoop(merged(), opened(merged(), tmp_path, **arrays), CPU)
    rows = np.array([outputs["present.0"][0, 0] for outputs in loop.reference])
    np.testing.assert_array_equal(rows[0], 10 * x[0, 0])  # from the branch without a cache
    np.testing.assert_array_equal(rows[1:], x[1:32, 0])


def test_a_cache_of_fixed_size_is_written_one_place_further(tmp_path: Path) -> None:
    model = parsed(
        "g (float[N, 1, 2] x, float[N, 8, 2] cache_in, int64[1] cache_position)"
        " => (float[N, 1, 2] y, float[N, 8, 2] cache_out) {"
        " s = Shape(x) at = Reshape(cache_position, cube) where = Expand(at, s)"
        " cache_out = ScatterElements<axis = 1>(cache_in, where, x) y = ReduceSum<keepdims = 1>(cache_out, one) }",
        one=np.int64([1]), cube=np.int64([1, 1, 1]),
    )  # fmt: skip
    x, cache = noise(64, 1, 2), noise(64, 8, 2)
    loop = ClosedLoop(model, opened(model, tmp_path, x=x, cache_in=cache, cache_position=np.int64([2])), CPU)
    assert loop.steps == 6  # places 2 to 7
    last = list(loop.reference)[-1]["cache_out"][0]
    np.testing.assert_array_equal(last, np.concatenate([cache[0, :2], x[:6, 0]]))


def test_what_the_encoder_made_belongs_to_the_sequence(tmp_path: Path) -> None:
    model = parsed(
        "g (float[N, 1, 2] x, float[N, P, 2] past, float[N, E, 2] past_encoder, float[N, E, 2] encoder_hidden)"
        " => (float[N, 1, 2] y, float[N, T, 2] present, float[N, E, 2] present_encoder) {"
        " present = Concat<axis = 1>(past, x) present_encoder = Identity(past_encoder)"
        " a = ReduceSum<keepdims = 1>(past_encoder, one) b = ReduceSum<keepdims = 1>(encoder_hidden, one)"
        " c = ReduceSum<keepdims = 1>(present, one) d = Add(a, b) y = Add(c, d) }",
        one=np.int64([1]),
    )
    x, encoded, hidden = noise(64, 1, 2), noise(64, 4, 2), noise(64, 4, 2)
    arrays = {"x": x, "past": noise(64, 3, 2), "past_encoder": encoded, "encoder_hidden": hidden}
    for step, outputs in enumerate(ClosedLoop(model, opened(model, tmp_path, **arrays), CPU).reference):
        expected = encoded[0].sum(axis=0) + hidden[0].sum(axis=0) + x[: step + 1, 0].sum(axis=0)
        np.testing.assert_allclose(outputs["y"][0, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_merged_decoder_keeps_what_its_first_step_made_of_the_encoder(tmp_path: Path) -> None:
    """As exported: without a cache it is computed, with one there is a dummy for it."""
    model = merged(encoder=True)
    x, hidden = noise(64, 1, 2), noise(64, 4, 2)
    arrays = {"x": x, "past.0": noise(64, 0, 2), "past.0.encoder": noise(64, 1, 2), "encoder_hidden": hidden}
    loop = ClosedLoop(model, opened(model, tmp_path, **arrays, use_cache=np.array([False])), CPU)
    assert loop.steps == 32
    made = [outputs["y"][0] for outputs in loop.reference]
    rows = np.concatenate([10 * x[:1, 0], x[1:32, 0]])
    expected = [rows[: step + 1].mean(axis=0) + (2 * hidden[0]).mean(axis=0) for step in range(1, 32)]
    np.testing.assert_allclose(made[1:], expected, rtol=1e-5, atol=1e-6)


def merged(*, encoder: bool = False) -> Model:
    """With a cache: present = past and x; without: present = 10 x, whatever the past."""

    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        made = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
        return helper.make_graph(nodes, "branch", [], made)

    old = [helper.make_node("Concat", ["past.0", "x"], ["old"], axis=1)]
    new = [helper.make_node("Mul", ["ten", "x"], ["new"])]
    made = ["present.0"]
    nodes = [helper.make_node("ReduceMean", ["present.0"], ["m"], axes=[1], keepdims=0)]
    if encoder:
        old.append(helper.make_node("ReduceMean", ["encoder_hidden"], ["dummy"], axes=[1], keepdims=1))
        old.append(helper.make_node("Identity", ["past.0.encoder"], ["kept"]))
        new.append(helper.make_node("Add", ["encoder_hidden", "encoder_hidden"], ["computed"]))
        new.append(helper.make_node("Identity", ["computed"], ["used"]))
        made += ["present.0.encoder", "cross"]
        nodes.append(helper.make_node("ReduceMean", ["cross"], ["c"], axes=[1], keepdims=0))
    nodes.insert(
        0, helper.make_node("If", ["use_cache"], made, then_branch=branch(*old), else_branch=branch(*new))
    )  # fmt: skip
    nodes.append(helper.make_node("Add", ["m", "c"], ["y"]) if encoder else helper.make_node("Identity", ["m"], ["y"]))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", 2]),
        helper.make_tensor_value_info("past.0", TensorProto.FLOAT, ["N", "P", 2]),
        helper.make_tensor_value_info("use_cache", TensorProto.BOOL, [1]),
    ]
    if encoder:
        inputs.append(helper.make_tensor_value_info("past.0.encoder", TensorProto.FLOAT, ["N", "Q", 2]))
        inputs.append(helper.make_tensor_value_info("encoder_hidden", TensorProto.FLOAT, ["N", "E", 2]))
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2]),
        helper.make_tensor_value_info("present.0", TensorProto.FLOAT, ["N", "T", 2]),
    ]
    if encoder:
        outputs.append(helper.make_tensor_value_info("present.0.encoder", TensorProto.FLOAT, ["N", "R", 2]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(np.float32(10), "ten")])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_whole_sequence_ends_position_by_position(tmp_path: Path) -> None:
    x = noise(20, 12, 2)
    data = opened(
        cache(1), tmp_path, x=x, past=noise(20, 0, 2),
        position_ids=np.broadcast_to(np.arange(12), (20, 12)), attention_mask=np.ones((20, 12), np.int64),
    )  # fmt: skip
    loop = ClosedLoop(cache(1), data, CPU)
    outputs = list(outputs_of(loop, cache(3)))
    assert [each["y"].shape for each in outputs] == [(16, 6, 2)] + [(16, 1, 2)] * 6
    first = outputs[0]["present"][:, 0]
    chosen = [int(np.flatnonzero(np.isclose(3 * x, row).all(axis=2).any(axis=1))[0]) for row in first]
    for at in range(6, 12):
        expected = x[chosen, at] + at + 3 * x[chosen, : at + 1].sum(axis=1)
        np.testing.assert_allclose(outputs[at - 5]["y"][:, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_cache_that_cannot_be_empty_starts_with_the_datas(tmp_path: Path) -> None:
    model = parsed(  # the newest of the old rows is looked up, so there must be one
        "g (float[N, 1, 2] x, float[N, P, 2] past) => (float[N, 1, 2] y, float[N, T, 2] present)"
        " <int64 last = {-1}> { present = Concat<axis = 1>(past, x) old = Gather<axis = 1>(past, last)"
        " one = Constant<value_ints = [1]>() row = Unsqueeze(old, one) y = Add(row, x) }"
    )
    x, past = noise(64, 1, 2), noise(64, 3, 2)
    loop = ClosedLoop(model, opened(model, tmp_path, x=x, past=past), CPU)
    first = next(iter(loop.reference))
    np.testing.assert_array_equal(first["present"], x[::8])
    np.testing.assert_array_equal(first["y"], x[::8] + past[::8, -1:])


def test_a_window_slides_over_the_models_own_rows(tmp_path: Path) -> None:
    model = parsed(
        "g (float[N, 1, 2] x, float[N, 3, 2] window) => (float[N, 1, 2] y, float[N, 3, 2] window_out)"
        " <int64[1] one = {1}, int64[1] four = {4}> { d = Add(x, x) all = Concat<axis = 1>(window, d)"
        " window_out = Slice(all, one, four, one) y = ReduceSum<keepdims = 1>(all, one) }"
    )
    x = noise(512, 1, 2)
    loop = ClosedLoop(model, opened(model, tmp_path, x=x, window=noise(512, 3, 2)), CPU)
    last = list(loop.reference)[-1]
    np.testing.assert_array_equal(last["window_out"], 2 * x.reshape(16, 32, 2)[:, -3:])


def test_sequences_end_where_the_original_does(tmp_path: Path) -> None:
    model = parsed(  # a table of five positions
        "g (float[N, S, 2] x, float[N, P, 2] past, int64[N, S] position_ids)"
        " => (float[N, S, 2] y, float[N, T, 2] present)"
        " { present = Concat<axis = 1>(past, x) e = Gather(table, position_ids) y = Add(x, e) }",
        table=noise(5, 2),
    )
    arrays = {"x": noise(64, 1, 2), "past": noise(64, 3, 2), "position_ids": np.full((64, 1), 3)}
    assert ClosedLoop(model, opened(model, tmp_path, **arrays), CPU).steps == 5


def test_a_model_without_a_state_has_none(tmp_path: Path) -> None:
    model = parsed("g (float[N, 2] x) => (float[N, 2] y) { y = Tanh(x) }")
    assert closed_loop_for(model, opened(model, tmp_path, x=noise(8, 2)), CPU) == (None, None)


def test_one_that_does_not_go_on_says_why(tmp_path: Path) -> None:
    model = parsed(  # runs with exactly two old rows
        "g (float[N, 1, 2] x, float[N, P, 2] past) => (float[N, 1, 2] y, float[N, T, 2] present)"
        " <int64[3] shape = {-1, 2, 2}> { present = Concat<axis = 1>(past, x) z = Reshape(past, shape)"
        " w = Add(z, ones) one = Constant<value_ints = [1]>() m = ReduceSum<keepdims = 1>(w, one) y = Add(m, x) }",
        ones=np.ones((7, 2, 2), np.float32),
    )
    data = opened(model, tmp_path, x=noise(7, 1, 2), past=noise(7, 2, 2))
    loop, why = closed_loop_for(model, data, CPU)
    assert loop is None and why is not None and why.startswith("not verified on its own states (past): ")


def test_a_model_that_fails_on_its_own_state_raises(tmp_path: Path) -> None:
    loop = ClosedLoop(accumulator(), opened(accumulator(), tmp_path, x=noise(64, 1), h=noise(64, 1)), CPU)
    wrong = parsed(
        "g (float[N, 1] x, float[N, 1] h) => (float[N, 1] y, float[N, 2] hn)"
        " { hn = Concat<axis = 1>(x, h) y = Identity(x) }"
    )
    with pytest.raises(VerificationError):
        list(outputs_of(loop, wrong))


def test_silero_vad_runs_on_its_own_state() -> None:
    model = load(MODELS / "silero_vad.onnx")
    session = Session(model.to_bytes())
    data = CalibrationData.open(MODELS / "silero_vad_calib.npz", session.inputs, run=session.run)
    loop = ClosedLoop(model, data, CPU)
    order = data.order[:, 1]
    assert (loop.sequences, loop.steps) == (8, 32)
    arrays = dict(np.load(MODELS / "silero_vad_calib.npz"))
    state = arrays["state"][:, order[:1]]
    for step, outputs in zip(range(32), loop.reference, strict=True):
        alone = session.run({"input": arrays["input"][step : step + 1], "state": state, "sr": arrays["sr"]})
        np.testing.assert_allclose(outputs["output"][:1], alone["output"], atol=1e-5)
        state = alone["stateN"]
