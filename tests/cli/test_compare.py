"""onnxcomp compare, bench and expand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxcomp.cli.printing.verdicts import agreement, judged, verdict_line
from onnxcomp.numerics.encodings import expression as formula

from .conftest import Invoke, files_in, small_model


@pytest.fixture
def near_file(tmp_path: Path) -> Path:
    """The small model with one bias moved by 0.5."""
    model = small_model()
    bias = numpy_helper.to_array(model.graph.initializer[1]).copy()
    bias[3] += 0.5
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "B1"))
    path = tmp_path / "near.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def outputs(path: Path, data: Path) -> np.ndarray:
    feeds = {"x": np.load(data)["x"]}
    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, feeds)[0])


def test_the_largest_error_is_that_of_the_outputs(
    invoke: Invoke, model_file: Path, near_file: Path, calibration_file: Path
) -> None:
    result = invoke("compare", model_file, near_file, "--calib-data", calibration_file, "--json", "--max-drop", "1")
    [found] = json.loads(result.stdout)["outputs"]
    left, right = outputs(model_file, calibration_file), outputs(near_file, calibration_file)
    assert found["name"] == "y"
    # Batches of another size may be summed in another order.
    assert found["max_abs_error"] == pytest.approx(np.abs(left - right).max(), rel=1e-4)
    assert found["max_abs_value"] == pytest.approx(np.abs(left).max(), rel=1e-4)


def test_equal_models_are_within_the_limit(invoke: Invoke, model_file: Path, calibration_file: Path) -> None:
    result = invoke("compare", model_file, model_file, "--calib-data", calibration_file)
    assert result.exit_code == 0
    assert re.search(r"^  verdict +within the limit on 256 samples: divergence 0,? ", result.stdout, re.M)


def test_a_model_over_the_limit_ends_with_1_and_says_why(
    invoke: Invoke, model_file: Path, near_file: Path, calibration_file: Path
) -> None:
    result = invoke("compare", model_file, near_file, "--calib-data", calibration_file, "--max-drop", "1e-9")
    assert result.exit_code == 1
    assert re.search(r"^  verdict +OVER the limit on 256 samples", result.stdout, re.MULTILINE)
    assert re.search(r"^  why +output y", result.stdout, re.MULTILINE)


def test_over_the_limit_ends_with_1_where_none_was_given(
    invoke: Invoke, model_file: Path, tmp_path: Path, calibration_file: Path
) -> None:
    model = small_model()
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.zeros((64, 10), np.float32), "W2"))
    path = tmp_path / "zero.onnx"
    path.write_bytes(model.SerializeToString())
    result = invoke("compare", model_file, path, "--calib-data", calibration_file)
    assert result.exit_code == 1
    assert "OVER the limit" in result.stdout


def test_a_difference_below_the_resolution_is_said_to_be_one() -> None:
    verdict = {
        "passed": False, "divergence": 0.032, "interval": [0.02, 0.05], "limit": 0.03, "samples": 200, "reasons": [],
    }  # fmt: skip
    assert "by less than so few samples can tell" in verdict_line(verdict, metric="divergence")


def test_models_with_other_inputs_are_said_to_differ(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    path = tmp_path / "other.onnx"
    path.write_bytes(model.SerializeToString())
    result = invoke("compare", model_file, path)
    assert result.exit_code == 1
    assert "inputs changed from x to image" in result.stdout


def test_without_data_it_is_said_that_inputs_are_random(invoke: Invoke, model_file: Path) -> None:
    assert "random inputs" in invoke("compare", model_file, model_file).stdout


def test_bench_of_two_models_gives_ratios_from_one_run(invoke: Invoke, model_file: Path, near_file: Path) -> None:
    content = json.loads(invoke("bench", model_file, near_file, "--runs", "3", "--json").stdout)
    assert [each["name"] for each in content["models"]] == ["net.onnx", "near.onnx"]
    first, second = content["models"]
    assert content["ratios"]["latency_ms"] == pytest.approx(second["latency_ms"] / first["latency_ms"])
    assert set(content["ratios"]) == {"size_bytes", "latency_ms", "load_s", "load_peak_bytes"}


def test_bench_of_one_model_is_a_table_without_ratios(invoke: Invoke, model_file: Path) -> None:
    text = invoke("bench", model_file, "--runs", "2").stdout
    assert re.search(r"^latency, median +[\d.e-]+ ms$", text, re.MULTILINE)
    assert "ratio" not in text


def test_expand_gives_the_plain_tensors_back(invoke: Invoke, model_file: Path, out: Path) -> None:
    invoke("run", "cluster-weights", model_file, "-o", out / "a.onnx", "--bits", "4", "-q")
    invoke("run", "store-compact", out / "a.onnx", "-o", out / "b.onnx", "-q")
    result = invoke("expand", out / "b.onnx", "-o", out / "c.onnx")
    assert result.exit_code == 0, result.stderr
    assert "2 tensors are plain, with the very bits that ONNX Runtime computes" in " ".join(result.stdout.split())
    expanded = {each.name: numpy_helper.to_array(each) for each in onnx.load(str(out / "c.onnx")).graph.initializer}
    for each in onnx.load(str(out / "a.onnx")).graph.initializer:
        np.testing.assert_array_equal(expanded[each.name], numpy_helper.to_array(each))


def test_expand_of_a_plain_model_says_so(invoke: Invoke, model_file: Path) -> None:
    result = invoke("expand", model_file)
    assert "nothing in it was stored compactly" in result.stdout
    assert files_in(model_file.parent) == {"net.onnx", "net.expanded.onnx"}


def test_expand_writes_nothing_where_onnx_runtime_computes_other_values(
    invoke: Invoke, model_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("run", "cluster-weights", model_file, "-o", out / "a.onnx", "--bits", "4", "-q")
    invoke("run", "store-compact", out / "a.onnx", "-o", out / "b.onnx", "-q")
    monkeypatch.setitem(formula.OPERATORS, "Gather", lambda data, index: np.take(data, index, axis=0) + 1)
    result = invoke("expand", out / "b.onnx", "-o", out / "c.onnx")
    assert result.exit_code == 1 and "computes other values" in " ".join(result.stderr.split())
    assert not (out / "c.onnx").exists()


def test_expand_refuses_an_existing_output(invoke: Invoke, model_file: Path, out: Path) -> None:
    (out / "x.onnx").write_text("mine")
    result = invoke("expand", model_file, "-o", out / "x.onnx")
    assert result.exit_code == 1
    assert (out / "x.onnx").read_text() == "mine"


def _outputs(**kinds: str) -> dict[str, object]:
    return {name: {"kind": kind, "measure": "values", "divergence": 0.01} for name, kind in kinds.items()}


def test_no_class_wins_in_what_is_only_perhaps_scores() -> None:
    [(_, sure)] = agreement({"agreement": 0.9, "samples": 10, "outputs": _outputs(y="classes", z="values")})
    [(_, unsure)] = agreement({"agreement": 0.9, "samples": 10, "outputs": _outputs(y="values")})
    assert sure == "the winning class is the same on 90.0% of the samples"
    assert unsure == "were these class scores, the winning class would be the same on 90.0% of the samples"


def test_where_a_sample_holds_many_winners_these_are_counted() -> None:
    [(_, said)] = agreement({"agreement": 0.999, "samples": 8, "outputs": _outputs(y="classes")})
    assert said == "the winning class is the same on 99.9% of the places in the samples"


def test_an_output_that_shows_nothing_is_not_said_to_be_judged() -> None:
    rows = judged({"outputs": _outputs(y="values", z="values")}, {"silent": {"y": "not finite"}})
    assert rows == [("judged as", "z: values, 0.01 by values"), ("not judged", "y: not finite")]
