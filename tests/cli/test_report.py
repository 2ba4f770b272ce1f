"""``report``, ``explain`` and ``--report``: the receipt as a page and in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onnxcomp import Receipt
from tests.cli.conftest import Invoke, files_in
from tests.report.accounts import account, elements, named, text, tree


@pytest.fixture
def receipt_file(out: Path) -> Path:
    path = out / "net.receipt.json"
    path.write_text(account().to_json())
    return path


def test_the_page_goes_beside_the_receipt(invoke: Invoke, receipt_file: Path, out: Path) -> None:
    result = invoke("report", receipt_file)
    assert result.exit_code == 0
    assert re.search(rf"^written +{re.escape(str(out / 'net.html'))}$", result.stdout, re.MULTILINE)
    assert files_in(out) == {"net.receipt.json", "net.html"}
    assert "conv.weight" in (out / "net.html").read_text()


def test_a_page_that_exists_is_kept_without_force(invoke: Invoke, receipt_file: Path, out: Path) -> None:
    (out / "page.html").write_text("mine")
    result = invoke("report", receipt_file, "-o", out / "page.html")
    assert result.exit_code == 1 and "--force" in result.stderr
    assert (out / "page.html").read_text() == "mine"
    assert invoke("report", receipt_file, "-o", out / "page.html", "--force", "-q").stdout == ""
    assert (out / "page.html").read_text().startswith("<!doctype html>")


def test_what_is_no_receipt_is_refused(invoke: Invoke, model_file: Path, out: Path) -> None:
    result = invoke("report", model_file, "-o", out / "page.html")
    assert result.exit_code == 1 and "not a receipt" in result.stderr
    assert files_in(out) == set()


def test_explain_says_what_a_weight_got_why_and_what_else_there_was(invoke: Invoke, receipt_file: Path) -> None:
    said = invoke("explain", receipt_file, "conv.weight").stdout
    assert said.startswith("conv.weight\n  It went from 8,192 to 840 bytes")
    assert re.search(r"^store-compact +changed +codebook, 4 bits$", said, re.MULTILINE)
    assert re.search(r"^cluster-weights bits=4 +800 +0\.002 +0\.002 +chosen$", said, re.MULTILINE)
    assert re.search(r"^as it was +8,192 +0 +0 +not worth it", said, re.MULTILINE)


def test_explain_as_json(invoke: Invoke, receipt_file: Path) -> None:
    content = json.loads(invoke("explain", receipt_file, "fc.weight", "--json").stdout)
    assert content["weight"] == "fc.weight" and content["reasons"]
    assert [each["verdict"].split()[0] for each in content["alternatives"]] == ["too", "chosen", "not"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("conv.wieght", "Did you mean conv.weight"),
        ("CONV.WEIGHT", "Did you mean conv.weight"),
        ("conv", "conv is a node, no weight; it reads conv.weight."),
        ("weight", "Did you mean fc.weight, conv.weight?"),
    ],
)
def test_explain_offers_the_names_that_may_be_meant(invoke: Invoke, receipt_file: Path, name: str, words: str) -> None:
    result = invoke("explain", receipt_file, name)
    assert result.exit_code == 2 and words in result.stderr


def test_explain_of_a_receipt_without_weights_says_so(invoke: Invoke, receipt_file: Path) -> None:
    bare = account()
    bare.weights, bare.steps = {}, []
    receipt_file.write_text(bare.to_json())
    result = invoke("explain", receipt_file, "w")
    assert result.exit_code == 2 and "names no weights" in result.stderr


def test_names_reach_a_terminal_as_text_only(invoke: Invoke, receipt_file: Path) -> None:
    receipt_file.write_text(account(first="w\x1b[2J").to_json())
    assert "\x1b" not in invoke("explain", receipt_file, "w\x1b[2J").stdout


def test_a_run_writes_the_page_that_its_receipt_gives_later(
    invoke: Invoke, model_file: Path, calibration_file: Path, out: Path
) -> None:
    recipe = out / "mine.toml"
    recipe.write_text('[[step]]\nchoose = ["quantize-weights"]\n[[step]]\npass = "store-compact"\n')
    args = ["optimize", model_file, "--calib-data", calibration_file, "--recipe", recipe, "-o", out / "s.onnx"]
    assert invoke(*args, "--report", out / "now.html").exit_code == 0
    receipt = Receipt.read(out / "s.receipt.json")
    assert receipt.command.startswith("onnxcomp optimize ") and str(recipe) in receipt.command
    root = tree((out / "now.html").read_text())
    rows = " ".join(text(each) for each in elements(named(root, "t-weights"), "tr"))
    assert "W1" in rows and "W2" in rows and "B1" in rows
    assert {"W1", "W2", "B1"} <= receipt.weights.keys()
    assert receipt.weights["W1"].alternatives and receipt.weights["W1"].influence
    assert text(named(root, "command")) == receipt.command
    assert invoke("report", out / "s.receipt.json", "-o", out / "later.html").exit_code == 0
    same = out / "now.html", out / "later.html"
    assert same[0].read_text().replace("net.onnx", "") == same[1].read_text().replace("net.onnx", "")
    again = ["optimize", model_file, "--calib-data", calibration_file, "--replay", out / "s.receipt.json"]
    assert invoke(*again, "-o", out / "again.onnx").exit_code == 0
    assert (out / "again.onnx").read_bytes() == (out / "s.onnx").read_bytes()
    assert Receipt.read(out / "again.receipt.json").weights == receipt.weights


@pytest.mark.usefixtures("unmeasured")
def test_a_page_that_fails_costs_the_page_alone(
    invoke: Invoke, model_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.report.render", lambda receipt: pytest.fail("no page"))
    with pytest.raises(pytest.fail.Exception, match="no page"):
        invoke(
            "optimize", model_file, "--recipe", "lossless", "-o", out / "net.onnx", "--report", out / "net.html", "-q"
        )
    assert files_in(out) == {"net.onnx", "net.receipt.json"}
