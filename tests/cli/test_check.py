"""onnxcomp check: a gate by a receipt, and by comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .conftest import Invoke, small_model


@pytest.fixture
def receipt(invoke: Invoke, model_file: Path, calibration_file: Path, out: Path, unmeasured: None) -> Path:
    """The receipt of a model in 8 bits, verified on data."""
    result = invoke(
        "run", "quantize-weights", model_file, "--bits", 8, "-o", out / "small.onnx", "--calib-data", calibration_file
    )
    assert result.exit_code == 0, result.output
    return out / "small.receipt.json"


def moved(model: Path, name: str, by: float) -> None:
    """Move all values of one of the small model's initializers, in place."""
    proto = onnx.load(model)
    [tensor] = [each for each in proto.graph.initializer if each.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), name))
    model.write_bytes(proto.SerializeToString())


def test_a_receipt_whose_files_are_as_recorded_passes_in_one_line(invoke: Invoke, receipt: Path) -> None:
    result = invoke("check", receipt)
    assert result.exit_code == 0
    [line] = result.stdout.splitlines()
    assert line.startswith("PASS small.onnx: ") and "as recorded" in line


def test_a_model_means_the_receipt_beside_it(invoke: Invoke, receipt: Path) -> None:
    by_model, by_receipt = (invoke("check", each) for each in (receipt.with_name("small.onnx"), receipt))
    assert by_model.stdout == by_receipt.stdout


def test_a_model_that_was_changed_since_fails(invoke: Invoke, receipt: Path) -> None:
    moved(receipt.with_name("small.onnx"), "B1", 1e-3)
    result = invoke("check", receipt)
    assert result.exit_code == 1
    [line] = result.stdout.splitlines()
    assert line == "FAIL small.onnx: small.onnx is not the file that the receipt tells of: its SHA-256 differs"


def test_an_original_that_was_changed_since_fails(invoke: Invoke, receipt: Path, model_file: Path) -> None:
    moved(model_file, "B1", 1e-3)
    result = invoke("check", receipt)
    assert result.exit_code == 1 and "is not the original" in result.stdout


def test_a_missing_model_fails(invoke: Invoke, receipt: Path) -> None:
    receipt.with_name("small.onnx").unlink()
    result = invoke("check", receipt)
    assert result.exit_code == 1 and "is missing" in result.stdout


def test_an_original_that_is_not_here_is_a_note(invoke: Invoke, receipt: Path, model_file: Path) -> None:
    model_file.unlink()
    result = invoke("check", receipt)
    assert result.exit_code == 0 and "the original is not here" in result.stdout


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("missed", ["size: 9 bytes, the goal was 3"], "goal missed: size: 9 bytes"),
        ("verdict", {"passed": False, "reasons": ["y is too far off"]}, "y is too far off"),
        ("verdict", {"passed": True, "verified": False}, "nothing was compared"),
    ],
)
def test_what_a_receipt_says_against_its_model_fails(
    invoke: Invoke, receipt: Path, part: str, value: object, words: str
) -> None:
    content = json.loads(receipt.read_text())
    content[part] = {**content[part], **value} if isinstance(value, dict) else value
    receipt.write_text(json.dumps(content))
    result = invoke("check", receipt)
    assert result.exit_code == 1 and words in result.stdout


def test_data_judge_what_the_run_could_not(invoke: Invoke, receipt: Path, calibration_file: Path) -> None:
    content = json.loads(receipt.read_text())
    limit = content["metric"]["limit"]
    content["verdict"] |= {"passed": True, "verified": False}
    content["metric"] |= {"name": "sqnr", "limit": 20 * limit}  # of breakage, as where no output can be compared
    receipt.write_text(json.dumps(content))
    result = invoke("check", receipt, "--data", calibration_file)
    assert result.exit_code == 0 and f"limit {limit}" in result.stdout and "measured now" in result.stdout


def test_a_run_that_took_too_long_says_nothing_against_its_model(invoke: Invoke, receipt: Path) -> None:
    content = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**content, "missed": ["time: 9 s, the budget was 3 s"]}))
    assert invoke("check", receipt).exit_code == 0


def test_data_measure_again(invoke: Invoke, receipt: Path, calibration_file: Path) -> None:
    found = json.loads(invoke("check", receipt, "--data", calibration_file, "--json").stdout)
    compared = json.loads(
        invoke(
            "compare", *(json.loads(receipt.read_text())["source"]["path"], receipt.with_name("small.onnx")),
            "--calib-data", calibration_file, "--json",
        ).stdout
    )  # fmt: skip
    assert found["measured"] and found["verdict"]["samples"] == 256
    assert found["verdict"]["divergence"] == compared["verdict"]["divergence"] > 0


def test_a_measurement_over_the_limit_fails(invoke: Invoke, receipt: Path, calibration_file: Path) -> None:
    result = invoke("check", receipt, "--data", calibration_file, "--max-drop", "1e-9")
    assert result.exit_code == 1 and result.stdout.startswith("FAIL small.onnx: ")


def test_the_original_may_be_named(invoke: Invoke, receipt: Path, model_file: Path, calibration_file: Path) -> None:
    elsewhere = model_file.with_name("moved.onnx")
    model_file.rename(elsewhere)
    lost = invoke("check", receipt, "--data", calibration_file)
    assert lost.exit_code == 1 and "Name it: --reference" in lost.stderr
    assert invoke("check", receipt, "--data", calibration_file, "--reference", elsewhere).exit_code == 0


def test_two_models_are_compared_on_data(invoke: Invoke, model_file: Path, calibration_file: Path) -> None:
    near = model_file.with_name("near.onnx")
    shutil.copy(model_file, near)
    assert invoke("check", near, model_file, "--data", calibration_file).stdout.startswith("PASS near.onnx: ")
    moved(near, "W2", 0.5)
    over = invoke("check", near, model_file, "--data", calibration_file, "--max-drop", "1e-6")
    assert over.exit_code == 1 and over.stdout.startswith("FAIL near.onnx: ")
    assert invoke("check", near, model_file, "--data", calibration_file, "--max-drop", "none").exit_code == 0


def test_without_data_two_models_are_said_to_be_compared_on_random_inputs(invoke: Invoke, model_file: Path) -> None:
    for shape in ((), ("--input-shape", "x=3,16")):
        result = invoke("check", model_file, model_file, *shape)
        assert result.exit_code == 0 and "random inputs" in result.stdout


def test_a_changed_data_file_fails(invoke: Invoke, tmp_path: Path, out: Path, unmeasured: None) -> None:
    onnx.save(
        small_model(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcomp.model.INLINE_LIMIT_BYTES", 0)
        assert invoke("run", "drop-unused", tmp_path / "net.onnx", "-o", out / "small.onnx").exit_code == 0
    [data] = out.glob("*.data")
    assert invoke("check", out / "small.receipt.json").exit_code == 0
    data.write_bytes(bytes(data.stat().st_size))
    result = invoke("check", out / "small.receipt.json")
    assert result.exit_code == 1 and data.name in result.stdout


def test_several_receipts_must_all_hold(invoke: Invoke, receipt: Path) -> None:
    broken = receipt.with_name("broken.receipt.json")
    broken.write_text(receipt.read_text().replace('"small.onnx"', '"gone.onnx"'))
    good = invoke("check", receipt, receipt)
    assert good.exit_code == 0 and [each[:4] for each in good.stdout.splitlines()] == ["PASS", "PASS"]
    bad = invoke("check", broken, receipt)
    assert bad.exit_code == 1 and [each[:4] for each in bad.stdout.splitlines()] == ["FAIL", "PASS"]
    assert [each["passed"] for each in json.loads(invoke("check", broken, receipt, "--json").stdout)] == [False, True]


def test_options_without_effect_are_refused(invoke: Invoke, receipt: Path, model_file: Path) -> None:
    assert invoke("check", receipt, "--metric", "top1").exit_code == 2
    assert invoke("check", receipt, "--max-drop", "1").exit_code == 2
    assert invoke("check", model_file, model_file, "--reference", model_file).exit_code == 2
    assert invoke("check", model_file, model_file, model_file).exit_code == 2
    assert invoke("check", receipt, "--input-shape", "x=3,16").exit_code == 2


def test_a_model_without_a_receipt_wants_a_reference(invoke: Invoke, model_file: Path) -> None:
    result = invoke("check", model_file)
    assert result.exit_code == 1 and "has no receipt beside it (net.receipt.json)" in result.stderr


def test_a_file_that_is_no_receipt_is_an_error_in_one_line(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}")
    result = invoke("check", tmp_path / "no.json")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
