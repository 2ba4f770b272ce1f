"""onnxcomp inspect: what it says of a model, against counts made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx

from .conftest import Invoke, files_in


def test_bytes_and_macs_are_those_of_the_file(invoke: Invoke, model_file: Path) -> None:
    content = json.loads(invoke("inspect", model_file, "--json").stdout)
    weights = 4 * (64 * 16 + 64 + 64 * 10)
    assert content["size_bytes"] == model_file.stat().st_size
    assert content["constant_bytes"] == weights
    assert content["graph_bytes"] == model_file.stat().st_size - weights
    assert content["macs"] == 16 * 64 + 64 * 10
    assert (content["macs_partial"], content["macs_unknown"]) == (False, 0)


def test_every_constant_is_listed_with_its_role(invoke: Invoke, model_file: Path) -> None:
    content = json.loads(invoke("inspect", model_file, "--json").stdout)
    found = {each["name"]: (each["shape"], each["dtype"], each["kind"]) for each in content["tensors"]}
    assert found == {
        "W1": ([64, 16], "float", "linear"),
        "W2": ([64, 10], "float", "linear"),
        "B1": ([64], "float", "constant"),
    }


def test_operators_are_counted_with_their_bytes(invoke: Invoke, model_file: Path) -> None:
    content = json.loads(invoke("inspect", model_file, "--json").stdout)
    found = {each["name"]: (each["count"], each["weight_bytes"], each["macs"]) for each in content["operators"]}
    assert found == {
        "Gemm": (1, 4 * (64 * 16 + 64), 1024),
        "MatMul": (1, 4 * 640, 640),
        "Relu": (1, 0, None),
    }


def test_the_table_names_the_weights_and_estimates_gains(invoke: Invoke, model_file: Path) -> None:
    text = invoke("inspect", model_file).stdout
    assert re.search(r"^W1 +64x16 +float +linear +4,096 ", text, re.MULTILINE)
    assert re.search(r"^8 bits +[\d,]+ +[\d.]+x smaller$", text, re.MULTILINE)
    assert text.isascii()


def test_a_plain_model_is_not_called_quantized_or_compressed(invoke: Invoke, model_file: Path) -> None:
    text = invoke("inspect", model_file).stdout
    assert "quantized" not in text
    assert "compressed" not in text


def test_a_quantized_model_is_reported_as_such(invoke: Invoke, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[4] x) => (float[4] y) <float s = {0.1}, uint8 z = {128}> {
          q = QuantizeLinear (x, s, z)
          y = DequantizeLinear (q, s, z)
        }""")
    path = tmp_path / "q.onnx"
    path.write_bytes(model.SerializeToString())
    assert re.search(
        r"^quantized +already: 1 QuantizeLinear, 1 DequantizeLinear$", invoke("inspect", path).stdout, re.M
    )


def test_custom_operators_are_named(invoke: Invoke, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13, "acme" : 1]>
        g (float[4] x) => (float[4] y) { y = acme.Twirl (x) }""")
    path = tmp_path / "c.onnx"
    path.write_bytes(model.SerializeToString())
    assert "acme:Twirl" in invoke("inspect", path).stdout


def test_open_dimensions_are_said_to_be_counted_as_one(invoke: Invoke, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[batch, time, 3] x) => (float[batch, time, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> {
          y = MatMul (x, w)
        }""")
    path = tmp_path / "open.onnx"
    path.write_bytes(model.SerializeToString())
    assert "at least 6 for a batch of one" in invoke("inspect", path).stdout


def test_nothing_is_written(invoke: Invoke, model_file: Path) -> None:
    invoke("inspect", model_file, "-v")
    assert files_in(model_file.parent) == {"net.onnx"}


def test_a_model_without_constants_is_said_to_have_none(invoke: Invoke, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[4] x) => (float[4] y) { y = Relu (x) }""")
    path = tmp_path / "relu.onnx"
    path.write_bytes(model.SerializeToString())
    assert "nothing to compress" in invoke("inspect", path).stdout


def test_sensitivity_ranks_the_weights(invoke: Invoke, model_file: Path, calibration_file: Path) -> None:
    asked = ("inspect", model_file, "--sensitivity", "--calib-data", calibration_file)
    content = json.loads(invoke(*asked, "--json").stdout)
    found = content["weights"]
    assert {each["name"]: each["kind"] for each in found} == {"W1": "linear", "W2": "linear"}
    assert found[0]["influence"] >= found[1]["influence"] > 0
    assert all(2 <= each["bits"] <= 8 for each in found)
    text = invoke(*asked).stdout
    assert re.search(rf"^{found[0]['name']} +linear +[\d,]+ +[\d.]+ +{found[0]['bits']}$", text, re.MULTILINE)


def test_sensitivity_needs_data(invoke: Invoke, model_file: Path) -> None:
    refused = invoke("inspect", model_file, "--sensitivity")
    assert refused.exit_code == 2
    assert "--data" in refused.output


def test_metadata_and_doc_strings_are_told_from_the_graph(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    assert "doc strings" not in invoke("inspect", model_file).stdout
    model = onnx.load(model_file)
    plain_bytes = model.ByteSize()
    model.metadata_props.add(key="labels", value="cat,dog")
    users_bytes = model.ByteSize() - plain_bytes
    for node in model.graph.node:
        node.doc_string = "File model.py, line 1" * 20
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File model.py, line 1")
    onnx.save(model, model_file)
    [found] = re.findall(r"^texts +([\d,]+) bytes", invoke("inspect", model_file).stdout, re.MULTILINE)
    headers = 2 * len(model.graph.node) + 2  # the lengths of nodes and graph, written in more digits
    assert 0 <= model.ByteSize() - plain_bytes - users_bytes - int(found.replace(",", "")) <= headers
    out = tmp_path / "stripped.onnx"
    invoke("run", "strip-metadata", model_file, "-o", out)
    assert json.loads(invoke("inspect", out, "--json").stdout)["text_bytes"] == 0
    assert [each.key for each in onnx.load(out).metadata_props] == ["labels"]


def test_groups_are_listed_with_what_stays(invoke: Invoke, model_file: Path) -> None:
    content = json.loads(invoke("inspect", model_file, "--groups", "--json").stdout)
    (group,) = content["groups"]
    assert (group["units"], group["kind"], group["unit_bytes"]) == (64, "channels", 4 * (16 + 1 + 10))
    assert [each["reason"] for each in content["declined"]] == ["it is an output of its graph"]
    shown = invoke("inspect", model_file, "--groups", "-v").stdout
    assert "64 channels" in shown and "W1[0]" in shown and "it is an output of its graph" in shown


def test_one_table_at_a_time(invoke: Invoke, model_file: Path) -> None:
    assert invoke("inspect", model_file, "--groups", "--sensitivity").exit_code == 2
