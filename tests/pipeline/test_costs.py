"""What the result costs is measured beside it: where that fails, the figures are missing and the result is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp import optimize
from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import VerificationError
from onnxcomp.model import load
from onnxcomp.pipeline import costs as costs_module
from onnxcomp.pipeline.costs import compare_costs
from onnxcomp.runtime import Latency, Load, Session
from onnxcomp.target import Target

LATENCY = Latency(1.0, 1.0, 1)
KINDS = ("latency_ms", "load_s", "load_peak_bytes")


def net(width: int = 8) -> ModelProto:
    weight = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("MatMul", ["i", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(width: int = 8) -> CalibrationData:
    session = Session(net(width).SerializeToString())
    return CalibrationData.random(session.inputs, seed=0, run=session.run)


@pytest.mark.parametrize("apart", [False, True])
def test_both_models_have_every_figure(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "MEASURED_S", 0.01)
    if apart:
        monkeypatch.setattr(costs_module, "APART_BYTES", 0)
        monkeypatch.setattr(costs_module, "measure_latency", None)  # both would be open at once
    found = compare_costs(load(net()), load(net()), data(), Target.of("cpu"))
    figures = {f"{kind}_{of}" for kind in KINDS for of in ("original", "result", "ratio")}
    assert found.figures.keys() == figures | {"load_s_noise"}
    assert all(found.figures[each] > 0 for each in figures) and not found.notes
    assert (found.figures["load_s_noise"] > 0) is not apart  # there each is loaded once


def test_a_model_over_100_mb_is_loaded_once_and_others_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(sources: dict[str, object], *, runs: int, **_: object) -> dict[str, Load]:
        counts.append(runs)
        return dict.fromkeys(sources, Load(1.0, 1))

    monkeypatch.setattr(costs_module, "measure_loads", counted)
    compare_costs(load(net()), load(net()), data(), None)
    monkeypatch.setattr(costs_module, "ONE_LOAD_BYTES", 100)
    compare_costs(load(net()), load(net()), data(), None)
    assert counts == [3, 1]


def test_the_file_that_was_read_is_measured_itself_and_a_result_as_it_will_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(net(300).SerializeToString())
    seen: list[tuple[Path, int]] = []

    def noted(sources: dict[str, Path], **_: object) -> dict[str, Load]:
        seen.extend((source, source.stat().st_size) for source in sources.values())
        return dict.fromkeys(sources, Load(1.0, 1))

    monkeypatch.setattr(costs_module, "measure_loads", noted)
    model = load(path)
    compare_costs(model, model.with_proto(model.proto), data(300), None)
    assert seen[0][0] == path and seen[1][0] != path and seen[1][1] == path.stat().st_size


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "there is no room in"),
        (VerificationError("the process that ran the model died: exit code -9"), "exit code -9"),
        (MemoryError(), "MemoryError"),
    ],
)
@pytest.mark.parametrize("which", ["measure_loads", "measure_latency"])
def test_a_failure_costs_that_figure_only_and_is_named(
    which: str, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(costs_module, which, failing)
    monkeypatch.setattr(costs_module, "MEASURED_S", 0.01)
    monkeypatch.setattr(costs_module, "LOADS", 1)
    result = optimize(net(), recipe="lossless")
    result.save(tmp_path / "out.onnx")
    receipt = json.loads((tmp_path / "out.receipt.json").read_text())
    missing, there = ("load_s", "latency_ms") if which == "measure_loads" else ("latency_ms", "load_s")
    assert f"{missing}_ratio" not in receipt["measured"] and receipt["measured"][f"{there}_ratio"] > 0
    [note] = [each for each in receipt["notes"] if "not measured" in each]
    assert note.startswith("load time and load memory" if which == "measure_loads" else "latency") and said in note


def test_a_result_that_may_take_more_memory_than_there_is_to_decode_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[int] = []
    monkeypatch.setattr(costs_module, "APART_BYTES", 0)
    monkeypatch.setattr(costs_module, "measure_apart", lambda *_, **__: loaded.append(1) or (Load(1.0, 1), LATENCY))
    free = SimpleNamespace(available=5 * net(32).ByteSize())
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    found = compare_costs(load(net(32)), load(net(8)), data(32), Target.of("cpu"))
    assert not loaded and not found.figures and "memory" in found.notes[0]
    assert compare_costs(load(net(32)), load(net(32)), data(32), Target.of("cpu")).figures  # nothing to decode
    free.available *= 2
    assert compare_costs(load(net(32)), load(net(8)), data(32), Target.of("cpu")).figures
    assert len(loaded) == 4
