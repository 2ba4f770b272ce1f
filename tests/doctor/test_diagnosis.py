"""What takes time in a model is seen where it ran; only what was measured to mend it is advised."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.doctor import diagnosis
from onnxcomp.doctor.causes import Cause, causes_of
from onnxcomp.doctor.diagnosis import AS_IT_IS, SIZED, diagnose
from onnxcomp.doctor.examination import Examination, treated, with_sizes
from onnxcomp.errors import TargetError
from onnxcomp.model import load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import ExecutedNode, IntegerGain, Latency, MachinePeaks
from onnxcomp.target import Target
from tests.cli.conftest import small_model

RNG = np.random.default_rng(0)
FASTER = [IntegerGain("MatMul", 4.0, 1.0, 1)]
NO_FASTER = [IntegerGain("MatMul", 1.0, 1.0, 1)]


ENDS = "(float[2,16] x) => (float[2,16] y)"


def proto(nodes: str, *, ends: str = ENDS, opset: int = 21, **held: Any) -> onnx.ModelProto:
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> net {ends} {{ {nodes} }}')
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in held.items())
    return made


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def examined(model: onnx.ModelProto) -> Examination:
    loaded = load(model)
    with loaded.opened_on(Target.of().session) as session:
        data = CalibrationData.random(session.inputs, run=session.run)
    return Examination.of(loaded, Target.of(), data)


def found(model: onnx.ModelProto | Examination, gains: Any = NO_FASTER) -> dict[str, Cause]:
    seen = model if isinstance(model, Examination) else examined(model)
    return {each.name: each for each in causes_of(seen, gains)}


SIXTEEN = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) h = MatMul(d, w)
    k = QuantizeLinear(h, s, z) l = DequantizeLinear(k, s, z) g = Tanh(l) m = QuantizeLinear(g, s, z)
    n = DequantizeLinear(m, s, z) y = Neg(n)"""
GRID = {"s": np.float32(0.001), "z": np.uint16(32768)}


def test_pairs_of_16_bits_are_idle() -> None:
    cause = found(proto(SIXTEEN, w=weight(16, 16), **GRID))["idle Q/DQ pairs"]
    assert "1 MatMul" in cause.what and "1 Tanh" in cause.what and 0 < cause.share < 1
    assert cause.command == "run drop-quantization"


def test_integers_that_have_kernels_are_not_idle() -> None:
    nodes = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(c, s, o) y = MatMul(d, v)"
    codes = RNG.integers(-127, 127, (16, 16)).astype(np.int8)
    grid = {"s": np.float32(0.1), "z": np.uint8(128), "o": np.int8(0)}
    assert "idle Q/DQ pairs" not in found(proto(nodes, c=codes, **grid))


def test_codes_decoded_at_every_run_are_weights_computed_at_every_run() -> None:
    nodes = "v = DequantizeLinear<axis = 0>(c, s) y = Conv(x, v)"
    ends = "(float[1,4,8,8] x) => (float[1,32,6,6] y)"
    codes = RNG.integers(-127, 127, (32, 4, 3, 3)).astype(np.int8)
    cause = found(proto(nodes, ends=ends, c=codes, s=np.full(32, 0.1, np.float32)))["weights computed at every run"]
    assert "1 DequantizeLinear" in cause.what and cause.command == "run drop-quantization"


def test_what_folds_is_not_computed_at_every_run() -> None:
    nodes = "t = Transpose(w) y = MatMul(x, t)"
    assert "weights computed at every run" not in found(proto(nodes, w=weight(16, 16)))


def test_constants_that_are_never_folded_are_named_with_what_folds_them() -> None:
    nodes = "i = NonZero(b) j = Transpose(i) v = GatherND(w, j) r = Reshape(v, n) y = MatMul(x, r)"
    held = {"b": np.ones((16, 16), bool), "w": weight(16, 16), "n": np.array([16, 16])}
    cause = found(proto(nodes, **held))["weights computed at every run"]
    assert "1 NonZero" in cause.what and cause.command.startswith("run fold-constants --growth-bytes")
    made = treated(examined(proto(nodes, **held)), cause.ways[0])
    assert made is not None and [each.op_type for each in made.proto.graph.node] == ["MatMul"]


def test_halves_are_named_where_there_are_no_kernels_for_them() -> None:
    ends = "(float16[2,16] x) => (float16[2,16] y)"
    model = proto("h = MatMul(x, w) y = Tanh(h)", ends=ends, opset=17, w=weight(16, 16).astype(np.float16))
    cause = found(model)["float16 without kernels"]
    assert "Casts" in cause.what and cause.command == "run raise-float16"
    seen = examined(model)
    elsewhere = replace(seen, target=replace(seen.target, name="cuda"))
    assert "float16 without kernels" not in found(elsewhere)


def kernels(**seconds: float) -> tuple[ExecutedNode, ...]:
    """One kernel an operator, of float matrices."""
    one = ("float", (16, 16))
    return tuple(ExecutedNode(op, op, "CPUExecutionProvider", took, (one, one), (one,)) for op, took in seconds.items())


def ran(own: tuple[ExecutedNode, ...]) -> Examination:
    return replace(examined(small_model()), kernels=own)


def test_nodes_that_another_provider_ran_are_named() -> None:
    away = ExecutedNode("n", "Tanh", "CPUExecutionProvider", 1.0)
    here = ExecutedNode("m", "MatMul", "CUDAExecutionProvider", 3.0)
    seen = ran((away, here))
    seen = replace(seen, target=replace(seen.target, name="cuda", provider="CUDAExecutionProvider"))
    cause = found(seen)["other provider"]
    assert cause.what.startswith("cuda does not run 1 Tanh: they run on CPUExecutionProvider") and cause.share == 0.25
    assert "other provider" not in found(ran(kernels(MatMul=1.0)))


def test_transposes_count_by_their_time() -> None:
    cause = found(ran(kernels(MatMul=0.9, Transpose=0.1)))["Transposes"]
    assert cause.share == pytest.approx(0.1) and cause.command == "optimize --recipe lossless"
    assert "Transposes" not in found(ran(kernels(MatMul=0.99, Transpose=0.01)))


def test_products_in_float_count_only_where_integers_are_faster() -> None:
    seen = ran(kernels(MatMul=0.9, Softmax=0.1))
    assert found(seen, FASTER)["products in float32"].share == pytest.approx(0.9)
    assert "products in float32" not in found(seen, NO_FASTER)
    assert "products in float32" not in found(ran(kernels(MatMul=0.1, Softmax=0.9)), FASTER)


def test_the_longest_comes_first() -> None:
    names = list(found(ran(kernels(MatMul=0.5, Transpose=0.3, Softmax=0.2)), FASTER))
    assert names[:2] == ["products in float32", "Transposes"]


def test_open_sizes_become_those_of_the_sample() -> None:
    feeds = {"x": np.zeros((3, 16), np.float32)}
    made = with_sizes(small_model(), feeds)
    assert made is not None
    assert [each.dim_value for each in made.graph.input[0].type.tensor_type.shape.dim] == [3, 16]
    assert with_sizes(made, feeds) is None


def took(ratios: Mapping[str, float]) -> Any:
    """Latencies as though they had been measured: ratios to 2 ms, by what begins a form's name; 1 for others."""

    def latencies(forms: Mapping[str, Any], target: Target, feeds: Any) -> dict[str, Latency]:
        known = {name: next((each for key, each in ratios.items() if name.startswith(key)), 1.0) for name in forms}
        return {name: Latency(2.0 * ratio, 2.0 * ratio, 1) for name, ratio in known.items()}

    return latencies


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which integers are four times as fast, without measuring it."""
    peaks = MachinePeaks(1e9, 4e9, ((10**6, 1e9),))
    monkeypatch.setattr(diagnosis, "measure_gains", lambda: FASTER)
    monkeypatch.setattr(diagnosis, "measure_peaks", lambda threads=1: peaks)
    monkeypatch.setattr(diagnosis, "faults_here", list)


@pytest.mark.usefixtures("unmeasured")
def test_only_what_gains_is_advised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a net.onnx"
    path.write_bytes(proto(SIXTEEN, w=weight(16, 16), **GRID).SerializeToString())
    monkeypatch.setattr(diagnosis, "latencies", took({"idle": 0.5, "products": 0.99}))
    seen = diagnose(path).model
    assert seen is not None and seen.latency_ms == 2.0 and seen.shapes == {"x": (2, 16)}
    by_name = {each.name: each for each in seen.findings}
    idle = by_name["idle Q/DQ pairs"]
    assert idle.command == f"onnxcomp run drop-quantization '{path}'" and idle.ratio == 0.5
    assert "products in float32" not in by_name  # a guess that does not gain is none
    monkeypatch.setattr(diagnosis, "latencies", took({}))
    idle = next(each for each in diagnose(path).model.findings if each.name == "idle Q/DQ pairs")  # type: ignore[union-attr]
    assert idle.command == "" and "was tried and gains nothing here (latency ratio 1.00)" in idle.advice


@pytest.mark.usefixtures("unmeasured")
def test_what_gains_once_and_not_again_does_not_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([took({"idle": 0.5}), took({})])

    def latencies(*given: Any) -> Any:
        return next(rounds)(*given)

    monkeypatch.setattr(diagnosis, "latencies", latencies)
    seen = diagnose(proto(SIXTEEN, w=weight(16, 16), **GRID)).model
    assert seen is not None
    assert {each.name: each.ratio for each in seen.findings}["idle Q/DQ pairs"] == 1.0


@pytest.mark.usefixtures("unmeasured")
def test_sizes_are_fixed_by_onnx_runtimes_own_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(small_model().SerializeToString())
    monkeypatch.setattr(diagnosis, "latencies", took({SIZED: 0.7}))
    seen = diagnose(path).model
    assert seen is not None
    (finding,) = (each for each in seen.findings if each.name == "open dimensions")
    words = finding.command.split()
    assert words[:3] == ["python", "-m", "onnxruntime.tools.make_dynamic_shape_fixed"]
    assert words[3:5] == ["--input_name", "x"] and words[5] == "--input_shape" and finding.ratio == 0.7
    tool = importlib.import_module("onnxruntime.tools.make_dynamic_shape_fixed")
    monkeypatch.setattr("sys.argv", ["tool", *words[3:-1], str(tmp_path / "fixed.onnx")])
    tool.make_dynamic_shape_fixed_helper()
    fixed = load(tmp_path / "fixed.onnx").proto.graph.input[0].type.tensor_type.shape
    assert all(each.dim_value for each in fixed.dim)


@pytest.mark.usefixtures("unmeasured")
def test_a_large_model_is_looked_at_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "LARGEST_TRIED_BYTES", 10)
    monkeypatch.setattr(diagnosis, "latencies", took({}))
    seen = diagnose(proto(SIXTEEN, w=weight(16, 16), **GRID)).model
    assert seen is not None and "nothing that may mend it was tried" in seen.notes[0]
    assert all(each.ratio is None for each in seen.findings)


@pytest.mark.usefixtures("unmeasured")
def test_mends_that_it_advises_are_commands_that_work(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "latencies", took({"idle": 0.5}))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto(SIXTEEN, w=weight(16, 16), **GRID).SerializeToString())
    told = json.loads(invoke("doctor", path, "--json").stdout)
    command = next(each for each in told["model"]["findings"] if each["name"] == "idle Q/DQ pairs")["command"]
    words = command.split()
    assert words[0] == "onnxcomp" and get_pass(words[2])
    result = invoke(*words[1:], "-o", tmp_path / "mended.onnx", "-q")
    assert result.exit_code == 0 and (tmp_path / "mended.onnx").is_file()
    shown = invoke("doctor", path).stdout
    assert f"$ {command}    # measured: 0.50 of the latency" in shown and "int8 gains" in shown


def test_without_a_model_it_says_what_the_machine_has(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.runtime.peaks.ENOUGH_S", 0.0)
    monkeypatch.setattr("onnxcomp.runtime.peaks.MOVED", (2**16,))
    content = json.loads(invoke("doctor", "--json").stdout)
    assert content["model"] is None and content["machine"]["cores"] >= 1
    assert all(each["float32_s"] > 0 and each["int8_s"] > 0 for each in content["gains"])
    assert {each["operator"] for each in content["gains"]} == {"MatMul", "Conv"}
    assert AS_IT_IS not in content


def test_a_provider_that_does_not_show_what_it_made_is_examined_by_the_models_own_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*args: Any, **options: Any) -> None:
        raise TargetError("Unable to serialize model as it contains compiled nodes.")

    monkeypatch.setattr("onnxcomp.doctor.examination.optimized", refuses)
    monkeypatch.setattr("onnxcomp.runtime.profile.optimized", refuses)
    seen = examined(small_model())
    assert [each.op_type for each in seen.nodes()] == ["Gemm", "Relu", "MatMul"] and seen.kernels
