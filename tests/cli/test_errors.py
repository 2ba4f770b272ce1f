"""Bad input: one line on standard error, exit 1, nothing written. Wrong usage: exit 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper

from .conftest import files_in, small_model

READERS = ("optimize", "inspect", "expand", "bench")


def refused(result, *words: str, code: int = 1) -> None:
    """One line that holds the words, and the exit code."""
    assert result.exit_code == code, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("onnxcomp: ")
    assert [word for word in words if word not in lines[0]] == []
    assert result.stdout == ""


@pytest.mark.parametrize("command", READERS)
def test_a_missing_file_is_named(invoke, command: str, tmp_path: Path) -> None:
    refused(invoke(command, tmp_path / "none.onnx"), "none.onnx", "no such file")


@pytest.mark.parametrize("command", READERS)
def test_what_is_not_a_model_is_refused(invoke, command: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.onnx"
    path.write_text("this is a letter, and not a model at all\n")
    refused(invoke(command, path), "notes.onnx", "not an ONNX model")
    assert files_in(tmp_path) == {"notes.onnx"}


@pytest.mark.parametrize("command", READERS)
def test_an_empty_file_is_refused(invoke, command: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    refused(invoke(command, path), "empty.onnx", "not an ONNX model")


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.1])
def test_a_truncated_model_is_refused(invoke, kept: float, tmp_path: Path) -> None:
    content = small_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * kept)])
    refused(invoke("optimize", path), "cut.onnx")
    assert files_in(tmp_path) == {"cut.onnx"}


def with_external_data(folder: Path) -> Path:
    folder.mkdir()
    model = small_model()
    external_data_helper.convert_model_to_external_data(model, location="net.bin", size_threshold=0)
    path = folder / "net.onnx"
    onnx.save(model, str(path))
    return path


def test_missing_external_data_is_named(invoke, tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model")
    (path.parent / "net.bin").unlink()
    refused(invoke("optimize", path), "net.bin", "missing")


def test_external_data_that_is_cut_short_is_refused(invoke, tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model")
    data = path.parent / "net.bin"
    data.write_bytes(data.read_bytes()[:100])
    refused(invoke("optimize", path), "net.bin", "cut short")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_external_data_outside_the_folder_is_refused(invoke, location: str, tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model")
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    refused(invoke("optimize", path), "outside the model's folder")


def test_external_data_behind_a_symlink_to_outside_is_refused(invoke, tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model")
    data = path.parent / "net.bin"
    data.rename(tmp_path / "elsewhere.bin")
    data.symlink_to(tmp_path / "elsewhere.bin")
    refused(invoke("optimize", path), "outside the model's folder")


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_an_opset_that_onnxruntime_refuses_is_refused(invoke, tmp_path: Path) -> None:
    model = small_model()
    model.opset_import[0].version = 99
    refused(invoke("optimize", saved(model, tmp_path / "new.onnx")), "opset")
    assert files_in(tmp_path) == {"new.onnx"}


def custom_model() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Twirl", ["x"], ["y"], domain="acme")], "g", value[:1], value[1:])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_custom_operators_without_a_library_are_named(invoke, tmp_path: Path) -> None:
    result = invoke("optimize", saved(custom_model(), tmp_path / "custom.onnx"))
    refused(result, "acme:Twirl", "--custom-ops")
    assert files_in(tmp_path) == {"custom.onnx"}


def test_a_custom_operator_library_that_does_not_load_is_named(invoke, tmp_path: Path) -> None:
    library = tmp_path / "twirl.so"
    library.write_bytes(b"no library")
    result = invoke("optimize", saved(custom_model(), tmp_path / "custom.onnx"), "--custom-ops", library)
    refused(result, "twirl.so")


RECIPES = {
    "unknown key": ('[[step]]\npass = "cluster-weights"\nbitz = 4\n', "bitz"),
    "out of range": ('[[step]]\npass = "cluster-weights"\nbits = 99\n', "bits"),
    "unknown pass": ('[[step]]\npass = "shrink-everything"\n', "shrink-everything"),
    "no step": ('description = "nothing"\n', "step"),
    "not TOML": ("[[step]\n", "TOML"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_wrong_recipe_is_refused(invoke, kind: str, model_file: Path, tmp_path: Path, out: Path) -> None:
    text, word = RECIPES[kind]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    refused(invoke("optimize", model_file, "--recipe", recipe, "-o", out / "o.onnx"), "recipe.toml", word)
    assert files_in(out) == set()


def test_an_unknown_recipe_lists_the_presets(invoke, model_file: Path) -> None:
    result = invoke("optimize", model_file, "--recipe", "tinny")
    refused(result, "tinny", "Did you mean tiny?", "default", "lossless", "small", code=2)


CALIBRATIONS = {
    "other name": {"z": np.zeros((4, 16), np.float32)},
    "other type": {"x": np.zeros((4, 16), np.int64)},
    "other shape": {"x": np.zeros((4, 17), np.float32)},
}


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_calibration_data_that_does_not_fit_is_refused(invoke, kind: str, model_file: Path, out: Path) -> None:
    data = model_file.parent / "data.npz"
    np.savez(data, **CALIBRATIONS[kind])
    refused(invoke("optimize", model_file, "--calib-data", data, "-o", out / "o.onnx"), "calibration data", "x")
    assert files_in(out) == set()


def test_missing_calibration_data_is_named(invoke, model_file: Path) -> None:
    refused(invoke("optimize", model_file, "--calib-data", "nowhere.npz"), "nowhere.npz")


def test_a_pass_that_needs_data_says_so_before_any_work(invoke, model_file: Path, out: Path) -> None:
    refused(invoke("run", "quantize-static", model_file, "-o", out / "q.onnx"), "--calib-data", code=2)
    assert files_in(out) == set()


def test_an_execution_provider_that_is_not_installed_lists_those_that_are(invoke, model_file: Path) -> None:
    refused(invoke("optimize", model_file, "--ep", "quantum"), "quantum", "installed", "cpu")


@pytest.mark.parametrize("existing", ["o.onnx", "o.receipt.json", "page.html"])
def test_an_existing_output_is_refused_before_any_work(
    invoke, existing: str, model_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcomp.cli.running import job

    monkeypatch.setattr(job, "optimize", lambda *args, **kwargs: pytest.fail("work was done"))
    (out / existing).write_text("mine")
    result = invoke("optimize", model_file, "-o", out / "o.onnx", "--report", out / "page.html")
    refused(result, existing, "--force")
    assert (out / existing).read_text() == "mine"
    assert files_in(out) == {existing}


def test_a_missing_output_folder_is_refused_before_any_work(invoke, model_file: Path, out: Path) -> None:
    refused(invoke("optimize", model_file, "-o", out / "no" / "o.onnx"), "does not exist")


def test_the_input_is_never_the_output(invoke, model_file: Path) -> None:
    before = model_file.read_bytes()
    refused(invoke("optimize", model_file, "-o", model_file, "--force"), "never written to")
    assert model_file.read_bytes() == before


WRONG = {
    "a size without a number": ("--target-size", "huge"),
    "a size without a unit": ("--target-size", "3"),
    "a size beyond all numbers": ("--target-size", "1e400"),
    "a drop beyond all numbers": ("--max-drop", "1e400"),
    "an exponent beyond all numbers": ("--target-latency", "1e99999999999999ms"),
    "a time beyond all numbers": ("--time-budget", "9" * 400),
    "a pattern that matches nothing": ("--exclude", "W9"),
    "a time without a unit known": ("--time-budget", "3 fortnights"),
    "a negative seed": ("--seed", "-1"),
    "no threads": ("--threads", "0"),
    "a version of one number": ("--min-ort", "latest"),
    "an option that there is not": ("--frobnicate",),
    "an unknown metric": ("--metric", "vibes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_usage_ends_with_2_and_writes_nothing(invoke, kind: str, model_file: Path, out: Path) -> None:
    result = invoke("optimize", model_file, "-o", out / "o.onnx", *WRONG[kind])
    refused(result, WRONG[kind][0], WRONG[kind][-1], code=2)
    assert files_in(out) == set()


def test_a_receipt_that_is_none_is_refused(invoke, model_file: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    receipt.write_text("{}")
    refused(invoke("optimize", model_file, "--replay", receipt), "receipt.json")


def test_a_pattern_that_matches_nothing_gets_the_nearest_names(invoke, model_file: Path) -> None:
    for command in (("optimize",), ("run", "quantize-weights")):
        result = invoke(*command, model_file, "--exclude", "W9*")
        assert result.exit_code == 2
        assert "W9* matches no weight and no node" in result.stderr and "W1" in result.stderr


@pytest.mark.parametrize("pattern", ["W1", "W[12]", "h", "*"])
def test_a_pattern_that_matches_a_weight_or_node_is_taken(invoke, pattern: str, model_file: Path) -> None:
    assert invoke("optimize", model_file, "--exclude", pattern, "--dry-run", "-q").exit_code == 0


def test_a_fault_of_the_program_is_one_line_too(invoke, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp.cli.running import job

    def broken(request: object) -> None:
        raise KeyError("\x1b[2Jboom")

    monkeypatch.setattr(job, "run", broken)
    refused(invoke("optimize", model_file), "a fault of onnxcomp itself", "KeyError", r"\x1b[2Jboom")
    told = invoke("optimize", model_file, "-v")
    assert told.exit_code == 1 and "Traceback" in told.stderr
