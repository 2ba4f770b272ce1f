"""Probes of known faults: each says what a plain look at the same model says."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxcomp.doctor import faults
from onnxcomp.doctor.faults import FAULTS, faults_here
from onnxcomp.errors import TargetError
from onnxcomp.runtime import Session
from onnxcomp.target import processor


def test_every_fault_is_named_and_says_what_to_do() -> None:
    assert len({each.name for each in FAULTS}) == len(FAULTS)
    assert all(each.what and each.around for each in FAULTS)


def test_those_that_are_present_are_listed_in_the_order_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [faults.Fault(name, "what", "around", lambda is_there=is_there: is_there) for name, is_there in
            (("a", True), ("b", False), ("c", True))]  # fmt: skip
    monkeypatch.setattr(faults, "FAULTS", tuple(made))
    assert [each.name for each in faults_here()] == ["a", "c"]


def test_sums_saturate_where_the_processor_is_known_to() -> None:
    probe = next(each for each in FAULTS if each.name == "saturating integer sums")
    assert probe.is_present() == processor().saturates


class Right:
    """A session that computes what each probe is held against: no fault."""

    def __init__(self, model: bytes) -> None:
        self.model = parser  # held for nothing

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        depth = feeds["x"].shape[-1]
        return {"y": np.full((1, 16), 255 * 127 * depth, np.int32)}


def test_a_right_answer_is_no_fault_and_a_wrong_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = next(each for each in FAULTS if each.name == "saturating integer sums")
    monkeypatch.setattr(faults, "Session", Right)
    assert not probe.is_present()
    monkeypatch.setattr(Right, "run", lambda self, feeds: {"y": np.full((1, 16), 32767, np.int32)})
    assert probe.is_present()


def test_a_model_that_does_not_load_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("normalizations behind a Cast do not load", "newest opset without quantization",
             "decoders in branches do not load")  # fmt: skip
    probes = [each for each in FAULTS if each.name in names]
    assert len(probes) == len(names)
    monkeypatch.setattr(faults, "Session", lambda model: None)
    assert not any(each.is_present() for each in probes)

    def refuses(model: bytes) -> None:
        raise TargetError("no")

    monkeypatch.setattr(faults, "Session", refuses)
    assert all(each.is_present() for each in probes)


def test_every_probe_runs_on_the_installed_onnx_runtime() -> None:
    """Without their fault, the models of the probes are models: with its optimizations off each opens."""
    present = {each.name for each in faults_here()}
    assert present <= {each.name for each in FAULTS}
    assert Session is faults.Session
