"""Seeds of random nodes: fresh sessions draw the same numbers, and the model is as it was without them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.graph.ir.seeds import is_drawing, seeded, unseeded
from onnxcomp.model import Model, load
from onnxcomp.noise import random_nodes, seed_of
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.verify.repeatable import draws_differently

CPU = Target.of("cpu")
DRAWING = {
    "RandomNormal": "r = RandomNormal<shape = [3, 4]>() y = Add(x, r)",
    "RandomUniform": "r = RandomUniform<shape = [3, 4]>() y = Add(x, r)",
    "RandomNormalLike": "r = RandomNormalLike(x) y = Add(x, r)",
    "RandomUniformLike": "r = RandomUniformLike(x) y = Add(x, r)",
    "Bernoulli": "p = Sigmoid(x) y = Bernoulli(p)",
    "Multinomial": "r = Multinomial<sample_size = 4>(x) y = Cast<to = 1>(r)",
    "Dropout": "half = Constant<value = float {0.5}>() on = Constant<value = bool {1}>() y = Dropout(x, half, on)",
    "in a branch": """on = Constant<value = bool {1}>()
        y = If(on) <then_branch = a () => (float[3, 4] u) { n = RandomNormalLike(x) u = Add(x, n) },
                    else_branch = b () => (float[3, 4] v) { v = Identity(x) }>""",
    "in a function": "y = own.noisy(x)",
}


def model_of(body: str) -> Model:
    text = f"""<ir_version: 8, opset_import: ["" : 15, "own" : 1]> g (float[3, 4] x) => (float[3, 4] y) {{ {body} }}
        <domain: "own", opset_import: ["" : 15]> noisy (a) => (b) {{ n = RandomNormalLike(a) b = Add(a, n) }}"""
    return load(parser.parse_model(text))


def data_for(model: Model, folder: Path) -> CalibrationData:
    np.savez(folder / "c.npz", x=np.full((9, 4), 0.5, np.float32))
    return CalibrationData.open(folder / "c.npz", Session(model.to_bytes()).inputs)


@pytest.mark.parametrize("body", DRAWING.values(), ids=DRAWING)
def test_seeds_hold_the_noise_wherever_a_node_stands(body: str, tmp_path: Path) -> None:
    model = model_of(body)
    data = data_for(model, tmp_path)
    assert draws_differently(seeded(model), data, CPU) is None


@pytest.mark.parametrize("body", DRAWING.values(), ids=DRAWING)
def test_without_seeds_the_outputs_are_said_to_differ(body: str, tmp_path: Path) -> None:
    model = model_of(body)
    reason = draws_differently(model, data_for(model, tmp_path), CPU)
    assert reason is not None and "output y differs between two runs" in reason


@pytest.mark.parametrize("body", DRAWING.values(), ids=DRAWING)
def test_taking_the_seeds_out_gives_the_model_byte_for_byte(body: str) -> None:
    model = model_of(body)
    working = seeded(model)
    assert working.proto.ByteSize() > model.proto.ByteSize()
    assert unseeded(working).proto.SerializeToString() == model.proto.SerializeToString()


@pytest.mark.parametrize("name_length", [1, 90, 110, 120, 127, 16_300, 16_370])
def test_size_does_not_count_seeds_however_lengths_are_stated(name_length: int) -> None:
    model = model_of(DRAWING["in a branch"])
    model.proto.graph.node[1].name = "n" * name_length
    assert seeded(model).size_bytes == model.size_bytes == model.proto.ByteSize()


def test_a_seed_that_the_model_brings_along_stays() -> None:
    model = model_of("r = RandomNormalLike<seed = 15000000.0>(x) s = RandomNormalLike(x) y = Add(r, s)")
    working = seeded(model)
    values = [seed.f for node in random_nodes(working.proto) if (seed := seed_of(node))]
    assert values[0] == 15_000_000 and len(set(values)) == len(values)
    assert unseeded(working).proto.SerializeToString() == model.proto.SerializeToString()


def test_a_model_that_draws_nothing_is_handed_back_itself() -> None:
    model = model_of("""half = Constant<value = float {0.5}>() off = Constant<value = bool {0}>()
        y = Dropout(x, half, off)""")
    del model.proto.functions[:]
    assert not is_drawing(model)
    assert seeded(model) is model


def test_another_form_of_the_model_draws_the_same_by_name_then_by_order() -> None:
    model = seeded(model_of("r = RandomNormalLike(x) s = RandomNormalLike(x) y = Sub(r, s)"))
    swapped = seeded(model_of("s = RandomNormalLike(x) r = RandomNormalLike(x) y = Sub(r, s)"), alike=model)
    renamed = seeded(model_of("z = Relu(x) a = RandomNormalLike(z) b = RandomNormalLike(x) y = Sub(a, b)"), alike=model)
    expected = output(model)
    np.testing.assert_array_equal(output(swapped), expected)
    np.testing.assert_array_equal(output(renamed), expected)
    assert np.ptp(expected) > 0


def output(model: Model) -> np.ndarray:
    found: np.ndarray = Session(model.to_bytes()).run({"x": np.full((3, 4), 0.5, np.float32)})["y"]
    return found


def test_broken_seeds_are_no_seeds_of_ours() -> None:
    model = model_of("r = RandomNormalLike(x) s = RandomNormalLike(x) y = Add(r, s)")
    model.proto.graph.node[0].attribute.append(onnx.helper.make_attribute("seed", float("nan")))
    assert unseeded(seeded(model)).proto.SerializeToString() == model.proto.SerializeToString()
