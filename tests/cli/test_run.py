"""onnxcomp run PASS: options from the pass's fields, one step through the same pipeline."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.contract import parameters
from onnxcomp.registry import get_pass, shipped_names

from .conftest import Invoke, files_in

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.mark.parametrize("name", shipped_names())
def test_every_field_is_an_option_with_its_help(invoke: Invoke, name: str) -> None:
    text = " ".join(invoke("run", name, "--help").stdout.split())
    for field in parameters(get_pass(name)):
        flag = f"--{field.name.replace('_', '-')}"
        assert f" {flag} " in text
        if field.type is bool:
            assert f"{flag} / --no-{flag[2:]}" in text


@pytest.mark.parametrize("name", shipped_names())
def test_every_field_refuses_what_it_does_not_accept(invoke: Invoke, name: str, model_file: Path) -> None:
    for field in parameters(get_pass(name)):
        if field.type is bool or (field.type is str and not field.choices):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        wrong = ["nonsense", *([field.low - 1] if field.low is not None else [])]
        for value in wrong:
            result = invoke("run", name, model_file, f"{flag}={value}")
            assert result.exit_code == 2, (flag, value, result.stdout)
            assert flag in result.stderr
    assert files_in(model_file.parent) == {"net.onnx"}


def parameters_of(invoke: Invoke, model_file: Path, out: Path, *options: object) -> dict[str, object]:
    """What the step of a clustering run was given."""
    output = out / "o.onnx"
    result = invoke("run", "cluster-weights", model_file, "-o", output, "--json", "--force", *options)
    assert result.exit_code == 0, result.stderr
    [step] = json.loads(result.stdout)["steps"]
    return step["parameters"]


@pytest.mark.parametrize("name", [each for each in shipped_names() if get_pass(each).strength()])
def test_every_strength_can_be_chosen(
    invoke: Invoke, model_file: Path, calibration_file: Path, out: Path, name: str
) -> None:
    """What the help offers works, whether the pass changes values or the graph."""
    strength = get_pass(name).strength()
    assert strength is not None
    given = ("--calib-data", calibration_file, "-o", out / "o.onnx", "--json")
    result = invoke("run", name, model_file, f"--{strength.name}", "auto", *given)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["steps"][-1]["parameters"][strength.name] == "auto"


def test_options_reach_the_pass(invoke: Invoke, model_file: Path, out: Path) -> None:
    given = parameters_of(invoke, model_file, out, "--bits", "7", "--keep-zero", "--granularity", "tensor")
    assert (given["bits"], given["keep_zero"], given["granularity"]) == (7, True, "tensor")


def test_what_is_not_given_is_the_passs_default(invoke: Invoke, model_file: Path, out: Path) -> None:
    given = parameters_of(invoke, model_file, out)
    kind = get_pass("cluster-weights")
    assert given == {each.name: each.default for each in parameters(kind)}


def test_a_strength_may_be_auto(invoke: Invoke, model_file: Path, out: Path) -> None:
    assert parameters_of(invoke, model_file, out, "--bits", "auto")["bits"] == "auto"


def test_auto_is_refused_where_there_is_no_strength(invoke: Invoke, model_file: Path) -> None:
    result = invoke("run", "cluster-weights", model_file, "--vector-size", "auto")
    assert result.exit_code == 2


def test_fields_that_contradict_each_other_are_wrong_usage(invoke: Invoke, model_file: Path) -> None:
    result = invoke("run", "cluster-weights", model_file, "--vector-size", "2", "--keep-zero")
    assert result.exit_code == 2
    assert "vector_size" in result.stderr


def test_a_value_pass_alone_says_where_the_bytes_are_saved(invoke: Invoke, model_file: Path, out: Path) -> None:
    text = invoke("run", "cluster-weights", model_file, "-o", out / "o.onnx", "--bits", "6").stdout
    assert re.search(r"^  note +cluster-weights changed values only.*`onnxcomp run ... --store`", text, re.MULTILINE)


def test_store_saves_the_bytes_in_the_same_run(
    invoke: Invoke, model_file: Path, calibration_file: Path, out: Path
) -> None:
    args = ("run", "cluster-weights", model_file, "--bits", "6", "--calib-data", calibration_file, "-o", out / "o.onnx")
    content = json.loads(invoke(*args, "--store", "--json").stdout)
    assert [each["rewrite"] for each in content["steps"]] == ["cluster-weights", "store-compact"]
    assert (out / "o.onnx").stat().st_size == content["result"]["bytes"] < model_file.stat().st_size / 2
    assert content["verdict"]["verified"] and content["source"]["path"] == str(model_file)


def test_store_compact_uses_what_an_earlier_run_noted(invoke: Invoke, model_file: Path, out: Path) -> None:
    invoke("run", "cluster-weights", model_file, "-o", out / "a.onnx", "--bits", "6")
    result = invoke("run", "store-compact", out / "a.onnx", "-o", out / "b.onnx")
    assert result.exit_code == 0, result.stderr
    assert (out / "b.onnx").stat().st_size < model_file.stat().st_size / 2
    compared = invoke("compare", out / "a.onnx", out / "b.onnx", "--json")
    assert json.loads(compared.stdout)["outputs"][0]["max_abs_error"] == 0


def test_a_step_that_breaks_the_budget_is_taken_back(invoke: Invoke, model_file: Path, calibration_file: Path) -> None:
    result = invoke("run", "binarize-weights", model_file, "--calib-data", calibration_file, "--max-drop", "1e-6")
    assert result.exit_code == 0
    assert re.search(r"^  binarize-weights +not used: .* is over 1e-06", result.stdout, re.MULTILINE)
    assert re.match(r"net.onnx -> .*: UNCHANGED, ", result.stdout)


@pytest.mark.parametrize("budget", [[], ["--max-drop", "none"]])
def test_without_data_it_says_what_the_budget_licensed(
    invoke: Invoke, model_file: Path, out: Path, budget: list[str]
) -> None:
    result = invoke("run", "prune-weights", model_file, "-o", out / "o.onnx", *budget)
    said = [words in result.stdout for words in ("only what is safe", "is unknown without")]
    assert said == [not budget, bool(budget)], result.stdout


def test_an_unknown_pass_lists_the_known_ones(invoke: Invoke, model_file: Path) -> None:
    result = invoke("run", "shrink-it", model_file)
    assert result.exit_code == 2
    assert "shrink-it" in result.stderr
    assert "cluster-weights" in result.stderr


def test_a_pass_may_be_named_with_underscores(invoke: Invoke) -> None:
    assert invoke("run", "cluster_weights", "--help").exit_code == 0


def test_what_prepares_a_pass_runs_before_it(invoke: Invoke, out: Path, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,4] x) => (float[N,2] y) <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = local.f(x, w) }
        <opset_import: ["" : 17], domain: "local"> f (a, b) => (c) { h = MatMul(a, b) c = Relu(h) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "calls.onnx")
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    result = invoke(
        "run", "quantize-static", tmp_path / "calls.onnx", "-o", out / "o.onnx", "--json",
        "--calib-data", tmp_path / "calib.npz", "--max-drop", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    steps = json.loads(result.stdout)["steps"]
    assert [each["rewrite"] for each in steps] == ["inline-functions", "fuse-batch-norm", "fuse-pad", "quantize-static"]
    ops = [node.op_type for node in onnx.load(out / "o.onnx").graph.node]
    assert "MatMul" in ops and "QuantizeLinear" in ops
