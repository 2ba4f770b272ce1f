"""watch_both against two plain ONNX Runtime sessions: the same samples and tensors, one model beside the other."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics import watch as module
from onnxcomp.calibration.statistics.watch import FIRST_FETCH, watch, watch_both
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.model import load
from onnxcomp.runtime import Feeds, Session, Value
from tests.graphs.running import session_of

SAMPLES, WIDTH = 10, 4
NODES = 2 * FIRST_FETCH + 5
INNER = [f"t{i}" for i in range(NODES)]
Seen = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def chain(seed: int, batch: int | str = "N") -> onnx.ModelProto:
    """Products and activations in turn, far more tensors than are fetched at once; the last is the output."""
    rng = np.random.default_rng(seed)
    nodes, matrices, last = [], [], "x"
    for index, name in enumerate(INNER):
        if index % 2:
            nodes.append(helper.make_node("Tanh", [last], [name]))
        else:
            matrices.append(
                numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32), f"w{index}")
            )
            nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [name]))
        last = name
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, WIDTH]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], matrices)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def directly(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of the chain on all samples, each asked for as an output of its own."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    del shown.graph.output[:]
    shown.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in INNER)
    return {"x": x, **dict(zip(INNER, session_of(shown).run(INNER, {"x": x}), strict=True))}


def inputs_of_samples() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((SAMPLES, WIDTH)).astype(np.float32)


def data_of(proto: onnx.ModelProto, folder: Path, batch_size: int = 4) -> CalibrationData:
    np.savez(folder / "calib.npz", x=inputs_of_samples())
    inputs = Session(proto.SerializeToString()).inputs
    return CalibrationData.open(folder / "calib.npz", inputs, batch_size=batch_size)


def seen_by(protos: list[onnx.ModelProto], names: list[str], data: CalibrationData, opener: type[Session]) -> Seen:
    found: Seen = defaultdict(list)
    first, second = map(load, protos)
    watch_both(first, second, names, data, lambda *each: found[each[0]].append(each[1:]), open_session=opener)
    return found


def test_values_of_both_models_of_every_tensor_and_input(tmp_path: Path) -> None:
    protos = [chain(0), chain(1)]
    names = ["x", *INNER]
    seen = seen_by(protos, names, data_of(protos[0], tmp_path), Session)
    assert sorted(seen) == sorted(names)
    for position, proto in enumerate(protos):
        for name, expected in directly(proto, inputs_of_samples()).items():
            batches = [pair[position] for pair in seen[name]]
            assert [len(each) for each in batches] == [4, 4, 2]
            # Products of another batch size may be summed in another order.
            np.testing.assert_allclose(np.concatenate(batches), expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert any(np.abs(before - after).max() > 0.1 for before, after in seen[INNER[-1]])


def test_only_what_is_asked_for_is_seen(tmp_path: Path) -> None:
    protos = [chain(0), chain(1)]
    assert set(seen_by(protos, ["t3", INNER[-1]], data_of(protos[0], tmp_path), Session)) == {"t3", INNER[-1]}
    assert set(seen_by(protos, ["x"], data_of(protos[0], tmp_path), Session)) == {"x"}


def test_a_batch_that_the_model_fixes_is_kept(tmp_path: Path) -> None:
    protos = [chain(0, batch=5), chain(1, batch=5)]
    seen = seen_by(protos, ["t0", "t40"], data_of(protos[0], tmp_path), Session)
    for position, proto in enumerate(protos):
        expected = [directly(proto, part)["t40"] for part in np.split(inputs_of_samples(), 2)]
        np.testing.assert_allclose([pair[position] for pair in seen["t40"]], expected, rtol=1e-4, atol=1e-5)


def test_both_run_on_the_same_batches_that_have_room_and_on_some_tensors_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[int, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)

    class Watched(Session):
        def run(self, feeds: Feeds, names: list[str] | None = None) -> dict[str, Value]:  # type: ignore[override]
            runs[id(self)].append((len(feeds["x"]), tuple(names or ())))
            return super().run(feeds, names)

    monkeypatch.setattr(module, "ROOM_BYTES", 3 * NODES * WIDTH * 4)  # of three samples
    protos = [chain(0), chain(1)]
    seen_by(protos, INNER, data_of(protos[0], tmp_path, batch_size=8), Watched)
    first, second = runs.values()
    groups = [tuple(INNER[start : start + FIRST_FETCH]) for start in range(0, NODES, FIRST_FETCH)]
    expected = [(count, group) for count in (3, 3, 3, 1) for group in groups]
    sizes_told = [(1, group) for group in groups]
    assert sorted((first, second), key=len) == [expected, sizes_told + expected]


@pytest.mark.parametrize("most_bytes", [1, 10**6])
def test_two_forms_of_a_model_draw_the_same_noise_for_every_sample(
    most_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tensors are watched beside, however many runs that takes, and wherever the random nodes stand."""
    monkeypatch.setattr(module, "MOST_BYTES", most_bytes)
    body = "e = Exp(x) n = RandomNormalLike(e) a = Add(e, n) m = RandomUniformLike(a) y = Mul(a, m)"
    text = '<ir_version: 8, opset_import: ["" : 15]> g (float[N,4] x) => (float[N,4] y) {'
    first = seeded(load(onnx.parser.parse_model(f"{text} {body} }}")))
    moved = f"{text} i = Identity(x) {body.replace('(x)', '(i)')} }}"
    second = seeded(load(onnx.parser.parse_model(moved)), alike=first)
    data = data_of(first.proto, tmp_path)
    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def see(name: str, before: Value, after: Value) -> None:
        np.testing.assert_array_equal(before, after)
        seen[name].append(before)

    watch_both(first, second, ["e", "n", "y"], data, see)
    assert len(np.unique(np.concatenate(seen["n"]))) == 40
    alone: list[np.ndarray] = []
    watch(second, ["n"], data, lambda name, value: alone.append(value))
    np.testing.assert_array_equal(np.concatenate(alone), np.concatenate(seen["n"]))
