"""What is shown of a run, for receipts whose every number is written here: the whole text, to the letter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.cli.printing import receipts
from onnxcomp.receipt import Application, Entry, Receipt, StepReport, Tried

FILES = [Path("out/net.opt.onnx"), Path("out/net.opt.receipt.json")]


def step(name: str, before: int, after: int, *, decision: str = "kept", **more: Any) -> StepReport:
    return StepReport(name, decision, {}, before, after, 0.5, **more)


def verdict(**other: Any) -> dict[str, Any]:
    found = {"kind": "classes", "measure": "classes", "divergence": 0.0123}
    made = {
        "passed": True, "verified": True, "divergence": 0.0123, "interval": [0.01, 0.02], "limit": 0.03,
        "samples": 250, "agreement": 1.0, "score": None, "original_score": None, "beside": None, "reasons": [],
        "outputs": {"logits": found},
    }  # fmt: skip
    return made | other


def receipt(**other: Any) -> Receipt:
    """Two steps that changed the model, one that was not used and one that found nothing."""
    weights = [Entry("a", "3 levels", {"bits": 2}), Entry("b", "15 levels", {"bits": 4}), Entry("a", "in turn")]
    raw = "CPUExecutionProvider cannot load the model: Node (n) Op (Concat) [ShapeInferenceError] rank 2 != 1"
    made = Receipt(
        recipe="small",
        seed=0,
        target="cpu",
        versions={},
        source={"path": "/data/net.onnx", "bytes": 1_725_602, "sha256": ""},
        data={
            "random": False, "samples": 500, "verification_samples": 250, "shapes": {"x": [1, 1, 28, 28]},
            "shapes_from": "calibration data",
        },
        metric={"name": "divergence", "limit": 0.03, "evidence": {"distinct": 250}},
        result={"bytes": 87_658, "opset": 17, "ir_version": 8, "needs_onnxruntime": "1.12"},
        steps=[
            step("remove-noops", 1_725_602, 1_725_602, decision="nothing to do"),
            step("fold-constants", 1_725_602, 1_725_602, decision="taken back", reason=raw),
            step("quantize-weights", 1_725_602, 1_725_602, changed=weights, divergence=0.0123),
            step("store-compact", 1_725_602, 87_658, changed=[Entry("a", "codebook", {"bytes_after": 8})]),
        ],
        applied=[],
        verdict=verdict(),
        measured={
            "latency_ms_original": 0.061, "latency_ms_result": 0.0605, "latency_ms_ratio": 0.0605 / 0.061,
            "load_s_original": 0.010, "load_s_result": 0.016, "load_s_ratio": 1.6, "load_s_noise": 0.05,
            "load_peak_bytes_original": 13_000_000, "load_peak_bytes_result": 24_000_000,
            "load_peak_bytes_ratio": 24 / 13, "threads": 1, "seconds": 18.0,
        },
    )  # fmt: skip
    made.applied = [Application("quantize-weights", {}), Application("store-compact", {})]
    return dataclasses.replace(made, **other)


BLOCK = """\
net.onnx -> out/net.opt.onnx: PASS, 18 s
  size     1.73 MB -> 87.7 kB     19.7x smaller
  outputs  same top class on all 250 unseen samples; error 0.0123 of 0.03 allowed (judged as class scores)
  latency  0.061 ms -> 0.0605 ms  unchanged  (at 1x1x28x28 from calibration data, 1 thread)
  loading  10 ms -> 16 ms         1.6x SLOWER, 11 MB more memory
  runs on  ONNX Runtime 1.12 or newer; judged on cpu

2 of 4 steps changed the model, 1 was not used, 1 had nothing to do (-v lists it):
  quantize-weights            2 weights in 2 to 4 bits
  store-compact     -1.64 MB  a: codebook
  fold-constants              not used: its result did not load in ONNX Runtime (please report it; -v shows ONNX \
Runtime's message)

Details: -v, out/net.opt.receipt.json, onnxcomp report out/net.opt.receipt.json
"""


def shown(made: Receipt, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    receipts.show(made, FILES, **{"verbose": False} | options)
    return capsys.readouterr().out


def line(text: str, name: str) -> str:
    """What a fact's line says, its columns a blank apart."""
    [found] = [each for each in text.splitlines() if each.startswith(f"  {name} ")]
    return " ".join(found.split()[len(name.split()) :])


def test_the_whole_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(receipt(), capsys) == BLOCK


def test_the_words_of_onnx_runtime_are_for_those_who_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ShapeInferenceError" not in shown(receipt(), capsys)
    assert "ShapeInferenceError" in shown(receipt(), capsys, verbose=True)


OUTCOMES = {
    "PASS": receipt(),
    "PASS, GOAL MISSED": receipt(missed=["size: 87.7 kB, wanted 17 kB"]),
    "UNCHANGED": receipt(applied=[]),
    "RUNS, accuracy not judged": receipt(data={"random": True, "samples": 8, "verification_samples": 8}),
    "PASS, exact steps only": receipt(
        steps=[step("fold-constants", 1_725_602, 1_725_000)],
        data={"random": True, "samples": 8, "verification_samples": 8},
    ),
    "NOT JUDGED": receipt(verdict=verdict(verified=False, divergence=None)),
    "MEASURED, no limit": receipt(verdict=verdict(limit=1e30)),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_heading_says_how_it_came_out(outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(OUTCOMES[outcome], capsys)
    assert text.splitlines()[0] == f"net.onnx -> out/net.opt.onnx: {outcome}, 18 s"


def test_a_replay_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(receipt(), capsys, replayed=True)
    assert text.splitlines()[0] == "net.onnx -> out/net.opt.onnx: REPLAYED"
    assert line(text, "note").startswith("the same file as the receipt's; the figures are those of the receipt")


VALUES = {"kind": "values", "measure": "worst channel", "divergence": 0.0123}
OUTPUTS = {
    "values": (
        verdict(agreement=None, outputs={"y": VALUES}),
        "error 0.0123 of 0.03 allowed on 250 unseen samples (judged as values, worst by worst channel)",
    ),
    "perhaps classes": (
        verdict(agreement=0.94, outputs={"y": VALUES}),
        "error 0.0123 of 0.03 allowed on 250 unseen samples (judged as values, worst by worst channel); "
        "if these are class scores, the top class is the same on 94.0%",
    ),
    "some of the classes": (
        verdict(agreement=0.98),
        "same top class on 98.0% of 250 unseen samples; error 0.0123 of 0.03 allowed (judged as class scores)",
    ),
    "several winners in each": (
        verdict(agreement=0.9991),
        "same top class on 99.9% of the places in 250 unseen samples; error 0.0123 of 0.03 allowed (judged as class "
        "scores)",
    ),
    "the worst of two": (
        verdict(agreement=None, outputs={"y": VALUES, "z": VALUES | {"divergence": 0.001}}),
        "error 0.0123 of 0.03 allowed on 250 unseen samples (y, the worst of 2 outputs, judged as values, worst by "
        "worst channel)",
    ),
    "nothing": (verdict(verified=False, divergence=None), "nothing could be compared: see the notes"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_how_outputs_were_judged(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, words = OUTPUTS[kind]
    assert line(shown(receipt(verdict=given), capsys), "outputs") == words


METRICS = {
    "sqnr": ({"divergence": 1e-3, "limit": 1e-2}, "signal to noise 30 dB, at least 20 dB wanted on 250 unseen samples"),
    "cosine": ({}, "cosine error 0.0123 of 0.03 allowed on 250 unseen samples"),
    "accuracy": (
        {"divergence": 0.01, "score": 0.97, "original_score": 0.98},
        "accuracy 0.98 -> 0.97, a drop of 0.01 (0.03 allowed) on 250 unseen samples",
    ),
}


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_is_said_in_its_own_unit(metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    other, words = METRICS[metric]
    made = receipt(metric={"name": metric, "limit": 0.03}, verdict=verdict(outputs={}, agreement=None, **other))
    assert line(shown(made, capsys), "outputs") == words


def test_shapes_that_were_guessed_are_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    data = receipt().data | {"shapes": {"ids": [1, 16], "mask": [1, 16]}, "shapes_from": "guessed"}
    text = line(shown(receipt(data=data), capsys), "latency")
    assert text.endswith("unchanged (at ids 1x16, mask 1x16, guessed: --input-shape says another, 1 thread)")


def test_a_result_that_is_worse_says_so_in_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    measured = receipt().measured | {"latency_ms_result": 0.122, "latency_ms_ratio": 2.0}
    text = shown(receipt(measured=measured, result=receipt().result | {"bytes": 2_000_000}), capsys)
    assert line(text, "size") == "1.73 MB -> 2 MB 1.16x LARGER"
    assert "2x SLOWER" in line(text, "latency")


def test_loads_that_differ_by_less_than_their_noise_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    measured = receipt().measured | {"load_s_noise": 0.7, "load_peak_bytes_result": 13_100_000}
    assert line(shown(receipt(measured=measured), capsys), "loading") == (
        "10 ms -> 16 ms unchanged within the noise of 70%"
    )


def test_what_was_tried_stands_from_the_fastest_on_beside_the_kept_one(capsys: pytest.CaptureFixture[str]) -> None:
    tried = [
        Tried("pass-a", "slower", 100, 0.8, 0.001),
        Tried("pass-b", "nothing to do for pass-b"),
        Tried("pass-c", "as fast within noise; 1.5% more bytes", 1015, 0.5, 0.002),
        Tried("pass-d", "kept", 1000, 0.5025, 0.002),
    ]
    raced = step("pass-d", 2000, 1000, tried=tried, changed=[Entry("n", "done")])
    text = shown(receipt(steps=[raced]), capsys)
    table = text[text.index("   tried") :].splitlines()[:6]
    assert [" ".join(each.split()) for each in table] == [
        "tried time error size result",
        "pass-c 0.995 0.002 1.01 kB as fast within noise; 1.5% more bytes",
        "* pass-d 1.000 0.002 1 kB kept",
        "pass-a 1.592 0.001 100 B slower",
        "1 more came to nothing that could be timed (-v lists it)",
        "Time is beside the kept one's, in turns; the latency above was measured once more at the end.",
    ]


def test_what_did_nothing_though_it_was_asked_for_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    left = [Entry("conv", "relu (Relu) reads its channels and cannot be cut"), Entry("a", "b"), Entry("c", "d")]
    why = "prune-channels did nothing: conv: relu (Relu) reads its channels and cannot be cut, and 2 others"
    idle = step("prune-channels", 2000, 2000, skipped=left)
    exact = step("fold-constants", 2100, 2000, changed=[Entry("n", "folded")])
    for told in (receipt(steps=[idle], applied=[]), receipt(steps=[exact, idle], recipe="distill")):
        assert why in " ".join(shown(told, capsys).split())
    kept = step("prune-channels", 2000, 1000, skipped=left, changed=[Entry("d", "cut")])
    assert "did nothing" not in shown(receipt(steps=[kept], recipe="distill"), capsys)
    assert "did nothing" not in shown(receipt(steps=[exact, idle]), capsys)  # one of many that a preset tries
    undone = step("prune-channels", 2000, 2000, decision="taken back", skipped=left, taken_back=[Entry("d", "over")])
    assert "did nothing" not in shown(receipt(steps=[undone], applied=[]), capsys)


def test_a_model_that_is_to_be_packed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "once `onnxcomp pack` has coded them" in shown(receipt(recipe="packed"), capsys)
    assert "onnxcomp pack" not in shown(receipt(), capsys)


def test_where_nothing_could_be_timed_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    raced = step("fastest of 2", 2000, 2000, tried=[Tried("pass-b", "nothing to do"), Tried("pass-c", "declined")])
    lines = shown(receipt(steps=[raced]), capsys).splitlines()
    assert "2 came to nothing that could be timed (-v lists them)" in lines
    assert not any("tried" in each and "time" in each for each in lines if "timed" not in each)


def test_names_are_no_commands_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = step("pass-a", 9, 5, changed=[Entry("\x1b[2Jname", "\x1b]0;x\x07")])
    source = receipt().source | {"path": "/data/\x1b[31mnet.onnx"}
    text = shown(receipt(steps=[hostile], source=source, notes=["\x9b31m"]), capsys)
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert r"\x1b[31mnet.onnx -> " in text and r"\x1b[2Jname" in text
