"""onnxcomp optimize: what it writes, prints and returns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcomp.receipt import Receipt

from .conftest import Invoke, files_in

pytestmark = pytest.mark.usefixtures("unmeasured")

CLUSTERED = '[[step]]\npass = "cluster-weights"\nbits = {bits}\n[[step]]\npass = "store-compact"\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Six bits for every weight, stored compactly: quick, and within the default budget."""
    path = tmp_path / "recipe.toml"
    path.write_text(CLUSTERED.format(bits=6))
    return path


@pytest.fixture
def args(model_file: Path, recipe: Path, calibration_file: Path, out: Path) -> list[object]:
    return ["optimize", model_file, "--recipe", recipe, "--calib-data", calibration_file, "-o", out / "small.onnx"]


def test_writes_a_smaller_model_and_its_receipt(
    invoke: Invoke, args: list[object], model_file: Path, out: Path
) -> None:
    before = model_file.read_bytes()
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    assert files_in(out) == {"small.onnx", "small.receipt.json"}
    assert (out / "small.onnx").stat().st_size < len(before)
    onnx.checker.check_model(str(out / "small.onnx"))
    assert model_file.read_bytes() == before


def test_the_default_output_stands_beside_the_input(invoke: Invoke, args: list[object], model_file: Path) -> None:
    assert invoke(*args[:-2]).exit_code == 0
    assert files_in(model_file.parent) == {"net.onnx", "net.opt.onnx", "net.opt.receipt.json"}


def test_the_result_comes_first_and_then_what_changed_the_model(
    invoke: Invoke, args: list[object], out: Path
) -> None:
    text = invoke(*args).stdout
    size = r"  size +7.09 kB -> [\d.]+ kB +[\d.]+x smaller\n"
    assert re.match(rf"net.onnx -> {out}/small.onnx: PASS, [\d.]+ s\n{size}", text)
    outputs = r"same top class on [\d.]+% of 128 unseen samples; error [\d.]+ of 0.03 allowed \(judged as class scores"
    assert re.search(rf"^  outputs +{outputs}.*\)$", text, re.MULTILINE)
    assert "\n\n2 of 2 steps changed the model (-v lists all):\n" in text
    assert re.search(r"^  cluster-weights +2 weights in 6 bits$", text, re.MULTILINE)
    assert re.search(r"^  store-compact +-[\d.]+ kB  2 weights stored in fewer bytes$", text, re.MULTILINE)
    assert text.endswith(f"\nDetails: -v, {out}/small.receipt.json, onnxcomp report {out}/small.receipt.json\n")


def test_all_that_says_how_large_the_result_is_says_the_same(invoke: Invoke, args: list[object], out: Path) -> None:
    text = invoke(*args, "-v", "--target-size", "100x").stdout
    size = (out / "small.onnx").stat().st_size
    receipt = json.loads((out / "small.receipt.json").read_text())
    assert receipt["result"]["bytes"] == receipt["steps"][-1]["bytes_after"] == size
    assert f"-> {size:,} bytes)" in text
    assert re.search(rf"^  MISSED +size: .* \({size:,} of 71 bytes\)$", text, re.MULTILINE)
    assert re.search(rf"^store-compact +kept +{size:,} ", text, re.MULTILINE)


def test_steps_that_find_nothing_are_a_count(invoke: Invoke, args: list[object], recipe: Path) -> None:
    recipe.write_text('[[step]]\npass = "fuse-pad"\n' + recipe.read_text())
    plain, verbose = invoke(*args).stdout, invoke(*args, "-v", "--force").stdout
    assert "2 of 3 steps changed the model, 1 had nothing to do (-v lists it):" in plain
    assert "fuse-pad" not in plain
    assert re.search(r"^fuse-pad +nothing to do", verbose, re.MULTILINE)


def test_output_that_is_no_terminal_has_no_colour_no_frames_and_no_trailing_blanks(
    invoke: Invoke, args: list[object]
) -> None:
    text = invoke(*args, "-v").stdout
    assert text.isascii()
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


def test_verbose_names_every_weight(invoke: Invoke, args: list[object]) -> None:
    plain = invoke(*args).stdout
    verbose = invoke(*args, "-v", "--force").stdout
    for name in ("W1", "W2"):
        assert not re.search(rf"\b{name}\b", plain)
        assert re.search(rf"^cluster-weights +{name} +changed +\S", verbose, re.MULTILINE)


def test_quiet_prints_nothing(invoke: Invoke, args: list[object], out: Path) -> None:
    result = invoke(*args, "-q")
    assert (result.stdout, result.stderr) == ("", "")
    assert files_in(out) == {"small.onnx", "small.receipt.json"}


def test_json_is_the_receipt_with_the_files(invoke: Invoke, args: list[object], out: Path) -> None:
    content = json.loads(invoke(*args, "--json").stdout)
    assert content["files"] == [str(out / "small.onnx"), str(out / "small.receipt.json")]
    on_disk = json.loads((out / "small.receipt.json").read_text())
    assert {key: content[key] for key in on_disk} == on_disk
    assert content["result"]["bytes"] == (out / "small.onnx").stat().st_size


def test_without_data_every_line_of_verification_says_random_inputs(invoke: Invoke, args: list[object]) -> None:
    text = invoke(*args[:4], *args[6:]).stdout
    assert re.match(r"net.onnx -> .*: RUNS, accuracy not judged, ", text)
    assert re.search(r"^  outputs +error [\d.]+ on random inputs, which show breakage only$", text, re.MULTILINE)
    assert "--calib-data" in text


def test_a_missed_size_goal_ends_with_3_and_the_model_is_written(invoke: Invoke, args: list[object], out: Path) -> None:
    result = invoke(*args, "--target-size", "100x")
    assert result.exit_code == 3
    assert re.match(r"net.onnx -> .*: PASS, GOAL MISSED, ", result.stdout)
    assert re.search(r"^  MISSED +size: [\d.]+ kB, wanted 71 B ", result.stdout, re.MULTILINE)
    assert files_in(out) == {"small.onnx", "small.receipt.json"}


@pytest.mark.parametrize("option", ["-q", "--json"])
def test_a_missed_goal_is_said_where_no_table_says_it(invoke: Invoke, args: list[object], option: str) -> None:
    result = invoke(*args, "--target-size", "100x", option)
    assert result.exit_code == 3
    said = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"onnxcomp: goal missed: size: [\d.]+ kB, wanted 71 B \(.* bytes\) \(exit code 3\)", said)


def test_a_goal_that_is_met_ends_with_0(invoke: Invoke, args: list[object]) -> None:
    assert invoke(*args, "--target-size", "90%").exit_code == 0


def test_weights_that_break_the_budget_are_taken_back_and_named(
    invoke: Invoke, args: list[object], recipe: Path
) -> None:
    recipe.write_text(CLUSTERED.format(bits=1))
    result = invoke(*args)
    assert result.exit_code == 0
    assert re.search(r"^  cluster-weights .*(not used|taken back): .*\bW[12]\b", result.stdout, re.MULTILINE)
    assert re.search(r"^ +taken back: W", invoke(*args, "-v", "--force").stdout, re.MULTILINE)


def test_excluded_weights_are_not_changed(invoke: Invoke, args: list[object]) -> None:
    content = json.loads(invoke(*args, "--exclude", "W2", "--json").stdout)
    [clustered] = [each for each in content["steps"] if each["rewrite"] == "cluster-weights"]
    assert [each["name"] for each in clustered["changed"]] == ["W1"]


def test_the_report_is_one_page_that_names_every_weight(invoke: Invoke, args: list[object], out: Path) -> None:
    done = invoke(*args, "--report", out / "page.html")
    assert done.stdout.endswith(f"\nDetails: -v, {out}/small.receipt.json\n")
    page = (out / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"src=|href=\"[^#]", page), "the page must need nothing else"
    for word in ("cluster-weights", "store-compact", "W1", "W2", "divergence"):
        assert word in page


def test_the_report_escapes_names(invoke: Invoke, args: list[object], model_file: Path, out: Path) -> None:
    model = onnx.load(str(model_file))
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "<script>W1</script>"
    model_file.write_bytes(model.SerializeToString())
    invoke(*args, "--report", out / "page.html")
    assert "<script>W1" not in (out / "page.html").read_text()


def test_a_dry_run_names_the_steps_and_writes_nothing(
    invoke: Invoke, args: list[object], model_file: Path, out: Path
) -> None:
    result = invoke(*args, "--dry-run")
    assert result.exit_code == 0
    assert re.search(r"^cluster-weights +run +bits=6", result.stdout, re.MULTILINE)
    assert re.search(r"^weights +2 of 2 may change$", result.stdout, re.MULTILINE)
    assert files_in(out) == set()
    assert files_in(model_file.parent) == {"net.onnx"}


def test_a_dry_run_as_json_has_every_weight(invoke: Invoke, args: list[object]) -> None:
    content = json.loads(invoke(*args, "--dry-run", "--json", "--exclude", "W1").stdout)
    assert {each["name"]: each["excluded"] for each in content["weights"]} == {"W1": True, "W2": False}


def test_replay_makes_the_same_file(
    invoke: Invoke, args: list[object], model_file: Path, calibration_file: Path, out: Path
) -> None:
    invoke(*args)
    receipt, again = out / "small.receipt.json", out / "again.onnx"
    result = invoke("optimize", model_file, "--replay", receipt, "--calib-data", calibration_file, "-o", again)
    assert result.exit_code == 0, result.stderr
    assert (out / "again.onnx").read_bytes() == (out / "small.onnx").read_bytes()


@pytest.mark.parametrize(
    "option",
    [["--max-drop", "0.1"], ["--exclude", "W*"], ["--target-size", "9x"], ["--min-ort", "1.12"], ["--ep", "cpu"],
     ["--metric", "mse"], ["--recipe", "small"], ["--seed", "1"], ["--threads", "1"], ["--dry-run"]],
)  # fmt: skip
def test_replay_refuses_options_that_it_does_not_follow(
    invoke: Invoke, model_file: Path, out: Path, option: list[str]
) -> None:
    result = invoke("optimize", model_file, "--replay", out / "no.receipt.json", *option)
    assert result.exit_code == 2
    assert f"{option[0]} has no effect beside --replay" in result.stderr


def test_replay_of_what_json_printed_says_whose_figures_it_shows(
    invoke: Invoke, args: list[object], model_file: Path, calibration_file: Path, out: Path
) -> None:
    printed, again = out / "printed.json", out / "again.onnx"
    printed.write_text(invoke(*args, "--json").stdout)
    result = invoke("optimize", model_file, "--replay", printed, "--calib-data", calibration_file, "-o", again)
    assert result.exit_code == 0, result.stderr
    assert "the figures are those of the receipt" in result.stdout
    assert again.read_bytes() == (out / "small.onnx").read_bytes()


def test_replay_on_other_data_writes_nothing(
    invoke: Invoke, args: list[object], model_file: Path, calibration_file: Path, out: Path
) -> None:
    invoke(*args)
    with np.load(calibration_file) as arrays:
        np.savez(out / "other.npz", **{name: np.flip(each, axis=-1) for name, each in arrays.items()})
    receipt, again = out / "small.receipt.json", out / "again.onnx"
    result = invoke("optimize", model_file, "--replay", receipt, "--calib-data", out / "other.npz", "-o", again)
    assert result.exit_code == 1 and "other calibration data" in result.stderr
    assert not again.exists() and not (out / "again.receipt.json").exists()


def test_replay_of_another_models_receipt_is_refused(
    invoke: Invoke, args: list[object], model_file: Path, out: Path
) -> None:
    invoke(*args)
    model = onnx.load(str(model_file))
    model.doc_string = "another"
    model_file.write_bytes(model.SerializeToString())
    result = invoke("optimize", model_file, "--replay", out / "small.receipt.json", "-o", out / "again.onnx")
    assert result.exit_code == 1
    assert "another model" in result.stderr
    assert not (out / "again.onnx").exists()


def test_the_receipt_on_disk_can_be_read_back(invoke: Invoke, args: list[object], out: Path) -> None:
    invoke(*args, "--seed", "5")
    assert Receipt.read(out / "small.receipt.json").seed == 5


def test_an_interrupt_while_writing_leaves_no_partial_file(
    invoke: Invoke, args: list[object], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxcomp.model.os.replace", interrupt)
    result = invoke(*args)
    assert result.exit_code == 130
    assert files_in(out) == set()


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(
    invoke: Invoke, args: list[object], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxcomp.model.os.replace", full)
    result = invoke(*args, "-q")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr
    assert files_in(out) == set()


def test_with_labels_the_table_speaks_of_accuracy(
    invoke: Invoke, args: list[object], model_file: Path, calibration_file: Path
) -> None:
    inputs = np.load(calibration_file)["x"]
    [scores] = onnxruntime.InferenceSession(str(model_file)).run(None, {"x": inputs})
    np.savez(calibration_file, x=inputs, labels=scores.argmax(axis=1))
    text = invoke(*args, "-v").stdout
    assert "accuracy drop (95% interval)" in text
    assert re.search(r"^  outputs +accuracy 1 -> [\d.]+, a drop of [\d.]+ \([\d.]+ allowed\)", text, re.MULTILINE)


def test_one_sample_alone_verifies_nothing(invoke: Invoke, args: list[object], calibration_file: Path) -> None:
    np.savez(calibration_file, x=np.load(calibration_file)["x"][:1])
    text = invoke(*args).stdout
    assert re.match(r"net.onnx -> .*: (UNCHANGED|NOT JUDGED)", text) and "unseen" not in text
    assert re.search(r"^  outputs +nothing could be compared", text, re.M)
    assert "too few samples to keep some apart" in text and "only what is safe without data was done" in text
    assert re.search(r"^  cluster-weights +not used", text, re.M)  # six bits are not


def test_repeated_samples_are_told_from_distinct_ones(
    invoke: Invoke, args: list[object], calibration_file: Path
) -> None:
    assert "distinct" not in invoke(*args).stdout
    np.savez(calibration_file, x=np.tile(np.load(calibration_file)["x"][:40], (8, 1)))
    assert "160 unseen samples (20 distinct)" in invoke(*args, "--force").stdout


def test_operators_that_no_opset_counts_are_named_as_needed(
    invoke: Invoke, args: list[object], model_file: Path
) -> None:
    assert " that has " not in invoke(*args).stdout
    model = onnx.load(model_file)
    last = model.graph.node[-1]
    made, last.output[0] = last.output[0], "before_gelu"
    model.graph.node.add(op_type="Gelu", domain="com.microsoft", input=["before_gelu"], output=[made])
    model.opset_import.add(domain="com.microsoft", version=1)
    onnx.save(model, model_file)
    assert " or newer that has com.microsoft:Gelu; judged on cpu" in invoke(*args, "--force").stdout


def test_a_run_that_gains_nothing_says_so(invoke: Invoke, args: list[object], recipe: Path) -> None:
    recipe.write_text('[[step]]\npass = "fuse-batch-norm"\n')
    result = invoke(*args)
    assert result.exit_code == 0
    assert "nothing was gained: the output is the original" in result.stdout
    assert "latency" not in result.stdout and "load time" not in result.stdout
    assert json.loads(invoke(*args, "--force", "--json").stdout)["result"]["gained"] is False


def test_what_is_gained_is_in_the_json(invoke: Invoke, args: list[object]) -> None:
    assert json.loads(invoke(*args, "--json").stdout)["result"]["gained"] is True


def test_a_model_without_constants_is_told_to_have_nothing_to_compress(
    invoke: Invoke, args: list[object], model_file: Path
) -> None:
    said = "net.onnx: there are no weights to compress"
    assert said not in invoke(*args).stderr
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[N,16] x) => (float[N,16] y) { y = Relu(x) }'
    model_file.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert said in invoke(*args, "--force").stderr
    assert said not in invoke(*args, "--force", "-q").stderr


def test_what_was_tried_is_listed_with_the_reason_why_it_lost(
    invoke: Invoke, model_file: Path, calibration_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onnxcomp.pipeline.model_search.timing.Course.milliseconds",
        lambda self, models, seconds=0.0: {name: float(model.size_bytes) for name, model in models.items()},
    )
    recipe = tmp_path / "try.toml"
    recipe.write_text('[[step]]\ntry = [{pass = "fuse-pad"}, {pass = "quantize-static"}]\n')
    page = tmp_path / "page.html"
    args = ["optimize", model_file, "--recipe", recipe, "--calib-data", calibration_file, "-o", tmp_path / "o.onnx"]
    text = invoke(*args, "--report", page).stdout
    assert re.search(r"^ +tried +time +error +size +result$", text, re.MULTILINE)
    assert re.search(r"^\* +quantize-static +1.000 +\S+ +[\d.]+ kB +kept$", text, re.MULTILINE)
    assert "1 more came to nothing that could be timed (-v lists it)" in text
    verbose = invoke(*args, "-v", "--force").stdout
    assert re.search(r"^ +fuse-pad +nothing to do for fuse-pad$", verbose, re.MULTILINE)
    assert "What was tried on the whole model" in page.read_text()
