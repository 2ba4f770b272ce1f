"""Results in one line, in a few, as a table and as a page; and arrays in place of files."""

from __future__ import annotations

import importlib
import json
import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.errors import ModelError
from onnxcomp.pipeline.costs import Costs
from onnxcomp.pipeline.reports.account import headline, rows
from onnxcomp.pipeline.reports.bench import Bench, MeasuredCost
from onnxcomp.receipt import Application, Receipt, StepReport
from onnxcomp.shown import Row, Shown
from tests.cli.conftest import small_model

RNG = np.random.default_rng(1)
SAMPLES = RNG.standard_normal((128, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def result() -> onnxcomp.Result:
    """The small model with its name made hostile, in 4 bits."""
    model = small_model()
    model.graph.name = "<b>net</b>"
    return onnxcomp.run("quantize-weights", model, SAMPLES, parameters={"bits": 4}, max_drop="none", measure=False)


def test_arrays_give_the_bytes_that_their_file_gives(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=SAMPLES)
    made = [
        onnxcomp.run("quantize-weights", small_model(), source, max_drop="none", measure=False).model.to_bytes()
        for source in (tmp_path / "x.npz", {"x": SAMPLES}, SAMPLES)
    ]
    assert made[0] == made[1] == made[2]


def test_a_result_is_one_short_line(result: onnxcomp.Result) -> None:
    assert re.fullmatch(r"<Result model: [\d,]+ -> [\d,]+ bytes, same size, MEASURED, no limit>", repr(result))
    assert len(repr(result.receipt)) < 120 and len(repr(result.model)) < 120


def test_its_summary_says_what_it_comes_to(result: onnxcomp.Result) -> None:
    lines = result.summary().splitlines()
    assert lines[0] == result.headline()
    assert [line.split()[0] for line in lines[1:4]] == ["size", "outputs", "changed"]
    assert all(len(line) < 200 for line in lines)
    assert result.divergence is not None and f"{result.divergence:.3g}" in result.summary()


def test_properties_are_what_the_receipt_says(result: onnxcomp.Result) -> None:
    receipt = result.receipt
    assert result.size_bytes == receipt.result["bytes"] == len(result.model.to_bytes())
    assert result.times_smaller == pytest.approx(receipt.source["bytes"] / receipt.result["bytes"])
    assert result.passed and not result.missed
    receipt.missed.append("size: too large")
    try:
        assert not result.passed and result.missed == ("size: too large",) and "goal missed" in result.summary()
    finally:
        receipt.missed.clear()


def test_what_models_are_called_is_text_in_a_notebook() -> None:
    class Hostile(Shown):
        def headline(self) -> str:
            return "<script>alert(1)</script>"

        def rows(self) -> list[Row]:
            return [("<img src=x>", "a & b")]

    page = Hostile()._repr_html_()
    assert "<script>" not in page and "<img" not in page and "a &amp; b" in page
    assert Hostile().summary() == "<script>alert(1)</script>\n  <img src=x>  a & b"


def test_a_page_is_written_whole_and_only_by_force_over_another(result: onnxcomp.Result, tmp_path: Path) -> None:
    path = result.report(tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "quantize-weights" in text
    with pytest.raises(ModelError, match=r"exists already.*force=True"):
        result.report(path)
    path.write_text("old")
    assert result.report(str(path), force=True).read_text(encoding="utf-8") == text


def test_saved_twice_says_how_to_replace(result: onnxcomp.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="force=True"):
        result.save(tmp_path / "a.onnx")
    assert json.loads((tmp_path / "a.receipt.json").read_text())["format"] == 1


def told(**changes: object) -> Receipt:
    receipt = Receipt(
        recipe="small",
        seed=0,
        target="cpu",
        versions={},
        source={"path": "/a/net.onnx", "bytes": 1000, "sha256": ""},
        data={"random": False, "samples": 8, "verification_samples": 4},
        metric={"name": "divergence", "limit": 0.03},
        result={"bytes": 250, "opset": 17, "ir_version": 8, "needs_onnxruntime": "1.12"},
        steps=[StepReport("round-weights", "kept", {}, 1000, 250, 0.5, divergence=0.0123)],
        applied=[Application("round-weights", {})],
        verdict={"passed": True, "samples": 64, "divergence": 0.0123, "limit": 0.03, "agreement": 0.975},
        measured={"latency_ms_original": 2.0, "latency_ms_result": 1.0, "load_s_original": 0.01, "load_s_result": 0.02},
    )
    for name, value in changes.items():
        setattr(receipt, name, value)
    return receipt


def test_slower_and_unverified_are_said_as_such() -> None:
    assert headline(told()) == "net.onnx: 1,000 -> 250 bytes, 4x smaller, PASS"
    facts = dict(rows(told()))
    assert facts["latency"] == "2 ms -> 1 ms, 2x faster" and facts["load time"] == "10 ms -> 20 ms, 2x SLOWER"
    assert facts["outputs"] == (
        "divergence 0.0123 of 0.03 allowed on 64 samples; the winning class is the same on 97.5%"
    )
    assert facts["runs on"] == "ONNX Runtime 1.12+, cpu" and facts["changed by"] == "round-weights"
    blind = told(verdict={"verified": False, "passed": True, "samples": 0, "limit": 0.03})
    assert headline(blind).endswith("NOT JUDGED") and "nothing could be compared" in dict(rows(blind))["outputs"]
    assert headline(told(verdict={"passed": False, "samples": 4, "divergence": 1, "limit": 0.03})).endswith("FAIL")
    drawn = told(data={"random": True, "samples": 8, "verification_samples": 4})
    assert headline(drawn).endswith("RUNS, accuracy not judged")
    assert headline(told(missed=["size: too large"])).endswith("PASS, GOAL MISSED")
    assert headline(told(applied=[])).endswith("UNCHANGED")
    assert "drawn at random, which show breakage only" in dict(rows(drawn))["outputs"]


def test_what_nobody_judged_has_not_passed() -> None:
    def passed(receipt: Receipt) -> bool:
        return onnxcomp.Result(onnxcomp.load(small_model()), receipt).passed

    drawn = {"random": True, "samples": 8, "verification_samples": 4}
    assert passed(told()) and not passed(told(data=drawn)) and not passed(told(missed=["size"]))
    assert passed(told(data=drawn, steps=[StepReport("drop-unused", "kept", {}, 1000, 250, 0.5)]))
    assert not passed(told(verdict={"verified": False, "passed": True}))


def test_costs_stand_side_by_side() -> None:
    costs = (MeasuredCost("a", 1000, 2.0, 1.9, 0.01, 0.0, 10**6), MeasuredCost("b", 500, 1.0, 0.9, 0.02, 0.0, 10**6))
    ratios = {"size_bytes": 0.5, "latency_ms": 0.5, "load_s": 2.0, "load_peak_bytes": 1.0}
    found = Bench("cpu", 1, 5, "x.npz", costs, ratios, {"x": [1, 16]}, "the data")
    assert repr(found) == "<Bench a and b: 2 ms and 1 ms, latency ratio 0.50 (cpu, 1 thread)>"
    assert found.rows()[0] == ("", "a", "b", "ratio") and found.rows()[3] == ("load time", "10 ms", "20 ms", "2.00")


def test_inspect_compare_and_expand_take_models_in_memory() -> None:
    model = small_model()
    assert "2 weights" in repr(onnxcomp.inspect(model))
    compared = onnxcomp.compare(model, model.SerializeToString(), {"x": SAMPLES})
    assert compared.passed and repr(compared) == "<Comparison net and net: PASS>"
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    worse = onnxcomp.compare(model, other, SAMPLES)
    assert not worse.passed and "why" in dict(worse.rows())
    made = onnxcomp.run("round-weights", model, SAMPLES, measure=False)
    assert onnxcomp.compare(model, made, SAMPLES).model_bytes == made.size_bytes == onnxcomp.inspect(made).size_bytes
    assert onnxcomp.expand(model).to_bytes() == onnxcomp.load(model).to_bytes()


def test_a_session_opens_what_is_in_memory_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(small_model().SerializeToString())
    outputs = [onnxcomp.open_session(each).run({"x": SAMPLES[:2]})["y"] for each in (path, small_model())]
    np.testing.assert_array_equal(*outputs)


def test_a_run_tells_its_decisions_to_who_listens_and_to_no_one_else(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("onnxcomp.pipeline.api"), "compare_costs", lambda *_: Costs())
    onnxcomp.optimize(small_model(), recipe="lossless")
    assert capfd.readouterr() == ("", "") and not caplog.records
    with caplog.at_level(logging.DEBUG, logger="onnxcomp"):
        onnxcomp.run("quantize-weights", small_model(), SAMPLES, parameters={"bits": "auto"})
    lines = [record.getMessage() for record in caplog.records]
    assert any(re.match(r"quantize-weights: kept, \d+ -> \d+ bytes, divergence", each) for each in lines), lines
    assert any("search: limit" in each for each in lines)
    assert any(re.match(r"quantize-weights: W1: quantize-weights.* [\d,]+ bytes$", each) for each in lines)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG, logging.INFO}
